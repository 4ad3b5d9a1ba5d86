"""What coroutines of one process print, warn of, log and report: whose it is, the context of the caller says.

Each task has text streams of its own, so that half a line of one does not end up in a line of another. Python copies
the context to tasks of asyncio and into `asyncio.to_thread`. What other threads write is nobody's; what C code and
subprocesses write is nobody's, or the task's that wrote last.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, TextIO

from cluster.daemon import slot_protocol
from cluster.daemon.slot_output import RunName, SlotOutput, forget_shown_warnings, write_all
from cluster.wire import task_output

__all__ = ["SharedOutput"]


class _Sink(io.RawIOBase):
    """The bytes of one stream of one task."""

    def __init__(self, output: SharedOutput, kind: int, name: RunName) -> None:
        self._output = output
        self._kind = kind
        self._name = name

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._output.write_of(self._name, self._kind, view)
        return len(view)


class _SharedStream(io.TextIOBase):
    """sys.stdout or sys.stderr: it hands on to the stream of the task that writes."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, output: SharedOutput, kind: int) -> None:
        self._output = output
        self._kind = kind
        self.name = "<stdout>" if kind == task_output.STDOUT else "<stderr>"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1 if self._kind == task_output.STDOUT else 2

    def write(self, text: str, /) -> int:
        return self._output.stream(self._kind).write(text)

    def flush(self) -> None:
        self._output.stream(self._kind).flush()

    @property
    def buffer(self) -> Any:
        """The bytes below the text."""
        return self._output.stream(self._kind).buffer


class SharedOutput(SlotOutput):
    """Everything that leaves a process of coroutines beside its reports."""

    def _make_streams(self) -> None:
        self._streams: dict[tuple[RunName, int], io.TextIOWrapper] = {}
        self._warned: dict[RunName, set[tuple[object, ...]]] = {}
        self._source: tuple[RunName, int] | None = None
        self._stdout: Any = _SharedStream(self, task_output.STDOUT)
        self._stderr: Any = _SharedStream(self, task_output.STDERR)

    def stream(self, kind: int) -> io.TextIOWrapper:
        """The stream of the task that asks."""
        name = self._running.run_name()
        stream = self._streams.get((name, kind))
        if stream is None:
            sink: Any = _Sink(self, kind, name)
            stream = io.TextIOWrapper(sink, encoding="utf-8", errors="backslashreplace", line_buffering=True)
            self._streams[name, kind] = stream
        return stream

    def write_of(self, name: RunName, kind: int, data: memoryview) -> None:
        """Write a task's bytes, behind a mark where one is needed."""
        with self._lock:
            if self._source != (name, kind) and not self._forked:
                self._mark_for(name, kind if name[0] else task_output.END)
                self._source = (name, kind)
            write_all(1 if kind == task_output.STDOUT else 2, data)
        self.touched = True

    def restore(self) -> None:
        """Nothing: there is no moment at which no task runs."""

    def _mark_for(self, name: RunName, kind: int) -> None:
        write_all(self._descriptor, memoryview(task_output.pack_mark(self._token, kind, *name)))

    def end_run(self, name: RunName) -> None:
        """A task has ended: write what is left of its lines, and say that nothing more of it follows."""
        for kind in (task_output.STDOUT, task_output.STDERR):
            stream = self._streams.pop((name, kind), None)
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):  # the task closed it, or what is below it
                    stream.flush()
        self._warned.pop(name, None)
        with self._lock:
            if self._source is not None and self._source[0] == name:
                self._mark_for(name, task_output.END)
                self._source = None
        if self.touched:
            self.touched = False
            self._page[slot_protocol.PRINTED_OFFSET] = 1

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Show a warning once for each task and place: Python knows only what the process has shown."""
        forget_shown_warnings()
        shown = self._warned.setdefault(self._running.run_name(), set())
        place = (str(message), category, filename, lineno)
        if place not in shown:
            shown.add(place)
            super()._show_warning(message, category, filename, lineno, file, line)

    def progress(self, name: RunName, fraction: float, message: str) -> bool:
        """Report how far a task is: in the pipe, since the page has room for one task only."""
        if self._forked:
            return False
        text = message.encode("utf-8", "backslashreplace")[: slot_protocol.PROGRESS_TEXT_BYTES]
        fields = {"fraction": fraction, "message": text.decode("utf-8", "ignore")}
        with self._lock:
            for part in task_output.pack_record(self._token, task_output.PROGRESS, *name, fields):
                write_all(self._descriptor, memoryview(part))
        self.touched = True
        return True
