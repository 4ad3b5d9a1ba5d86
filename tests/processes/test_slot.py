"""What a slot does with users' code: whatever it raises, returns, prints or starts, the slot answers and goes on."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.wire import messages, payload
from cluster.wire.exceptions import load_exception
from tests.processes.agent_harness import (
    PlayedScheduler,
    Worker,
    function_message,
    grant,
)


@pytest.fixture
def worker(scheduler: PlayedScheduler) -> Iterator[Worker]:
    with Worker(scheduler.address, "--slots", "1", "--name", "w1") as worker:
        yield worker


def failure(scheduler: PlayedScheduler, function: Any, *arguments: Any) -> messages.RunFailed:
    """Run that; how it fails."""
    scheduler.send(function_message(function), grant(1, [arguments], first_row=4))
    failed = scheduler.expect(messages.RunFailed)
    assert (failed.epoch, failed.row, failed.attempt) == (7, 4, 1)
    # The slot goes on.
    scheduler.send(function_message(abs, "abs"), grant(2, [(-3,)], name="abs"))
    assert [pickle.loads(data) for data in scheduler.done(1).values()] == [3]
    return failed


def value(scheduler: PlayedScheduler, function: Any, *arguments: Any) -> Any:
    """Run that; its small value."""
    scheduler.send(function_message(function), grant(1, [arguments]))
    [data] = scheduler.done(1).values()
    return pickle.loads(data)


def test_an_exception_comes_back_as_itself_with_the_users_frames_first(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    def outer(number: int) -> None:
        inner(number)

    def inner(number: int) -> None:
        raise ValueError(f"no {number}")

    failed = failure(scheduler, outer, 5)
    assert failed.kind == "exception"
    error = load_exception(failed.error, failed.details)
    assert type(error) is ValueError
    assert error.args == ("no 5",)
    frames = [line for line in failed.details["traceback"].splitlines() if line.startswith("  File")]
    assert [frame.rpartition("in ")[2] for frame in frames] == ["outer", "inner"]


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_a_program_only_fails_the_task(
    scheduler: PlayedScheduler, worker: Worker, raised: BaseException
) -> None:
    def stop(error: BaseException) -> None:
        raise error

    failed = failure(scheduler, stop, raised)
    assert failed.kind == "exception"
    assert type(load_exception(failed.error, failed.details)) is type(raised)


def test_a_result_that_cannot_be_pickled_is_named(scheduler: PlayedScheduler, worker: Worker) -> None:
    def make() -> Any:
        import threading

        return {"lock": threading.Lock()}

    failed = failure(scheduler, make)
    assert failed.kind == "unserializable"
    assert "result['lock']" in failed.details["message"]


def test_a_function_that_needs_a_missing_module_names_module_worker_and_remedy(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    class Missing:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_module",)

    missing = Missing()

    def use() -> Any:
        return missing

    failed = failure(scheduler, use)
    assert failed.kind == "import"
    for word in ("no_such_module", "w1", "install"):
        assert word in failed.details["message"]
    assert failed.details["remedy"]


def test_arguments_that_fail_to_load_fail_the_task_and_not_the_slot(scheduler: PlayedScheduler, worker: Worker) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return divmod, (1, 0)

    failed = failure(scheduler, abs, Bad())
    assert failed.kind == "exception"
    assert failed.details["type"] == "ZeroDivisionError"
    assert "arguments" in failed.details["traceback"]


def test_a_broken_input_fails_the_task_and_not_the_slot(scheduler: PlayedScheduler, worker: Worker) -> None:
    peer = scheduler.peer(scheduler.expect(messages.WorkerJoin).address)
    peer.put(1, 50, b"\x80garbage")
    scheduler.send(function_message(abs))
    scheduler.send(grant(51, [(payload.mark(0),)], values=[[1, 50, 8, []]], needs=[[0]]))
    assert scheduler.expect(messages.RunFailed).kind == "exception"
    scheduler.send(grant(52, [(-1,)]))
    scheduler.done(1)


def test_keyword_arguments(scheduler: PlayedScheduler, worker: Worker) -> None:
    call = cloudpickle.dumps(((1,), {"b": 2}))
    message = grant(1, [()])._replace(arguments=1, offsets=b"", blob=call)
    scheduler.send(function_message(lambda a, b: (a, b)), message)
    assert [pickle.loads(data) for data in scheduler.done(1).values()] == [(1, 2)]


def test_tasks_that_share_one_call_do_not_share_its_objects(scheduler: PlayedScheduler, worker: Worker) -> None:
    def grow(items: list[int]) -> int:
        items.append(1)
        return len(items)

    message = grant(1, [()] * 5)._replace(offsets=b"", blob=pickle.dumps(([],)))
    scheduler.send(function_message(grow), message)
    assert [pickle.loads(data) for data in scheduler.done(5).values()] == [1] * 5


def test_futures_inside_a_result_are_listed(scheduler: PlayedScheduler, worker: Worker) -> None:
    def make() -> Any:
        from cluster.wire.payload import FutureReference

        return [FutureReference((b"c" * 16, 5, "key")), {"b": FutureReference((b"d" * 16, 6))}]

    scheduler.send(function_message(make), grant(1, [()], first_row=3))
    assert scheduler.expect(messages.Done).contains == [[3, [b"c" * 16, 5, b"d" * 16, 6]]]


def test_a_task_may_change_its_inputs_and_others_do_not_see_it(scheduler: PlayedScheduler, worker: Worker) -> None:
    def change(data: bytearray) -> int:
        data[0] += 1
        return data[0]

    peer = scheduler.peer(scheduler.expect(messages.WorkerJoin).address)
    encoded = payload.dumps(bytearray(3_000_000)).to_bytes()
    peer.put(1, 50, encoded)
    scheduler.send(function_message(change))
    scheduler.send(grant(51, [(payload.mark(0),)] * 3, values=[[1, 50, len(encoded), []]], needs=[[0]] * 3))
    assert [pickle.loads(data) for data in scheduler.done(3).values()] == [1, 1, 1]


def test_what_a_task_prints_is_told_before_its_end_and_not_in_the_workers_own_output(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    def speak() -> None:
        print("spoken by a task")
        os.write(1, b"and past Python\n")

    value(scheduler, speak)
    [[attempt, row, entries]] = scheduler.expect(messages.Output, seconds=0.0).tasks  # it came before the value did
    assert (attempt, row) == (1, 0)
    assert b"".join(data for _, _, data in entries) == b"spoken by a task\nand past Python\n"
    worker.process.terminate()
    _, errors = worker.end()
    assert "spoken" not in errors


def test_a_task_may_fork_and_its_child_is_no_slot(scheduler: PlayedScheduler, worker: Worker) -> None:
    def fork() -> int:
        process = os.fork()
        if process:
            os.waitpid(process, 0)
        return process

    assert value(scheduler, fork) > 0
    scheduler.send(function_message(abs, "abs"), grant(2, [(-1,)] * 20, name="abs"))
    assert len(scheduler.done(20)) == 20


def test_a_task_may_use_processes_and_threads_of_its_own(scheduler: PlayedScheduler, worker: Worker) -> None:
    def use() -> list[int]:
        import multiprocessing
        from concurrent.futures import ThreadPoolExecutor

        with multiprocessing.get_context("fork").Pool(2) as pool, ThreadPoolExecutor(2) as threads:
            return pool.map(abs, [-1, -2]) + list(threads.map(abs, [-3]))

    assert value(scheduler, use) == [1, 2, 3]


def test_slots_run_in_the_main_thread_of_a_process_group_of_their_own(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    def look() -> tuple[bool, bool, str, str]:
        import pathlib
        import threading

        return (
            threading.current_thread() is threading.main_thread(),
            os.getpgid(0) == os.getpid(),
            pathlib.Path("/proc/self/oom_score_adj").read_text().strip(),
            os.environ["OMP_NUM_THREADS"],
        )

    cores = str(os.cpu_count() or 1)
    assert value(scheduler, look) == (True, True, "500", os.environ.get("OMP_NUM_THREADS", cores))


@pytest.mark.fast_path("the allocator is left as it is")
def test_a_slot_keeps_the_memory_that_it_frees(scheduler: PlayedScheduler, worker: Worker) -> None:
    def fault() -> int:
        import resource

        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            block = bytearray(64 << 20)
            block[::4096] = b"x" * len(block[::4096])
            del block
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert value(scheduler, fault) < 1000


def test_folders_given_to_the_worker_are_searched_first(scheduler: PlayedScheduler, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("NUMBER = 42\n")

    def use() -> Any:
        import only_here  # type: ignore[import-not-found]

        return only_here.NUMBER

    with Worker(scheduler.address, "--slots", "1", "--python-path", str(tmp_path)):
        assert value(scheduler, use) == 42


def test_a_large_result_that_memory_has_no_room_for_goes_to_disk(scheduler: PlayedScheduler) -> None:
    with Worker(scheduler.address, "--slots", "1", "--memory-limit", "1MB") as worker:
        address = scheduler.expect(messages.WorkerJoin).address
        scheduler.send(function_message(bytes), grant(1, [(900_000,), (2_000_000,), (2_000_000,)]))
        scheduler.done(3)
        assert len(scheduler.peer(address).get([(2, 1)])[0]) > 2_000_000
        worker.process.terminate()
        _, errors = worker.end()
    assert errors.count("values go to disk") == 1


def test_a_slot_is_ready_without_having_imported_numpy(scheduler: PlayedScheduler, worker: Worker) -> None:
    def loaded() -> list[str]:
        return [name for name in ("numpy", "pandas", "asyncio", "concurrent.futures.process") if name in sys.modules]

    assert value(scheduler, loaded) == []
