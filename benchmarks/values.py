"""What a large value costs: to produce one in a slot, and to hand one to a task in another process of the host."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, WrongResult, check_equal
from benchmarks.systems import HANDLES, SINGLE, SLOTS, System

HAND_OVERS = 5
RESULTS = 16
COPIES = 9
# A slot's first results are written into fresh memory, and the next make it map what is used again.
COLD_RESULTS_A_SLOT = 3

# What a slot keeps, so that its memory is warm.
_kept: dict[str, Any] = {}


# --------------------------------------------------------------------------- tasks


def make_array(nbytes: int, maker: str) -> Any:
    """An array whose first number is the process that made it, which it also says in the file `maker`."""
    array = np.ones(nbytes // 8)
    array[0] = os.getpid()
    Path(maker).write_text(str(os.getpid()))
    return array


def read_first(array: Any) -> tuple[float, int, int]:
    """When the first number was read, where, and the number."""
    number = int(array[0])
    return time.perf_counter(), os.getpid(), number


def hold_slot(started: str, release: str) -> int:
    """Occupies a slot, and says in the file `started` which process that is."""
    Path(f"{started}.part").write_text(str(os.getpid()))
    os.rename(f"{started}.part", started)
    while not Path(release).exists():
        time.sleep(0.001)
    return os.getpid()


def compute_array(nbytes: int, number: int) -> Any:
    """A large result, computed in memory that is warm. It carries when that was done, and where."""
    base = _kept.get("base")
    if base is None or base.nbytes != nbytes:
        base = _kept["base"] = np.arange(nbytes // 8, dtype=np.float64)
    array = base + number
    array[0], array[1] = time.perf_counter(), os.getpid()
    return array


def ends_of(array: Any) -> tuple[float, int, float]:
    return float(array[0]), int(array[1]), float(array[-1])


def copy_seconds(nbytes: int) -> float:
    """How long a slot takes to copy so many bytes within its memory, warm; the median."""
    source, target = np.ones(nbytes // 8), np.zeros(nbytes // 8)
    seconds = []
    for _ in range(COPIES):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


# --------------------------------------------------------------------------- cases


def measure_hand_over(system: System, size: int) -> Measurement:
    """From the submit of a task in another process than the value's, until it has read the first number.

    The value is there when the clock starts, and each is handed over once.
    """
    seconds = []
    with Meter(system) as meter:
        for _ in range(HAND_OVERS):
            with tempfile.TemporaryDirectory() as directory:
                value = system.submit(make_array, size, f"{directory}/maker")
                system.wait(value)
                with kept_from(system, value, directory) as submit:
                    began = time.perf_counter()
                    read, reader, maker = system.result(submit(read_first, value))
            if reader == maker:
                raise WrongResult("the value was read in the process that made it")
            seconds.append(read - began)
            del value
    figures = {"time": statistics.median(seconds) * 1e3}
    note = f"a plain copy in one process takes {copy_seconds(size) * 1e3:,.3g} ms"
    return meter.measurement(size, HAND_OVERS, figures, note)


@contextmanager
def kept_from(system: System, value: Any, directory: str) -> Iterator[Callable[..., Any]]:
    """What submits a task that cannot run where the value was made: that slot is occupied, if it cannot be avoided."""
    if system.places_tasks:
        yield partial(system.submit_elsewhere, value)
        return
    holders = {}
    started = [Path(directory, f"started-{place}") for place in range(SLOTS)]
    for path in started:
        holders[path] = system.submit(hold_slot, str(path), f"{path}.release")
    while not all(path.exists() for path in started):
        time.sleep(0.001)
    maker = Path(directory, "maker").read_text()
    occupied = [path for path in started if path.read_text() == maker]
    for path in started:
        if path not in occupied:
            Path(f"{path}.release").touch()
            system.result(holders[path])
    yield system.submit
    for path in occupied:
        Path(f"{path}.release").touch()
        system.result(holders[path])


def measure_result(system: System, size: int) -> Measurement:
    """From the end of the computation in the slot, until the client knows that the result is there."""
    copying = system.result(system.submit(copy_seconds, size))
    costs: dict[int, list[float]] = {}
    with Meter(system) as meter:
        for number in range(RESULTS):
            value = system.submit(compute_array, size, number)
            system.wait(value)
            known = time.perf_counter()
            computed, slot, last = system.result(system.submit(ends_of, value))
            check_equal(last, float(size // 8 - 1 + number), "the last number")
            costs.setdefault(slot, []).append(known - computed)
            del value
    warm = [cost for of_slot in costs.values() for cost in of_slot[COLD_RESULTS_A_SLOT:]]
    first = [of_slot[0] for of_slot in costs.values()]
    figures = {"cost, warm": statistics.median(warm) / copying, "cost, first use": statistics.median(first) / copying}
    return meter.measurement(size, RESULTS, figures, f"a plain copy in the slot takes {copying * 1e3:,.3g} ms")


APART = frozenset({"cluster", "dask", "ray"})

CASES = (
    Case(
        name="hand-over",
        title="An array in one slot, until a task in another slot of the host has read its first number",
        sizes=(100_000_000, 1_000_000_000),
        ladder=(1_000_000, 10_000_000, 100_000_000, 1_000_000_000),
        figures=(Figure("time", "ms", at_least=Goal(10.0, 20.0), aim=Goal(1.0, 100.0)),),
        measure=measure_hand_over,
        needs=frozenset({SINGLE, HANDLES}),
        only=APART,
    ),
    Case(
        name="result",
        title="A result of 100 MB, from the end of its computation until the client knows of it, in memory copies",
        sizes=(100_000_000,),
        ladder=(1_000_000, 10_000_000, 100_000_000),
        figures=(
            Figure("cost, warm", "copies", at_least=Goal(1.5), aim=Goal(1.1)),
            Figure("cost, first use", "copies"),
        ),
        measure=measure_result,
        needs=frozenset({SINGLE, HANDLES}),
        only=APART,
    ),
)
