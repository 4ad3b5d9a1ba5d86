"""What must be true of actors and their calls between any two events; `invariants.check` calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scheduler.actor_desk import CALLS_AHEAD
from cluster.scheduler.actors import Line
from cluster.scheduler.table import FINISHED, GRANTED, WAITING, Table

if TYPE_CHECKING:
    from cluster.scheduler.ledger import Ledger

__all__ = ["check_actors"]


def check_actors(ledger: Ledger, live: list[int]) -> None:
    """Actors live where their value is, and a call that has not ended stands in its line once, or is granted."""
    table = ledger.table
    lines = {(row, client): line for row, record in ledger.actors.items() for client, line in record.lines.items()}
    for row, record in ledger.actors.items():
        assert ledger.run(row).makes_actor, f"row {row} is listed as an actor"
        lives = table.state[row] == FINISHED and record.worker in ledger.workers
        assert lives == (record.worker >= 0), f"the actor of row {row} is said to live at worker {record.worker}"
    for row in live:
        run = ledger.run(row)
        if run.makes_actor and table.state[row] == FINISHED:
            assert row in ledger.actors, f"row {row} is an actor that nobody knows"
        if run.calls_actor and table.inputs_of(row):
            _check_call(ledger, row, lines.get((table.inputs_of(row)[-1], run.client.identity), Line()))
    for line in lines.values():
        held_by = line.held_by
        assert held_by < 0 or held_by in line.granted, f"call {held_by} has ended, and holds up its line"


def _check_call(ledger: Ledger, row: int, line: Line) -> None:
    table = ledger.table
    waits = table.state[row] == WAITING
    standing = line.rows.count((row, ledger.run(row).identity))
    assert (table.state[row] == GRANTED) == (row in line.granted), f"call {row} is granted, or not: its line errs"
    assert not waits or standing == 1, f"call {row} waits, and stands {standing} times in its line"
    if waits and not table.waiting[row] and line.held_by < 0 and len(line.granted) < CALLS_AHEAD:
        first = next(at for at, identity in line.rows if _waits(table, at, identity))
        assert first != row, f"call {row} is the first of its line, and is not granted"


def _waits(table: Table, row: int, identity: int) -> bool:
    run = table.run_of[row]
    return run is not None and run.identity == identity and table.state[row] == WAITING
