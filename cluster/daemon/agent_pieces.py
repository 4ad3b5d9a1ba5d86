"""Large values for other agents, piece by piece: which file, which checksum, in the order in which they were asked for.

The checksums are counted in a thread while earlier pieces are being sent, and leave before their bytes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from cluster.storage.openings import open_segment
from cluster.transport.tcp import Connection
from cluster.wire import messages
from cluster.wire.checksums import NO_CHECKSUM, Checksum
from cluster.worker.events import ServePiece

__all__ = ["OutgoingPiece", "PieceChecksums"]

_READ_BYTES: Final = 256 * 1024  # stays in the processor's cache between being read and being counted
_THREADS: Final = 2


class OutgoingPiece:
    """A piece that a peer asked for. It keeps its file open, so that its bytes stay what they are until then."""

    __slots__ = ("_descriptor", "_serve", "checksum", "unwanted")

    def __init__(self, serve: ServePiece) -> None:
        self._serve = serve
        self.checksum: int | None = None  # not known yet
        self.unwanted = False  # its peer has gone
        self._descriptor = -1
        try:
            self._descriptor = open_segment(serve.path)
        except FileNotFoundError:  # it was freed since the machine looked
            self.checksum = NO_CHECKSUM

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing to send."""
        return self._descriptor < 0

    def count(self) -> int:
        """Read it and give its checksum; called in a thread."""
        offset, left = self._serve.offset, self._serve.nbytes
        buffer = _buffer_of_thread()
        counted = Checksum()
        while left and not self.unwanted:
            try:
                count = os.preadv(self._descriptor, [buffer[: min(left, _READ_BYTES)]], offset)
            except OSError:
                count = 0
            if not count:  # it cannot be read, or is shorter than it should be: sending it fails too, and says so
                break
            counted.update(buffer[:count])
            offset += count
            left -= count
        return int(counted.intdigest())

    def send(self, connection: Connection, by_system_call: bool) -> None:
        """Send it, or that it is missing. Its file is closed in any case."""
        _, row, attempt, offset, nbytes, _ = self._serve
        if self._descriptor < 0:
            connection.send(messages.ValueMissing(0, row, attempt))
            return
        assert self.checksum is not None
        connection.send(messages.ValuePiece(row, attempt, offset, nbytes, self.checksum))
        descriptor, self._descriptor = self._descriptor, -1
        connection.send_descriptor(descriptor, offset, nbytes, by_system_call=by_system_call)

    def close(self) -> None:
        """Nobody waits for it any more."""
        self.unwanted = True
        if self._descriptor >= 0 and self.checksum is not None:  # else the thread still reads
            os.close(self._descriptor)
            self._descriptor = -1


class PieceChecksums:
    """The threads that count checksums, started when they are first needed."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def count(self, piece: OutgoingPiece, then: Callable[[], None]) -> None:
        """Find the checksum of a piece, then call that, on the loop."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "checksum")

        def counted(future: asyncio.Future[int]) -> None:
            ends = future.cancelled()  # by `close`
            piece.checksum = NO_CHECKSUM if ends else future.result()
            if piece.unwanted or ends:
                piece.close()
            else:
                then()

        asyncio.get_running_loop().run_in_executor(self._threads, piece.count).add_done_callback(counted)

    def close(self) -> None:
        """Let the threads end."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)


_of_thread = threading.local()


def _buffer_of_thread() -> memoryview:
    buffer: memoryview | None = getattr(_of_thread, "buffer", None)
    if buffer is None:
        buffer = _of_thread.buffer = memoryview(bytearray(_READ_BYTES))
    return buffer
