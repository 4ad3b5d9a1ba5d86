"""Tasks that submit tasks and wait for them: whose child is what, who waits, and what ends with a run.

A task submits through the client of the process that it runs in. Each part that it submits names its *parent*, the run
`(attempt, row)`. When that run ends, in whatever way, its unfinished children are abandoned: their owner wants them no
longer, and what nobody else wants (by a keep, a future in a value, another client) is not run, or is stopped.

A run that waits for tasks is *suspended*. It stays granted, and keeps its resources, but it counts for no slot of its
worker, so another task is granted in its place. Its own ready children come first (`worker.hungry`, `placement.py`),
before all clients' turns: the agent runs them inside the process that waits. What is granted otherwise runs in a
process of its own. The agent says when it has few processes left (`Room`), and then gets such children only.

Why nothing waits for ever, as long as tasks wait for tasks that they submitted (and these need no resource that their
parents keep): look at a task that waits and of whose unfinished children none waits. Each of those runs, which ends by
itself, or may start: it takes no process, since it runs inside the one that waits; and it finds a slot, since whoever
waits takes none, whoever runs ends or waits, and whoever wants to go on has a process and goes first. So some task
always goes on, and the deepest waits end first. A wait for a task of somebody else is only as safe as the room: a
worker has at most eight further processes a slot (`worker/nesting.py`), and when all are taken by such waits, tasks
that were not started by then do not start there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.errors import ProtocolError
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.nesting import Parent
from cluster.scheduler.table import ABANDONED, GRANTED, KEPT, OWNER_WANTS, READY, WAITING, Run
from cluster.scheduler.workers import WorkerRecord
from cluster.wire import messages

if TYPE_CHECKING:
    from cluster.scheduler.ledger import Ledger

__all__ = ["NestingDesk"]


class NestingDesk:
    """Keeps the ledger's `parents`, and the workers' suspended runs."""

    def __init__(
        self,
        ledger: Ledger,
        unhold: Callable[[int], None],
        let_go: Callable[[int], None],
        look_whether_needed: Callable[[int], None],
    ) -> None:
        self._ledger = ledger
        self._unhold = unhold
        self._let_go = let_go
        self._look_whether_needed = look_whether_needed
        self.on_end: list[Callable[[Parent], None]] = []  # told of what else a run had that has ended

    # ------------------------------------------------------------------ children

    def adopt(self, run: Run, parent: Any) -> None:
        """Note who submitted a new run. If that has ended by now, nobody waits for these tasks."""
        if not (isinstance(parent, list) and len(parent) == 2 and all(type(part) is int for part in parent)):
            raise ProtocolError(f"a parent is [attempt, row], not {parent!r:.100}")
        attempt, row = parent
        if self._runs(attempt, row):
            run.parent = row
            self._parent(row).children[run.identity] = run
        else:
            self._abandon_run(run)

    def hand_over(self, client: ClientRecord, message: messages.HandOver) -> None:
        """Hold what lies in a value that is about to be reported."""
        if not self._runs(message.attempt, message.row):
            return
        held = self._parent(message.row).handed_over
        for position in range(0, len(message.runs), 2):
            for _, row, length in client.rows(message.runs[position], message.runs[position + 1]):
                for inside in range(row, row + length):
                    self._ledger.table.holds[inside] += 1
                    held.append(inside)

    def run_ended(self, row: int) -> None:
        """The row is granted no longer: what was of this run goes with it."""
        parent = self._ledger.parents.pop(row, None)
        if parent is None:
            return
        if parent.suspended_at >= 0:
            worker = self._ledger.workers.get(parent.suspended_at)
            if worker is not None:
                worker.hungry.pop(row, None)
        for run in parent.children.values():
            self._abandon_run(run)
        for inside in parent.handed_over:
            self._unhold(inside)
        if parent.acquiring:
            for tell in self.on_end:
                tell(parent)

    def acquires(self, attempt: int, row: int) -> Parent | None:
        """What is known of a run that asks for a lock, which ends with it; None if it has ended by now."""
        return self._parent(row) if self._runs(attempt, row) else None

    def forget(self, run: Run) -> None:
        """The last row of a run was freed."""
        if run.parent >= 0:
            parent = self._ledger.parents[run.parent]
            del parent.children[run.identity]
            parent.ready.pop(run.identity, None)

    def _abandon_run(self, run: Run) -> None:
        run.parent = ABANDONED
        self._ledger.deferred.append(("abandon", run.client, run.first_number, run.count))

    def abandon(self, client: ClientRecord, first: int, count: int) -> None:
        """The run that submitted these has ended: its client no longer wants what is unfinished of them."""
        table, ledger = self._ledger.table, self._ledger
        for number, row, length in list(client.rows(first, count)):
            for current in range(row, row + length):
                if table.state[current] not in (WAITING, READY, GRANTED):
                    continue
                if table.flags[current] & OWNER_WANTS:
                    if not table.flags[current] & KEPT:
                        ledger.tell_ended_with_parent(client, number + current - row, current)
                    self._let_go(current)
                elif table.holds[current] == 0:
                    self._look_whether_needed(current)

    # ------------------------------------------------------------------ waiting

    def worker_says(self, worker: WorkerRecord, message: messages.Suspended | messages.Resumed | messages.Room) -> None:
        """A run at a worker waits for tasks, or goes on; or the worker's processes became few, or many again."""
        if message.change <= worker.newest_change:
            return
        worker.newest_change = message.change
        if isinstance(message, messages.Room):
            worker.room = max(0, message.tasks)
        elif isinstance(message, messages.Resumed):
            self.end_suspension(worker, message.attempt, message.row)
        elif self._runs(message.attempt, message.row) and self._ledger.table.holder[message.row] == worker.index:
            worker.suspend(message.attempt, message.row)
            parent = self._parent(message.row)
            parent.suspended_at = worker.index
            if parent.ready:
                worker.hungry[message.row] = None

    def end_suspension(self, worker: WorkerRecord, attempt: int, row: int) -> None:
        """If this run is suspended, it is no longer."""
        if (attempt, row) in worker.suspended:
            worker.resume(attempt, row)
            if self._runs(attempt, row) and row in self._ledger.parents:  # else the row is another task's by now
                self._ledger.parents[row].suspended_at = -1
                worker.hungry.pop(row, None)

    def _runs(self, attempt: int, row: int) -> bool:
        table = self._ledger.table
        return 0 <= row < len(table) and table.state[row] == GRANTED and table.attempt[row] == attempt

    def _parent(self, row: int) -> Parent:
        return self._ledger.parents.setdefault(row, Parent())
