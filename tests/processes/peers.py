"""Two sides of a connection, for tests: what each was told, and a way to wait until something has happened."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.transport.blocking import BlockingConnection
from cluster.transport.tcp import Connection, Listener, connect, listen
from cluster.wire import messages

SECRET = bytes(range(32))

# The directory of the certificate, while a test has its listeners encrypt; see the fixture `plain_or_encrypted`.
encrypting: list[Path] = []
HELLO_BYTES = 42


class Peer:
    """One side: what it was told, and a way to wait until something has happened."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.connections: list[Connection] = []
        self.closed: list[tuple[Connection, str]] = []
        self.answer: Callable[[Connection, Any], None] = lambda connection, message: None
        self.changed = asyncio.Event()

    def on_connected(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.changed.set()

    def on_message(self, connection: Connection, message: Any) -> None:
        self.messages.append(message)
        self.answer(connection, message)
        self.changed.set()

    def on_closed(self, connection: Connection, reason: str) -> None:
        self.closed.append((connection, reason))
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def listening(peer: Peer, role: str = "worker") -> AsyncIterator[Listener]:
    listener = await listen(
        "0.0.0.0" if encrypting else "127.0.0.1",
        0,
        secret=SECRET,
        role=role,
        peer_roles=("client", "worker"),
        on_connected=peer.on_connected,
        on_message=peer.on_message,
        on_closed=peer.on_closed,
        certificate_directory=encrypting[0] if encrypting else None,
        announced_host="127.0.0.1",
    )
    try:
        yield listener
    finally:
        listener.close()
        for connection in peer.connections:
            connection.abort()
        await peer.until(lambda: len(peer.closed) == len(peer.connections))


async def connected_to(listener: Listener, peer: Peer, secret: bytes = SECRET) -> Connection:
    connection = await connect(
        listener.address,
        secret=secret,
        role="worker",
        peer_roles=("worker",),
        on_message=peer.on_message,
        on_closed=peer.on_closed,
    )
    peer.connections.append(connection)
    return connection


def run_pair(scenario: Callable[[Listener, Peer, Connection, Peer], Awaitable[None]]) -> None:
    """Run the scenario with a listener and one connection to it."""

    async def main() -> None:
        here, there = Peer(), Peer()
        async with listening(there) as listener:
            connection = await connected_to(listener, here)
            await scenario(listener, there, connection, here)
            connection.abort()
            await here.until(lambda: bool(here.closed))

    asyncio.run(main())


def echo(connection: Connection, message: Any) -> None:
    if isinstance(message, messages.Query):
        connection.send(messages.Answer(message.request, "", message.detail))


def raw_stranger(listener: Listener, source: str = "127.0.0.1") -> socket.socket:
    stranger = socket.create_connection((listener.host, listener.port), 10, (source, 0))
    stranger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stranger


def read_to_end(stranger: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    came = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := stranger.recv(65536):
            came += piece
    return came


def run_blocking(work: Callable[[BlockingConnection], None], answer: Callable[[Connection, Any], None]) -> Peer:
    """Run `work` in a thread, connected to a listener that answers so."""

    async def main() -> Peer:
        there = Peer()
        there.answer = answer
        async with listening(there) as listener:
            client = await asyncio.to_thread(
                BlockingConnection.connect, listener.address, SECRET, "client", ("worker",)
            )
            try:
                await asyncio.to_thread(work, client)
            finally:
                client.close()
        return there

    return asyncio.run(main())


@contextlib.contextmanager
def mail_server() -> Iterator[int]:
    """A server of another kind, which speaks first, to one who connects; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            stranger, _ = server.accept()
            stranger.sendall(b"220 mail.example.org ESMTP\r\n")
            stranger.close()

        thread = threading.Thread(target=greet)
        thread.start()
        yield server.getsockname()[1]
        thread.join()
