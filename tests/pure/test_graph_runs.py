"""Whole graphs in virtual time: memory stays bounded, the work ends, neighbours meet, nobody stops anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

import pytest

from benchmarks import workflows
from cluster.graph.batches import by_turns
from cluster.graph.order import depth_first
from cluster.scheduler import admission
from cluster.scheduler.ready import Lane
from cluster.scheduler.worker_memory import BUDGET_SHARE
from cluster.simulation import graph_runs
from cluster.simulation.graph_runs import GraphRun, GraphTask, WorkerModel
from tests.pure.graph_draws import run_drawn

SEEDS = range(15)
MB = 1_000_000
CHUNK = 100 * MB


def tree(leaves: int, nbytes: int = CHUNK, blockwise: int = 0) -> list[GraphTask]:
    """Loads, a few steps on each, and sums of pairs down to one."""
    tasks = [GraphTask((), 0.1, nbytes, "load") for _ in range(leaves)]
    level = list(range(leaves))
    for _ in range(blockwise):
        tasks += [GraphTask((source,), 0.02, nbytes, "step") for source in level]
        level = list(range(len(tasks) - leaves, len(tasks)))
    while len(level) > 1:
        pairs = [tuple(level[place : place + 2]) for place in range(0, len(level), 2)]
        level = []
        for pair in pairs:
            if len(pair) == 1:
                level.append(pair[0])
            else:
                tasks.append(GraphTask(pair, 0.02, nbytes, "add"))
                level.append(len(tasks) - 1)
    return tasks


def all_to_all(width: int, nbytes: int) -> list[GraphTask]:
    tasks = [GraphTask((), 0.1, nbytes, "make") for _ in range(width)]
    tasks += [GraphTask(tuple(range(width)), 0.1, nbytes, "exchange") for _ in range(width)]
    return [*tasks, GraphTask(tuple(range(width, 2 * width)), 0.1, 8, "end")]


def waiting_for_a_model(loads: int, seconds: float) -> list[GraphTask]:
    """Quick loads, each of which is used with one value that takes long to make."""
    tasks = [GraphTask((), seconds, MB, "model")]
    tasks += [GraphTask((), 0.05, CHUNK, "load") for _ in range(loads)]
    return tasks + [GraphTask((0, 1 + place), 0.05, 8, "use") for place in range(loads)]


def sums_of_two_loads(count: int) -> list[GraphTask]:
    """A sum of two loads each time, and of these what `tree` makes of its loads."""
    left = [GraphTask((), 0.02, CHUNK, "left") for _ in range(count)]
    right = [GraphTask((), 0.02, CHUNK, "right") for _ in range(count)]
    sums = [
        GraphTask(tuple(source + 2 * count for source in task.inputs), 0.02, CHUNK, "add")
        for task in tree(count)[count:]
    ]
    return [*left, *right, *(GraphTask((n, count + n), 0.02, CHUNK, "add") for n in range(count)), *sums]


def peaks(run: GraphRun) -> list[int]:
    return [worker.peak_bytes for worker in run.workers]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("blockwise", [0, 2])
def test_a_reduction_of_ten_times_the_memory_stays_within_the_limit(workers: int, blockwise: int) -> None:
    limit = 10 * CHUNK
    run = GraphRun([tree(100 * workers, blockwise=blockwise)], [(2, limit)] * workers)
    run.run()
    assert max(peaks(run)) <= limit + CHUNK


def test_loads_that_nobody_can_use_yet_stop_where_the_budget_ends() -> None:
    limit = 10 * CHUNK
    run = GraphRun([waiting_for_a_model(200, 60.0)], [(2, limit)] * 2)
    run.run()
    assert max(peaks(run)) <= BUDGET_SHARE * limit + 2 * CHUNK


@pytest.mark.parametrize("workers", [1, 3])
def test_what_needs_ten_times_the_memory_at_once_ends_all_the_same(workers: int) -> None:
    limit = 4 * CHUNK
    GraphRun([all_to_all(40 * workers, CHUNK)], [(2, limit)] * workers).run()
    GraphRun([[GraphTask((), 0.1, CHUNK, "make") for _ in range(40 * workers)]], [(2, limit)] * workers).run()


def test_a_single_value_larger_than_any_worker_is_made() -> None:
    GraphRun([tree(8, nbytes=5 * CHUNK)], [(2, CHUNK)] * 2).run()


def test_what_one_client_cannot_use_does_not_stop_another() -> None:
    def modest() -> list[GraphTask]:
        return tree(64, nbytes=20 * MB)

    limit = 10 * CHUNK
    alone = GraphRun([modest()], [(2, limit)] * 2).run()
    together = GraphRun([waiting_for_a_model(200, 60.0), modest()], [(2, limit)] * 2)
    together.run()
    assert together.clients[1].ended_at < 3 * alone < together.clients[0].ended_at


def test_neighbours_meet_on_one_worker() -> None:
    run = GraphRun([tree(256)], [(2, 20 * CHUNK)] * 4)
    run.run()
    assert run.moved_bytes < 0.1 * 256 * CHUNK


def test_of_two_workers_none_holds_more_of_a_tree_than_one_alone() -> None:
    alone, together = (GraphRun([tree(512)], [(1, 100 * CHUNK)] * workers) for workers in (1, 2))
    alone.run()
    together.run()
    assert max(peaks(alone)) <= 11 * CHUNK, "a value of each level, and what is made and taken"
    assert max(peaks(together)) <= max(peaks(alone))


def test_workers_of_one_host_hold_hardly_more_of_a_tree_than_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    keep = WorkerModel.keep

    def counting(worker: WorkerModel, name: tuple[int, int], nbytes: int) -> None:
        nonlocal most
        keep(worker, name, nbytes)
        most = max(most, len({one for other in run.workers for one in other.values}))

    monkeypatch.setattr(WorkerModel, "keep", counting)

    def held_at_once(hosts: list[int]) -> int:
        nonlocal most, run
        most, run = 0, GraphRun([tree(512)], [(1, 100 * CHUNK)] * len(hosts), hosts=hosts)
        run.run()
        return most

    run = GraphRun([], [])
    alone, together = held_at_once([0]), held_at_once([0, 0])
    assert together <= alone + 4, "what the other one makes and takes, and a piece of its own"
    assert held_at_once([0, 1]) > together + 2


def test_two_kinds_of_loads_are_made_by_turns() -> None:
    tasks = sums_of_two_loads(128)

    def peak(turns: Callable[[list[int]], Iterable[list[int]]]) -> int:
        def by_depth(roots: list[int], inputs_of: Callable[[int], Sequence[int]]) -> list[int]:
            levels: dict[int, list[int]] = {}
            depths: dict[int, int] = {}
            for task in depth_first(roots, inputs_of):
                depths[task] = max((1 + depths[source] for source in inputs_of(task)), default=0)
                levels.setdefault(depths[task], []).append(task)
            return [task for level in levels.values() for batch in turns(level) for task in batch]

        run = GraphRun([tasks], [(1, 1 << 40)], order=by_depth)
        run.run()
        return max(peaks(run))

    def kind(index: int) -> str:
        return tasks[index].function

    assert peak(lambda level: by_turns(level, kind)) <= 12 * CHUNK
    assert peak(lambda level: [sorted(level, key=kind)]) > 128 * CHUNK  # all of the first kind before the second


def test_a_worker_that_joins_late_gets_its_share() -> None:
    def busy(late: dict[int, float]) -> GraphRun:
        run = GraphRun([tree(400)], [(2, 20 * CHUNK)] * 4, late=late)
        run.run()
        return run

    run = busy({3: 2.0})
    assert run.workers[3].busy_seconds > 0.5 * run.workers[0].busy_seconds


def test_families_of_workflows_end_within_a_small_multiple_of_their_bound() -> None:
    for family, build in workflows.FAMILIES.items():
        make = workflows.Builder(Random(family))
        build(make, 60)
        seconds = GraphRun([make.tasks], [(2, 1 << 34)] * 3).run()
        work = sum(task.seconds for task in make.tasks)
        ends: list[float] = []
        for task in make.tasks:
            ends.append(task.seconds + max((ends[source] for source in task.inputs), default=0.0))
        assert max(max(ends), work / 6) <= seconds <= 2.5 * max(max(ends), work / 6), family


@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_graphs_show_no_fault(seed: int) -> None:
    run_drawn(seed)


# ------------------------------------------------------------------ planted faults


def test_it_shows_when_nothing_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "room_bytes", lambda worker, client: 1e18)
    run = GraphRun([waiting_for_a_model(200, 60.0)], [(2, 10 * CHUNK)] * 2)
    run.run()
    assert max(peaks(run)) > 5 * 10 * CHUNK


def test_it_shows_when_the_world_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_runs, "EVENTS_LIMIT", 20_000)
    run_drawn(3)
    monkeypatch.setattr(admission, "stands_still", lambda worker, client, now: False)
    with pytest.raises(AssertionError, match="does not end"):
        run_drawn(3)


def test_it_shows_when_consumers_do_not_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Lane.add

    def add(self: Lane, run: object, owner: int, start: int, stop: int) -> None:
        run.depth = -run.depth  # type: ignore[attr-defined]
        original(self, run, owner, start, stop)  # type: ignore[arg-type]
        run.depth = -run.depth  # type: ignore[attr-defined]

    healthy = GraphRun([tree(100)], [(2, 30 * CHUNK)])
    healthy.run()
    monkeypatch.setattr(Lane, "add", add)
    faulty = GraphRun([tree(100)], [(2, 30 * CHUNK)])
    faulty.run()
    assert max(peaks(healthy)) < 11 * CHUNK < max(peaks(faulty))
