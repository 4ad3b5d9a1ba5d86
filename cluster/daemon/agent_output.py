"""The agent's side of what a slot's tasks write: reads the pipe at its own pace, and the progress in the shared page.

Between two reads the pipe is left alone for a millisecond: a task that floods is slowed down by the full pipe, and the
agent spends a few percent of its time on it. What a task wrote is read before its report, because the slot says in the
page that there is some.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import sys
import termios
from collections.abc import Callable
from typing import Final

from cluster.daemon import slot_protocol
from cluster.wire.task_output import PROGRESS, RAW, STDERR, STDOUT, TOKEN_BYTES, OutputParser, Piece, unpack_record
from cluster.worker.events import ProgressMade

__all__ = ["SlotOutputReader", "is_readable"]

_READ_BYTES: Final = 256 * 1024
_PAUSE_SECONDS: Final = 0.001
_PROGRESS_EVERY_SECONDS: Final = 0.1
# Every task is marked for so long after something wrote past Python's streams.
_MARK_ALL_SECONDS: Final = 2.0
_LAST_OUTPUT_BYTES: Final = 4096


class SlotOutputReader:
    """One slot's output. `on_pieces` is handed what was written, in order, `on_progress` what a task says of itself."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        page: mmap.mmap,
        on_pieces: Callable[[list[Piece]], None],
        on_progress: Callable[[ProgressMade], None],
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._page = page
        self._on_pieces = on_pieces
        self._on_progress = on_progress
        token = b"\x00" + os.urandom(TOKEN_BYTES - 1)
        page[slot_protocol.TOKEN_OFFSET : slot_protocol.TOKEN_OFFSET + TOKEN_BYTES] = token
        self._parser = OutputParser(token)
        self._last = b""  # the latest of what no task wrote: for a slot that cannot start, and for an errand
        self._pause: asyncio.TimerHandle | None = None
        self._progress_timer: asyncio.TimerHandle | None = None
        self._progress_seen = 0
        self._marking_ends = 0.0
        loop.add_reader(descriptor, self._readable)

    # ------------------------------------------------------------------ reading

    def _readable(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._pause = None
        if self._read():
            self._pause = self._loop.call_later(_PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._descriptor, self._readable)

    def _read(self) -> bool:
        """Read what is there; False at the end of the pipe."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        if data:
            self._take(self._parser.feed(data))
        return bool(data)

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.kind == PROGRESS and piece.data:
                fields = unpack_record(piece.data)
                self._on_progress(ProgressMade(piece.attempt, piece.row, fields["fraction"], fields["message"]))
            elif piece.kind == PROGRESS:
                self._follow_progress()
            elif piece.kind == RAW:
                self._page[slot_protocol.MARK_ALL_OFFSET] = 1
                self._marking_ends = self._loop.time() + _MARK_ALL_SECONDS
            if not piece.attempt and piece.kind in (RAW, STDOUT, STDERR):
                self._last = (self._last + piece.data[-_LAST_OUTPUT_BYTES:])[-_LAST_OUTPUT_BYTES:]
        if pieces:
            self._on_pieces(pieces)

    def before_reports(self) -> None:
        """Tasks of the slot have ended: read what they wrote first. Costs a look at the page if they wrote nothing."""
        page = self._page
        if page[slot_protocol.PRINTED_OFFSET]:
            page[slot_protocol.PRINTED_OFFSET] = 0
            self._read()
            self._look_at_progress()
            if self._marking_ends and self._loop.time() > self._marking_ends:
                self._marking_ends = 0.0
                page[slot_protocol.MARK_ALL_OFFSET] = 0
        elif self._pause is not None and is_readable(self._descriptor):
            self._read()

    # ------------------------------------------------------------------ progress

    def _follow_progress(self) -> None:
        if self._progress_timer is None:
            self._look_at_progress()
            self._progress_timer = self._loop.call_later(_PROGRESS_EVERY_SECONDS, self._progress_is_due)

    def _progress_is_due(self) -> None:
        self._progress_timer = None
        self._look_at_progress()
        if self._page[slot_protocol.PROGRESSING_OFFSET]:
            self._progress_timer = self._loop.call_later(_PROGRESS_EVERY_SECONDS, self._progress_is_due)

    def _look_at_progress(self) -> None:
        """Hand on what the page says, if it is new and whole."""
        page, at = self._page, slot_protocol.PROGRESS_COUNTER_OFFSET
        counter = int.from_bytes(page[at : at + 8], "little")
        if counter == self._progress_seen or counter & 1:
            return
        start = slot_protocol.PROGRESS_OFFSET
        attempt, row, fraction, length = slot_protocol.progress_record.unpack_from(page, start)
        start += slot_protocol.progress_record.size
        text = page[start : start + min(length, slot_protocol.PROGRESS_TEXT_BYTES)]
        if int.from_bytes(page[at : at + 8], "little") == counter:  # else it was changed meanwhile: the next time
            self._progress_seen = counter
            self._on_progress(ProgressMade(attempt, row, fraction, text.decode("utf-8", "replace")))

    # ------------------------------------------------------------------ the end

    def drain(self) -> str:
        """The process has ended: read what it left; the last lines that no task can be given."""
        while is_readable(self._descriptor) and self._read():
            pass
        self._take(self._parser.finish())
        self._look_at_progress()
        return self._last.decode("utf-8", "replace")

    def close(self) -> None:
        """Give the descriptor back."""
        for timer in (self._pause, self._progress_timer):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)


def is_readable(descriptor: int) -> bool:
    """Whether bytes lie in the pipe now; what a grandchild may still write does not count."""
    return bool(int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder))
