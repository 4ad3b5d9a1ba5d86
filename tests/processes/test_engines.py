"""What every engine below a client keeps: the same work, the same futures, the same errors."""

from __future__ import annotations

import asyncio
import gc
import operator
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from cluster import (
    CancelledError,
    Client,
    ClusterError,
    ConnectionLost,
    Future,
    Lock,
    SerializationError,
    ValueLost,
    as_completed,
    compute,
    current,
    delayed,
    fire_and_forget,
    get_client,
    persist,
    wait,
)
from tests.processes.engine_clients import FOREIGN, LOCAL, SLOTS, client_of
from tests.processes.whole_cluster import Gate, until, wait_at

PATIENCE_SECONDS = 60.0
SIDE_BY_SIDE = ("threads", "processes", "cluster", *FOREIGN)
WITHOUT_WORKERS = ("inline", "threads", *FOREIGN)


@pytest.fixture(scope="module", params=[*LOCAL, *FOREIGN])
def engine(request: pytest.FixtureRequest) -> str:
    """The engine's name."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def client(engine: str) -> Iterator[Client]:
    """A client of the engine."""
    with client_of(engine) as made:
        yield made


def only(engine: str, engines: tuple[str, ...], why: str) -> None:
    if engine not in engines:
        pytest.skip(f"{engine}: {why}")


# ------------------------------------------------------------------ tasks


@dataclass
class Box:
    content: Any


def increment(x: int) -> int:
    return x + 1


def fail(text: str) -> None:
    raise ValueError(text)


def fail_unless(path: str, value: Any) -> Any:
    """Fails until there is a file."""
    if not Path(path).exists():
        raise FileNotFoundError(path)
    return value


def count_runs(path: str, needed: int) -> int:
    """Fails the first times."""
    with Path(path).open("a") as file:
        file.write("x")
    runs = len(Path(path).read_text())
    if runs < needed:
        raise RuntimeError(f"run {runs}")
    return runs


def set_first(array: Any) -> Any:
    array[0] = 7
    return array


def touch(path: str) -> None:
    Path(path).touch()


def fibonacci(n: int) -> int:
    if n < 2:
        return n
    client = get_client()
    left, right = client.submit(fibonacci, n - 1), client.submit(fibonacci, n - 2)
    return int(left.result() + right.result())


def dive(depth: int) -> int:
    return 0 if depth == 0 else 1 + int(get_client().submit(dive, depth - 1).result())


def fire(path: str) -> None:
    fire_and_forget(get_client().submit(touch, path))


def ask_in_a_thread() -> str:
    """What a thread of the process hears that is not the task's, while the task has a client."""
    name = get_client().name
    with ThreadPoolExecutor(1) as pool:
        try:
            return f"{pool.submit(get_client).result().name} and not {name}"
        except ClusterError as error:
            return str(error)


def hand_back(x: int) -> Box:
    return Box([get_client().submit(increment, x)])


# ------------------------------------------------------------------ work


def test_it_is_a_client(client: Client) -> None:
    assert isinstance(client, Client)
    assert client.status == "running"
    assert "running" in repr(client)
    future = client.submit(pow, 2, 10)
    assert type(future) is Future
    assert future.result() == 1024
    assert future.status == "finished"


def test_maps_of_every_kind(client: Client) -> None:
    assert client.gather(client.map(increment, range(5))) == [1, 2, 3, 4, 5]
    assert client.gather(client.map(operator.add, [1, 2], (3, 4))) == [4, 6]
    assert client.gather(client.map(divmod, (x for x in (7, 8)), [2, 3])) == [(3, 1), (2, 2)]
    assert client.gather(client.map(int, ["11", "12"], base=3)) == [4, 5]
    level = client.map(increment, range(8))
    while len(level) > 1:
        level = client.map(operator.add, level[::2], level[1::2])
    assert level[0].result() == 36


def test_futures_are_arguments_at_any_depth(client: Client) -> None:
    one, two = client.submit(increment, 0), client.submit(increment, 1)
    assert client.submit(operator.add, one, two).result() == 3
    assert client.submit(sum, [one, two, 3]).result() == 6
    boxed = client.submit(lambda box, named: box.content["k"][0] + named, Box({"k": (one,)}), named=two)
    assert boxed.result() == 3
    assert client.submit(sum, client.map(increment, range(4))).result() == 10


def test_shapes_are_gathered_as_they_are(client: Client) -> None:
    one, bad = client.submit(increment, 0), client.submit(fail, "on purpose")
    assert client.gather({"a": [one, (one,)]}) == {"a": [1, (1,)]}
    assert client.gather([one, bad, one], errors="skip") == [1, 1]
    with pytest.raises(ValueError, match="on purpose"):
        client.gather([one, bad])


def test_a_failure_tells_where_and_why(client: Client) -> None:
    bad = client.submit(fail, "on purpose")
    above = client.submit(increment, bad)
    wait([bad, above], timeout=PATIENCE_SECONDS)
    assert (bad.status, above.status) == ("error", "error")
    with pytest.raises(ValueError, match="on purpose") as raised:
        above.result()
    notes = "\n".join(raised.value.__notes__)
    assert f"task {bad.key}" in notes
    assert "attempt 1" in notes
    assert "raise ValueError(text)" in notes
    assert isinstance(bad.exception(), ValueError)
    assert "raise ValueError(text)" in (bad.traceback() or "")


def test_retries_and_a_retry_later(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    assert client.submit(count_runs, path, 3, retries=2).result(PATIENCE_SECONDS) == 3
    ready = str(tmp_path / "ready")
    future = client.submit(fail_unless, ready, 5)
    above = client.submit(increment, future)
    with pytest.raises(FileNotFoundError):
        above.result(PATIENCE_SECONDS)
    Path(ready).touch()
    above.retry()
    assert above.result(PATIENCE_SECONDS) == 6
    assert future.result(PATIENCE_SECONDS) == 5


def test_keys_name_tasks(client: Client) -> None:
    future = client.submit(increment, 1, key="mine")
    assert future.key == "mine"
    assert client.submit(increment, 5, key="mine") == future
    assert client.submit(increment, 1, pure=True) == client.submit(increment, 1, pure=True)
    assert client.options(label="told").submit(increment, 1).key.startswith("told-")


def test_values_are_everyones_own(client: Client) -> None:
    given = np.zeros(100_000)
    scattered = client.scatter(given)
    first, second = client.submit(set_first, scattered), client.submit(set_first, given)
    assert client.submit(np.sum, scattered).result() == 0
    assert (given[0], first.result()[0], second.result()[0]) == (0, 7, 7)
    made = first.result()
    made[1] = 9  # the caller's own copy, to be written to
    assert first.result()[1] == 0
    assert client.submit(np.sum, [first, second]).result() == 14
    assert client.gather(client.scatter({"a": 1, "b": [2]})) == {"a": 1, "b": [2]}


def test_waiting_for_several(client: Client) -> None:
    futures = client.map(increment, range(4))
    done, not_done = wait(futures, timeout=PATIENCE_SECONDS)
    assert (len(done), len(not_done)) == (4, 0)
    assert sorted(value for _, value in as_completed(futures, with_results=True)) == [1, 2, 3, 4]
    assert len(list(as_completed([client.submit(increment, 1), client.submit(fail, "on purpose")]))) == 2
    called: SimpleQueue[Future] = SimpleQueue()
    futures[2].add_done_callback(called.put)
    assert called.get(timeout=PATIENCE_SECONDS) == futures[2]


def test_lazy_values_and_graphs(client: Client) -> None:
    one = delayed(increment)(0)
    total = delayed(sum)([one, one + 1, delayed(increment)(one)])
    assert compute(total, {"k": one}, client=client) == (5, {"k": 1})
    (kept,) = persist(one, client=client)
    assert (kept + 1).compute(client=client) == 2
    assert client.get({"x": 1, "y": (increment, "x"), "z": (sum, ["x", "y", (increment, 2)])}, ["z", "y"]) == [6, 2]
    assert client.gather(client.get({"x": (increment, 1)}, "x", sync=False)) == 2


def test_what_cannot_be_pickled_says_so(client: Client) -> None:
    with pytest.raises(SerializationError, match="lock"):
        client.submit(print, {"a": threading.Lock()})
    with pytest.raises(SerializationError, match="lock"):
        client.submit(threading.Lock).result(PATIENCE_SECONDS)


def test_coroutine_functions_run(client: Client) -> None:
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    assert client.gather(client.map(double, [1, 2])) == [2, 4]


def test_a_large_function_travels_too(client: Client) -> None:
    table = np.arange(50_000)
    assert client.submit(lambda at: int(table[at]), 123).result() == 123


def test_what_is_fired_and_forgotten_runs(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "touched"
    fire_and_forget(client.submit(touch, str(path)))
    until(path.exists, "the task has run")


def test_a_sequence_larger_than_one_part(client: Client, engine: str) -> None:
    count = 300 if engine in FOREIGN else 3000
    assert client.submit(sum, client.map(increment, iter(range(count)))).result() == sum(range(1, count + 1))


# ------------------------------------------------------------------ side by side


def test_a_task_that_waits_for_nobody_is_cancelled(client: Client, engine: str, tmp_path: Path) -> None:
    only(engine, SIDE_BY_SIDE, "a task has ended when submit returns")
    with Gate(tmp_path / "gate") as gate:
        blocking = client.submit(wait_at, gate.path)
        above = client.submit(increment, blocking)
        gate.wait_until_reached()
        assert (blocking.status, above.done()) == ("pending", False)
        with pytest.raises(TimeoutError):
            above.result(timeout=0.01)
        assert above.cancel()
        assert above.status == "cancelled"
        with pytest.raises(CancelledError):
            above.result(PATIENCE_SECONDS)
        last = client.submit(increment, above)
        assert isinstance(last.exception(PATIENCE_SECONDS), CancelledError)
        gate.open()
        assert blocking.result(PATIENCE_SECONDS) is None
        above.cancel()  # too late: nothing comes of it
        blocking = client.submit(increment, 1)
        above = client.submit(increment, blocking)
        assert above.result(PATIENCE_SECONDS) == 3


def test_tasks_run_side_by_side(client: Client, engine: str, tmp_path: Path) -> None:
    only(engine, SIDE_BY_SIDE, "one task at a time")
    with Gate(tmp_path / "one") as one, Gate(tmp_path / "two") as two:
        futures = client.map(wait_at, [one.path, two.path], [1, 2])
        one.wait_until_reached()
        two.wait_until_reached()
        one.open()
        assert next(as_completed(futures)) == futures[0]
        two.open()
        assert client.gather(futures) == [1, 2]


# ------------------------------------------------------------------ tasks that submit tasks


def test_tasks_wait_for_their_children(client: Client, engine: str) -> None:
    assert client.submit(fibonacci, 7).result(PATIENCE_SECONDS) == 13
    assert client.gather(client.map(dive, [3 * SLOTS] * (2 * SLOTS)), timeout=PATIENCE_SECONDS) == [3 * SLOTS] * (
        2 * SLOTS
    )


def test_futures_come_back_inside_values(client: Client, engine: str) -> None:
    only(engine, LOCAL, "its tasks have clients of their own")
    box = client.submit(hand_back, 1).result(PATIENCE_SECONDS)
    assert box.content[0].result(PATIENCE_SECONDS) == 2
    nested = client.submit(hand_back, 4)
    assert client.submit(lambda box: box.content[0].result(), nested).result(PATIENCE_SECONDS) == 5


def test_a_task_knows_itself(client: Client, engine: str) -> None:
    only(engine, LOCAL, "its tasks run where nobody asks")

    def look() -> tuple[str, int]:
        task = current()
        task.progress(0.5, "half")
        return task.key, task.attempt

    future = client.submit(look)
    assert future.result() == (future.key, 1)
    with pytest.raises(ClusterError, match="does not run inside one"):
        current()


def test_where_tasks_have_clients_of_their_own_no_future_passes(client: Client, engine: str) -> None:
    only(engine, FOREIGN, "its tasks have its own client")
    told = f"a task on {engine.removesuffix('-client')}://.* has a client of its own, and cannot"
    with pytest.raises(ClusterError, match=f"{told} return its futures"):
        client.submit(hand_back, 1).result(PATIENCE_SECONDS)
    scattered = client.scatter({"a": client.submit(increment, 1)})
    with pytest.raises(ClusterError, match=f"{told} use a future that lies in a value"):
        client.submit(len, scattered).result(PATIENCE_SECONDS)
    assert "no open Client" in client.submit(ask_in_a_thread).result(PATIENCE_SECONDS)


def test_what_a_task_fires_and_forgets_runs(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "touched"
    client.submit(fire, str(path)).result(PATIENCE_SECONDS)
    until(path.exists, "the task has run")


# ------------------------------------------------------------------ limits


def test_what_an_engine_cannot_do_names_it_and_who_can(client: Client, engine: str) -> None:
    only(engine, WITHOUT_WORKERS, "it can all of that")
    future = client.submit(increment, 1)
    name = engine.removesuffix("-client")
    for asked in (
        lambda: client.submit(Box, 1, actor=True),
        lambda: client.run(increment, 1),
        future.explain,
        future.story,
        future.logs,
        client.scheduler_info,
        lambda: client.who_has(future),
        lambda: client.publish("name", 1),
        lambda: Lock("name", client=client).acquire(),
        lambda: client.replicate(future),
        client.restart,
    ):
        with pytest.raises(ClusterError, match=f"the engine '{name}.*cannot|the engine '{name}.*there is no"):
            asked()
    if engine == "inline":
        assert client.submit(increment, 1, resources={"GPU": 1}, workers="anna").result() == 2
        assert client.options(timeout_seconds=5).submit(increment, 1).result() == 2
    else:
        with pytest.raises(ClusterError, match="cannot hold to resources="):
            client.submit(increment, 1, resources={"GPU": 1})
        with pytest.raises(ClusterError, match="cannot hold to timeout_seconds="):
            client.options(timeout_seconds=5).map(increment, [1])


def test_a_future_of_another_client_is_refused(client: Client, engine: str) -> None:
    only(engine, WITHOUT_WORKERS, "clients of a cluster share futures")
    with Client(engine="inline") as other:
        future = other.submit(increment, 1)
        with pytest.raises(ValueLost, match="does not know the task"):
            client.submit(increment, future).result(PATIENCE_SECONDS)
        with pytest.raises(ClusterError, match="another client"):
            client.gather(future)


def test_nothing_is_kept_that_nobody_wants(client: Client, engine: str, tmp_path: Path) -> None:
    only(engine, WITHOUT_WORKERS, "its scheduler is looked at elsewhere")
    bad = client.submit(fail, "on purpose")
    futures = [client.submit(sum, client.map(increment, range(10))), client.submit(increment, bad), bad]
    futures.append(client.submit(np.sum, client.scatter(np.arange(20_000))))
    wait(futures)
    with pytest.raises(ValueError, match="on purpose"):
        futures[1].retry()
        futures[1].result()
    del futures, bad
    wait(client.submit(fail, "the last failure, whose frames are kept"))
    gc.collect()
    desk: Any = client._desk  # type: ignore[attr-defined]
    client._driver.flush()
    until(lambda: client._driver.flush() or not desk._tasks, "the desk has let everything go")
    assert not desk._running
    assert not desk._ready_of


def test_after_its_end_a_client_says_that_it_has_ended(engine: str) -> None:
    only(engine, ("inline", "threads"), "it is tested with the others of its kind")
    with Client(engine=engine) as client:
        future = client.submit(increment, 1)
        assert future.result() == 2
    assert client.status == "closed"
    with pytest.raises(ConnectionLost, match="closed"):
        client.submit(increment, 1)
