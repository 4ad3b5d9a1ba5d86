"""Where a row's inputs are, and so where it should run."""

from __future__ import annotations

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.ready import NOBODY
from cluster.scheduler.sizes import SMALL_BYTES
from cluster.scheduler.table import Run

__all__ = ["home"]


def home(ledger: Ledger, row: int, run: Run, latest: int = NOBODY) -> int:
    """The worker that is preferred for the row, or holds most bytes of its inputs; NOBODY when there is none.

    Of inputs that are small where they are is no reason. Then it is the worker that made the last of them, `latest`:
    it has just got a slot free, and neighbours of the row become ready for it in the same step.
    """
    table = ledger.table
    if run.options.get("allow_other_workers"):
        named = run.options.get("workers", ())
        for worker in ledger.workers.values():
            if (worker.name in named or worker.address in named) and not worker.draining:
                return worker.index
    sources = table.inputs_of(row)
    if sources:
        holder = table.holder
        first = holder[sources[0]]
        if not table.replicas and all(holder[source] == first for source in sources):
            return first
    else:
        return NOBODY
    held: dict[int, int] = {}
    for source in sources:
        nbytes = table.nbytes[source] + 1
        for worker_index in table.holders(source):
            held[worker_index] = held.get(worker_index, 0) + nbytes
    if not held:
        return NOBODY
    nearest = max(held, key=lambda index: (held[index], -index))
    return latest if latest in held and held[nearest] <= SMALL_BYTES else nearest
