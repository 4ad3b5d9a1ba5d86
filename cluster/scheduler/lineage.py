"""Released rows that are kept as recipes: each client's, oldest first, in bounds.

A client's recipes are a doubly linked list in two columns of the table, so that a row enters and leaves at constant
cost, whatever its age, and no step of the loop ever walks the list.
"""

from __future__ import annotations

from array import array

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import NO_RECIPE, NOT_LISTED, Run

__all__ = ["Lineage"]

_END = -1


class Lineage:
    """Counts recipes against their clients' bounds and gives up the oldest beyond these."""

    def __init__(self, ledger: Ledger, unneeded: list[int]) -> None:
        self._ledger = ledger
        self._unneeded = unneeded  # shared with the lifecycle: rows to be looked at again

    def enter(self, row: int, run: Run) -> None:
        """A row was released and stays as a recipe."""
        table, client = self._ledger.table, run.client
        last = client.newest_recipe
        table.recipe_before[row] = last
        table.recipe_after[row] = _END
        if last >= 0:
            table.recipe_after[last] = row
        else:
            client.oldest_recipe = row
        client.newest_recipe = row
        client.recipe_rows += 1
        client.recipe_bytes += run.argument_bytes(row)
        self._keep_bounds(client)

    def enter_span(self, start: int, stop: int, run: Run) -> None:
        """Consecutive rows of a run were released and stay as recipes."""
        table, client = self._ledger.table, run.client
        last = client.newest_recipe
        table.recipe_before[start:stop] = array("i", range(start - 1, stop - 1))
        table.recipe_after[start:stop] = array("i", range(start + 1, stop + 1))
        table.recipe_before[start] = last
        table.recipe_after[stop - 1] = _END
        if last >= 0:
            table.recipe_after[last] = start
        else:
            client.oldest_recipe = start
        client.newest_recipe = stop - 1
        client.recipe_rows += stop - start
        client.recipe_bytes += run.argument_bytes(start, stop - start)
        self._keep_bounds(client)

    def _keep_bounds(self, client: ClientRecord) -> None:
        settings = self._ledger.settings
        while client.recipe_rows > settings.lineage_rows or client.recipe_bytes > settings.lineage_bytes:
            oldest = client.oldest_recipe
            self.leave(oldest, self._ledger.run(oldest))
            self.disinherit(oldest)
            self._unneeded.append(oldest)

    def leave(self, row: int, run: Run) -> None:
        """A released row is needed again, or forgotten; does nothing if it was given up before."""
        table, client = self._ledger.table, run.client
        before, after = table.recipe_before[row], table.recipe_after[row]
        if after == NOT_LISTED:
            return
        table.recipe_after[row] = NOT_LISTED
        if before >= 0:
            table.recipe_after[before] = after
        else:
            client.oldest_recipe = after
        if after >= 0:
            table.recipe_before[after] = before
        else:
            client.newest_recipe = before
        client.recipe_rows -= 1
        client.recipe_bytes -= run.argument_bytes(row)

    def leave_span(self, start: int, stop: int, run: Run) -> None:
        """Consecutive released rows of a run are forgotten; those that were given up before are passed over."""
        table, client = self._ledger.table, run.client
        if table.recipe_after[start : stop - 1] != array("i", range(start + 1, stop)):
            for row in range(start, stop):
                self.leave(row, run)
            return
        others = stop - start - 1
        table.recipe_after[start] = table.recipe_after[stop - 1]
        table.recipe_after[start + 1 : stop] = array("i", (NOT_LISTED,)) * others
        client.recipe_rows -= others
        client.recipe_bytes -= run.argument_bytes(start + 1, others)
        self.leave(start, run)

    def disinherit(self, row: int) -> None:
        """Give the row up as a recipe: its heirs can no longer be computed again."""
        table = self._ledger.table
        for heir in list(table.dependents(row)):
            if table.flags[heir] & NO_RECIPE:
                continue
            table.flags[heir] |= NO_RECIPE
            for source in table.inputs_of(heir):
                if table.drop_heir(source) == 0:
                    self._unneeded.append(source)
