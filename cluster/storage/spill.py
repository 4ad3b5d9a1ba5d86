"""Large values on disk: copied there in pieces with a checksum, perhaps compressed, and compared before they are used.

A plain file has the same bytes as the segment, and is used where it lies. A compressed one is unpacked into a plain
file first; its checksum is that of the plain bytes, so a fault of the compressor is found too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from cluster.errors import SettingError, StoreFull, ValueLost
from cluster.storage.openings import open_segment
from cluster.storage.segments import WRITE_STEP_BYTES, SegmentDirectory, lies_in_memory
from cluster.units import format_bytes
from cluster.wire.checksums import Checksum

__all__ = [
    "COMPRESSIONS",
    "WORTH_COMPRESSING",
    "Stored",
    "check_compression",
    "check_file",
    "default_spill_parent",
    "room_bytes",
    "store_file",
]

COMPRESSIONS: Final = {"lz4": "lz4.frame", "zstd": "zstandard"}
"""The modules, each an extra of the same name as the compression."""

# What is left of the file system for others: this part, but no more than so much.
_LEFT_PART: Final = 0.05
_LEFT_BYTES: Final = 1 << 30
WORTH_COMPRESSING: Final = 0.9
"""The beginning is compressed for a test: what shrinks less than this is stored plain."""


class Stored(NamedTuple):
    """A value's file on disk."""

    path: str
    stored_bytes: int
    checksum: int
    compression: str


def default_spill_parent(temporary: Path) -> Path:
    """Where values go to disk: the place of temporary files, unless those lie in memory and /var/tmp does not."""
    lasting = Path("/var/tmp")
    if lies_in_memory(temporary) and os.access(lasting, os.W_OK | os.X_OK) and not lies_in_memory(lasting):
        return lasting
    return temporary


def check_compression(name: str) -> None:
    """Raise SettingError if what a compression needs is not installed."""
    if name:
        try:
            import_module(COMPRESSIONS[name])
        except ImportError as error:
            raise SettingError(
                f"spill_compression is {name}, and {error.name} is not installed: "
                f'pip install "cluster-scheduler[{name}]", or leave the setting out'
            ) from error


def room_bytes(directory: SegmentDirectory) -> int:
    """How much may be written there."""
    figures = directory.file_system()
    size, free = figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize
    return max(0, free - min(_LEFT_BYTES, int(size * _LEFT_PART)))


def store_file(directory: SegmentDirectory, path: str, nbytes: int, compression: str = "") -> Stored:
    """Copy a segment into a directory on disk. StoreFull if there is no room, ValueLost if the segment is gone."""
    room = room_bytes(directory)
    if nbytes > room and not compression:
        raise StoreFull(f"{format_bytes(nbytes)} are needed, and {format_bytes(room)} may be taken")
    if compression and not _is_worth_compressing(path, nbytes, compression):
        compression = ""
    new_path = directory.create(0 if compression else nbytes)
    try:
        return _copy(path, nbytes, new_path, compression)
    except ValueLost:
        directory.remove(new_path)
        raise
    except OSError as error:
        directory.remove(new_path)
        raise StoreFull(str(error.strerror or error)) from error


def check_file(directory: SegmentDirectory, path: str, nbytes: int, checksum: int, compression: str) -> str:
    """Compare a file with its checksum; the path of the plain file. ValueLost if it is damaged, StoreFull if there is
    no room to unpack it."""
    if not compression:
        counted = Checksum()
        for piece in _pieces(path, nbytes):
            counted.update(piece)
        if counted.intdigest() != checksum:
            raise ValueLost(f"its checksum is {counted.hexdigest()} and was {checksum:016x} when it was written")
        return path
    new_path = directory.create(nbytes)
    try:
        _unpack(path, new_path, nbytes, checksum, compression)
    except BaseException:
        directory.remove(new_path)
        raise
    return new_path


def _pieces(path: str, nbytes: int) -> Iterator[memoryview]:
    """A file's bytes, read into one buffer and not mapped: a map would count as this process's memory."""
    try:
        source = open_segment(path)
    except FileNotFoundError as error:
        raise ValueLost("its file is gone") from error
    buffer = memoryview(bytearray(min(nbytes, WRITE_STEP_BYTES)))
    try:
        while nbytes:
            count = os.readv(source, [buffer[: min(nbytes, WRITE_STEP_BYTES)]])
            if not count:
                raise ValueLost(f"{nbytes} bytes are missing at its end")
            nbytes -= count
            yield buffer[:count]
    finally:
        os.close(source)


def _copy(path: str, nbytes: int, new_path: str, compression: str) -> Stored:
    stored, counted = 0, Checksum()
    compressor = _compressor(compression) if compression else None
    target = os.open(new_path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for piece in _pieces(path, nbytes):
            counted.update(piece)
            stored += _write(target, piece if compressor is None else compressor.compress(piece))
        if compressor is not None:
            stored += _write(target, compressor.flush())
    finally:
        os.close(target)
    return Stored(new_path, stored, counted.intdigest(), compression)


def _write(target: int, data: Any) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.write(target, view[done:])
    return done


def _unpack(path: str, new_path: str, nbytes: int, checksum: int, compression: str) -> None:
    size, counted = 0, Checksum()
    target = os.open(new_path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for piece in _unpacked(path, compression):
            size += len(piece)
            if size > nbytes:
                break  # whatever this is, it may not fill the disk
            counted.update(piece)
            _write(target, piece)
    finally:
        os.close(target)
    if (size, counted.intdigest()) != (nbytes, checksum):
        found = counted.hexdigest()
        raise ValueLost(f"it unpacks to {size} bytes with the checksum {found}, not {nbytes} with {checksum:016x}")


def _compressor(compression: str) -> Any:
    module = import_module(COMPRESSIONS[compression])
    if compression == "lz4":
        return _Lz4(module)
    return module.ZstdCompressor(level=1).compressobj()


class _Lz4:
    """lz4's compressor with the interface of the others."""

    def __init__(self, module: Any) -> None:
        self._compressor = module.LZ4FrameCompressor()
        self._head: bytes = self._compressor.begin()

    def compress(self, data: memoryview) -> bytes:
        head, self._head = self._head, b""
        return head + bytes(self._compressor.compress(data))

    def flush(self) -> bytes:
        return self._head + bytes(self._compressor.flush())


def _unpacked(path: str, compression: str) -> Iterator[bytes]:
    """A packed file's bytes, however many a packed byte stands for."""
    module = import_module(COMPRESSIONS[compression])
    is_lz4 = compression == "lz4"
    faults = (RuntimeError, ValueError, EOFError) if is_lz4 else (module.ZstdError, ValueError)
    try:
        with open(path, "rb") as source:
            unpacking = module.LZ4FrameFile(source) if is_lz4 else module.ZstdDecompressor().stream_reader(source)
            while piece := unpacking.read(WRITE_STEP_BYTES):
                yield piece
    except faults as error:
        raise ValueLost(f"it cannot be unpacked: {error}") from error


def _is_worth_compressing(path: str, nbytes: int, compression: str) -> bool:
    compressor = _compressor(compression)
    beginning = next(_pieces(path, min(nbytes, WRITE_STEP_BYTES)))
    packed = len(compressor.compress(beginning)) + len(compressor.flush())
    return packed < WORTH_COMPRESSING * len(beginning)
