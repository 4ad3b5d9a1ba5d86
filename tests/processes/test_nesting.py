"""Tasks that submit tasks and wait for them, on real clusters."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import (
    CancelledError,
    Client,
    ClusterError,
    Future,
    LocalCluster,
    TaskDied,
    TaskTimeout,
    as_completed,
    fire_and_forget,
    get_client,
    wait,
)
from tests.processes.whole_cluster import Gate, until, wait_at, whole_cluster

PATIENCE_SECONDS = 60.0


def slots_of(client: Client) -> list[psutil.Process]:
    """The processes of all slots: the children of the agents' starters."""
    found = []
    for worker in client.scheduler_info()["workers"].values():
        for starter in psutil.Process(worker["process_id"]).children():
            found += starter.children()
    return found


# ------------------------------------------------------------------ tasks


def dive(depth: int) -> int:
    if depth == 0:
        return 0
    return int(get_client().submit(dive, depth - 1).result()) + 1


def wait_for(box: Any) -> Any:
    return box[0].inside[0].result()


class Box:
    """Something that holds futures where no argument's own pickling looks."""

    def __init__(self, inside: list[Any]) -> None:
        self.inside = inside


def pyramid(levels: int, width: int) -> int:
    if levels == 0:
        return 1
    client = get_client()
    return sum(client.gather(client.map(pyramid, [levels - 1] * width, [width] * width)))


def sum_of_map(count: int) -> int:
    client = get_client()
    return sum(client.gather(client.map(abs, range(count))))


def halve_as_they_complete(numbers: list[int]) -> int:
    client = get_client()
    halving = as_completed(client.map(half, numbers))
    steps = 0
    for future in halving:
        steps += 1
        if future.result() > 0:
            halving.add(client.submit(half, future.result()))
    return steps


def half(number: int) -> int:
    return number // 2


def children_unwaited(gate: str, count: int) -> list[Future]:
    return list(get_client().map(wait_at, [gate] * count, range(count)))


def raise_with_child(gate: str) -> None:
    future = get_client().submit(wait_at, gate)
    wait_at(gate + ".parent")
    raise ValueError(str(future.number))


def make_a_client() -> None:
    get_client()


def wait_for_child_at(gate: str) -> Any:
    return get_client().submit(wait_at, gate, "child").result()


_on_top, _submitted = threading.Event(), threading.Event()


def submit_below_a_child() -> int:
    """A thread of the task submits while a child runs on top of it."""
    client = get_client()
    found: list[Future] = []

    def submit_when_a_child_runs() -> None:
        _on_top.wait(PATIENCE_SECONDS)
        found.append(client.submit(pow, 2, 5))
        _submitted.set()

    thread = threading.Thread(target=submit_when_a_child_runs)
    thread.start()
    client.submit(be_on_top).result()
    thread.join()
    return int(found[0].result())


def be_on_top() -> None:
    _on_top.set()
    _submitted.wait(PATIENCE_SECONDS)


_outlives = threading.Event()
_late_results: list[int] = []


def start_a_thread_that_outlives() -> None:
    client = get_client()

    def submit_late() -> None:
        _outlives.wait(PATIENCE_SECONDS)
        _late_results.append(client.submit(pow, 2, 6).result(PATIENCE_SECONDS))

    threading.Thread(target=submit_late, daemon=True).start()


def let_it_submit() -> None:
    _outlives.set()


def late_results() -> list[int]:
    return _late_results


def kill_own_slot_once(mark: str) -> str:
    if not os.path.exists(mark):
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def survive_a_child(mark: str) -> str:
    return str(get_client().submit(kill_own_slot_once, mark).result()) + " below"


def kill_own_slot() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def suffer_a_child() -> Any:
    return get_client().submit(kill_own_slot).result()


def leave_behind(path: str) -> None:
    fire_and_forget(get_client().submit(Path.touch, Path(path)))


def process_of(depth: int) -> list[int]:
    own = [os.getpid()]
    return own if depth == 0 else own + get_client().submit(process_of, depth - 1).result()


def recursion_budget(depth: int) -> tuple[int, int]:
    """How deep plain Python goes here, and at the limit's own telling."""
    if depth == 0:
        return plain_depth(), sys.getrecursionlimit()
    budget: tuple[int, int] = get_client().submit(recursion_budget, depth - 1).result()
    return budget


def plain_depth() -> int:
    try:
        return plain_depth() + 1
    except RecursionError:
        return 1


def wait_in_a_thread() -> list[int]:
    client = get_client()
    found: list[int] = []
    future = client.submit(pow, 2, 5)
    thread = threading.Thread(target=lambda: found.append(future.result()))
    thread.start()
    found.append(future.result())
    thread.join()
    return found


def catch_a_failing_child() -> str:
    try:
        get_client().submit(int, "x").result()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


# ------------------------------------------------------------------ tests


def test_outside_tasks_there_is_no_client_of_a_task() -> None:
    with pytest.raises(ClusterError, match="make one"):
        get_client()


def test_a_recursion_a_thousand_deep_takes_one_slot_and_few_processes() -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        assert client.submit(dive, 1000).result(PATIENCE_SECONDS) == 1000
        assert len(slots_of(client)) < 1 + 8
        assert client.submit(process_of, 5).result(PATIENCE_SECONDS) == [slots_of(client)[0].pid] * 6


@pytest.mark.both_shapes
def test_nested_parallelism_three_levels_deep(client: Client) -> None:
    assert client.gather(client.map(pyramid, [3] * 5, [4] * 5), timeout=PATIENCE_SECONDS) == [64] * 5


def test_a_task_that_maps_ten_thousand_children_on_one_slot() -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        assert client.submit(sum_of_map, 10_000).result(PATIENCE_SECONDS) == sum(range(10_000))
        assert len(slots_of(client)) == 1


def test_a_wait_for_a_task_of_somebody_else(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, slots=1) as cluster,
        Client(cluster) as client,
        Gate(tmp_path / "first") as first,
        Gate(tmp_path / "gate") as gate,
    ):
        blocker = client.submit(wait_at, first.path)  # so that the value which contains the future is made last
        first.wait_until_reached()
        awaited = client.submit(wait_at, gate.path, "there")
        box = client.scatter(Box([awaited]))
        waiting = client.submit(wait_for, [box])
        first.open()
        # The one slot runs what is waited for, whichever of the two it began with.
        gate.wait_until_reached()
        gate.open()
        assert waiting.result(PATIENCE_SECONDS) == "there"
        assert blocker.done()


def test_many_that_wait_for_one_use_few_processes(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client, Gate(tmp_path / "gate") as gate:
        awaited = client.submit(wait_at, gate.path, 7)
        gate.wait_until_reached()
        box = client.scatter(Box([awaited]))
        waiting = client.map(wait_for, [[box]] * 30)
        gate.open()
        assert client.gather(waiting, timeout=PATIENCE_SECONDS) == [7] * 30
        assert len(slots_of(client)) <= 9


def test_futures_in_a_result_outlive_the_task(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        children = client.submit(children_unwaited, gate.path, 3).result(PATIENCE_SECONDS)
        gate.wait_until_reached()
        gate.open()
        assert client.gather(children, timeout=PATIENCE_SECONDS) == [0, 1, 2]


def pass_on(box: Any) -> Any:
    client = get_client()
    return Box([client.submit(identity, client.scatter(box)).result().inside[0]])


def identity(value: Any) -> Any:
    return value


def test_a_future_of_somebody_else_that_a_task_passes_on(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        future = client.submit(wait_at, gate.path, "passed")
        gate.wait_until_reached()
        box = client.submit(pass_on, client.scatter(Box([future]))).result(PATIENCE_SECONDS)
        assert box.inside == [future]  # in the client that submitted it, it is the same one again
        gate.open()
        assert box.inside[0].result(PATIENCE_SECONDS) == "passed"


@pytest.mark.both_shapes
def test_as_completed_and_wait_in_a_task(client: Client) -> None:
    steps = sum(number.bit_length() for number in range(1, 40))
    assert client.submit(halve_as_they_complete, list(range(1, 40))).result(PATIENCE_SECONDS) == steps
    assert client.submit(lambda: len(wait(get_client().map(abs, range(5))).done)).result(PATIENCE_SECONDS) == 5


def test_a_childs_exception_is_raised_in_its_parent(client: Client) -> None:
    assert "invalid literal" in client.submit(catch_a_failing_child).result(PATIENCE_SECONDS)


def test_what_a_thread_submits_is_of_the_task_that_started_it() -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        assert client.submit(submit_below_a_child).result(PATIENCE_SECONDS) == 32


def test_what_a_thread_submits_after_its_task_is_nobodys() -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        client.submit(start_a_thread_that_outlives).result(PATIENCE_SECONDS)
        client.submit(let_it_submit).result(PATIENCE_SECONDS)
        until(lambda: client.submit(late_results, pure=False).result() == [64], "what it submitted has run")


def test_children_of_a_failed_parent_are_stopped(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, Gate(tmp_path / "gate.parent") as parent:
        future = client.submit(raise_with_child, gate.path)
        gate.wait_until_reached()
        parent.wait_until_reached()
        parent.open()
        with pytest.raises(ValueError):
            future.result(PATIENCE_SECONDS)
        # The gate stays shut: the child ends because it is stopped.
        until(lambda: _running(client) == 0, "the child is stopped")


def test_children_of_a_cancelled_parent_are_stopped(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client, Gate(tmp_path / "gate") as gate:
        future = client.submit(wait_for_child_at, gate.path)
        gate.wait_until_reached()
        slot = slots_of(client)[0].pid
        future.cancel()
        with pytest.raises(CancelledError):
            future.result(PATIENCE_SECONDS)
        until(lambda: _running(client) == 0, "both are stopped")
        assert client.submit(os.getpid).result(PATIENCE_SECONDS) == slot  # each was interrupted, and none was killed


def test_a_parent_that_takes_too_long_is_stopped_with_its_child(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client, Gate(tmp_path / "gate") as gate:
        client.submit(make_a_client).result(PATIENCE_SECONDS)  # so that the child runs well before the time is up
        future = client.options(timeout_seconds=2.0).submit(wait_for_child_at, gate.path)
        gate.wait_until_reached()
        with pytest.raises(TaskTimeout):
            future.result(PATIENCE_SECONDS)
        until(lambda: _running(client) == 0, "both are stopped")


def test_a_slot_that_dies_while_a_child_runs_in_it(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        assert client.submit(survive_a_child, str(tmp_path / "mark")).result(PATIENCE_SECONDS) == "survived below"
        with pytest.raises(TaskDied, match="while a child of it ran"):
            client.submit(suffer_a_child).result(PATIENCE_SECONDS)
        assert client.submit(pow, 2, 3).result(PATIENCE_SECONDS) == 8


def test_a_child_that_is_kept_runs_though_its_parent_has_ended(client: Client, tmp_path: Path) -> None:
    client.submit(leave_behind, str(tmp_path / "mark")).result(PATIENCE_SECONDS)
    until((tmp_path / "mark").exists, "the child has run")


def test_what_runs_inside_a_task_may_recurse_as_deep_as_alone(client: Client) -> None:
    alone, limit = client.submit(recursion_budget, 0).result(PATIENCE_SECONDS)
    inside, higher = client.submit(recursion_budget, 30).result(PATIENCE_SECONDS)
    assert alone <= inside + 5
    assert higher >= limit
    assert client.submit(recursion_budget, 0).result(PATIENCE_SECONDS) == (alone, limit)


def test_a_thread_of_a_task_may_wait_too(client: Client) -> None:
    assert client.submit(wait_in_a_thread).result(PATIENCE_SECONDS) == [32, 32]


def test_a_slots_client_is_one_for_all_tasks_and_leaves_nothing(tmp_path: Path) -> None:
    with whole_cluster(workers=1, slots=1) as cluster:
        client = cluster.client()
        clients = client.gather([client.submit(lambda: get_client().id) for _ in range(5)])
        assert len(set(clients)) == 1
        assert client.scheduler_info()["clients"] == 1  # a slot's is nobody's
        assert client.submit(sum_of_map, 100).result(PATIENCE_SECONDS) == sum(range(100))
        until(lambda: client.scheduler_info()["tasks"] == 0, "nothing is kept for tasks that have ended")


def _running(client: Client) -> int:
    return int(sum(worker["granted"] for worker in client.scheduler_info()["workers"].values()))
