"""How many no-op tasks a second: in one `map`, and in a loop of single `submit` calls."""

from __future__ import annotations

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal, resident_bytes
from benchmarks.systems import HANDLES, SINGLE, System
from benchmarks.tasks import identity

WARM_UP_TASKS = 200


def measure_map(system: System, size: int) -> Measurement:
    """`map` of a no-op over `range(size)`, then `gather`."""
    system.gather(system.map(identity, range(WARM_UP_TASKS)))
    with Meter(system) as meter:
        values = system.gather(system.map(identity, range(size)))
    check_equal(values, list(range(size)), "the gathered values")
    return meter.measurement(size, size, {"rate": size / meter.seconds})


def measure_loop(system: System, size: int) -> Measurement:
    """A loop of single `submit` calls, then `gather`; the scheduler's memory is read with all results still wanted."""
    system.gather([system.submit(identity, place) for place in range(WARM_UP_TASKS)])
    scheduler = system.processes().get("scheduler", [])
    before = resident_bytes(scheduler)
    with Meter(system) as meter:
        handles = [system.submit(identity, place) for place in range(size)]
        values = system.gather(handles)
    figures = {"rate": size / meter.seconds}
    if scheduler:
        figures["scheduler memory"] = (resident_bytes(scheduler) - before) / size
    check_equal(values, list(range(size)), "the gathered values")
    return meter.measurement(size, size, figures)


CASES = (
    Case(
        name="map",
        title="No-op `map` and `gather`",
        sizes=(10_000, 100_000, 1_000_000),
        ladder=(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000),
        figures=(Figure("rate", "tasks a second", True, at_least=Goal(times_dask=100), aim=Goal(times_dask=500)),),
        measure=measure_map,
    ),
    Case(
        name="loop",
        title="A loop of single `submit` calls, then `gather`",
        sizes=(100_000,),
        ladder=(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000),
        figures=(
            Figure("rate", "tasks a second", True, at_least=Goal(times_dask=30), aim=Goal(times_dask=100)),
            Figure("scheduler memory", "bytes a task", at_least=Goal(600), aim=Goal(250)),
        ),
        measure=measure_loop,
        needs=frozenset({SINGLE, HANDLES}),
    ),
)
