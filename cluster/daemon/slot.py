"""A slot: a process that runs users' tasks, one at a time, in its main thread, and nothing else.

The starter forks it and calls `run_slot`. The loop: claim a task by reading its record, find what it is, load its
function and inputs, run it, report it, claim the next. An idle slot blocks in that read. `slot_protocol.py` describes
the descriptors.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import pickle
import signal
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from time import perf_counter
from types import FrameType
from typing import Any, Final, NamedTuple, TextIO

import msgpack

from cluster.daemon import slot_protocol
from cluster.errors import ClusterError, SerializationError, StoreFull, ValueLost
from cluster.storage.segments import map_segment, write_encoded
from cluster.wire import payload
from cluster.wire.exceptions import dump_exception

__all__ = ["SlotDescriptors", "open_output", "run_slot"]

_SMALL_VALUE_BYTES: Final = 64 * 1024
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


class TaskInterrupted(BaseException):
    """Raised inside a task that was asked to stop; no Exception, so that a task does not catch it by accident."""


class _LoadFailed(Exception):
    """A task's function or arguments could not be loaded; the cause is the chained exception."""


class _InputGone(Exception):
    """An input was freed before the task could map it: no fault of the task, which is to run again."""


class _Piece:
    """Consecutive tasks as they came from the agent."""

    __slots__ = (
        "_unchangeable",
        "arguments",
        "base",
        "blob",
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
        self._unchangeable: dict[int, Any] = {}

    def value(self, need: int) -> Any:
        """Load an input. Each task gets its own, except of what nobody can change."""
        if need in self._unchangeable:
            return self._unchangeable[need]
        value = _load_value(self.values[need])
        if type(value) in _UNCHANGEABLE:
            self._unchangeable[need] = value
        return value


def open_output(descriptor: int) -> TextIO:
    """A text stream for what tasks print. Whole lines leave at once: what a slot wrote before it died is not lost."""
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def run_slot(descriptors: SlotDescriptors, worker_name: str) -> None:
    """Run tasks until the agent closes the claim pipe."""
    faulthandler.enable()  # a segmentation fault leaves its traceback among the last lines that the slot wrote
    _Slot(descriptors, worker_name).run()


class _Slot:
    def __init__(self, descriptors: SlotDescriptors, worker_name: str) -> None:
        self._descriptors = descriptors
        self._worker_name = worker_name
        self._page = mmap.mmap(descriptors.page, slot_protocol.PAGE_BYTES)
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)
        self._pack = msgpack.Packer().pack
        self._pieces: deque[_Piece] = deque()
        self._functions: dict[bytes, tuple[str, bytes]] = {}
        self._loaded: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
        self._segment_answers: dict[int, tuple[str, str]] = {}  # sequence -> path, reason
        self._running = 0  # the sequence that may be interrupted
        self._interrupted_early = 0  # the sequence whose interrupt came before it ran
        self._forked = False
        os.register_at_fork(after_in_child=self._after_fork_in_child)
        signal.signal(signal.SIGUSR1, self._on_interrupt)

    def run(self) -> None:
        claim, read = self._descriptors.claim, os.read
        self._write(self._pack([0]))
        while True:
            record = read(claim, slot_protocol.CLAIM_BYTES)
            if len(record) < slot_protocol.CLAIM_BYTES:
                return
            sequence = int.from_bytes(record, "little")
            report = self._execute(self._find(sequence), sequence)
            if self._forked:
                os._exit(0)  # a task called os.fork, and this is the child coming back from it: not a slot
            self._write(report)
            del report

    # ------------------------------------------------------------------ the agent's messages

    def _find(self, sequence: int) -> _Piece:
        pieces = self._pieces
        while True:
            while pieces:
                piece = pieces[0]
                if sequence < piece.sequence + piece.count:
                    return piece
                pieces.popleft()  # all run, or taken back
            self._read_tasks()

    def _read_tasks(self) -> None:
        data = os.read(self._descriptors.tasks, _READ_BYTES)
        if not data:
            os._exit(0)  # the agent has gone; the starter is about to end this process anyway
        self._restore_output()
        self._unpacker.feed(data)
        for message in self._unpacker:
            code = message[0]
            if code == slot_protocol.TASKS_GIVE:
                self._pieces.append(_Piece(message))
            elif code == slot_protocol.TASKS_DEFINE:
                self._functions[message[1]] = (message[2], message[3])
            else:
                self._segment_answers[message[1]] = (message[2], message[3])

    def _restore_output(self) -> None:
        """A task that closed or redirected its output does so for itself, not for those that come after it."""
        os.dup2(self._descriptors.output, 1)
        os.dup2(self._descriptors.output, 2)
        if sys.stdout is None or sys.stdout.closed:
            sys.stdout = open_output(1)
        if sys.stderr is None or sys.stderr.closed:
            sys.stderr = open_output(2)

    def _write(self, data: bytes) -> None:
        written = os.write(self._descriptors.reports, data)
        while written < len(data):
            written += os.write(self._descriptors.reports, memoryview(data)[written:])

    # ------------------------------------------------------------------ one task

    def _execute(self, piece: _Piece, sequence: int) -> bytes:
        """Run one task; its report, packed."""
        started = 0.0
        try:
            self._running = sequence
            if self._interrupted_early == sequence:
                raise TaskInterrupted
            function = self._loaded.get(piece.function_id)
            if function is None:
                function = self._load_function(piece.function_id)
            positional, keywords = self._load_arguments(piece, sequence - piece.sequence)
            started = perf_counter()
            value = function(*positional, **keywords)
            seconds = perf_counter() - started
            kind = type(value)
            if kind in _PLAIN or (kind in _TEXT and len(value) < _SMALL_VALUE_BYTES):
                data = pickle.dumps(value, 5)
                if len(data) <= _SMALL_VALUE_BYTES:
                    self._running = 0
                    packed: bytes = self._pack([sequence, seconds, data])
                    return packed
            return self._report_value(sequence, seconds, value)
        except BaseException as error:  # SystemExit and KeyboardInterrupt in a task are failures of the task
            self._running = 0
            seconds = perf_counter() - started if started else 0.0
            return self._report_error(piece, sequence, seconds, error)

    def _report_value(self, sequence: int, seconds: float, value: Any) -> bytes:
        encoded = payload.dumps(value, name="result")
        # From here on no interrupt: it could come between reading the agent's messages and taking note of them.
        self._running = 0
        contains = [part for reference in encoded.futures for part in reference[:2]]
        packed: bytes
        if encoded.nbytes <= _SMALL_VALUE_BYTES:
            report: list[Any] = [sequence, seconds, encoded.to_bytes()]
            if contains:
                report.append(contains)
            packed = self._pack(report)
            return packed
        self._write(self._pack([sequence, encoded.nbytes]))
        while sequence not in self._segment_answers:
            self._read_tasks()
        path, reason = self._segment_answers.pop(sequence)
        if not path:
            raise StoreFull(reason)
        write_encoded(path, encoded)
        packed = self._pack([sequence, seconds, "segment", encoded.nbytes, contains])
        return packed

    def _report_error(self, piece: _Piece, sequence: int, seconds: float, error: BaseException) -> bytes:
        if isinstance(error, TaskInterrupted):
            kind, data = "interrupted", b""
            details: dict[str, Any] = {"message": "the task was stopped while it ran"}
        elif isinstance(error, _InputGone):
            kind, data, details = "missing", b"", {"message": str(error)}
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
                call = payload.loads(blob, inputs=list(map(piece.value, needs)))
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

    # ------------------------------------------------------------------ signals and forks

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        target = int.from_bytes(self._page[:8], "little")
        if target == self._running:
            self._running = 0  # once
            raise TaskInterrupted
        self._interrupted_early = target

    def _after_fork_in_child(self) -> None:
        # A task's own child must not hold the slot's pipes open, and is no slot when it comes back from the task.
        self._forked = True
        self._running = 0
        for descriptor in self._descriptors:
            os.close(descriptor)


def _load_value(value: Any) -> Any:
    if type(value) is bytes:
        return payload.loads(value)
    path, nbytes = value
    try:
        mapped = map_segment(path, nbytes)
    except ValueLost as error:
        # The other copies were lost, and the scheduler did not know of this one yet: the value is made anew.
        raise _InputGone(str(error)) from error
    return payload.loads(mapped)


def _is_unserializable(error: BaseException) -> bool:
    return isinstance(error, SerializationError) and isinstance(error, ClusterError)
