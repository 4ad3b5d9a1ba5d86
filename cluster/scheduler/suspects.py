"""Tasks that were at a worker which ended: how often, and where they wait for their next run.

A worker may end because of a task: it kills its parent, or takes all of the host's memory. Nobody can tell then which
of the tasks it was. So a task that was granted to a worker when that ended is *marked*, which costs it nothing but a
place in line: from then on it is granted to free slots only, by itself, so that at the next end of a worker it was
really running. That is charged. A task that was charged is never granted to a worker together with another such, so
that two of them are not charged for one another. After `AGENT_DEATHS_ALLOWED` charges it fails.
"""

from __future__ import annotations

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

    def open_bucket(self, run: Run) -> Bucket:
        """Make the place where the run's suspects are listed."""
        bucket = self._buckets[run.identity] = Bucket(run)
        return bucket

    def close_bucket(self, run: Run) -> None:
        """No suspect of the run is listed any more."""
        del self._buckets[run.identity]
