"""What is to be said of a task that a worker's memory has no room for: who holds what, and what goes first."""

from __future__ import annotations

from typing import Final

from cluster.scheduler.admission import made_bytes, need_bytes, room_bytes
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.reasons import Reason
from cluster.scheduler.refusals import has_refused, seconds_left
from cluster.scheduler.table import Run
from cluster.scheduler.workers import WorkerRecord
from cluster.units import format_bytes, format_seconds

__all__ = ["estimate", "held_back", "without_room"]

CONSUMERS_COUNTED_TO: Final = 10_000
_SHOWN: Final = 5
REMEDY: Final = (
    "wait until values are used up; release futures that nobody needs, start workers, or make smaller pieces"
)


def estimate(run: Run) -> str:
    """What is known of the memory that a task of a run takes."""
    if run.memory_bytes:
        return f"it asks for {format_bytes(run.memory_bytes)}"
    made = run.output_sizes.estimate_bytes
    name = run.label if run.function is None else run.function.name
    if run.output_sizes.need_bytes:
        return f"a task of {name} was ended for the {format_bytes(run.output_sizes.need_bytes)} that it took"
    if made is None:
        return f"what {name} makes is not known yet, since none has ended"
    return f"{name} makes about {format_bytes(made)}" if made else f"{name} makes next to nothing"


def held_back(ledger: Ledger, row: int, workers: list[WorkerRecord]) -> Reason:
    """Why no worker of these admits a ready task; the one that comes nearest is named."""
    run = ledger.run(row)
    client = run.client.identity
    possible = [worker for worker in workers if not has_refused(ledger, row, worker)]
    if not possible:
        return _refused(workers, seconds_left(ledger, row))
    nearest = max(possible, key=lambda worker: room_bytes(worker, client) - need_bytes(ledger, row, worker))
    memory = nearest.memory
    parts = [f"{format_bytes(memory.in_memory_bytes(nearest.held_bytes))} of values"]
    for nbytes, what in (
        (memory.promised_bytes, "are about to be made there"),
        (memory.coming_bytes, "are on their way there"),
        (memory.spilled_bytes, "more are on its disk"),
    ):
        if nbytes:
            parts.append(f"{format_bytes(nbytes)} {what}")
    limit, budget = format_bytes(memory.limit_bytes), format_bytes(int(memory.budget_bytes))
    why = (
        f"held back: worker {nearest.name} holds {', '.join(parts)}, of the {budget} that values may take of its "
        f"{limit}; {estimate(run)}"
    )
    moved = need_bytes(ledger, row, nearest) - (made_bytes(run) or 0)
    if moved:
        why += f", and {format_bytes(moved)} would be moved there"
    consumers = _consumers_before(ledger, run)
    if consumers:
        which = "tasks that take values run" if consumers > 1 else "task that takes values runs"
        why += f"; {consumers} {which} first"
    others = len(workers) - 1
    if others:
        why += f"; {others} other worker{'s have' if others > 1 else ' has'} no more room"
    return Reason("memory", why, REMEDY)


def _refused(workers: list[WorkerRecord], left_seconds: float) -> Reason:
    """Workers had no room for an input, and hold as much now as then."""
    first = workers[0]
    more = f" and {len(workers) - 1} more" if len(workers) > 1 else ""
    why = (
        f"held back: worker {first.name}{more} had no room for an input of it, on disk neither, and holds as much as "
        f"then: {format_bytes(first.held_bytes)} of values, with a memory limit of "
        f"{format_bytes(first.memory.limit_bytes)}; "
    )
    if left_seconds:
        left = format_seconds(left_seconds)
        why += f"nothing else runs or can start: it fails in {left} unless something is released"
    else:
        why += "it waits for another worker, or for tasks to make room"
    return Reason("memory", why, REMEDY)


def without_room(ledger: Ledger, row: int) -> str:
    """Which workers have no room for a value that its client is to push there, and why; nothing if there are none."""
    orders = [(ledger.workers[index], order) for index, order in ledger.pushing.get(row, {}).items() if order.no_room]
    return "".join(f"; worker {worker.name} has no room for it: {order.no_room}" for worker, order in orders[:_SHOWN])


def _consumers_before(ledger: Ledger, run: Run) -> int:
    """How many ready or running tasks of its client take values and go before it."""
    own = (-run.priority, -run.depth, run.identity)
    count = 0
    for lane in run.client.lanes.values():
        for priority, depth, identity, bucket in lane.heap[:CONSUMERS_COUNTED_TO]:
            if bucket.run.dependency_starts is not None and (priority, depth, identity) < own:
                count += max(0, bucket.size)
    for worker in ledger.workers.values():
        for grant in worker.grants.values():
            other = grant.run
            if other.client is run.client and other.dependency_starts is not None and other.depth > run.depth:
                count += grant.left
    return count
