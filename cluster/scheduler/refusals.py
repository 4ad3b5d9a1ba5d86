"""Workers that have no room for an input of a task: what may be done there once more, and when that is in vain.

A worker refuses an input when values can go neither to its memory nor to its disk, and it has waited long for something
to become free; or soon, if a slot stands idle there for the task. Then the task waits here, and keeps nobody from
anything. It is let in at that worker again when less is held there, or after a while, since not all that takes room is
counted. Until then it waits for another worker, or for whatever else runs or can start, since each end may make room.
If there is nothing of either, something may still be released by its client; a refusal after that ends it.
"""

from __future__ import annotations

import math

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import GRANTED, READY
from cluster.scheduler.want_of_room import PATIENCE_SECONDS, Refusal, Refusals
from cluster.scheduler.workers import WorkerRecord

__all__ = ["REMEDY", "has_refused", "is_worth_waiting", "note_refusal", "seconds_left"]

REMEDY = "release values that are no longer needed, start workers, or give values more room on disk"


def note_refusal(ledger: Ledger, row: int, worker: WorkerRecord, held_bytes: int) -> None:
    """A worker had no room for an input of a task; it held so much when it was granted that."""
    refusals = ledger.refusals.setdefault(row, Refusals())
    before = refusals.of_workers.get(worker.index)
    refusals.of_workers[worker.index] = Refusal(held_bytes, ledger.now)
    if _something_may_change(ledger, row):
        refusals.in_vain_since = math.inf
    elif refusals.in_vain_since == math.inf or (before is not None and held_bytes < before.held_bytes):
        refusals.in_vain_since = ledger.now


def has_refused(ledger: Ledger, row: int, worker: WorkerRecord) -> bool:
    """Whether a worker had no room for an input of a task, and to try that there again is not the best there is."""
    if row not in ledger.refusals or not _holds_as_much(ledger, row, worker):
        return False
    is_fresh = ledger.now < ledger.refusals[row].of_workers[worker.index].at + PATIENCE_SECONDS
    return is_fresh and is_worth_waiting(ledger, row)


def is_worth_waiting(ledger: Ledger, row: int) -> bool:
    """Whether a task that was refused may find room elsewhere, or when something has ended, or was released."""
    return seconds_left(ledger, row) > 0 or _something_may_change(ledger, row)


def seconds_left(ledger: Ledger, row: int) -> float:
    """How long a task that was refused waits for nothing but a release; 0: it does not, or no longer."""
    since = ledger.refusals[row].in_vain_since
    return max(0.0, since + PATIENCE_SECONDS - ledger.now) if since <= ledger.now else 0.0


def _something_may_change(ledger: Ledger, row: int) -> bool:
    """Whether another worker may have room for a task that was refused, or something that ends may make some."""
    lane = ledger.run(row).lane
    assert lane is not None
    others = (worker for worker in ledger.workers.values() if worker.permits(lane.restriction))
    if any(not (worker.draining or worker.lost or _holds_as_much(ledger, row, worker)) for worker in others):
        return True
    return _something_else_runs(ledger, row) or _something_else_can_start(ledger)


def _holds_as_much(ledger: Ledger, row: int, worker: WorkerRecord) -> bool:
    """Whether a worker had no room for an input of a task, and holds no less now."""
    refusal = ledger.refusals[row].of_workers.get(worker.index)
    return refusal is not None and worker.held_bytes >= refusal.held_bytes


def _something_else_runs(ledger: Ledger, row: int) -> bool:
    """Whether a task has a slot that was not refused: of those that were, each may wait for what another holds."""
    table = ledger.table
    running = sum(worker.outstanding for worker in ledger.workers.values())
    for other in ledger.refusals:
        worker, attempt = ledger.workers.get(table.holder[other]), table.attempt[other]
        if worker is None or table.state[other] != GRANTED or other == row:  # that one has just been counted out
            continue
        grant = worker.grants.get(attempt)
        if grant is not None and (attempt, other) not in worker.suspended:
            running -= grant.takes_slots
    return running > 0


def _something_else_can_start(ledger: Ledger) -> bool:
    """Whether a task is ready that was not refused, and some worker has all that it asks for."""
    refused: dict[int, int] = {}
    for row in ledger.refusals:
        if ledger.table.state[row] == READY:
            lane = id(ledger.lane_of(row, ledger.run(row)))
            refused[lane] = refused.get(lane, 0) + 1
    lanes = (lane for client in ledger.clients.values() if client.ready_rows for lane in client.lanes.values())
    waiting = [lane for lane in lanes if lane.size > refused.get(id(lane), 0)]
    return any(
        worker.permits(lane.restriction) and not worker.draining and worker.room_for(lane.restriction) != 0
        for lane in waiting
        for worker in ledger.workers.values()
    )
