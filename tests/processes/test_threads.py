"""Slots that are threads of one process: what runs at once, what one task does to the others, what can be stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster
from cluster import CancelledError, Client, LocalCluster, TaskDied, TaskTimeout, get_client
from tests.processes.whole_cluster import Gate, wait_at, whole_cluster

PATIENCE_SECONDS = 60.0
THREADS = 4


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, slots=1, threads=THREADS) as local:
        yield local


@pytest.fixture
def client(local_cluster: LocalCluster) -> Iterator[Client]:
    with Client(local_cluster) as client:
        yield client


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


# --------------------------------------------------------------------------- what runs in the cluster

_meeting = threading.Barrier(THREADS)


def meet(number: int) -> tuple[int, int, int]:
    """Go on when all threads of the process are here."""
    _meeting.wait(PATIENCE_SECONDS)
    return number, os.getpid(), threading.get_ident()


def say_in_turns(number: int, lines: int) -> str:
    """Write half a line, let the others do so, write the other half."""
    for line in range(lines):
        print(f"{number}.", end="")
        _meeting.wait(PATIENCE_SECONDS)
        print(line)
    context = cluster.current()
    context.progress(1.0, f"done {number}")
    return context.key


def print_in_a_thread(text: str) -> None:
    thread = threading.Thread(target=print, args=(text,))
    thread.start()
    thread.join()


def make_bytes(size: int) -> bytes:
    return bytes(size)


def dive(depth: int) -> int:
    if depth == 0:
        return 0
    return int(get_client().submit(dive, depth - 1).result()) + 1


def dive_together(depth: int) -> int:
    _meeting.wait(PATIENCE_SECONDS)
    return dive(depth)


def compute_for_ever() -> None:
    while True:
        pass


def wait_without_an_ear(path: str) -> str:
    """Wait in one long call of C code, which no exception reaches: this one opens a pipe that has no reader."""
    with open(path, "w"):
        return "let go"


def hold_the_lock(path: str) -> None:
    """Keep everybody else in the process from running Python code."""
    import ctypes

    Path(path).touch()
    ctypes.PyDLL(None).sleep(1000)


def process_id_at(path: str) -> int:
    wait_at(path)
    return os.getpid()


def end_every_process(mark: str) -> None:
    """The first time when all are here."""
    if not os.path.exists(mark):
        Path(mark).touch()
        _meeting.wait(PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def meet_once(mark: str) -> int:
    """The first time stay until the process ends."""
    if not os.path.exists(mark):
        Path(mark).touch()
        with contextlib.suppress(threading.BrokenBarrierError):
            _meeting.wait(PATIENCE_SECONDS)
        time.sleep(PATIENCE_SECONDS)
    return os.getpid()


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> tuple[int, int]:
        self.count += 1
        return self.count, os.getpid()


def warn() -> None:
    warnings.warn("look out", stacklevel=1)


# --------------------------------------------------------------------------- what runs at once


def test_as_many_tasks_as_threads_run_at_once_in_one_process(client: Client) -> None:
    found = client.gather(client.map(meet, range(2 * THREADS)))
    assert [number for number, _, _ in found] == list(range(2 * THREADS))
    assert len({process_id for _, process_id, _ in found}) == 1
    assert len({thread for _, _, thread in found}) == THREADS


def test_a_worker_has_slots_times_threads(client: Client, local_cluster: LocalCluster) -> None:
    (worker,) = client.scheduler_info()["workers"].values()
    assert worker["slots"] == THREADS
    assert worker["report"]["threads"] == THREADS
    assert "of 1 slots of 4 threads" in repr(local_cluster)


def test_each_task_has_its_own_lines_and_progress(client: Client) -> None:
    futures = [client.submit(say_in_turns, number, 3) for number in range(THREADS)]
    assert client.gather(futures) == [future.key for future in futures]
    for number, future in enumerate(futures):
        assert [line.text for line in future.logs()] == [f"{number}.{line}" for line in range(3)]


def test_what_a_thread_of_a_task_prints_is_the_tasks(client: Client) -> None:
    future = client.submit(print_in_a_thread, "from below")
    future.result()
    assert [line.text for line in future.logs()] == ["from below"]


def test_large_values_go_both_ways(client: Client) -> None:
    assert [len(value) for value in client.gather(client.map(make_bytes, [1_000_000] * 20))] == [1_000_000] * 20


def test_tasks_wait_for_their_children_in_every_thread(client: Client) -> None:
    assert client.gather([client.submit(dive_together, depth, pure=False) for depth in (1, 5, 30, 30)]) == [
        1,
        5,
        30,
        30,
    ]


def test_an_actor_has_a_process_of_its_own(client: Client) -> None:
    actor = client.submit(Counter, actor=True).result()
    (_, process_id), (count, _) = actor.add().result(), actor.add().result()
    assert count == 2
    assert process_id != client.gather(client.map(meet, range(THREADS)))[0][1]


# --------------------------------------------------------------------------- stopping


def test_a_task_that_comes_to_python_code_is_interrupted_alone(client: Client, gate: Gate) -> None:
    beside = client.submit(process_id_at, gate.path)
    gate.wait_until_reached()
    with pytest.raises(TaskTimeout):
        client.options(timeout_seconds=0.2).submit(compute_for_ever).result(PATIENCE_SECONDS)
    gate.open()
    process_id = beside.result(PATIENCE_SECONDS)
    found = client.gather(client.map(meet, range(THREADS)))  # all threads are there, and it is the same process
    assert {process for _, process, _ in found} == {process_id}


def test_a_thread_that_does_not_answer_is_left_and_replaced(client: Client, gate: Gate, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "nobody reads")
    beside = client.submit(process_id_at, gate.path)
    gate.wait_until_reached()
    with pytest.raises(TaskTimeout, match="left to itself"):
        client.options(timeout_seconds=0.2).submit(wait_without_an_ear, str(tmp_path / "nobody reads")).result(
            PATIENCE_SECONDS
        )
    found = client.map(meet, range(THREADS - 1))
    more = client.submit(meet, THREADS)  # with the one at the gate more than threads: the last waits for a new one
    gate.open()
    process_id = beside.result(PATIENCE_SECONDS)
    assert {process for _, process, _ in client.gather([*found, more])} == {process_id}
    with open(tmp_path / "nobody reads"):
        pass  # what was left ends, and nobody minds


def test_a_process_in_which_nobody_runs_is_ended_and_the_others_run_again(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "first") as gate:
        beside = client.submit(process_id_at, gate.path)
        gate.wait_until_reached()
        with pytest.raises(TaskTimeout):
            client.options(timeout_seconds=0.2).submit(hold_the_lock, str(tmp_path / "held")).result(PATIENCE_SECONDS)
        assert (tmp_path / "held").exists()
        gate.wait_until_reached()  # again, in another process
        gate.open()
        assert beside.result(PATIENCE_SECONDS)


def test_a_cancelled_task_stops(client: Client) -> None:
    future = client.submit(compute_for_ever)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(PATIENCE_SECONDS)
    assert len(client.gather(client.map(meet, range(THREADS)))) == THREADS


# --------------------------------------------------------------------------- death


def test_who_ends_the_process_fails_by_name_and_the_others_run_again(client: Client, tmp_path: Path) -> None:
    victims = [client.submit(meet_once, str(tmp_path / f"mark {number}")) for number in range(THREADS - 1)]
    culprit = client.submit(end_every_process, str(tmp_path / "mark of the culprit"))
    with pytest.raises(TaskDied, match=r"the process that ran the task ended with signal 9"):
        culprit.result(PATIENCE_SECONDS)
    assert all(client.gather(victims))
    assert "and 3 others at once" in str(victims[0].story())


# --------------------------------------------------------------------------- by other means


def test_the_same_without_the_fast_paths(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", "0")
    with LocalCluster(n_workers=1, slots=1, threads=THREADS) as plain, Client(plain) as client:
        found = client.gather(client.map(meet, range(2 * THREADS)))
        assert len({process_id for _, process_id, _ in found}) == 1
        future = client.submit(say_in_turns, 0, 0)
        assert future.result() == future.key
        assert client.submit(dive, 5).result() == 5
        assert len(client.submit(make_bytes, 1_000_000).result()) == 1_000_000
        with pytest.raises(TaskTimeout):
            client.options(timeout_seconds=0.2).submit(compute_for_ever).result(PATIENCE_SECONDS)


def test_workers_say_how_many_threads(tmp_path: Path) -> None:
    with whole_cluster(workers=0) as whole:
        (worker,) = whole.add_workers(("--threads", "3"), slots=2)
        assert "with 2 slots of 3 threads" in worker.text
        assert [found["slots"] for found in whole.client().scheduler_info()["workers"].values()] == [6]


@pytest.mark.parametrize("threads", [0, 51])
def test_a_senseless_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads must be from 1 to 50, not"):
        LocalCluster(threads=threads)
