"""Addresses as people write them, which of them may be used, and what all who connect to one have in common."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

from cluster.errors import AddressError, ConnectionLost
from cluster.wire.handshake import HANDSHAKE_SECONDS

__all__ = [
    "Address",
    "cannot_connect",
    "connect_pauses",
    "format_address",
    "is_loopback",
    "is_wildcard",
    "local_host_towards",
    "parse_address",
    "read_address",
    "set_socket_options",
]

_CONNECT_PAUSES_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)

# What an address says of the connection: encrypted; plain on this machine and encrypted beyond it; plain anywhere.
_ENCRYPTED: Final = "tls"
_ORDINARY: Final = "tcp"
_INSECURE: Final = "insecure"
# A host that vanished without a word is found after about 25 s of silence.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Address(NamedTuple):
    """Where to connect to, and whether what is said there is encrypted."""

    host: str
    port: int
    encrypted: bool
    insecure: bool
    """Whether it says that nothing is to be encrypted, although others could listen."""

    def __str__(self) -> str:
        return format_address(self.host, self.port, encrypted=self.encrypted)


def read_address(address: str) -> Address:
    """Return what an address says: tls:// is encrypted, insecure:// never; tcp:// (or nothing) is plain on this
    machine, for 127.0.0.1, ::1 and localhost, and encrypted everywhere else. An IPv6 host stands in brackets.

    >>> str(read_address("localhost:8770")), str(read_address("tcp://node7:8770"))
    ('tcp://localhost:8770', 'tls://node7:8770')
    """
    scheme, separator, rest = address.strip().rpartition("://")
    scheme = scheme.lower() if separator else _ORDINARY
    if scheme not in (_ENCRYPTED, _ORDINARY, _INSECURE):
        raise AddressError(
            f"{address!r} cannot be used: only tcp:// and tls:// are known; write {_ORDINARY}://host:port"
        )
    host, separator, port = rest.rstrip("/").rpartition(":")
    if not separator or not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise AddressError(f"{address!r} is no address; write {_ORDINARY}://host:port, as in tcp://127.0.0.1:8770")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise AddressError(f"{address!r} has no valid port; write a number up to 65535 after the last colon")
    host = host.strip("[]")
    encrypted = scheme == _ENCRYPTED or (scheme == _ORDINARY and not is_loopback(host))
    return Address(host, int(port), encrypted, scheme == _INSECURE)


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    >>> parse_address("tcp://127.0.0.1:8770"), parse_address("tls://[2001:db8::7]:8770")
    (('127.0.0.1', 8770), ('2001:db8::7', 8770))
    """
    return read_address(address)[:2]


def format_address(host: str, port: int, *, encrypted: bool | None = None) -> str:
    """Return the address as `read_address` takes it; `encrypted=None`: as is the rule for that host."""
    loopback = is_loopback(host)
    if encrypted is None:
        encrypted = not loopback
    scheme = _ENCRYPTED if encrypted else _ORDINARY if loopback else _INSECURE
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether what is sent to that host cannot leave this machine.

    Of names only localhost does: what another stands for may change between a look and its use.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether listening there means listening at all of a machine's addresses."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def local_host_towards(host: str, port: int) -> str:
    """Return this machine's address on the way to that host: whoever is there can connect to it.

    The kernel is asked for the way; nothing is sent. Raises ConnectionLost if there is none.
    """
    if host == "localhost":
        return "127.0.0.1"
    error: OSError | None = None
    try:
        for family, kind, protocol, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            try:
                with socket.socket(family, kind, protocol) as asking:
                    asking.connect(where)
                    return str(asking.getsockname()[0])
            except OSError as refused:
                error = refused
    except OSError as refused:
        error = refused
    assert error is not None
    raise cannot_connect(Address(host, port, not is_loopback(host), False), error) from error


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


def cannot_connect(address: Address, error: OSError) -> ConnectionLost:
    """Return the error for an address where nobody answered."""
    said = f"no answer within {HANDSHAKE_SECONDS:g} s" if isinstance(error, TimeoutError) else error.strerror or error
    return ConnectionLost(f"cannot connect to {address}: {said}; check that it is running there, and the port")
