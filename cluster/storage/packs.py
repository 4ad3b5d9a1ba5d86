"""Packs: files of many small values, written at once and read one by one, or a few in a row.

A pack is a row of blocks of about 32 KiB, each of whole values one after the other, perhaps compressed. A block is what
is read, unpacked and compared at once, so one value costs one read, and its neighbours come with it. Where the blocks
are, and their checksums (of the plain bytes, so that a fault of the compressor is found too), is kept in memory: less
than a byte for a value of a kilobyte. The file has nothing but the blocks; who wrote it knows where values begin.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from cluster.errors import StoreFull, ValueLost
from cluster.storage.segments import SegmentDirectory
from cluster.storage.spill import COMPRESSIONS, WORTH_COMPRESSING, room_bytes
from cluster.units import format_bytes
from cluster.wire.checksums import checksum

__all__ = ["BLOCK_BYTES", "PackFile", "read_pack", "rewrite_packs", "write_pack"]

BLOCK_BYTES: Final = 32 << 10
"""A block ends with the value that makes it so large."""


class PackFile(NamedTuple):
    """A pack that was written."""

    path: str
    compression: str
    starts: array[int]
    """Where each block begins in the plain bytes, and their end."""
    places: array[int]
    """Where each block begins in the file, and its end."""
    checksums: array[int]

    @property
    def stored_bytes(self) -> int:
        """What the file takes."""
        return self.places[-1]


def write_pack(directory: SegmentDirectory, values: Sequence[bytes], compression: str = "") -> PackFile:
    """Write values into a new file, one after the other; StoreFull if there is no room."""
    if compression and not _is_worth_compressing(next(_blocks(values)), compression):
        compression = ""
    nbytes, room = sum(map(len, values)), room_bytes(directory)
    if nbytes > room and not compression:
        raise StoreFull(f"{format_bytes(nbytes)} are needed, and {format_bytes(room)} may be taken")
    path, target = directory.create_open(0 if compression else nbytes)
    pack = PackFile(path, compression, array("I", [0]), array("Q", [0]), array("Q"))
    try:
        for block in _blocks(values):
            stored = _write(target, _pack(block, compression) if compression else block)
            pack.starts.append(pack.starts[-1] + len(block))
            pack.places.append(pack.places[-1] + stored)
            pack.checksums.append(checksum(block))
    except OSError as error:
        directory.remove(path)
        raise StoreFull(str(error.strerror or error)) from error
    finally:
        os.close(target)
    return pack


def rewrite_packs(
    directory: SegmentDirectory, pieces: Sequence[tuple[PackFile, int, int]], compression: str = ""
) -> PackFile:
    """Write into a new file what is in others: of each value its pack, where it begins there, and its size.

    StoreFull if there is no room, ValueLost if something is damaged.
    """
    values: list[bytes] = [b""] * len(pieces)
    of_pack: dict[str, list[int]] = {}
    for position, (pack, _, _) in enumerate(pieces):
        of_pack.setdefault(pack.path, []).append(position)
    for positions in of_pack.values():
        pack = pieces[positions[0]][0]
        positions.sort(key=lambda position: pieces[position][1])
        starts = [pieces[position][1] for position in positions]
        found, reason = read_pack(pack, starts, [pieces[position][2] for position in positions])
        for position, value in zip(positions, found, strict=True):
            if value is None:
                raise ValueLost(f"{pack.path} is damaged: {reason}")
            values[position] = value
    return write_pack(directory, values, compression)


def read_pack(pack: PackFile, starts: Sequence[int], sizes: Sequence[int]) -> tuple[list[bytes | None], str]:
    """Read values: where each begins in the plain bytes, upwards, and its size. None for what is not what was written,
    and why."""
    values: list[bytes | None] = []
    reason = ""
    try:
        source = os.open(pack.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return [None] * len(starts), f"{pack.path} is gone"
    try:
        present, block = -1, b""
        for start, size in zip(starts, sizes, strict=True):
            number = bisect_right(pack.starts, start, 0, len(pack.checksums)) - 1
            if number != present:
                present = number
                try:
                    block = _read_block(source, pack, number)
                except (ValueLost, OSError) as error:
                    block, reason = b"", f"{pack.path}: {error}"
            begin = start - pack.starts[number]
            value = block[begin : begin + size]
            values.append(value if len(value) == size else None)
    finally:
        os.close(source)
    return values, reason


def _blocks(values: Sequence[bytes]) -> Iterator[bytes]:
    first, nbytes = 0, 0
    for position, value in enumerate(values):
        nbytes += len(value)
        if nbytes >= BLOCK_BYTES:
            yield b"".join(values[first : position + 1])
            first, nbytes = position + 1, 0
    if first < len(values):
        yield b"".join(values[first:])


def _write(target: int, block: bytes) -> int:
    view = memoryview(block)
    while view:
        view = view[os.write(target, view) :]
    return len(block)


def _read_block(source: int, pack: PackFile, number: int) -> bytes:
    place, stored = pack.places[number], pack.places[number + 1] - pack.places[number]
    nbytes = pack.starts[number + 1] - pack.starts[number]
    data = os.pread(source, stored, place)
    if len(data) < stored:
        raise ValueLost(f"{stored - len(data)} bytes are missing at its end")
    if pack.compression:
        data = _unpack(data, nbytes, pack.compression)
    if len(data) != nbytes or checksum(data) != pack.checksums[number]:
        raise ValueLost(f"what is at byte {place} has another checksum than when it was written")
    return data


def _pack(block: bytes, compression: str) -> bytes:
    module = import_module(COMPRESSIONS[compression])
    packed = module.compress(block) if compression == "lz4" else module.ZstdCompressor(level=1).compress(block)
    return bytes(packed)


def _is_worth_compressing(block: bytes, compression: str) -> bool:
    return len(_pack(block, compression)) < WORTH_COMPRESSING * len(block)


def _unpack(data: bytes, nbytes: int, compression: str) -> bytes:
    """A block's plain bytes, and not many more than it had, whatever became of it."""
    module: Any = import_module(COMPRESSIONS[compression])
    is_lz4 = compression == "lz4"
    faults = (RuntimeError, ValueError, EOFError) if is_lz4 else (module.ZstdError, ValueError)
    try:
        if is_lz4:
            return bytes(module.LZ4FrameDecompressor().decompress(data, max_length=nbytes + 1))
        return bytes(module.ZstdDecompressor().decompress(data, max_output_size=nbytes))
    except faults as error:
        raise ValueLost(f"it cannot be unpacked: {error}") from error
