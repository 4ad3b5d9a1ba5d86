"""Noticing that numbers are done: one by one, or when all of them are."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cluster.session.table import PENDING, UNWANTED, Table

__all__ = ["AllDone", "Watch"]


class Watch:
    """Collects numbers as they become done, each at most once, in `completed` (runs of a range stay ranges)."""

    def __init__(self, numbers: Sequence[int] | set[int]) -> None:
        if isinstance(numbers, range) and numbers.step < 0:
            numbers = numbers[::-1]
        self.completed: deque[range] = deque()
        self._range = numbers if isinstance(numbers, range) else range(0)
        self._waiting = bytearray(b"\x01") * len(self._range)
        self._set = set() if isinstance(numbers, range) else set(numbers)

    def add(self, number: int) -> None:
        """Watch one number more."""
        self._set.add(number)

    def discard(self, number: int) -> None:
        """Watch one number less, of those that were added."""
        self._set.discard(number)

    def note(self, first: int, stop: int) -> None:
        """The numbers in [first, stop) are done."""
        if self._range:
            self._note_range(first, stop)
        if self._set:
            if stop - first == 1:
                found = [first] if first in self._set else []
            else:
                found = [number for number in range(first, stop) if number in self._set]
            self._set.difference_update(found)
            self.completed.extend(range(number, number + 1) for number in found)

    def _note_range(self, first: int, stop: int) -> None:
        numbers = self._range
        low = max(0, -((numbers.start - first) // numbers.step))
        high = min(len(numbers), -((numbers.start - stop) // numbers.step))
        if low >= high:
            return
        waiting = self._waiting
        if waiting.count(1, low, high) == high - low:
            self.completed.append(numbers[low:high])
        else:
            self.completed.extend(numbers[at : at + 1] for at in range(low, high) if waiting[at])
        waiting[low:high] = bytes(high - low)


class AllDone:
    """Is every one of these numbers done? Cheap to ask often: it goes on where it stopped the last time."""

    def __init__(self, table: Table, numbers: Sequence[int]) -> None:
        self._table = table
        self._numbers = numbers
        self._at = 0

    def __call__(self) -> bool:
        numbers, table, at = self._numbers, self._table, self._at
        if isinstance(numbers, range) and numbers.step == 1 and numbers:
            if numbers.stop > table.next_number:
                return False
            self._at = table.pending_from(numbers.start + at, numbers.stop) - numbers.start
            return self._at == len(numbers)
        while at < len(numbers):
            state = table.state(numbers[at])
            if state == PENDING or (state == UNWANTED and numbers[at] >= table.next_number):
                break
            at += 1
        self._at = at
        return at == len(numbers)
