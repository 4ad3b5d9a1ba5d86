"""Tasks that were at a worker which ended: how often, and where they wait for their next run.

A worker may end because of a task: it kills its parent, or takes all of the host's memory. Nobody can tell then which
of the tasks it was. So a task that was granted to a worker when that ended is *marked*, which costs it nothing but a
place in line: from then on it is granted to free slots only, by itself, so that at the next end of a worker it was
really running. That is charged. A task that was charged is never granted to a worker together with another such, so
that two of them are not charged for one another. After `AGENT_DEATHS_ALLOWED` charges it fails.
"""

from __future__ import annotations

from heapq import heappop, heappush

from cluster.scheduler.ready import Bucket, Lane, Restriction
from cluster.scheduler.table import Run

__all__ = ["AGENT_DEATHS_ALLOWED", "SuspectLane", "Suspicion"]

AGENT_DEATHS_ALLOWED = 3  # ends of workers that a task may be charged with before it fails


class Suspicion:
    """What a marked task is charged with."""

    __slots__ = ("deaths", "workers")

    def __init__(self) -> None:
        self.deaths = 0  # ends of workers while it ran
        self.workers: list[str] = []  # their names


class SuspectLane(Lane):
    """One client's ready suspects under one restriction: those that were marked, or those that were charged."""

    __slots__ = ("_buckets", "charged")

    def __init__(self, restriction: Restriction, charged: bool) -> None:
        super().__init__(restriction)
        self.charged = charged
        self._buckets: dict[int, Bucket] = {}  # by the run's identity; the run's own bucket stands in its plain lane

    def bucket_of(self, run: Run) -> Bucket | None:
        """Where the run's suspects are listed."""
        return self._buckets.get(run.identity)

    def add(self, run: Run, owner: int, start: int, stop: int) -> None:
        """Make rows of a run ready."""
        bucket = self._buckets.get(run.identity)
        if bucket is None:
            bucket = self._buckets[run.identity] = Bucket(run)
        bucket.add(owner, start, stop)
        self.size += stop - start
        if not bucket.listed:
            bucket.listed = True
            heappush(self.heap, (-run.priority, -run.depth, run.identity, bucket))

    def drop(self, run: Run) -> None:
        """A row of the run is no longer ready."""
        bucket = self._buckets[run.identity]
        bucket.size -= 1
        bucket.dirty = True
        self.size -= 1

    def first(self) -> tuple[int, int, int, Bucket] | None:
        """The heap entry of the bucket whose turn it is."""
        heap = self.heap
        while heap:
            bucket = heap[0][3]
            if bucket.size > 0:
                return heap[0]
            heappop(heap)
            del self._buckets[bucket.run.identity]
        return None
