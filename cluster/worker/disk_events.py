"""What the agent's machine and its shell say to each other about values on disk (`events` has all the rest).

A large value keeps a file of its own there. Small ones share files, packs, which the machine numbers; what is where in
one is counted in the bytes of its values, one after the other, as if nothing were compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

# --------------------------------------------------------------------------- events


class Spilled(NamedTuple):
    """What SpillSegment asked for is done. The file at `new_path` may be smaller than the value (`compression`)."""

    key: int
    path: str
    new_path: str
    stored_bytes: int
    checksum: int
    compression: str


class SpillFailed(NamedTuple):
    """… or cannot be: the directory, how much is free there, and why; `lost`: its segment is gone."""

    key: int
    directory: str
    free_bytes: int
    reason: str
    lost: bool = False


class SpilledChecked(NamedTuple):
    """A spilled value was compared. It lies at `new_path` now, plain; or (with a reason) is not what was written."""

    key: int
    path: str
    new_path: str
    reason: str


class PackWritten(NamedTuple):
    """What WritePack or RewritePacks asked for is done; so much does the file take."""

    pack: int
    stored_bytes: int


class PackFailed(NamedTuple):
    """… or cannot be: the directory, how much is free there, and why. `damaged`: what was to be written anew is not
    what had been written."""

    pack: int
    directory: str
    free_bytes: int
    reason: str
    damaged: bool = False


class PackRead(NamedTuple):
    """The values that ReadPack asked for, in its order; None for what is not what was written, for that reason."""

    request: int
    values: Sequence[bytes | None]
    reason: str


DiskEvent: TypeAlias = Spilled | SpillFailed | SpilledChecked | PackWritten | PackFailed | PackRead

# --------------------------------------------------------------------------- effects


class SpillSegment(NamedTuple):
    """Copy a segment to disk, perhaps compressed, and make a checksum; Spilled or SpillFailed follows."""

    key: int
    path: str
    nbytes: int
    compression: str


class CheckSpilled(NamedTuple):
    """Compare a spilled value with its checksum, and unpack it if it is compressed; SpilledChecked follows."""

    key: int
    path: str
    nbytes: int
    checksum: int
    compression: str


class WritePack(NamedTuple):
    """Write small values into a new file, one after the other, perhaps compressed, with checksums; PackWritten or
    PackFailed follows."""

    pack: int
    values: list[bytes]
    compression: str


class RewritePacks(NamedTuple):
    """Write into a new file what is in others: of each value the pack, where it begins there, and its size. PackWritten
    or PackFailed follows."""

    pack: int
    pieces: list[tuple[int, int, int]]
    compression: str


class ReadPack(NamedTuple):
    """Read values from a pack: where each begins, upwards, and its size; compare them. PackRead follows."""

    request: int
    pack: int
    starts: list[int]
    sizes: list[int]


class RemovePacks(NamedTuple):
    """These packs are needed no more."""

    packs: list[int]
