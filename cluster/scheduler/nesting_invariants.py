"""What must be true of tasks that submit tasks between any two events; `invariants.check` calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scheduler.table import GRANTED

if TYPE_CHECKING:
    from cluster.scheduler.ledger import Ledger

__all__ = ["check_parents"]


def check_parents(ledger: Ledger, live: list[int]) -> None:
    """Parents run, know their children, and are suspended where their worker says so."""
    table = ledger.table
    children: dict[int, list[int]] = {}
    for run in {ledger.run(row).identity: ledger.run(row) for row in live}.values():
        if run.parent >= 0:
            children.setdefault(run.parent, []).append(run.identity)
    for row, identities in children.items():
        assert row in ledger.parents, f"runs {identities} are children of row {row}, which does not know of any"
    for row, parent in ledger.parents.items():
        if table.state[row] != GRANTED:
            raise AssertionError(f"row {row} is a parent, and does not run")
        assert sorted(parent.children) == sorted(children.get(row, ())), f"row {row} is wrong about its children"
        assert parent.ready.keys() <= parent.children.keys(), f"row {row} has ready children that are not its own"
        for run in parent.children.values():
            listed = run.bucket is None or not run.bucket.size or run.identity in parent.ready
            assert listed, f"row {row} does not know that its child run {run.identity} is ready"
        worker = ledger.workers.get(parent.suspended_at)
        if worker is not None:
            assert (table.attempt[row], row) in worker.suspended, f"row {row} waits at a worker that does not know it"
            found = any(run.bucket is not None and run.bucket.size for run in parent.children.values())
            assert not found or row in worker.hungry, f"nobody looks for the ready children of row {row}"
        else:
            assert parent.suspended_at < 0, f"row {row} waits at a worker that is gone"
    for worker in ledger.workers.values():
        for attempt, row in worker.suspended:
            known = row in ledger.parents and ledger.parents[row].suspended_at == worker.index
            stopped = (attempt, row) in worker.stopping
            assert known or stopped, f"worker {worker.name} suspends row {row}, which does not wait there"
        for row in worker.hungry:
            assert row in ledger.parents, f"worker {worker.name} looks for children of row {row}, which has none"
