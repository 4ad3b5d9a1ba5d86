"""What must be true of recipes between any two events; `invariants.check` calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scheduler.table import NOT_LISTED, RELEASED

if TYPE_CHECKING:
    from cluster.scheduler.clients import ClientRecord
    from cluster.scheduler.ledger import Ledger

__all__ = ["check_recipes"]


def check_recipes(ledger: Ledger, live: list[int]) -> None:
    """Each client's list holds its recipes, and is counted right; what is kept for an heir can be given up."""
    table = ledger.table
    kept: dict[bytes, list[int]] = {}
    for row in live:
        if table.recipe_after[row] != NOT_LISTED:
            assert table.state[row] == RELEASED, f"row {row} is listed as a recipe, and was not released"
            kept.setdefault(ledger.run(row).client.identity, []).append(row)
        elif table.state[row] == RELEASED and table.heirs[row] > 0 and table.holds[row] == 0:
            raise AssertionError(f"the recipe {row} would never be given up")
    for identity, client in ledger.clients.items():
        mine = kept.get(identity, [])
        listed = _listed(ledger, client)
        assert sorted(listed) == mine, f"client {client.name} lists the recipes {listed}, and has {mine}"
        counted = (client.recipe_rows, client.recipe_bytes)
        found = (len(mine), sum(ledger.run(row).argument_bytes(row) for row in mine))
        assert counted == found, f"client {client.name} counts recipes and bytes {counted}, and has {found}"


def _listed(ledger: Ledger, client: ClientRecord) -> list[int]:
    """The rows of a client's list, oldest first."""
    table, found, before, row = ledger.table, list[int](), -1, client.oldest_recipe
    while row >= 0 and len(found) <= client.recipe_rows:
        assert table.recipe_before[row] == before, f"the recipes of client {client.name} are torn at row {row}"
        found.append(row)
        before, row = row, table.recipe_after[row]
    assert before == client.newest_recipe, f"the recipes of client {client.name} do not end where they should"
    return found
