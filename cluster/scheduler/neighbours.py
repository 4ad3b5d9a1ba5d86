"""Each worker's own stretch of what a client submitted at one time, over many small runs.

A map is one run, and a worker draws from its own stretch of it (`ready.py`). A graph that is submitted depth first is
many runs of a few tasks each: two leaves, the task that takes them, two leaves more. Taken in their order by whoever is
free, two leaves of one consumer would go to two workers, each time. So the runs without inputs that a client submits in
one go are a row of places, and each worker takes the next place of its own stretch, or half of the largest other
stretch when it has none left. Neighbours then meet on one worker, and so do what is made of them and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cluster.scheduler.ready import Bucket

__all__ = ["Neighbours"]

GAP_SECONDS: Final = 0.05  # what comes later than that after the last was not submitted in one go with it
PLACES_LIMIT: Final = 1 << 16


class Neighbours:
    """Buckets in the order of their submission, and whose stretch each stands in.

    A stretch is `[next place, stop]`; the places of the row that nobody has are the last stretch.
    """

    __slots__ = ("_buckets", "_stretches", "_unowned", "last_at")

    def __init__(self) -> None:
        self._buckets: list[Bucket | None] = []
        self._stretches: dict[int, list[int]] = {}
        self._unowned = 0  # the first place that is in nobody's stretch
        self.last_at = 0.0

    def takes(self, now: float) -> bool:
        """Whether what is submitted now belongs to this row."""
        return now - self.last_at <= GAP_SECONDS and len(self._buckets) < PLACES_LIMIT

    def add(self, bucket: Bucket, now: float) -> None:
        """The next run of the row."""
        bucket.place = len(self._buckets)
        self._buckets.append(bucket)
        self.last_at = now

    def leave(self, bucket: Bucket) -> None:
        """Nothing of its run is listed any more: it is not kept for its place, nor are the run's arguments."""
        self._buckets[bucket.place] = None

    def of(self, worker: int, limit: int) -> Iterator[Bucket]:
        """Up to so many buckets that have rows, in the order in which a worker should take from them.

        All are of one stretch: the rest of it is behind what could not be taken.
        """
        stretch = self._stretches.get(worker)
        if stretch is None or self._first(stretch) is None:
            stretch = self._take_over(worker)
            if stretch is None:
                return
        place = stretch[0]
        while place < stretch[1] and limit > 0:
            bucket = self._buckets[place]
            if bucket is not None and bucket.size > 0:
                limit -= 1
                yield bucket
            place += 1

    def _first(self, stretch: list[int]) -> int | None:
        """The first place of a stretch with rows; those before it are left behind."""
        place, stop = stretch
        while place < stop:
            bucket = self._buckets[place]
            if bucket is not None and bucket.size > 0:
                stretch[0] = place
                return place
            self._buckets[place] = None
            place += 1
        stretch[0] = stop
        return None

    def _take_over(self, worker: int) -> list[int] | None:
        """Half of the largest stretch: nobody's from its front, another's from its back."""
        self._stretches.pop(worker, None)
        unowned = [self._unowned, len(self._buckets)]
        self._first(unowned)
        self._unowned = unowned[0]
        largest, owner = unowned[1] - unowned[0], -1
        for other, stretch in list(self._stretches.items()):
            if self._first(stretch) is None:
                del self._stretches[other]
            elif stretch[1] - stretch[0] > largest:
                largest, owner = stretch[1] - stretch[0], other
        if largest <= 0:
            return None
        half = (largest + 1) // 2
        if owner < 0:
            mine = [unowned[0], unowned[0] + half]
            self._unowned = mine[1]
        else:
            theirs = self._stretches[owner]
            mine = [theirs[1] - half, theirs[1]]
            theirs[1] -= half
            if theirs[0] >= theirs[1]:
                del self._stretches[owner]
        self._stretches[worker] = mine
        return mine if self._first(mine) is not None else None
