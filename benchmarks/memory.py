"""What a task costs in resident memory while it waits, and while its result is kept, in each process role."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal, settled_resident_bytes
from benchmarks.systems import HANDLES, SINGLE, SLOTS, System
from benchmarks.tasks import hold, identity

WARM_UP_TASKS = 2_000
ROLES = ("scheduler", "client", "agent")


def measure_memory(system: System, size: int) -> Measurement:
    """All slots are held while `size` tasks are submitted and counted as pending; then they run and count as finished.

    Small arguments and values cannot be told from bookkeeping by the resident set. They are small integers, about ten
    bytes each when pickled, and are left in.
    """
    system.gather(system.start_many(identity, range(WARM_UP_TASKS)))
    with tempfile.TemporaryDirectory() as directory:
        release = Path(directory, "release")
        started = [Path(directory, f"started-{place}") for place in range(SLOTS)]
        blockers = [system.submit(hold, str(path), str(release)) for path in started]
        while not all(path.exists() for path in started):
            time.sleep(0.01)
        before = resident_by_role(system)
        # All of it is timed, since the limit on a run's length is foreseen from this.
        with Meter(system) as meter:
            handles = system.start_many(identity, range(size))
            pending = resident_by_role(system)
            release.touch()
            for blocker in blockers:
                system.result(blocker)
            check_equal(system.result(handles[size - 1]), size - 1, "the last value")
            finished = resident_by_role(system)
    check_equal(system.result(handles[0]), 0, "the first value")
    figures = {}
    for state, after in (("pending", pending), ("finished", finished)):
        for role in after:
            figures[f"{role}, {state}"] = (after[role] - before[role]) / size
    return meter.measurement(size, size, figures, "arguments (about 10 bytes a task) included")


def resident_by_role(system: System) -> dict[str, int]:
    return {role: settled_resident_bytes(ids) for role, ids in system.processes().items() if role in ROLES and ids}


def memory_figures() -> tuple[Figure, ...]:
    aims = {"scheduler": 100.0, "client": 100.0, "agent": 150.0}
    return tuple(
        Figure(f"{role}, {state}", "bytes a task", at_least=Goal(300.0), aim=Goal(aims[role]))
        for state in ("pending", "finished")
        for role in ROLES
    )


CASES = (
    Case(
        name="memory",
        title="Resident memory a task, all tasks pending, then all finished and still wanted",
        sizes=(1_000_000,),
        ladder=(10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000),
        figures=memory_figures(),
        measure=measure_memory,
        needs=frozenset({SINGLE, HANDLES}),
        only=frozenset({"cluster", "threads", "processes", "dask-apart", "ray"}),
    ),
)
