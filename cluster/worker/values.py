"""The values that an agent holds, by key: small ones as bytes, or in packs on disk; larger ones as segments.

The small ones stand in the order in which they came, and, once there are packs (`keeps_order`), in which they were
needed last: `oldest_small` has those at the front.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from cluster.worker.packs import COPIED, GONE, Pack, PackIndex

__all__ = ["ENTRY_BYTES", "SHARDS", "SMALL_VALUE_BYTES", "Holding", "Segment", "Values", "value_key", "value_name"]

# Up to here a value is bytes inside the agent; above, it has a segment of its own (DESIGN 5).
SMALL_VALUE_BYTES: Final = 64 * 1024


class Segment(NamedTuple):
    """A value in a file of its own."""

    path: str
    nbytes: int
    on_disk: bool = False


Holding: TypeAlias = "bytes | Segment"


def value_key(attempt: int, row: int) -> int:
    """One small integer for a value's name: a tuple would take 90 bytes more for each of a million values."""
    return attempt << 32 | row


def value_name(key: int) -> tuple[int, int]:
    """The (row, attempt) of a key."""
    return key & 0xFFFFFFFF, key >> 32


SHARDS: Final = 256
"""Many small dictionaries and not one, which would stop the agent for 30 ms whenever it grows past another million."""
ENTRY_BYTES: Final = 130
"""What a small value takes beside its bytes: its object, its key, its part of a dictionary (measured: 120 to 135)."""


class Values:
    """What is held. Says which segments fell out of use; removing them is the shell's."""

    def __init__(self) -> None:
        self._shards: list[dict[int, Holding]] = [{} for _ in range(SHARDS)]  # by attempt
        self._last: bytes = b""
        self.packed = PackIndex()
        self.keeps_order = False
        """Whether it matters when a small value was needed last."""
        self.count = 0
        self.small_count = 0  # in memory
        self.small_bytes = 0  # in memory
        self.segment_bytes = 0  # in memory
        self.disk_bytes = 0  # on disk, as bytes of values

    def __contains__(self, key: int) -> bool:
        return key in self._shards[(key >> 32) % SHARDS] or self.is_packed(key)

    def get(self, key: int) -> Holding | None:
        """The value, if it is held and not in a pack alone."""
        return self._shards[(key >> 32) % SHARDS].get(key)

    def is_packed(self, key: int) -> bool:
        """Whether the value is in a pack on disk, and has to be read before it is used."""
        return bool(self.packed.count) and self.packed.is_on_disk(key)

    @property
    def small_cost_bytes(self) -> int:
        """About what the small values take, with all that belongs to them."""
        return self.cost_bytes(self.small_count, self.small_bytes)

    @staticmethod
    def cost_bytes(count: int, nbytes: int) -> int:
        """About what so many small values, of so many bytes together, take with all that belongs to them."""
        return nbytes + ENTRY_BYTES * count

    def add_small(self, attempt: int, rows: Sequence[int], values: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Hold small values under names that are new; the objects that are held."""
        # Nothing but None, or True, is a common result of a whole map: those values are one object then.
        if len(set(values)) == 1:
            if values[0] != self._last:
                self._last = values[0]
            values = (self._last,) * len(values)
        base = attempt << 32
        self._shards[attempt % SHARDS].update(zip([base | row for row in rows], values, strict=True))
        self.count += len(values)
        self.small_count += len(values)
        self.small_bytes += sum(map(len, values))
        return values

    def used_small(self, key: int) -> None:
        """Somebody needs that small value just now: it goes to disk after those that nobody did."""
        shard = self._shards[(key >> 32) % SHARDS]
        shard[key] = shard.pop(key)

    def oldest_small(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """The small values of a shard, least recently needed first; none may be added or taken out meanwhile."""
        return ((key, value) for key, value in self._shards[shard].items() if type(value) is bytes)

    def pack(self, number: int, pack: Pack, kept: Collection[int]) -> None:
        """Small values were written into a pack: they leave memory, except for those to be kept there too."""
        shards, states = self._shards, pack.states
        taken_bytes = taken_count = 0
        for index, key in enumerate(pack.keys()):
            shard = shards[(key >> 32) % SHARDS]
            value = shard.get(key)
            if type(value) is not bytes:
                states[index] = GONE  # freed meanwhile
            elif key in kept:
                states[index] = COPIED
            else:
                del shard[key]
                taken_count += 1
                taken_bytes += len(value)
        self.small_count -= taken_count
        self.small_bytes -= taken_bytes
        self._give_back_room(pack.attempts)
        self.packed.add(number, pack)
        self.keeps_order = True

    def drop_small(self, key: int) -> None:
        """Let a small value leave memory that is in a pack too."""
        place = self.packed.find(key)
        assert place is not None
        self._take_small(key)
        self.packed.dropped(place)

    def bring(self, key: int, value: bytes) -> None:
        """A value was read from its pack: it is in memory too."""
        place = self.packed.find(key)
        assert place is not None
        self.packed.brought(place)
        self._shards[(key >> 32) % SHARDS][key] = value
        self.small_count += 1
        self.small_bytes += len(value)

    def _take_small(self, key: int) -> None:
        shard = self._shards[(key >> 32) % SHARDS]
        value = shard.pop(key)
        assert type(value) is bytes
        self.small_count -= 1
        self.small_bytes -= len(value)
        self._give_back_room((key >> 32,))

    def _give_back_room(self, attempts: Iterable[int]) -> None:
        """A dictionary keeps the room that it once needed, whatever is taken out of it, until it is cleared."""
        for attempt in attempts:
            shard = self._shards[attempt % SHARDS]
            if not shard:
                shard.clear()

    def add_segment(self, key: int, segment: Segment) -> None:
        """Hold a large value under a key that is new."""
        self._shards[(key >> 32) % SHARDS][key] = segment
        self.count += 1
        self._count_in(segment, segment.nbytes)

    def move(self, key: int, segment: Segment) -> None:
        """A large value that is held lies in another file now."""
        shard = self._shards[(key >> 32) % SHARDS]
        before = shard[key]
        assert isinstance(before, Segment)
        self._count_in(before, -before.nbytes)
        self._count_in(segment, segment.nbytes)
        shard[key] = segment

    def _count_in(self, segment: Segment, nbytes: int) -> None:
        if segment.on_disk:
            self.disk_bytes += nbytes
        else:
            self.segment_bytes += nbytes

    def remove(self, attempt: int, first_row: int, count: int) -> list[tuple[int, Segment]]:
        """Forget a run of rows of one attempt; the segments that nobody needs now, with their keys."""
        segments: list[tuple[int, Segment]] = []
        shard = self._shards[attempt % SHARDS]
        first = value_key(attempt, first_row)
        for key in range(first, first + count):
            value = shard.pop(key, None)
            if value is None:
                continue
            self.count -= 1
            if type(value) is bytes:
                self.small_count -= 1
                self.small_bytes -= len(value)
            else:
                assert isinstance(value, Segment)
                self._count_in(value, -value.nbytes)
                segments.append((key, value))
        self._give_back_room((attempt,))
        if self.packed.has_any_of(attempt):
            self.count -= self.packed.free(attempt, first_row, count)
        return segments
