"""Makespan on the simulator beside its lower bound. `python -m benchmarks.makespan --help`.

The scheduler is the real one; workers and links are models in virtual time (`cluster.simulation.graph_runs`): two slots
a worker, 10 Gbit/s and 100 µs a link, so that a value of 10 MB takes 8 ms of the sender's and of the receiver's. Times
and sizes are lognormal around medians of 0.3 s and 10 MB (`workflows.py`), and nothing is known of them beforehand. The
lower bound is the larger of the critical path, without any transfer, and the work divided by the slots. No schedule
needs less; most need more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from random import Random

from benchmarks.workflows import FAMILIES, Builder
from cluster.simulation.graph_runs import GraphRun, GraphTask

WORKERS = (2, 16, 64, 256)
SLOTS = 2
TASKS_A_SLOT = 8
FEWEST_TASKS = 100
MOST_TASKS = 2000
MEMORY_LIMIT_BYTES = 16 << 30
AT_LEAST = 1.3
AIM = 1.1


def lower_bound_seconds(tasks: Sequence[GraphTask], slots: int) -> float:
    """The larger of the critical path and the work divided by the slots."""
    ends: list[float] = []
    for task in tasks:
        ends.append(task.seconds + max((ends[source] for source in task.inputs), default=0.0))
    return max(max(ends), sum(task.seconds for task in tasks) / slots)


def ratio(family: str, workers: int, seed: int) -> float:
    """How many times its lower bound a graph of that family takes."""
    make = Builder(Random(f"{family} {workers} {seed}"))
    FAMILIES[family](make, min(MOST_TASKS, max(FEWEST_TASKS, TASKS_A_SLOT * SLOTS * workers)))
    run = GraphRun([make.tasks], [(SLOTS, MEMORY_LIMIT_BYTES)] * workers)
    return run.run() / lower_bound_seconds(make.tasks, SLOTS * workers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.makespan", description="Makespan on the simulator.")
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)))
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.workers.split(",")]
    print(f"| family | median | worst | {' | '.join(f'{count} workers' for count in counts)} |")
    print(f"|---|---:|---:|{'---:|' * len(counts)}")
    began = time.monotonic()
    everything = []
    for family in arguments.families.split(","):
        by_count = [[ratio(family, count, seed) for seed in range(arguments.seeds)] for count in counts]
        found = [each for ratios in by_count for each in ratios]
        everything += found
        cells = [f"{statistics.median(ratios):.2f}" for ratios in by_count]
        print(f"| {family} | {statistics.median(found):.2f} | {max(found):.2f} | {' | '.join(cells)} |", flush=True)
    median = statistics.median(everything)
    verdict = "aim met" if median <= AIM else "at least met" if median <= AT_LEAST else "missed"
    print(
        f"\nTimes the lower bound, {len(everything)} graphs: median {median:.2f}, worst {max(everything):.2f}; "
        f"at least {AT_LEAST} in the median, aim {AIM}: {verdict}. Took {time.monotonic() - began:.0f} s."
    )


if __name__ == "__main__":
    main()
