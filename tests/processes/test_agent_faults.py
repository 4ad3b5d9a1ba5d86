"""What is left after any process of a worker dies, and what the scheduler is told."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from cluster.wire import messages, payload
from tests.processes.agent_harness import (
    PlayedScheduler,
    Worker,
    alive,
    function_message,
    grant,
    segments_below,
    until,
)
from tests.processes.whole_cluster import Gate, wait_at


@pytest.fixture
def shared_memory() -> Path:
    return Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])


def hold_the_gil(path: str) -> None:
    """Say so in a file, then sleep in C code without giving the interpreter's lock up."""
    import ctypes
    import pathlib

    pathlib.Path(path).write_text(str(__import__("os").getpid()))
    ctypes.PyDLL(None).sleep(60)


def ignore_interrupts(path: str) -> None:
    """Block the signal that would interrupt the task, then do as above."""
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    hold_the_gil(path)


def slot_process(path: Path) -> int:
    """The process id that a task has written there."""
    return int(until(lambda: path.exists() and path.read_text(), f"{path} is written"))


def large(nbytes: int) -> bytes:
    return bytes(nbytes)


def test_a_task_that_kills_its_slot_is_reported_with_signal_and_last_lines(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    def crash() -> None:
        import ctypes

        print("about to crash")
        ctypes.string_at(0)

    scheduler.send(function_message(crash), grant(1, [()]))
    failed = scheduler.expect(messages.RunFailed)
    assert (failed.kind, failed.details["signal"], failed.details["exit_code"]) == ("died", signal.SIGSEGV, -1)
    assert "about to crash" in failed.details["lines"]
    assert "Fatal Python error: Segmentation fault" in failed.details["lines"]
    assert failed.details["peak_memory_bytes"] > 1_000_000
    scheduler.send(function_message(lambda: 1, "g"), grant(2, [(), (), ()], name="g"))
    scheduler.done(3)


def test_a_slot_that_exits_is_reported_with_its_status(scheduler: PlayedScheduler, worker: Worker) -> None:
    scheduler.send(function_message(os._exit), grant(1, [(3,)]))
    failed = scheduler.expect(messages.RunFailed)
    assert (failed.kind, failed.details["signal"], failed.details["exit_code"]) == ("died", -1, 3)


def test_tasks_behind_one_that_kills_its_slot_run_elsewhere_and_are_not_charged(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    def sometimes(number: int) -> int:
        if number == 50:
            __import__("os").kill(__import__("os").getpid(), 9)
        return number

    scheduler.send(function_message(sometimes), grant(1, [(0,)]))
    scheduler.done(1)
    scheduler.send(grant(2, [(number,) for number in range(200)]))
    failed = scheduler.expect(messages.RunFailed)
    assert (failed.row, failed.details["signal"]) == (50, 9)
    assert len(scheduler.done(199)) == 199


def test_a_running_task_is_interrupted(scheduler: PlayedScheduler, worker: Worker, tmp_path: Path) -> None:
    def sleep(path: str) -> None:
        import pathlib
        import time

        pathlib.Path(path).write_text("1")
        time.sleep(60)

    scheduler.send(function_message(sleep), grant(1, [(str(tmp_path / "running"),)]))
    slot_process(tmp_path / "running")
    before = worker.descendants()
    scheduler.send(messages.Stop([1, 0]))
    assert scheduler.expect(messages.RunFailed).kind == "cancelled"
    assert worker.descendants() == before


def test_a_task_that_cannot_be_interrupted_is_killed(
    scheduler: PlayedScheduler, worker: Worker, tmp_path: Path
) -> None:
    scheduler.send(function_message(ignore_interrupts), grant(1, [(str(tmp_path / "running"),)]))
    process = slot_process(tmp_path / "running")
    scheduler.send(messages.Stop([1, 0]))
    failed = scheduler.expect(messages.RunFailed)
    assert failed.kind == "cancelled"
    until(lambda: not alive([process]), "the slot has ended")


def test_a_task_over_its_limit_is_stopped(scheduler: PlayedScheduler, worker: Worker) -> None:
    scheduler.send(function_message(time.sleep), grant(1, [(60,)], timeout_seconds=0.2))
    failed = scheduler.expect(messages.RunFailed)
    assert failed.kind == "timeout"
    assert 0.15 < failed.run_seconds < 5


def test_unclaimed_work_is_taken_back_from_a_slot_that_holds_the_gil(
    scheduler: PlayedScheduler, tmp_path: Path
) -> None:
    def sometimes(path: str) -> None:
        if path:
            import ctypes
            import pathlib

            pathlib.Path(path).write_text("1")
            ctypes.PyDLL(None).sleep(60)

    with Worker(scheduler.address, "--slots", "1"):
        scheduler.send(function_message(sometimes), grant(1, [("",)] * 3))
        scheduler.done(3)
        running = tmp_path / "running"
        scheduler.send(grant(2, [(str(running),), *[("",)] * 99]))
        slot_process(running)
        scheduler.send(messages.Recall(1, 1000))
        recalled = scheduler.expect(messages.Recalled, seconds=5)
        assert sorted(recalled.names[1::2]) == list(range(1, 100))


def test_a_short_task_never_waits_behind_a_long_one_while_a_slot_idles(
    scheduler: PlayedScheduler, worker: Worker, tmp_path: Path
) -> None:
    def sometimes(path: str) -> int:
        if path:
            import ctypes
            import pathlib

            pathlib.Path(path).write_text("1")
            ctypes.PyDLL(None).sleep(60)
        return 1

    scheduler.send(function_message(sometimes), grant(1, [("",)] * 3))
    scheduler.done(3)
    running = tmp_path / "running"
    scheduler.send(grant(2, [(str(running),), *[("",)] * 99]))
    assert len(scheduler.done(99)) == 99
    slot_process(running)


def test_a_task_whose_input_is_freed_while_it_waits_in_the_pipe_is_to_run_again(
    scheduler: PlayedScheduler, tmp_path: Path, shared_memory: Path
) -> None:
    # As when the value was lost elsewhere before the scheduler heard of the copy here.
    with Gate(tmp_path / "gate") as gate, Worker(scheduler.address, "--slots", "1"):
        scheduler.send(function_message(lambda path, value: wait_at(path) if path else len(value)))
        scheduler.send(function_message(large, "large"), grant(1, [(1_000_000,)], name="large"))
        scheduler.send(grant(2, [("", b"12")] * 3))
        scheduler.done(4)
        values, calls = [[0, 1, 1_000_020, []]], [(gate.path, b""), ("", payload.mark(0))]
        scheduler.send(grant(3, calls, values=values, needs=[[], [0]]))
        gate.wait_until_reached()
        scheduler.send(messages.Free([1, 0, 1]))
        until(lambda: not list(shared_memory.glob("cluster-*/*/s*")), "the input has been freed")
        gate.open()
        failed = scheduler.expect(messages.RunFailed)
        assert (failed.row, failed.attempt, failed.kind) == (1, 3, "missing")
        scheduler.done(1)


@pytest.mark.kills_processes
def test_a_killed_agent_leaves_no_process_and_no_segment_though_a_slot_holds_the_gil(
    scheduler: PlayedScheduler, worker: Worker, tmp_path: Path, shared_memory: Path
) -> None:
    scheduler.send(
        function_message(large, "large"), grant(1, [(1 << 20,)], name="large"), function_message(hold_the_gil)
    )
    scheduler.expect(messages.Done)
    assert segments_below(shared_memory)
    scheduler.send(grant(2, [(str(tmp_path / "running"),)]))
    slot_process(tmp_path / "running")
    processes = worker.descendants()
    assert len(processes) == 3
    worker.process.kill()
    until(lambda: not alive(processes), "starter and slots have ended")
    until(lambda: not segments_below(shared_memory), "the segments are gone")


def test_what_a_task_started_ends_with_its_slot(scheduler: PlayedScheduler, worker: Worker, tmp_path: Path) -> None:
    def start_and_crash(path: str) -> None:
        import ctypes
        import pathlib
        import subprocess

        process = subprocess.Popen(["sleep", "60"])
        pathlib.Path(path).write_text(str(process.pid))
        ctypes.string_at(0)

    scheduler.send(function_message(start_and_crash), grant(1, [(str(tmp_path / "child"),)]))
    assert scheduler.expect(messages.RunFailed).kind == "died"
    child = slot_process(tmp_path / "child")
    until(lambda: not alive([child]), "it has ended")


@pytest.mark.kills_processes
@pytest.mark.parametrize(
    "detached",
    [False, pytest.param(True, marks=pytest.mark.fast_path("what leaves its process group is nobody's any more"))],
)
def test_what_a_task_started_ends_with_the_agent(
    scheduler: PlayedScheduler, worker: Worker, tmp_path: Path, detached: bool
) -> None:
    def start(path: str) -> int:
        import pathlib
        import subprocess

        process = subprocess.Popen(["sleep", "60"], start_new_session=detached)
        pathlib.Path(path).write_text(str(process.pid))
        return process.pid

    scheduler.send(function_message(start), grant(1, [(str(tmp_path / "child"),)]))
    scheduler.done(1)
    child = slot_process(tmp_path / "child")
    assert alive([child])
    worker.process.kill()
    until(lambda: not alive([child]), "it has ended")


@pytest.mark.kills_processes
def test_a_killed_starter_is_replaced_and_running_tasks_are_reported(
    scheduler: PlayedScheduler, worker: Worker, tmp_path: Path
) -> None:
    scheduler.send(function_message(hold_the_gil), grant(1, [(str(tmp_path / "running"),)]))
    slot_process(tmp_path / "running")
    starter, *slots = worker.descendants()
    os.kill(starter, signal.SIGKILL)
    failed = scheduler.expect(messages.RunFailed)
    assert (failed.kind, failed.details["signal"]) == ("died", 9)
    assert not alive(slots)
    scheduler.send(function_message(lambda: 1, "g"), grant(2, [()], name="g"))
    scheduler.done(1)


@pytest.mark.kills_processes
def test_what_agent_and_starter_leave_when_both_are_killed_is_swept_by_the_next_worker(
    scheduler: PlayedScheduler, worker: Worker, shared_memory: Path
) -> None:
    scheduler.send(function_message(large), grant(1, [(1 << 20,)]))
    scheduler.expect(messages.Done)
    processes = worker.descendants()
    os.kill(processes[0], signal.SIGSTOP)  # so that it cannot clean up in between
    worker.process.kill()
    os.kill(processes[0], signal.SIGKILL)
    until(lambda: not alive(processes), "the slots have ended")
    assert segments_below(shared_memory)
    before = set(segments_below(shared_memory))
    with Worker(scheduler.address, "--slots", "1"):
        assert not before & set(segments_below(shared_memory))


def test_a_worker_that_is_asked_to_end_lets_running_tasks_end(
    scheduler: PlayedScheduler, worker: Worker, tmp_path: Path
) -> None:
    def wait_for(path: str) -> str:
        import pathlib
        import time

        pathlib.Path(path).write_text("1")
        while not pathlib.Path(path + ".go").exists():
            time.sleep(0.005)
        return "done"

    scheduler.send(function_message(wait_for), *(grant(n, [(str(tmp_path / str(n)),)], first_row=n) for n in (1, 2, 3)))
    slot_process(tmp_path / "1")
    slot_process(tmp_path / "2")
    worker.process.send_signal(signal.SIGTERM)
    scheduler.expect(messages.Draining)
    recalled = scheduler.expect(messages.Recalled)
    assert (recalled.request, recalled.names) == (-1, [3, 3])
    for number in (1, 2):
        (tmp_path / f"{number}.go").touch()
    assert set(scheduler.done(2)) == {(1, 1), (2, 2)}
    assert worker.end()[0] == 0


def test_a_second_signal_ends_a_worker_at_once(scheduler: PlayedScheduler, worker: Worker, tmp_path: Path) -> None:
    scheduler.send(function_message(hold_the_gil), grant(1, [(str(tmp_path / "running"),)]))
    slot_process(tmp_path / "running")
    worker.process.send_signal(signal.SIGTERM)
    scheduler.expect(messages.Draining)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end(5)[0] == 0


def test_a_worker_whose_scheduler_is_gone_ends_and_says_so(
    scheduler: PlayedScheduler, worker: Worker, tmp_path: Path, shared_memory: Path
) -> None:
    scheduler.send(function_message(hold_the_gil), grant(1, [(str(tmp_path / "running"),)]))
    slot_process(tmp_path / "running")
    processes = worker.descendants()
    scheduler.hang_up()
    status, errors = worker.end(5)
    assert status == 1
    assert scheduler.address in errors
    assert not alive(processes)
    assert not segments_below(shared_memory)


def test_a_worker_whose_output_nobody_reads_goes_on(scheduler: PlayedScheduler, worker: Worker) -> None:
    def chatter() -> None:
        for _ in range(200):
            print("x" * 1000)

    scheduler.send(function_message(chatter), grant(1, [()] * 5))  # the pipe to this test holds 64 KiB
    scheduler.done(5)


def test_a_large_result_of_a_task_that_is_stopped_leaves_the_slot_in_order(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    # Stops arrive while the task computes, while its result is pickled, and while its segment is asked for.
    scheduler.send(function_message(large))
    for attempt in range(1, 60):
        scheduler.send(grant(attempt, [(2_000_000,)]), messages.Stop([attempt, 0]))
    scheduler.send(grant(60, [(10,)] * 2, first_row=1))
    ended = 0
    while ended < 59 + 2:
        message = scheduler.expect((messages.Done, messages.RunFailed))
        ended += 1 if isinstance(message, messages.RunFailed) else sum(message.runs[1::2])
        assert getattr(message, "kind", "cancelled") == "cancelled"


def test_a_worker_tells_its_parent_that_it_joined_and_ends_when_the_parent_does(scheduler: PlayedScheduler) -> None:
    parent, given = socket.socketpair()
    descriptor = given.fileno()
    with (
        parent,
        Worker(scheduler.address, "--parent-socket", str(descriptor), "--slots", "1", pass_fds=[descriptor]) as worker,
    ):
        given.close()
        parent.settimeout(10)
        assert parent.recv(16) == b"\n"
        parent.close()
        assert worker.end(5)[0] == 0
