"""The agent's segments: in shared memory while there is room, else in files on disk; large ones in a thread.

A segment whose value was released is kept to be used again: its pages are there, and the slot that wrote it has it
mapped. What is kept so counts in the memory limit, and is given back when somebody needs the room or another size is
made instead, and after a while. `cluster.storage.segment_book` decides and counts; `cluster.storage.openings` says how
nobody sees bytes change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from cluster.errors import StoreFull
from cluster.storage.openings import is_open_elsewhere
from cluster.storage.segment_book import NOBODY, KnownSegment, SegmentBook, whole_pages
from cluster.storage.segments import SegmentDirectory, sweep
from cluster.units import format_bytes

__all__ = ["BY_PATH", "IDLE_SECONDS", "Handed", "Store"]

_Outcome = TypeVar("_Outcome")

logger = logging.getLogger(__name__)

# Reserving or removing more takes longer than a step of the loop may (1 GiB: 0.2 to 0.4 s).
_AT_ONCE_BYTES: Final = 4 * 1024 * 1024
# Smaller segments may have half of the descriptors: using one again saves 50 µs of 70 at 130 kB, and 0.4 ms at 1 MB.
_LARGE_BYTES: Final = 1024 * 1024
# So long a step of the loop may remove segments: each takes 15 µs, or up to 0.5 ms if it is not kept.
_STEP_SECONDS: Final = 0.002
# Free segments go back to the system after so long.
IDLE_SECONDS: Final = 30.0
# The kernel is asked about so many segments when one is wanted, when a large one is made (which takes 0.3 ms or more),
# and in one look at those that were open: 4 µs each.
_ASKED_AT_ONCE: Final = 4
_ASKED_A_MAKE: Final = 16
_ASKED_A_LOOK: Final = 64
# However many files may be open: the kernel keeps a kilobyte for each.
_DESCRIPTORS_LIMIT: Final = 16_384
# An answer to a peer waits at most for those before it, so it is about one of the last values that went to disk.
_MOVES_REMEMBERED: Final = 10_000


class Handed(NamedTuple):
    """How a slot gets a segment to write to: by its path alone, or by a map that it keeps under a number."""

    number: int
    """0: by the path."""
    descriptor: int
    """What to make the map of; -1 if the slot has it."""


BY_PATH: Final = Handed(0, -1)


class _Made(NamedTuple):
    path: str
    descriptor: int
    reason: str


class Store:
    """Creates, hands out, recycles and removes segments. One thread does what takes long; what is put to it waits."""

    def __init__(
        self,
        shared_memory_directory: Path,
        name: str,
        memory_limit_bytes: int,
        *,
        fast_paths: bool = True,
        on_forget: Callable[[int, int], None] = lambda writer, number: None,
    ) -> None:
        """`on_forget(slot, number)`: that slot shall let go of the map that it keeps under the number."""
        parents = list(dict.fromkeys((shared_memory_directory, Path(tempfile.gettempdir()))))
        for parent in parents:
            sweep(parent)
        self._directories = [SegmentDirectory(parent, name, fast_paths=fast_paths) for parent in parents]
        self._memory, self._disk = self._directories[0], self._directories[-1]
        self._on_forget = on_forget
        self._book = SegmentBook(memory_limit_bytes)
        self._recycles = fast_paths and self._memory.can_recycle()
        # Each segment that can be used again keeps a descriptor here; connections and pipes need some too.
        self._descriptors_limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, _DESCRIPTORS_LIMIT)
        self._linked: set[str] = set()  # what clients have written and this worker has taken over
        self._disk_sizes: dict[str, int] = {}  # by path: values that found no room in memory
        self._leaving: deque[str] = deque()  # to be removed
        self._thread: ThreadPoolExecutor | None = None
        self._busy = 0
        self._closed = False
        self._said_full = False
        self._moved: dict[str, str] = {}

    # ------------------------------------------------------------------ figures

    @property
    def paths(self) -> list[Path]:
        """The directories: shared memory, then disk."""
        return [directory.path for directory in self._directories]

    @property
    def modules_path(self) -> Path:
        """The folder for modules that users uploaded, on disk."""
        return self._disk.modules_path

    @property
    def used_bytes(self) -> int:
        """Memory of segments that hold values or are being written, in whole pages."""
        return self._book.used_bytes

    @property
    def free_bytes(self) -> int:
        """Memory of segments that are kept to be used again; `shrink` gives it back."""
        return self._book.free_bytes

    @property
    def open_bytes(self) -> int:
        """Memory of segments whose values were released while somebody still looks at them."""
        return self._book.open_bytes

    # ------------------------------------------------------------------ segments for values

    def create(self, nbytes: int, then: Callable[[str, str], None], *, writer: int = NOBODY) -> None:
        """Reserve a segment; `then(path, "")` or `then("", reason)` is called, perhaps at once.

        `writer` is the slot that will write to it: one that it has mapped is best.
        """
        segment = self._find_free(nbytes, writer) if self._recycles else None
        if segment is None:
            self._make(nbytes, then)
            return
        start = segment.reserved_bytes
        try:
            path = self._memory.rename(segment.path, is_free=False)
        except FileNotFoundError:  # somebody has removed it
            self._give_back([segment])
            self._make(nbytes, then)
            return
        growth = self._book.take(segment, nbytes, path)
        if not growth:
            then(segment.path, "")
            return

        def grown(reason: str) -> None:
            if reason:
                self._give_back([segment])
                self._make(nbytes, then)
            else:
                then(segment.path, "")

        self._make_room(0)  # the growth is counted already
        self._do(growth, lambda: self._grow(segment.descriptor, start, growth), grown)

    def take_over(self, source: str, nbytes: int) -> tuple[str, str]:
        """Link a segment that a client has written and leaves alone while it is linked; its path here, or why not."""
        if not self._make_room(whole_pages(nbytes)):
            return "", f"{format_bytes(nbytes)} more would pass the worker's memory limit"
        try:
            path = self._memory.link(source, nbytes)
        except OSError as error:
            return "", f"{source} cannot be taken over: {error.strerror or error}"
        self._book.add(path, nbytes, -1)
        self._linked.add(path)
        return path, ""

    def hand_over(self, path: str, slot: int) -> Handed:
        """Say how a slot is to write to a segment that was created for it; it keeps the map until it is told."""
        if path not in self._book:
            return BY_PATH
        segment = self._book.find(path)
        if not segment.is_recycled:
            return BY_PATH  # the first time `write()` takes half the time that a map does
        before = self._book.hand(segment, slot)
        if before == slot:
            return Handed(segment.number, -1)
        if before != NOBODY:
            self._on_forget(before, segment.number)
        return Handed(segment.number, segment.descriptor)

    def not_handed(self, path: str) -> None:
        """The slot could not be given what `hand_over` said: it has no map."""
        self._book.hand(self._book.find(path), NOBODY)

    def mark_shown(self, path: str) -> None:
        """Somebody gets the pages by `sendfile`: they are never used again.

        The kernel shows who has a file open or mapped. But pages that `sendfile` put into a socket's queue are no map,
        and change with the file until the peer has read them.
        """
        if path in self._book:
            self._book.find(path).shown = True
            if path in self._linked:
                os.chmod(path, 0o400)  # so that who wrote it does not use it again either

    def writer_ended(self, slot: int) -> None:
        """That slot's process has ended, and its maps with it."""
        self._book.writer_ended(slot)

    def remove_all(self, paths: list[str]) -> None:
        """Remove many; what would take long goes on in the loop's next steps."""
        if self._leaving:
            self._leaving += paths
        else:
            self._leaving = deque(paths)
            self._remove_some()

    def _remove_some(self) -> None:
        until = time.perf_counter() + _STEP_SECONDS
        while self._leaving:
            self.remove(self._leaving.popleft())
            if time.perf_counter() > until:
                break
        if self._leaving:
            asyncio.get_running_loop().call_soon(self._remove_some)

    def note_moved(self, path: str, new_path: str) -> None:
        """The value in that segment was copied to disk, and the segment is about to be removed."""
        self._moved[path] = new_path
        if len(self._moved) > _MOVES_REMEMBERED:
            del self._moved[next(iter(self._moved))]

    def moved(self, path: str) -> str:
        """Where the value is now that was in that segment when somebody asked for it."""
        return self._moved.get(path, path)

    def remove(self, path: str) -> None:
        """Take note that nobody needs the value: its segment is removed, or kept to be used again."""
        if path in self._disk_sizes:
            self._do(self._disk_sizes.pop(path), lambda: self._disk.remove(path), lambda _: None)
            return
        segment = self._book.find(path)
        if segment.descriptor < 0:
            self._linked.discard(path)
            self._book.drop(segment)
            self._do(segment.reserved_bytes, lambda: self._memory.remove(path), lambda _: None)
            return
        _note_shown(segment)
        if segment.shown:
            self._memory.remove(path)  # quick: this process has it open, so nothing is freed by that
            new_path = path
        else:
            try:
                new_path = self._memory.rename(path, is_free=True)
            except FileNotFoundError:  # somebody has removed it
                self._give_back([segment])
                return
        is_open = _is_needed_elsewhere(segment, own_names=0 if segment.shown else 1)
        self._book.release(segment, new_path, is_open, time.monotonic())
        if segment.shown and not is_open:
            self._give_back([segment])

    # ------------------------------------------------------------------ segments that hold nothing

    def shrink(self, nbytes: int) -> int:
        """Give free segments back to the system until that makes so many bytes, if there are so many; how many it is.

        Their pages are free when what the thread has been given by now is done.
        """
        segments = self._book.oldest_free(nbytes)
        self._give_back(segments)
        return sum(segment.reserved_bytes for segment in segments)

    def look(self) -> None:
        """Look whether open segments were let go of, and give back what has been free for long, and whether the
        directories are there; now and then."""
        for directory in self._directories:
            with contextlib.suppress(OSError):  # what is wrong with it is said when a segment is to be made there
                directory.keep()
        self._look_at_some(_ASKED_A_LOOK)
        self._give_back(self._book.idle(time.monotonic() - IDLE_SECONDS))

    def close(self) -> None:
        """Remove everything. Who waits for something to be done is not told any more."""
        self._closed = True
        self._leaving.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        for descriptor in self._book.descriptors():
            os.close(descriptor)
        for directory in self._directories:
            directory.close()

    def _find_free(self, nbytes: int, writer: int) -> KnownSegment | None:
        for segment in self._book.candidates(nbytes, writer, _ASKED_AT_ONCE):
            # Nobody was told its name; but who may read the directory can open anything.
            if not _is_needed_elsewhere(segment, own_names=1):
                return segment
            self._book.was_opened(segment)
        return next(filter(self._look_at, self._book.open_of_class(nbytes, _ASKED_AT_ONCE)), None)

    def _look_at_some(self, limit: int) -> None:
        for segment in self._book.next_open(limit):
            self._look_at(segment)

    def _look_at(self, segment: KnownSegment) -> bool:
        """Look at an open segment; whether it can be used again now."""
        if _is_needed_elsewhere(segment, own_names=0 if segment.shown else 1):
            return False
        _note_shown(segment)
        if segment.shown:
            self._give_back([segment])
            return False
        self._book.was_closed(segment, time.monotonic())
        return True

    def _give_back(self, segments: list[KnownSegment]) -> None:
        """Remove segments whose values are gone. The pages are freed though writers may still have them mapped."""
        for segment in segments:
            self._book.drop(segment)
            if segment.writer != NOBODY:
                self._on_forget(segment.writer, segment.number)

        def work() -> None:
            for segment in segments:
                self._memory.remove(segment.path)
                if not _is_needed_elsewhere(segment, own_names=0):
                    os.ftruncate(segment.descriptor, 0)  # it may be small, or have lost its name when it was shown
                os.close(segment.descriptor)

        if segments:
            self._do(sum(segment.reserved_bytes for segment in segments), work, lambda _: None)

    # ------------------------------------------------------------------ new segments

    def _make_room(self, nbytes: int) -> bool:
        """Give free segments back until so many more bytes are within the limit; whether they are."""
        book = self._book
        while self._leaving and book.total_bytes + nbytes > book.limit_bytes:
            self.remove(self._leaving.popleft())
        excess = book.total_bytes + nbytes - book.limit_bytes
        if excess > 0:
            excess -= self.shrink(excess)
        return excess <= 0

    def _make(self, nbytes: int, then: Callable[[str, str], None]) -> None:
        if nbytes >= _LARGE_BYTES:
            self._look_at_some(_ASKED_A_MAKE)  # what was let go of since may go for this one
        self._give_back(self._book.displaced(nbytes))
        if not self._make_room(whole_pages(nbytes)):
            self._make_on_disk(nbytes, f"{format_bytes(nbytes)} more would pass the worker's memory limit", then)
            return
        book = self._book
        descriptors_limit = self._descriptors_limit // (1 if nbytes >= _LARGE_BYTES else 2)
        keeps = self._recycles and book.descriptor_count < descriptors_limit
        book.begin(nbytes, keeps)

        def made(outcome: _Made) -> None:
            book.end(nbytes, keeps)
            if outcome.path:
                book.add(outcome.path, nbytes, outcome.descriptor)
                then(outcome.path, "")
            elif self.shrink(nbytes):
                self._make(nbytes, then)  # the system is short of memory, though the limit is not reached
            else:
                self._make_on_disk(nbytes, outcome.reason, then)

        # A file that ended inside its last page would have to grow for a value that ends a little later there: who
        # writes by a map can write beyond the end, and nobody could read that.
        self._do(nbytes, lambda: _create(self._memory, whole_pages(nbytes), keeps), made)

    def _make_on_disk(self, nbytes: int, reason: str, then: Callable[[str, str], None]) -> None:
        if self._disk is self._memory:
            then("", reason)
            return

        def made(outcome: _Made) -> None:
            if not outcome.path:
                then("", outcome.reason)
                return
            if not self._said_full:
                self._said_full = True
                logger.warning("while memory is full, values go to disk, into %s: %s", self._disk.path, reason)
            self._disk_sizes[outcome.path] = nbytes
            then(outcome.path, "")

        self._do(nbytes, lambda: _create(self._disk, nbytes, False), made)

    def _grow(self, descriptor: int, start: int, nbytes: int) -> str:
        try:
            self._memory.extend(descriptor, start, nbytes)
        except StoreFull as error:
            return str(error)
        return ""

    def _do(self, nbytes: int, work: Callable[[], _Outcome], then: Callable[[_Outcome], None]) -> None:
        # In order: while the thread has work, a small piece of work waits behind it, and does not race with it.
        if not self._busy and nbytes <= _AT_ONCE_BYTES:
            then(work())
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "storage")
        self._busy += 1
        loop = asyncio.get_running_loop()

        def done(future: asyncio.Future[_Outcome]) -> None:
            self._busy -= 1
            if not self._closed:
                then(future.result())

        loop.run_in_executor(self._thread, work).add_done_callback(done)


def _is_needed_elsewhere(segment: KnownSegment, *, own_names: int) -> bool:
    """Whether another process has it open or mapped, or an agent has a link to it besides our own names."""
    return os.fstat(segment.descriptor).st_nlink > own_names or is_open_elsewhere(segment.descriptor)


def _note_shown(segment: KnownSegment) -> None:
    """See whether another agent that had a link to it has sent it: that says the mode, which all links share."""
    segment.shown = segment.shown or not os.fstat(segment.descriptor).st_mode & stat.S_IWUSR


def _create(directory: SegmentDirectory, nbytes: int, keeps: bool) -> _Made:
    try:
        path, descriptor = directory.create_open(nbytes)
    except StoreFull as error:
        return _Made("", -1, str(error))
    if keeps:
        return _Made(path, descriptor, "")
    os.close(descriptor)
    return _Made(path, -1, "")
