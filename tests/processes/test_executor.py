"""The executor of a client, on real clusters: what programs written for `concurrent.futures` rely on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest

from cluster import AsyncClient, Client, ConnectionLost, LocalCluster, SerializationError, TaskDied, get_client
from cluster.adapters.executor import ClusterExecutor
from cluster.adapters.leaks import Holdings, leaks_since
from tests.processes.whole_cluster import Gate, script, until, wait_at

PATIENCE_SECONDS = 60.0


@pytest.fixture
def executor(client: Client) -> Iterator[ClusterExecutor]:
    with client.as_executor() as made:
        assert isinstance(made, ClusterExecutor)
        yield made


# ------------------------------------------------------------------ tasks


def fail(text: str) -> None:
    raise ValueError(text)


class Unloadable:
    """Something that cannot be unpickled."""

    def __reduce__(self) -> Any:
        return fail, ("it cannot be loaded",)


def dive_by_result(depth: int) -> int:
    if depth == 0:
        return 0
    with get_client().as_executor() as executor:
        return int(executor.submit(dive_by_result, depth - 1).result()) + 1


def dive_by_wait(depth: int) -> int:
    if depth == 0:
        return 0
    executor = get_client().as_executor()
    future = executor.submit(dive_by_wait, depth - 1)
    done, not_done = wait([future])
    assert done == {future} and not not_done
    (completed,) = as_completed([executor.submit(abs, -1)])
    return int(future.result()) + int(completed.result())


def dive_by_shutdown(depth: int) -> int:
    if depth == 0:
        return 0
    executor = get_client().as_executor()
    futures = [executor.submit(dive_by_shutdown, depth - 1) for _ in range(2)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    return int(futures[1].result()) + 1


def bound_inside() -> None:
    get_client().as_executor(max_workers=1)


# ------------------------------------------------------------------ results


def test_values_come_as_from_any_executor(executor: ClusterExecutor) -> None:
    future = executor.submit(pow, 2, exp=10)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(PATIENCE_SECONDS) == 1024
    assert future.exception() is None and future.done() and not future.running() and not future.cancelled()
    assert future.result() is future.result()
    assert list(executor.map(pow, [2, 3, 4], [5, 2])) == [32, 9]
    assert list(executor.map(abs, range(-50, 0), chunksize=7)) == list(range(50, 0, -1))
    assert list(executor.map(abs, [])) == []


def test_a_failure_is_what_the_task_raised(executor: ClusterExecutor) -> None:
    future = executor.submit(fail, "no such thing")
    with pytest.raises(ValueError, match="no such thing") as caught:
        future.result(PATIENCE_SECONDS)
    assert "in fail" in caught.value.__notes__[0]


def test_what_cannot_be_pickled_fails_its_future(executor: ClusterExecutor) -> None:
    future = executor.submit(abs, threading.Lock())
    error = future.exception(PATIENCE_SECONDS)
    assert isinstance(error, SerializationError) and isinstance(error, PicklingError)
    assert executor.submit(abs, -1).result(PATIENCE_SECONDS) == 1


def test_a_call_that_ends_its_process_fails_alone_and_by_the_familiar_name(executor: ClusterExecutor) -> None:
    died = executor.submit(os._exit, 3).exception(PATIENCE_SECONDS)
    assert isinstance(died, TaskDied) and isinstance(died, BrokenProcessPool)
    assert died.exit_code == 3
    unpicklable = executor.submit(threading.Lock).exception(PATIENCE_SECONDS)
    assert isinstance(unpicklable, SerializationError) and isinstance(unpicklable, PicklingError)
    assert executor.submit(abs, -1).result(PATIENCE_SECONDS) == 1


def test_a_value_that_cannot_be_loaded_fails_its_future_alone(executor: ClusterExecutor) -> None:
    before, unloadable, after = executor.submit(abs, -1), executor.submit(Unloadable), executor.submit(abs, -2)
    with pytest.raises(ValueError, match="it cannot be loaded"):
        unloadable.result(PATIENCE_SECONDS)
    assert (before.result(PATIENCE_SECONDS), after.result(PATIENCE_SECONDS)) == (1, 2)


def test_the_client_s_own_futures_may_be_arguments(client: Client, executor: ClusterExecutor) -> None:
    assert executor.submit(pow, client.submit(abs, -2), 3).result(PATIENCE_SECONDS) == 8


def test_the_options_are_those_of_the_client(client: Client) -> None:
    with client.as_executor(label="counting", retries=2) as executor:
        future = executor.submit(abs, -1)
        assert isinstance(executor, ClusterExecutor)
        assert future.result(PATIENCE_SECONDS) == 1
        assert executor._max_workers == 2
    assert client.as_executor(max_workers=3)._max_workers == 3  # type: ignore[attr-defined]


def test_the_end_of_the_client_ends_its_futures(local_cluster: LocalCluster, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        with Client(local_cluster) as client:
            executor = client.as_executor(max_workers=1)
            futures = [executor.submit(wait_at, gate.path) for _ in range(3)]
            gate.wait_until_reached()
        for future in futures:
            assert isinstance(future.exception(PATIENCE_SECONDS), ConnectionLost)
        with pytest.raises(ConnectionLost):
            executor.submit(abs, -1)
        executor.shutdown()


# ------------------------------------------------------------------ cancelling


def test_a_task_that_runs_is_said_to_run_and_can_be_stopped(executor: ClusterExecutor, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        runs = executor.submit(wait_at, gate.path)
        gate.wait_until_reached()
        until(runs.running, "the task runs")
        assert not runs.done()
        assert runs.cancel() and runs.cancelled() and not runs.running()
        with pytest.raises(CancelledError):
            runs.result()
        assert runs.cancel()
        # Its slot is free again, of two: what needs both comes through.
        assert sum(executor.map(abs, range(4))) == 6


def test_wait_and_as_completed_see_what_was_cancelled(executor: ClusterExecutor, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        futures = [executor.submit(wait_at, gate.path) for _ in range(3)]
        gate.wait_until_reached()
        seen: list[Any] = []
        waiter = threading.Thread(target=lambda: seen.append(wait(futures, PATIENCE_SECONDS, FIRST_COMPLETED)))
        waiter.start()
        until(lambda: futures[2]._waiters, "the other thread waits")
        futures[2].cancel()
        waiter.join(PATIENCE_SECONDS)
        assert seen == [({futures[2]}, set(futures[:2]))]
        futures[0].cancel()
        gate.open()
        assert set(as_completed(futures, PATIENCE_SECONDS)) == set(futures)


def test_a_task_that_the_client_s_own_means_cancel_is_cancelled(client: Client, executor: ClusterExecutor) -> None:
    blocker = client.options(resources={"nowhere": 1}).submit(abs, -1)
    future = executor.submit(abs, blocker)
    client.cancel(blocker)
    done, _ = wait([future], PATIENCE_SECONDS)
    assert done == {future} and future.cancelled()


def test_max_workers_bounds_what_is_on_the_cluster_and_shutdown_cancels_the_rest(
    client: Client, tmp_path: Path
) -> None:
    executor = client.as_executor(max_workers=1)
    with Gate(tmp_path / "gate") as gate:
        runs, queued, cancelled = (executor.submit(wait_at, gate.path, value) for value in (1, 2, 3))
        gate.wait_until_reached()
        assert not queued.running()
        assert cancelled.cancel()
        executor.shutdown(wait=False, cancel_futures=True)
        assert queued.cancelled() and not runs.done()
        gate.open()
        executor.shutdown()
        assert runs.result() == 1


def test_shutdown_cancels_what_no_worker_was_granted(client: Client, tmp_path: Path) -> None:
    executor = client.as_executor()
    with Gate(tmp_path / "gate") as gate:
        running = [executor.submit(wait_at, gate.path, "ran") for _ in range(2)]
        gate.wait_until_reached()
        blocker = client.options(resources={"nowhere": 1}).submit(abs, -1)
        waits = executor.submit(str, blocker)
        executor.shutdown(wait=False, cancel_futures=True)
        assert waits.cancelled()
        gate.open()
        executor.shutdown()
        assert [future.result() for future in running] == ["ran", "ran"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


# ------------------------------------------------------------------ map


def test_map_reads_no_further_than_its_buffer(executor: ClusterExecutor) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            read.append(item)
            yield item

    results = executor.map(abs, items(), buffersize=3)
    assert read == [0, 1, 2]
    assert next(results) == 0 and next(results) == 1
    assert read == [0, 1, 2, 3]
    assert list(results) == list(range(2, 10))


def test_map_that_is_out_of_time_cancels_what_is_left(executor: ClusterExecutor, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        results = executor.map(wait_at, [gate.path] * 3, timeout=0)
        gate.wait_until_reached()
        with pytest.raises(TimeoutError):
            next(results)
        # Nobody opens the gate: the slots are free because all three were stopped.
        assert list(executor.map(abs, range(4))) == [0, 1, 2, 3]


# ------------------------------------------------------------------ threads


def test_a_callback_may_wait_for_another_future(executor: ClusterExecutor) -> None:
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def follow(future: concurrent.futures.Future[int]) -> None:
        outcome.set_result(executor.submit(abs, -future.result()).result(PATIENCE_SECONDS))

    executor.submit(abs, -7).add_done_callback(follow)
    assert outcome.result(PATIENCE_SECONDS) == 7


def test_a_callback_that_blocks_keeps_nobody_else_waiting(
    client: Client, executor: ClusterExecutor, tmp_path: Path
) -> None:
    release = threading.Event()
    with Gate(tmp_path / "gate") as gate:
        executor.submit(wait_at, gate.path).add_done_callback(lambda _: release.wait(PATIENCE_SECONDS))
        gate.wait_until_reached()
        gate.open()
        try:
            assert sum(executor.map(abs, range(10))) == 45
            assert client.submit(abs, -1).result(PATIENCE_SECONDS) == 1
        finally:
            release.set()


def test_shutdown_leaves_nothing_behind_and_all_callbacks_called(client: Client, tmp_path: Path) -> None:
    client.submit(abs, 1).result(PATIENCE_SECONDS)  # what the client itself opens is open from now on
    before = Holdings(tmp_path)
    called: list[int] = []
    executor = client.as_executor()
    for item in range(20):
        executor.submit(abs, item).add_done_callback(lambda future: called.append(future.result()))
    executor.shutdown()
    assert sorted(called) == list(range(20))
    assert leaks_since(before, patience_seconds=0) == []
    executor.shutdown()


def test_an_event_loop_runs_calls_in_it(executor: ClusterExecutor) -> None:
    async def both() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, abs, item) for item in (-1, -2)))

    assert asyncio.run(both()) == [1, 2]


def test_a_program_ends_when_its_futures_have(own_directory: Path, local_cluster: LocalCluster, tmp_path: Path) -> None:
    # Nobody waits in the program, which drops its futures and comes to its end while a task stands at the gate.
    with (
        Gate(tmp_path / "gate") as gate,
        script(
            """
            import sys
            from pathlib import Path
            from cluster import Client
            from tests.processes.whole_cluster import wait_at

            executor = Client(sys.argv[1], directory=sys.argv[2]).as_executor()
            executor.submit(wait_at, sys.argv[3], "went on").add_done_callback(
                lambda future: print("result:", future.result(), flush=True)
            )
            print("main thread has ended", flush=True)
            """,
            local_cluster.scheduler_address,
            str(local_cluster.directory),
            gate.path,
        ) as program,
    ):
        program.wait_for("main thread has ended")
        gate.wait_until_reached()
        gate.open()
        program.wait_for("result: went on")
        assert program.end() == 0


# ------------------------------------------------------------------ inside tasks


def test_tasks_that_wait_for_their_own_executors_need_one_slot_only() -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        executor = client.as_executor()
        dives = [executor.submit(dive, 3) for dive in (dive_by_result, dive_by_wait, dive_by_shutdown)]
        assert [dive.result(PATIENCE_SECONDS) for dive in dives] == [3, 3, 3]
        executor.shutdown()


def test_a_task_cannot_bound_what_it_submits(executor: ClusterExecutor) -> None:
    with pytest.raises(ValueError, match="leave it out"):
        executor.submit(bound_inside).result(PATIENCE_SECONDS)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 1.5}, TypeError, "max_workers must be a whole number"),
        ({"key": "always-this"}, TypeError, "takes no key"),
        ({"retries": -1}, ValueError, "retries"),
        ({"initializer": print}, TypeError, "initializer"),
    ],
)
def test_wrong_options_are_refused(client: Client, options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        client.as_executor(**options)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be at least 1"),
        ({"buffersize": 0}, ValueError, "buffersize must be at least 1"),
        ({"buffersize": 1.0}, TypeError, "buffersize must be a whole number"),
    ],
)
def test_wrong_options_of_map_are_refused(
    executor: ClusterExecutor, options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        executor.map(abs, [1], **options)


def test_a_client_of_an_event_loop_has_no_executor(local_cluster: LocalCluster) -> None:
    async def ask() -> None:
        async with AsyncClient(local_cluster) as client:
            with pytest.raises(TypeError, match="run_in_executor"):
                client.as_executor()

    asyncio.run(ask())
