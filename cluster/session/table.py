"""What a client knows of each of its numbers, in columns.

A client may hold a million tasks, so a task has no object here: numbers are cut into pages of 4,096, and a page has one
byte of state and one of references a number, and, once a value has arrived, a list of the values' bytes. A page whose
numbers were all released goes. With small values that is about 60 bytes a finished task.

State of a number: `UNWANTED` (released or never given out) → `PENDING` → `HERE` (finished, and its bytes are in the
client), `ELSEWHERE` (finished, the bytes are with a worker) or `FAILED`; `OFFERED` is a value that this client holds
itself. References count holders inside this client: a `Future` is one, a sequence of futures is one for each of its
numbers. Only the last one to go releases the number.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

__all__ = [
    "ELSEWHERE",
    "FAILED",
    "HERE",
    "OFFERED",
    "PAGE_MASK",
    "PAGE_SIZE",
    "PENDING",
    "UNWANTED",
    "Numbers",
    "Page",
    "Table",
    "runs_of",
]

UNWANTED, PENDING, HERE, ELSEWHERE, FAILED, OFFERED = range(6)

PAGE_BITS = 12
PAGE_SIZE = 1 << PAGE_BITS
PAGE_MASK = PAGE_SIZE - 1

_REFERENCES_LIMIT = 255
"""What a byte can count; further holders of one number are counted in a side table."""

Numbers = range | array  # type: ignore[type-arg]
"""The numbers of a sequence of futures: arithmetic where possible, else packed 'q'."""


class Page:
    """The columns of 4,096 consecutive numbers."""

    __slots__ = ("inputs", "references", "states", "values", "wanted")

    def __init__(self) -> None:
        self.states = bytearray(PAGE_SIZE)
        self.references = bytearray(PAGE_SIZE)
        self.values: list[bytes | None] | None = None
        self.inputs: list[frozenset[int] | None] | None = None
        """The offered values that a number's task may still need, where it needs any."""
        self.wanted = 0


class Table:
    """Every number of one client."""

    def __init__(self) -> None:
        self.next_number = 0
        self.value_bytes = 0
        """Bytes of all values that are here."""
        self._pages: dict[int, Page] = {}
        self._further_references: dict[int, int] = {}

    def allocate(self, count: int, state: int) -> int:
        """Give out `count` consecutive numbers, each with one reference; return the first."""
        first = self.next_number
        self.next_number = first + count
        index = first >> PAGE_BITS
        while index << PAGE_BITS < first + count:
            if index not in self._pages:
                self._pages[index] = Page()
            index += 1
        for page, low, high, _ in self.spans(first, count):
            page.states[low:high] = bytes((state,)) * (high - low)
            page.references[low:high] = b"\x01" * (high - low)
            page.wanted += high - low
        return first

    def spans(self, first: int, count: int) -> Iterator[tuple[Page, int, int, int]]:
        """Cut a run at page boundaries: (page, low, high, number of `low`). Pages that are gone are left out."""
        stop = first + count
        while first < stop:
            low = first & PAGE_MASK
            high = min(PAGE_SIZE, low + stop - first)
            page = self._pages.get(first >> PAGE_BITS)
            if page is not None:
                yield page, low, high, first
            first += high - low

    def state(self, number: int) -> int:
        """The state of one number; `UNWANTED` for one never given out."""
        page = self._pages.get(number >> PAGE_BITS)
        return UNWANTED if page is None else page.states[number & PAGE_MASK]

    def set_state(self, number: int, state: int) -> None:
        """Change the state of one number that is wanted."""
        self._pages[number >> PAGE_BITS].states[number & PAGE_MASK] = state

    def place(self, number: int) -> tuple[Page, int]:
        """The page of a wanted number, and its place there."""
        return self._pages[number >> PAGE_BITS], number & PAGE_MASK

    def references(self, number: int) -> int:
        """How many holders a wanted number has (as far as a byte counts)."""
        return self._pages[number >> PAGE_BITS].references[number & PAGE_MASK]

    def value(self, number: int) -> bytes | None:
        """The bytes of a value that is here."""
        page = self._pages.get(number >> PAGE_BITS)
        return None if page is None or page.values is None else page.values[number & PAGE_MASK]

    def page_values(self, first: int, count: int) -> list[bytes | None] | None:
        """The values of a run inside one page if all of them are here, else None."""
        page = self._pages.get(first >> PAGE_BITS)
        low = first & PAGE_MASK
        high = low + count
        if page is None or page.values is None or page.states.count(HERE, low, high) != count:
            return None
        return page.values[low:high]

    def pending_from(self, first: int, stop: int) -> int:
        """The first pending number in [first, stop), or `stop`."""
        for page, low, high, number in self.spans(first, stop - first):
            at = page.states.find(PENDING, low, high)
            if at >= 0:
                return number + at - low
        return stop

    def store(self, page: Page, low: int, high: int, pieces: list[bytes | None] | None) -> int:
        """Mark numbers of a page finished, with the bytes that came along (None, or no bytes: elsewhere); return how
        many were pending. Numbers that are not pending keep what they have, except that bytes are taken."""
        count = high - low
        states = page.states
        if pieces is None:
            pending = states.count(PENDING, low, high)
            if pending == count:
                states[low:high] = bytes((ELSEWHERE,)) * count
            elif pending:
                for at in range(low, high):
                    if states[at] == PENDING:
                        states[at] = ELSEWHERE
            return pending
        if page.values is None:
            page.values = [None] * PAGE_SIZE
        if states.count(PENDING, low, high) == count and b"" not in pieces:
            page.values[low:high] = pieces
            states[low:high] = bytes((HERE,)) * count
            self.value_bytes += sum(map(len, pieces))  # type: ignore[arg-type]
            return count
        pending = 0
        for at, piece in zip(range(low, high), pieces, strict=True):
            state = states[at]
            pending += state == PENDING
            if piece and state in (PENDING, ELSEWHERE):
                page.values[at] = piece
                states[at] = HERE
                self.value_bytes += len(piece)
            elif state == PENDING:
                states[at] = ELSEWHERE
        return pending

    def refer(self, number: int) -> bool:
        """Count one more holder of a number; False if it was released already."""
        page = self._pages.get(number >> PAGE_BITS)
        at = number & PAGE_MASK
        if page is None or page.states[at] == UNWANTED:
            return False
        if page.references[at] == _REFERENCES_LIMIT:
            self._further_references[number] = self._further_references.get(number, 0) + 1
        else:
            page.references[at] += 1
        return True

    def unrefer(self, number: int) -> bool:
        """Count one holder less; True if it was the last."""
        page = self._pages[number >> PAGE_BITS]
        at = number & PAGE_MASK
        if page.references[at] == _REFERENCES_LIMIT and number in self._further_references:
            further = self._further_references.pop(number)
            if further > 1:
                self._further_references[number] = further - 1
            return False
        page.references[at] -= 1
        return page.references[at] == 0

    def forget(self, first: int, count: int) -> None:
        """Drop wanted numbers whose last holder has gone."""
        for page, low, high, number in self.spans(first, count):
            page.states[low:high] = bytes(high - low)
            page.references[low:high] = bytes(high - low)
            page.wanted -= high - low
            if page.values is not None:
                self.value_bytes -= sum(map(len, filter(None, page.values[low:high])))
            if page.wanted == 0:
                del self._pages[number >> PAGE_BITS]
            elif page.values is not None:
                page.values[low:high] = [None] * (high - low)

    def unrefer_run(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Count one holder less of each number of a run; yields the runs (first, count) whose last one it was."""
        for page, low, high, number in self.spans(first, count):
            if page.references.count(1, low, high) == high - low:
                page.references[low:high] = bytes(high - low)
                yield number, high - low
            else:
                yield from ((n, 1) for n in range(number, number + high - low) if self.unrefer(n))


def runs_of(numbers: Iterable[int]) -> list[int]:
    """Flat runs `[first, count, …]` of numbers, in their order.

    >>> runs_of([3, 4, 5, 9, 2])
    [3, 3, 9, 1, 2, 1]
    """
    if isinstance(numbers, range) and numbers.step == 1:
        return [numbers.start, len(numbers)] if numbers else []
    runs: list[int] = []
    first = stop = -1
    for number in numbers:
        if number == stop:
            stop += 1
        else:
            if first >= 0:
                runs += (first, stop - first)
            first, stop = number, number + 1
    if first >= 0:
        runs += (first, stop - first)
    return runs
