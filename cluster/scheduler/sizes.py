"""How large the results of a function's tasks are, learned from those that have come.

Tasks of one function under one label mostly make results of one size, but not always: a few large ones are what fills a
memory, and the mean does not know of them. So the estimate is a high quantile of the latest sizes: of the last
`REMEMBERED` all but the largest few are at most that. One freak result does not change it, two do, and what was long
ago is forgotten.

What a task takes beside its result nobody sees, until a worker had to end it for that. That is believed at once, and
for so many results: the function's tasks count with as much, and fewer of them run at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

__all__ = ["SMALL_BYTES", "OutputSizes", "SizesByLabel"]

SMALL_BYTES: Final = 1024
"""Results up to this size are not counted in advance: what the scheduler keeps of a task is about as large."""
REMEMBERED: Final = 16
EXCEPTED: Final = 1  # of so many the largest are no measure
LABELS_LIMIT: Final = 64  # of one function; further ones are learned together


class OutputSizes:
    """The sizes of the latest results of one function under one label, and what its tasks need."""

    __slots__ = ("_latest", "_need_holds", "estimate_bytes", "need_bytes", "taken_bytes")

    def __init__(self) -> None:
        self._latest: deque[int] = deque(maxlen=REMEMBERED)
        self.estimate_bytes: int | None = None
        """What the next result is expected to take at most; None: none has come yet; 0: not worth counting."""
        self.need_bytes = 0
        """What a task took in all that was ended for that; 0: none was, not lately."""
        self._need_holds = 0  # for so many more results
        self.taken_bytes: int | None = None
        """What the next task is expected to take, by both; None: nothing is known yet."""

    def observe(self, sizes: Sequence[int], total: int) -> None:
        """Take a report's sizes in; `total` is their sum.

        Of a function whose results are small this costs a comparison, however many they are.
        """
        if not self.taken_bytes and total <= SMALL_BYTES * len(sizes):
            self.estimate_bytes = self.taken_bytes = 0
            return
        if self.need_bytes:
            self._need_holds -= len(sizes)
            if self._need_holds <= 0:
                self.need_bytes = 0
        latest = self._latest
        latest.extend(sizes[-REMEMBERED:])
        ordered = sorted(latest)
        # As long as few are known, the largest is believed.
        expected = ordered[-1 - EXCEPTED] if len(ordered) > REMEMBERED // 2 else ordered[-1]
        self.estimate_bytes = expected if expected > SMALL_BYTES else 0
        self.taken_bytes = max(self.estimate_bytes, self.need_bytes)

    def observe_need(self, nbytes: int) -> None:
        """A task was ended because it took so much in all."""
        self.need_bytes = max(self.need_bytes, nbytes)
        self._need_holds = REMEMBERED
        self.taken_bytes = max(self.estimate_bytes or 0, self.need_bytes)


class SizesByLabel:
    """What is learned of one function, whose tasks may have several labels: a wrapper has those of what it wraps."""

    __slots__ = ("_by_label",)

    def __init__(self) -> None:
        self._by_label: dict[str, OutputSizes] = {}

    def of(self, label: str) -> OutputSizes:
        """Where the sizes of tasks with that label are noted."""
        sizes = self._by_label.get(label)
        if sizes is None:
            if len(self._by_label) >= LABELS_LIMIT:
                label = ""
            sizes = self._by_label.setdefault(label, OutputSizes())
        return sizes
