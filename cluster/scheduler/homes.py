"""Where a row's inputs are, and so where it should run."""

from __future__ import annotations

from array import array

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.ready import NOBODY
from cluster.scheduler.refusals import has_refused
from cluster.scheduler.sizes import SMALL_BYTES
from cluster.scheduler.table import Run

__all__ = ["home"]


def home(ledger: Ledger, row: int, run: Run, sources: array[int], latest: int = NOBODY) -> int:
    """The worker that is preferred for a row, or holds most bytes of its inputs, `sources`; NOBODY when there is none.

    None that has refused an input of it. Of inputs that are small where they are is no reason. Then it is the worker
    that made the last of them, `latest`: it has just got a slot free, and neighbours of the row become ready for it in
    the same step.
    """
    table = ledger.table
    if run.options.get("allow_other_workers"):
        named = run.options.get("workers", ())
        for worker in ledger.workers.values():
            is_named = worker.name in named or worker.address in named
            if is_named and not worker.draining and not has_refused(ledger, row, worker):
                return worker.index
    holders, sizes, replicas = table.holder, table.nbytes, table.replicas
    if (
        latest != NOBODY
        and row not in ledger.refusals
        and sum(map(sizes.__getitem__, sources)) + len(sources) <= SMALL_BYTES
    ):
        return latest  # as below, whoever holds the others
    held: dict[int, int] = {}
    for source in sources:
        holder, nbytes = holders[source], sizes[source] + 1
        held[holder] = held.get(holder, 0) + nbytes
        if source in replicas:
            for other in replicas[source]:
                held[other] = held.get(other, 0) + nbytes
    held.pop(NOBODY, None)  # what only a client has
    if row in ledger.refusals:
        held = {index: nbytes for index, nbytes in held.items() if not has_refused(ledger, row, ledger.workers[index])}
    if not held:
        return NOBODY
    if len(held) == 1:
        return held.popitem()[0]
    nearest = max(held, key=lambda index: (held[index], -index))
    return latest if latest in held and held[nearest] <= SMALL_BYTES else nearest
