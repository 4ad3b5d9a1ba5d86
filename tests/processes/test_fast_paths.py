"""Without the fast paths a worker does the same by plain means, because the settings say so or the system lacks one."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import Client, LocalCluster, get_client
from cluster.daemon import slot_ends
from cluster.errors import CancelledError, TaskDied
from cluster.wire import messages
from tests.processes.agent_harness import PlayedScheduler, Worker, alive, function_message, grant, until
from tests.processes.whole_cluster import Gate, hold_the_lock_at, wait_at


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", "0")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


def look() -> tuple[bool, bool, int]:
    """Whether this process is a fresh interpreter, with a group of its own, and who started it."""
    fresh = "cluster.daemon.slot_process" in Path("/proc/self/cmdline").read_text().split("\0")
    return fresh, os.getpgrp() == os.getpid(), os.getppid()


@pytest.mark.parametrize("fast", [pytest.param(True, marks=pytest.mark.fast_path("no slot is forked")), False])
def test_the_setting_decides_how_slots_are_made(
    scheduler: PlayedScheduler, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", str(fast))
    with Worker(scheduler.address, "--slots", "1") as worker:
        scheduler.send(function_message(look), grant(1, [()]))
        [data] = scheduler.done(1).values()
        starter, slot = worker.descendants()
        assert pickle.loads(data) == (not fast, True, starter)
        assert os.getpgid(slot) == slot


def test_a_slot_is_given_one_task_at_a_time(scheduler: PlayedScheduler, gate: Gate, plain: None) -> None:
    with Worker(scheduler.address, "--slots", "1"):
        scheduler.send(function_message(lambda path: hold_the_lock_at(path) if path else ""), grant(1, [("",)] * 3))
        scheduler.done(3)
        scheduler.send(grant(2, [(gate.path,), *[("",)] * 99]))
        gate.wait_until_reached()
        scheduler.send(messages.Recall(1, 1000))
        assert sorted(scheduler.expect(messages.Recalled).names[1::2]) == list(range(1, 100))
        gate.open()
        scheduler.done(1)


@pytest.mark.kills_processes
def test_a_slot_that_holds_the_lock_ends_with_a_killed_agent(
    scheduler: PlayedScheduler, gate: Gate, plain: None
) -> None:
    with Worker(scheduler.address, "--slots", "2") as worker:
        scheduler.send(function_message(hold_the_lock_at), grant(1, [(gate.path,)]))
        gate.wait_until_reached()
        processes = worker.descendants()
        assert len(processes) == 3
        worker.process.kill()
        until(lambda: not alive(processes), "starter and slots have ended")


@pytest.mark.kills_processes
def test_slots_end_with_a_killed_starter_and_are_started_anew(
    scheduler: PlayedScheduler, gate: Gate, plain: None
) -> None:
    with Worker(scheduler.address, "--slots", "2") as worker:
        scheduler.send(function_message(hold_the_lock_at), grant(1, [(gate.path,)]))
        gate.wait_until_reached()
        starter, *slots = worker.descendants()
        os.kill(starter, signal.SIGKILL)
        failed = scheduler.expect(messages.RunFailed)
        assert (failed.kind, failed.details["signal"]) == ("died", signal.SIGKILL)
        assert not alive(slots)
        scheduler.send(function_message(abs, "abs"), grant(2, [(-1,)] * 5, name="abs"))
        scheduler.done(5)


@pytest.mark.parametrize("missing", ["memfd_create", "pidfd_open"])
def test_what_the_system_lacks_is_said_once_and_done_without(
    scheduler: PlayedScheduler, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", "1")
    program = ("-c", f"import os; del os.{missing}; from cluster.cli.worker import main; main()")
    with Worker(scheduler.address, "--slots", "2", program=program) as worker:
        scheduler.send(function_message(look), grant(1, [()] * 3))
        assert all(pickle.loads(data)[0] for data in scheduler.done(3).values())
        worker.process.terminate()
        _, written = worker.end()
    assert written.count("a slower way is taken") == 1
    assert missing in written


def crash(numbers: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


NOT_THERE = "delattr(os, name)"
NOT_WANTED = "setattr(os, name, lambda *_: os._exit(99))"
CHANGED_SYSTEM = """
import os, socket
for name in ("fork", "memfd_create", "pidfd_open", "posix_fallocate", "sendfile", "waitid"):
    {change}
del socket.SOCK_SEQPACKET
"""


def wait_for_two() -> list[int]:
    client = get_client()
    futures = [client.submit(abs, -1), client.submit(abs, -2)]
    return [future.result() for future in futures]


def test_a_task_waits_for_one_child_after_the_other(plain: None) -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        assert client.submit(wait_for_two).result(20) == [1, 2]


@pytest.mark.parametrize("wanted", [False, True], ids=["not-wanted", "not-there"])
def test_a_whole_cluster_does_without_the_fast_paths(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: bool
) -> None:
    change = NOT_THERE if wanted else NOT_WANTED
    (tmp_path / "sitecustomize.py").write_text(CHANGED_SYSTEM.format(change=change))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CLUSTER__FAST_PATHS", str(wanted))
    if not wanted:
        monkeypatch.delenv("CLUSTER__SHARED_MEMORY_DIRECTORY")  # what is wanted decides, unless a place is named
    with LocalCluster(n_workers=2, slots=1) as cluster, Client(cluster) as client:
        assert client.gather(client.map(abs, range(-500, 0)), timeout=30) == list(range(500, 0, -1))
        first, second = client.scheduler_info()["workers"]
        made = client.submit(bytes, 5_000_000, workers=[first])
        assert client.submit(len, made, workers=[second]).result(20) == 5_000_000
        assert made.result(20) == bytes(5_000_000)
        assert wanted or list(Path(os.environ["TMPDIR"]).glob("cluster-*/*/s*"))
        assert client.submit(hasattr, os, "fork").result(20) is not wanted, "slots run on that system too"
        error = client.submit(crash, made).exception(40)
        assert isinstance(error, TaskDied)
        assert (error.signal, error.attempts) == (signal.SIGSEGV, 3)
        running = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        running.cancel()
        with pytest.raises(CancelledError):
            running.result(20)


def test_ends_with_names_are_what_ends_without_are(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/pipe-0"
    ends = slot_ends.make_named(prefix)
    assert not ends.for_slot
    claim, tasks, reports, output, page = slot_ends.open_named(prefix)
    slot_ends.remove_named(prefix)
    assert not list(tmp_path.iterdir())
    os.write(ends.claim_write, b"record")
    assert os.read(claim, 16) == b"record"
    os.write(ends.tasks, b"task")
    assert os.read(tasks, 16) == b"task"
    for write, read in ((reports, ends.reports), (output, ends.output)):
        with pytest.raises(BlockingIOError):
            os.read(read, 16)
        os.write(write, b"said")
        assert os.read(read, 16) == b"said"
    ends.page[:4] = b"page"
    assert os.pread(page, 4, 0) == b"page"
    os.write(ends.claim_write, b"left")
    assert os.read(ends.claim_read, 16) == b"left"
    close(ends)
    assert os.read(claim, 16) == b"", "a slot learns that its agent has gone"
    with pytest.raises(BrokenPipeError):
        os.write(reports, b"x")
    for descriptor in (claim, tasks, reports, output, page):
        os.close(descriptor)


def test_a_slot_is_not_started_for_an_agent_that_has_gone(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/pipe-0"
    close(slot_ends.make_named(prefix))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such device"):
        slot_ends.open_named(prefix)
    assert len(os.listdir("/proc/self/fd")) == before
    slot_ends.remove_named(prefix)
    slot_ends.remove_named(prefix)
    with pytest.raises(FileNotFoundError):
        slot_ends.open_named(prefix)


def close(ends: Any) -> None:
    ends.page.close()
    for descriptor in (*ends[:5], *ends.kept):
        os.close(descriptor)
