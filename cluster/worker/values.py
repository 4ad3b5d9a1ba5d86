"""The values that an agent holds: small ones as bytes, larger ones as segments, by key."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

__all__ = ["SMALL_VALUE_BYTES", "Holding", "Segment", "Values", "value_key"]

# Up to here a value is bytes inside the agent; above, it has a segment of its own (DESIGN 5).
SMALL_VALUE_BYTES: Final = 64 * 1024


class Segment(NamedTuple):
    """A value in a file of its own."""

    path: str
    nbytes: int


Holding: TypeAlias = "bytes | Segment"


def value_key(attempt: int, row: int) -> int:
    """One small integer for a value's name: a tuple would take 90 bytes more for each of a million values."""
    return attempt << 32 | row


class Values:
    """What is held. Says which segments fell out of use; removing them is the shell's."""

    def __init__(self) -> None:
        self._held: dict[int, Holding] = {}
        self._last: bytes = b""
        self.small_bytes = 0
        self.segment_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: int) -> bool:
        return key in self._held

    def get(self, key: int) -> Holding | None:
        """The value, if it is held."""
        return self._held.get(key)

    def add_bytes(self, key: int, data: bytes) -> None:
        """Hold a small value under a key that is new."""
        # The same bytes in a row (None, True, 0) are common in a map; they share one object then.
        if data == self._last:
            data = self._last
        else:
            self._last = data
        self._held[key] = data
        self.small_bytes += len(data)

    def add_segment(self, key: int, segment: Segment) -> None:
        """Hold a large value under a key that is new."""
        self._held[key] = segment
        self.segment_bytes += segment.nbytes

    def remove(self, attempt: int, first_row: int, count: int) -> list[str]:
        """Forget a run of rows of one attempt; the paths of the segments that nobody needs now."""
        paths: list[str] = []
        held = self._held
        first = value_key(attempt, first_row)
        for key in range(first, first + count):
            value = held.pop(key, None)
            if value is None:
                continue
            if type(value) is bytes:
                self.small_bytes -= len(value)
            else:
                assert isinstance(value, Segment)
                self.segment_bytes -= value.nbytes
                paths.append(value.path)
        return paths
