"""Large values between the client and the workers of its host: scattered, gathered, and as arguments of a map."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, WrongResult, check_equal
from benchmarks.peak_memory import PeakMemory, held_bytes
from benchmarks.systems import SLOTS, System
from benchmarks.tasks import identity

MEGABYTE = 1_000_000
STRING_BYTES = 77
"""What a string of 20 characters takes in a column of objects: itself, and the reference to it."""
REPEATS = 3
WARM_PASSES = 9
"""Through all frames: in the first of them segments and maps are still being made."""
SAMPLE_SECONDS = 0.02


# --------------------------------------------------------------------------- values, made here and in tasks


def make_array(megabytes: int) -> Any:
    import numpy

    return numpy.arange(megabytes * MEGABYTE // 8, dtype=numpy.float64)


def make_object_strings(megabytes: int) -> Any:
    import pandas

    texts = [f"customer {number:011d}" for number in range(megabytes * MEGABYTE // STRING_BYTES)]
    return pandas.DataFrame({"name": pandas.Series(texts, dtype=object)})


def make_arrow_strings(megabytes: int) -> Any:
    import pandas

    texts = [f"customer {number:011d}" for number in range(megabytes * MEGABYTE // 28)]
    return pandas.DataFrame({"name": pandas.Series(texts, dtype="str")})


def make_frame(megabytes: int, number: int) -> Any:
    import numpy
    import pandas

    rows = megabytes * MEGABYTE // 80
    return pandas.DataFrame(numpy.full((rows, 10), number, dtype=numpy.float64), columns=list("abcdefghij"))


KINDS: dict[str, Callable[[int], Any]] = {
    "array": make_array,
    "object strings": make_object_strings,
    "str strings": make_arrow_strings,
}


def ends_of(value: Any) -> tuple[int, str, str]:
    """What tells that a value has come whole: its length, and its first and last elements."""
    column = value["name"] if hasattr(value, "columns") else value
    at = column.iloc if hasattr(column, "iloc") else column
    return len(column), str(at[0]), str(at[len(column) - 1])


def total_of_frame(frame: Any) -> float:
    return float(frame.to_numpy().sum())


# --------------------------------------------------------------------------- scatter and gather


def measure_scatter(system: System, size: int) -> Measurement:
    """`scatter` of one value until the call returns with it at a worker; the first time, and when memory is warm."""
    system.result(system.submit(identity, 1))
    figures = {}
    with Meter(system) as meter:
        for kind, make in KINDS.items():
            value = make(size)
            expected = ends_of(value)
            seconds = []
            for _ in range(REPEATS + 1):
                began = time.perf_counter()
                future = system.client.scatter(value)
                seconds.append(time.perf_counter() - began)
                check_equal(tuple(system.result(system.submit(ends_of, future))), expected, kind)
                del future
                time.sleep(0.1)  # the release arrives
            figures[f"{kind}, first"] = 1000 * seconds[0]
            figures[f"{kind}, warm"] = 1000 * statistics.median(seconds[1:])
    return meter.measurement(size, len(KINDS), figures)


def measure_gather(system: System, size: int) -> Measurement:
    """`gather` of one value that a task has made; beside it, until all of the array has been read once."""
    system.result(system.submit(identity, 1))
    figures = {}
    with Meter(system) as meter:
        for kind, make in KINDS.items():
            expected = ends_of(make(size))
            seconds, until_read = [], []
            for _ in range(REPEATS):
                future = system.submit(make, size)
                check_equal(tuple(system.result(system.submit(ends_of, future))), expected, kind)
                began = time.perf_counter()
                (value,) = system.gather([future])
                seconds.append(time.perf_counter() - began)
                if kind == "array":
                    value.sum()
                    until_read.append(time.perf_counter() - began)
                check_equal(ends_of(value), expected, kind)
                del future, value
            figures[kind] = 1000 * statistics.median(seconds)
            if until_read:
                figures["array, and read"] = 1000 * statistics.median(until_read)
    return meter.measurement(size, len(KINDS), figures)


# --------------------------------------------------------------------------- a map over what the client holds


def measure_client_map(system: System, size: int) -> Measurement:
    """`map` of a function over frames of 100 MB that the client holds, and `gather` of the sums.

    What the function itself takes is measured here, on the same frames, and counted for all slots at work. The limit is
    one copy of the same frames in memory, in the same run.
    """
    system.result(system.submit(identity, 1))
    frames = [make_frame(100, number) for number in range(size)]
    expected = [total_of_frame(frame) for frame in frames]
    data_bytes = sum(int(frame.memory_usage(index=False).sum()) for frame in frames)
    copy_seconds = min(copy_all(frames) for _ in range(3))
    began = time.perf_counter()
    for frame in frames:
        total_of_frame(frame)
    own_seconds = (time.perf_counter() - began) / SLOTS

    def run() -> float:
        began = time.perf_counter()
        found = system.gather(system.map(total_of_frame, frames))
        seconds = time.perf_counter() - began
        check_equal(found, expected, "the sums")
        return seconds

    with Meter(system) as meter:
        cold = run()
        warm = statistics.median(run() for _ in range(WARM_PASSES))
    ids = [process_id for ids in system.processes().values() for process_id in ids]
    with PeakMemory(lambda: held_bytes(ids), SAMPLE_SECONDS) as memory:
        run()
    if memory.peak_bytes < data_bytes:
        raise WrongResult("the processes take less memory than the data, which they hold: they were not all seen")
    figures = {
        "beyond the function, cold": (cold - own_seconds) / copy_seconds,
        "beyond the function, warm": (warm - own_seconds) / copy_seconds,
        "peak memory": memory.peak_bytes / data_bytes,
    }
    note = f"one copy of the data takes {copy_seconds:.2f} s, the function on all slots {own_seconds:.2f} s"
    return meter.measurement(size, size, figures, note)


def copy_all(frames: list[Any]) -> float:
    """The time that a copy of each frame takes, into memory that has been used before."""
    import numpy

    target = numpy.empty_like(frames[0].to_numpy())
    target.fill(1.0)
    began = time.perf_counter()
    for frame in frames:
        numpy.copyto(target, frame.to_numpy())
    return time.perf_counter() - began


IN_TIMES_OF_DASK = {"at_least": Goal(times_dask=3.0), "aim": Goal(times_dask=10.0)}
HERE = frozenset({"cluster", "dask", "dask-threads"})

CASES = (
    Case(
        name="scatter",
        title="`scatter` of one value of 100 MB to a worker of the same host",
        sizes=(100,),
        ladder=(10, 100),
        figures=tuple(
            Figure(f"{kind}, {when}", "ms", **IN_TIMES_OF_DASK) for kind in KINDS for when in ("first", "warm")
        ),
        measure=measure_scatter,
        only=HERE,
    ),
    Case(
        name="gather",
        title="`gather` of one value of 100 MB from a worker of the same host",
        sizes=(100,),
        ladder=(10, 100),
        figures=(
            *(Figure(kind, "ms", **IN_TIMES_OF_DASK) for kind in KINDS),
            Figure("array, and read", "ms"),
        ),
        measure=measure_gather,
        only=HERE,
    ),
    Case(
        name="client-map",
        title="`map` over frames of 100 MB in the client's memory, beyond the function itself, in copies of the data",
        sizes=(20,),
        ladder=(2, 20),
        figures=(
            Figure("beyond the function, cold", "memory copies"),
            Figure("beyond the function, warm", "memory copies", at_least=Goal(2.0), aim=Goal(1.3)),
            Figure("peak memory", "times the data", at_least=Goal(1.3), aim=Goal(1.1)),
        ),
        measure=measure_client_map,
        only=frozenset({"cluster"}),
    ),
)
