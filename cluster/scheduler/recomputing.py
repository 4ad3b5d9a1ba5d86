"""Why a value that was lost cannot be made again."""

from __future__ import annotations

from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.table import Run

__all__ = ["cannot_recompute"]


def cannot_recompute(ledger: Ledger, row: int, run: Run) -> Failure:
    """The failure of a row whose value is needed again."""
    key = ledger.key(row)
    message = f"the value of {key} was lost with its worker and cannot be computed again: "
    remedy = "submit the task again, or keep a copy of the data on two workers"
    if run.makes_actor or run.calls_actor:
        message = f"{key} cannot be computed again: actors are not made twice, nor are their methods called twice"
        remedy = "make a new actor, or call the method again"
    elif run.offered:
        message += "it was sent from a client's memory, and no worker holds a copy any more"
    else:
        message += "the recipe of an input was given up (past the lineage bound, or the input came from a client)"
    return ledger.failure(row, "lost", "ValueLost", message, remedy=remedy)
