"""Whether anybody else has a file open or mapped: the kernel is asked by a write lease.

Linux refuses a write lease on an opening while the file is open otherwise. A map holds the opening that it was made
from, also after its descriptor was closed, and so does the copy of a map in a forked child. Duplicates of the asking
opening itself do not count: neither a descriptor that was passed to another process, nor a map made from it. So an
owner can share its opening with one who writes, and still be told of everybody who reads.

The lease is given back at once. Who comes to open the file in between waits a few microseconds.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
from typing import Final

__all__ = ["is_open_elsewhere", "leases_tell"]

_SET_LEASE: Final = getattr(fcntl, "F_SETLEASE", None)
_SET_SIGNAL: Final = getattr(fcntl, "F_SETSIG", None)
_PROBE_BYTES: Final = 4096


def is_open_elsewhere(descriptor: int) -> bool:
    """Whether the file is open or mapped, in any process, by another opening than this one; 4 µs.

    It is, unless the kernel says that it is not: leases may have been switched off meanwhile.
    """
    assert _SET_LEASE is not None
    assert _SET_SIGNAL is not None
    # The kernel tells the holder of a lease when somebody comes to open the file: by SIGIO, which would end this
    # process. SIGURG does nothing. It has to be said each time, since giving a lease back resets it.
    try:
        fcntl.fcntl(descriptor, _SET_SIGNAL, signal.SIGURG)
        fcntl.fcntl(descriptor, _SET_LEASE, fcntl.F_WRLCK)
    except OSError:
        return True
    fcntl.fcntl(descriptor, _SET_LEASE, fcntl.F_UNLCK)
    return False


def leases_tell(directory: int) -> bool:
    """Try it on a file in this directory (a descriptor): do leases exist there, and do they notice a private map?"""
    if _SET_LEASE is None or _SET_SIGNAL is None:
        return False
    name = f"probe-{os.urandom(8).hex()}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    probe = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        os.ftruncate(probe, _PROBE_BYTES)
        with mmap.mmap(probe, _PROBE_BYTES):
            if is_open_elsewhere(probe):
                return False
            reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if not is_open_elsewhere(probe):
                    return False
                view = mmap.mmap(reader, _PROBE_BYTES, flags=mmap.MAP_PRIVATE)
            finally:
                os.close(reader)
            with view:
                if not is_open_elsewhere(probe):
                    return False
            return not is_open_elsewhere(probe)
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=directory)
