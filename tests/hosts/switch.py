"""A bridge and the hosts on it, made in namespaces of their own; they end when this process's input does.

Started by `namespaces.py`: `python -m tests.hosts.switch COUNT`. Each host's holder prints the host's
number and its own process when all is there, in any order; then lines are obeyed: "cut 2", "join 2", and "impair 2
delay 20ms loss 1%", which the kernel does to all that reaches host 2. A line is printed again when it was obeyed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from typing import Final

from tests.hosts.enter import DIE_WITH_PARENT
from tests.hosts.netlink import Netlink

_NEW_MOUNTS: Final = 0x00020000
_NEW_NETWORK: Final = 0x40000000
_PRIVATE_BELOW: Final = 0x4000 | 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def addresses_of(number: int) -> tuple[str, str]:
    """The addresses of a host, of both kinds."""
    return f"10.77.0.{number + 1}", f"fd77::{number + 1}"


def _check(result: int, what: str) -> None:
    """Raise OSError if a call of the C library failed."""
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _leave_for_own_namespaces() -> None:
    _check(_libc.unshare(_NEW_NETWORK | _NEW_MOUNTS), "unshare")
    # Nothing that is mounted here is seen by anybody else.
    _check(_libc.mount(b"none", b"/", None, _PRIVATE_BELOW, None), "mount")


def _hold_host() -> tuple[int, int]:
    """Make a process with namespaces and shared memory of its own; return it when it has them, and where to write the
    number of the host when its link is there."""
    ready, tell = os.pipe()
    linked, link = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        problem = os.read(ready, 1000).decode()
        os.close(ready)
        if problem != "ready":
            raise OSError(problem)
        return process, link
    try:
        _check(_libc.prctl(DIE_WITH_PARENT, signal.SIGKILL), "prctl")
        _leave_for_own_namespaces()
        _check(_libc.mount(b"memory", b"/dev/shm", b"tmpfs", 0, b"mode=1777"), "mount")
        netlink = Netlink()
        netlink.up("lo")
        os.write(tell, b"ready")
        number = int(os.read(linked, 10))
        netlink.up("eth0")
        for address in addresses_of(number):
            netlink.add_address("eth0", address, 64 if ":" in address else 24)
        os.write(sys.stdout.fileno(), f"{number} {os.getpid()}\n".encode())  # in one piece, as others write there
        signal.pause()
    except OSError as error:
        os.write(tell, str(error).encode())
        print(f"no network for a host: {error}", flush=True)
    os._exit(1)


def _impair(name: str, how: list[str]) -> str:
    """Have the kernel delay and lose what leaves by a link (netem); why that cannot be, or nothing."""
    try:
        command = ["tc", "qdisc", "add", "dev", name, "root", "netem", *how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no tc here"
    return " ".join(done.stderr.split())


def main(count: int) -> None:
    """Make the hosts, say who holds them, and obey."""
    _leave_for_own_namespaces()
    netlink = Netlink()
    netlink.add_bridge("bridge")
    netlink.up("bridge")
    holders = [_hold_host() for _ in range(count)]
    for number, (holder, link) in enumerate(holders):
        netlink.add_pair(f"port{number}", "eth0", holder)
        netlink.attach(f"port{number}", "bridge")
        netlink.up(f"port{number}")
        os.write(link, str(number).encode())
    for line in sys.stdin:
        order, number, *how = line.split()
        if order == "impair":
            print(_impair(f"port{number}", how) or line.strip(), flush=True)
            continue
        netlink.attach(f"port{number}", "bridge" if order == "join" else None)
        print(line, end="", flush=True)
    for holder, _ in holders:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except OSError as error:
        print(f"no namespaces: {error}", flush=True)
