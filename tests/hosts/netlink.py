"""The few things that are asked of the kernel's network by netlink: links, a bridge and addresses, without a tool."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

__all__ = ["Netlink"]

_NEWLINK: Final = 16
_NEWADDR: Final = 20
_REQUEST_AND_ACKNOWLEDGE: Final = 0x5
_CREATE: Final = 0x600
_UP: Final = 1

# Attributes of links (IFLA_…) and of addresses (IFA_…).
_NAME: Final = 3
_MASTER: Final = 10
_INFO: Final = 18
_NAMESPACE_OF_PROCESS: Final = 19
_KIND: Final = 1
_DATA: Final = 2
_PEER: Final = 1
_ADDRESS: Final = 1
_LOCAL: Final = 2
_FLAGS: Final = 8
_NO_DUPLICATE_DETECTION: Final = 0x02

_header = struct.Struct("=IHHII")
_link = struct.Struct("=BBHiII")
_address = struct.Struct("=BBBBI")


def _attribute(kind: int, payload: bytes) -> bytes:
    size = 4 + len(payload)
    return struct.pack("=HH", size, kind) + payload + bytes(-size % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


class Netlink:
    """A socket to the kernel, for the network namespace of the process that opened it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))

    def add_bridge(self, name: str) -> None:
        """Make a bridge."""
        self._link(_CREATE, 0, 0, _text(_NAME, name) + _attribute(_INFO, _text(_KIND, "bridge")))

    def add_pair(self, name: str, peer: str, peer_process: int) -> None:
        """Make a pair of links, of which the peer is in that process's namespace."""
        there = _link.pack(0, 0, 0, 0, 0, 0) + _text(_NAME, peer)
        there += _attribute(_NAMESPACE_OF_PROCESS, struct.pack("=I", peer_process))
        info = _text(_KIND, "veth") + _attribute(_DATA, _attribute(_PEER, there))
        self._link(_CREATE, 0, 0, _text(_NAME, name) + _attribute(_INFO, info))

    def attach(self, name: str, bridge: str | None) -> None:
        """Make a link a port of a bridge, or of none: what comes in there is then lost, and nobody is told."""
        master = 0 if bridge is None else socket.if_nametoindex(bridge)
        self._link(0, socket.if_nametoindex(name), 0, _attribute(_MASTER, struct.pack("=I", master)))

    def up(self, name: str) -> None:
        """Switch a link on."""
        self._link(0, socket.if_nametoindex(name), _UP, b"")

    def down(self, name: str) -> None:
        """Switch a link off."""
        self._link(0, socket.if_nametoindex(name), 0, b"", changed=_UP)

    def add_address(self, name: str, address: str, prefix_bits: int) -> None:
        """Give a link an address, usable at once."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        body = _address.pack(family, prefix_bits, 0, 0, socket.if_nametoindex(name))
        body += _attribute(_LOCAL, packed) + _attribute(_ADDRESS, packed)
        if family == socket.AF_INET6:
            body += _attribute(_FLAGS, struct.pack("=I", _NO_DUPLICATE_DETECTION))
        self._ask(_NEWADDR, _CREATE, body)

    def _link(self, more: int, index: int, flags: int, attributes: bytes, *, changed: int = 0) -> None:
        self._ask(_NEWLINK, more, _link.pack(0, 0, 0, index, flags, changed or flags) + attributes)

    def _ask(self, kind: int, more: int, body: bytes) -> None:
        flags = _REQUEST_AND_ACKNOWLEDGE | more
        self._socket.send(_header.pack(_header.size + len(body), kind, flags, 1, 0) + body)
        answer = self._socket.recv(65536)
        failed = -struct.unpack_from("=i", answer, _header.size)[0]
        if failed:
            raise OSError(failed, f"{os.strerror(failed)} ({errno.errorcode.get(failed, failed)})")
