"""A process that runs tasks that are coroutines, many at once.

The main thread claims tasks, loads them and hears what the agent says; it runs no task, so it always answers. The tasks
run on an event loop in a thread. Where one of them blocks that loop (it computes, or waits without `await`), the tasks
that come next are run on a further loop in a further thread. So nothing new waits behind a task that blocks, and a task
that blocks until another has ended gets what it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import mmap
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, Final, Protocol

import msgpack

from cluster.daemon import slot_protocol
from cluster.daemon.shared_output import SharedOutput
from cluster.daemon.slot_run import SlotRun
from cluster.daemon.slot_segments import SegmentAnswer, SegmentWriter
from cluster.daemon.slot_waiting import CoroutineWaiting, TaskInterrupted
from cluster.daemon.task_context import running_inside
from cluster.daemon.task_threads import owner_of_context
from cluster.errors import StoreFull
from cluster.wire import payload
from cluster.wire.encoded import Encoded
from cluster.worker.values import SMALL_VALUE_BYTES

__all__ = ["CoroutineHost"]

# A loop that has not begun a task after so long is blocked: the task is given to another.
_BLOCKED_SECONDS: Final = 0.05
# What `asyncio.to_thread` may use; each such thread mostly waits.
_THREADS: Final = 1000


class _Slot(Protocol):
    forked: bool
    segment_answers: dict[int, SegmentAnswer]
    segments: SegmentWriter

    def find(self, sequence: int) -> Any: ...

    def load(self, sequence: int) -> tuple[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]]: ...

    def failure(self, piece: Any, sequence: int, seconds: float, error: BaseException) -> bytes: ...

    def write(self, data: bytes) -> None: ...

    def take_messages(self) -> None: ...


class _Descriptors(Protocol):
    @property
    def claim(self) -> int: ...

    @property
    def tasks(self) -> int: ...

    @property
    def output(self) -> int: ...


class _Run:
    """One coroutine."""

    def __init__(self, piece: Any, sequence: int, call: Callable[[], Any]) -> None:
        self.piece = piece
        self.sequence = sequence
        self.call = call
        self.name: tuple[int, int] = piece.name(sequence)
        self.started = 0.0
        self.task: asyncio.Task[None] | None = None
        self.loop: _LoopThread | None = None
        self.is_stopped = False
        self.is_reporting = False
        self.has_ended = False


class _RunContext(SlotRun):
    """What `cluster.current()` tells in a coroutine."""

    def __init__(self, run: _Run, worker: str, page: mmap.mmap, output: SharedOutput) -> None:
        self._run = run
        piece = run.piece
        super().__init__(
            piece.context, piece.label, run.sequence - piece.sequence, run.sequence, run.started, worker, page, output,
            lambda: 0 if run.has_ended else run.sequence,
        )  # fmt: skip

    def is_cancelled(self) -> bool:
        return self._run.is_stopped


class _LoopThread:
    """An event loop in a thread of its own, and the tasks that it has not begun."""

    def __init__(self, run_task: Callable[[_Run], Any]) -> None:
        self.not_begun: deque[_Run] = deque()
        self._run_task = run_task
        self._running = 0
        self._is_retired = False
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_Pool(_THREADS))
        threading.Thread(target=self._serve, name="coroutines", daemon=True).start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def begin(self, run: _Run) -> None:
        """Have a task begun."""
        self.not_begun.append(run)
        self.loop.call_soon_threadsafe(self._begin_next)

    def first_not_begun(self) -> _Run | None:
        """The task that waits for the loop, if one does."""
        try:
            return self.not_begun[0]
        except IndexError:
            return None

    def _begin_next(self) -> None:
        try:
            run = self.not_begun.popleft()
        except IndexError:
            self._look_for_the_end()
            return  # another loop has taken it
        run.loop = self
        if run.is_stopped:
            run.call = _stopped
        self._running += 1
        run.task = self.loop.create_task(self._run_task(run))
        run.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running -= 1
        self._look_for_the_end()

    def retire(self) -> None:
        """It gets nothing more; it ends with its last task."""
        self._is_retired = True
        self.loop.call_soon_threadsafe(self._look_for_the_end)

    def _look_for_the_end(self) -> None:
        if self._is_retired and not self._running and not self.not_begun:
            self.loop.stop()


async def _stopped() -> None:
    """In the place of a task that was stopped before it began: cancelled then, it would not even report."""
    raise asyncio.CancelledError


class _Pool(ThreadPoolExecutor):
    """Threads for what a loop's tasks hand over with `run_in_executor`: each call is of the task that made it."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(contextvars.copy_context().run, function, *args, **kwargs)


class CoroutineHost:
    """The process, from its first coroutine on."""

    def __init__(
        self, slot: _Slot, descriptors: _Descriptors, page: mmap.mmap, worker_name: str, around: CoroutineWaiting
    ) -> None:
        self._slot = slot
        self._claim = descriptors.claim
        self._tasks = descriptors.tasks
        self._page = page
        self._worker_name = worker_name
        self._around = around
        self._runs: dict[int, _Run] = {}
        self._stopped_early: set[int] = set()
        self._newest = 0  # the sequence that was claimed last
        self._writing = threading.Lock()
        self._answered = threading.Condition()
        # One at a time: an agent makes room for one large result of a process after another.
        self._reporter = ThreadPoolExecutor(1, thread_name_prefix="reports")
        self.output = SharedOutput(descriptors.output, page, self)
        self.output.install()
        self._loop = _LoopThread(self._run_task)
        running_inside(self._current_run)
        around.name_of = self._task_name

    # ------------------------------------------------------------------ the main thread

    def run(self, sequence: int) -> None:
        """Run tasks, this one first, until the agent closes the claim pipe."""
        self._begin(sequence)
        poll = select.poll()
        poll.register(self._claim, select.POLLIN)
        poll.register(self._tasks, select.POLLIN)
        while True:
            head = self._loop.first_not_begun()
            readable = {descriptor for descriptor, _ in poll.poll(1000 * _BLOCKED_SECONDS if head else None)}
            if self._tasks in readable:
                self._take_messages()
            elif self._claim in readable:
                record = os.read(self._claim, slot_protocol.CLAIM_BYTES)
                if len(record) < slot_protocol.CLAIM_BYTES:
                    return
                self._begin(int.from_bytes(record, "little"))
            elif head is not None:
                self._leave_a_blocked_loop(head)

    def _take_messages(self) -> None:
        self._slot.take_messages()
        with self._answered:
            self._answered.notify_all()

    def _begin(self, sequence: int) -> None:
        self._newest = sequence
        try:
            piece, function, positional, keywords = self._slot.load(sequence)
        except BaseException as error:
            self._write(self._slot.failure(self._slot.find(sequence), sequence, 0.0, error))
            return
        run = _Run(piece, sequence, lambda: function(*positional, **keywords))
        self._runs[sequence] = run
        if sequence in self._stopped_early:
            self._stopped_early.discard(sequence)
            self.stop(sequence)
        self._loop.begin(run)

    def _leave_a_blocked_loop(self, head: _Run) -> None:
        """The loop does not get round to its next task: let another have what it has not begun."""
        blocked = self._loop
        try:
            if blocked.not_begun[0] is not head:
                return
            self._loop = _LoopThread(self._run_task)
            while True:
                self._loop.begin(blocked.not_begun.popleft())
        except IndexError:  # that was all, or it has got round to it after all
            if blocked is not self._loop:
                blocked.retire()

    def stop(self, sequence: int) -> None:
        """Cancel a task."""
        run = self._runs.get(sequence)
        if run is None:
            if sequence > self._newest:  # else it has just ended
                self._stopped_early.add(sequence)
            return
        run.is_stopped = True
        if run.loop is None:
            self._write(_pack([sequence, slot_protocol.REPORT_STOPPING]))
        else:
            with contextlib.suppress(RuntimeError):  # that loop has just ended, after its last task
                run.loop.loop.call_soon_threadsafe(self._cancel, run)

    def _cancel(self, run: _Run) -> None:
        self._write(_pack([run.sequence, slot_protocol.REPORT_STOPPING]))
        if not run.started:
            run.call = _stopped
        elif run.task is not None and not run.is_reporting:
            run.task.cancel()

    # ------------------------------------------------------------------ a loop's thread

    async def _run_task(self, run: _Run) -> None:
        owner_of_context.set(run)
        run.started = perf_counter()
        try:
            value = run.call()
            if inspect.isawaitable(value):
                value = await value
            seconds = perf_counter() - run.started
            encoded = payload.dumps(value, name="result")
            run.is_reporting = True
            if encoded.nbytes <= SMALL_VALUE_BYTES and not encoded.futures:
                self._end(run, _pack([run.sequence, seconds, encoded.to_bytes()]))
            else:
                self._reporter.submit(self._report_apart, run, seconds, encoded)
        except BaseException as error:
            was_stopped = run.is_stopped and isinstance(error, asyncio.CancelledError)
            told = TaskInterrupted() if was_stopped else error
            self._end(run, self._slot.failure(run.piece, run.sequence, perf_counter() - run.started, told))

    def _report_apart(self, run: _Run, seconds: float, encoded: Encoded) -> None:
        try:
            report = self._report(run, seconds, encoded)
        except BaseException as error:
            report = self._slot.failure(run.piece, run.sequence, seconds, error)
        self._end(run, report)

    def _report(self, run: _Run, seconds: float, encoded: Encoded) -> bytes:
        """Report a large value, or one with futures in it; in the reporter's thread."""
        sequence = run.sequence
        contains = [part for reference in encoded.futures for part in reference[:2]]
        client = self._around.used
        if contains and client is not None:
            client.hand_over(run.name, contains)
            client.settle(run.name)
        if encoded.nbytes <= SMALL_VALUE_BYTES:
            return _pack([sequence, seconds, encoded.to_bytes(), contains])
        self._write(_pack([sequence, encoded.nbytes]))
        answers = self._slot.segment_answers
        with self._answered:
            self._answered.wait_for(lambda: sequence in answers)
        answer = answers.pop(sequence)
        if not answer.path:
            raise StoreFull(answer.reason)
        self._slot.segments.write(answer, encoded)
        return _pack([sequence, seconds, "segment", encoded.nbytes, contains])

    def _end(self, run: _Run, report: bytes) -> None:
        if self._slot.forked:
            os._exit(0)  # a task called os.fork, and this is the child coming back from it: no process of tasks
        client = self._around.used
        if client is not None and client.owes(run.name):
            run.is_reporting = True
            self._reporter.submit(self._settle_and_end, run, report)  # not on the loop: it asks the scheduler
        else:
            self._end_at_last(run, report)

    def _settle_and_end(self, run: _Run, report: bytes) -> None:
        client = self._around.used
        assert client is not None
        client.settle(run.name)
        self._end_at_last(run, report)

    def _end_at_last(self, run: _Run, report: bytes) -> None:
        run.has_ended = True
        del self._runs[run.sequence]
        self.output.end_run(run.name)
        self._write(report)

    def _write(self, data: bytes) -> None:
        with self._writing:
            self._slot.write(data)

    # ------------------------------------------------------------------ what a task is told of itself

    def run_name(self) -> tuple[int, int]:
        """Attempt and row of the task that the calling code runs in; zeros outside of one."""
        run = owner_of_context.get()
        return (0, 0) if run is None else run.name

    def _task_name(self) -> tuple[int, int] | None:
        run = owner_of_context.get()
        return None if run is None or run.has_ended or not run.piece.context else run.name

    def _current_run(self) -> SlotRun | None:
        run = owner_of_context.get()
        return None if run is None else _RunContext(run, self._worker_name, self._page, self.output)


def _pack(report: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(report)
    return packed
