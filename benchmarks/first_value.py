"""How soon the first value of a large `map` is in the client, from the call."""

from __future__ import annotations

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.systems import System
from benchmarks.tasks import identity
from benchmarks.throughput import WARM_UP_TASKS


def measure_first_value(system: System, size: int) -> Measurement:
    """The rest of the map is abandoned: the system is closed with it under way."""
    system.gather(system.map(identity, range(WARM_UP_TASKS)))
    with Meter(system) as meter:
        value = system.first_value(identity, range(size))
    check_equal(value, 0, "the first value")
    return meter.measurement(size, size, {"time": meter.seconds})


CASES = (
    Case(
        name="first-value",
        title="From the call of a `map` to its first value in the client",
        sizes=(1_000_000,),
        ladder=(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000),
        figures=(Figure("time", "s", at_least=Goal(1.0), aim=Goal(0.2)),),
        measure=measure_first_value,
    ),
)
