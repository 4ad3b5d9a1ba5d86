"""What a task that prints a great deal costs the others: their round trips beside it, and what the agent grows by."""

from __future__ import annotations

import contextlib
import os
import statistics
import time

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal, settled_resident_bytes
from benchmarks.systems import HANDLES, SINGLE, System
from benchmarks.tasks import identity, print_megabytes

WARM_UP_TRIPS = 100
QUIET_TRIPS = 1_000


def measure_output(system: System, size: int) -> Measurement:
    """One task prints `size` MB in lines of 100 bytes; meanwhile others are submitted, and awaited, one by one."""
    for place in range(WARM_UP_TRIPS):
        round_trip(system, place)
    alone = statistics.median(round_trip(system, place) for place in range(QUIET_TRIPS))
    before = resident_bytes(system)
    trips: list[float] = []
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), Meter(system) as meter:
        printing = system.submit(print_megabytes, size)
        while not printing.done():
            trips.append(round_trip(system, len(trips)))
        check_equal(system.result(printing), size, "how much was printed")
    beside = statistics.median(trips)
    figures = {
        "until it ends": meter.seconds,
        "round trip beside it": beside * 1e3,
        "times alone": beside / alone,
        "growth of scheduler and agent": (resident_bytes(system) - before) / 1e6,
    }
    return meter.measurement(len(trips), size, figures)


def round_trip(system: System, place: int) -> float:
    began = time.perf_counter()
    check_equal(system.result(system.submit(identity, place)), place, "the value")
    return time.perf_counter() - began


def resident_bytes(system: System) -> int:
    roles = system.processes()
    return settled_resident_bytes([*roles.get("agent", ()), *roles.get("scheduler", ())])


CASES = (
    Case(
        name="output",
        title="Round trips beside a task that prints",
        sizes=(1_000,),
        ladder=(10, 100, 1_000),
        figures=(
            Figure("until it ends", "s"),
            Figure("round trip beside it", "ms"),
            Figure("times alone", "times", at_least=Goal(1.5)),
            Figure("growth of scheduler and agent", "MB"),
        ),
        measure=measure_output,
        needs=frozenset({SINGLE, HANDLES}),
        only=frozenset({"cluster", "processes", "dask-apart"}),
    ),
)
