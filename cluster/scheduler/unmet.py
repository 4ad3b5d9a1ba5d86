"""Requests that no connected worker can meet: they err after a while, and say what is missing.

The clock runs for a lane (a client's ready tasks of one restriction), so that no task is looked at until it must fail.
It runs while workers are connected and none of them could ever run the lane's tasks; it starts anew when one that could
has come. While no worker at all is connected it stands still: nothing shows then that the request is wrong.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.ready import ANYWHERE, Lane, Restriction
from cluster.scheduler.startable import is_met, shortfall
from cluster.scheduler.table import READY, Run
from cluster.scheduler.workers import WorkerRecord
from cluster.units import format_seconds

__all__ = ["Unmet"]

ROWS_PER_STEP = 256
BUCKETS_PER_STEP = 4096
_ANSWERS_KEPT = 1000


class Failing:
    """A lane whose tasks have waited too long, and how far they are gone through."""

    def __init__(self, lane: Lane, before: float) -> None:
        self.lane = lane
        self._runs = _waiting_since(lane, before)
        self.run: Run | None = None
        self.next_run()

    def next_run(self) -> None:
        """All ready rows of the run have failed."""
        self.run = next(self._runs, None)


class Unmet:
    """Watches the lanes, and fails what has waited too long."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self._watched_at = 0.0
        self._failing: deque[Failing] = deque()
        self._met: dict[Restriction, bool] = {}  # as long as the workers are the same
        self._workers: tuple[int, int, int] = (0, 0, 0)

    @property
    def has_work(self) -> bool:
        """Whether `work` has something to do at once."""
        return bool(self._failing)

    def watch(self, now: float) -> None:
        """Look at every lane; called about once a second."""
        patience = self.ledger.settings.unmet_request_seconds
        since, self._watched_at = self._watched_at, now
        if not patience:
            return
        self._look_at_workers()
        if len(self._met) > _ANSWERS_KEPT:
            self._met.clear()
        for client in self.ledger.clients.values():
            for lane in client.lanes.values():
                if lane.restriction is ANYWHERE:
                    continue
                if not lane.size or self._is_met(lane.restriction):
                    lane.unmet_since = math.inf
                elif not self.ledger.workers:
                    lane.unmet_since += now - since
                elif lane.unmet_since == math.inf:
                    lane.unmet_since = now
                elif now - lane.unmet_since >= patience and not self._failing:
                    self._failing.append(Failing(lane, now - patience))

    def worker_came(self, worker: WorkerRecord) -> None:
        """What this worker can run has been met, even if it goes again."""
        for client in self.ledger.clients.values():
            for lane in client.lanes.values():
                if lane.unmet_since != math.inf and worker.permits(lane.restriction):
                    lane.unmet_since = math.inf

    def work(self) -> None:
        """Fail some rows; the others in the steps that follow."""
        budget = ROWS_PER_STEP
        looked_at = 0
        while self._failing and budget > 0 and looked_at < BUCKETS_PER_STEP:
            failing = self._failing[0]
            lane, run = failing.lane, failing.run
            waits_on = lane.unmet_since == math.inf or not self.ledger.workers
            if run is None or waits_on or is_met(self.ledger, lane.restriction):
                self._failing.popleft()
                continue
            looked_at += 1
            budget -= self._fail(lane, run, budget)
            if budget > 0:
                failing.next_run()

    def _fail(self, lane: Lane, run: Run, limit: int) -> int:
        """Fail up to so many ready rows of a run; how many were."""
        table = self.ledger.table
        if table.run_of[run.start] is not run:
            return 0  # it was forgotten since the lane was looked at
        state = table.state
        stop = run.start + run.count
        failed = 0
        row = state.find(READY, run.start, stop)
        if row < 0:
            return 0
        missing = shortfall(self.ledger, lane.restriction)
        while row >= 0 and failed < limit:
            self.lifecycle.fail(row, self._failure(row, missing))
            failed += 1
            row = state.find(READY, row + 1, stop)
        return failed

    def _failure(self, row: int, missing: str) -> Failure:
        patience = format_seconds(self.ledger.settings.unmet_request_seconds)
        message = f"for {patience} no connected worker could run {self.ledger.key(row)}: {missing}"
        remedy = "start a worker that has what it asks for, or ask for less; then retry it"
        return self.ledger.failure(row, "unrunnable", "Unrunnable", message, remedy=remedy)

    def _is_met(self, restriction: Restriction) -> bool:
        known = self._met.get(restriction)
        if known is None:
            known = self._met[restriction] = is_met(self.ledger, restriction)
        return known

    def _look_at_workers(self) -> None:
        workers = self.ledger.workers
        now = (max(workers, default=-1), len(workers), sum(worker.draining for worker in workers.values()))
        if now != self._workers:
            self._workers = now
            self._met.clear()


def _waiting_since(lane: Lane, before: float) -> Iterator[Run]:
    """The runs with ready rows that were submitted before that time."""
    for entry in list(lane.heap):
        run = entry[3].run
        if run.submitted_at <= before and entry[3].size > 0:
            yield run
