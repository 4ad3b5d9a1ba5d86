"""Graphs on models of workers as a seed draws them, and what must hold whatever it draws.

`python -m tests.pure.graph_draws 17` replays a seed.
"""

from __future__ import annotations

import sys
from random import Random

from benchmarks import workflows
from cluster.scheduler import invariants
from cluster.simulation.graph_runs import GraphRun, GraphTask, Links

__all__ = ["run_drawn"]

AMPLE_BYTES = 1 << 40
LONGEST_TIMES_BOUND = 4.0  # with ample memory, one client and a usual network; broadcasts to 256 workers take 2.5


def run_drawn(seed: int) -> str:
    """Run what a seed draws to its end, and say what it was; raises AssertionError when something is wrong."""
    random = Random(f"graphs {seed}")
    graphs, families = [], []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        family = random.choice(sorted(workflows.FAMILIES))
        make = workflows.Builder(random)
        workflows.FAMILIES[family](make, random.choice((12, 20, 60, 150)))
        graphs.append(make.tasks)
        families.append(family)
    largest = max(task.nbytes for graph in graphs for task in graph)
    scarce = random.random() < 0.7
    limits = (0.5, 2.0, 5.0, 20.0) if scarce else ()
    workers = [
        (random.choice((1, 2, 4)), int(random.choice(limits) * largest) if limits else AMPLE_BYTES)
        for _ in range(random.choice((1, 2, 3, 8, 20)))
    ]
    late = {index: random.uniform(0.0, 5.0) for index in range(1, len(workers)) if random.random() < 0.2}
    usual = random.random() < 0.7
    links = Links() if usual else Links(random.choice((1e-5, 1e-2)), random.choice((1e7, 1e10)))
    drawn = f"seed {seed}: {families} on {workers}, late {late}, {links}"
    try:
        run = GraphRun(graphs, workers, links, late)
        seconds = run.run()
        invariants.check(run.scheduler.ledger)
        if usual and not scarce and not late and len(graphs) == 1:
            bound = _lower_bound_seconds(graphs[0], workers)
            assert seconds <= LONGEST_TIMES_BOUND * bound, f"it took {seconds:.1f} s, at least {bound:.1f} s are needed"
    except AssertionError as error:
        raise AssertionError(f"{error}\n{drawn}\n  again: python -m tests.pure.graph_draws {seed}") from error
    return drawn


def _lower_bound_seconds(tasks: list[GraphTask], workers: list[tuple[int, int]]) -> float:
    ends: list[float] = []
    for task in tasks:
        ends.append(task.seconds + max((ends[source] for source in task.inputs), default=0.0))
    return max(max(ends), sum(task.seconds for task in tasks) / sum(slots for slots, _ in workers))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(run_drawn(int(argument)))
