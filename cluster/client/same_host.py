"""What a client and an agent on one host have proved to each other (`cluster.storage.probes`), once a connection."""

from __future__ import annotations

import os
import time
from typing import Final, NamedTuple

from cluster.errors import ConnectionLost, ProtocolError, ValueLost
from cluster.storage.probes import is_segment_name, read_probes
from cluster.storage.segments import map_segment
from cluster.transport.blocking import BlockingConnection
from cluster.wire import messages

__all__ = ["NO_HOST", "AgentHost", "introduce", "open_value"]

ANSWER_SECONDS: Final = 10.0
READ_UP_TO_BYTES: Final = 256 * 1024
"""Smaller values are read and not mapped: a process may have some 65,000 maps, and a gather takes many such values."""


class AgentHost(NamedTuple):
    """The directories in which an agent's segments can be opened here: empty text for one that cannot."""

    directories: tuple[str, ...]

    def segment(self, position: int, name: str) -> str:
        """The path of a segment that the agent names; raises ProtocolError if it may not be opened."""
        directory = self.directories[position] if 0 <= position < len(self.directories) else ""
        if not directory or not is_segment_name(name):
            raise ProtocolError(f"an agent named {name!r:.80} in its directory {position}, which was not proved")
        return f"{directory}/{name}"


NO_HOST: Final = AgentHost(())


def open_value(path: str, nbytes: int) -> memoryview:
    """The bytes of a value in a segment, for one owner to change; raises ValueLost if it was freed."""
    if nbytes > READ_UP_TO_BYTES:
        return map_segment(path, nbytes)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ValueLost(f"the value in {path} is gone: its owner removed it, or has ended") from error
    try:
        target = memoryview(bytearray(nbytes))
        if os.readv(descriptor, [target]) != nbytes:
            raise ValueLost(f"the value in {path} is damaged: it has less than {nbytes} bytes")
        return target
    finally:
        os.close(descriptor)


def introduce(connection: BlockingConnection) -> AgentHost:
    """Ask an agent for its probes and prove which of them can be read here; a connection's first words."""
    connection.send(messages.HostProbe([]))
    deadline = time.monotonic() + ANSWER_SECONDS
    while (remaining := deadline - time.monotonic()) > 0:
        for message in connection.receive(remaining):
            if isinstance(message, messages.HostProbe):
                contents = read_probes(message.paths)
                if not any(contents):
                    return NO_HOST
                connection.send(messages.HostProof(contents))
                pairs = zip(message.paths, contents, strict=True)
                return AgentHost(tuple(path.rpartition("/")[0] if content else "" for path, content in pairs))
            if not isinstance(message, messages.Heartbeat):
                raise ProtocolError(f"an agent answered with {type(message).__name__} instead of its probes")
    connection.close()
    raise ConnectionLost(f"the agent at {connection.peer_address} did not say where its values lie")
