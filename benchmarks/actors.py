"""An actor's call and return: a method called on an object that stays at a worker."""

from __future__ import annotations

import statistics
import time

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.systems import ACTORS, System
from benchmarks.tasks import Counter

WARM_UP_CALLS = 100


def measure_calls(system: System, size: int) -> Measurement:
    """`actor.increment().result()`, one after the other, and then as many at once."""
    actor = system.actor(Counter)
    for _ in range(WARM_UP_CALLS):
        system.result(system.call(actor, "increment"))
    trips = []
    with Meter(system) as meter:
        for place in range(size):
            began = time.perf_counter()
            value = system.result(system.call(actor, "increment"))
            trips.append(time.perf_counter() - began)
            check_equal(value, WARM_UP_CALLS + place + 1, "the count")
        began = time.perf_counter()
        handles = [system.call(actor, "increment") for _ in range(size)]
        check_equal(system.result(handles[-1]), WARM_UP_CALLS + 2 * size, "the count after many at once")
        at_once = time.perf_counter() - began
    figures = {
        "p50": statistics.median(trips) * 1e3,
        "p99": statistics.quantiles(trips, n=100)[98] * 1e3,
        "rate": size / at_once,
    }
    return meter.measurement(2 * size, size, figures)


CASES = (
    Case(
        name="actor",
        title="A call of an actor's method and its return, warm",
        sizes=(1_000,),
        ladder=(100, 200, 500, 1_000),
        figures=(
            Figure("p50", "ms", at_least=Goal(1.0), aim=Goal(0.4)),
            Figure("p99", "ms"),
            Figure("rate", "calls/s, many at once", higher_is_better=True),
        ),
        measure=measure_calls,
        needs=frozenset({ACTORS}),
    ),
)
