"""Which values are *intermediate*: kept by unfinished tasks alone, so that they go when these have run.

The difference decides what holding a producer back is good for. While a memory is full of intermediate values, waiting
for their consumers empties it. What a client wants (its results, what it persisted) stays however long anybody waits.
"""

from __future__ import annotations

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.sizes import SMALL_BYTES
from cluster.scheduler.table import FINISHED, INTERMEDIATE, OWNER_WANTS

__all__ = ["drop_holder", "forget", "is_intermediate", "note"]


def is_intermediate(ledger: Ledger, row: int) -> bool:
    """Whether a row has a value at some worker, and no client wants it. Very small ones are not worth counting."""
    table = ledger.table
    return (
        table.nbytes[row] > SMALL_BYTES
        and table.state[row] == FINISHED
        and table.holder[row] >= 0
        and not table.flags[row] & OWNER_WANTS
        and row not in ledger.aliases_of
    )


def note(ledger: Ledger, row: int) -> None:
    """A client began or ceased to want a row, or the row has a value now: count it as what it is."""
    flags = ledger.table.flags
    if bool(flags[row] & INTERMEDIATE) != is_intermediate(ledger, row):
        flags[row] ^= INTERMEDIATE
        _add(ledger, row, ledger.table.nbytes[row] if flags[row] & INTERMEDIATE else -ledger.table.nbytes[row])


def forget(ledger: Ledger, row: int) -> None:
    """A row's value is about to go from all who hold it."""
    flags = ledger.table.flags
    if flags[row] & INTERMEDIATE:
        flags[row] &= ~INTERMEDIATE
        _add(ledger, row, -ledger.table.nbytes[row])


def drop_holder(ledger: Ledger, row: int, worker_index: int) -> bool:
    """One worker no longer has a row's value; False if it was not known to."""
    table = ledger.table
    if worker_index not in table.holders(row):
        return False
    forget(ledger, row)
    table.drop_holder(row, worker_index)
    note(ledger, row)
    ledger.count_out(worker_index, table.nbytes[row])
    return True


def _add(ledger: Ledger, row: int, nbytes: int) -> None:
    client = ledger.run(row).client.identity
    for index in ledger.table.holders(row):
        worker = ledger.workers.get(index)
        if worker is not None:
            worker.memory.add_intermediate(client, nbytes)
