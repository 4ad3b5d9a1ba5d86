"""What is to be sent, in order, and writing it: waiting for the system to take it, or not."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from cluster.errors import ClusterError
from cluster.transport.blocking import BlockingConnection

__all__ = ["UNSENT_LIMIT_BYTES", "Sending"]

JOINED_WRITE_BYTES = 64 * 1024
UNSENT_LIMIT_BYTES = 64 << 20
"""So much may wait to be sent where the caller cannot be made to wait."""


class Sending:
    """The frames that have not left. Any thread may write; they leave in the order in which they were appended."""

    def __init__(self, connection: BlockingConnection, lose: Callable[[str], None]) -> None:
        self.overfull = False
        """Whether more waits than may; only where callers do not wait."""
        self.lost = False
        """Set when the connection has ended: what is left is dropped."""
        self._connection = connection
        self._lose = lose
        self._unsent: deque[bytes | memoryview] = deque()
        self._writing = threading.Lock()
        self.append = self._unsent.append

    def __bool__(self) -> bool:
        return bool(self._unsent)

    def write_all(self) -> None:
        """Write everything, waiting while the system's buffer is full."""
        while self._unsent:
            with self._writing:
                self._write()

    def _write(self) -> None:
        while self._unsent:
            data = self._next()
            if not self.lost:
                try:
                    self._connection.send_bytes(data)
                except ClusterError as error:
                    self._lose(str(error))
                except BaseException:
                    self._lose("the client was interrupted in the middle of a message")
                    raise

    def write_some(self) -> bool:
        """Write what the system takes now, unless another thread is at it; False if the system did not take all."""
        took = True
        # Whoever holds the lock looks for more after letting go of it, so nothing is left lying.
        while self._unsent and self._writing.acquire(blocking=False):
            try:
                took = self._write_without_waiting()
            finally:
                self._writing.release()
            if not took:
                break
        if self._unsent:
            self.overfull = sum(map(len, self._unsent.copy())) > UNSENT_LIMIT_BYTES
        return took

    def _write_without_waiting(self) -> bool:
        while self._unsent:
            data = self._next()
            if self.lost:
                continue
            try:
                sent = self._connection.send_some(data)
            except ClusterError as error:
                self._lose(str(error))
                continue
            if sent < len(data):
                self._unsent.appendleft(memoryview(data)[sent:])
                return False
        return True

    def _next(self) -> bytes | memoryview:
        unsent = self._unsent
        data = unsent.popleft()
        if len(data) >= JOINED_WRITE_BYTES or not unsent:
            return data
        parts, size = [data], len(data)
        while unsent and size < JOINED_WRITE_BYTES:
            parts.append(unsent.popleft())
            size += len(parts[-1])
        return b"".join(parts)
