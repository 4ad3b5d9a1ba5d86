"""What tasks have written, asked for by their futures."""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from cluster.client.core import ClientCore
from cluster.client.future import Future
from cluster.client.operations import Operation
from cluster.client.output_display import cut_notice
from cluster.wire.task_output import CUT, LOG, RAW, STDERR, STDOUT, WARNING, unpack_record

__all__ = ["LogLine", "TaskOutputs"]

_STREAMS: Final = {RAW: "output", STDOUT: "stdout", STDERR: "stderr", LOG: "log", WARNING: "warning", CUT: "cut"}


class LogLine(NamedTuple):
    """One line that a task wrote.

    `time` is in seconds since the epoch, of when its worker read it. `stream` is "stdout", "stderr", "output" (written
    past Python, by C code or a process that the task started), "log", "warning", or "cut" for what was left out.
    `worker` ran that attempt of the task.
    """

    time: float
    stream: str
    text: str
    worker: str

    def __str__(self) -> str:
        return self.text


class TaskOutputs(ClientCore):
    """The part of `Client` that asks for what tasks wrote."""

    def _logs_of(self, future: Future) -> list[LogLine]:
        return self._complete(self._logs(future))

    def _logs(self, future: Future) -> Operation[list[LogLine]]:
        self._check_own(future)
        runs = yield from self._ask("task_output", future._wanted())
        lines: list[LogLine] = []
        for worker, entries, forgotten in runs:
            if forgotten:
                text = f"what an attempt wrote on {worker or 'a worker that is gone'} is no longer kept"
                lines.append(LogLine(0.0, "cut", text, worker))
            lines += _lines_of(entries, worker)
        return lines


def _lines_of(entries: list[Any], worker: str) -> list[LogLine]:
    lines: list[LogLine] = []
    unfinished: dict[int, tuple[float, str]] = {}
    for kind, seconds, data in entries:
        if kind in (RAW, STDOUT, STDERR):
            began, before = unfinished.pop(kind, (seconds, ""))
            whole = (before + data.decode("utf-8", "replace")).split("\n")
            rest = whole.pop()
            lines += [LogLine(began, _STREAMS[kind], line, worker) for line in whole]
            if rest:
                unfinished[kind] = (began, rest)
        else:
            stream = _STREAMS.get(kind, "output")
            lines += [LogLine(seconds, stream, line, worker) for line in _record_lines(kind, data)]
    lines += [LogLine(began, _STREAMS[kind], rest, worker) for kind, (began, rest) in unfinished.items()]
    return lines


def _record_lines(kind: int, data: bytes) -> list[str]:
    if kind == CUT:
        return [cut_notice(data).strip()]
    fields = unpack_record(data)
    message = str(fields.get("message", ""))
    if kind == LOG:
        level = fields.get("level")
        name = logging.getLevelName(level if isinstance(level, int) else logging.INFO)
        text = f"{name}:{fields.get('name', '')}:{message}"
        if fields.get("exception"):
            text += f"\n{fields['exception']}"
    else:
        text = f"{fields.get('path')}:{fields.get('line')}: {fields.get('category')}: {message}"
    return text.split("\n")
