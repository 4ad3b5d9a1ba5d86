"""What tasks write, on its way from a slot: one pipe for all of a slot's tasks, with marks that say whose bytes follow.

A slot's standard output and error are one pipe to its agent. What Python code prints goes through streams that know the
running task (`cluster.daemon.slot_output`); they put a *mark* into the pipe before the first bytes of a task, and one
behind its last. C code and subprocesses write without marks: inside a marked stretch that is the marked task's,
elsewhere it is `RAW`, and the agent gives it to the task that the slot runs.

A mark is `token, kind, attempt, row, length`. The token is drawn for each slot by its agent, so that no text looks like
one. `STDOUT`, `STDERR` and `RAW` (a task's, in a slot where something writes past Python) begin a stretch, and `END`
ends it; the other kinds are *records*, followed by `length` bytes:

    LOG, WARNING   a map that the client reads
    CONTINUED      bytes that come before those of the next record
    PROGRESS       the task reports progress in the page that it shares with the agent: no bytes; or a map of it

What is kept and sent on is a list of *entries*, `[kind, seconds since the epoch, bytes]`; `CUT` stands for what is not
shown: its bytes are the number of those left out, as text.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgpack

__all__ = [
    "CONTINUED",
    "CUT",
    "END",
    "LOG",
    "PROGRESS",
    "RAW",
    "RECORD_LIMIT_BYTES",
    "STDERR",
    "STDOUT",
    "TOKEN_BYTES",
    "WARNING",
    "OutputParser",
    "Piece",
    "pack_mark",
    "pack_record",
    "row_of",
    "unpack_record",
]

RAW, STDOUT, STDERR, LOG, WARNING, CUT, END, CONTINUED, PROGRESS = range(9)

TOKEN_BYTES: Final = 16
RECORD_LIMIT_BYTES: Final = 64 * 1024
# What a pipe takes in one piece from several writers.
_ATOMIC_BYTES: Final = 4096
_mark = struct.Struct("<16sBQQI")
_RECORD_BYTES: Final = _ATOMIC_BYTES - _mark.size
_STRETCHES: Final = frozenset({RAW, STDOUT, STDERR})
_RECORDS: Final = frozenset({LOG, WARNING, CONTINUED, PROGRESS})
_TEXT_SHARE: Final = 48 * 1024


class Piece(NamedTuple):
    """Bytes of one kind of one run of a task; attempt and row are 0 where nothing said whose they are."""

    kind: int
    attempt: int
    row: int
    data: bytes


def pack_mark(token: bytes, kind: int, attempt: int, row: int) -> bytes:
    """The mark that begins or ends a stretch of a task's output."""
    return _mark.pack(token, kind, attempt, row, 0)


def pack_record(token: bytes, kind: int, attempt: int, row: int, record: dict[str, Any]) -> list[bytes]:
    """A record with its mark, in parts of which a pipe takes each as a whole; long text in it is cut in the middle."""
    data = msgpack.packb({name: _bounded(value) for name, value in record.items()}) if record else b""
    parts = [data[start : start + _RECORD_BYTES] for start in range(0, len(data), _RECORD_BYTES)] or [b""]
    last = len(parts) - 1
    return [
        _mark.pack(token, kind if at == last else CONTINUED, attempt, row, len(part)) + part
        for at, part in enumerate(parts)
    ]


def _bounded(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= 1024:
        return value
    data = value.encode("utf-8", "backslashreplace")
    if len(data) <= _TEXT_SHARE:
        return data.decode()
    half = _TEXT_SHARE // 2
    beginning, end = data[:half].decode("utf-8", "ignore"), data[-half:].decode("utf-8", "ignore")
    return f"{beginning}\n… {len(data) - 2 * half} bytes not shown …\n{end}"


def unpack_record(data: bytes) -> dict[str, Any]:
    """The fields of a record; an empty map if these bytes are none."""
    try:
        record = msgpack.unpackb(data)
    except (ValueError, msgpack.exceptions.UnpackException):
        return {}
    return record if isinstance(record, dict) else {}


def row_of(rows: int | bytes, index: int) -> int:
    """The row of a piece's task: rows that follow one another are named by the first, others packed as 'Q'."""
    if isinstance(rows, int):
        return rows + index
    return int.from_bytes(rows[8 * index : 8 * index + 8], "little")


class OutputParser:
    """Cuts what was read from a slot's pipe into pieces; what is not complete waits for the next read."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._held = b""
        self._record = b""
        self._source = (RAW, 0, 0)

    def feed(self, data: bytes) -> list[Piece]:
        """Take in bytes; the pieces that they complete."""
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[Piece] = []
        at = 0
        while at < len(data):
            # Text has no NUL, and looking for one byte is ten times as fast as looking for a token.
            found = data.find(self._token, at) if data.find(0, at) >= 0 else -1
            if found < 0:
                self._text(pieces, data[at : self._hold(data, at)])
                break
            if found > at:
                self._text(pieces, data[at:found])
            at = self._take_mark(pieces, data, found)
            if at < 0:
                self._held = data[found:]
                break
        return pieces

    def finish(self) -> list[Piece]:
        """Nothing more will come: what waited."""
        pieces: list[Piece] = []
        held, self._held = self._held, b""
        if held and not held.startswith(self._token):
            self._text(pieces, held)
        return pieces

    def _text(self, pieces: list[Piece], data: bytes) -> None:
        if data:
            pieces.append(Piece(*self._source, data))

    def _take_mark(self, pieces: list[Piece], data: bytes, found: int) -> int:
        """Read the mark that stands there; where it ends, or -1 if it is not complete."""
        stop = found + _mark.size
        if stop > len(data):
            return -1
        _, kind, attempt, row, length = _mark.unpack_from(data, found)
        if kind in _STRETCHES:
            self._source = (kind, attempt, row)
        elif kind == END:
            self._source = (RAW, 0, 0)
        elif kind in _RECORDS and length <= _RECORD_BYTES:
            if stop + length > len(data):
                return -1
            record = self._record + data[stop : stop + length]
            stop += length
            if kind == CONTINUED:
                self._record = record[-RECORD_LIMIT_BYTES:]
            else:
                self._record = b""
                pieces.append(Piece(kind, attempt, row, record))
        return stop

    def _hold(self, data: bytes, at: int) -> int:
        """Keep what may be the beginning of a mark, or of a character; where that begins."""
        stop = len(data)
        start = data.find(0, max(at, stop - TOKEN_BYTES + 1))
        while start >= 0:
            if self._token.startswith(data[start:]):
                self._held = data[start:]
                return start
            start = data.find(0, start + 1)
        for start in range(stop - 1, max(at, stop - 3) - 1, -1):
            byte = data[start]
            if byte >= 0xC0:  # the first byte of a character of several
                if stop - start < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4):
                    self._held = data[start:]
                    return start
                break
            if byte < 0x80:
                break
        return stop
