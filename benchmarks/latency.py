"""How long one task takes to come back, and one step of a chain in which every task needs the one before."""

from __future__ import annotations

import statistics
import time

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.systems import SINGLE, System
from benchmarks.tasks import add_one, identity

WARM_UP_TASKS = 100


def measure_round_trip(system: System, size: int) -> Measurement:
    """`submit(f).result()`, one after the other."""
    for place in range(WARM_UP_TASKS):
        system.result(system.submit(identity, place))
    trips = []
    with Meter(system) as meter:
        for place in range(size):
            began = time.perf_counter()
            value = system.result(system.submit(identity, place))
            trips.append(time.perf_counter() - began)
            check_equal(value, place, "the value")
    figures = {"p50": statistics.median(trips) * 1e3, "p99": statistics.quantiles(trips, n=100)[98] * 1e3}
    return meter.measurement(size, size, figures)


def measure_chain(system: System, size: int) -> Measurement:
    """`handle = submit(add_one, handle)`, all submitted as fast as the system takes them, then the last result."""
    check_equal(system.result(run_chain(system, WARM_UP_TASKS)), WARM_UP_TASKS, "the warm-up chain")
    with Meter(system) as meter:
        value = system.result(run_chain(system, size))
    check_equal(value, size, "the end of the chain")
    return meter.measurement(size, size, {"step": meter.seconds / size * 1e3})


def run_chain(system: System, length: int) -> object:
    handle: object = 0
    for _ in range(length):
        handle = system.submit(add_one, handle)
    return handle


CASES = (
    Case(
        name="latency",
        title="`submit(f, x).result()`, warm",
        sizes=(1_000,),
        ladder=(100, 200, 500, 1_000),
        figures=(
            Figure("p50", "ms", at_least=Goal(1.0, 10), aim=Goal(0.5)),
            Figure("p99", "ms"),
        ),
        measure=measure_round_trip,
        needs=frozenset({SINGLE}),
    ),
    Case(
        name="chain",
        title="A chain of dependent submits",
        sizes=(1_000,),
        ladder=(100, 200, 500, 1_000),
        figures=(Figure("step", "ms a step", at_least=Goal(times_dask=10), aim=Goal(0.25)),),
        measure=measure_chain,
        needs=frozenset({SINGLE}),
    ),
)
