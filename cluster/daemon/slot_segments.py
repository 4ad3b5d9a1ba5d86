"""The slot's side of segments: how it writes a large result, and the maps that it keeps for that."""

from __future__ import annotations

import os
import socket
from array import array
from typing import Final, NamedTuple

from cluster.storage.maps import map_to_write
from cluster.storage.segment_book import class_of
from cluster.storage.segments import write_encoded, write_into_map
from cluster.wire.encoded import Encoded

__all__ = ["SegmentAnswer", "SegmentWriter", "send_descriptor"]

_PACKET: Final = b"s"


class SegmentAnswer(NamedTuple):
    """What the agent answers to a slot that asked for a segment."""

    path: str
    """Empty: there is no room."""
    reason: str
    number: int
    """Under which the slot keeps a map of it; 0: it is to be written by its path."""
    descriptor: int
    """Whether a descriptor to make that map of has come along the slot's socket (1), or the slot has the map (0)."""


class SegmentWriter:
    """Writes results into segments. Those that are used again are mapped once, and then cost no page faults.

    The agent says which maps are kept, and when one is to go: it may truncate a segment whose map it has told the slot
    to let go of before the slot hears of it, since a slot touches a map only to write what it was asked to write.
    """

    def __init__(self, descriptors: int) -> None:
        """`descriptors`: the socket by which they come; -1 if there is none."""
        self._socket = descriptors
        self._received: dict[int, int] = {}  # number -> descriptor that no map has been made of yet
        self._maps: dict[int, memoryview] = {}

    def take_in(self, answer: SegmentAnswer) -> SegmentAnswer:
        """An answer has come: take the descriptor that came with it."""
        if answer.descriptor:
            self._received[answer.number] = _receive_descriptor(self._socket)
        return answer

    def write(self, answer: SegmentAnswer, encoded: Encoded) -> None:
        """Write a value into the segment that was given for it."""
        mapped = self._map(answer.number, encoded.nbytes)
        if mapped is None:
            write_encoded(answer.path, encoded)
        else:
            write_into_map(mapped, encoded)

    def forget(self, number: int) -> None:
        """The agent uses the segment no more, or gives it to another slot."""
        self._maps.pop(number, None)
        descriptor = self._received.pop(number, -1)
        if descriptor >= 0:
            os.close(descriptor)

    def _map(self, number: int, nbytes: int) -> memoryview | None:
        descriptor = self._received.pop(number, -1)
        if descriptor >= 0:
            try:
                # As long as any value that it will be used for; the file may be shorter now.
                self._maps[number] = map_to_write(descriptor, class_of(nbytes))
            except OSError:  # the process may have no more address space; then each value is written by the path
                self._maps.pop(number, None)
            finally:
                os.close(descriptor)
        return self._maps.get(number)

    def after_fork_in_child(self) -> None:
        """The child of a task is no slot: it has no maps, and is to hold no descriptors."""
        self._maps.clear()
        for descriptor in self._received.values():
            os.close(descriptor)
        self._received.clear()


def send_descriptor(connected: socket.socket, descriptor: int) -> bool:
    """Send a descriptor through a socket that does not block; whether that went."""
    try:
        socket.send_fds(connected, [_PACKET], [descriptor])
    except OSError:  # the slot has ended, or does not read; both are noticed otherwise
        return False
    return True


def _receive_descriptor(connected: int) -> int:
    """Receive a descriptor that was sent before what told of it."""
    # `socket.recv_fds` ignores flags, and what it receives would be inherited by whatever a task starts.
    with socket.socket(fileno=os.dup(connected)) as opened:
        room = socket.CMSG_LEN(array("i").itemsize)
        _, ancillary, _, _ = opened.recvmsg(len(_PACKET), room, socket.MSG_CMSG_CLOEXEC)
    return array("i", ancillary[0][2])[0]
