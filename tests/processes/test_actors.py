"""Actors on real clusters: state, order, lifetime, deaths, interrupts."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import Actor, CancelledError, Client, LocalCluster, TaskDied, get_client
from tests.processes.whole_cluster import Gate, until, wait_at, whole_cluster


class Counter:
    """Something with a state."""

    def __init__(self, start: int = 0) -> None:
        self.count = start
        self.seen: list[Any] = []

    def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def note(self, thing: Any) -> int:
        self.seen.append(thing)
        return len(self.seen)

    def process_id(self) -> int:
        return os.getpid()

    def wait_at(self, path: str) -> str:
        wait_at(path)
        return "went on"

    def fail(self) -> None:
        raise KeyError("as asked")

    def exit(self) -> None:
        raise SystemExit(3)

    def sleep_on(self, path: str) -> None:
        with contextlib.suppress(BaseException):
            wait_at(path)
        time.sleep(60)

    def with_a_task(self, number: int) -> int:
        value: int = get_client().submit(abs, number).result()
        return self.increment(value)

    def wait_for_task(self, path: str) -> Any:
        return get_client().submit(wait_at, path).result()

    def __call__(self, number: int) -> int:
        return self.count * number


def increment_here(counter: Any, times: int) -> list[int]:
    return [counter.increment().result() for _ in range(times)]


def give_back(counter: Any) -> dict[str, Any]:
    return {"inside": counter}


def make_one_and_return_it() -> Any:
    counter = get_client().submit(Counter, 7, actor=True).result()
    counter.increment().result()
    return counter


def counter_of(client: Client, start: int = 0) -> Any:
    return client.submit(Counter, start, actor=True).result(timeout=20)


# --------------------------------------------------------------------------- state and order


def test_calls_change_the_state_in_their_order(client: Client) -> None:
    counter = counter_of(client, 5)
    assert isinstance(counter, Actor)
    futures = [counter.increment() for _ in range(500)]
    assert client.gather(futures) == list(range(6, 506))
    assert counter.count == 505
    assert counter(2).result() == 1010
    assert "increment" in dir(counter) and "Counter" in repr(counter)


def test_futures_are_arguments_of_calls_and_calls_arguments_of_tasks(client: Client) -> None:
    counter = counter_of(client)
    first = counter.increment(client.submit(abs, -3))
    assert client.submit(pow, counter.increment(), 2).result() == 16
    assert first.result() == 3


def test_a_large_argument_keeps_its_place(client: Client) -> None:
    counter = counter_of(client)
    large = bytes(1 << 20)
    counts = [counter.note(large if place % 3 == 0 else place) for place in range(12)]
    assert client.gather(counts) == list(range(1, 13))
    seen = counter.seen
    assert [thing for thing in seen if type(thing) is int] == [place for place in range(12) if place % 3]
    assert [place for place, thing in enumerate(seen) if thing == large] == [0, 3, 6, 9]


def test_a_call_is_run_though_its_future_is_dropped(client: Client) -> None:
    counter = counter_of(client)
    for _ in range(10):
        counter.increment()
    assert counter.count == 10


def test_a_methods_exception_is_its_own_and_the_actor_lives_on(client: Client) -> None:
    counter = counter_of(client)
    with pytest.raises(KeyError, match="as asked"):
        counter.fail().result()
    assert counter.exit().exception() is not None
    assert counter.increment().result() == 1
    with pytest.raises(AttributeError, match="nothing_like_it"):
        counter.nothing_like_it  # noqa: B018
    with pytest.raises(AttributeError, match="underscore"):
        counter._private  # noqa: B018


def test_handles_travel_and_all_are_of_the_same_actor(client: Client) -> None:
    future = client.submit(Counter, actor=True)
    counter = future.result()
    assert client.submit(increment_here, counter, 2).result() == [1, 2]
    assert client.submit(increment_here, future, 2).result() == [3, 4]
    again = client.submit(give_back, counter).result()["inside"]
    assert again.increment().result() == 5
    assert again == counter


def test_another_client_calls_the_same_actor(client: Client, local_cluster: LocalCluster) -> None:
    counter = counter_of(client)
    with Client(local_cluster) as other:
        box = client.submit(give_back, counter)
        box.result()
        theirs = other.submit(increment_here, counter, 3)
        assert theirs.result() == [1, 2, 3]
    assert counter.increment().result() == 4


def test_an_actor_made_in_a_task_outlives_the_task_with_its_handle(client: Client) -> None:
    counter = client.submit(make_one_and_return_it).result()
    assert counter.increment().result() == 9


def test_a_method_may_use_the_cluster(client: Client) -> None:
    counter = counter_of(client)
    assert counter.with_a_task(-4).result() == 4


def test_a_constructor_that_raises_fails_the_future(client: Client) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        client.submit(int, "no number", actor=True).result()
    with pytest.raises(ValueError, match="pure"):
        client.submit(Counter, actor=True, pure=True)


# --------------------------------------------------------------------------- beside the slots


def test_an_actor_and_the_slots_leave_each_other_alone(client: Client, tmp_path: Path) -> None:
    counter = counter_of(client)
    with Gate(tmp_path / "slots") as slots, Gate(tmp_path / "actor") as actor:
        busy = [client.submit(wait_at, slots.path, place, pure=False) for place in range(2)]
        slots.wait_until_reached()
        assert counter.increment().result(timeout=20) == 1  # all slots may be taken
        slots.open()
        client.gather(busy)
        held = counter.wait_at(actor.path)
        actor.wait_until_reached()
        assert client.gather([client.submit(abs, -place) for place in range(4)]) == [0, 1, 2, 3]
        actor.open()
        assert held.result() == "went on"


def test_an_actor_ends_when_nobody_holds_it(client: Client) -> None:
    counter = counter_of(client)
    process = psutil.Process(counter.process_id().result())
    del counter
    client.submit(abs, 1).result()
    until(lambda: not process.is_running(), "the actor's process has ended")


# --------------------------------------------------------------------------- deaths and interrupts


def test_a_dead_actor_fails_what_was_called_and_all_that_comes_later(client: Client, tmp_path: Path) -> None:
    counter = counter_of(client)
    process_id = counter.process_id().result()
    with Gate(tmp_path / "gate") as gate:
        running, queued = counter.wait_at(gate.path), counter.increment()
        dependent = client.submit(abs, queued)
        gate.wait_until_reached()
        os.kill(process_id, signal.SIGKILL)
        for future in (running, queued, dependent, counter.increment()):
            with pytest.raises(TaskDied, match="SIGKILL"):
                future.result(timeout=20)
    with pytest.raises(TaskDied, match="is lost"):
        counter.increment().result(timeout=20)


@pytest.mark.kills_processes
def test_an_actor_is_lost_with_its_worker() -> None:
    with whole_cluster(workers=1) as cluster:
        client = cluster.client()
        counter = counter_of(client)
        cluster.workers[0].signal(signal.SIGKILL)
        with pytest.raises(TaskDied, match="worker-0 was lost"):
            counter.increment().result(timeout=30)
        cluster.add_workers(())
        with pytest.raises(TaskDied, match="worker-0 was lost"):
            counter.increment().result(timeout=30)
        assert counter_of(client).increment().result(timeout=30) == 1


def test_a_running_call_is_interrupted_and_the_state_stays(client: Client, tmp_path: Path) -> None:
    counter = counter_of(client)
    counter.increment()
    with Gate(tmp_path / "gate") as gate:
        running = counter.wait_at(gate.path)
        gate.wait_until_reached()
        assert running.cancel()
        assert counter.increment().result(timeout=20) == 2
        with pytest.raises(CancelledError):
            running.result()


def test_a_call_that_waits_for_a_task_is_interrupted_too(client: Client, tmp_path: Path) -> None:
    counter = counter_of(client)
    with Gate(tmp_path / "gate") as gate:
        running = counter.wait_for_task(gate.path)
        gate.wait_until_reached()
        assert running.cancel()
        assert counter.increment().result(timeout=20) == 1
        gate.open()


def test_a_call_that_does_not_let_itself_be_stopped_takes_the_actor_along(client: Client, tmp_path: Path) -> None:
    counter = counter_of(client)
    with Gate(tmp_path / "gate") as gate:
        running = counter.sleep_on(gate.path)
        gate.wait_until_reached()
        running.cancel()
        with pytest.raises(TaskDied, match="did not stop"):
            counter.increment().result(timeout=20)
