"""What waits to be sent on a connection: messages and files, in order, counted and bounded."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from cluster.transport.steps import SendingStep

__all__ = ["UNSENT_LIMIT_BYTES", "UNSENT_LIMIT_SECONDS", "Outgoing"]

# A peer that leaves so many bytes of messages unread for so long is given up: somebody else's memory holds them.
UNSENT_LIMIT_BYTES: Final = 64 * 1024 * 1024
UNSENT_LIMIT_SECONDS: Final = 30.0
# `paused` is true above the first until no more than the second is unsent.
_PAUSE_BYTES: Final = 1024 * 1024
_RESUME_BYTES: Final = 256 * 1024
# How much goes to the transport in one call, to a file's system call, and out in one step of the loop: below 2 ms.
_STEP_BYTES: Final = 256 * 1024
_FILE_STEP_BYTES: Final = 1024 * 1024
_FLUSH_BYTES: Final = 4 * 1024 * 1024


class _FilePart:
    """What is still to be sent of an open file."""

    __slots__ = ("by_system_call", "descriptor", "offset", "remaining_bytes")

    def __init__(self, descriptor: int, offset: int, remaining_bytes: int, by_system_call: bool) -> None:
        self.descriptor = descriptor
        self.by_system_call = by_system_call
        self.offset = offset
        self.remaining_bytes = remaining_bytes


_Item: TypeAlias = "bytes | _FilePart"


class Outgoing:
    """The sending half of a connection. What was put in during one step leaves in one system call.

    `fail(reason)` ends the connection; `relieved()` is called when `paused` has become false; `emptied()` whenever
    nothing is left in the queue.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        fail: Callable[[str], None],
        relieved: Callable[[], None],
        emptied: Callable[[], None],
    ) -> None:
        self.paused = False
        self._transport = transport
        self._socket_descriptor: int = transport.get_extra_info("socket").fileno()
        # The system cannot encrypt a file on its way; what is read for it goes through this one place.
        self._encrypts = transport.get_extra_info("ssl_object") is not None
        self._file_buffer = memoryview(b"")
        self._poll_descriptor = -1
        self._loop = asyncio.get_running_loop()
        self._step = SendingStep.of(self._loop)
        self._fail = fail
        self._relieved = relieved
        self._emptied = emptied
        self._queue: deque[_Item] = deque()  # in order: bytes of messages, and files
        self._queued_bytes = 0
        self._queued_message_bytes = 0
        self._flush_scheduled = False
        self._transport_is_full = False
        self._stalled: asyncio.TimerHandle | None = None
        self._ended = False
        # The transport keeps no more than one write's remainder; everything else waits here, where it is counted.
        transport.set_write_buffer_limits(high=0)

    @property
    def unsent_bytes(self) -> int:
        """How many bytes wait because the peer has not read so far (or since the last step of the loop)."""
        return self._queued_bytes + self._transport.get_write_buffer_size()

    def put(self, data: bytes) -> None:
        """Queue whole messages."""
        self._queue.append(data)
        self._queued_message_bytes += len(data)
        self._enqueued(len(data))
        if self._queued_message_bytes > UNSENT_LIMIT_BYTES and self._stalled is None:
            self._stalled = self._loop.call_later(UNSENT_LIMIT_SECONDS, self._peer_has_stalled)

    def put_descriptor(self, descriptor: int, offset: int, nbytes: int, by_system_call: bool = True) -> None:
        """Queue some bytes of an open file, to be sent by `sendfile` if that is wanted and there is one; the descriptor
        is closed when they have gone."""
        by_system_call = by_system_call and hasattr(os, "sendfile") and not self._encrypts
        self._queue.append(_FilePart(descriptor, offset, nbytes, by_system_call))
        self._enqueued(nbytes)

    def _enqueued(self, nbytes: int) -> None:
        self._queued_bytes += nbytes
        if self._queued_bytes > _PAUSE_BYTES:
            self.paused = True
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            if not self._step.at_its_end(self._scheduled_flush):
                self._loop.call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def transport_is_full(self, full: bool) -> None:
        """Take note of what the transport says of its own buffer."""
        self._transport_is_full = full
        if not full:
            # Not at once: the transport is in the middle of a write, and asyncio's would end itself twice if this one
            # found that the peer has gone.
            self._schedule_flush()

    def flush(self) -> None:
        """Give the transport what it takes, in order, until it is full, nothing is left or the step is long enough."""
        budget_bytes = _FLUSH_BYTES
        queue = self._queue
        while queue and not self._transport_is_full and not self._ended and not self._transport.is_closing():
            if budget_bytes <= 0:
                self._loop.call_soon(self.flush)
                break
            item = queue[0]
            if isinstance(item, bytes):
                sent = self._write_messages()
            else:
                sent = self._write_file(item)
                if not sent:
                    break
            budget_bytes -= sent
            self._queued_bytes -= sent
        if not self._ended:
            self._look_at_what_is_left()

    def _look_at_what_is_left(self) -> None:
        if self._stalled is not None and self._queued_message_bytes <= UNSENT_LIMIT_BYTES:
            self._stalled.cancel()
            self._stalled = None
        if self.paused and self.unsent_bytes <= _RESUME_BYTES:
            self.paused = False
            self._relieved()
        if not self._queue:
            self._emptied()

    def _write_messages(self) -> int:
        queue = self._queue
        pieces: list[bytes] = []
        size = 0
        while queue and size < _STEP_BYTES and isinstance(piece := queue[0], bytes):
            queue.popleft()
            pieces.append(piece)
            size += len(piece)
        self._queued_message_bytes -= size
        self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return size

    def _write_file(self, part: _FilePart) -> int:
        """Send a piece of the file; 0 when the socket takes nothing now."""
        count = min(part.remaining_bytes, _FILE_STEP_BYTES)
        try:
            if part.by_system_call:
                sent = os.sendfile(self._socket_descriptor, part.descriptor, part.offset, count)
            elif self._encrypts:
                # It is encrypted before `write` returns, so the place can be used again.
                self._file_buffer = self._file_buffer or memoryview(bytearray(_STEP_BYTES))
                sent = os.preadv(part.descriptor, [self._file_buffer[:count]], part.offset)
                self._transport.write(self._file_buffer[:sent])
            else:
                data = os.pread(part.descriptor, min(count, _STEP_BYTES), part.offset)
                sent = len(data)
                self._transport.write(data)
        except BlockingIOError:
            self._wait_for_socket()
            return 0
        except OSError as error:
            self._fail(f"sending a file failed: {error}")
            return 0
        if not sent:
            # The announced length cannot be kept any more, and the peer could not tell.
            self._fail("a file that was being sent is shorter than announced")
            return 0
        part.offset += sent
        part.remaining_bytes -= sent
        if not part.remaining_bytes:
            self._queue.popleft()
            os.close(part.descriptor)
        return sent

    def _wait_for_socket(self) -> None:
        # The loop refuses to watch a transport's descriptor, so a duplicate is watched, for this purpose only.
        if self._poll_descriptor < 0:
            self._poll_descriptor = os.dup(self._socket_descriptor)
        self._loop.add_writer(self._poll_descriptor, self._socket_is_writable)

    def _socket_is_writable(self) -> None:
        self._loop.remove_writer(self._poll_descriptor)
        self.flush()

    def _peer_has_stalled(self) -> None:
        self._fail(
            f"it left more than {UNSENT_LIMIT_BYTES >> 20} MiB of messages unread for {UNSENT_LIMIT_SECONDS:g} s"
        )

    def end(self) -> None:
        """Forget what is queued and close its files: the connection has ended."""
        self._ended = True
        if self._stalled is not None:
            self._stalled.cancel()
        if self._poll_descriptor >= 0:
            self._loop.remove_writer(self._poll_descriptor)
            os.close(self._poll_descriptor)
            self._poll_descriptor = -1
        for item in self._queue:
            if isinstance(item, _FilePart):
                os.close(item.descriptor)
        self._queue.clear()
        self._queued_bytes = self._queued_message_bytes = 0
