"""What clients no longer want, want in any case, and want again: release, keep, cancel, retry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from cluster.scheduler import holdings
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.table import (
    FAILED,
    FREE,
    GRANTED,
    KEPT,
    OWNER_WANTS,
    READY,
    RELEASED,
    WAITING,
)

__all__ = ["Wants"]

UNFINISHED = (WAITING, READY, GRANTED)


class Wants:
    """Applies changes of clients' wants to the ledger."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, end: Callable[[ClientRecord], None]) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self._end = end
        self._cancelling: Iterator[int] | None = None

    def defer(self, what: str, client: ClientRecord, runs: list[int]) -> None:
        """Note a release, a keep, a cancel or a retry, to be done in order, in steps that do not hold the loop up."""
        for position in range(0, len(runs), 2):
            self.ledger.deferred.append((what, client, runs[position], runs[position + 1]))

    @property
    def pending(self) -> bool:
        """Whether `work_deferred` has something to do."""
        return bool(self.ledger.deferred) or self._cancelling is not None

    def work_deferred(self, budget: int) -> int:
        """Do a step of what was noted, about so many rows; how many of them are left.

        Each thing begins when what the one before it drags along has ended.
        """
        deferred, lifecycle = self.ledger.deferred, self.lifecycle
        budget = lifecycle.cascade(budget)
        while budget > 0 and not lifecycle.cascading:
            if self._cancelling is not None:
                done = next(self._cancelling, 0)
                if not done:
                    self._cancelling = None
                budget = lifecycle.cascade(budget - done)
                continue
            if not deferred:
                break
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
            if what == "release":
                self._release(client, first, step)
            elif what == "cancel":
                self._cancel(client, first, step)
            elif what == "keep":
                self._keep(client, first, step)
            elif what == "abandon":
                self.lifecycle.nesting.abandon(client, first, step)
            else:
                self.retry(client, [first, step])
            budget = lifecycle.cascade(budget - step)
        return budget

    def _release(self, client: ClientRecord, first: int, count: int) -> None:
        table, lifecycle = self.ledger.table, self.lifecycle
        flags = table.flags
        for number, row, length in list(client.rows(first, count)):
            run = self.ledger.run(row)
            if number in client.aliases:  # perhaps of a task of its own, whose future came back inside a value
                self._drop_alias(client, number, row)
                continue
            if lifecycle.release_plain(run, row, row + length) or lifecycle.let_go_plain(row, row + length):
                continue
            for current in range(row, row + length):
                if flags[current] & OWNER_WANTS:
                    lifecycle.let_go(current)
                    if self.ledger.table.nbytes[current]:
                        holdings.note(self.ledger, current)

    def _drop_alias(self, client: ClientRecord, number: int, row: int) -> None:
        del client.aliases[number]
        client.filled_aliases.discard(number)
        others = [entry for entry in self.ledger.aliases_of[row] if entry != (client, number)]
        if others:
            self.ledger.aliases_of[row] = others
        else:
            del self.ledger.aliases_of[row]
        self.lifecycle.unwant(row)
        holdings.note(self.ledger, row)

    def await_(self, client: ClientRecord, runs: list[int]) -> None:
        """Somebody waits: small values of these runs travel with their notice."""
        for position in range(0, len(runs), 2):
            for _, row, _ in client.rows(runs[position], runs[position + 1]):
                self.ledger.run(row).awaited = True

    def _keep(self, client: ClientRecord, first: int, count: int) -> None:
        """Run these to the end whoever wants them."""
        table = self.ledger.table
        for _, row, length in client.rows(first, count):
            for current in range(row, row + length):
                if table.state[current] in UNFINISHED and not table.flags[current] & KEPT:
                    table.flags[current] |= KEPT
                    table.holds[current] += 1

    def _cancel(self, client: ClientRecord, first: int, count: int) -> None:
        """Stop tasks and all that depends on them, except what another client wants and what that needs."""
        rows = [row + step for _, row, length in client.rows(first, count) for step in range(length)]
        if len(self.ledger.clients) > 1:
            self._cancelling = self._cancel_sparing(client, rows)
            return
        for row in rows:
            self.lifecycle.fail(row, self._cancelled(row))

    def _cancelled(self, row: int) -> Failure:
        return self.ledger.failure(row, "cancelled", "CancelledError", f"{self.ledger.key(row)} was cancelled")

    def _cancel_sparing(self, client: ClientRecord, rows: list[int]) -> Iterator[int]:
        """Cancel where other clients may want what depends on it; yields how many rows were looked at.

        Between two steps rows may end, and be used for other tasks: a row counts as long as its run is the same.
        """
        ledger, table = self.ledger, self.ledger.table
        affected: dict[int, int] = {}  # row -> its run's identity
        stack = [(row, ledger.run(row).identity) for row in rows if table.state[row] != FREE]
        while stack:
            row, identity = stack.pop()
            if row not in affected and self._is_unfinished(row, identity):
                affected[row] = identity
                before = len(stack)
                stack.extend((dependent, ledger.run(dependent).identity) for dependent in table.dependents(row))
                yield 1 + len(stack) - before
        spared: dict[int, None] = {}
        for row, identity in affected.items():
            if self._is_unfinished(row, identity) and self._wanted_elsewhere(client, row):
                spared[row] = None
            yield 1
        needed = list(spared)
        while needed:
            row = needed.pop()
            sources = table.inputs_of(row) if self._is_unfinished(row, affected[row]) else ()
            for source in sources:
                if source in affected and source not in spared:
                    spared[source] = None
                    needed.append(source)
            yield 1 + len(sources)
        for row, identity in affected.items():
            if self._is_unfinished(row, identity):
                self._cancel_row(client, row, row in spared)
            yield 1

    def _is_unfinished(self, row: int, identity: int) -> bool:
        table = self.ledger.table
        run = table.run_of[row]
        return run is not None and run.identity == identity and table.state[row] in UNFINISHED

    def _cancel_row(self, client: ClientRecord, row: int, spared: bool) -> None:
        ledger, table = self.ledger, self.ledger.table
        if not spared:
            self.lifecycle.fail(row, self._cancelled(row))
        elif ledger.run(row).client is client and table.flags[row] & OWNER_WANTS:
            ledger.tell_failed(client, ledger.number(row), self._cancelled(row))
            self.lifecycle.let_go(row)

    def _wanted_elsewhere(self, client: ClientRecord, row: int) -> bool:
        """Whether another client wants the row."""
        ledger = self.ledger
        if any(other is not client for other, _ in ledger.aliases_of.get(row, ())):
            return True
        return ledger.run(row).client is not client and bool(ledger.table.flags[row] & OWNER_WANTS)

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
            failure = ledger.failures.pop(row)
            ledger.note(row, "retried", f"it had failed ({failure.kind}): {failure.details.get('message', '')}")
            lane = ledger.run(row).lane
            if failure.kind == "unrunnable" and lane is not None:
                lane.unmet_since = math.inf  # a retry waits as long again
            for facts in (ledger.failed_runs, ledger.deaths, ledger.missed):
                facts.pop(row, None)
            ledger.acquit(row)
            table.state[row] = RELEASED
            ledger.tell_wanting(row, None)
            self.lifecycle.lineage.enter(row, ledger.run(row))
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
            holdings.note(ledger, row)
        self.lifecycle.catch_up(client, number, row)

    def _root(self, row: int, failure: Failure) -> int:
        root = failure.row
        if root >= 0:
            run = self.ledger.table.run_of[root]
            if run is not None and run.identity == failure.run_identity and self.ledger.table.state[root] == FAILED:
                return root
        return row
