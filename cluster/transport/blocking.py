"""A connection on a plain socket, for the client: whoever waits for an answer reads the socket itself.

Writing and reading are independent of each other, so one thread may send while another receives; each of the two needs
a lock of the caller's when several threads do it.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cluster.errors import ClusterError, ConnectionLost, HandshakeFailed, ProtocolError
from cluster.transport.addresses import (
    Address,
    cannot_connect,
    connect_pauses,
    read_address,
    set_socket_options,
)
from cluster.wire import frames, messages
from cluster.wire.handshake import HANDSHAKE_LIMIT_BYTES, HANDSHAKE_SECONDS, Handshake, PeerInfo

if TYPE_CHECKING:
    from cluster.transport.blocking_encryption import EncryptedSocket

__all__ = ["BlockingConnection", "wait_for_socket"]

_Message = TypeVar("_Message")

_RECEIVE_BYTES: Final = 256 * 1024
# How many buffers one system call takes at most; POSIX promises 16, every system of today has 1024.
_BUFFERS_LIMIT: Final = 1024


def wait_for_socket(descriptor: int, *, writing: bool, timeout_seconds: float | None) -> bool:
    """Wait until the socket can be read or written (or has ended); False when the time is over. None: without limit."""
    if hasattr(select, "poll"):
        # Unlike select, it takes descriptors above 1023.
        poller = select.poll()
        poller.register(descriptor, select.POLLOUT if writing else select.POLLIN)
        return bool(poller.poll(None if timeout_seconds is None else max(0.0, timeout_seconds) * 1000))
    watched = [descriptor]
    found = select.select([] if writing else watched, watched if writing else [], [], timeout_seconds)
    return bool(found[0] or found[1])


class BlockingConnection:
    """A connection whose two ends have proved themselves; `connect` makes it. It does nothing by itself."""

    def __init__(
        self, connected: socket.socket | EncryptedSocket, peer: PeerInfo, peer_address: str, rest: bytes
    ) -> None:
        self.peer = peer
        self.peer_address = peer_address
        self.context: Any = None
        """Whatever its owner notes about the peer."""
        self._socket = connected
        self._decoder = frames.Decoder()
        self._unread = rest
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._closed = False

    @classmethod
    def connect(
        cls,
        address: str,
        secret: bytes,
        role: str = "client",
        peer_roles: tuple[str, ...] = ("scheduler",),
        *,
        timeout_seconds: float = HANDSHAKE_SECONDS,
        through: Callable[[], socket.socket] | None = None,
    ) -> BlockingConnection:
        """Connect to a listener and prove each to the other who they are.

        `through` gives a socket that leads there otherwise than by its address.
        Raises AddressError, ConnectionLost (nobody there), WrongSecret, VersionMismatch or HandshakeFailed.
        """
        where = read_address(address)
        deadline = time.monotonic() + timeout_seconds
        for pause_seconds in (*connect_pauses(), None):
            handshake = Handshake(secret, role, False, peer_roles)
            try:
                connected = _connect_and_shake_hands(where, handshake, deadline, through)
            except HandshakeFailed as error:
                told_why = handshake.peer_has_answered or (where.encrypted and _is_told_by_tls(error))
                if told_why or pause_seconds is None or time.monotonic() > deadline:
                    raise
                time.sleep(pause_seconds)
                continue
            return cls(connected, handshake.peer, str(where), handshake.rest())
        raise AssertionError("the last attempt returns or raises")

    def __repr__(self) -> str:
        return f"<BlockingConnection to {self.peer.role} {self.peer_address}{', closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether this side has closed the connection."""
        return self._closed

    @property
    def raw_bytes_expected(self) -> int:
        """How many raw bytes come next, because a message announced them; read them by `receive_raw`."""
        return self._decoder.raw_bytes_expected

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for it together with others; -1 when closed."""
        return self._socket.fileno()

    def send(self, message: frames.Message) -> None:
        """Send one message, and wait until the system has taken it."""
        self.send_bytes(frames.encode(message))

    def send_bytes(self, *buffers: bytes | memoryview) -> None:
        """Send encoded messages and raw bytes, and wait until the system has taken all; raises ConnectionLost."""
        if len(buffers) == 1:
            # Nearly always the first call takes all.
            sent = self.send_some(*buffers)
            if sent == len(buffers[0]):
                return
            buffers = (memoryview(buffers[0])[sent:],)
        waiting = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if len(view)]
        while waiting:
            sent = self.send_some(*waiting[:_BUFFERS_LIMIT])
            if not sent:
                wait_for_socket(self._descriptor(), writing=True, timeout_seconds=None)
            waiting = _without_first(waiting, sent)

    def send_some(self, *buffers: bytes | memoryview) -> int:
        """Send what the system takes now, and return how many bytes that was; raises ConnectionLost."""
        try:
            if isinstance(self._socket, socket.socket) and not hasattr(self._socket, "sendmsg"):
                return self._socket.send(buffers[0])
            return self._socket.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error) from error

    def receive(self, timeout_seconds: float | None = 0.0) -> list[frames.Message]:
        """Return the messages that have come, waiting for something to come at most so long (None: without limit).

        May return none although something came, when it was only a part of a message. After a message that announces
        raw bytes nothing is returned until they have been read. Raises ConnectionLost at the end of the connection.
        """
        if self._unread or self._decoder.pending_bytes:
            unread, self._unread = self._unread, b""
            found = self._decoder.feed(unread)
            if found or self._decoder.raw_bytes_expected:
                return found
        if self._decoder.raw_bytes_expected:
            return []
        count = self._receive_into(self._buffer, timeout_seconds)
        return self._decoder.feed(self._buffer[:count]) if count else []

    def receive_one(self, kind: type[_Message] | tuple[type[_Message], ...], timeout_seconds: float) -> _Message:
        """Wait for the one message that is due; raises ProtocolError for another, and ConnectionLost if none comes."""
        due = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        deadline = time.monotonic() + timeout_seconds
        while (remaining := deadline - time.monotonic()) > 0:
            for message in self.receive(remaining):
                if isinstance(message, kind):
                    return message
                if not isinstance(message, messages.Heartbeat):
                    raise ProtocolError(
                        f"the {self.peer.role} at {self.peer_address} sent {type(message).__name__} where {due} was due"
                    )
        raise ConnectionLost(
            f"the {self.peer.role} at {self.peer_address} did not answer with {due} in {timeout_seconds:g} s"
        )

    def receive_raw(self, target: memoryview, timeout_seconds: float | None = 0.0) -> int:
        """Read raw bytes that a message announced into `target` and return how many came (0: none in that time).

        Whoever gives it less than the announced bytes calls it until 0 comes before waiting for the descriptor.
        """
        wanted = min(len(target), self._decoder.raw_bytes_expected)
        if not wanted:
            return 0
        buffered = self._decoder.take_raw(wanted)
        if buffered:
            target[: len(buffered)] = buffered
            return len(buffered)
        count = self._receive_into(target[:wanted], timeout_seconds)
        self._decoder.raw_received(count)
        return count

    def _receive_into(self, target: memoryview, timeout_seconds: float | None) -> int:
        for waited in (False, True):
            try:
                count = self._socket.recv_into(target)
            except BlockingIOError:
                if waited or timeout_seconds == 0:
                    return 0
                if not wait_for_socket(self._descriptor(), writing=False, timeout_seconds=timeout_seconds):
                    return 0
                continue
            except OSError as error:
                raise self._lost(error) from error
            if not count:
                raise self._lost(None)
            return count
        return 0

    def _descriptor(self) -> int:
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise self._lost(None)
        return descriptor

    def _lost(self, error: OSError | None) -> ConnectionLost:
        if self._closed:
            return ConnectionLost(f"the connection to {self.peer_address} was closed by this process")
        said = f": {error.strerror or error}" if error is not None else ""
        return ConnectionLost(f"the {self.peer.role} at {self.peer_address} ended the connection{said}")

    def shutdown(self) -> None:
        """End the connection without giving its descriptor back, so that threads which wait for it wake up."""
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The peer was faster, so whoever waits has been woken.
            return

    def close(self) -> None:
        """End the connection. Threads that wait for it should have been woken by `shutdown` before."""
        self.shutdown()
        self._socket.close()


def _without_first(buffers: list[memoryview], count: int) -> list[memoryview]:
    for at, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[at + 1 :]]
        count -= len(buffer)
    return []


def _connect_and_shake_hands(
    where: Address, handshake: Handshake, deadline: float, through: Callable[[], socket.socket] | None
) -> socket.socket | EncryptedSocket:
    try:
        if through is not None:
            opened = through()
        else:
            opened = socket.create_connection((where.host, where.port), max(0.001, deadline - time.monotonic()))
    except OSError as error:
        raise cannot_connect(where, error) from error
    deadline = min(deadline, time.monotonic() + HANDSHAKE_SECONDS)
    connected: socket.socket | EncryptedSocket = opened
    try:
        set_socket_options(opened)
        if where.encrypted:
            from cluster.transport.blocking_encryption import EncryptedSocket  # a twentieth of what a client loads

            connected = encrypted = EncryptedSocket(opened)
            handshake.channel = encrypted.agree(deadline)
        _shake_hands(connected, handshake, deadline)
        connected.setblocking(False)
    except BaseException as error:
        opened.close()
        if isinstance(error, ClusterError) or not isinstance(error, OSError):
            raise
        if isinstance(error, TimeoutError):
            said = "did not prove itself in time; is it the right port?"
        else:
            said = f"ended the connection during the handshake: {error.strerror or error}"
        raise HandshakeFailed(f"the peer at {where} {said}") from error
    return connected


def _is_told_by_tls(error: HandshakeFailed) -> bool:
    import ssl  # loaded by then, as the connection was to be encrypted

    return isinstance(error.__cause__, ssl.SSLError)


def _shake_hands(connected: socket.socket | EncryptedSocket, handshake: Handshake, deadline: float) -> None:
    while True:
        outgoing = handshake.data_to_send()
        if outgoing:
            connected.sendall(outgoing)
        if handshake.complete:
            return
        connected.settimeout(max(0.001, deadline - time.monotonic()))
        data = connected.recv(HANDSHAKE_LIMIT_BYTES)
        if not data:
            raise HandshakeFailed("the peer ended the connection during the handshake")
        handshake.feed(data)
