"""What an agent and its starter talk through: packets that carry descriptors, or two plain pipes."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgpack

__all__ = ["Channel", "PacketChannel", "PipeChannel"]

_PACKET_LIMIT_BYTES: Final = 65536
_DESCRIPTORS_LIMIT: Final = 253  # as many as the kernel passes with one packet

Received = tuple[list[Any], list[int]]
"""A message, and the descriptors that came with it."""


class Channel(Protocol):
    """One end of it."""

    def fileno(self) -> int:
        """What to poll before `receive`."""

    def send(self, message: Sequence[Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message; raises ConnectionError if the other end has gone."""

    def receive(self) -> list[Received]:
        """What has come, in order; waits if nothing has. Raises EOFError if the other end has gone."""

    def close(self) -> None:
        """End it; the other end notices."""


class PacketChannel:
    """A Unix socket: one message a packet, with descriptors."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.set_inheritable(False)

    def fileno(self) -> int:
        """What to poll before `receive`."""
        return self._socket.fileno()

    def send(self, message: Sequence[Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message; raises ConnectionError if the other end has gone."""
        socket.send_fds(self._socket, [msgpack.packb(message)], list(descriptors))

    def receive(self) -> list[Received]:
        """What has come; waits if nothing has. Raises EOFError if the other end has gone."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._socket, _PACKET_LIMIT_BYTES, _DESCRIPTORS_LIMIT)
        except ConnectionError as error:
            raise EOFError from error
        if not packet:
            raise EOFError
        return [(msgpack.unpackb(packet), descriptors)]

    def close(self) -> None:
        """End it; the other end notices."""
        self._socket.close()


class PipeChannel:
    """Two pipes, for systems without such sockets; no descriptor travels through them."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._unpacker = msgpack.Unpacker()
        for descriptor in (reader, writer):
            os.set_inheritable(descriptor, False)

    def fileno(self) -> int:
        """What to poll before `receive`."""
        return self._reader

    def send(self, message: Sequence[Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message; raises ConnectionError if the other end has gone."""
        assert not descriptors, "a pipe carries no descriptors"
        os.write(self._writer, msgpack.packb(message))  # whole: it is far shorter than what a pipe takes at once

    def receive(self) -> list[Received]:
        """What has come, in order; waits if nothing has. Raises EOFError if the other end has gone."""
        data = os.read(self._reader, _PACKET_LIMIT_BYTES)
        if not data:
            raise EOFError
        self._unpacker.feed(data)
        return [(message, []) for message in self._unpacker]

    def close(self) -> None:
        """End it; the other end notices."""
        os.close(self._reader)
        os.close(self._writer)
