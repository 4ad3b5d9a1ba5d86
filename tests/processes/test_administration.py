"""What a client does to a cluster as a whole: functions run aside, modules, copies, workers that go, restarts."""

from __future__ import annotations

import os
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import CancelledError, Client, ClusterError, LocalCluster
from cluster.versions import package_versions
from tests.processes.whole_cluster import Gate, wait_at

Gates = Callable[[int], list[Gate]]

MODULE = """
def answer():
    return {answer}
"""


def import_answer(module: str) -> int:
    value: int = __import__(module).answer()
    return value


def raise_here(text: str) -> None:
    raise KeyError(text)


def end_here() -> None:
    os._exit(7)


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    """Makes so many gates."""
    with ExitStack() as stack:
        yield lambda count: [stack.enter_context(Gate(tmp_path / f"gate-{number}")) for number in range(count)]


@pytest.fixture
def two_workers() -> Iterator[Client]:
    with LocalCluster(n_workers=2, slots=1) as cluster, Client(cluster) as client:
        yield client


# --------------------------------------------------------------------------- run


def test_run_answers_while_every_slot_is_busy(client: Client, gates: Gates) -> None:
    client.wait_for_workers(1)
    at_each_slot = gates(sum(client.nthreads().values()))
    busy = client.map(wait_at, [gate.path for gate in at_each_slot])
    for gate in at_each_slot:
        gate.wait_until_reached()
    found = client.run(os.getppid)
    assert list(found) == list(client.nthreads())
    assert client.run(lambda *numbers, factor: sum(numbers) * factor, 1, 2, factor=10) == dict.fromkeys(found, 30)
    for gate in at_each_slot:
        gate.open()
    client.gather(busy)


def test_what_a_run_function_raises_comes_back(client: Client) -> None:
    client.wait_for_workers(1)
    with pytest.raises(KeyError, match="on purpose") as caught:
        client.run(raise_here, "on purpose")
    assert any("was run on worker tcp://" in note for note in caught.value.__notes__)
    assert all(type(error) is KeyError for error in client.run(raise_here, "x", on_error="return").values())
    assert client.run(raise_here, "x", on_error="ignore") == {}


def test_a_run_function_that_ends_its_process_or_returns_too_much_says_so(client: Client) -> None:
    with pytest.raises(ClusterError, match="exit status 7"):
        client.run(end_here)
    with pytest.raises(ClusterError, match="64 KiB"):
        client.run(bytes, 100_000)
    with pytest.raises(ClusterError, match="no worker is called 'nobody'"):
        client.run(os.getpid, workers="nobody")
    with pytest.raises(ClusterError, match="gather them"):
        client.run(abs, client.submit(abs, -1))


def test_a_run_leaves_no_process(client: Client) -> None:
    (process_id,) = client.run(os.getpid).values()
    psutil.wait_procs([psutil.Process(process_id)] if psutil.pid_exists(process_id) else [], timeout=10)
    assert not psutil.pid_exists(process_id)


# --------------------------------------------------------------------------- modules


def test_an_uploaded_module_replaces_an_older_one_and_reaches_later_workers(tmp_path: Path) -> None:
    module = tmp_path / "uploaded_answer.py"
    with LocalCluster(n_workers=1, slots=2) as cluster, Client(cluster) as client:
        for answer in (1, 2):
            module.write_text(MODULE.format(answer=answer))
            client.upload_file(module)
            assert set(client.gather(client.map(import_answer, ["uploaded_answer"] * 20))) == {answer}
        cluster.scale(2)
        client.wait_for_workers(2, timeout=10)
        assert set(client.run(import_answer, "uploaded_answer").values()) == {2}


def test_an_uploaded_package_is_unpacked(client: Client, tmp_path: Path) -> None:
    package = tmp_path / "uploaded_package"
    package.mkdir()
    (package / "__init__.py").write_text("from uploaded_package.inner import answer")
    (package / "inner.py").write_text(MODULE.format(answer=42))
    client.upload_package(package)
    assert client.submit(import_answer, "uploaded_package").result() == 42
    with pytest.raises(ValueError, match="no package"):
        client.upload_package(tmp_path)
    with pytest.raises(ValueError, match="none of"):
        client.upload_file(Path(__file__).parents[2] / "LICENSE")


def test_an_archive_that_leaves_its_folder_is_refused(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside.py", "")
    with pytest.raises(ClusterError, match="outside of itself"):
        client.upload_file(path)


# --------------------------------------------------------------------------- copies, workers that go


def test_replicate_copies_to_as_many_as_asked(two_workers: Client) -> None:
    futures = two_workers.map(str, range(10))
    large = two_workers.submit(bytes, 300_000)
    two_workers.replicate([futures, large])
    assert all(len(addresses) == 2 for addresses in two_workers.who_has([*futures, large]).values())
    with pytest.raises(ClusterError, match="copies on 3 workers"):
        two_workers.replicate(large, n=3)
    with pytest.raises(ClusterError, match="no value"):
        two_workers.replicate(two_workers.submit(raise_here, "x"))
    with pytest.raises(ValueError, match="at least 1"):
        two_workers.replicate(large, n=0)


def test_a_retired_worker_hands_on_what_only_it_holds(two_workers: Client) -> None:
    futures = two_workers.map(str, range(200))
    large = two_workers.submit(bytes, 300_000)
    two_workers.gather(futures)
    large.result()
    first, second = two_workers.nthreads()
    held = two_workers.has_what()
    assert {key for keys in held.values() for key in keys} == {future.key for future in (*futures, large)}
    assert two_workers.retire_workers([first]) == [first]
    assert list(two_workers.nthreads()) == [second]
    assert two_workers.gather(futures) == list(map(str, range(200)))
    assert large.result() == bytes(300_000)
    assert all(addresses == [second] for addresses in two_workers.who_has([*futures, large]).values())
    with pytest.raises(ClusterError, match="no other worker would be left"):
        two_workers.retire_workers()
    assert two_workers.submit(abs, -1).result() == 1


def test_a_retired_worker_ends_its_running_task_first(two_workers: Client, gates: Gates) -> None:
    (gate,) = gates(1)
    held = two_workers.submit(wait_at, gate.path, "held")
    gate.wait_until_reached()
    busy = next(address for address, keys in two_workers.processing().items() if keys)
    assert two_workers.processing(busy) == {busy: [held.key]}
    info = two_workers.scheduler_info()["workers"]
    retired: list[Any] = []
    thread = threading.Thread(target=lambda: retired.append(two_workers.retire_workers(info[busy]["name"])))
    thread.start()
    others = two_workers.map(abs, range(-50, 0))  # the other worker does these meanwhile
    assert two_workers.gather(others) == list(range(50, 0, -1))
    gate.open()
    thread.join(10)
    assert retired == [[busy]]
    assert held.result() == "held"


def test_restart_cancels_tasks_and_keeps_values(client: Client, gates: Gates) -> None:
    (gate,) = gates(1)
    kept = client.submit(str, 5)
    kept.result()
    before = set(client.gather(client.map(lambda _: os.getpid(), range(20))))
    busy = client.map(wait_at, [gate.path] * 20)
    gate.wait_until_reached()
    client.restart()
    for future in busy:
        with pytest.raises(CancelledError):
            future.result(timeout=10)
    assert kept.result() == "5"
    assert not before & set(client.gather(client.map(lambda _: os.getpid(), range(20))))


def test_versions_of_all_sides(client: Client) -> None:
    versions = client.get_versions(check=True, packages=["pytest"])
    (worker,) = versions["workers"].values()
    assert worker == versions["client"]
    assert worker["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert worker["pytest"] == pytest.__version__
    assert versions["scheduler"]["cluster"] == worker["cluster"]


def test_a_distribution_is_found_however_its_name_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Half_Written.name-1.5.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    versions = package_versions(["half-written-name", "HALF.written_name", "half-written"])
    assert list(versions.values())[2:] == ["1.5", "1.5", None]


def test_waiting_for_workers(client: Client) -> None:
    client.wait_for_workers(1)
    with pytest.raises(TimeoutError, match="1 of 5 workers"):
        client.wait_for_workers(5, timeout=0.05)
