"""Large values that go to disk when memory is short: which, when, and how they are used from there.

A spilled value is the same file on another file system, so slots map it and peers are sent it like any other. It was
given a checksum when it was written, which is compared before it is used (`CheckSpilled`). A thread does that, so it is
read from the disk while slots do other work. A damaged file is a lost value: whoever needs it is told that it is
missing, and the scheduler has it computed again.

Least recently needed goes first; what a granted task needs only when nothing else is left, and what a slot has never:
its file would be gone before it is mapped, or stay in memory though it counts no more.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from cluster.units import format_bytes
from cluster.worker.events import CheckSpilled, PackFailed, RemoveSegments, Say, Spilled, SpillFailed, SpillSegment
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.values import Segment, Values

__all__ = ["DiskFile", "Spilling"]

# A file that was compared so recently is still in the page cache, or was read whole: it is not compared again.
_CHECK_HOLDS_SECONDS: Final = 30.0
# After a failure to write, until the next try; sooner if a spilled value is freed.
_RETRY_SECONDS: Final = 2.0
# Copied at once, so that much is not begun which turns out not to be needed.
_LEAVING_PART: Final = 8


class DiskFile(NamedTuple):
    """A value's file on disk."""

    path: str
    checksum: int
    stored_bytes: int
    compression: str


class Spilling:
    """What lies on disk of the values that had been in memory. `needed` gives the keys that granted tasks need,
    `in_slots` those of them that slots have."""

    def __init__(
        self,
        ledger: Ledger,
        values: Values,
        memory: Memory,
        needed: Callable[[], set[int]],
        in_slots: Callable[[], set[int]],
        *,
        quota_bytes: int,
        compression: str,
    ) -> None:
        self.problem = ""
        """Why nothing can be spilled just now; empty if it can."""
        self._ledger = ledger
        self._values = values
        self._memory = memory
        self._needed = needed
        self._in_slots = in_slots
        self._quota_bytes = quota_bytes
        self._compression = compression
        self._order: OrderedDict[int, None] = OrderedDict()  # the segments in memory, least recently needed first
        self._leaving: dict[int, Segment] = {}  # being copied
        self._copies: dict[int, DiskFile] = {}  # copied, and still in memory, since a slot has them
        self._files: dict[int, DiskFile] = {}  # spilled
        self._checked: dict[int, float] = {}  # when a file was compared
        self._checking: set[str] = set()  # paths: a value may come anew under its key while its old file is read
        self._direct_bytes = 0  # of values that were made on disk
        self.retry_at = 0.0
        """When it is worth while to try again."""

    # ------------------------------------------------------------------ what is held

    def holds(self, key: int, segment: Segment) -> None:
        """A large value is held now."""
        if segment.on_disk:
            self._direct_bytes += segment.nbytes
        else:
            self._order[key] = None

    def used(self, key: int) -> None:
        """Somebody needs it just now."""
        if key in self._order:
            self._order.move_to_end(key)

    def forget(self, key: int, segment: Segment) -> list[str]:
        """Nobody needs that value any more; the files to remove."""
        self._order.pop(key, None)
        paths = [segment.path]
        copy = self._copies.pop(key, None)
        if copy is not None:
            paths.append(copy.path)
            self._give_back(copy)
        file = self._files.pop(key, None)
        if file is not None:
            self._checked.pop(key, None)
            self._give_back(file)
        elif segment.on_disk:
            self._direct_bytes -= segment.nbytes
            self.retry_at = 0.0
        return paths

    def _give_back(self, file: DiskFile) -> None:
        self.gave_back(file.stored_bytes)

    def gave_back(self, stored_bytes: int) -> None:
        """A file of that size is needed no more: the disk may have room again."""
        self._memory.spilled_bytes -= stored_bytes
        self.retry_at = 0.0

    # ------------------------------------------------------------------ to disk

    def free(self, nbytes: int, now: float, *, needed_too: bool = False) -> bool:
        """Make so many bytes of memory free; whether some are on their way. `needed_too`: even of what is needed."""
        on_their_way = self._memory.spilling_bytes
        if on_their_way >= nbytes or on_their_way * _LEAVING_PART > self._memory.limit_bytes:
            return True
        if now < self.retry_at or not self._order:
            return on_their_way > 0
        for key in self._candidates(needed_too=needed_too and not on_their_way):
            segment = self._values.get(key)
            assert isinstance(segment, Segment)
            if not self.has_quota(segment.nbytes, now):
                break
            self._leaving[key] = segment
            self._memory.spilling_bytes += segment.nbytes
            self._ledger.effects.append(SpillSegment(key, segment.path, segment.nbytes, self._compression))
            on_their_way += segment.nbytes
            if on_their_way >= nbytes or on_their_way * _LEAVING_PART > self._memory.limit_bytes:
                break
        return on_their_way > 0

    def _candidates(self, *, needed_too: bool) -> Iterable[int]:
        needed = self._needed()
        free = [key for key in self._order if key not in self._leaving and key not in self._copies]
        chosen = [key for key in free if key not in needed]
        if needed_too and not chosen:
            in_slots = self._in_slots()
            chosen = [key for key in free if key not in in_slots]
        return chosen

    def has_quota(self, nbytes: int, now: float) -> bool:
        """Whether so many bytes more may go to disk; if not, that is the problem."""
        if self._quota_bytes < 0:
            self.stop(now, "there is no directory on disk for them; set spill_directory")
        elif self.left_bytes < nbytes:
            quota = format_bytes(self._quota_bytes)
            self.stop(now, f"the quota of {quota} for values on disk is used up")
        else:
            return True
        return False

    @property
    def left_bytes(self) -> float:
        """How much of the quota is left."""
        memory, quota = self._memory, self._quota_bytes
        on_disk = memory.spilled_bytes + memory.spilling_bytes + memory.promised_disk_bytes + self._direct_bytes
        return quota - on_disk if quota else math.inf

    @property
    def held_bytes(self) -> int:
        """What values take on disk, those that are being written left out."""
        return self._memory.spilled_bytes + self._direct_bytes

    def stop(self, now: float, problem: str) -> None:
        """The disk takes nothing more, for now."""
        self.retry_at = now + _RETRY_SECONDS
        if not self.problem:
            self._ledger.effects.append(Say(f"values stay in memory: {problem}"))
        self.problem = problem

    def spilled(self, event: Spilled) -> None:
        """A value has been copied."""
        segment = self._leaving.pop(event.key)
        self._memory.spilling_bytes -= segment.nbytes
        self.problem = ""
        if self._values.get(event.key) != segment:
            self._ledger.effects.append(RemoveSegments([event.new_path]))  # it was freed meanwhile
            return
        file = DiskFile(event.new_path, event.checksum, event.stored_bytes, event.compression)
        self._memory.spilled_bytes += file.stored_bytes
        self._copies[event.key] = file

    def spill_failed(self, event: SpillFailed, now: float) -> str:
        """A value could not be copied: it stays. If it is lost instead, the path at which it was; else empty text."""
        segment = self._leaving.pop(event.key)
        self._memory.spilling_bytes -= segment.nbytes
        if self._values.get(event.key) != segment:
            return ""  # it was freed meanwhile, so its file was gone: the disk is not to blame
        if event.lost:
            return segment.path
        self.refused(event, now)
        return ""

    def refused(self, event: SpillFailed | PackFailed, now: float) -> None:
        """The disk did not take what it was given."""
        free = format_bytes(event.free_bytes)
        self.stop(now, f"{event.directory} has no room for spilled values ({free} free): {event.reason}")

    def drop_copies(self) -> None:
        """Let go of what was in memory and on disk, as far as no slot has it any more."""
        if not self._copies:
            return
        in_slots = self._in_slots()
        paths = []
        for key in [key for key in self._copies if key not in in_slots]:
            file = self._files[key] = self._copies.pop(key)
            segment = self._values.get(key)
            assert isinstance(segment, Segment)
            self._values.move(key, Segment(file.path, segment.nbytes, on_disk=True))
            del self._order[key]
            paths.append(segment.path)
        if paths:
            self._ledger.effects.append(RemoveSegments(paths))

    # ------------------------------------------------------------------ from disk

    @property
    def any(self) -> bool:
        """Whether values lie on disk that have to be compared before they are used."""
        return bool(self._files)

    def is_unchecked(self, key: int, now: float) -> bool:
        """Whether that value has to be compared before it is used."""
        if key not in self._files:
            return False
        checked = self._checked.get(key)
        return checked is None or now > checked + _CHECK_HOLDS_SECONDS

    def check(self, key: int) -> None:
        """Have it compared; answered by `SpilledChecked`."""
        file, segment = self._files[key], self._values.get(key)
        assert isinstance(segment, Segment)
        if file.path in self._checking:
            return
        self._checking.add(file.path)
        self._ledger.effects.append(CheckSpilled(key, file.path, segment.nbytes, file.checksum, file.compression))

    def checked(self, key: int, path: str, new_path: str, now: float) -> bool:
        """A file was compared, and is good; it may have been unpacked. Whether it is still that value's."""
        self._checking.discard(path)
        file = self._files.get(key)
        if file is None or file.path != path:
            if new_path != path:
                self._ledger.effects.append(RemoveSegments([new_path]))
            return False
        self._checked[key] = now
        if new_path != path:
            segment = self._values.get(key)
            assert isinstance(segment, Segment)
            self._files[key] = DiskFile(new_path, file.checksum, segment.nbytes, "")
            self._memory.spilled_bytes += segment.nbytes - file.stored_bytes
            self._values.move(key, Segment(new_path, segment.nbytes, on_disk=True))
            self._ledger.effects.append(RemoveSegments([path]))
        return True

    def damaged(self, key: int, path: str) -> bool:
        """A file was compared, and is not what was written; whether it is still that value's."""
        self._checking.discard(path)
        file = self._files.get(key)
        return file is not None and file.path == path

    # ------------------------------------------------------------------ the tests' counts

    def recount(self) -> tuple[int, int]:
        """Bytes spilled and being spilled, counted anew."""
        files = [*self._files.values(), *self._copies.values()]
        return sum(file.stored_bytes for file in files), sum(segment.nbytes for segment in self._leaving.values())
