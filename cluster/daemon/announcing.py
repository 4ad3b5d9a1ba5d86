"""What a scheduler tells the person who started it: where it is, and what to do in the next terminal."""

from __future__ import annotations

import getpass
import ipaddress
import shlex
import socket
from pathlib import Path

from cluster.config import Settings
from cluster.errors import AddressError
from cluster.secret import SECRET_FILE
from cluster.transport.addresses import is_loopback, is_wildcard, read_address
from cluster.transport.interfaces import own_hosts

__all__ = ["announced_host", "announcement"]


def announced_host(listening_host: str, given: str) -> str:
    """Return the host that others are told, empty for the one that is listened at; of all addresses it is one."""
    if given or not is_wildcard(listening_host):
        return given
    family = socket.AF_INET6 if ipaddress.ip_address(listening_host).version == 6 else socket.AF_INET
    hosts = own_hosts(family)
    if not hosts:
        raise AddressError(
            f"{listening_host} means all addresses of this machine, but it has none that others could connect to; "
            "say how they reach it: --address HOST"
        )
    return hosts[0]


def announcement(address: str, directory: Path) -> list[str]:
    """Return the lines to print; the first two are the same wherever the scheduler listens."""
    usual = directory == Settings().directory
    given = "" if usual else f" --directory {shlex.quote(str(directory))}"
    lines = [f"cluster-scheduler listening at {address}", f"start workers with:  cluster-worker {address}{given}"]
    host, _, encrypted, _ = read_address(address)
    if is_loopback(host):
        return lines
    if not encrypted:
        lines.append("nothing is encrypted (--insecure): who listens on the network can read and change all")
    here = there = shlex.quote(str(directory))
    if directory.is_relative_to(Path.home()):  # which may be another folder there
        there = shlex.quote(str(directory.relative_to(Path.home())))
        here = f"~/{there}"
    host = f"[{host}]" if ":" in host else host
    lines += [
        "on each other machine, once, copy the secret:",
        f"  mkdir -p -m 700 {here} && scp -p {getpass.getuser()}@{host}:{there}/{SECRET_FILE} {here}/",
    ]
    return lines
