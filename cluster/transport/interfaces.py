"""Under which addresses other machines reach this one."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from cluster.errors import ConnectionLost
from cluster.transport.addresses import is_loopback, local_host_towards

__all__ = ["own_hosts"]


def own_hosts(family: socket.AddressFamily = socket.AF_INET) -> list[str]:
    """Return this machine's addresses beyond loopback, of interfaces that are up; first that of the default way."""
    import psutil  # only a scheduler that listens at all addresses needs it

    found = [
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        if (state := psutil.net_if_stats().get(name)) is not None and state.isup
        for address in addresses
        if address.family == family
        and not is_loopback(address.address)
        # A link-local address says nothing without the interface, which is another on each machine.
        and not ipaddress.ip_address(address.address.partition("%")[0]).is_link_local
    ]
    with contextlib.suppress(ConnectionLost):
        # Addresses for documentation, which nobody has; only the way towards them is asked for.
        first = local_host_towards("192.0.2.1" if family == socket.AF_INET else "2001:db8::1", 9)
        if first in found:
            found.remove(first)
            found.insert(0, first)
    return found
