"""Which fast paths a worker takes: what the settings want, as far as this system has it."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path
from typing import NamedTuple

__all__ = ["FastPaths", "choose"]


class FastPaths(NamedTuple):
    """What a worker does in the fast way, and what it would need to do all of it so."""

    slots: bool
    """Slots are forked, ended with their starter by the kernel, and given tasks ahead that can be taken back.

    Else each is a fresh interpreter with pipes that have names, gets one task at a time, and the starter alone sees to
    its end.
    """
    missing: tuple[str, ...]
    """What the settings want and this system has not."""


def choose(wanted: bool) -> FastPaths:
    """Look at this system, unless no fast path is wanted."""
    if not wanted:
        return FastPaths(False, ())
    for_slots = tuple(name for name, present in _needed_by_slots().items() if not present)
    for_values = tuple(f"os.{name}" for name in ("posix_fallocate", "sendfile") if not hasattr(os, name))
    if not Path("/dev/shm").is_dir():
        for_values = ("/dev/shm", *for_values)
    return FastPaths(not for_slots, for_slots + for_values)


def _needed_by_slots() -> dict[str, bool]:
    return {
        "os.fork": hasattr(os, "fork"),
        "os.waitid": hasattr(os, "waitid"),
        "os.memfd_create": hasattr(os, "memfd_create"),
        "pidfd_open": _has_pidfd(),
        "prctl": hasattr(ctypes.CDLL(None), "prctl"),
        "Unix sockets for packets": hasattr(socket, "AF_UNIX") and hasattr(socket, "SOCK_SEQPACKET"),
        "/proc/self/fd": Path("/proc/self/fd").is_dir(),
    }


def _has_pidfd() -> bool:
    if not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:  # Python knows it and the kernel does not
        return False
    return True
