"""What two processes on one host have proved to each other (`cluster.storage.probes`), once a connection: the side of a
client, or of an agent that wants a value of another."""

from __future__ import annotations

import os
from typing import Final

from cluster.errors import ProtocolError, ValueLost
from cluster.storage.maps import map_segment
from cluster.storage.openings import open_segment
from cluster.storage.probes import Probe, is_segment_name, proven, read_probes
from cluster.transport.blocking import BlockingConnection
from cluster.wire import messages

__all__ = ["AgentHost", "introduce", "open_value", "prove_own"]

ANSWER_SECONDS: Final = 10.0
READ_UP_TO_BYTES: Final = 256 * 1024
"""Smaller values are read and not mapped: a process may have some 65,000 maps, and a gather takes many such values."""


class AgentHost:
    """One connection to an agent: what each side can open of the other's."""

    __slots__ = ("directories", "takes")

    def __init__(self, directories: tuple[str, ...]) -> None:
        self.directories = directories
        """Where the agent's segments can be opened here: empty text for a directory that cannot."""
        self.takes: bool | None = None
        """Whether the agent can take segments over that the client writes; None: not asked yet."""

    def segment(self, position: int, name: str) -> str:
        """The path of a segment that the agent names; raises ProtocolError if it may not be opened."""
        directory = self.directories[position] if 0 <= position < len(self.directories) else ""
        if not directory or not is_segment_name(name):
            raise ProtocolError(f"an agent named {name!r:.80} in its directory {position}, which was not proved")
        return f"{directory}/{name}"

    @property
    def is_ours(self) -> bool:
        """Whether the agent runs on this host: its first directory, the one in memory, can be opened here."""
        return bool(self.directories and self.directories[0])


def open_value(path: str, nbytes: int) -> memoryview:
    """The bytes of a value in a segment, for one owner to change; raises ValueLost if it was freed."""
    if nbytes > READ_UP_TO_BYTES:
        return map_segment(path, nbytes)
    try:
        descriptor = open_segment(path)
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
    theirs = connection.receive_one(messages.HostProbe, ANSWER_SECONDS)
    contents = read_probes(theirs.paths)
    if not any(contents):
        return AgentHost(())
    connection.send(messages.HostProof(contents))
    pairs = zip(theirs.paths, contents, strict=True)
    return AgentHost(tuple(path.rpartition("/")[0] if content else "" for path, content in pairs))


def prove_own(connection: BlockingConnection, probe: Probe) -> bool:
    """Whether the agent at the other end can take over what lies beside this probe."""
    connection.send(messages.HostProbe([probe.path]))
    return bool(proven([probe], connection.receive_one(messages.HostProof, ANSWER_SECONDS).contents))
