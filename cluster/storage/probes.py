"""How two processes prove to each other that they share a host: each reads a file of the other.

A process that has segments puts a *probe*, a file of random content, beside them, and tells a peer its path. The peer
reads the file and says what is in it. A right answer proves that the peer can open the segments there, and nothing
weaker does: two processes of one machine may see different file systems, and two machines may have the same names.

What a peer says is a claim. A probe is read only if it lies in a directory that belongs to this user alone, and is no
link, no pipe and no larger than a probe is; a segment is opened only by its name inside a directory whose probe was
read before.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["PROBE", "Probe", "is_segment_name", "make_probe", "proven", "read_probe", "read_probes", "renewed"]

PROBE: Final = "probe"
PROBE_BYTES: Final = 32
PROBES_LIMIT: Final = 4
"""More directories than this no process has."""
_SEGMENT_NAME: Final = re.compile(r"s[0-9][0-9a-z-]{0,62}")


class Probe(NamedTuple):
    """A probe file of this process."""

    path: str
    content: bytes


def make_probe(directory: str) -> Probe:
    """Put a probe into a directory of this process's own."""
    probe = Probe(f"{directory}/{PROBE}", os.urandom(PROBE_BYTES))
    descriptor = os.open(probe.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, probe.content)
    finally:
        os.close(descriptor)
    return probe


def renewed(probe: Probe) -> Probe:
    """A probe of this process's own: the one that there is, or another in its place if somebody has removed it."""
    if os.path.exists(probe.path):
        return probe
    try:
        return make_probe(os.path.dirname(probe.path))
    except OSError:  # its directory is gone too: until that is made again, peers are sent bytes
        return probe


def read_probe(path: str) -> bytes:
    """What is in the probe that a peer names; nothing if there is none here that this process would trust."""
    directory, _, name = path.rpartition("/")
    if name != PROBE or not os.path.isabs(directory) or "\0" in path:
        return b""
    try:
        owner = os.lstat(directory)
        if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != os.getuid() or stat.S_IMODE(owner.st_mode) & 0o077:
            return b""
        # Not waiting: what is there may be a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it is on another host, or belongs to another user
        return b""
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_size != PROBE_BYTES:
            return b""
        return os.read(descriptor, PROBE_BYTES)
    finally:
        os.close(descriptor)


def read_probes(paths: Sequence[str]) -> list[bytes]:
    """The same for each of several."""
    return [read_probe(path) if at < PROBES_LIMIT else b"" for at, path in enumerate(paths)]


def proven(probes: Sequence[Probe], contents: Sequence[bytes]) -> frozenset[int]:
    """Which of this process's directories a peer can open, by the contents that it has read."""
    pairs = enumerate(zip(probes, contents, strict=False))
    return frozenset(at for at, (probe, content) in pairs if hmac.compare_digest(probe.content, content))


def is_segment_name(name: str) -> bool:
    """Whether a file of this name in a segment directory can be a segment."""
    return _SEGMENT_NAME.fullmatch(name) is not None
