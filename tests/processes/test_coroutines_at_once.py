"""Many coroutines at once beside one slot: who waits for whom, and what one of them does to the others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster import CancelledError, Client, LocalCluster, TaskDied, TaskTimeout
from tests.processes.whole_cluster import Gate, wait_at

MANY = 200
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def cluster_shape() -> tuple[int, int]:
    """One worker of one slot."""
    return 1, 1


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


# --------------------------------------------------------------------------- what runs in the cluster

_arrived: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []


async def meet(number: int, how_many: int) -> tuple[int, int]:
    """Go on when so many are here, whichever loop each of them is on."""
    here = asyncio.Event()
    _arrived.append((asyncio.get_running_loop(), here))
    if len(_arrived) == how_many:
        everybody = _arrived.copy()
        _arrived.clear()
        for loop, event in everybody:
            loop.call_soon_threadsafe(event.set)
    await here.wait()
    return number, os.getpid()


async def wait_in_a_thread(path: str, value: Any = None) -> Any:
    await asyncio.to_thread(wait_at, path)
    return value


async def block_the_loop(path: str) -> str:
    return str(wait_at(path, "blocked"))


async def raise_at(path: str) -> None:
    await wait_in_a_thread(path)
    raise KeyError("as asked")


async def note_the_end(gate: str, note: str) -> None:
    try:
        await wait_in_a_thread(gate)
        await asyncio.Event().wait()
    finally:
        Path(note).write_text("ended")


async def end_the_process(path: str) -> None:
    await wait_in_a_thread(path)
    os.kill(os.getpid(), signal.SIGKILL)


async def count_starts(path: str, gate: str) -> tuple[int, int]:
    """How often this was begun, and as which attempt; the first time it goes on when it is killed."""
    with open(path, "a") as file:
        file.write("x")
    starts = len(Path(path).read_text())
    if starts == 1:
        await wait_in_a_thread(gate)
        await asyncio.Event().wait()
    return starts, cluster.current().attempt


async def write_by_halves(name: str, how_many: int) -> None:
    for part in range(3):
        print(f"{name} {part}", end="")
        await meet(0, how_many)
        print(" ends")


async def tell_of_itself(how_many: int) -> tuple[str, bool]:
    before = cluster.current().key
    await meet(0, how_many)
    cluster.current().progress(0.5, "half")
    return before, before == cluster.current().key == await asyncio.to_thread(lambda: cluster.current().key)


async def count_down(number: int) -> int:
    """Wait for a coroutine of one's own without `await`, so many times over."""
    if number == 0:
        return 0
    return 1 + int(cluster.get_client().submit(count_down, number - 1).result())


async def give_a_future(number: int) -> Any:
    await asyncio.sleep(0)
    return cluster.get_client().submit(pow, number, 2)


async def leave_a_child(gate: str, end: str) -> None:
    """Submit one that waits at a gate, and raise when it does."""
    kept.append(cluster.get_client().submit(wait_at, gate))
    await wait_in_a_thread(end)
    raise KeyError("and leaves it")


kept: list[Any] = []


async def submit_in_a_thread(number: int) -> Any:
    future = await asyncio.get_running_loop().run_in_executor(None, cluster.get_client().submit, pow, number, 2)
    return await asyncio.to_thread(future.result)


async def acquire(name: str) -> int | None:
    lock = cluster.Lock(name)
    await asyncio.to_thread(lock.acquire)
    return lock.fence


async def make_bytes(nbytes: int) -> bytes:
    await asyncio.sleep(0)
    return bytes(nbytes)


# --------------------------------------------------------------------------- together


def test_hundreds_wait_at_once_and_a_plain_task_waits_behind_none(client: Client) -> None:
    first = client.map(meet, range(MANY - 1), [MANY] * (MANY - 1))
    assert client.submit(pow, 2, 5).result() == 32
    last = client.submit(meet, MANY - 1, MANY)
    found = client.gather([*first, last])
    assert [number for number, _ in found] == list(range(MANY))
    assert len({process_id for _, process_id in found}) == 1


def test_one_that_blocks_its_loop_holds_up_none_that_comes_later(client: Client, gate: Gate) -> None:
    blocked = client.submit(block_the_loop, gate.path)
    gate.wait_until_reached()
    assert client.submit(meet, 1, 1).result()[0] == 1
    gate.open()
    assert blocked.result() == "blocked"


def test_one_that_raises_leaves_the_others_alone(client: Client, gate: Gate) -> None:
    failing, going_on = client.submit(raise_at, gate.path), client.submit(wait_in_a_thread, gate.path, 7)
    gate.wait_until_reached()
    gate.open()
    with pytest.raises(KeyError, match="as asked"):
        failing.result()
    assert going_on.result() == 7


def test_values_of_any_size_and_futures_come_back(client: Client) -> None:
    sizes = [10, 100_000, 2_000_000, 70_000]
    assert [len(value) for value in client.gather(client.map(make_bytes, sizes))] == sizes
    assert client.submit(give_a_future, client.submit(abs, -3)).result().result() == 9


def test_they_wait_for_one_another_however_deep(client: Client) -> None:
    assert client.submit(count_down, 5).result() == 5


# --------------------------------------------------------------------------- stopping


def test_cancelling_one_cancels_its_asyncio_task_alone(client: Client, gate: Gate, tmp_path: Path) -> None:
    note = tmp_path / "note"
    doomed = client.submit(note_the_end, gate.path, str(note))
    gate.wait_until_reached()
    other = client.submit(wait_in_a_thread, gate.path, os.getpid())
    assert doomed.cancel()
    with pytest.raises(CancelledError):
        doomed.result()
    gate.open()
    assert other.result() == os.getpid()
    assert note.read_text() == "ended"


def test_one_that_takes_too_long_is_stopped_alone(client: Client, gate: Gate) -> None:
    other = client.submit(wait_in_a_thread, gate.path, 5)
    late = client.options(timeout_seconds=0.1).submit(meet, 0, MANY)
    with pytest.raises(TaskTimeout):
        late.result()
    gate.wait_until_reached()
    gate.open()
    assert other.result() == 5
    client.submit(_arrived_no_more).result()


async def _arrived_no_more() -> None:
    _arrived.clear()


@pytest.mark.kills_processes
def test_one_that_blocks_its_loop_and_is_stopped_costs_the_others_a_run(
    own_cluster: LocalCluster, gate: Gate, tmp_path: Path
) -> None:
    with Client(own_cluster) as client, Gate(tmp_path / "other") as other:
        again = client.submit(count_starts, str(tmp_path / "starts"), other.path)
        other.wait_until_reached()
        stuck = client.submit(block_the_loop, gate.path)
        gate.wait_until_reached()
        assert stuck.cancel()
        assert again.result() == (2, 1)


# --------------------------------------------------------------------------- death


@pytest.mark.kills_processes
def test_the_one_that_ends_the_process_fails_by_name_and_no_other(own_cluster: LocalCluster, gate: Gate) -> None:
    with Client(own_cluster) as client:
        others = client.map(wait_in_a_thread, [gate.path] * 30, range(30))
        deadly = client.submit(end_the_process, gate.path)
        gate.wait_until_reached()
        gate.open()
        with pytest.raises(TaskDied, match="signal 9"):
            deadly.result()
        assert client.gather(others) == list(range(30))
        assert client.submit(abs, -1).result() == 1


@pytest.fixture
def own_cluster() -> Iterator[LocalCluster]:
    """A cluster that the test may harm."""
    with LocalCluster(n_workers=1, slots=1) as started:
        yield started


# --------------------------------------------------------------------------- what they say


def test_what_each_writes_is_its_own_by_whole_lines(client: Client) -> None:
    futures = [client.submit(write_by_halves, name, 2) for name in ("one", "two")]
    client.gather(futures)
    for name, future in zip(("one", "two"), futures, strict=True):
        assert [line.text for line in future.logs()] == [f"{name} {part} ends" for part in range(3)]


def test_each_knows_which_task_it_is(client: Client) -> None:
    futures = [client.submit(tell_of_itself, 3) for _ in range(3)]
    assert client.gather(futures) == [(future.key, True) for future in futures]


# --------------------------------------------------------------------------- what ends with a coroutine


def test_children_end_with_the_coroutine_that_submitted_them(client: Client, gate: Gate, tmp_path: Path) -> None:
    with Gate(tmp_path / "end") as end:
        beside = client.submit(wait_in_a_thread, end.path, "another")
        future = client.submit(leave_a_child, gate.path, end.path)
        gate.wait_until_reached()
        end.wait_until_reached()
        end.open()
        with pytest.raises(KeyError):
            future.result()
        assert beside.result() == "another"
        # The gate stays shut: the slot is free because the child was stopped.
        assert client.submit(pow, 2, 5).result(PATIENCE_SECONDS) == 32


def test_children_are_of_the_coroutine_whose_thread_submits_them(client: Client) -> None:
    assert client.gather(client.map(submit_in_a_thread, range(20))) == [number**2 for number in range(20)]


def test_a_lock_ends_with_the_coroutine_that_took_it(client: Client) -> None:
    fences = client.gather([client.submit(acquire, "of a coroutine") for _ in range(3)])
    assert len(set(fences)) == 3
    assert None not in fences


# --------------------------------------------------------------------------- by plain means


def test_the_same_without_the_fast_paths(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", "0")
    with LocalCluster(n_workers=1, slots=1) as plain, Client(plain) as client:
        assert len({process_id for _, process_id in client.gather(client.map(meet, range(50), [50] * 50))}) == 1
        stopped = client.submit(wait_in_a_thread, gate.path)
        gate.wait_until_reached()
        assert stopped.cancel()
        gate.open()
        assert len(client.submit(make_bytes, 1_000_000).result()) == 1_000_000
