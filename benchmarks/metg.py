"""The smallest task at 50 % efficiency (METG), as Task Bench defines it: Slaughter et al., "Task Bench", SC 2020.

A task is a loop of a given number of passes. What the machine can do at most is measured by as many bare processes as
there are slots, looping at the same time, beside every point measured. Efficiency is the passes a second through the
system over that. The length of a task is halved from where the system is efficient until it is not, and the crossing
is interpolated on a logarithmic scale. Passes, and not seconds, make the work: on a busy machine a wait by the clock
would count stolen time as work. Each point is the median of three, and the walk down ends at the second length in a
row that is inefficient: ended by one disturbed point, the same system gave 0.013 and 0.53 ms.

The figure needs a machine of one's own: beside other people's work one core is easier to get than two. How much of
their cores the bare processes had is noted with every figure; below 95 % do not trust it. Systems of threads in one
interpreter are left out: its lock holds them to one core of two, so that half is their ceiling.
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
IDEAL_SECONDS = 0.25
REPETITIONS = 3
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
    shares: list[float] = []
    with multiprocessing.get_context("spawn").Pool(SLOTS) as bare, Meter(system) as meter:
        passes_per_second(bare, [])

        def efficiency(length: float) -> float:
            return statistics.median(efficiency_at(length, bare, shares, run) for _ in range(REPETITIONS))

        seen = walk(first_length_us / 1e6, efficiency)
    shortest = min(seen)
    # Still efficient where the walk ends: the smallest task is not longer than this one.
    found = shortest if seen[shortest] >= EFFICIENT else crossing(seen)
    notes = [f"{at * 1e3:.4g} ms: {efficiency:.0%}" for at, efficiency in sorted(seen.items())]
    notes.append(f"the bare processes had {statistics.fmean(shares):.0%} of their cores")
    # The processor time is of work of many lengths, so that a figure a task would mean nothing.
    figures = {} if found is None else {"METG": found * 1e3}
    return Measurement(first_length_us, len(seen), meter.seconds, figures, {}, tuple(notes))


def walk(first: float, efficiency: Callable[[float], float]) -> dict[float, float]:
    """The efficiencies of the lengths tried: up by doubling until one is efficient, then down until two are not."""
    seen = {first: efficiency(first)}
    while seen[max(seen)] < EFFICIENT:
        longer = max(seen) * 2
        if longer > LONGEST_TASK_SECONDS:
            return seen
        seen[longer] = efficiency(longer)
    while min(seen) / 2 >= SHORTEST_TASK_SECONDS:
        shorter = min(seen) / 2
        seen[shorter] = efficiency(shorter)
        if seen[shorter] < EFFICIENT and seen[shorter * 2] < EFFICIENT:
            break
    return seen


def efficiency_at(length: float, bare: Pool, shares: list[float], run: Callable[[int, int], float]) -> float:
    """What the bare processes reach is measured just before and just after: on a shared machine it changes."""
    before = passes_per_second(bare, shares)
    passes = max(1, round(length * before))
    count = min(MOST_TASKS, max(FEWEST_TASKS, round(IDEAL_SECONDS * SLOTS / length)))
    seconds = run(count, passes)
    possible = (before + passes_per_second(bare, shares)) / 2
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


def passes_per_second(bare: Pool, shares: list[float]) -> float:
    """Of one process, while as many loop as there are slots: the median of three, so that a hiccup does not count."""
    rounds = [bare.map(time_passes, [CALIBRATION_PASSES] * SLOTS, chunksize=1) for _ in range(3)]
    shares += [share for timed in rounds for _, share in timed]
    return statistics.median(sum(rate for rate, _ in timed) / SLOTS for timed in rounds)


def time_passes(passes: int) -> tuple[float, float]:
    """Passes a second, and how much of its core this process had meanwhile."""
    began, worked = time.perf_counter(), time.process_time()
    spin(passes)
    seconds = time.perf_counter() - began
    return passes / seconds, (time.process_time() - worked) / seconds


SYSTEMS_OF_PROCESSES = frozenset({"cluster", "processes", "processes-64", "pool", "joblib", "dask", "ray"})

CASES = (
    Case(
        name="metg-independent",
        title="The smallest task at 50 % efficiency: independent tasks",
        sizes=(1_000,),
        ladder=(1_000,),
        figures=(Figure("METG", "ms", at_least=Goal(0.1), aim=Goal(0.03)),),
        measure=measure_independent,
        only=SYSTEMS_OF_PROCESSES,
    ),
    Case(
        name="metg-stencil",
        title="The smallest task at 50 % efficiency: a stencil, 16 wide, 3 inputs each",
        sizes=(1_000,),
        ladder=(1_000,),
        figures=(Figure("METG", "ms", at_least=Goal(0.5), aim=Goal(0.1)),),
        measure=measure_stencil,
        only=SYSTEMS_OF_PROCESSES,
    ),
)
