"""What a slot's tasks print, warn of, log and report: each goes to the agent with the task's name, and only then.

A task that does nothing of it costs its slot no system call. The first bytes of a task are preceded by a mark, and its
end by another; see `cluster.wire.task_output`. Progress is written into the page that slot and agent share.
"""

from __future__ import annotations

import contextlib
import io
import logging
import mmap
import os
import sys
import threading
import warnings
from typing import Any, Final, Protocol, TextIO

from cluster.daemon import slot_protocol
from cluster.wire import task_output

__all__ = ["RunName", "SlotOutput", "forget_shown_warnings", "open_output", "write_all"]

RunName = tuple[int, int]
"""A run of a task: attempt and row."""

_NOTHING_OPEN: Final = -1


class _RunningTask(Protocol):
    def run_name(self) -> RunName:
        """The task that runs, or ran last."""


def open_output(descriptor: int) -> TextIO:
    """A text stream for what a slot writes before it is ready. Whole lines leave at once: they survive its death."""
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


class _Sink(io.RawIOBase):
    """The bytes of one of the two streams; unbuffered, as under `python -u`."""

    def __init__(self, output: SlotOutput, kind: int, descriptor: int) -> None:
        self._output = output
        self._kind = kind
        self._descriptor = descriptor
        self.name = "<stdout>" if descriptor == 1 else "<stderr>"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._output.write(self._kind, self._descriptor, view)
        return len(view)


class _TaskStream(io.TextIOWrapper):
    """sys.stdout or sys.stderr of a slot. Whole lines leave at once, the rest at the end of the task."""

    def __init__(self, output: SlotOutput, kind: int, descriptor: int) -> None:
        sink: Any = _Sink(output, kind, descriptor)
        super().__init__(sink, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._output = output

    def write(self, text: str, /) -> int:
        self._output.touched = True
        return super().write(text)


class _RecordHandler(logging.Handler):
    """Hands a logging record to the client, where the logger of the same name handles it."""

    def __init__(self, output: SlotOutput) -> None:
        super().__init__()
        self._output = output
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.log(record, self._formatter)
        except Exception:  # as every handler of the library: a record that cannot be made text is said on stderr
            self.handleError(record)


class SlotOutput:
    """Everything that leaves a slot beside its reports."""

    def __init__(self, descriptor: int, page: mmap.mmap, running: _RunningTask) -> None:
        self.touched = False
        """Whether the running task wrote or reported anything; `end_task` is due then."""
        self.marks_all = False
        """Whether each task is to be marked: the agent has seen bytes that came past Python's streams."""
        self._descriptor = descriptor
        self._page = page
        self._running = running
        start = slot_protocol.TOKEN_OFFSET
        self._token = bytes(page[start : start + task_output.TOKEN_BYTES])
        self._lock = threading.Lock()
        self._open = _NOTHING_OPEN
        self._progressing: RunName | None = None
        self._has_warned = False  # since Python was last made to forget which warnings it has shown
        self._forked = False
        self._make_streams()
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def install(self) -> None:
        """Have print, warnings and logging write here. What a task's own configuration of logging handles stays so."""
        sys.stdout, sys.stderr = self._stdout, self._stderr
        warnings.showwarning = self._show_warning
        # Only where no handler is configured, so that `logging.basicConfig` in a task works as anywhere else.
        logging.lastResort = _RecordHandler(self)
        logging.getLogger().setLevel(logging.INFO)  # the client's own loggers decide what is shown there

    def restore(self) -> None:
        """A task that closed or redirected its output does so for itself, not for those that come after it."""
        self.marks_all = bool(self._page[slot_protocol.MARK_ALL_OFFSET])
        os.dup2(self._descriptor, 1)
        os.dup2(self._descriptor, 2)
        if self._stdout.closed or self._stderr.closed:
            self._make_streams()
        sys.stdout, sys.stderr = self._stdout, self._stderr

    def _make_streams(self) -> None:
        self._stdout = _TaskStream(self, task_output.STDOUT, 1)
        self._stderr = _TaskStream(self, task_output.STDERR, 2)

    # ------------------------------------------------------------------ text

    def write(self, kind: int, descriptor: int, data: memoryview) -> None:
        """Write a task's bytes to one of the standard descriptors, behind a mark where one is needed."""
        self.touched = True
        with self._lock:
            if kind != self._open and not self._forked:
                self._mark(kind)
            write_all(descriptor, data)

    def mark_task(self) -> None:
        """A task begins, and something here writes past Python: say that what follows is this task's."""
        self.touched = True
        with self._lock:
            self._mark(task_output.RAW)

    def _mark(self, kind: int) -> None:
        write_all(self._descriptor, memoryview(task_output.pack_mark(self._token, kind, *self._running.run_name())))
        self._open = kind

    def end_task(self) -> None:
        """The task has ended: write what is left of its lines, and say that nothing more of it follows."""
        for stream in (self._stdout, self._stderr):
            with contextlib.suppress(OSError, ValueError):  # the task closed it, or what is below it
                stream.flush()
        self.touched = False
        self._progressing = None
        self._page[slot_protocol.PROGRESSING_OFFSET] = 0
        with self._lock:
            if self._open != _NOTHING_OPEN:
                self._mark(task_output.END)
                self._open = _NOTHING_OPEN
        if self._has_warned:
            self._has_warned = False
            forget_shown_warnings()
        self._page[slot_protocol.PRINTED_OFFSET] = 1

    # ------------------------------------------------------------------ records

    def _record(self, kind: int, record: dict[str, Any]) -> None:
        attempt, row = self._running.run_name()
        self.touched = True
        with self._lock:
            for part in task_output.pack_record(self._token, kind, attempt, row, record):
                write_all(self._descriptor, memoryview(part))

    def log(self, record: logging.LogRecord, formatter: logging.Formatter, asked_for: bool = False) -> None:
        """Hand over a logging record. `asked_for`: the client shows it though its logger would not."""
        message = record.getMessage()
        if self._forked:  # a process of the task's own: no pipe but the standard ones
            self._stderr.write(f"{record.levelname}:{record.name}:{message}\n")
            return
        fields = {
            "name": record.name,
            "level": record.levelno,
            "message": message,
            "path": record.pathname,
            "line": record.lineno,
            "function": record.funcName or "",
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = formatter.formatException(record.exc_info)
        if asked_for:
            fields["asked_for"] = True
        self._record(task_output.LOG, fields)

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None or self._forked:
            (file or self._stderr).write(warnings.formatwarning(message, category, filename, lineno, line))
            return
        self._has_warned = True
        fields = {
            "message": str(message),
            "category": category.__qualname__,
            "module": category.__module__,
            "path": filename,
            "line": lineno,
        }
        self._record(task_output.WARNING, fields)

    def progress(self, name: RunName, fraction: float, message: str) -> bool:
        """Report how far a task is; False in a process of the task's own. No system call but at a task's first."""
        if self._forked:
            return False
        text = message.encode("utf-8", "backslashreplace")[: slot_protocol.PROGRESS_TEXT_BYTES]
        page, counter = self._page, slot_protocol.PROGRESS_COUNTER_OFFSET
        with self._lock:
            page[slot_protocol.PROGRESSING_OFFSET] = 1
            odd = int.from_bytes(page[counter : counter + 8], "little") | 1
            page[counter : counter + 8] = odd.to_bytes(8, "little")
            start = slot_protocol.PROGRESS_OFFSET
            slot_protocol.progress_record.pack_into(page, start, *name, fraction, len(text))
            start += slot_protocol.progress_record.size
            page[start : start + len(text)] = text
            page[counter : counter + 8] = (odd + 1).to_bytes(8, "little")
        if self._progressing != name:
            self._progressing = name
            self._record(task_output.PROGRESS, {})
        return True

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._forked = True


class _NeverWarned(Warning):
    """A category that nobody uses."""


def forget_shown_warnings() -> None:
    """Have Python show each warning once more, as its filters say: what another task has seen this one has not."""
    warnings.onceregistry.clear()  # type: ignore[attr-defined]
    # Adding a filter, be it there already, makes the modules' registries void.
    warnings.simplefilter("default", _NeverWarned, append=True)


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of it, in as many pieces as the descriptor takes it in."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])
