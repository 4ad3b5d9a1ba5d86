"""The promise, poison tasks, several clients, restrictions: the real client on real daemons."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import Client, LocalCluster, wait
from cluster.errors import CancelledError, ClusterError, TaskDied, TaskTimeout, Unrunnable
from tests.processes.whole_cluster import Gate, WholeCluster, hold_the_lock_at, until, wait_at, whole_cluster
from tests.surroundings import Surroundings

pytestmark = pytest.mark.timeout(60)


def inc(x: int) -> int:
    return x + 1


def hold(value: Any) -> Any:
    return value


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


# --------------------------------------------------------------------------- the promise


@pytest.mark.both_shapes
@pytest.mark.parametrize("long_task", [wait_at, hold_the_lock_at])
def test_every_short_task_ends_while_a_long_one_still_runs(client: Client, gate: Gate, long_task: Any) -> None:
    long = client.submit(long_task, gate.path)
    gate.wait_until_reached()
    assert client.gather(client.map(inc, range(500)), timeout=30) == list(range(1, 501))
    singles = [client.submit(inc, x) for x in range(50)]
    assert client.gather(singles, timeout=30) == list(range(1, 51))
    assert long.status == "pending"
    gate.open()
    assert long.result(20) in (None, "held", "")


def sometimes_long(path: str) -> Any:
    return hold_the_lock_at(path) if path else 1


@pytest.mark.both_shapes
@pytest.mark.parametrize("position", [0, 250, 499])
def test_a_long_task_in_a_batch_of_short_ones_holds_none_of_them_up(client: Client, gate: Gate, position: int) -> None:
    assert client.gather(client.map(sometimes_long, [""] * 200), timeout=20) == [1] * 200  # known as short by now
    futures = client.map(sometimes_long, [gate.path if at == position else "" for at in range(500)])
    gate.wait_until_reached()
    short = [future for at, future in enumerate(futures) if at != position]
    assert client.gather(short, timeout=30) == [1] * 499
    assert futures[position].status == "pending"
    gate.open()
    assert futures[position].result(20) == "held"


# --------------------------------------------------------------------------- poison


def poison(x: int) -> int:
    if x == 700:
        print("about to crash")
        ctypes.string_at(0)
    return x + 1


@pytest.mark.both_shapes
def test_only_the_task_that_kills_its_slot_fails_after_three_attempts(client: Client) -> None:
    futures = client.map(poison, range(1000))
    error = futures[700].exception(40)
    assert isinstance(error, TaskDied)
    assert (error.signal, error.exit_code, error.attempts) == (signal.SIGSEGV, None, 3)
    assert "about to crash" in error.last_lines
    text = str(error)
    assert "SIGSEGV" in text and "3 attempts" in text and "about to crash" in text
    assert f"task {futures[700].key} on worker" in "\n".join(error.__notes__)
    assert client.gather(futures, errors="skip", timeout=30) == [x + 1 for x in range(1000) if x != 700]
    assert client.submit(inc, futures[699]).result(10) == 701


def test_leaving_the_process_without_an_error_is_no_success(client: Client) -> None:
    error = client.submit(os._exit, 0).exception(30)
    assert isinstance(error, TaskDied)
    assert (error.signal, error.exit_code, error.attempts) == (None, 0, 3)
    assert "exit status 0" in str(error)


def interrupt() -> None:
    raise KeyboardInterrupt("mine")


@pytest.mark.parametrize("leave", [sys.exit, interrupt])
def test_leaving_a_task_by_force_is_a_failure_of_the_task_alone(client: Client, leave: Any) -> None:
    before = client.submit(os.getpid).result(10)
    error = client.submit(leave).exception(20)
    assert isinstance(error, ClusterError), "nothing that would end the program that looks at the result"
    assert ("SystemExit" if leave is sys.exit else "KeyboardInterrupt") in str(error)
    assert before in client.gather([client.submit(os.getpid) for _ in range(20)])


# --------------------------------------------------------------------------- two clients


def spend(x: int) -> int:
    import time

    deadline = time.perf_counter() + 0.003
    while time.perf_counter() < deadline:
        pass
    return x


@pytest.mark.both_shapes
def test_ten_tasks_of_one_client_do_not_wait_for_two_thousand_of_another(
    client: Client, local_cluster: LocalCluster
) -> None:
    with Client(local_cluster) as other:
        assert client.submit(spend, 1).result(10) == other.submit(spend, 1).result(10)
        many = client.map(spend, range(2000))
        wait(many[:20])
        assert other.gather(other.map(spend, range(10)), timeout=20) == list(range(10))
        assert sum(future.done() for future in many) < 1000
        client.cancel(many)


def test_a_cancel_does_not_end_what_another_client_still_wants(
    client: Client, local_cluster: LocalCluster, gate: Gate
) -> None:
    inner = client.submit(wait_at, gate.path, "value")
    outer = client.submit(hold, client.scatter([inner]))
    gate.wait_until_reached()
    with Client(local_cluster) as other:
        [theirs] = other.submit(hold, outer).result(10)
        assert other.who_has(theirs)[theirs.key] == []  # answered, so the scheduler knows of it: clients have no order
        inner.cancel()
        with pytest.raises(CancelledError):
            inner.result(10)
        assert theirs.status == "pending"
        gate.open()
        assert theirs.result(10) == "value"


# --------------------------------------------------------------------------- who runs what


@pytest.fixture(scope="module")
def restricted() -> Iterator[WholeCluster]:
    surroundings = Surroundings()
    with pytest.MonkeyPatch.context() as environment:
        surroundings.enter(environment)
        with whole_cluster(workers=0) as cluster:
            cluster.add_workers(("--resources", "GPU=1"), ())
            environment.undo()
            yield cluster
    left = surroundings.leave()
    assert not left, f"left behind: {left}"


def worker_pid() -> int:
    import psutil

    return psutil.Process(os.getppid()).ppid()


def test_tasks_run_only_where_they_may(restricted: WholeCluster) -> None:
    with restricted.new_client() as client:
        with_gpu, without = (worker.process.pid for worker in restricted.workers)
        address = {worker["process_id"]: at for at, worker in client.scheduler_info()["workers"].items()}[without]

        def where(**options: Any) -> set[int]:
            return set(client.gather([client.submit(worker_pid, **options) for _ in range(20)], timeout=20))

        assert where() == {with_gpu, without}
        assert where(resources={"GPU": 1}) == {with_gpu}
        assert where(workers="worker-1") == where(workers=[address]) == {without}
        assert where(workers=["worker-0", "worker-1"]) == {with_gpu, without}
        assert where(workers="worker-7", allow_other_workers=True) == {with_gpu, without}


def test_a_resource_bounds_how_many_run_at_once(tmp_path: Path) -> None:
    with whole_cluster(workers=0) as cluster, Gate(tmp_path / "a") as first, Gate(tmp_path / "b") as second:
        cluster.add_workers(("--resources", "GPU=1"), slots=2)
        client = cluster.client()
        running = client.submit(wait_at, first.path, resources={"GPU": 1})
        first.wait_until_reached()
        waiting = client.submit(wait_at, second.path, resources={"GPU": 1})
        assert client.gather(client.map(inc, range(100)), timeout=10) == list(range(1, 101))
        [worker] = client.scheduler_info()["workers"].values()
        assert worker["granted"] == 1
        first.open()
        second.wait_until_reached()
        running.result(10)
        second.open()
        waiting.result(10)


def test_a_task_that_no_worker_may_run_waits_for_one(restricted: WholeCluster) -> None:
    with restricted.new_client() as client:
        nobody = client.submit(inc, 1, resources={"GPU": 2})
        elsewhere = client.submit(inc, 1, workers="worker-2")
        assert client.submit(inc, 1).result(10) == 2
        assert {nobody.status, elsewhere.status} == {"pending"}
        restricted.add_workers(("--resources", "GPU=2"))
        assert client.gather([nobody, elsewhere], timeout=10) == [2, 2]


def note(path: str, name: str) -> None:
    with open(path, "a") as file:
        file.write(name)


def test_a_higher_priority_goes_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    with whole_cluster() as cluster, Gate(tmp_path / "gate") as gate:
        client = cluster.client()
        blocker = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        priorities = {"a": -1, "b": 0, "c": 5, "d": 10}
        futures = [client.submit(note, str(order), name, priority=at) for name, at in priorities.items()]
        until(lambda: client.scheduler_info()["tasks"] == 5, "all have come")
        gate.open()
        client.gather([blocker, *futures], timeout=10)
        assert order.read_text() == "dcba"


def test_a_time_limit_ends_a_task_that_never_listens(client: Client, gate: Gate) -> None:
    stuck = client.options(timeout_seconds=1.0).submit(hold_the_lock_at, gate.path)
    gate.wait_until_reached()
    assert isinstance(stuck.exception(20), TaskTimeout)
    assert client.gather(client.map(inc, range(100)), timeout=10) == list(range(1, 101))


def test_what_a_worker_cannot_import_is_named(restricted: WholeCluster, tmp_path: Path) -> None:
    (tmp_path / "not_there.py").write_text("def answer():\n    return 42\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import not_there  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    with restricted.new_client() as client:
        error = client.submit(not_there.answer).exception(20)
        assert isinstance(error, Unrunnable | ImportError)
        text = "\n".join([str(error), *error.__notes__])
        assert "not_there" in text and "worker-" in text
