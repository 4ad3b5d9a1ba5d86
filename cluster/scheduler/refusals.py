"""Workers that have no room for an input of a task: what may be done there once more, and when that is in vain.

A worker refuses an input when values can go neither to its memory nor to its disk, and it has waited long for something
to become free. The task is then let in there again when the worker holds less. Until then it waits for another worker,
or for whatever else runs or can start, since each end may make room. If there is nothing of either, it is tried once
more, as what is not counted may have changed; a refusal after which there is nothing to wait for ends it.
"""

from __future__ import annotations

import math

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import GRANTED, READY
from cluster.scheduler.workers import WorkerRecord

__all__ = ["has_refused", "is_worth_waiting", "note_refusal"]


def note_refusal(ledger: Ledger, row: int, worker: WorkerRecord) -> None:
    """A worker had no room for an input of a task."""
    ledger.refusals.setdefault(row, {})[worker.index] = worker.held_bytes


def has_refused(ledger: Ledger, row: int, worker: WorkerRecord) -> bool:
    """Whether a worker had no room for an input of a task, and to try that there again is not the best there is."""
    return row in ledger.refusals and _refuses(ledger, row, worker) and is_worth_waiting(ledger, row)


def is_worth_waiting(ledger: Ledger, row: int) -> bool:
    """Whether another worker may have room for a task that was refused, or something that ends may make some."""
    lane = ledger.run(row).lane
    assert lane is not None
    others = (worker for worker in ledger.workers.values() if worker.permits(lane.restriction))
    if any(not (worker.draining or worker.lost or _refuses(ledger, row, worker)) for worker in others):
        return True
    return _something_else_runs(ledger) or _something_else_can_start(ledger)


def _refuses(ledger: Ledger, row: int, worker: WorkerRecord) -> bool:
    return worker.held_bytes >= ledger.refusals[row].get(worker.index, math.inf)


def _something_else_runs(ledger: Ledger) -> bool:
    """Whether a task has a slot that was not refused: of those that were, each may wait for what another holds."""
    table = ledger.table
    running = sum(worker.outstanding for worker in ledger.workers.values())
    for row in ledger.refusals:
        worker, attempt = ledger.workers.get(table.holder[row]), table.attempt[row]
        grant = worker.grants.get(attempt) if worker is not None and table.state[row] == GRANTED else None
        if worker is not None and grant is not None and (attempt, row) not in worker.suspended:
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
