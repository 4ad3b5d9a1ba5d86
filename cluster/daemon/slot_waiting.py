"""A slot's task that waits for other tasks: it gives its seat up, and runs what it is given meanwhile inside itself.

The task's client comes here when it would block. The slot tells its agent that the task waits (REPORT_WAITS) and
claims nothing before the agent has taken back what was in the claim pipe (TASKS_WAIT_NOTED); what it claims from then
on are tasks that may run inside the one that waits, which are its children. It runs them by an ordinary, nested
`_execute`, each with its own report. When what the task waits for has come it says so (REPORT_WOKEN), and goes on when
the agent has a seat for it (TASKS_GO_ON). That message may also come unasked: then the task is interrupted where it
waits.

A signal never interrupts a task in the middle of its client's code, where it would leave half of a message or a lock
behind: it is sent again a little later. While the task waits it is noted, and looked at when the task goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from types import FrameType
from typing import Any, Final, Protocol, Self

from cluster.daemon import in_slot, slot_protocol

__all__ = ["CoroutineWaiting", "SlotWaiting", "TaskInterrupted", "interrupt_again", "is_uninterrupted"]

# A client that is left in the middle of something is of no use any more. Neither is a module that is: many that are
# compiled, numpy among them, cannot be loaded a second time.
_UNINTERRUPTED_MODULES: Final = (
    "cluster.client", "cluster.session", "cluster.transport", "importlib._bootstrap", "_frozen_importlib",
)  # fmt: skip
_RUNS_USERS_FUNCTIONS: Final = "cluster.session.calls"
_AGAIN_SECONDS: Final = 0.002


class TaskInterrupted(BaseException):
    """Raised inside a task that was asked to stop; no Exception, so that a task does not catch it by accident."""


class RunsTasks(Protocol):
    """What this module asks of the slot."""

    running: int
    """The sequence that may be interrupted, 0 for none."""
    interrupted_early: int
    """The sequence whose interrupt came when it could not be."""
    current: tuple[Any, int] | None
    """The piece and the sequence of the task that was begun last."""
    has_ended: bool
    """Whether that task has ended."""
    below: list[tuple[Any, int]]
    """The tasks that wait, in which it runs."""
    thread: int
    """The thread that runs tasks."""

    def owner(self) -> tuple[Any, int] | None:
        """The task that the calling code is of, as (piece, sequence); None if that has ended."""
        ...

    def run_claimed(self, sequence: int) -> None:
        """Run a claimed task and report it."""
        ...

    def take_messages(self) -> None:
        """Take in what the agent has sent; waits for something if there is nothing."""
        ...

    def end_output(self) -> None:
        """What the task has written is its own; what follows may be another's."""
        ...

    def report(self, report: list[Any]) -> None:
        """Write to the agent."""
        ...


class SlotWaiting:
    """The slot as its client sees it (`in_slot.Surroundings`), and what the agent says about tasks that wait."""

    def __init__(self, slot: RunsTasks, cluster: in_slot.ClusterOfSlot, claim: int, tasks: int) -> None:
        self.cluster = cluster
        self.away_seconds = 0.0
        """For how long tasks waited; what ran inside a task is not counted again."""
        self.used: in_slot.ClientInSlot | None = None
        """The client, once a task has asked for it."""
        self.is_actor = False
        """Whether this process is an actor's: what waits there takes no slot, so there is nothing to give up."""
        self.noted: dict[int, None] = {}
        self.going_on: dict[int, bool] = {}
        self.claim = claim
        self.tasks = tasks
        self.slot = slot
        self._making = threading.Lock()
        self._beside: _WaitingBeside | None = None

    def client(self) -> Any:
        """The process's client."""
        with self._making:
            if self.used is None:
                self.used = in_slot.new_client(self)
            return self.used

    def bind(self, reference: Any) -> Any:
        """A future that came inside a value."""
        return self.client().bind(reference)

    def task(self) -> tuple[int, int] | None:
        """The task that the calling code is of."""
        owner = self.slot.owner()
        return None if owner is None or not owner[0].context else owner[0].name(owner[1])

    def runs_here(self) -> bool:
        """Whether tasks run in the calling thread."""
        return threading.get_ident() == self.slot.thread

    def may_wait(self) -> bool:
        """Whether a task asks, from the thread that it runs in."""
        return self.slot.running > 0 and self.runs_here() and self.task() is not None

    def wait(self) -> in_slot.Wait:
        """What the task has to be in while it waits."""
        if self.is_actor:
            self._beside = _WaitingBeside(self)
            return self._beside
        return _Waiting(self)

    def nudge(self) -> None:
        """An interrupt came for a task that does not run: if it waits in an actor, it is woken."""
        if self._beside is not None:
            self._beside.nudge()

    def end_beside(self) -> None:
        """That wait is over."""
        self._beside = None

    def heard(self, message: list[Any]) -> None:
        """The agent said something about a task that waits."""
        if message[0] == slot_protocol.TASKS_WAIT_NOTED:
            self.noted[message[1]] = None
        else:
            self.going_on[message[1]] = message[2]


class CoroutineWaiting(SlotWaiting):
    """In a process of coroutines: many tasks run, and none has a seat to give up."""

    name_of: Callable[[], tuple[int, int] | None] = staticmethod(lambda: None)
    """Gives the name of the coroutine that the calling code is of."""

    @classmethod
    def instead_of(cls, around: SlotWaiting) -> CoroutineWaiting:
        """The same process's, from now on."""
        return cls(around.slot, around.cluster, around.claim, around.tasks)

    def task(self) -> tuple[int, int] | None:
        """The task that the calling code is of."""
        return self.name_of()

    def runs_here(self) -> bool:
        """No: where coroutines run, nothing else may be run inside them."""
        return False

    def may_wait(self) -> bool:
        """Who waits just waits."""
        return False


class _Waiting:
    """One wait of one task."""

    def __init__(self, around: SlotWaiting) -> None:
        self._around = around
        self._slot = around.slot
        self._sequence = around.slot.running
        self.descriptors = [around.tasks]

    def __enter__(self) -> Self:
        self._slot.running = 0
        self._away_before = self._around.away_seconds
        self._began = perf_counter()
        self._slot.report([self._sequence, slot_protocol.REPORT_WAITS])
        return self

    def attend(self, readable: list[int]) -> None:
        """The agent said something, or there is something to run."""
        around = self._around
        if around.tasks in readable:
            self._slot.take_messages()
            if self._sequence in around.going_on:
                raise TaskInterrupted
            if self._sequence in around.noted and len(self.descriptors) == 1:
                # The same pipe opened a second time, so that a record which was just taken back is not waited for.
                self._claim = os.open(f"/proc/self/fd/{around.claim}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self.descriptors.append(self._claim)
        elif len(self.descriptors) > 1:
            self._run_one()

    def _run_one(self) -> None:
        try:
            record = os.read(self._claim, slot_protocol.CLAIM_BYTES)
        except BlockingIOError:
            return  # it was taken back
        if not record:
            os._exit(0)  # the agent has gone; the starter is about to end this process anyway
        slot = self._slot
        current = slot.current
        assert current is not None, "a task waits that has not begun"
        slot.end_output()
        slot.below.append(current)
        try:
            with _deeper(slot.thread, _frames_of_task()):
                slot.run_claimed(int.from_bytes(record, "little"))
        finally:
            slot.below.pop()
            slot.current, slot.has_ended = current, False

    def __exit__(self, *exception: object) -> None:
        around, sequence = self._around, self._sequence
        if len(self.descriptors) > 1:
            os.close(self._claim)
        if sequence not in around.going_on:
            self._slot.report([sequence, slot_protocol.REPORT_WOKEN])
        while sequence not in around.going_on:
            self._slot.take_messages()
        around.noted.pop(sequence, None)
        interrupted = around.going_on.pop(sequence)
        around.away_seconds = self._away_before + perf_counter() - self._began
        self._slot.running = sequence
        if interrupted or self._slot.interrupted_early == sequence:
            self._slot.running = self._slot.interrupted_early = 0  # once
            raise TaskInterrupted


class _WaitingBeside:
    """One wait of an actor's method: nothing else runs in its process meanwhile, and the agent need not know."""

    def __init__(self, around: SlotWaiting) -> None:
        self._around = around
        self._slot = around.slot
        self._sequence = around.slot.running
        self._nudged, self._nudge = os.pipe()
        os.set_blocking(self._nudge, False)
        self.descriptors = [self._nudged]

    def nudge(self) -> None:
        """Have `attend` called."""
        with contextlib.suppress(BlockingIOError):  # it is full of nudges
            os.write(self._nudge, b"!")

    def __enter__(self) -> Self:
        self._slot.running = 0
        self._began = perf_counter()
        return self

    def attend(self, readable: list[int]) -> None:
        """An interrupt came."""
        os.read(self._nudged, 4096)
        if self._slot.interrupted_early == self._sequence:
            raise TaskInterrupted

    def __exit__(self, *exception: object) -> None:
        around = self._around
        around.away_seconds += perf_counter() - self._began
        around.end_beside()
        os.close(self._nudged)
        os.close(self._nudge)
        self._slot.running = self._sequence
        if self._slot.interrupted_early == self._sequence:
            self._slot.running = self._slot.interrupted_early = 0  # once
            raise TaskInterrupted


_depths: dict[int, int] = {}  # thread -> the frames of tasks that wait in it
_depths_lock = threading.Lock()


@contextlib.contextmanager
def _deeper(thread: int, frames: int) -> Iterator[None]:
    """What runs inside may recurse as deep as if it ran alone. The limit is the process's, threads of it or not."""
    _change_depth(thread, frames)
    try:
        yield
    finally:
        _change_depth(thread, -frames)


def _change_depth(thread: int, frames: int) -> None:
    with _depths_lock:
        before = max(_depths.values(), default=0)
        _depths[thread] = _depths.get(thread, 0) + frames
        if not _depths[thread]:
            del _depths[thread]
        sys.setrecursionlimit(sys.getrecursionlimit() + max(_depths.values(), default=0) - before)


def _frames_of_task() -> int:
    """How many frames the innermost task has on the stack: from the wait in which it runs, or the bottom, to here."""
    frame = sys._getframe(2)  # before the one that called, which may be a frame of that code too
    frames = 2
    while frame.f_back is not None and frame.f_code is not _RUN_ONE:
        frames += 1
        frame = frame.f_back
    return frames


_RUN_ONE: Final = _Waiting._run_one.__code__


def is_uninterrupted(frame: FrameType | None, boundary: object) -> bool:
    """Whether the task, of which this is the innermost frame and `boundary` the code that runs it, is in its client, or
    imports something: an interrupt has to wait."""
    while frame is not None and frame.f_code is not boundary:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(_UNINTERRUPTED_MODULES) and module != _RUNS_USERS_FUNCTIONS:
            return True
        frame = frame.f_back
    return False


def interrupt_again() -> None:
    """Send this process's main thread the signal once more, a little later."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.daemon = True
    timer.start()
