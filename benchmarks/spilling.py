"""A reduction of data ten times as large as the workers' memory: what all processes hold at most, and its time.

Arrays are made, and added pair by pair until one is left; everything is submitted at once, and nobody keeps what is in
between. The size is the memory limit of the whole cluster in megabytes, the interpreters in it; the arrays are a 64th
of that, and there are 640. A second case keeps all of its arrays (twice the limit) and adds each up afterwards, so that
what does not fit has to go to disk and come back. A third keeps a million results of a kilobyte and more, four times
the limit, and gathers each: its size is how many thousand there are. Of that one only the workers' memory counts, since
the client and the scheduler keep something of each task whatever is done with its value.

Memory is the sum of what the processes have of their own and of mapped files, shared pages counted once (the
proportional set size), and of what lies in shared memory, mapped or not. It is sampled every 50 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.peak_memory import PeakMemory, held_bytes
from benchmarks.systems import HANDLES, SINGLE, SLOTS, System

TIMES_THE_LIMIT = 10
KEPT_TIMES_THE_LIMIT = 2
ARRAYS_A_LIMIT = 64
SMALL_BYTES = 1000
SMALL_TIMES_THE_LIMIT = 4
GATHERED_AT_ONCE = 20_000


def make(index: int, numbers: int) -> Any:
    return np.full(numbers, index, dtype=np.int64)


def add(first: Any, second: Any) -> Any:
    return first + second


def total(values: Any) -> int:
    return int(values.sum())


def make_small(index: int) -> bytes:
    return b"%0*d" % (SMALL_BYTES, index)


def peak_memory(system: System, *left_out: str) -> PeakMemory:
    """Samples what the processes of a system hold, but for those of some roles."""

    def held() -> int:
        roles = system.processes().items()
        return held_bytes(process_id for role, ids in roles if role not in left_out for process_id in ids)

    return PeakMemory(held)


@contextmanager
def limited(system: System, limit_bytes: int) -> Iterator[Callable[[], Any]]:
    """The system with that memory in all instead of what it was opened with; its client."""
    system.close()
    if system.name == "cluster":
        from cluster import Client, LocalCluster

        system.cluster = LocalCluster(n_workers=1, slots=SLOTS, memory_limit=limit_bytes)  # type: ignore[attr-defined]
        system.client = Client(system.cluster)  # type: ignore[attr-defined]
    else:
        import distributed

        workers, threads = system.workers, system.threads  # type: ignore[attr-defined]
        system.cluster = distributed.LocalCluster(  # type: ignore[attr-defined]
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=limit_bytes // workers,
            dashboard_address=None,
        )
        system.client = distributed.Client(system.cluster)  # type: ignore[attr-defined]
    yield system.client  # `System.close` closes both, as it would have the first


def reduce_all(system: System, size: int) -> Measurement:
    limit_bytes = size * 1_000_000
    numbers = limit_bytes // ARRAYS_A_LIMIT // 8
    count = TIMES_THE_LIMIT * ARRAYS_A_LIMIT
    with limited(system, limit_bytes), peak_memory(system) as memory, Meter(system) as meter:
        level: Sequence[Any] = list(system.map(make, range(count), [numbers] * count))
        while len(level) > 1:
            pairs = len(level) // 2
            upper = list(system.map(add, level[: 2 * pairs : 2], level[1 : 2 * pairs : 2]))
            level = upper + list(level[2 * pairs :])
        result = system.submit(total, level[0])
        level = []
        check_equal(system.result(result), numbers * sum(range(count)), "the sum")
    return measurement(meter, memory, size, 2 * count, limit_bytes)


def keep_all(system: System, size: int) -> Measurement:
    limit_bytes = size * 1_000_000
    numbers = limit_bytes // ARRAYS_A_LIMIT // 8
    count = KEPT_TIMES_THE_LIMIT * ARRAYS_A_LIMIT
    with limited(system, limit_bytes), peak_memory(system) as memory, Meter(system) as meter:
        kept = list(system.map(make, range(count), [numbers] * count))
        for handle in kept:
            system.result(system.submit(total, handle))
        sums = system.gather(system.map(total, kept))
        check_equal(sums, [numbers * index for index in range(count)], "the sums")
    return measurement(meter, memory, size, 3 * count, limit_bytes)


def keep_small(system: System, size: int) -> Measurement:
    count = 1000 * size
    limit_bytes = count * SMALL_BYTES // SMALL_TIMES_THE_LIMIT
    with limited(system, limit_bytes), peak_memory(system, "client", "scheduler") as memory, Meter(system) as meter:
        kept = list(system.map(make_small, range(count)))
        for start in range(0, count, GATHERED_AT_ONCE):
            found = system.gather(kept[start : start + GATHERED_AT_ONCE])
            wanted = [make_small(index) for index in range(start, min(count, start + GATHERED_AT_ONCE))]
            check_equal(list(found) == wanted, True, "that the values came back as they were made")
    figures = {"peak memory": memory.peak_bytes / limit_bytes, "seconds": meter.seconds}
    note = f"memory limit {limit_bytes // 1_000_000} MB, the workers' interpreters included"
    return meter.measurement(size, count, figures, note)


def measurement(meter: Meter, memory: PeakMemory, size: int, tasks: int, limit_bytes: int) -> Measurement:
    figures = {"peak memory": memory.peak_bytes / limit_bytes, "seconds": meter.seconds}
    return meter.measurement(size, tasks, figures, f"memory limit {size} MB, interpreters included")


PEAK = Figure("peak memory", "times the limit", at_least=Goal(1.2), aim=Goal(1.0))
ONLY = frozenset({"cluster", "dask", "dask-threads"})

CASES = (
    Case(
        name="spilling",
        title="A pairwise reduction of data ten times as large as the memory limit",
        sizes=(2000,),
        ladder=(256, 512, 1000, 2000),
        figures=(PEAK, Figure("seconds", "s")),
        measure=reduce_all,
        needs=frozenset({SINGLE, HANDLES}),
        only=ONLY,
    ),
    Case(
        name="spilling-kept",
        title="Data twice as large as the memory limit, all of it kept, and read twice",
        sizes=(2000,),
        ladder=(256, 512, 1000, 2000),
        figures=(PEAK, Figure("seconds", "s")),
        measure=keep_all,
        needs=frozenset({SINGLE, HANDLES}),
        only=ONLY,
    ),
    Case(
        name="spilling-small",
        title="A million results of a kilobyte, four times the memory limit, all of them kept, and gathered",
        sizes=(1000,),
        ladder=(1000,),
        figures=(PEAK, Figure("seconds", "s")),
        measure=keep_small,
        needs=frozenset({HANDLES}),
        only=frozenset({"cluster"}),
    ),
)
