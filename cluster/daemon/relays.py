"""Connections that pass through the scheduler: from a client to a worker that it cannot reach by itself.

The scheduler connects to the worker and from then on passes bytes on, both ways, without looking into them: client and
worker prove themselves to each other, and encrypt if they do, as on a connection of their own. Neither end is read
faster than the other takes it, so a relay holds some 2 MiB at most, whatever passes. Only addresses of workers that
have joined are connected to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from cluster.transport.addresses import parse_address
from cluster.transport.tcp import Connection
from cluster.wire import messages

__all__ = ["Relays"]

RELAYS_LIMIT: Final = 64
CONNECT_SECONDS: Final = 5.0
PIECE_BYTES: Final = 256 * 1024

logger = logging.getLogger(__name__)


class _Relay(asyncio.Protocol):
    """One client's connection and the one to the worker."""

    def __init__(self, client: Connection, address: str) -> None:
        self.client = client
        self.address = address
        self.connecting: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        client.on_writable = self._client_takes_more

    # ------------------------------------------------------------------ the worker's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            self.client.send(messages.RelayData(data[start : start + PIECE_BYTES]))
        if self.client.paused and self.transport is not None:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        self.client.pause_receiving()

    def resume_writing(self) -> None:
        self.client.resume_receiving()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.client.close()

    # ------------------------------------------------------------------ the client's side

    def _client_takes_more(self) -> None:
        if self.transport is not None:
            self.transport.resume_reading()

    def message(self, message: Any) -> None:
        """The client says something."""
        if isinstance(message, messages.RelayData) and self.transport is not None:
            self.transport.write(message.data)
        elif not isinstance(message, messages.Heartbeat):
            self.client.abort(f"a client sent {type(message).__name__} on a connection to a worker")

    def end(self) -> None:
        """The client has gone."""
        if self.connecting is not None:
            self.connecting.cancel()
        if self.transport is not None:
            self.transport.abort()


class Relays:
    """All relays of a scheduler. `is_worker` says whether a worker has joined that listens at an address."""

    def __init__(self, is_worker: Callable[[str], bool]) -> None:
        self._is_worker = is_worker
        self._relays: dict[Connection, _Relay] = {}
        self._said: set[tuple[str, str]] = set()

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._relays

    def message(self, connection: Connection, message: Any) -> None:
        """A client asks for a relay, or sends something on its way."""
        relay = self._relays.get(connection)
        if relay is not None:
            relay.message(message)
            return
        refusal = self._refusal(connection, message.address)
        if refusal:
            connection.send(messages.Relayed(refusal))
            connection.close()
            return
        relay = self._relays[connection] = _Relay(connection, message.address)
        relay.connecting = asyncio.get_running_loop().create_task(self._connect(relay))

    def _refusal(self, connection: Connection, address: str) -> str:
        if connection.peer.role != "client":
            return "only clients are passed on to workers"
        if not self._is_worker(address):
            return f"no worker listens at {address}"
        if len(self._relays) >= RELAYS_LIMIT:
            return f"{RELAYS_LIMIT} connections pass through the scheduler already, and no more may"
        return ""

    async def _connect(self, relay: _Relay) -> None:
        client, address = relay.client, relay.address
        host, port = parse_address(address)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: relay, host, port)
        except OSError as error:
            said = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            client.send(messages.Relayed(f"the scheduler cannot connect to {address} either: {said}"))
            client.close()
            return
        relay.connecting = None
        who = (client.peer_address.rpartition(":")[0], address)
        if who not in self._said:
            self._said.add(who)
            logger.warning("values between a client at %s and the worker at %s pass through the scheduler", *who)
        client.send(messages.Relayed(""))

    def closed(self, connection: Connection) -> None:
        """A connection has ended, a relay's or another."""
        relay = self._relays.pop(connection, None)
        if relay is not None:
            relay.end()
