"""What a worker that is lost had: its runs are given to others, its values forgotten, a number of rows at a time.

A lost worker stays in the ledger, granted nothing and asked for nothing, until its last row is dealt with. What happens
meanwhile sees the rows that are left as it saw them before the loss was noticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.orders import Orders
from cluster.scheduler.placement import Placement
from cluster.scheduler.suspects import AGENT_DEATHS_ALLOWED, Suspicion
from cluster.scheduler.table import FINISHED, GRANTED
from cluster.scheduler.workers import WorkerRecord

__all__ = ["WorkerLosses"]

POSITIONS_PER_ROW = 64  # of the table's column that are searched in the time that dealing with one row takes
SEARCHED_AT_ONCE = 32_768


class WorkerLosses:
    """Takes lost workers out of the ledger."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, placement: Placement, orders: Orders) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self.placement = placement
        self.orders = orders
        self._under_way: deque[Iterator[int]] = deque()

    @property
    def pending(self) -> bool:
        """Whether `work` has something to do."""
        return bool(self._under_way)

    def work(self, rows: int) -> int:
        """Deal with about so many rows of lost workers; how many of the allowed rows are left."""
        while rows > 0 and self._under_way:
            step = next(self._under_way[0], None)
            if step is None:
                self._under_way.popleft()
            else:
                rows -= step
        return rows

    def gone(self, worker: WorkerRecord, reason: str) -> None:
        """A worker is lost: what it ran will run again elsewhere, what only it held be computed again if needed."""
        ledger = self.ledger
        kind = "worker_left" if worker.draining else "worker_lost"
        had = f"it had {worker.outstanding} tasks and held {worker.held_values} values"
        ledger.events.note(kind, worker.name, f"{reason}; {had}")
        charges = not worker.draining  # one that was asked to end has not died of a task
        worker.lost = worker.draining = True
        del ledger.worker_called[worker.name], ledger.worker_called[worker.address]
        ledger.worker_of_peer.pop(worker.peer, None)
        self.placement.refresh(worker)
        for attempt, row in list(worker.suspended):
            self.lifecycle.nesting.end_suspension(worker, attempt, row)
        for under_way in ledger.pushing.values():
            under_way.pop(worker.index, None)
        self.placement.spreading.worker_lost(worker)
        for row in self.lifecycle.actors.living_at(worker.index):
            self.lifecycle.lose_actor(row, f"its worker {worker.name} was lost")
        self._under_way.append(self._dismantle(worker, charges))

    def _dismantle(self, worker: WorkerRecord, charges: bool) -> Iterator[int]:
        """Deal with all that the worker had; yields how many rows were dealt with since the last time."""
        ledger, table, lifecycle, index = self.ledger, self.ledger.table, self.lifecycle, worker.index
        why = _gone(worker)
        for row in [row for row, more in table.replicas.items() if index in more]:
            lifecycle.drop_replica(row, index, why)
            yield 1
        # The values before the runs: a run that lacks one of them then waits for it, and is not granted in vain.
        for row in self._rows_at(index):
            if row < 0:
                yield -row
            elif table.state[row] == FINISHED:
                lifecycle.drop_replica(row, index, why)
                yield 1
        for row in self._rows_at(index):
            if row < 0:
                yield -row
            elif table.state[row] == GRANTED:
                self._take_back(row, worker, charges)
                yield 1
        for attempt, grant in list(worker.grants.items()):  # of runs that were to stop
            grant.run.client.granted_seconds -= worker.end(attempt, grant.left)
        worker.stopping.clear()
        del ledger.workers[index]
        ledger.leave_host(worker.host)
        self.orders.worker_gone(worker)  # last, since whoever hears of it looks at the rows

    def _rows_at(self, index: int) -> Iterator[int]:
        """The rows that a worker runs or holds, by one search through the column, since workers are seldom lost.

        What was searched in vain comes as a negative number of rows that would have taken as long.
        """
        column = self.ledger.table.holder
        position = 0
        while position < len(column):
            stop = min(len(column), position + SEARCHED_AT_ONCE)
            start = position
            while position < stop:
                try:
                    found = column.index(index, position, stop)
                except ValueError:
                    position = stop
                else:
                    yield found
                    position = found + 1
            yield -(1 + (stop - start) // POSITIONS_PER_ROW)

    def _take_back(self, row: int, worker: WorkerRecord, charges: bool) -> None:
        """A run was lost with its worker: it runs again, unless it has cost too many workers."""
        ledger, table = self.ledger, self.ledger.table
        attempt = table.attempt[row]
        grant = worker.grants[attempt]
        grant.run.client.granted_seconds -= worker.end(attempt, 1)
        if charges and table.holds[row] and not grant.run.calls_actor:  # calls are not run again in any case
            suspicion = ledger.suspect(row, worker)
            if suspicion.deaths >= AGENT_DEATHS_ALLOWED:
                self.lifecycle.fail(row, self._failure(row, suspicion))
                return
        self.lifecycle.requeue(row, "run lost", _gone(worker))

    def _failure(self, row: int, suspicion: Suspicion) -> Failure:
        names = suspicion.workers
        return self.ledger.failure(
            row,
            "died",
            "TaskDied",
            f"its whole worker ended while it ran (workers {', '.join(names)})",
            worker=names[-1],
            attempts=suspicion.deaths,
            remedy="see what the workers, or their hosts' kernel logs, say of their end: the task may have used up "
            "the memory of the host, or ended processes other than its own",
        )


def _gone(worker: WorkerRecord) -> str:
    return f"worker {worker.name} at {worker.address} is gone"
