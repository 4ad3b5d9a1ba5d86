"""Addresses as people write them, which of them may be used, and what all who connect to one have in common."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterator
from typing import Final

from cluster.errors import AddressError, ConnectionLost
from cluster.wire.handshake import HANDSHAKE_SECONDS

__all__ = [
    "cannot_connect",
    "check_loopback",
    "connect_pauses",
    "format_address",
    "parse_address",
    "set_socket_options",
]

_CONNECT_PAUSES_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)

_SCHEME: Final = "tcp://"
# A host that vanished without a word is found after about 25 s of silence.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of "tcp://host:port" or "host:port"; an IPv6 host stands in brackets.

    >>> parse_address("tcp://127.0.0.1:8770"), parse_address("[::1]:8770")
    (('127.0.0.1', 8770), ('::1', 8770))
    """
    scheme, separator, rest = address.strip().rpartition("://")
    if separator and scheme.lower() != "tcp":
        reason = "TLS is not supported yet" if scheme.lower() == "tls" else "only tcp:// is known"
        raise AddressError(f"{address!r} cannot be used: {reason}; write {_SCHEME}host:port")
    host, separator, port = rest.rstrip("/").rpartition(":")
    if not separator or not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise AddressError(f"{address!r} is no address; write {_SCHEME}host:port, as in {_SCHEME}127.0.0.1:8770")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise AddressError(f"{address!r} has no valid port; write a number up to 65535 after the last colon")
    return host.strip("[]"), int(port)


def format_address(host: str, port: int) -> str:
    """Return the address as `parse_address` takes it."""
    return f"{_SCHEME}[{host}]:{port}" if ":" in host else f"{_SCHEME}{host}:{port}"


def check_loopback(host: str) -> None:
    """Raise AddressError unless the host is this machine itself: what crosses a network is not encrypted yet."""
    if host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        # A name. What it stands for may change between a check and its use, so none but localhost is taken.
        pass
    raise AddressError(
        f"{host!r} is not an address of this machine alone (127.0.0.1, ::1, localhost): connections to other machines "
        "wait for TLS, which is not supported yet; use 127.0.0.1, through an SSH tunnel if need be"
    )


def connect_pauses() -> Iterator[float]:
    """Yield how long to wait before each further attempt, when a listener has hung up without a word.

    It had too many peers in the middle of their handshake. The pauses vary, or those who came together would come
    together again.
    """
    for seconds in _CONNECT_PAUSES_SECONDS:
        yield seconds * random.uniform(0.75, 1.25)


def set_socket_options(connected: socket.socket) -> None:
    """Send small frames at once, and let the kernel find out when the other host has vanished."""
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return  # both ends are on this host
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        option = getattr(socket, name, None)
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


def cannot_connect(host: str, port: int, error: OSError) -> ConnectionLost:
    """Return the error for an address where nobody answered."""
    said = f"no answer within {HANDSHAKE_SECONDS:g} s" if isinstance(error, TimeoutError) else error.strerror or error
    return ConnectionLost(
        f"cannot connect to {format_address(host, port)}: {said}; check that it is running there, and the port"
    )
