"""A process whose slots are threads: for tasks that wait for input and output, or release the interpreter lock.

Each slot is as one that is a process (`slot.py`), with pipes and a client of its own, in a thread of its own. The main
thread runs no task. It is where signals arrive: it raises the interrupts in the threads, at the next step of Python
code that they come to, and leaves a thread that comes to none (`cluster.worker.threads`). Then the slot goes on in a
new thread, and the old one is nobody's: what it still reports is dropped, what it submitted has ended with its task.

The output of all goes through one pipe; whose it is, the calling thread says.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final

from cluster.daemon import in_slot, slot_protocol
from cluster.daemon.shared_output import SharedOutput
from cluster.daemon.slot import Slot, SlotDescriptors
from cluster.daemon.slot_memory import give_back
from cluster.daemon.slot_run import SlotRun
from cluster.daemon.slot_waiting import TaskInterrupted, is_uninterrupted
from cluster.daemon.task_context import running_inside
from cluster.daemon.task_threads import follow_threads, owner_of_context

__all__ = ["run_threads"]

_AGAIN_SECONDS: Final = 0.002
_HANDSHAKE_SECONDS: Final = 0.0002
_raise_in_thread: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc
_EXECUTE: Final = Slot._execute.__code__


class _Left(BaseException):
    """The thread that comes here is a slot no more; it ends."""


class _OutputOfThread:
    """The output of the process as one slot's (`SlotOutput`)."""

    marks_all = False
    touched = True  # whether it was is known for the process only, and looking is cheap

    def __init__(self, output: SharedOutput, slot: ThreadSlot) -> None:
        self._output = output
        self._slot = slot

    def end_task(self) -> None:
        """The task has ended."""
        self._output.end_run(self._slot.run_name())

    def restore(self) -> None:
        """Nothing: the streams are the process's."""


class ThreadSlot(Slot):
    """One slot, and the thread that it runs in."""

    def __init__(self, process: _Process, descriptors: SlotDescriptors, before: ThreadSlot | None = None) -> None:
        """`before`: what was the slot until its thread was left; what the agent sent to it is known here, too."""
        super().__init__(descriptors, process.worker_name, process.cluster)
        self.descriptors = descriptors
        self._process = process
        self._output = _OutputOfThread(process.output, self)
        self._is_left = False
        self._changing = threading.Lock()
        self._asked = 0  # the sequence that was asked to stop last
        self._is_asking = False
        self._is_new = before is None
        if before is not None:
            self._unpacker, self._pieces, self._functions = before._unpacker, before._pieces, before._functions
            self.segments = before.segments
            self._asked = before._asked

    def begin(self) -> None:
        """Be the slot, in a thread of its own."""
        threading.Thread(target=self._serve, name="slot", daemon=True).start()

    def _serve(self) -> None:
        self.thread = threading.get_ident()
        slot_of_context.set(self)
        try:
            self.run()
            os._exit(0)  # the agent has gone; the starter is about to end this process anyway
        except _Left:
            if self._waiting.used is not None:
                self._waiting.used.close()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    # ------------------------------------------------------------------ this slot's thread

    def run(self) -> None:
        """Run tasks until the agent closes the claim pipe, or the thread is left."""
        if self._is_new:  # else the agent knows that the slot is ready
            self.write(self._pack([0]))
        while True:
            record = os.read(self.descriptors.claim, slot_protocol.CLAIM_BYTES)
            if len(record) < slot_protocol.CLAIM_BYTES:
                return
            self.run_claimed(int.from_bytes(record, "little"))

    def run_claimed(self, sequence: int) -> None:
        """Run a task whose record was read, and report it."""
        waits = owner_of_context.get()
        try:
            super().run_claimed(sequence)
        finally:
            owner_of_context.set(waits)

    def _execute(self, piece: Any, sequence: int) -> bytes:
        owner_of_context.set(self.current)
        report = b""
        while True:
            try:
                report = report or super()._execute(piece, sequence)
                if self._asked == sequence:
                    # It may be under way, and must not come when another task runs.
                    while self._is_asking:
                        time.sleep(_HANDSHAKE_SECONDS)
                    _raise_in_thread(ctypes.c_ulong(self.thread), None)
                return report
            except TaskInterrupted as error:  # it came late
                report = report or self.failure(piece, sequence, 0.0, error)

    def write(self, data: bytes) -> None:
        """Send a packed report; raises _Left in a thread that was left."""
        with self._changing:
            if self._is_left:
                raise _Left
            super().write(data)

    def context_of(self, task: Any) -> SlotRun | None:
        """What is told of a task of this slot."""
        piece, sequence = task
        if not piece.context:
            return None
        return SlotRun(
            piece.context, piece.label, sequence - piece.sequence, sequence, self._started, self._worker_name,
            self._page, self._process.output, lambda: sequence if self.is_open(task) else 0,
        )  # fmt: skip

    # ------------------------------------------------------------------ the main thread

    def look(self) -> bool:
        """Do what the agent wrote into the page; whether to look again soon."""
        if self._page[slot_protocol.TRIM_OFFSET]:
            with self._changing:
                self._page[slot_protocol.TRIM_OFFSET] = 0
                Slot.write(self, self._pack([give_back(), slot_protocol.REPORT_TRIMMED]))
        offset = slot_protocol.LEAVE_OFFSET
        leave = int.from_bytes(self._page[offset : offset + 8], "little")
        if leave and leave == self.running:
            self._leave(leave)
            return False
        target = int.from_bytes(self._page[:8], "little")
        if target in (0, self._asked):
            return False
        self.interrupted_early = target  # before looking, so that a task which is about to begin sees it, or is seen
        if target != self.running:
            return False
        frame = sys._current_frames().get(self.thread)
        if is_uninterrupted(frame, _EXECUTE):
            return True
        self._is_asking = True
        try:
            self._asked = target
            if target == self.running:
                _raise_in_thread(ctypes.c_ulong(self.thread), ctypes.py_object(TaskInterrupted))
        finally:
            self._is_asking = False
        return False

    def _leave(self, sequence: int) -> None:
        with self._changing:
            if self.running != sequence:
                return  # it has just ended
            self._is_left = True
            self._process.output.end_run(self.run_name())
            Slot.write(self, self._pack([sequence, 0.0, "interrupted", b"", {"message": _LEFT_BEHIND}]))
        self._process.replace(self)


_LEFT_BEHIND: Final = (
    "the task did not stop when it was asked to; it runs on in a thread that was left to itself, since a thread cannot "
    "be ended from outside (the worker runs tasks in threads)"
)
slot_of_context: Final[ContextVar[ThreadSlot | None]] = ContextVar("slot_of_context", default=None)


class _Process:
    """The slots of a process, and what they share."""

    def __init__(self, threads: Sequence[SlotDescriptors], worker_name: str, cluster: in_slot.ClusterOfSlot) -> None:
        self.worker_name = worker_name
        self.cluster = cluster
        page = mmap.mmap(threads[0].page, slot_protocol.PAGE_BYTES)
        self.output = SharedOutput(threads[0].output, page, self)
        self.output.install()
        running_inside(self._running_task)
        self._slots = [ThreadSlot(self, descriptors) for descriptors in threads]
        in_slot.enter_threads(self._surroundings)
        follow_threads(_belong)
        self._woken, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.signal(signal.SIGUSR1, _wake)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve for ever: the process ends with the agent, or with what a task does to it."""
        for slot in self._slots:
            slot.begin()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        soon = False
        while True:
            if poll.poll(1000 * _AGAIN_SECONDS if soon else None):
                os.read(self._woken, 4096)
            soon = any([slot.look() for slot in self._slots])

    def replace(self, left: ThreadSlot) -> None:
        """Another thread is that slot from now on."""
        position = self._slots.index(left)
        self._slots[position] = ThreadSlot(self, left.descriptors, left)
        self._slots[position].begin()

    # ------------------------------------------------------------------ whose code calls

    def run_name(self) -> tuple[int, int]:
        """Attempt and row of the task that the calling code is of; zeros outside of one."""
        task = owner_of_context.get()
        return (0, 0) if task is None or not task[0].context else task[0].name(task[1])

    def _running_task(self) -> SlotRun | None:
        slot, task = slot_of_context.get(), owner_of_context.get()
        return None if slot is None or task is None else slot.context_of(task)

    def _surroundings(self) -> in_slot.Surroundings | None:
        slot = slot_of_context.get()
        return (self._slots[0] if slot is None else slot).surroundings


def _belong() -> Callable[[], None] | None:
    slot, task = slot_of_context.get(), owner_of_context.get()

    def begin() -> None:
        slot_of_context.set(slot)
        owner_of_context.set(task)

    return None if slot is None else begin


def run_threads(threads: Sequence[SlotDescriptors], worker_name: str, cluster: in_slot.ClusterOfSlot) -> None:
    """Be so many slots, until the agent goes."""
    faulthandler.enable()
    _Process(threads, worker_name, cluster).run()


def _wake(number: int, frame: object) -> None:
    """A handler, so that the wake-up descriptor is written to."""
