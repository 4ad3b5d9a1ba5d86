"""The smallest task at 50 % efficiency (METG), as Task Bench defines it: Slaughter et al., "Task Bench", SC 2020.

A task is a loop of a given number of passes. What the machine can do at most is measured by as many bare processes as
there are slots, looping at the same time, beside every point measured. Efficiency is the passes a second through the system over that. The length of
the task is halved from where the system is efficient until it is not, and the crossing is interpolated on a logarithmic
scale. Passes, and not seconds, make the work: on a busy machine a wait by the clock would count stolen time as work.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.pool import Pool

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.systems import SLOTS, System
from benchmarks.tasks import spin
from benchmarks.throughput import WARM_UP_TASKS

EFFICIENT = 0.5
IDEAL_SECONDS = 0.4
FEWEST_TASKS = 64
MOST_TASKS = 200_000
LONGEST_TASK_SECONDS = 0.5
SHORTEST_TASK_SECONDS = 1e-6
CALIBRATION_PASSES = 2_000_000
STENCIL_WIDTH = 16


def measure_independent(system: System, first_length_us: int) -> Measurement:
    """One `map` of equal tasks, gathered."""

    def run(count: int, passes: int) -> float:
        began = time.perf_counter()
        values = system.gather(system.map(spin, [passes] * count))
        seconds = time.perf_counter() - began
        check_equal(values, [0] * count, "the gathered values")
        return seconds

    return measure_smallest(system, run, first_length_us)


def measure_stencil(system: System, first_length_us: int) -> Measurement:
    """Steps of 16 tasks; each takes the results of itself and both neighbours, round the edge."""

    def run(count: int, passes: int) -> float:
        steps = max(2, count // STENCIL_WIDTH)
        began = time.perf_counter()
        level = list(system.map(spin, [passes] * STENCIL_WIDTH))
        for _ in range(steps - 1):
            left, right = level[-1:] + level[:-1], level[1:] + level[:1]
            level = list(system.map(spin, [passes] * STENCIL_WIDTH, left, level, right))
        values = system.gather(level)
        seconds = time.perf_counter() - began
        check_equal(values, [3] * STENCIL_WIDTH, "the last step")
        return seconds * count / (steps * STENCIL_WIDTH)

    return measure_smallest(system, run, first_length_us)


def measure_smallest(system: System, run: Callable[[int, int], float], first_length_us: int) -> Measurement:
    """Walks from the first length down while the system is efficient, or up until it is; the length there, in ms."""
    system.gather(system.map(spin, [1] * WARM_UP_TASKS))
    run(FEWEST_TASKS, 1)
    seen: dict[float, float] = {}
    length = first_length_us / 1e6
    with multiprocessing.get_context("spawn").Pool(SLOTS) as bare, Meter(system) as meter:
        passes_per_second(bare)
        while True:
            seen[length] = efficiency_at(length, bare, run)
            if len(seen) > 1 and crossing(seen) is not None:
                break
            length = length / 2 if seen[length] >= EFFICIENT else length * 2
            if length > LONGEST_TASK_SECONDS or length < SHORTEST_TASK_SECONDS:
                break
    shortest = min(seen)
    # Still efficient where the walk ends: the smallest task is not longer than this one.
    found = shortest if seen[shortest] >= EFFICIENT else crossing(seen)
    notes = [f"{at * 1e3:.4g} ms: {efficiency:.0%}" for at, efficiency in sorted(seen.items())]
    # The processor time is of work of many lengths, so that a figure a task would mean nothing.
    figures = {} if found is None else {"METG": found * 1e3}
    return Measurement(first_length_us, len(seen), meter.seconds, figures, {}, tuple(notes))


def efficiency_at(length: float, bare: Pool, run: Callable[[int, int], float]) -> float:
    """What the bare processes reach is measured just before and just after: on a shared machine it changes."""
    before = passes_per_second(bare)
    passes = max(1, round(length * before))
    count = min(MOST_TASKS, max(FEWEST_TASKS, round(IDEAL_SECONDS * SLOTS / length)))
    seconds = run(count, passes)
    possible = (before + passes_per_second(bare)) / 2
    return count * passes / possible / SLOTS / seconds


def crossing(seen: dict[float, float]) -> float | None:
    """The length at which the efficiency passes one half, between the two measured lengths around it."""
    lengths = sorted(seen)
    for short, long in itertools.pairwise(lengths):
        low, high = seen[short], seen[long]
        if low < EFFICIENT <= high:
            share = (EFFICIENT - low) / (high - low)
            return math.exp(math.log(short) + share * math.log(long / short))
    return None


def passes_per_second(bare: Pool) -> float:
    """Of one process, while as many loop as there are slots: the median of three, so that a hiccup does not count."""
    rounds = [bare.map(time_passes, [CALIBRATION_PASSES] * SLOTS, chunksize=1) for _ in range(3)]
    return statistics.median(sum(rates) / SLOTS for rates in rounds)


def time_passes(passes: int) -> float:
    began = time.perf_counter()
    spin(passes)
    return passes / (time.perf_counter() - began)


CASES = (
    Case(
        name="metg-independent",
        title="The smallest task at 50 % efficiency: independent tasks",
        sizes=(1_000,),
        ladder=(1_000,),
        figures=(Figure("METG", "ms", at_least=Goal(0.1), aim=Goal(0.03)),),
        measure=measure_independent,
    ),
    Case(
        name="metg-stencil",
        title="The smallest task at 50 % efficiency: a stencil, 16 wide, 3 inputs each",
        sizes=(1_000,),
        ladder=(1_000,),
        figures=(Figure("METG", "ms", at_least=Goal(0.5), aim=Goal(0.1)),),
        measure=measure_stencil,
    ),
)
