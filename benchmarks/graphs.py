"""Graphs of no-op tasks: a tree of sums by levels, and levels whose every task needs all results of the one before."""

from __future__ import annotations

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.systems import System
from benchmarks.tasks import add, identity

WARM_UP_LEAVES = 64
WIDTH = 128
STEPS = 4


def measure_tree(system: System, leaves: int) -> Measurement:
    """`level = map(add, level[::2], level[1::2])` until one is left; the leaves are a power of 2."""
    reduce_tree(system, WARM_UP_LEAVES)
    with Meter(system) as meter:
        value = reduce_tree(system, leaves)
    check_equal(value, leaves * (leaves - 1) // 2, "the root")
    tasks = 2 * leaves - 1
    return meter.measurement(leaves, tasks, {"time": meter.seconds, "rate": tasks / meter.seconds})


def reduce_tree(system: System, leaves: int) -> int:
    level = system.map(identity, range(leaves))
    while len(level) > 1:
        level = system.map(add, level[::2], level[1::2])
    return int(system.gather(level)[0])


def measure_all_to_all(system: System, width: int) -> Measurement:
    """A level of `width` numbers, then steps whose every task sums the whole level before: `width` squared edges."""
    system.gather(system.all_to_all(system.map(identity, range(8))))
    expected = list(range(width))
    for _ in range(STEPS):
        expected = [sum(expected) + place for place in range(width)]
    with Meter(system) as meter:
        level = system.map(identity, range(width))
        for _ in range(STEPS):
            level = system.all_to_all(level)
        values = system.gather(level)
    check_equal(values, expected, "the last level")
    tasks = (STEPS + 1) * width
    return meter.measurement(width, tasks, {"time": meter.seconds, "rate": tasks / meter.seconds})


CASES = (
    Case(
        name="tree",
        title="A tree of sums by levels",
        sizes=(16_384,),
        ladder=(256, 512, 1_024, 2_048, 4_096, 8_192, 16_384),
        figures=(
            Figure("time", "s"),
            # Judged by the rate, which can be compared where a peer was measured at a smaller size.
            Figure("rate", "tasks a second", True, at_least=Goal(times_dask=50), aim=Goal(times_dask=200)),
        ),
        measure=measure_tree,
    ),
    Case(
        name="all-to-all",
        title="A level of 128 tasks and four more, each task taking all 128 results of the level before",
        sizes=(WIDTH,),
        ladder=(16, 32, 64, WIDTH),
        figures=(
            Figure("time", "s", at_least=Goal(times_dask=50), aim=Goal(times_dask=200)),
            Figure("rate", "tasks a second", True),
        ),
        measure=measure_all_to_all,
        cost=lambda width: float(width * width),
    ),
)
