"""TCP connections of the daemons, on asyncio: `connect`, `listen`, and what a listener does with strangers."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cluster.certificate import Certificate, load_or_create_certificate
from cluster.errors import AddressError, ClusterError, HandshakeFailed
from cluster.transport.addresses import (
    Address,
    cannot_connect,
    connect_pauses,
    format_address,
    is_loopback,
    parse_address,
    read_address,
)
from cluster.transport.connection import Connection, OnClosed, OnMessage
from cluster.transport.encryption import EncryptedTransport
from cluster.wire.handshake import HANDSHAKE_SECONDS, Handshake

__all__ = [
    "Connection",
    "Listener",
    "connect",
    "format_address",
    "listen",
    "parse_address",
]

OnConnected = Callable[[Connection], None]

logger = logging.getLogger(__name__)

# So many peers may be in the middle of their handshake, in all and from one host; beyond that a listener hangs up
# without a word, and whoever belongs to the cluster comes back after a pause. One that has kept its place for longer
# than a handshake takes gives it up to the next, so places cannot be occupied.
_STRANGERS_LIMIT: Final = 64
_STRANGERS_OF_ONE_HOST_LIMIT: Final = 16
_PLACE_SECONDS: Final = 1.0

_REFUSAL_LOG_SECONDS: Final = 60.0
_REFUSAL_LOG_ADDRESSES: Final = 1024


class RefusalLog:
    """Logs why peers were refused: one line a minute for each peer host, and not without end for very many of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Host -> when it was last written about, and how often it was refused since; oldest first.
        self._hosts: dict[str, tuple[float, int]] = {}

    def refused(self, host: str, reason: str) -> None:
        """Log one refusal, or count it for the host's next line."""
        now = self._clock()
        written, unwritten = self._hosts.get(host, (float("-inf"), 0))
        if now - written < _REFUSAL_LOG_SECONDS:
            self._hosts[host] = (written, unwritten + 1)
            return
        self._hosts.pop(host, None)
        while self._hosts and now - next(iter(self._hosts.values()))[0] >= _REFUSAL_LOG_SECONDS:
            del self._hosts[next(iter(self._hosts))]
        if len(self._hosts) < _REFUSAL_LOG_ADDRESSES:
            self._hosts[host] = (now, 0)
            more = f" ({unwritten} more since the last such line)" if unwritten else ""
            logger.warning("refused a connection from %s: %s%s", host, reason, more)


class Listener:
    """A listening port. Peers that have not proved themselves are few, cost no memory, and disturb nobody."""

    def __init__(
        self,
        make_handshake: Callable[[], Handshake],
        on_connected: OnConnected,
        certificate: Certificate | None,
        announced_host: str,
    ) -> None:
        self._make_handshake = make_handshake
        self._certificate = certificate
        self._announced_host = announced_host
        self._on_connected = on_connected
        self._server: asyncio.Server | None = None
        # Who is in the middle of the handshake: host, and since when; oldest first.
        self._strangers: dict[Connection, tuple[str, float]] = {}
        self._refusals = RefusalLog()
        self.host = ""
        self.port = 0

    @property
    def address(self) -> str:
        """Where peers connect to, as "tcp://host:port"; the host is what was announced, if anything was."""
        return format_address(self._announced_host or self.host, self.port, encrypted=self._certificate is not None)

    async def start(
        self, host: str, port: int, on_message: OnMessage, on_closed: OnClosed, bound: socket.socket | None = None
    ) -> None:
        """Bind the port, or take a socket that is bound already; raises AddressError if that cannot be."""

        def make() -> Connection | EncryptedTransport:
            connection = Connection(
                self._make_handshake(),
                on_message,
                on_closed,
                on_connected=self._connected,
                on_refused=self._refused,
                admit=self._admit,
            )
            return connection if self._certificate is None else EncryptedTransport(connection, self._certificate)

        try:
            loop = asyncio.get_running_loop()
            if bound is None:
                self._server = await loop.create_server(make, host, port, backlog=1024)
            else:
                self._server = await loop.create_server(make, sock=bound, backlog=1024)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    def _admit(self, connection: Connection) -> str:
        """Take a stranger in; a text says why not."""
        host, _ = parse_address(connection.peer_address)
        now = asyncio.get_running_loop().time()
        of_host = [other for other, (its_host, _) in self._strangers.items() if its_host == host]
        refusal = ""
        if len(of_host) >= _STRANGERS_OF_ONE_HOST_LIMIT and not self._make_place(of_host[0], now):
            refusal = f"{len(of_host)} handshakes from that host are unfinished"
        elif len(self._strangers) >= _STRANGERS_LIMIT and not self._make_place(next(iter(self._strangers)), now):
            refusal = f"{len(self._strangers)} handshakes are unfinished"
        self._strangers[connection] = (host, now)
        return refusal

    def _make_place(self, oldest: Connection, now: float) -> bool:
        if now - self._strangers[oldest][1] < _PLACE_SECONDS:
            return False
        oldest.refuse(HandshakeFailed("it did not prove itself, and others were waiting"))
        return True

    def _connected(self, connection: Connection) -> None:
        del self._strangers[connection]
        self._on_connected(connection)

    def _refused(self, connection: Connection, error: ClusterError) -> None:
        self._refusals.refused(self._strangers.pop(connection)[0], str(error))

    def close(self) -> None:
        """Stop listening, and hang up on those that have not proved themselves; the other connections stay."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._strangers):
            connection.abort("this process stopped listening")


def _cannot_listen(host: str, port: int, error: OSError) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        return AddressError(f"port {port} on {host} is in use by another process; choose another, or 0 for a free one")
    if error.errno == errno.EACCES:
        return AddressError(f"this user may not listen on port {port}; choose one above 1023, or 0 for any free one")
    return AddressError(f"cannot listen on {format_address(host, port)}: {error.strerror or error}")


async def listen(
    host: str,
    port: int,
    *,
    secret: bytes,
    role: str,
    peer_roles: tuple[str, ...],
    on_connected: OnConnected,
    on_message: OnMessage,
    on_closed: OnClosed,
    bound: socket.socket | None = None,
    certificate_directory: Path | None = None,
    insecure: bool = False,
    announced_host: str = "",
) -> Listener:
    """Accept peers that share the secret and have one of the roles; port 0 takes any free one.

    `bound` is a socket that another process bound and handed over; host and port are then only what it was bound to.
    Peers on other machines encrypt, with the certificate of that directory, unless `insecure` says that nobody does;
    peers on this machine may. AddressError if other machines can connect and neither was given. `announced_host` is
    what others are told to connect to, if not `host`.

    `on_connected(connection)` is called when a peer has proved itself, before its first message.
    """
    where = host if bound is None else str(bound.getsockname()[0])
    certificate = None
    if not (is_loopback(where) or insecure):
        if certificate_directory is None:
            raise AddressError(f"{where} can be reached from other machines, and nothing would be encrypted")
        certificate = await asyncio.to_thread(load_or_create_certificate, certificate_directory)
    listener = Listener(lambda: Handshake(secret, role, True, peer_roles), on_connected, certificate, announced_host)
    await listener.start(await _resolve(host) if bound is None else host, port, on_message, on_closed, bound)
    return listener


async def _resolve(host: str) -> str:
    """Return the one address that a name stands for: several would be several sockets, and ports."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        said = f"cannot listen at {host!r}: {error.strerror or error}; give a name or an address of this machine"
        raise AddressError(said) from error
    address = str(found[0][4][0])
    if is_loopback(address) and address != host:
        raise AddressError(
            f"{host!r} stands for {address} here, which no other machine can connect to; give this machine's address"
        )
    return address


async def connect(
    address: str,
    *,
    secret: bytes,
    role: str,
    peer_roles: tuple[str, ...],
    on_message: OnMessage,
    on_closed: OnClosed,
) -> Connection:
    """Connect to a listener and prove each to the other who they are.

    Raises AddressError, ConnectionLost (nobody there), WrongSecret, VersionMismatch or HandshakeFailed. Messages may
    reach `on_message`, and the connection may even be closed again, before this returns.
    """
    where = read_address(address)
    deadline = asyncio.get_running_loop().time() + HANDSHAKE_SECONDS
    for pause_seconds in (*connect_pauses(), None):
        handshake = Handshake(secret, role, False, peer_roles)
        try:
            return await _connect_once(where, handshake, on_message, on_closed)
        except HandshakeFailed as error:
            told_why = handshake.peer_has_answered or isinstance(error.__cause__, ssl.SSLError)
            # One that is silent for a handshake's whole time has stalled, and will not do better.
            if told_why or pause_seconds is None or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(pause_seconds)
    raise AssertionError("the last attempt returns or raises")


async def _connect_once(where: Address, handshake: Handshake, on_message: OnMessage, on_closed: OnClosed) -> Connection:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Connection] = loop.create_future()

    def connected(connection: Connection) -> None:
        if outcome.cancelled():
            connection.abort()
        else:
            outcome.set_result(connection)

    def refused(connection: Connection, error: ClusterError) -> None:
        if not outcome.done():
            outcome.set_exception(error)

    connection = Connection(handshake, on_message, on_closed, on_connected=connected, on_refused=refused)
    protocol = EncryptedTransport(connection, None) if where.encrypted else connection
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            await loop.create_connection(lambda: protocol, where.host, where.port)
    except (OSError, TimeoutError) as error:
        raise cannot_connect(where, error) from error
    try:
        return await outcome
    except asyncio.CancelledError:
        connection.abort()
        raise
