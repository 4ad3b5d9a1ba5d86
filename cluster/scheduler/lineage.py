"""Released rows that are kept as recipes: each client's, oldest first, in bounds.

A client's recipes are a doubly linked list in two columns of the table, so that a row enters and leaves at constant
cost, whatever its age, and no step of the loop ever walks the list.
"""

from __future__ import annotations

from array import array

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.fans import Fan
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import FREE, NO_RECIPE, NOT_LISTED, Run

__all__ = ["Lineage"]

_END = -1
_ONLY_NO_RECIPE = bytes(flags & NO_RECIPE for flags in range(256))
_WITH_NO_RECIPE = bytes(flags | NO_RECIPE for flags in range(256))


class Lineage:
    """Counts recipes against their clients' bounds and gives up the oldest beyond these."""

    def __init__(self, ledger: Ledger, unneeded: list[int]) -> None:
        self._ledger = ledger
        self._unneeded = unneeded  # shared with the lifecycle: rows to be looked at again
        self._crowded: dict[bytes, ClientRecord] = {}  # clients that have too many recipes

    def enter(self, row: int, run: Run) -> int:
        """A row was released and stays as a recipe, if it is one; how many inputs and heirs were looked at."""
        table = self._ledger.table
        if run.offered or table.flags[row] & NO_RECIPE:
            return self.disinherit(row)
        table.recipe_after[row] = _END
        self._append(row, row, run.client, 1, run.argument_bytes(row))
        return 0

    def enter_rows(self, rows: range, run: Run) -> int:
        """As `enter` for several rows of a run of which no flag but NO_RECIPE is set."""
        table = self._ledger.table
        span = slice(rows.start, rows.stop, rows.step)
        if run.offered or NO_RECIPE in table.flags[span]:
            # Those that are no recipes come first: their heirs are the others' heirs as well, often.
            looked_at = sum(self.disinherit(row) for row in rows if table.flags[row] & NO_RECIPE and table.heirs[row])
            return looked_at + sum(self.enter(row, run) for row in rows if table.heirs[row])
        last, step = rows[-1], rows.step
        table.recipe_before[span] = array("i", range(rows.start - step, last, step))
        table.recipe_after[span] = array("i", range(rows.start + step, last + step + 1, step))
        table.recipe_after[last] = _END
        self._append(rows.start, last, run.client, len(rows), run.argument_bytes_of_rows(rows))
        return 0

    def _append(self, first: int, last: int, client: ClientRecord, count: int, nbytes: int) -> None:
        """Put linked rows at the end of their client's list."""
        table, newest = self._ledger.table, client.newest_recipe
        table.recipe_before[first] = newest
        if newest >= 0:
            table.recipe_after[newest] = first
        else:
            client.oldest_recipe = first
        client.newest_recipe = last
        client.recipe_rows += count
        client.recipe_bytes += nbytes
        if self._has_too_many(client):
            self._crowded[client.identity] = client

    def _has_too_many(self, client: ClientRecord) -> bool:
        settings = self._ledger.settings
        return client.recipe_rows > settings.lineage_rows or client.recipe_bytes > settings.lineage_bytes

    @property
    def has_too_many(self) -> bool:
        """Whether `give_up` has something to do."""
        return bool(self._crowded)

    def give_up(self) -> int:
        """Give up the oldest recipe of a client that has too many, and what cannot be computed again without it.

        Nothing else may be unneeded. How many inputs and heirs were looked at.
        """
        identity, client = next(iter(self._crowded.items()))
        if not self._has_too_many(client):
            del self._crowded[identity]
            return 0
        oldest = client.oldest_recipe
        if self._ledger.table.holds[oldest]:  # the client has the bytes, so the row stays when its heirs have gone
            self.leave(oldest, self._ledger.run(oldest))
        return self.disinherit(oldest)

    def leave(self, row: int, run: Run) -> None:
        """A released row is needed again, or forgotten; does nothing if it was given up before."""
        if self._ledger.table.recipe_after[row] != NOT_LISTED:
            self._take_out(row, row, run.client, 1, run.argument_bytes(row))

    def leave_rows(self, rows: range, run: Run) -> None:
        """Released rows of a run are forgotten; those that were given up before are passed over."""
        last, step = rows[-1], rows.step
        listed = self._ledger.table.recipe_after[rows.start : rows.stop : step]
        if listed.count(NOT_LISTED) == len(rows):
            return
        if listed[:-1] == array("i", range(rows.start + step, last + 1, step)) and listed[-1] != NOT_LISTED:
            self._take_out(rows.start, last, run.client, len(rows), run.argument_bytes_of_rows(rows))
            self._ledger.table.recipe_after[rows.start : rows.stop : step] = array("i", (NOT_LISTED,)) * len(rows)
        else:
            for row in rows:
                self.leave(row, run)

    def _take_out(self, first: int, last: int, client: ClientRecord, count: int, nbytes: int) -> None:
        """Take linked rows out of their client's list."""
        table = self._ledger.table
        before, after = table.recipe_before[first], table.recipe_after[last]
        table.recipe_after[last] = NOT_LISTED
        if before >= 0:
            table.recipe_after[before] = after
        else:
            client.oldest_recipe = after
        if after >= 0:
            table.recipe_before[after] = before
        else:
            client.newest_recipe = before
        client.recipe_rows -= count
        client.recipe_bytes -= nbytes

    def disinherit(self, row: int) -> int:
        """The row is no recipe (any more): its heirs can no longer be computed again, and need their inputs no more.

        How many inputs and heirs were looked at.
        """
        table = self._ledger.table
        is_walked = row in table.walked
        table.walked.add(row)  # it is about to lose all its heirs: to rebuild its edges in between would be for nothing
        looked_at = sum(map(self._lose_recipe, table.rows_of_edges(row)))
        looked_at += sum(map(self._lose_recipes, tuple(table.fans.get(row, ()))))
        if not is_walked:
            table.walked.discard(row)
        return looked_at

    def _lose_recipe(self, row: int) -> int:
        """The row cannot be computed again; how many inputs and heirs were looked at."""
        table = self._ledger.table
        if table.flags[row] & NO_RECIPE:
            return 1
        table.flags[row] |= NO_RECIPE
        sources = table.inputs_of(row)
        self._unneeded.extend(table.drop_heirs(sources))
        return 1 + len(sources)

    def _lose_recipes(self, fan: Fan) -> int:
        """None of these rows can be computed again; how many inputs and heirs were looked at."""
        table, run = self._ledger.table, fan.run
        if not run.live:
            return 0
        span = slice(fan.start, fan.stop)
        states, flags = table.state[span], table.flags[span]
        if FREE in states or any(flags.translate(_ONLY_NO_RECIPE)):
            return sum(self._lose_recipe(row) for row, state in zip(fan.rows, states, strict=True) if state != FREE)
        table.flags[span] = flags.translate(_WITH_NO_RECIPE)
        sources = run.inputs_of_rows(fan.rows)
        self._unneeded.extend(table.drop_heirs(sources))
        return len(states) + len(sources)
