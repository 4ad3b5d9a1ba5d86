"""Maps of segments: private ones to read, shared ones to write, and those that are kept for the next value.

To map a segment privately, and to let go of the map, costs a fault for every few pages, about what it costs to copy
them once. `KeptMaps` keeps the maps of segments whose values were let go of: when a segment comes back with another
value, its pages are mapped already, and show what was written. Only a map of which no page was written to may be kept,
since such a page is this process's own from then on; the kernel's page map says which. Who looks at a value in a kept
map has the segment open a second time for as long as that lasts, by a map of one page, so that its owner, and a forked
child, are served as if the whole had been mapped for that value.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from cluster.errors import ValueLost
from cluster.storage.openings import open_segment
from cluster.units import format_bytes

__all__ = ["KEPT_FROM_BYTES", "KeptMaps", "map_segment", "map_to_write"]

KEPT_FROM_BYTES: Final = 1 << 20
"""Smaller maps cost less than looking after them does."""
_KEPT: Final = 32
_KEPT_BYTES: Final = 4 << 30  # of addresses; their page tables take 8 MiB
_PAGE_BYTES: Final = mmap.PAGESIZE
_PAGE_MAP: Final = "/proc/self/pagemap"
_ENTRY_BYTES: Final = 8  # for each page; of the last byte, the highest bits: there, swapped out, of a file
_UNWRITTEN: Final = bytes(byte for byte in range(256) if byte >> 5 in (0b000, 0b101))
_MAP_POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0)
_MADV_DONTFORK: Final = getattr(mmap, "MADV_DONTFORK", 0)


def map_segment(path: str, nbytes: int) -> memoryview:
    """Map a segment's first bytes privately: writing to them changes nobody else's. The map lasts as long as any view.

    `ValueLost` if the file is missing or shorter.
    """
    segment = _open_to_read(path)
    try:
        _check_size(segment, path, nbytes)
        if nbytes == 0:
            return memoryview(bytearray())
        address = _map(segment, nbytes, mmap.MAP_PRIVATE)
    finally:
        os.close(segment)
    return _view(address, nbytes, lambda: _unmap(address, nbytes))


def map_to_write(segment: int, nbytes: int) -> memoryview:
    """Map a segment by its opening so that what is written changes it; for as long as any view lives.

    The pages that there are get mapped at once: a fault for each would take three times as long. It may be longer than
    the file is, if nobody writes there. A forked child does not have the map.
    """
    address = _map(segment, nbytes, mmap.MAP_SHARED | _MAP_POPULATE)
    if _MADV_DONTFORK:
        _libc.madvise(address, nbytes, _MADV_DONTFORK)
    return _view(address, nbytes, lambda: _unmap(address, nbytes))


class _KeptMap:
    """A private map of a segment from its beginning, and a descriptor of it; neither counts as having it open."""

    __slots__ = ("address", "descriptor", "key", "nbytes")

    def __init__(self, key: tuple[int, int], descriptor: int, nbytes: int) -> None:
        self.key = key
        self.descriptor = descriptor
        self.nbytes = nbytes
        self.address = _map(descriptor, nbytes, mmap.MAP_PRIVATE)

    @property
    def may_come_back(self) -> bool:
        """Whether the file still has a name, so that another value may be written into it."""
        try:
            return os.fstat(self.descriptor).st_nlink > 0
        except OSError:  # another thread has ended it just now
            return False

    def end(self) -> None:
        _unmap(self.address, self.nbytes)
        os.close(self.descriptor)


class KeptMaps:
    """Maps segments as `map_segment` does, and keeps the maps when their views have gone. For one process; its threads
    may map at once, and views may die in any of them."""

    def __init__(self) -> None:
        self.defers = False
        """Whether maps whose views have gone are looked at later, by `settle`."""
        self._maps: dict[tuple[int, int], _KeptMap] = {}  # nobody's at the time, by device and file; the latest last
        self._deferred: deque[_KeptMap] = deque()
        self._page_map = -1
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:  # else addresses are for the tasks
            with contextlib.suppress(OSError):  # no such file outside Linux, or it is hidden: nothing can be kept
                self._page_map = os.open(_PAGE_MAP, os.O_RDONLY | os.O_CLOEXEC)

    def __len__(self) -> int:
        return len(self._maps)

    def map(self, path: str, nbytes: int) -> memoryview:
        """Map a segment's first bytes; as `map_segment`."""
        if nbytes < KEPT_FROM_BYTES or self._page_map < 0:
            return map_segment(path, nbytes)
        segment = _open_to_read(path)
        try:
            kept = self._take(segment, path, nbytes)
            try:
                opened = _map(segment, _PAGE_BYTES, mmap.MAP_PRIVATE)
            except OSError:
                kept.end()
                raise
        finally:
            os.close(segment)
        return _view(kept.address, nbytes, lambda: self._let_go(kept, opened))

    def settle(self) -> None:
        """Look at the maps that were deferred, and defer no more."""
        self.defers = False
        while self._deferred:
            self._keep_or_end(self._deferred.popleft())

    def clear(self) -> None:
        """Let go of all maps that nobody looks at."""
        self.settle()
        for kept in list(self._maps.values()):
            self._drop(kept)

    def after_fork_in_child(self) -> None:
        """The child of a task keeps nothing: the page map that is open here is its parent's."""
        if self._page_map >= 0:
            os.close(self._page_map)
            self._page_map = -1
        self.clear()

    def _take(self, segment: int, path: str, nbytes: int) -> _KeptMap:
        """A map that is nobody's: the one that was kept of this segment, if it is long enough, or another."""
        size = _check_size(segment, path, nbytes)
        facts = os.fstat(segment)
        key = facts.st_dev, facts.st_ino
        found = self._maps.pop(key, None)
        if found is not None:
            if found.nbytes >= nbytes:
                return found
            found.end()
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            return _KeptMap(key, descriptor, size)
        except FileNotFoundError as error:
            raise _gone(path) from error
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
            raise

    def _let_go(self, kept: _KeptMap, opened: int) -> None:
        """The last view has gone, in whatever thread; the interpreter may be collecting garbage."""
        _unmap(opened, _PAGE_BYTES)
        if self.defers:
            self._deferred.append(kept)
        else:
            self._keep_or_end(kept)

    def _keep_or_end(self, kept: _KeptMap) -> None:
        if self._page_map < 0 or not kept.may_come_back or self._was_written(kept):
            kept.end()
            return
        before = self._maps.pop(kept.key, None)
        self._maps[kept.key] = kept
        if before is not None:  # two tasks had it at a time
            before.end()
        self._keep_bounds()

    def _was_written(self, kept: _KeptMap) -> bool:
        wanted = -(-kept.nbytes // _PAGE_BYTES) * _ENTRY_BYTES
        entries = os.pread(self._page_map, wanted, kept.address // _PAGE_BYTES * _ENTRY_BYTES)
        highest = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]
        return len(entries) < wanted or bool(highest.translate(None, _UNWRITTEN))

    def _keep_bounds(self) -> None:
        kept_bytes = 0
        for place, kept in enumerate(reversed(list(self._maps.values()))):
            kept_bytes += kept.nbytes
            if place >= _KEPT or kept_bytes > _KEPT_BYTES or not kept.may_come_back:
                self._drop(kept)

    def _drop(self, kept: _KeptMap) -> None:
        # What is taken out belongs to this thread alone; another may have put it there since, which does no harm.
        if (taken := self._maps.pop(kept.key, None)) is not None:
            taken.end()


def _open_to_read(path: str) -> int:
    try:
        return open_segment(path)
    except FileNotFoundError as error:
        raise _gone(path) from error


def _gone(path: str) -> ValueLost:
    return ValueLost(f"the value in {path} is gone: its owner removed it, or has ended")


def _check_size(segment: int, path: str, nbytes: int) -> int:
    size = os.fstat(segment).st_size
    if size < nbytes:
        raise ValueLost(f"the value in {path} is damaged: {size} bytes instead of {nbytes}")
    return size


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED = ctypes.c_void_p(-1).value


def _map(descriptor: int, nbytes: int, flags: int) -> int:
    """Map a file without keeping a descriptor for it, as `mmap.mmap` does: a gather may map thousands. The address."""
    address: int | None = _libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if address is None or address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"{format_bytes(nbytes)} cannot be mapped: {os.strerror(code)}")
    return address


def _view(address: int, nbytes: int, on_gone: Callable[[], object]) -> memoryview:
    pages = (ctypes.c_ubyte * nbytes).from_address(address)
    # Not at the interpreter's exit: objects that lie in the map may outlive the call.
    weakref.finalize(pages, on_gone).atexit = False
    return memoryview(pages).cast("B")


def _unmap(address: int, nbytes: int) -> None:
    _libc.munmap(address, nbytes)
