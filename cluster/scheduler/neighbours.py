"""Each host's own stretch of what a client submitted at one time, over many small runs.

A map is one run, and a worker draws from its own stretch of it (`ready.py`). A graph that is submitted depth first is
many runs of a few tasks each: two leaves, the task that takes them, two leaves more. Taken in their order by whoever is
free, two leaves of one consumer would go to two workers, each time. So the runs without inputs that a client submits in
one go are a row of places, and a worker takes the next place of its host's stretch, or half of the largest other
stretch when that has none left. Neighbours then meet on one host, and so do what is made of them and its neighbours.

Workers of one host share its stretch, since values pass between them without a copy: so there are values that wait for
their neighbours at one place, and not at one for each worker. Each takes a few places at a time, as an own *piece*, so
that most neighbours meet on one worker even so.

At each end of a stretch there are values whose neighbours are not made yet, some for each level of a tree. So that they
wait for the end of the stretch only and not for all of it, two hosts that share a row work towards each other, one from
its front and the other from its back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cluster.scheduler.hosts import Host
    from cluster.scheduler.ready import Bucket

__all__ = ["Neighbours"]

GAP_SECONDS: Final = 0.05  # what comes later than that after the last was not submitted in one go with it
PLACES_LIMIT: Final = 1 << 16
PIECE_PLACES: Final = 2  # more are more values that wait, one is more that change the worker
MEANWHILE_PLACES: Final = 4  # taken of a row that may still grow by who begins at its end


class _Stretch:
    """Places from `start` to `stop`, taken in their order, or backwards."""

    __slots__ = ("backwards", "start", "stop")

    def __init__(self, start: int, stop: int, backwards: bool = False) -> None:
        self.start = start
        self.stop = stop
        self.backwards = backwards

    def __len__(self) -> int:
        return self.stop - self.start

    def cut_off(self, count: int, *, at_the_end: bool) -> tuple[int, int]:
        """Take so many places off an end of it."""
        if at_the_end:
            self.stop -= count
            return self.stop, self.stop + count
        self.start += count
        return self.start - count, self.start


class Neighbours:
    """Buckets in the order of their submission, and whose stretch each stands in."""

    __slots__ = ("_backwards", "_buckets", "_pieces", "_stretches", "_unowned", "last_at")

    def __init__(self) -> None:
        self._buckets: list[Bucket | None] = []
        self._stretches: dict[Host, _Stretch] = {}
        self._pieces: dict[int, _Stretch] = {}  # by worker: what it has of its host's stretch
        self._unowned: list[_Stretch] = []  # the places that are in nobody's stretch
        self._backwards: dict[Host, bool] = {}  # from which end it takes of these
        self.last_at = 0.0

    def takes(self, now: float) -> bool:
        """Whether what is submitted now belongs to this row."""
        return now - self.last_at <= GAP_SECONDS and len(self._buckets) < PLACES_LIMIT

    def add(self, bucket: Bucket, now: float) -> None:
        """The next run of the row."""
        bucket.place = len(self._buckets)
        self._buckets.append(bucket)
        self.last_at = now
        if self._unowned and self._unowned[-1].stop == bucket.place:
            self._unowned[-1].stop += 1
        else:
            self._unowned.append(_Stretch(bucket.place, bucket.place + 1))

    def leave(self, bucket: Bucket) -> None:
        """Nothing of its run is listed any more: it is not kept for its place, nor are the run's arguments."""
        self._buckets[bucket.place] = None

    def of(self, worker: int, host: Host, limit: int, now: float) -> Iterator[Bucket]:
        """Up to so many buckets that have rows, in the order in which a worker should take from them.

        All are of one stretch: the rest of it is behind what could not be taken.
        """
        stretch = self._piece_of(worker, host, now)
        if stretch is None:
            return
        places = range(stretch.start, stretch.stop)
        for place in reversed(places) if stretch.backwards else places:
            bucket = self._buckets[place]
            if bucket is not None and bucket.size > 0:
                yield bucket
                limit -= 1
                if limit <= 0:
                    return

    def _piece_of(self, worker: int, host: Host, now: float) -> _Stretch | None:
        """What a worker takes from: all of its host's stretch, or an own piece of it if there are others there."""
        piece = self._pieces.get(worker)
        if piece is not None:
            if self._has_rows(piece):
                return piece
            del self._pieces[worker]
        stretch = self._stretches.get(host)
        if stretch is None or not self._has_rows(stretch):
            stretch = self._take_over(host, now)
        if stretch is None or host.workers <= 1:
            return stretch
        cut = stretch.cut_off(min(PIECE_PLACES, len(stretch)), at_the_end=stretch.backwards)
        piece = self._pieces[worker] = _Stretch(*cut, backwards=stretch.backwards)
        return piece

    def _has_rows(self, stretch: _Stretch) -> bool:
        """Whether a stretch has rows; places without are left behind at its ends."""
        while len(stretch) and not self._is_listed(stretch.start):
            stretch.start += 1
        while len(stretch) and not self._is_listed(stretch.stop - 1):
            stretch.stop -= 1
        return len(stretch) > 0

    def _is_listed(self, place: int) -> bool:
        bucket = self._buckets[place]
        if bucket is not None and bucket.size > 0:
            return True
        self._buckets[place] = None
        return False

    def _take_over(self, host: Host, now: float) -> _Stretch | None:
        """Half of the largest stretch, nobody's or another's."""
        self._stretches.pop(host, None)
        self._unowned = [stretch for stretch in self._unowned if self._has_rows(stretch)]
        for other in [other for other, stretch in self._stretches.items() if not self._has_rows(stretch)]:
            del self._stretches[other]
        nobodys = max(self._unowned, key=len, default=None)
        others = max(self._stretches.values(), key=len, default=None)
        if nobodys is not None and (others is None or len(nobodys) >= len(others)):
            self._stretches[host] = mine = self._take_unowned(nobodys, host, now)
        elif others is not None:
            half = (len(others) + 1) // 2
            # Towards each other: what was made on the other side of this half is used up first.
            cut = others.cut_off(half, at_the_end=not others.backwards)
            self._stretches[host] = mine = _Stretch(*cut, backwards=not others.backwards)
        else:
            return None
        return mine if self._has_rows(mine) else None

    def _take_unowned(self, stretch: _Stretch, host: Host, now: float) -> _Stretch:
        half = (len(stretch) + 1) // 2
        backwards = self._backwards.setdefault(host, len(self._backwards) % 2 == 1)
        if backwards and self.takes(now):  # there may be more to come: this is not its end
            return _Stretch(*stretch.cut_off(min(half, MEANWHILE_PLACES), at_the_end=False))
        return _Stretch(*stretch.cut_off(half, at_the_end=backwards), backwards=backwards)
