"""The values that an agent holds: small ones as bytes, larger ones as segments, by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

__all__ = ["SMALL_VALUE_BYTES", "Holding", "Segment", "Values", "value_key", "value_name"]

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


# Many small dictionaries and not one, which would stop the agent for 30 ms whenever it grows past another million.
_SHARDS: Final = 256


class Values:
    """What is held. Says which segments fell out of use; removing them is the shell's."""

    def __init__(self) -> None:
        self._shards: list[dict[int, Holding]] = [{} for _ in range(_SHARDS)]  # by attempt
        self._last: bytes = b""
        self.count = 0
        self.small_bytes = 0
        self.segment_bytes = 0  # in memory
        self.disk_bytes = 0  # on disk, as bytes of values

    def __contains__(self, key: int) -> bool:
        return key in self._shards[(key >> 32) % _SHARDS]

    def get(self, key: int) -> Holding | None:
        """The value, if it is held."""
        return self._shards[(key >> 32) % _SHARDS].get(key)

    def add_small(self, attempt: int, rows: Sequence[int], values: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Hold small values under names that are new; the objects that are held."""
        # Nothing but None, or True, is a common result of a whole map: those values are one object then.
        if len(set(values)) == 1:
            if values[0] != self._last:
                self._last = values[0]
            values = (self._last,) * len(values)
        base = attempt << 32
        self._shards[attempt % _SHARDS].update(zip([base | row for row in rows], values, strict=True))
        self.count += len(values)
        self.small_bytes += sum(map(len, values))
        return values

    def add_segment(self, key: int, segment: Segment) -> None:
        """Hold a large value under a key that is new."""
        self._shards[(key >> 32) % _SHARDS][key] = segment
        self.count += 1
        self._count_in(segment, segment.nbytes)

    def move(self, key: int, segment: Segment) -> None:
        """A large value that is held lies in another file now."""
        shard = self._shards[(key >> 32) % _SHARDS]
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
        shard = self._shards[attempt % _SHARDS]
        first = value_key(attempt, first_row)
        for key in range(first, first + count):
            value = shard.pop(key, None)
            if value is None:
                continue
            self.count -= 1
            if type(value) is bytes:
                self.small_bytes -= len(value)
            else:
                assert isinstance(value, Segment)
                self._count_in(value, -value.nbytes)
                segments.append((key, value))
        if not shard:
            shard.clear()  # which gives back the room that it once needed; taking out what it has does not
        return segments
