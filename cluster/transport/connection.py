"""One connection between two processes, on an asyncio transport: handshake, then messages and raw bytes, both ways."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from cluster.errors import ClusterError, ConnectionLost, HandshakeFailed, ProtocolError
from cluster.transport.addresses import format_address, set_socket_options
from cluster.transport.outgoing import Outgoing
from cluster.transport.steps import SendingStep
from cluster.wire import frames
from cluster.wire.handshake import HANDSHAKE_LIMIT_BYTES, HANDSHAKE_SECONDS, Handshake, PeerInfo

__all__ = ["Connection", "OnClosed", "OnMessage", "receive_buffer"]

logger = logging.getLogger(__name__)

Message: TypeAlias = frames.Message
OnMessage: TypeAlias = Callable[["Connection", Message], None]
OnClosed: TypeAlias = Callable[["Connection", str], None]

# How much is read in one step of the loop at most: of messages, and of raw bytes into their place.
_MESSAGES_STEP_BYTES: Final = 256 * 1024
_RAW_STEP_BYTES: Final = 1024 * 1024
# What close() leaves for unsent messages to go out.
_CLOSE_SECONDS: Final = 5.0
# Unacknowledged data for so long means that the peer's host is gone. Not set towards clients: their process may be
# stopped (a breakpoint) for as long as the user likes, and a full window counts as unacknowledged.
_USER_TIMEOUT_SECONDS: Final = 30

_receive_buffers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = weakref.WeakKeyDictionary()


def receive_buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    """Return the buffer that all connections of a loop read into: a read and its use are one step of the loop."""
    if sys.platform == "win32":
        # There a read is in progress between steps.
        return memoryview(bytearray(_MESSAGES_STEP_BYTES))
    found = _receive_buffers.get(loop)
    if found is None:
        found = _receive_buffers[loop] = memoryview(bytearray(_MESSAGES_STEP_BYTES))
    return found


class Connection(asyncio.BufferedProtocol):
    """A connection whose two ends have proved themselves. `connect` and `listen` make it; it belongs to one loop.

    `on_message(connection, message)` is called for each message, in order. `on_closed(connection, reason)` is called
    once, at the end, if the handshake had succeeded; the reason is empty when this side closed it.

    Messages sent during one step of the loop leave in one system call. Nothing here blocks: what the peer does not read
    is kept, so a sender of much looks at `paused`, and goes on when `on_writable` is called.
    """

    def __init__(
        self,
        handshake: Handshake,
        on_message: OnMessage,
        on_closed: OnClosed,
        *,
        on_connected: Callable[[Connection], None],
        on_refused: Callable[[Connection, ClusterError], None],
        admit: Callable[[Connection], str] | None = None,
    ) -> None:
        self.peer = PeerInfo("", {})
        self.peer_address = ""
        self.last_received = 0.0
        self.on_writable: Callable[[], None] | None = None
        self.context: Any = None
        self._handshake: Handshake | None = handshake
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_connected = on_connected
        self._on_refused = on_refused
        self._admit = admit
        self._loop = asyncio.get_running_loop()
        self._step = SendingStep.of(self._loop)
        self._buffer = receive_buffer(self._loop)
        self._decoder = frames.Decoder()
        self._transport: asyncio.Transport | None = None
        self._outgoing: Outgoing | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._closing = False
        self._closed = False
        self._reason: str | None = None
        self._raw_target: memoryview | None = None
        self._raw_done: Callable[[], None] | None = None
        self._dispatching = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open" if self._handshake is None else "in handshake"
        return f"<Connection to {self.peer.role or 'unknown'} {self.peer_address}, {state}>"

    # ------------------------------------------------------------------ the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        opened: socket.socket = transport.get_extra_info("socket")
        peer_name = transport.get_extra_info("peername") or ("unknown", 0)
        encrypted = transport.get_extra_info("ssl_object") is not None
        self.peer_address = format_address(str(peer_name[0]), int(peer_name[1]), encrypted=encrypted)
        set_socket_options(opened)
        self.last_received = self._loop.time()
        refusal = self._admit(self) if self._admit else ""
        if refusal:
            self.refuse(HandshakeFailed(refusal))
            return
        self._deadline = self._loop.call_later(HANDSHAKE_SECONDS, self._handshake_took_too_long)
        self._send_handshake()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._handshake is not None:
            return self._buffer[:HANDSHAKE_LIMIT_BYTES]
        if self._closing:
            return self._buffer
        if self._raw_target is not None:
            return self._raw_target[:_RAW_STEP_BYTES]
        if self._raw_done is not None:
            return self._buffer[: self._decoder.raw_bytes_expected]
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.last_received = self._loop.time()
        if self._closing:
            # This side has ended the conversation, and is only still sending.
            return
        try:
            with self._step:
                if self._handshake is not None:
                    self._continue_handshake(self._buffer[:nbytes])
                elif self._raw_done is not None:
                    self._raw_arrived(nbytes)
                else:
                    self._dispatch(self._buffer[:nbytes])
        except OSError as error:
            # Of a file, say: asyncio would take it for one of the socket, and it would be told that the peer is gone.
            if isinstance(error, ClusterError):
                raise
            self._loop.call_exception_handler({"message": f"{self} sent what failed here", "exception": error})
            self.abort(f"what the peer {self.peer_address} sent failed here: {error}")

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.transport_is_full(True)

    def resume_writing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.transport_is_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reason is None:
            said = "" if exc is None else f": {exc}"
            self._reason = f"the peer {self.peer_address} ended the connection{said}"
        if self._handshake is not None:
            self.refuse(HandshakeFailed(self._reason or "the connection was closed during the handshake"))
        self._finish()

    def _require_transport(self) -> asyncio.Transport:
        if self._transport is None:
            raise ConnectionLost("the connection has not been made yet")
        return self._transport

    # ------------------------------------------------------------------ handshake

    @property
    def proved(self) -> bool:
        """Whether the peer has proved that it belongs to this cluster."""
        return self._handshake is None

    def is_encrypted(self, channel: str) -> None:
        """The transport encrypts from here on; both sides prove that they mean this same channel."""
        if self._handshake is not None:
            self._handshake.channel = channel

    def goes_on_plainly(self, transport: asyncio.Transport) -> None:
        """The peer, on this machine, does not encrypt: the socket's transport alone is left."""
        self._transport = transport
        peer_name = transport.get_extra_info("peername")
        self.peer_address = format_address(str(peer_name[0]), int(peer_name[1]), encrypted=False)

    def _send_handshake(self) -> None:
        data = self._handshake.data_to_send() if self._handshake is not None else b""
        if data:
            self._require_transport().write(data)

    def _continue_handshake(self, data: memoryview) -> None:
        assert self._handshake is not None
        try:
            self._handshake.feed(data)
        except ClusterError as error:
            self._send_handshake()
            self.refuse(error)
            return
        self._send_handshake()
        if self._handshake.complete:
            self.peer, rest = self._handshake.peer, self._handshake.rest()
            self._handshake = None
            if self._deadline is not None:
                self._deadline.cancel()
            self._set_user_timeout()
            self._outgoing = Outgoing(
                self._require_transport(),
                fail=lambda reason: self.abort(f"the peer {self.peer_address} was given up: {reason}"),
                relieved=self._relieved,
                emptied=self._emptied,
            )
            self._on_connected(self)
            if rest and not self.closed:
                self._dispatch(rest)

    def _set_user_timeout(self) -> None:
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        if option is not None and self.peer.role != "client":
            opened: socket.socket = self._require_transport().get_extra_info("socket")
            opened.setsockopt(socket.IPPROTO_TCP, option, _USER_TIMEOUT_SECONDS * 1000)

    def _handshake_took_too_long(self) -> None:
        self.refuse(HandshakeFailed(f"the peer did not prove itself within {HANDSHAKE_SECONDS:g} s"))

    def refuse(self, error: ClusterError) -> None:
        """Hang up on a peer that has not proved itself."""
        if self._closed:
            return
        self._reason = str(error)
        transport = self._require_transport()
        # What explains the refusal fits into an empty socket; a peer that did not even read that gets no more of it.
        if transport.get_write_buffer_size():
            transport.abort()
        else:
            transport.close()
        self._finish()
        self._on_refused(self, error)

    # ------------------------------------------------------------------ receiving

    def _dispatch(self, data: bytes | memoryview) -> None:
        self._dispatching = True
        try:
            while True:
                for message in self._decoder.feed(data):
                    self._on_message(self, message)
                    if self.closed:
                        return
                if not self._decoder.raw_bytes_expected:
                    return
                if not self._receiving_raw():
                    # Whoever handles the message is still making room; receive_raw goes on.
                    self._require_transport().pause_reading()
                    return
                self._take_buffered_raw()
                if self._receiving_raw() or self.closed:
                    return
                data = b""
        except ProtocolError as error:
            # It has proved to be one of ours, so this is a fault of a program, and nobody else would say it.
            logger.warning("%s broke the protocol: %s", self, error)
            self.abort(f"the peer {self.peer_address} broke the protocol: {error}")
        finally:
            self._dispatching = False

    def receive_raw(self, target: memoryview | None, done: Callable[[], None]) -> None:
        """Read the raw bytes that the last message announced into `target` (None: throw them away), then call `done`.

        Called from `on_message` or later; until then nothing more is read. `target` must have exactly the announced
        size. If the connection ends before all have come, `done` is not called.
        """
        expected = self._decoder.raw_bytes_expected
        if target is not None:
            target = target.cast("B")
            if len(target) != expected:
                raise ProtocolError(f"{expected} raw bytes were announced, but the place for them has {len(target)}")
        if self._raw_done is not None:
            raise ProtocolError("the announced raw bytes are being received already")
        if self.closed:
            return
        if not expected:
            done()
            return
        self._raw_target, self._raw_done = target, done
        if self._dispatching:
            return
        # First, since what was buffered behind may announce raw bytes again, and pause again.
        self._require_transport().resume_reading()
        self._take_buffered_raw()
        if not self._receiving_raw() and not self.closed:
            self._dispatch(b"")

    def pause_receiving(self) -> None:
        """Take nothing more from the system for now; what has been taken is still handed over."""
        if not self.closed:
            self._require_transport().pause_reading()

    def resume_receiving(self) -> None:
        """Go on after `pause_receiving`."""
        if not self.closed:
            self._require_transport().resume_reading()

    def _receiving_raw(self) -> bool:
        return self._raw_done is not None

    def _take_buffered_raw(self) -> None:
        taken = self._decoder.take_raw(self._decoder.raw_bytes_expected)
        if self._raw_target is not None:
            self._raw_target[: len(taken)] = taken
            self._raw_target = self._raw_target[len(taken) :]
        self._end_raw_if_complete()

    def _raw_arrived(self, nbytes: int) -> None:
        self._decoder.raw_received(nbytes)
        if self._raw_target is not None:
            self._raw_target = self._raw_target[nbytes:]
        self._end_raw_if_complete()

    def _end_raw_if_complete(self) -> None:
        if self._raw_done is not None and not self._decoder.raw_bytes_expected:
            done, self._raw_done, self._raw_target = self._raw_done, None, None
            done()

    # ------------------------------------------------------------------ sending

    @property
    def encrypted(self) -> bool:
        """Whether TLS protects what is sent, so that it needs no checksum."""
        return self._transport is not None and self._transport.get_extra_info("ssl_object") is not None

    @property
    def unsent_bytes(self) -> int:
        """How many bytes wait here because the peer has not read so far (or since the last step of the loop)."""
        return self._outgoing.unsent_bytes if self._outgoing is not None else 0

    @property
    def paused(self) -> bool:
        """Whether so much is unsent that a sender of much should wait for `on_writable`."""
        return self._outgoing is not None and self._outgoing.paused

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self._closed

    def send(self, message: Message) -> None:
        """Send a message at the end of this step of the loop. To a closed connection: nothing happens."""
        self.send_encoded(frames.encode(message))

    def send_encoded(self, data: bytes) -> None:
        """Send one or more messages that are encoded already."""
        if self._outgoing is not None and not self.closed:
            self._outgoing.put(data)

    def send_descriptor(self, descriptor: int, offset: int, nbytes: int, *, by_system_call: bool = True) -> None:
        """Send some bytes of an open file behind the message that announced them. The connection closes it.

        `by_system_call`: by `sendfile` where there is one; else by reading and writing it in pieces.
        """
        if self._outgoing is not None and not self.closed:
            self._outgoing.put_descriptor(descriptor, offset, nbytes, by_system_call)
        else:
            os.close(descriptor)

    def _relieved(self) -> None:
        if self.on_writable is not None and not self._closing:
            self.on_writable()

    def _emptied(self) -> None:
        if self._closing:
            self._require_transport().close()

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Send what is queued, then end the connection; `on_closed` comes with an empty reason."""
        if self.closed:
            return
        self._closing = True
        if self._reason is None:
            self._reason = ""
        self._deadline = self._loop.call_later(_CLOSE_SECONDS, self._require_transport().abort)
        if self._outgoing is not None:
            self._outgoing.flush()
        else:
            self._require_transport().close()

    def abort(self, reason: str = "") -> None:
        """End the connection now; what is queued is lost. `on_closed` comes at the next step of the loop."""
        if self._closed:
            return
        if self._reason is None:
            self._reason = reason
        self._closing = True
        if self._outgoing is not None:
            self._outgoing.end()
        self._require_transport().abort()

    def _finish(self) -> None:
        """Give everything back and report the end, once."""
        if self._closed:
            return
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._outgoing is not None:
            self._outgoing.end()
        self._raw_target = self._raw_done = None
        if self._handshake is None:
            self._on_closed(self, self._reason or "")
