"""What a newcomer gets wrong is a clear error at the call, and what a task does to its slot hurts nobody else."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster import Client, LocalCluster
from cluster.errors import CancelledError, RemoteError, SerializationError
from tests.processes.whole_cluster import Gate, wait_at

pytestmark = pytest.mark.timeout(60)


def inc(x: int) -> int:
    return x + 1


def fail(x: int) -> int:
    raise ValueError(f"no {x}")


def count(*args: Any, **kwargs: Any) -> int:
    return len(args) + len(kwargs)


OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a key that is no text": ({"key": 5}, TypeError, "key must be text, not int"),
    "no key at all": ({"key": ""}, ValueError, "1 to 1000 characters, not 0"),
    "a huge key": ({"key": "k" * 10_000_000}, ValueError, "1 to 1000 characters, not 10000000"),
    "a key that cannot be sent": ({"key": "\ud800"}, ValueError, "surrogates"),
    "a label that is no text": ({"label": b"x"}, TypeError, "label must be text, not bytes"),
    "a huge label": ({"label": "k" * 20_000_000}, ValueError, "label must have"),
    "a list of resources": ({"resources": ["GPU"]}, TypeError, "resources must be a mapping"),
    "endless resources": ({"resources": {"GPU": float("inf")}}, ValueError, "finite"),
    "a worker's number": ({"workers": 5}, TypeError, "names or addresses of workers, not int"),
    "a worker's bytes": ({"workers": b"one"}, TypeError, "names or addresses of workers, not int"),
    "too many workers": ({"workers": ["w"] * 100_000}, ValueError, "names 100000 workers"),
    "huge priority": ({"priority": 2**70}, ValueError, "priority must lie between"),
    "huge retries": ({"retries": 2**70}, ValueError, "retries must lie between"),
    "half a retry": ({"retries": 0.5}, TypeError, "retries must be a whole number"),
    "an endless limit": ({"timeout_seconds": float("inf")}, ValueError, "finite"),
    "a limit as text": ({"timeout_seconds": "5"}, TypeError, "timeout_seconds must be a number"),
}


@pytest.mark.parametrize("what", list(OPTIONS))
def test_an_option_that_makes_no_sense_is_an_error_at_the_call_and_nothing_else(client: Client, what: str) -> None:
    options, kind, said = OPTIONS[what]
    before = client.submit(inc, 0)
    with pytest.raises(kind, match=said):
        client.options(**options).submit(inc, 1)
    if not options.keys() & {"label", "timeout_seconds"}:
        with pytest.raises(kind, match=said):
            client.submit(inc, 1, **options)
        with pytest.raises(kind, match=said):
            client.map(inc, [1], **options)
    assert [before.result(10), client.submit(inc, 1).result(10)] == [1, 2]


def test_more_small_arguments_than_fit_a_frame_are_an_error_at_the_call(client: Client) -> None:
    pieces = [os.urandom(60_000) for _ in range(300)]
    before = client.submit(inc, 0)
    with pytest.raises(SerializationError, match="Pass them as one list"):
        client.submit(count, *pieces)
    with pytest.raises(SerializationError, match="Pass them as one list"):
        client.submit(count, **{f"k{at}": piece for at, piece in enumerate(pieces)})
    with pytest.raises(SerializationError, match="Pass them as one list"):
        client.map(count, *[[piece] for piece in pieces])
    assert before.result(10) == 1
    assert client.submit(len, pieces).result(10) == 300
    assert client.submit(count, *range(100_000)).result(10) == 100_000


def test_what_cannot_be_pickled_is_named_where_it_stands(client: Client) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"generator.*list first"):
        client.submit(list, (x for x in range(3)))
    with pytest.raises(SerializationError, match=r"closure.*lock"):
        client.submit(lambda: lock.locked())
    with pytest.raises(SerializationError, match=r"args\[0\]\['a'\]\[1\]"):
        client.submit(count, {"a": [0, lock]})
    with pytest.raises(SerializationError, match="result is a generator"):
        client.submit(lambda: (x for x in range(3))).result(10)
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(SerializationError, match="nested too deeply"):
        client.submit(len, nested)
    while nested:
        nested = nested[0]  # its destruction would recurse, too
    assert client.submit(inc, 1).result(10) == 2


class LoadsNowhere:
    def __reduce__(self) -> Any:
        return fail, (7,)


def make_what_loads_nowhere() -> LoadsNowhere:
    return LoadsNowhere()


def make_what_loads_nowhere_at(index: int, bad: int) -> Any:
    return LoadsNowhere() if index == bad else index


def test_a_value_that_cannot_be_loaded_fails_its_readers_alone(client: Client) -> None:
    with pytest.raises(ValueError, match="no 7"):
        client.submit(count, LoadsNowhere()).result(10)
    made = client.submit(make_what_loads_nowhere)
    with pytest.raises(ValueError, match="no 7"):
        client.submit(count, made).result(10)
    with pytest.raises(ValueError, match="no 7") as caught:
        made.result(10)
    assert "in this process, while a value that was asked for was loaded" in caught.value.__notes__[0]
    good = client.map(inc, range(3))
    with pytest.raises(ValueError, match="no 7") as caught:
        client.gather([*good, made], timeout=10)
    assert "while value 3 of those that were asked for was loaded" in caught.value.__notes__[0]
    sequence = client.map(make_what_loads_nowhere_at, range(5), [3] * 5)
    with pytest.raises(ValueError, match="no 7") as caught:
        client.gather(sequence, timeout=10)
    assert "while value 3 of those" in caught.value.__notes__[0]
    assert client.gather(client.map(inc, range(10)), timeout=10) == list(range(1, 11))


def recurse(depth: int) -> int:
    return recurse(depth + 1)


def test_errors_of_every_kind_come_back_readable(client: Client) -> None:
    with pytest.raises(RecursionError):
        client.submit(recurse, 0).result(10)
    with pytest.raises(MemoryError):
        client.submit(bytearray, 1 << 50).result(10)
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        client.submit(signal.raise_signal, signal.SIGINT).result(10)
    with pytest.raises(TypeError, match="retires"):
        client.submit(inc, 1, retires=3).result(10)
    error = client.submit(lambda: (_ for _ in ()).throw(ValueError("x" * 20_000_000))).exception(10)
    assert 0 < len(str(error)) < 1_000_000


def test_waiting_takes_any_timeout(client: Client) -> None:
    future = client.submit(inc, 1)
    assert future.result(1e30) == client.gather([future], timeout=float("inf"))[0] == 2
    with pytest.raises(TypeError, match="function is needed"):
        future.add_done_callback(5)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- tasks that harm their slot


def close_output() -> int:
    os.close(1)
    os.close(2)
    return os.getpid()


def close_streams() -> int:
    sys.stdout.close()
    sys.stderr.close()
    return os.getpid()


def redirect(path: str) -> int:
    target = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(target, 1)
    return os.getpid()


def say(text: str) -> int:
    print(text)
    print(text, file=sys.stderr)
    return os.getpid()


def test_a_task_that_closes_its_output_leaves_that_of_others_alone(client: Client, tmp_path: Path) -> None:
    target = tmp_path / "redirected"
    for harm, arguments in ((close_output, ()), (close_streams, ()), (redirect, (str(target),))):
        slot = client.submit(harm, *arguments).result(10)
        assert slot in client.gather([client.submit(say, "later") for _ in range(20)], timeout=10)
    assert target.read_text() == ""


def fork_and_come_back() -> int:
    return os.fork()


def test_a_task_that_forks_ends_once(client: Client) -> None:
    assert client.submit(fork_and_come_back).result(10) > 0
    assert client.gather(client.map(inc, range(100)), timeout=10) == list(range(1, 101))


# --------------------------------------------------------------------------- long chains

LINKS = 100_000


def test_a_failure_at_the_head_of_a_long_chain_reaches_its_end(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        head = client.submit(wait_at, gate.path, 1)
        failing = client.submit(fail, head)
        for _ in range(LINKS):
            failing = client.submit(inc, failing)
        gate.wait_until_reached()
        gate.open()
        with pytest.raises(ValueError, match="no 1"):
            failing.result(20)


def test_a_cancel_at_the_head_of_a_long_chain_reaches_its_end(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        head = last = client.submit(wait_at, gate.path, 1)
        for _ in range(LINKS):
            last = client.submit(inc, last)
        gate.wait_until_reached()
        head.cancel()
        with pytest.raises(CancelledError):
            last.result(20)
        assert client.submit(inc, 1).result(10) == 2


def test_modules_in_the_current_folder_named_like_the_libraries_ones_break_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("socket", "asyncio", "struct", "heapq"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not the one of the library')\n")
    (tmp_path / "of_my_own.py").write_text("NUMBER = 42\n")
    monkeypatch.chdir(tmp_path)

    def use() -> Any:
        import of_my_own  # type: ignore[import-not-found]

        return of_my_own.NUMBER

    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        assert client.submit(use).result(timeout=30) == 42
