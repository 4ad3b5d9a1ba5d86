"""What clients no longer want, want in any case, and want again: release, keep, cancel, retry."""

from __future__ import annotations

from collections.abc import Callable

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.table import (
    DELIVERED,
    FAILED,
    GRANTED,
    KEPT,
    OWNER_WANTS,
    READY,
    RELEASED,
    WAITING,
)

__all__ = ["Wants"]

ROWS_PER_STEP = 1024  # rows released or cancelled in one step of the loop: below 5 ms


class Wants:
    """Applies changes of clients' wants to the ledger."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, end: Callable[[ClientRecord], None]) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self._end = end

    def defer(self, what: str, client: ClientRecord, runs: list[int]) -> None:
        """Note a release, a cancel or a retry, to be done in order, in steps that do not hold the loop up."""
        for position in range(0, len(runs), 2):
            self.ledger.deferred.append((what, client, runs[position], runs[position + 1]))

    def work_deferred(self) -> None:
        """Do a step of what was noted."""
        deferred = self.ledger.deferred
        budget = ROWS_PER_STEP
        while deferred and budget > 0:
            what, client, first, count = deferred[0]
            if what == "end":
                deferred.popleft()
                self._end(client)
                continue
            step = min(count, budget)
            if step == count:
                deferred.popleft()
            else:
                deferred[0] = (what, client, first + step, count - step)
            budget -= step
            if what == "release":
                self._release(client, first, step)
            elif what == "cancel":
                self.cancel(client, [first, step])
            else:
                self.retry(client, [first, step])

    def _release(self, client: ClientRecord, first: int, count: int) -> None:
        table, lifecycle = self.ledger.table, self.lifecycle
        flags = table.flags
        for number, row, length in list(client.rows(first, count)):
            run = self.ledger.run(row)
            if number in client.aliases:  # perhaps of a task of its own, whose future came back inside a value
                self._drop_alias(client, number, row)
                continue
            if self.lifecycle.release_plain(run, row, row + length):
                continue
            for current in range(row, row + length):
                if flags[current] & OWNER_WANTS:
                    flags[current] &= ~(OWNER_WANTS | DELIVERED)
                    lifecycle.unhold(current)

    def _drop_alias(self, client: ClientRecord, number: int, row: int) -> None:
        del client.aliases[number]
        others = [entry for entry in self.ledger.aliases_of[row] if entry != (client, number)]
        if others:
            self.ledger.aliases_of[row] = others
        else:
            del self.ledger.aliases_of[row]
        self.lifecycle.unhold(row)

    def await_(self, client: ClientRecord, runs: list[int]) -> None:
        """Somebody waits: small values of these runs travel with their notice."""
        for position in range(0, len(runs), 2):
            for _, row, _ in client.rows(runs[position], runs[position + 1]):
                self.ledger.run(row).awaited = True

    def keep(self, client: ClientRecord, runs: list[int]) -> None:
        """Run these to the end whoever wants them."""
        table = self.ledger.table
        for position in range(0, len(runs), 2):
            for _, row, length in client.rows(runs[position], runs[position + 1]):
                for current in range(row, row + length):
                    if table.state[current] in (WAITING, READY, GRANTED) and not table.flags[current] & KEPT:
                        table.flags[current] |= KEPT
                        table.holds[current] += 1

    def cancel(self, client: ClientRecord, runs: list[int]) -> None:
        """Stop tasks and all that depends on them, except what another client wants and what that needs."""
        ledger, table = self.ledger, self.ledger.table
        affected: dict[int, None] = {}
        stack: list[int] = []
        for position in range(0, len(runs), 2):
            for _, row, length in client.rows(runs[position], runs[position + 1]):
                stack.extend(range(row, row + length))
        while stack:
            row = stack.pop()
            if row not in affected and table.state[row] in (WAITING, READY, GRANTED):
                affected[row] = None
                stack.extend(table.dependents(row))
        spared = self._wanted_elsewhere(client, affected)
        for row in affected:
            details = {"type": "CancelledError", "message": f"{ledger.key(row)} was cancelled", "key": ledger.key(row)}
            failure = Failure("cancelled", b"", details, row, ledger.run(row).identity)
            if row not in spared:
                if table.state[row] in (WAITING, READY, GRANTED):
                    self.lifecycle.fail(row, failure)
            elif ledger.run(row).client is client and table.flags[row] & OWNER_WANTS:
                table.flags[row] &= ~(OWNER_WANTS | DELIVERED)
                ledger.tell_failed(client, ledger.number(row), failure)
                self.lifecycle.unhold(row)

    def _wanted_elsewhere(self, client: ClientRecord, affected: dict[int, None]) -> set[int]:
        """Of the affected rows, those that another client wants, and those that these need."""
        ledger, table = self.ledger, self.ledger.table
        spared: set[int] = set()
        for row in affected:
            others = any(other is not client for other, _ in ledger.aliases_of.get(row, ()))
            if others or (ledger.run(row).client is not client and table.flags[row] & OWNER_WANTS):
                spared.add(row)
        stack = list(spared)
        while stack:
            for source in table.inputs_of(stack.pop()):
                if source in affected and source not in spared:
                    spared.add(source)
                    stack.append(source)
        return spared

    def retry(self, client: ClientRecord, runs: list[int]) -> None:
        """Run failed tasks again: those named, the ones whose failure they share, and all that failed with them."""
        ledger, table = self.ledger, self.ledger.table
        roots: dict[int, None] = {}
        for position in range(0, len(runs), 2):
            for number in range(runs[position], runs[position] + runs[position + 1]):
                current = client.row(number)
                self._want_again(client, number, current)
                failure = ledger.failures.get(current)
                if failure is not None and table.state[current] == FAILED:
                    roots[self._root(current, failure)] = None
        revived: dict[int, None] = {}
        stack = list(roots)
        while stack:
            row = stack.pop()
            if row not in revived and table.state[row] == FAILED:
                revived[row] = None
                stack.extend(table.dependents(row))
        for row in revived:
            del ledger.failures[row]
            for facts in (ledger.failed_runs, ledger.deaths, ledger.missed):
                facts.pop(row, None)
            table.state[row] = RELEASED
            ledger.tell_wanting(row, None)
            self.lifecycle.enter_recipes(row, ledger.run(row))
        for row in revived:
            if table.holds[row] > 0:
                self.lifecycle.revive(row)

    def _want_again(self, client: ClientRecord, number: int, row: int) -> None:
        """A client retries something. Its cancel may have come too late, or another client's want outweighed it."""
        ledger, table = self.ledger, self.ledger.table
        if row < 0:
            why = "the task was cancelled and forgotten before it was retried"
            ledger.tell_forgotten(client, number, why, "submit the task again")
            return
        if number not in client.aliases and not table.flags[row] & OWNER_WANTS:
            table.flags[row] |= OWNER_WANTS
            table.holds[row] += 1
        self.lifecycle.catch_up(client, number, row)

    def _root(self, row: int, failure: Failure) -> int:
        root = failure.row
        if root >= 0:
            run = self.ledger.table.run_of[root]
            if run is not None and run.identity == failure.run_identity and self.ledger.table.state[root] == FAILED:
                return root
        return row
