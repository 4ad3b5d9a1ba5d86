"""The engines that run tasks in the program's own process: whose thread, in what order, and under a debugger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from cluster import (
    AsyncClient,
    CancelledError,
    Client,
    ClusterError,
    LocalCluster,
    ValueLost,
    current,
    get_client,
    wait,
)
from tests.processes.whole_cluster import Gate, wait_at

PATIENCE_SECONDS = 60.0


class Journal:
    """Pickles as itself: what tasks of this process have done."""

    here: list[Any] = []  # noqa: RUF012  # all of the process's


def note(value: Any) -> Any:
    Journal.here.append((value, threading.current_thread().name))
    return value


def noted() -> list[Any]:
    found, Journal.here[:] = Journal.here[:], []
    return [value for value, _ in found]


def fail_at(x: int) -> float:
    return 1 / x


def note_with_child(value: int) -> int:
    child = get_client().submit(note, value + 100)
    note(value)
    return int(child.result())


# ------------------------------------------------------------------ inline


def test_inline_runs_in_the_calling_thread_and_in_order() -> None:
    noted()
    with Client(engine="inline") as client:
        future = client.submit(note, 1)
        assert future.done()
        client.map(note, [2, 3])
        client.submit(note, client.submit(note, 4))
        threads = {thread for _, thread in Journal.here}
        assert (noted(), threads) == ([1, 2, 3, 4, 4], {threading.current_thread().name})
        assert client.gather(client.map(note_with_child, [1, 2])) == [101, 102]
        assert noted() == [101, 1, 102, 2]


def test_inline_runs_what_a_generator_gives_as_it_comes() -> None:
    noted()

    def items() -> Any:
        yield from range(1000)

    with Client(engine="inline") as client:
        assert client.gather(client.map(note, items())) == list(range(1000))
        assert noted() == list(range(1000))


def test_inline_shows_the_frames_of_the_last_failure() -> None:
    with Client(engine="inline") as client:
        client.submit(fail_at, 0)
        future = client.submit(fail_at, 0)
        with pytest.raises(ZeroDivisionError) as raised:
            future.result()
        frames = [frame for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
        assert frames[-1].f_code is fail_at.__code__
        assert frames[-1].f_locals == {"x": 0}


PROGRAM = """
from cluster import Client

def half(x):
    breakpoint()
    return x / 2

with Client(engine="inline") as client:
    future = client.submit(half, 42)
    print("gave", future.result())
    failed = client.submit(lambda text: int(text), "seven")
    try:
        client.debug(failed)
    except ValueError as error:
        print("raised", error)
"""


def test_a_debugger_stops_in_a_task(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    finished = subprocess.run(
        [sys.executable, program],
        input="p 'x is', x\nx = 10\nc\np 'text is', text\nq\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert finished.returncode == 0, finished.stderr
    for line in ("('x is', 42)", "gave 5.0", "('text is', 'seven')", "raised invalid literal"):
        assert line in finished.stdout


def test_ctrl_c_in_an_inline_task_comes_to_the_caller() -> None:
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    noted()
    with Client(engine="inline") as client:
        with pytest.raises(KeyboardInterrupt):
            client.submit(interrupt)
        assert client.submit(note, 1).result() == 1
        with pytest.raises(KeyboardInterrupt):
            client.gather(client.map(lambda x: interrupt() if x == 2 else note(x), range(4)))
        assert client.submit(note, 5).result() == 5
        assert noted()[:3] == [1, 0, 1]


def dive(depth: int) -> int:
    return 0 if depth == 0 else 1 + int(get_client().submit(dive, depth - 1).result())


def test_tasks_too_deep_for_the_stack_fail_and_do_no_harm() -> None:
    with Client(engine="inline") as client:
        assert client.submit(dive, 20).result() == 20
        with pytest.raises(RecursionError, match='engine="threads" needs none'):
            client.submit(dive, 1000).result()
        assert client.submit(dive, 20).result() == 20
    with Client(engine="threads", slots=1) as client:
        assert client.submit(dive, 150).result(PATIENCE_SECONDS) == 150


def test_inline_serves_many_threads() -> None:
    with Client(engine="inline") as client, ThreadPoolExecutor(4) as pool:
        sums = pool.map(lambda start: sum(client.gather(client.map(abs, range(start, start + 50)))), range(20))
        assert list(sums) == [sum(range(start, start + 50)) for start in range(20)]


# ------------------------------------------------------------------ threads


def test_threads_share_the_process() -> None:
    with Client(engine="threads", slots=2) as client:
        assert client.gather(client.map(lambda _: os.getpid(), range(4))) == [os.getpid()] * 4


def test_priorities_and_the_order_of_submission_hold(tmp_path: Path) -> None:
    noted()
    with Client(engine="threads", slots=1) as client, Gate(tmp_path / "gate") as gate:
        blocking = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        futures = [client.submit(note, value, priority=value // 2) for value in range(6)]
        gate.open()
        wait([blocking, *futures])
    assert noted() == [4, 5, 2, 3, 0, 1]


def test_a_task_that_waits_lets_others_have_its_slot(tmp_path: Path) -> None:
    noted()
    with Client(engine="threads", slots=1) as client, Gate(tmp_path / "gate") as gate:
        # The second and third are ready before the children of the first are; children go first all the same.
        blocking = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        futures = client.map(note_with_child, range(3))
        gate.open()
        wait([blocking])
        assert client.gather(futures) == [100, 101, 102]
    order = noted()
    assert [value for value in order if value < 100] == [0, 1, 2]
    assert [value for value in order if value >= 100] == [100, 101, 102]


def test_a_cancelled_task_that_runs_can_see_it(tmp_path: Path) -> None:
    saw: SimpleQueue[bool] = SimpleQueue()
    Journal.here[:] = [saw]

    def look(path: str) -> None:
        wait_at(path)
        Journal.here[0].put(current().cancelled)

    with Client(engine="threads", slots=1) as client, Gate(tmp_path / "gate") as gate:
        future = client.submit(look, gate.path)
        gate.wait_until_reached()
        assert future.cancel()
        assert isinstance(future.exception(), CancelledError)
        gate.open()
        assert saw.get(timeout=PATIENCE_SECONDS)
        Journal.here.clear()
        assert client.submit(abs, -1).result() == 1  # its slot is free again


def test_a_large_argument_that_was_changed_fails_its_task(tmp_path: Path) -> None:
    with Client(engine="threads", slots=1) as client, Gate(tmp_path / "gate") as gate:
        blocking = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        changed, copied = np.zeros(20_000), np.zeros(20_000)
        late = client.submit(np.sum, changed)
        safe = client.options(copy=True).submit(np.sum, copied)
        changed[0] = copied[0] = 1
        gate.open()
        with pytest.raises(ValueLost, match="changed") as raised:
            late.result()
        assert "copy=True" in "\n".join(raised.value.__notes__)
        assert safe.result() == 0
        assert blocking.done()


def test_a_client_closes_while_tasks_run(tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        with Client(engine="threads", slots=1) as client:
            futures = [client.submit(wait_at, gate.path), client.submit(note_with_child, 1)]
            gate.wait_until_reached()
        assert futures[1].status == "lost"
        gate.open()
        for thread in threading.enumerate():
            if thread.name == "cluster-task":
                thread.join(PATIENCE_SECONDS)
    assert "cluster-task" not in [thread.name for thread in threading.enumerate()]


# ------------------------------------------------------------------ choosing


def test_what_is_no_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="no engine 'thread'; there are cluster, dask, inline"):
        Client(engine="thread")
    with pytest.raises(TypeError, match="takes no address"):
        Client("tcp://127.0.0.1:1", engine="threads")
    with pytest.raises(TypeError, match="blocks; on an event loop"):
        Client(engine="threads", asynchronous=True)
    with pytest.raises(TypeError, match=r"Client\(engine='inline'\), not AsyncClient"):
        AsyncClient(engine="inline")
    with pytest.raises(ValueError, match="one task at a time, not 3"):
        Client(engine="inline", slots=3)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Client(engine="threads", slots=0)
    with pytest.raises(ValueError, match="needs the scheduler's address"):
        Client(engine="dask")
    with pytest.raises(ClusterError, match="no Dask scheduler answers at tcp://"):
        Client("dask://127.0.0.1:1", timeout=0.2)


def test_the_client_of_a_task_is_the_one_that_submitted_it() -> None:
    with Client(engine="inline") as older, Client(engine="threads", slots=1) as newer:
        assert get_client() is newer
        assert older.submit(lambda: get_client().name).result() == older.name
        assert newer.submit(lambda: get_client().name).result() == newer.name


def test_an_engine_works_inside_a_task_of_a_cluster() -> None:
    def below(engine: str) -> tuple[list[int], str, bool]:
        with Client(engine=engine) as inner:
            where = inner.submit(lambda: (current().worker, get_client().name)).result()
            return inner.gather(inner.map(abs, [-1, -2])), where[0], where[1] == inner.name

    with LocalCluster(slots=1) as local, Client(local) as client:
        assert client.submit(below, "inline").result() == ([1, 2], "inline", True)
        assert client.submit(below, "threads").result() == ([1, 2], "threads", True)
