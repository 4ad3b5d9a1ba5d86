"""When a task may start: the one definition, which placement follows, `explain` tells, and the simulator checks.

A task is *startable* at a worker when none of these stands in its way (they are looked at in this order):

============= ==========================================================================================
``UNNEEDED``  nobody wants its value: no client, and no unfinished task that takes it
``INPUTS``    an input has no value yet
``NAMED``     the worker is not among those that it may run on
``LACKING``   the worker has, all in all, less of a resource than it takes
``DRAINING``  the worker is about to end
``RESOURCES`` … so much of a resource is not free there now
``MOVING``    its inputs lie elsewhere, and moving them here would end later than a slot there is free
``SUSPECT``   it is charged with the end of a worker, and another such task is granted there
``MEMORY``    the worker's memory has no room for what it makes (`admission.py` says when it has)
``SLOT``      every slot of the worker is taken
``PROCESS``   a slot is free, but all processes that the worker may have hold tasks that wait for tasks, and the
              task is no child of a task that waits there
============= ==========================================================================================

Where several tasks are startable, it is the client's turn with the least slot time by weight; of one client's tasks
higher priority goes first, then consumers before producers, then who came first. The promise is: no startable task
waits longer than 100 ms while a slot that may run it is idle.
"""

from __future__ import annotations

from enum import IntEnum

from cluster.scheduler.admission import is_held_back
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.ready import Lane, Restriction
from cluster.scheduler.suspects import SuspectLane
from cluster.scheduler.table import FINISHED, Table
from cluster.scheduler.workers import WorkerRecord

__all__ = [
    "MOVE_FREELY_BYTES",
    "Bar",
    "bar",
    "bytes_to_move",
    "expected_wait_seconds",
    "inputs_exist",
    "is_kept_apart",
    "is_met",
    "moving_pays",
    "runs_inside_parent",
    "shortfall",
    "worker_bar",
]

MOVE_FREELY_BYTES = 1 << 20
SHARED_AS_BYTES = 1 << 19  # to share a value with another worker of the host takes as long as to move so many
BANDWIDTH_BYTES_PER_SECOND = 1e9
NAMES_SHOWN = 5


class Bar(IntEnum):
    """What stands in the way of a start, in the order in which it is looked at."""

    UNNEEDED = 1
    INPUTS = 2
    NAMED = 3
    LACKING = 4
    DRAINING = 5
    RESOURCES = 6
    MOVING = 7
    SUSPECT = 8
    MEMORY = 9
    SLOT = 10
    PROCESS = 11


def inputs_exist(table: Table, row: int) -> bool:
    """Whether every input of a row has a value."""
    state = table.state
    return all(state[source] == FINISHED for source in table.inputs_of(row))


def worker_bar(worker: WorkerRecord, restriction: Restriction) -> Bar | None:
    """What bars all tasks of a restriction from a worker, whatever its slots do."""
    if not worker.permits(restriction):
        return Bar.NAMED if worker.permits(Restriction(resources=restriction.resources)) else Bar.LACKING
    if worker.draining:
        return Bar.DRAINING
    return Bar.RESOURCES if worker.room_for(restriction) == 0 else None


def bytes_to_move(ledger: Ledger, row: int, worker: WorkerRecord) -> int:
    """How many bytes of a row's inputs have to be moved to a worker that lacks them; of a large one that another worker
    of its host has, as many as would take as long as sharing it does."""
    table, workers = ledger.table, ledger.workers
    nbytes = 0
    for source in table.inputs_of(row):
        holders = table.holders(source)
        if worker.index not in holders:
            size = table.nbytes[source]
            if size > SHARED_AS_BYTES and worker.host.workers > 1:
                is_near = any(workers[holder].host is worker.host for holder in holders)
                size = SHARED_AS_BYTES if is_near else size
            nbytes += size
    return nbytes


def moving_pays(nbytes: int, wait_seconds: float) -> bool:
    """Whether so many bytes are moved before a slot is free that would have to be waited for so long."""
    return nbytes <= MOVE_FREELY_BYTES or nbytes / BANDWIDTH_BYTES_PER_SECOND < wait_seconds


def expected_wait_seconds(worker: WorkerRecord, now: float) -> float:
    """How long a slot of a worker is expected to be taken: by measure, and at least as long again as until now."""
    oldest = worker.oldest_grant
    if oldest is None:
        return 0.0
    taken_for = now - max(worker.last_progress, oldest.granted_at)
    return max(worker.outstanding_seconds / worker.slots, taken_for)


def bar(ledger: Ledger, row: int, worker: WorkerRecord, wait_seconds: float) -> Bar | None:
    """The first thing that keeps a row from starting at a worker now; None when nothing does but its turn.

    `wait_seconds`: how long a slot of the worker that it would else start at is expected to be taken.
    """
    table = ledger.table
    if table.holds[row] == 0:
        return Bar.UNNEEDED
    if not inputs_exist(table, row):
        return Bar.INPUTS
    lane = ledger.lane_of(row, ledger.run(row))
    barred = worker_bar(worker, lane.restriction)
    if barred is not None:
        return barred
    if not moving_pays(bytes_to_move(ledger, row, worker), wait_seconds):
        return Bar.MOVING
    if is_kept_apart(worker, lane):
        return Bar.SUSPECT
    inside = runs_inside_parent(ledger, row, worker)
    if not inside and is_held_back(ledger, row, worker, ledger.now):
        return Bar.MEMORY
    if worker.outstanding >= worker.slots:
        return Bar.SLOT
    return None if worker.free_slots or inside else Bar.PROCESS


def is_kept_apart(worker: WorkerRecord, lane: Lane) -> bool:
    """Whether tasks of this lane are charged with the end of a worker, and another such task is granted there."""
    return isinstance(lane, SuspectLane) and lane.charged and any(grant.charged for grant in worker.grants.values())


def runs_inside_parent(ledger: Ledger, row: int, worker: WorkerRecord) -> bool:
    """Whether the task that submitted a row waits at the worker: the row needs no process of its own there."""
    parent = ledger.parents.get(ledger.run(row).parent)
    return parent is not None and parent.suspended_at == worker.index


# --------------------------------------------------------------------------- requests that nobody can meet


def is_met(ledger: Ledger, restriction: Restriction) -> bool:
    """Whether some connected worker that stays could ever run tasks of this restriction."""
    return any(not worker.draining and worker.permits(restriction) for worker in ledger.workers.values())


def shortfall(ledger: Ledger, restriction: Restriction) -> str:
    """Which connected worker comes nearest to a restriction that none meets, and what it lacks; for people."""
    workers = [worker for worker in ledger.workers.values() if not worker.draining]
    asked = []
    if restriction.workers and not restriction.allow_other_workers:
        asked.append("runs only on " + _listed([f'"{name}"' for name in restriction.workers]))
    if restriction.resources:
        asked.append("takes " + _listed([f"{amount:g} {name}" for name, amount in restriction.resources]))
    request = "it " + " and ".join(asked)
    if not workers:
        return f"{request}, and no worker is connected that will stay"
    nearest = min(workers, key=lambda worker: (*_distance(worker, restriction), worker.index))
    lacking = [
        f"{nearest.resources.get(name, 0.0):g} of {amount:g} {name}"
        for name, amount in restriction.resources
        if nearest.resources.get(name, 0.0) < amount
    ]
    wrong = []
    if _is_unnamed(nearest, restriction):
        wrong.append("is not named")
    if lacking:
        wrong.append(f"has {_listed(lacking)}")
    return f"{request}; the nearest of {len(workers)} workers, {nearest.name} at {nearest.address}, " + " and ".join(
        wrong
    )


def _is_unnamed(worker: WorkerRecord, restriction: Restriction) -> bool:
    named = worker.name in restriction.workers or worker.address in restriction.workers
    return bool(restriction.workers) and not restriction.allow_other_workers and not named


def _distance(worker: WorkerRecord, restriction: Restriction) -> tuple[int, float]:
    """How many things a worker lacks, and by how much."""
    missing = [
        (amount - worker.resources.get(name, 0.0)) / amount
        for name, amount in restriction.resources
        if worker.resources.get(name, 0.0) < amount
    ]
    return len(missing) + _is_unnamed(worker, restriction), sum(missing)


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
