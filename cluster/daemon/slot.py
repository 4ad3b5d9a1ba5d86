"""A slot: a process that runs users' tasks, one at a time, in its main thread, and nothing else.

The starter forks it and calls `run_slot`. The loop: claim a task by reading its record, find what it is, load its
function and inputs, run it, report it, claim the next. An idle slot blocks in that read. `slot_protocol.py` describes
the descriptors.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import pickle
import signal
import sys
import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from time import perf_counter
from types import CoroutineType, FrameType
from typing import Any, Final, NamedTuple

import msgpack

from cluster.daemon import in_slot, slot_protocol
from cluster.daemon.slot_actor import KeptActor
from cluster.daemon.slot_coroutines import run_coroutine
from cluster.daemon.slot_memory import give_back, keep_small_apart
from cluster.daemon.slot_output import SlotOutput
from cluster.daemon.slot_run import SlotRun
from cluster.daemon.slot_segments import SegmentAnswer, SegmentWriter
from cluster.daemon.slot_waiting import (
    CoroutineWaiting,
    SlotWaiting,
    TaskInterrupted,
    interrupt_again,
    is_uninterrupted,
)
from cluster.daemon.task_context import running_inside
from cluster.daemon.task_threads import follow_threads, owner_of_context
from cluster.errors import ClusterError, SerializationError, StoreFull, ValueLost
from cluster.storage.maps import KeptMaps
from cluster.wire import payload
from cluster.wire.exceptions import dump_exception
from cluster.wire.task_output import row_of
from cluster.worker.values import SMALL_VALUE_BYTES

__all__ = ["Slot", "SlotDescriptors", "run_slot"]

_READ_BYTES: Final = 256 * 1024
# Loaded functions kept; whichever was not used longest is loaded anew when it is needed.
_FUNCTIONS_KEPT: Final = 256
_PLAIN: Final = frozenset({type(None), bool, int, float})
_TEXT: Final = frozenset({str, bytes})
_UNCHANGEABLE: Final = _PLAIN | {str, bytes}
_NO_ARGUMENTS: Final[dict[str, Any]] = {}


class SlotDescriptors(NamedTuple):
    """The slot's ends of what it shares with its agent."""

    claim: int
    tasks: int
    reports: int
    output: int
    page: int
    segments: int = -1
    """Not there without the fast paths."""

    @property
    def opened(self) -> tuple[int, ...]:
        """Those that are there."""
        return tuple(descriptor for descriptor in self if descriptor >= 0)

    @classmethod
    def of_threads(cls, passed: Sequence[int], threads: int) -> list[SlotDescriptors]:
        """Those of each slot of a process, of which the first has the output for all."""
        each = len(passed) // threads  # without the output
        output_at = cls._fields.index("output")
        output = passed[output_at]
        rest = [*passed[:output_at], *passed[output_at + 1 :]]
        found = []
        for start in range(0, len(rest), each):
            claim, tasks, reports, *others = rest[start : start + each]
            found.append(cls(claim, tasks, reports, output, *others))
        return found

    @classmethod
    def all_opened(cls, threads: Sequence[SlotDescriptors]) -> list[int]:
        """Those that are there, of all slots of a process, each once."""
        return list(dict.fromkeys(descriptor for thread in threads for descriptor in thread.opened))


class _LoadFailed(Exception):
    """A task's function or arguments could not be loaded; the cause is the chained exception."""


class _InputGone(Exception):
    """An input was freed before the task could map it: no fault of the task, which is to run again."""


class _BecomesHost(Exception):
    """This process is to run coroutines."""


class _Piece:
    """Consecutive tasks as they came from the agent."""

    __slots__ = (
        "_unchangeable",
        "arguments",
        "base",
        "blob",
        "context",
        "count",
        "function_id",
        "input_starts",
        "inputs",
        "label",
        "offsets",
        "sequence",
        "values",
    )

    def __init__(self, message: list[Any]) -> None:
        (_, self.sequence, self.count, self.function_id, self.label, self.arguments, offsets, self.blob) = message[:8]
        self.offsets = array("I", offsets)
        self.base = self.offsets[0] if self.offsets else 0
        self.input_starts = array("I", message[8])
        self.inputs = array("I", message[9])
        self.values: list[Any] = message[10]
        self.context: list[Any] = message[11]
        self._unchangeable: dict[int, Any] = {}

    def name(self, sequence: int) -> tuple[int, int]:
        """What the scheduler calls the task of that sequence: (attempt, row)."""
        return self.context[0], row_of(self.context[1], sequence - self.sequence)

    def gone_files(self) -> list[str]:
        """The files of inputs that are not there any more."""
        return [value[0] for value in self.values if type(value) is list and not os.path.exists(value[0])]

    def value(self, need: int, bind_future: Callable[[Any], Any], maps: KeptMaps) -> Any:
        """Load an input. Each task gets its own, except of what nobody can change."""
        if need in self._unchangeable:
            return self._unchangeable[need]
        value = _load_value(self.values[need], bind_future, maps)
        if type(value) in _UNCHANGEABLE:
            self._unchangeable[need] = value
        return value


def run_slot(descriptors: SlotDescriptors, worker_name: str, cluster: in_slot.ClusterOfSlot) -> None:
    """Run tasks until the agent closes the claim pipe."""
    faulthandler.enable()  # a segmentation fault leaves its traceback among the last lines that the slot wrote
    slot = Slot(descriptors, worker_name, cluster)
    slot.take_over_process()
    slot.run()


class Slot:
    """What runs tasks, in the thread that makes it."""

    def __init__(self, descriptors: SlotDescriptors, worker_name: str, cluster: in_slot.ClusterOfSlot) -> None:
        self._descriptors = descriptors
        self._worker_name = worker_name
        self._page = mmap.mmap(descriptors.page, slot_protocol.PAGE_BYTES)
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)
        self._pack = msgpack.Packer().pack
        self._pieces: deque[_Piece] = deque()
        self._functions: dict[bytes, tuple[str, bytes]] = {}
        self._loaded: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
        self.segment_answers: dict[int, SegmentAnswer] = {}  # by sequence
        self.segments = SegmentWriter(descriptors.segments)
        self.maps = KeptMaps()
        self.running = 0  # the sequence that may be interrupted
        self.interrupted_early = 0  # the sequence whose interrupt came when it could not be
        self.current: tuple[Any, int] | None = None  # the task that was begun last
        self.has_ended = True  # that task
        self.below: list[tuple[Any, int]] = []  # the tasks that wait, in which it runs
        self.thread = threading.get_ident()
        self._waiting = SlotWaiting(self, cluster, descriptors.claim, descriptors.tasks)
        self.forked = False
        self._actor: KeptActor | None = None
        self._host: Any = None  # a CoroutineHost
        self._started = 0.0
        self._last_target = 0  # of the last interrupt
        self._output: Any = None
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def take_over_process(self) -> None:
        """Be the only slot of this process: what is written, asked and interrupted here concerns its task."""
        self._output = SlotOutput(self._descriptors.output, self._page, self)
        self._output.install()
        running_inside(self._running_task)
        signal.signal(signal.SIGUSR1, self._on_interrupt)
        in_slot.enter(self._waiting)
        follow_threads(self._belong)
        keep_small_apart()

    def run(self) -> None:
        """Run tasks until the agent closes the claim pipe, or wants coroutines run."""
        claim, read = self._descriptors.claim, os.read
        self.write(self._pack([0]))
        while True:
            record = read(claim, slot_protocol.CLAIM_BYTES)
            if len(record) < slot_protocol.CLAIM_BYTES:
                return
            sequence = int.from_bytes(record, "little")
            try:
                self.run_claimed(sequence)
            except _BecomesHost:
                break
        self._waiting = CoroutineWaiting.instead_of(self._waiting)
        in_slot.enter(self._waiting)
        # Loaded here, since few slots need it and it would be a fifth of what the starter loads.
        host = import_module("cluster.daemon.slot_loops").CoroutineHost
        self._host = host(self, self._descriptors, self._page, self._worker_name, self._waiting)
        self._output = self._host.output
        self._take_in()  # what had come with the message that it is one
        self._host.run(sequence)

    def run_claimed(self, sequence: int) -> None:
        """Run a task whose record was read, and report it."""
        output, started = self._output, self._started
        piece = self.find(sequence)
        self.current = piece, sequence
        self.has_ended = False
        self.maps.defers = True
        if output.marks_all:
            output.mark_task()
        report = self._execute(piece, sequence)
        self._started = started
        if self.forked:
            os._exit(0)  # a task called os.fork, and this is the child coming back from it: not a slot
        if output.touched:
            output.end_task()
        if self._waiting.used is not None:
            self._waiting.used.settle(self.run_name())
        self.has_ended = True
        self.write(report)
        self.maps.settle()  # not before: somebody may wait for the report
        if self._page[slot_protocol.TRIM_OFFSET]:
            self._trim()

    def owner(self) -> tuple[Any, int] | None:
        """The task that the calling code is of; None if that has ended."""
        task = self.current if threading.get_ident() == self.thread else owner_of_context.get()
        return task if self.is_open(task) else None

    def _belong(self) -> Callable[[], object] | None:
        """What a thread begins with that is started here: it is of the task that starts it."""
        task = self.owner() if self._host is None else owner_of_context.get()
        return None if self.forked or task is None else partial(owner_of_context.set, task)

    def is_open(self, task: Any) -> bool:
        """Whether that task runs, or waits for others."""
        return (task is self.current and not self.has_ended) or any(task is waits for waits in self.below)

    @property
    def surroundings(self) -> SlotWaiting:
        """The slot as a client in it sees it."""
        return self._waiting

    def end_output(self) -> None:
        """What the task has written is its own; what follows may be another's."""
        if self._output.touched:
            self._output.end_task()

    def report(self, report: list[Any]) -> None:
        """Tell the agent something."""
        self.write(self._pack(report))

    def load(self, sequence: int) -> tuple[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """A claimed task's piece, function and arguments. Raises what `failure` makes a report of."""
        piece = self.find(sequence)
        function = self._loaded.get(piece.function_id) or self._load_function(piece.function_id)
        return piece, function, *self._load_arguments(piece, sequence - piece.sequence)

    # ------------------------------------------------------------------ the agent's messages

    def find(self, sequence: int) -> _Piece:
        """The piece of a claimed task; what comes before it was run, or taken back."""
        pieces = self._pieces
        while True:
            while pieces:
                piece = pieces[0]
                if sequence < piece.sequence + piece.count:
                    return piece
                pieces.popleft()  # all run, or taken back
            self._read_tasks()

    def _read_tasks(self) -> None:
        self.take_messages()
        self._output.restore()

    def take_messages(self) -> None:
        """Take in what the agent has sent; waits for something if there is nothing."""
        data = os.read(self._descriptors.tasks, _READ_BYTES)
        if not data:
            os._exit(0)  # the agent has gone; the starter is about to end this process anyway
        self._unpacker.feed(data)
        self._take_in()

    def _take_in(self) -> None:
        for message in self._unpacker:
            code = message[0]
            if code == slot_protocol.TASKS_GIVE:
                self._pieces.append(_Piece(message))
            elif code == slot_protocol.TASKS_DEFINE:
                self._functions[message[1]] = (message[2], message[3])
            elif code == slot_protocol.TASKS_SEGMENT:
                self.segment_answers[message[1]] = self.segments.take_in(SegmentAnswer(*message[2:]))
            elif code == slot_protocol.TASKS_FORGET_SEGMENT:
                self.segments.forget(message[1])
            elif code == slot_protocol.TASKS_ACTOR:
                self._actor = KeptActor(tuple(message[1]))
                self._waiting.is_actor = True
            elif code == slot_protocol.TASKS_COROUTINES:
                raise _BecomesHost
            elif self._host is not None:
                self._host.stop(message[1])
            else:
                self._waiting.heard(message)

    def write(self, data: bytes) -> None:
        """Send a packed report."""
        written = os.write(self._descriptors.reports, data)
        while written < len(data):
            written += os.write(self._descriptors.reports, memoryview(data)[written:])

    # ------------------------------------------------------------------ one task

    def _execute(self, piece: _Piece, sequence: int) -> bytes:
        """Run one task; its report, packed."""
        started = 0.0
        waiting = self._waiting
        away = waiting.away_seconds
        try:
            self.running = sequence
            if self.interrupted_early == sequence:
                raise TaskInterrupted
            function = self._loaded.get(piece.function_id)
            if function is None:
                function = self._load_function(piece.function_id)
            if self._actor is not None:
                function = self._actor.making(function)
            positional, keywords = self._load_arguments(piece, sequence - piece.sequence)
            self._started = started = perf_counter()
            value = function(*positional, **keywords)
            seconds = perf_counter() - started - (waiting.away_seconds - away)
            kind = type(value)
            if kind in _PLAIN or (kind in _TEXT and len(value) < SMALL_VALUE_BYTES):
                data = pickle.dumps(value, 5)
                if len(data) <= SMALL_VALUE_BYTES:
                    self.running = 0
                    packed: bytes = self._pack([sequence, seconds, data])
                    return packed
            if kind is CoroutineType:
                value = run_coroutine(value)
                seconds = perf_counter() - started - (waiting.away_seconds - away)
            return self._report_value(sequence, seconds, value)
        except BaseException as error:  # SystemExit and KeyboardInterrupt in a task are failures of the task
            self.running = 0
            seconds = perf_counter() - started - (waiting.away_seconds - away) if started else 0.0
            return self.failure(piece, sequence, seconds, error)

    def _report_value(self, sequence: int, seconds: float, value: Any) -> bytes:
        encoded = payload.dumps(value, name="result")
        # From here on no interrupt: it could come between reading the agent's messages and taking note of them.
        self.running = 0
        contains = [part for reference in encoded.futures for part in reference[:2]]
        task = self._waiting.task() if contains and self._waiting.used is not None else None
        if task is not None and self._waiting.used is not None:
            # While the value, and with it the futures, is still there.
            self._waiting.used.hand_over(task, contains)
        packed: bytes
        if encoded.nbytes <= SMALL_VALUE_BYTES:
            report: list[Any] = [sequence, seconds, encoded.to_bytes()]
            if contains:
                report.append(contains)
            packed = self._pack(report)
            return packed
        self.write(self._pack([sequence, encoded.nbytes]))
        while sequence not in self.segment_answers:
            self._read_tasks()
        answer = self.segment_answers.pop(sequence)
        if not answer.path:
            raise StoreFull(answer.reason)
        self.segments.write(answer, encoded)
        packed = self._pack([sequence, seconds, "segment", encoded.nbytes, contains])
        return packed

    def failure(self, piece: _Piece, sequence: int, seconds: float, error: BaseException) -> bytes:
        """The report of a task that ended without a value, packed."""
        if isinstance(error, TaskInterrupted):
            kind, data = "interrupted", b""
            details: dict[str, Any] = {"message": "the task was stopped while it ran"}
        elif isinstance(error, _InputGone):
            kind, data, details = "missing", b"", {"message": str(error), "files": piece.gone_files()}
        elif isinstance(error, _LoadFailed):
            kind, data, details = self._describe_load_failure(piece, error)
        else:
            data, details = dump_exception(error)
            kind = "unserializable" if _is_unserializable(error) else "exception"
        packed: bytes = self._pack([sequence, seconds, kind, data, details])
        return packed

    def _describe_load_failure(self, piece: _Piece, error: _LoadFailed) -> tuple[str, bytes, dict[str, Any]]:
        cause = error.__cause__
        assert cause is not None
        if isinstance(cause, ModuleNotFoundError):
            module = cause.name or str(cause)
            text = f"{error} needs the module {module!r}, which worker {self._worker_name} cannot import"
            remedy = (
                f"install {module!r} in the worker's environment ({sys.executable}), or start the worker with "
                "--python-path naming the folder that holds it"
            )
            data, details = dump_exception(cause)
            return "import", data, {**details, "message": f"{text}: {remedy}", "module": module, "remedy": remedy}
        cause.add_note(f"raised while {error} was loaded on worker {self._worker_name}")
        data, details = dump_exception(cause)
        return "exception", data, details

    # ------------------------------------------------------------------ loading

    def _load_function(self, function_id: bytes) -> Callable[..., Any]:
        name, blob = self._functions[function_id]
        try:
            function: Callable[..., Any] = payload.loads(blob)
        except Exception as error:
            raise _LoadFailed(f"the function {name}") from error
        self._loaded[function_id] = function
        if len(self._loaded) > _FUNCTIONS_KEPT:
            self._loaded.popitem(last=False)
        return function

    def _load_arguments(self, piece: _Piece, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        blob = piece.blob
        try:
            if piece.offsets:
                blob = blob[piece.offsets[index] - piece.base : piece.offsets[index + 1] - piece.base]
            if piece.inputs:
                needs = piece.inputs
                if piece.input_starts:
                    needs = needs[piece.input_starts[index] : piece.input_starts[index + 1]]
                bind = self._waiting.bind
                call = payload.loads(blob, inputs=[piece.value(need, bind, self.maps) for need in needs])
            else:
                call = pickle.loads(blob)
        except _InputGone:
            raise
        except Exception as error:
            raise _LoadFailed(f"what {piece.label} was given as arguments") from error
        if piece.arguments:
            positional, keywords = call
            return positional, keywords
        return call, _NO_ARGUMENTS

    # ------------------------------------------------------------------ what a task is told of itself

    def run_name(self) -> tuple[int, int]:
        """Attempt and row of the task that runs, or ran last; zeros if that was none."""
        if self.current is None or not self.current[0].context:
            return 0, 0  # an errand, or nothing yet
        piece, sequence = self.current
        name: tuple[int, int] = piece.name(sequence)
        return name

    def _running_task(self) -> SlotRun | None:
        if self.current is None or not self.current[0].context:
            return None
        piece, sequence = self.current
        index = sequence - piece.sequence
        return SlotRun(
            piece.context, piece.label, index, sequence, self._started, self._worker_name, self._page, self._output,
            lambda: 0 if self.current is None else self.current[1],
        )  # fmt: skip

    # ------------------------------------------------------------------ signals and forks

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        target = int.from_bytes(self._page[:8], "little")
        if self._page[slot_protocol.TRIM_OFFSET]:
            if frame is not None and frame.f_code is _RUN:
                self._trim()  # it waits for a task; elsewhere a report may be half written
            if target == self._last_target:
                return  # that one is no news
        self._last_target = target
        if target != self.running:
            self.interrupted_early = target
            self._waiting.nudge()
        elif is_uninterrupted(frame, _EXECUTE):
            interrupt_again()
        else:
            self.running = 0  # once
            raise TaskInterrupted

    def _trim(self) -> None:
        self._page[slot_protocol.TRIM_OFFSET] = 0
        self.maps.clear()
        self.write(self._pack([give_back(), slot_protocol.REPORT_TRIMMED]))

    def _after_fork_in_child(self) -> None:
        # A task's own child must not hold the slot's pipes open, and is no slot when it comes back from the task.
        self.forked = True
        self.running = 0
        in_slot.enter(None)
        self.segments.after_fork_in_child()
        self.maps.after_fork_in_child()
        for descriptor in self._descriptors.opened:
            with contextlib.suppress(OSError):  # slots that are threads have some in common
                os.close(descriptor)


_EXECUTE: Final = Slot._execute.__code__
_RUN: Final = Slot.run.__code__


def _load_value(value: Any, bind_future: Callable[[Any], Any], maps: KeptMaps) -> Any:
    if type(value) is bytes:
        return payload.loads(value, bind_future=bind_future)
    path, nbytes = value
    try:
        mapped = maps.map(path, nbytes)
    except ValueLost as error:
        # The other copies were lost, and the scheduler did not know of this one yet: the value is made anew.
        raise _InputGone(str(error)) from error
    return payload.loads(mapped, bind_future=bind_future)


def _is_unserializable(error: BaseException) -> bool:
    return isinstance(error, SerializationError) and isinstance(error, ClusterError)
