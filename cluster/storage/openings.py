"""Whether anybody else has a segment open or mapped: each opening says so by a lock.

Whoever opens a segment by its path takes a shared lock (`flock`) with that, and keeps it as long as the opening lives.
A map holds the opening that it was made from, also after its descriptor was closed, and so does the copy of a map in a
forked child; what a killed process had open the kernel lets go of. The owner asks by trying for the exclusive lock, on
its own opening, which has none. Duplicates of that opening do not count: neither a descriptor that was passed to
another process, nor a map made from it. So an owner can share its opening with one who writes, and still be told of
everybody else.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Final

__all__ = ["is_open_elsewhere", "lock_shared", "locks_tell", "open_segment"]

_PROBE_BYTES: Final = 4096
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOCKS: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK})


def open_segment(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a segment, so that its owner knows of it; FileNotFoundError if its owner has removed it or used it anew."""
    descriptor = os.open(path, flags | _FLAGS)
    try:
        lock_shared(descriptor)
        # Its owner renames a segment to use it again, and asks then whether anybody has it open. So one that still has
        # its name, now that it is locked, stays as it is.
        os.stat(path, follow_symlinks=False)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def lock_shared(descriptor: int) -> None:
    """Say of an opening that it is there. If an owner is just asking, this waits the microsecond that it takes."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # a file system without them: nothing is used again there (`locks_tell`)
            raise


def is_open_elsewhere(descriptor: int) -> bool:
    """Whether the segment is open or mapped, in any process, by another opening than this one, its owner's; 1 µs.

    It is, unless the kernel says that it is not.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def locks_tell(directory: int) -> bool:
    """Try it on a file in this directory (a descriptor): are there such locks, and do they outlive a descriptor?"""
    name = f"probe-{os.urandom(8).hex()}"
    probe = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=directory)
    try:
        os.ftruncate(probe, _PROBE_BYTES)
        with mmap.mmap(probe, _PROBE_BYTES):
            if is_open_elsewhere(probe):
                return False
            reader = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=directory)
            try:
                lock_shared(reader)
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
