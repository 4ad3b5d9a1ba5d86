"""Where small values lie on disk: many of them in one file, a pack, and about a dozen bytes of memory for each.

A pack lists its values in the order of their keys, in columns: rows, where each value begins, and a byte that says
whether it is still wanted. Which packs have values of an attempt is known by attempt; the rest is a binary search. A
dictionary entry for each value would take ten times as much.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

__all__ = ["COPIED", "GONE", "ON_DISK", "Pack", "PackIndex", "Place"]

# What a value in a pack is: there and nowhere else, in memory too, or freed.
ON_DISK: Final = 0
COPIED: Final = 1
GONE: Final = 2

# As the values themselves (`values.py`): one large dictionary would stop the agent whenever it grows.
_SHARDS: Final = 256


class Place(NamedTuple):
    """Where a value lies: the pack's number, and which of its values it is."""

    number: int
    position: int


class Pack:
    """The values of one file, by key."""

    __slots__ = (
        "_attempts", "_bounds", "_rows", "live_bytes", "live_count", "offsets", "states", "stored_bytes",
    )  # fmt: skip

    def __init__(self, keys: Sequence[int], sizes: Sequence[int]) -> None:
        """`keys` upwards, and the values' sizes."""
        self._rows = array("I", [key & 0xFFFFFFFF for key in keys])
        self._attempts = array("Q")
        self._bounds = array("I")  # where the rows of each attempt begin
        before = -1
        for index, attempt in enumerate([key >> 32 for key in keys]):
            if attempt != before:
                self._attempts.append(attempt)
                self._bounds.append(index)
                before = attempt
        self._bounds.append(len(keys))
        self.offsets = array("I", accumulate(sizes, initial=0))  # where the values begin, and the end of the last
        self.states = bytearray(len(keys))
        self.live_count = len(keys)
        self.live_bytes = self.offsets[-1]
        self.stored_bytes = 0  # what its file takes, once it is written

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """What its values took when it was written, those that are gone counted too."""
        return self.offsets[-1]

    @property
    def attempts(self) -> Sequence[int]:
        """The attempts that made its values, upwards."""
        return self._attempts

    def keys(self) -> Iterator[int]:
        """The keys of all its values, upwards."""
        for position, attempt in enumerate(self._attempts):
            base = attempt << 32
            for row in self._rows[self._bounds[position] : self._bounds[position + 1]]:
                yield base | row

    def key(self, index: int) -> int:
        """The key of that value."""
        return self._attempts[bisect_right(self._bounds, index) - 1] << 32 | self._rows[index]

    def wanted(self) -> list[int]:
        """Which of its values are not gone."""
        return [index for index, state in enumerate(self.states) if state != GONE]

    def size(self, index: int) -> int:
        """How large that value is."""
        return self.offsets[index + 1] - self.offsets[index]

    def find(self, attempt: int, first_row: int, count: int) -> range:
        """Which of its values are of these rows of an attempt."""
        position = bisect_left(self._attempts, attempt)
        if position == len(self._attempts) or self._attempts[position] != attempt:
            return range(0)
        start, stop = self._bounds[position], self._bounds[position + 1]
        start = bisect_left(self._rows, first_row, start, stop)
        return range(start, bisect_left(self._rows, first_row + count, start, stop))


class PackIndex:
    """All packs of an agent."""

    def __init__(self) -> None:
        self.packs: dict[int, Pack] = {}
        self.count = 0  # values that are only there
        self.nbytes = 0  # … and their bytes
        self.live_bytes = 0  # with those that are in memory too
        self.written_bytes = 0  # … and with those that are gone
        self.copied: dict[int, None] = {}
        """The keys of those that are in memory too."""
        self.emptied: list[int] = []
        """Packs of which no value is wanted any more; whoever removes their files takes them out."""
        self._numbers: list[dict[int, tuple[int, ...]]] = [{} for _ in range(_SHARDS)]  # packs, by attempt

    def add(self, number: int, pack: Pack) -> None:
        """A pack was written; its states are set."""
        self.packs[number] = pack
        alone = (number,)  # one object for all attempts that are in this pack alone
        for attempt in pack.attempts:
            shard = self._numbers[attempt % _SHARDS]
            others = shard.get(attempt)
            shard[attempt] = (*others, number) if others else alone
        pack.live_count, pack.live_bytes = len(pack), pack.nbytes
        self.count += len(pack)
        self.nbytes += pack.nbytes
        if any(pack.states):  # else all are on disk, and nowhere else
            for index, state in enumerate(pack.states):
                if state == GONE:
                    pack.live_count -= 1
                    pack.live_bytes -= pack.size(index)
                if state != ON_DISK:
                    self.count -= 1
                    self.nbytes -= pack.size(index)
                if state == COPIED:
                    self.copied[pack.key(index)] = None
        self.live_bytes += pack.live_bytes
        self.written_bytes += pack.nbytes
        if not pack.live_count:
            self.emptied.append(number)

    def remove(self, number: int) -> Pack:
        """A pack is to be used no more; what is still wanted of it lies in another."""
        pack = self.packs.pop(number)
        for attempt in pack.attempts:
            shard = self._numbers[attempt % _SHARDS]
            left = tuple(other for other in shard[attempt] if other != number)
            if left:
                shard[attempt] = left
            else:
                del shard[attempt]
        for index in pack.wanted():
            if pack.states[index] == ON_DISK:
                self.count -= 1
                self.nbytes -= pack.size(index)
            else:
                del self.copied[pack.key(index)]
        self.live_bytes -= pack.live_bytes
        self.written_bytes -= pack.nbytes
        return pack

    def replace(self, number: int, pack: Pack, sources: Sequence[int]) -> list[Pack]:
        """What was wanted of some packs was written into a new one; the former packs."""
        for index, key in enumerate(pack.keys()):
            place = self.find(key)
            is_there = place is not None and place.number in sources
            pack.states[index] = self.packs[place.number].states[place.position] if place and is_there else GONE
        removed = [self.remove(source) for source in sources]
        self.add(number, pack)
        return removed

    def find(self, key: int) -> Place | None:
        """Where a value lies, if it is in a pack."""
        attempt, row = key >> 32, key & 0xFFFFFFFF
        for number in self._numbers[attempt % _SHARDS].get(attempt, ()):
            pack = self.packs[number]
            for index in pack.find(attempt, row, 1):
                if pack.states[index] != GONE:
                    return Place(number, index)
        return None

    def is_on_disk(self, key: int) -> bool:
        """Whether a value is in a pack, and nowhere else."""
        place = self.find(key)
        return place is not None and self.packs[place.number].states[place.position] == ON_DISK

    def size(self, key: int) -> int:
        """How large a value is that is in a pack."""
        place = self.find(key)
        assert place is not None
        return self.packs[place.number].size(place.position)

    def has_any_of(self, attempt: int) -> bool:
        """Whether values of that attempt are, or were, in a pack."""
        return attempt in self._numbers[attempt % _SHARDS]

    def brought(self, place: Place) -> None:
        """A value is in memory too."""
        pack = self.packs[place.number]
        pack.states[place.position] = COPIED
        self.copied[pack.key(place.position)] = None
        self.count -= 1
        self.nbytes -= pack.size(place.position)

    def dropped(self, place: Place) -> None:
        """… and no more."""
        pack = self.packs[place.number]
        pack.states[place.position] = ON_DISK
        del self.copied[pack.key(place.position)]
        self.count += 1
        self.nbytes += pack.size(place.position)

    def free(self, attempt: int, first_row: int, count: int) -> int:
        """Forget a run of rows of one attempt; how many of them were nowhere else."""
        freed = 0
        for number in self._numbers[attempt % _SHARDS].get(attempt, ()):
            pack = self.packs[number]
            for index in pack.find(attempt, first_row, count):
                state, nbytes = pack.states[index], pack.size(index)
                if state == GONE:
                    continue
                if state == ON_DISK:
                    freed += 1
                    self.count -= 1
                    self.nbytes -= nbytes
                else:
                    del self.copied[pack.key(index)]
                pack.states[index] = GONE
                pack.live_count -= 1
                pack.live_bytes -= nbytes
                self.live_bytes -= nbytes
                if not pack.live_count:
                    self.emptied.append(number)
        return freed
