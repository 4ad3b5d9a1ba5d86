"""Shows what tasks wrote: text on this process's streams, warnings as warnings, records by the loggers they name."""

from __future__ import annotations

import builtins
import logging
import sys
import threading
import warnings
from typing import Any, Final

from cluster.client.log_lines import cut_notice
from cluster.session.machine import Session
from cluster.wire.task_output import CUT, LOG, STDERR, WARNING, unpack_record

__all__ = ["OutputDisplay"]

_log = logging.getLogger("cluster.client")
_TEXT_LIMIT: Final = 70_000


class OutputDisplay:
    """Shows what has come for one client, in order, whichever thread has received it."""

    def __init__(self, session: Session) -> None:
        self._output = session.output
        self._showing = threading.Lock()
        self._unfinished_line: tuple[int, int] | None = None  # whose: number and kind

    def show(self) -> None:
        """Show all that has come. Whoever comes while another thread does leaves it to that one."""
        while self._output and self._showing.acquire(blocking=False):
            try:
                while self._output:
                    number, key, worker, entries = self._output.popleft()
                    for kind, _, data in entries:
                        self._try_to_show(number, key, worker, kind, data)
            finally:
                self._showing.release()

    def _try_to_show(self, number: int, key: str, worker: str, kind: int, data: bytes) -> None:
        try:
            self._show_entry(number, key, worker, kind, data)
        except Exception:  # a closed stream, a filter that makes errors of warnings: no fault of the connection
            _log.exception("what task %s wrote could not be shown", key)

    def _show_entry(self, number: int, key: str, worker: str, kind: int, data: bytes) -> None:
        if kind == LOG:
            _handle_record(unpack_record(data), key, worker)
        elif kind == WARNING:
            _warn(unpack_record(data), key)
        elif kind == CUT:
            self._write(number, STDERR, cut_notice(data, key))
        else:
            self._write(number, kind, data.decode("utf-8", "replace"))

    def _write(self, number: int, kind: int, text: str) -> None:
        stream = sys.stderr if kind == STDERR else sys.stdout
        if stream is None or not text:  # a program without a console
            return
        source = (number, kind)
        if self._unfinished_line not in (None, source):
            text = "\n" + text
        self._unfinished_line = None if text.endswith("\n") else source
        stream.write(text)
        stream.flush()


def _handle_record(fields: dict[str, Any], key: str, worker: str) -> None:
    logger = logging.getLogger(str(fields.get("name", "")))
    level = _whole(fields.get("level"), logging.INFO)
    message = str(fields.get("message", ""))[:_TEXT_LIMIT]
    if not logger.isEnabledFor(level) or not logger.hasHandlers():
        # Without handlers the library writes warnings and worse to stderr, and so do we.
        if fields.get("asked_for") or (level >= logging.WARNING and logger.isEnabledFor(level)):
            _print_record(message, fields)
        return
    logger.handle(
        logging.makeLogRecord(
            {
                "name": logger.name,
                "levelno": level,
                "levelname": logging.getLevelName(level),
                "msg": message,
                "pathname": str(fields.get("path", "")),
                "filename": str(fields.get("path", "")).rpartition("/")[2],
                "lineno": _whole(fields.get("line"), 0),
                "funcName": str(fields.get("function", "")),
                "exc_text": str(fields["exception"]) if fields.get("exception") else None,
                "task_key": key,
                "worker": worker,
            }
        )
    )


def _print_record(message: str, fields: dict[str, Any]) -> None:
    if sys.stderr is not None:
        text = message + ("\n" + str(fields["exception"]) if fields.get("exception") else "")
        sys.stderr.write(text + "\n")


def _warn(fields: dict[str, Any], key: str) -> None:
    text = f"{str(fields.get('message', ''))[:_TEXT_LIMIT]} (in task {key})"
    path, line = str(fields.get("path", "")), _whole(fields.get("line"), 0)
    warnings.warn_explicit(text, _category(fields), path, line)


def _category(fields: dict[str, Any]) -> type[Warning]:
    """The class of that name if this process has it; nothing is imported for it."""
    module = sys.modules.get(str(fields.get("module"))) or builtins
    category = getattr(module, str(fields.get("category")), None)
    return category if isinstance(category, type) and issubclass(category, Warning) else UserWarning


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
