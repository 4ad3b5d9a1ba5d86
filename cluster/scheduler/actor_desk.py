"""Actors: objects that live at a worker in a process of their own, and the calls of their methods.

An actor's *creation* is a task like any other, but for three things: its worker runs it in a process beside the slots,
it counts for none, and what it takes of the worker's `resources` stays taken while the actor lives. The actor lives as
long as its creation's value is held; then its process is ended (`EndActor`). If its process or its worker dies, the
creation fails after it had succeeded (`Lifecycle.lose_actor`), and so does every call that has not ended.

A *call* is a task whose last input is the actor's creation. It is never ready for just any worker: once its inputs
exist it waits in its client's *line* at the actor, and is granted to the actor's worker, beside its slots, when all
calls in front of it were. So each client's calls run in the order of their submission, and wait for nobody else's. A
call that takes values besides may have to wait for them at the worker, and may come back from there, so nothing of its
line is granted before it has ended. Neither a creation that succeeded nor a call is ever computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from cluster.scheduler.actors import ActorRecord, Line
from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.table import WAITING, Run
from cluster.scheduler.workers import WorkerRecord
from cluster.wire import messages

__all__ = ["CALLS_AHEAD", "ActorDesk"]

CALLS_AHEAD = 256  # of one line; they lie in the agent's memory
BYTES_PER_GRANT = 1 << 20

Give: TypeAlias = Callable[[WorkerRecord, Run, list[tuple[int, int]], float], object]
"""Grants rows of a run to a worker."""


class ActorDesk:
    """The actors of a scheduler, by the rows of their creations."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._due: dict[tuple[int, bytes], None] = {}  # lines of which something may be granted

    # ------------------------------------------------------------------ actors

    def made(self, row: int, run: Run, worker: WorkerRecord) -> None:
        """The creation has succeeded there."""
        record = self._ledger.actors.setdefault(row, ActorRecord())
        record.worker = worker.index
        assert run.lane is not None
        record.resources = run.lane.restriction.resources
        for name, amount in record.resources:
            worker.available[name] -= amount
        worker.actors += 1

    def end(self, row: int) -> None:
        """If the actor of that creation lives, it does no longer; the worker, if it is there, ends its process."""
        record = self._ledger.actors.get(row)
        if record is None or record.worker < 0:
            return
        worker = self._ledger.workers.get(record.worker)
        record.worker = -1
        if worker is not None and not worker.lost:
            for name, amount in record.resources:
                worker.available[name] += amount
            worker.actors -= 1
            self._ledger.send(worker.peer, messages.EndActor(self._ledger.table.attempt[row], row))

    def living_at(self, worker_index: int) -> list[int]:
        """The rows of the actors at a worker."""
        return [row for row, record in self._ledger.actors.items() if record.worker == worker_index]

    def lives_at(self, row: int, worker_index: int) -> bool:
        """Whether this is an actor of that worker."""
        record = self._ledger.actors.get(row)
        return record is not None and record.worker == worker_index

    def forget(self, row: int) -> None:
        """The row of a creation is freed."""
        self._ledger.actors.pop(row, None)

    # ------------------------------------------------------------------ calls

    def enlist(self, run: Run, but: Iterable[int]) -> list[int]:
        """Put new calls, but for some rows, last in their lines. The rows whose last input is no actor are returned."""
        strangers = []
        table = self._ledger.table
        for row in range(run.start, run.start + run.count):
            if row in but:
                continue
            actor = table.inputs_of(row)[-1]
            if self._ledger.run(actor).makes_actor:
                self._line(row, run).rows.append((row, run.identity))
            else:
                strangers.append(row)
        return strangers

    def startable(self, row: int, run: Run) -> None:
        """All inputs of a call exist."""
        self._due[self._ledger.table.inputs_of(row)[-1], run.client.identity] = None

    def call_left(self, row: int, run: Run) -> None:
        """A call has ended, or will not be run: those behind it may be granted."""
        inputs, client = self._ledger.table.inputs_of(row), run.client.identity
        if not inputs:
            return  # its actor was gone when it came
        actor = inputs[-1]
        record = self._ledger.actors.get(actor)
        line = None if record is None else record.lines.get(client)
        if line is not None:
            line.granted.discard(row)
            if line.held_by == row:
                line.held_by = -1
            self._due[actor, client] = None

    def came_back(self, row: int, run: Run) -> None:
        """A granted call did not run: it is the first of its line again."""
        self.call_left(row, run)
        self._line(row, run).rows.appendleft((row, run.identity))

    @property
    def has_due(self) -> bool:
        """Whether `grant` has something to do."""
        return bool(self._due)

    def grant(self, now: float, give: Give) -> None:
        """Grant what may start."""
        due, self._due = self._due, {}
        for actor, client in due:
            record = self._ledger.actors.get(actor)
            line = None if record is None else record.lines.get(client)
            if record is None or line is None:
                continue
            worker = self._ledger.workers.get(record.worker)  # None: it is being made, or lost; then they wait, or fail
            while worker is not None and line.held_by < 0 and (rows := self._next_calls(line)):
                line.granted.update(rows)
                if self._takes_values(rows[0]):
                    line.held_by = rows[0]
                give(worker, self._ledger.run(rows[0]), _spans(rows), now)
            if not line.rows and not line.granted:
                del record.lines[client]

    def _next_calls(self, line: Line) -> list[int]:
        """Take the calls of one run out of the line that may be granted now."""
        self._drop_stale(line)
        table = self._ledger.table
        rows: list[int] = []
        nbytes = 0
        while line.rows and len(rows) + len(line.granted) < CALLS_AHEAD and nbytes < BYTES_PER_GRANT:
            row, identity = line.rows[0]
            run = table.run_of[row]
            if run is None or run.identity != identity or table.state[row] != WAITING or table.waiting[row]:
                break
            takes_values = self._takes_values(row)
            if rows and (takes_values or run is not table.run_of[rows[0]]):
                break
            line.rows.popleft()
            rows.append(row)
            nbytes += run.argument_bytes(row)
            if takes_values:
                break
        return rows

    def _drop_stale(self, line: Line) -> None:
        """Take out what will not be run at the head."""
        table = self._ledger.table
        while line.rows:
            row, identity = line.rows[0]
            run = table.run_of[row]
            if run is not None and run.identity == identity and table.state[row] == WAITING:
                return
            line.rows.popleft()

    def _takes_values(self, row: int) -> bool:
        return len(self._ledger.table.inputs_of(row)) > 1

    def _line(self, row: int, run: Run) -> Line:
        record = self._ledger.actors.setdefault(self._ledger.table.inputs_of(row)[-1], ActorRecord())
        return record.lines.setdefault(run.client.identity, Line())

    # ------------------------------------------------------------------ what grants and failures say

    def grant_options(self, run: Run, row: int) -> dict[str, Any]:
        """What an agent has to know of a creation or a call beside the task."""
        if run.calls_actor:
            return {"actor_call": True}
        key = run.options.get("key")
        number = self._ledger.number(row)
        return {"actor": [run.client.identity, number, run.label, -1, None if key is None else str(key)]}

    def lost_details(self, row: int, message: str) -> dict[str, Any]:
        """What is told of an actor that was lost."""
        return {
            "type": "TaskDied",
            "message": f"the actor {self._ledger.key(row)} is lost, and its state with it: {message}",
            "key": self._ledger.key(row),
            "remedy": "make a new actor; what must outlive its process belongs into files, or into values",
        }

    def failure_of(self, row: int) -> Failure | None:
        """Why the actor that this call is for is lost, if it is."""
        return self._ledger.failures.get(self._ledger.table.inputs_of(row)[-1])


def _spans(rows: list[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for row in rows:
        if spans and spans[-1][1] == row:
            spans[-1] = (spans[-1][0], row + 1)
        else:
            spans.append((row, row + 1))
    return spans
