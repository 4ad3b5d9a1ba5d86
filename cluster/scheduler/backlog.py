"""How much work waits, as who starts and ends workers asks it.

Query
    backlog             `{"seconds", "tasks"}`: what tasks that are ready or granted are expected to take, and how many
                        there are; of a function that was never measured each counts as five seconds
"""

from __future__ import annotations

from typing import Any, Final

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.questions import Questions
from cluster.scheduler.startable import expected_wait_seconds
from cluster.scheduler.table import Run
from cluster.scheduler.workers import WorkerRecord

__all__ = ["Backlog"]

UNMEASURED_SECONDS: Final = 5.0  # nobody knows, and a worker too many costs less than a wait
BUCKETS_LIMIT: Final = 2_000  # of a lane; those behind count as these do on the average


class Backlog:
    """Answers this query."""

    def __init__(self, ledger: Ledger, questions: Questions) -> None:
        self._ledger = ledger
        self._questions = questions
        questions.register("backlog", self._backlog)

    def _backlog(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        workers, clients = self._ledger.workers.values(), self._ledger.clients.values()
        seconds = sum(self._granted_seconds(worker, now) for worker in workers)
        seconds += sum(self._ready_seconds(known) for known in clients)
        tasks = self._ledger.ready_rows + sum(worker.outstanding for worker in workers)
        self._questions.answer(client, request, {"seconds": seconds, "tasks": tasks})

    def _granted_seconds(self, worker: WorkerRecord, now: float) -> float:
        """By measure; where tasks have run for longer already, as long again as until now."""
        if any(grant.takes_slots and not _is_measured(grant.run) for grant in worker.grants.values()):
            return max(worker.outstanding_seconds, worker.outstanding * UNMEASURED_SECONDS)
        return max(worker.outstanding_seconds, expected_wait_seconds(worker, now) * worker.slots)

    def _ready_seconds(self, client: ClientRecord) -> float:
        seconds, tasks = 0.0, 0
        for lane in client.lanes.values():
            for *_, bucket in lane.heap[:BUCKETS_LIMIT]:
                function = bucket.run.function
                median = None if function is None else function.median_seconds
                seconds += max(0, bucket.size) * (UNMEASURED_SECONDS if median is None else median)
                tasks += max(0, bucket.size)
        return seconds * client.ready_rows / tasks if tasks else 0.0


def _is_measured(run: Run) -> bool:
    return run.function is not None and run.function.median_seconds is not None
