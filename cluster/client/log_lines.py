"""What a task wrote as lines, from the entries that its worker kept."""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from cluster.units import format_bytes
from cluster.wire.task_output import CUT, LOG, RAW, STDERR, STDOUT, WARNING, unpack_record

__all__ = ["LogLine", "cut_notice", "dropped_bytes", "lines_of_runs"]

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


def lines_of_runs(runs: list[Any]) -> list[LogLine]:
    """The lines of each run of a task, `[worker, entries, forgotten]`, in their order."""
    lines: list[LogLine] = []
    for worker, entries, forgotten in runs:
        if forgotten:
            text = f"what an attempt wrote on {worker or 'a worker that is gone'} is no longer kept"
            lines.append(LogLine(0.0, "cut", text, worker))
        lines += _lines_of(entries, worker)
    return lines


def dropped_bytes(runs: list[Any]) -> int:
    """How many bytes the workers left out of these runs, as far as they say."""
    return sum(int(data) for _, entries, _ in runs for kind, _, data in entries if kind == CUT and data.isdigit())


def cut_notice(data: bytes, key: str = "") -> str:
    """The line that stands for what was left out."""
    size = format_bytes(int(data)) if data.isdigit() else "something"
    return f"\n… {size} not shown{' of ' + key if key else ''} …\n"


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
