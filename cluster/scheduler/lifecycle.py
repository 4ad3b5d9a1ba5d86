"""The states of a task, and what each change drags along.

::

                 inputs exist          granted             done
      WAITING ───────────────► READY ──────────► GRANTED ──────────► FINISHED
         ▲  ▲                    │                  │                   │  nobody needs the value
         │  └── an input is lost ┘                  │                   ▼
         │                                          │               RELEASED ──► free (no heir is left)
         ├────────────── its run was lost ──────────┘                   │
         └────────────── its value is needed again ─────────────────────┘
      any unfinished state ──► FAILED ──► (retry) WAITING

Two counters rule what is kept. `holds` counts the reasons to have a row's *value*; at zero the value is released.
`heirs` counts the rows whose recomputation would need the row; a released row with heirs stays as a recipe. Freeing a
row takes it from its inputs' heirs, so whole ancestries go when their last descendant does. All walks are loops, never
recursion: a chain may be a million long.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from cluster.scheduler import holdings
from cluster.scheduler.actor_desk import ActorDesk
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.homes import home
from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.lineage import Lineage
from cluster.scheduler.linked import ROW_IN_INPUTS, LinkedRows
from cluster.scheduler.nesting_desk import NestingDesk
from cluster.scheduler.recomputing import cannot_recompute
from cluster.scheduler.sizes import SMALL_BYTES
from cluster.scheduler.table import (
    ABANDONED,
    DELIVERED,
    FAILED,
    FINISHED,
    FREE,
    GRANTED,
    INTERMEDIATE,
    KEPT,
    NO_RECIPE,
    NOT_COUNTED,
    NOT_LISTED,
    OWNER_WANTS,
    READY,
    RELEASED,
    WAITING,
    Run,
)
from cluster.scheduler.workers import WorkerRecord
from cluster.wire import messages

__all__ = ["Lifecycle"]


class Cascade:
    """A failed row whose dependents are failing, one after the other."""

    __slots__ = ("edge", "failure", "identity", "in_fans", "row")

    def __init__(self, row: int, identity: int, edge: int, in_fans: Iterator[int], failure: Failure) -> None:
        self.row = row
        self.identity = identity  # of its run
        self.edge = edge  # the next one
        self.in_fans = in_fans  # the dependents that have no edge
        self.failure = failure


class Lifecycle:
    """Moves rows between states and keeps holds, heirs and notices right."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._unneeded: list[int] = []  # rows whose holds fell to zero, not yet looked at
        self._cascades: list[Cascade] = []
        self.actors = ActorDesk(ledger)
        self.nesting = NestingDesk(ledger, self.unhold, self.let_go, self._unneeded.append)
        self.lineage = Lineage(ledger, self._unneeded)
        self.linked = LinkedRows(ledger, self._unneeded, self.lineage, self._may_start, self._forget_run)

    # ------------------------------------------------------------------ starting

    def start_row(self, row: int, run: Run) -> None:
        """A new or revived row, all inputs held: make it wait or ready, or fail with an input."""
        table = self.ledger.table
        state = table.state
        missing = 0
        revive = []
        for source in table.inputs_of(row):
            source_state = state[source]
            if source_state == FINISHED:
                continue
            if source_state == FAILED:
                state[row] = WAITING
                self.fail(row, self.ledger.failures[source])
                return
            missing += 1
            if source_state == RELEASED:
                revive.append(source)
        table.waiting[row] = missing
        state[row] = WAITING
        if missing == 0:
            self._may_start(row, run)
        for source in revive:
            self.revive(source)

    def _may_start(self, row: int, run: Run) -> None:
        """All inputs of a waiting row have values."""
        if run.is_join:
            # Its holds on its inputs stay, as those of a value on what it contains.
            table = self.ledger.table
            table.state[row] = FINISHED
            self.ledger.contains[row] = list(table.inputs_of(row))
            self.linked.wake(row, row + 1)
            self._settle(row)
        elif run.calls_actor:
            self.actors.startable(row, run)
        else:
            owner = home(self.ledger, row, run, self.ledger.table.inputs_of(row))
            self.ledger.make_ready(run, owner, row, row + 1)

    def join(self, sources: array[int], run: Run) -> int:
        """A row that stands for the inputs which all tasks of a run share, and holds them."""
        table = self.ledger.table
        join = table.allocate(1, run.client, -1)
        join.is_join = True
        table.attempt[join.start] = 0  # no value has that name; the row's last value had the one that stands there
        join.label = run.label
        join.depth = table.depth_above(sources)
        join.dependency_starts, join.dependencies = array("I", (0, len(sources))), sources
        table.link(join, join.start)
        return join.start

    def revive(self, row: int) -> None:
        """Compute a released value again, and whatever released values that takes."""
        ledger, table = self.ledger, self.ledger.table
        stack = [row]
        revived = []
        while stack:
            current = stack.pop()
            if table.state[current] != RELEASED or table.holds[current] == 0:
                continue  # what needed it may have failed meanwhile
            run = ledger.run(current)
            self.lineage.leave(current, run)
            table.state[current] = WAITING
            table.waiting[current] = NOT_COUNTED
            if run.offered or run.makes_actor or run.calls_actor or table.flags[current] & NO_RECIPE:
                self.fail(current, cannot_recompute(ledger, current, run), holds_inputs=False)
                continue
            ledger.note(current, "needed again", "its value is computed anew")
            for source in table.inputs_of(current):
                table.holds[source] += 1
                stack.append(source)
            revived.append(current)
        # Sources come later in the list than what needs them; start them first, so that nobody is revived twice.
        for current in reversed(revived):
            if table.state[current] == WAITING:
                self.start_row(current, ledger.run(current))

    def catch_up(self, client: ClientRecord, number: int, row: int) -> None:
        """A client began to want a row: tell it of a value that exists, make one that was released."""
        state = self.ledger.table.state[row]
        if state == FINISHED:
            self.ledger.tell_finished(client, number, b"")
        elif state == RELEASED:
            self.revive(row)

    # ------------------------------------------------------------------ ending

    def finished(self, row: int, worker: WorkerRecord, nbytes: int, piece: bytes) -> None:
        """A granted row has its value on `worker`; `piece` is the value if it came along."""
        ledger = self.ledger
        run = ledger.run(row)
        if ledger.suspects:
            ledger.acquit(row)
        ledger.refusals.pop(row, None)
        if row in ledger.parents:
            self.nesting.run_ended(row)
        if run.calls_actor:
            self.actors.call_left(row, run)
        elif run.makes_actor:
            self.actors.made(row, run, worker)
        self.linked.finish(worker, run, row, array("q", (nbytes,)), array("I", (0, len(piece))), piece)
        for client, number in ledger.aliases_of.get(row, ()):
            carried = b"" if client.congested else piece
            ledger.tell_finished(client, number, carried)
            if carried and client.connected and row in ledger.contains:
                client.filled_aliases.add(number)
        if row in ledger.locating:
            self.answer_locating(row)

    def leave_inputs(self, row: int) -> None:
        """An unfinished task ended: it no longer holds its inputs' values."""
        table = self.ledger.table
        holds = table.holds
        for source in table.inputs_of(row):
            holds[source] -= 1
            if holds[source] == 0:
                self._unneeded.append(source)

    def _settle(self, row: int) -> None:
        """A row has ended: end a keep, answer location requests, see whether anybody needs it."""
        ledger, table = self.ledger, self.ledger.table
        if table.flags[row] & KEPT:
            table.flags[row] &= ~KEPT
            self.unhold(row)
        elif table.holds[row] == 0:
            self._unneeded.append(row)
        if row in ledger.locating:
            self.answer_locating(row)

    def answer_locating(self, row: int) -> None:
        """A row that location requests wait for has ended."""
        for request in self.ledger.locating.pop(row, ()):
            request.ended()

    def fail(self, row: int, failure: Failure, *, holds_inputs: bool = True) -> None:
        """An unfinished row ends without a value. All that depend on it follow, by `cascade`.

        `holds_inputs`: false for a row that was to be revived and cannot be. (It may name inputs that are free by now.)
        """
        ledger, table = self.ledger, self.ledger.table
        state = table.state[row]
        if state not in (WAITING, READY, GRANTED):
            return
        if state == READY:
            ledger.not_ready(row)
        elif state == GRANTED:
            self.stop(row)
            self.nesting.run_ended(row)
        run = ledger.run(row)
        if state != GRANTED:
            ledger.take_arguments(run, 1)
        if run.calls_actor:
            self.actors.call_left(row, run)
        table.state[row] = FAILED
        table.holder[row] = -1
        ledger.refusals.pop(row, None)
        ledger.failures[row] = failure
        ledger.tell_wanting(row, failure)
        if table.has_dependents(row):
            table.walked.add(row)
            in_fans = table.rows_of_fans(row)
            self._cascades.append(Cascade(row, run.identity, table.first_edge[row], in_fans, failure))
        if holds_inputs:
            self.leave_inputs(row)
        self._settle(row)

    @property
    def cascading(self) -> bool:
        """Whether `cascade` has something to do. Nothing is retried before it is done."""
        return bool(self._cascades)

    def cascade(self, rows: int) -> int:
        """Fail what depends on failed rows, about so many now; how many of the allowed rows are left.

        A row that is submitted meanwhile on top of a failed one fails at once, so edges that come later do not matter.
        """
        table, cascades = self.ledger.table, self._cascades
        while cascades and rows > 0:
            rows -= 1
            cascade = cascades[-1]
            row, edge = cascade.row, cascade.edge
            run = table.run_of[row]
            if run is None or run.identity != cascade.identity or table.state[row] == FREE:
                cascades.pop()  # its dependents had gone before
                continue
            if edge >= 0:
                cascade.edge = table.edge_next[edge]
                dependent = table.dependent_of(edge)
            else:
                dependent = next(cascade.in_fans, -1)
                if dependent < 0:
                    cascades.pop()
                    table.walked.discard(row)
            # A dependent that was granted may have got the value already: only a cancel stops it.
            if dependent >= 0 and (cascade.failure.kind == "cancelled" or table.state[dependent] != GRANTED):
                self.fail(dependent, cascade.failure)
        return rows

    def stop(self, row: int) -> None:
        """Order the worker of a granted row to end its run."""
        ledger, table = self.ledger, self.ledger.table
        worker = ledger.workers.get(table.holder[row])
        attempt = table.attempt[row]
        if worker is not None and attempt in worker.grants and (attempt, row) not in worker.stopping:
            worker.stopping[(attempt, row)] = worker.grants[attempt]
            ledger.send(worker.peer, messages.Stop([attempt, row]))

    def requeue(self, row: int, what: str, why: str) -> None:
        """The run of a granted row came to nothing, and it will run again, if it is needed; what happened, and why."""
        table = self.ledger.table
        self.ledger.note(row, what, why)
        run = self.ledger.run(row)
        table.holder[row] = -1
        self.nesting.run_ended(row)
        if table.holds[row] == 0:
            self._give_up(row, run)
            return
        if run.calls_actor:
            self.actors.came_back(row, run)
        self.start_row(row, run)

    def lost(self, row: int, why: str) -> None:
        """The last replica of a finished row's value is gone, and why."""
        ledger, table = self.ledger, self.ledger.table
        run = ledger.run(row)
        if run.offered and run.client.connected:
            return  # its client still has it, and pushes it again when somebody needs it
        if run.makes_actor:
            self.lose_actor(row, why)
            return
        ledger.note(row, "value lost", why)
        if not self._has_sent_bytes(row):
            self._drop_contained(row)
        self._stop_pushing(row)
        table.state[row] = RELEASED
        self._dependents_wait_again(row)
        if table.holds[row] > bool(table.flags[row] & DELIVERED):
            ledger.tell_wanting(row, None)  # who has the bytes already passes over it
            self.lineage.enter(row, run)
            self.revive(row)
        else:
            self.lineage.enter(row, run)
            self._unneeded.append(row)

    def lose_actor(self, row: int, message: str, details: dict[str, Any] | None = None) -> None:
        """The actor of a finished creation is no more: the creation fails after all, and what is to take it."""
        ledger, table = self.ledger, self.ledger.table
        details = {**self.actors.lost_details(row, message), **(details or {})}
        ledger.tell_wanting(row, None)  # else it would go on looking for the value who has not got it
        self._release_value(row)
        self._dependents_wait_again(row)
        table.state[row] = WAITING
        self.fail(row, Failure("died", b"", details, row, ledger.run(row).identity, ledger.now), holds_inputs=False)

    def _dependents_wait_again(self, row: int) -> None:
        """A value that counted as there is not: dependents that have not been granted wait for one input more."""
        ledger, table = self.ledger, self.ledger.table
        for dependent in list(table.dependents(row)):
            state = table.state[dependent]
            if state == READY:
                ledger.not_ready(dependent)
                table.state[dependent] = WAITING
                table.waiting[dependent] = 1
            elif state == WAITING:
                table.waiting[dependent] += 1
            elif state == FINISHED and ledger.run(dependent).is_join:
                del ledger.contains[dependent]  # what it held as finished it holds as waiting
                table.state[dependent] = WAITING
                table.waiting[dependent] = 1
                self._dependents_wait_again(dependent)

    # ------------------------------------------------------------------ holds

    def unhold(self, row: int) -> None:
        """One reason less to have the row's value; what follows from that is `drain`'s."""
        holds = self.ledger.table.holds
        holds[row] -= 1
        if holds[row] == 0:
            self._unneeded.append(row)

    def let_go(self, row: int) -> None:
        """The owner wants the row no more."""
        self.ledger.table.flags[row] &= ~(OWNER_WANTS | DELIVERED)
        self.unwant(row)

    def let_go_plain(self, start: int, stop: int) -> bool:
        """As `let_go` for consecutive rows, by columns; False, and nothing done, when one of them may be special."""
        table, count = self.ledger.table, stop - start
        flags = table.flags
        wanted = flags.count(OWNER_WANTS, start, stop) + flags.count(OWNER_WANTS | DELIVERED, start, stop)
        if wanted != count or self.ledger.contains or max(table.nbytes[start:stop]) > SMALL_BYTES:
            return False
        flags[start:stop] = bytes(count)
        holds = array("i", [reasons - 1 for reasons in table.holds[start:stop]])
        table.holds[start:stop] = holds
        if 0 in holds:
            self._unneeded.extend([row for row, reasons in enumerate(holds, start) if not reasons])
        return True

    def unwant(self, row: int) -> None:
        """One client less wants the row."""
        if row in self.ledger.contains and self.ledger.table.state[row] != FINISHED and not self._has_sent_bytes(row):
            self._drop_contained(row)  # the value was lost, and that client had had the bytes
        self.unhold(row)

    @property
    def has_unneeded(self) -> bool:
        """Whether `drain` has something to do."""
        return bool(self._unneeded or self._cascades or self.ledger.waking or self.lineage.has_too_many)

    def drain(self, rows: int) -> None:
        """Wake, release or forget what is to be, at most so many rows now: an ancestry may be a million long.

        A row may have been wanted again, or freed, since it was noted; that is seen here.
        """
        table, unneeded = self.ledger.table, self._unneeded
        if self.ledger.waking:
            rows = self.linked.wake_some(rows)
        while rows > 0 and (unneeded or self.lineage.has_too_many):
            if not unneeded:
                rows -= 1 + self.lineage.give_up() // ROW_IN_INPUTS
                continue
            rows = self.linked.release(rows)
            if not unneeded or rows <= 0:
                continue
            rows -= 1
            row = unneeded.pop()
            state = table.state[row]
            if state == FREE or table.holds[row] > 0:
                continue
            run = table.run_of[row]
            assert run is not None
            if state == FINISHED:
                self._release_value(row)
                if table.heirs[row] == 0:
                    self._forget(row, run)
                    continue
                self.lineage.enter(row, run)
            elif state in (WAITING, READY):
                if state == READY:
                    self.ledger.not_ready(row)
                self._give_up(row, run)
            elif state == GRANTED:
                # Dropping a future stops nothing that runs: that is for cancels. But nobody hears of what a client that
                # is gone had running, or a task that has ended, and it would keep its slot.
                if not run.client.connected or run.parent == ABANDONED:
                    self.stop(row)
                    self.nesting.run_ended(row)
                    table.holder[row] = -1
                    self._give_up(row, run)
            elif table.heirs[row] == 0:
                if state == RELEASED:
                    self.lineage.leave(row, run)
                self._forget(row, run)
            elif state == RELEASED and table.recipe_after[row] == NOT_LISTED:
                self.lineage.enter(row, run)  # it was given up while its client wanted it, and has got new heirs since

    def _give_up(self, row: int, run: Run) -> None:
        """An unfinished row that nobody needs is not run."""
        if run.calls_actor:
            self.actors.call_left(row, run)
        self.ledger.table.state[row] = RELEASED
        self.ledger.refusals.pop(row, None)
        self.ledger.take_arguments(run, 1)
        self.lineage.enter(row, run)
        self.leave_inputs(row)
        self._unneeded.append(row)

    def release_plain(self, run: Run, start: int, stop: int) -> bool:
        """Release consecutive finished rows by columns, if the owner's want is all that keeps any of them.

        False, and nothing done, when anything about them is special; they are released one by one then.
        """
        ledger, table = self.ledger, self.ledger.table
        count = stop - start
        if (
            run.offered
            or run.has_dependents
            or run.dependency_starts is not None
            or table.state.count(FINISHED, start, stop) != count
            or table.flags.count(OWNER_WANTS, start, stop) + table.flags.count(OWNER_WANTS | DELIVERED, start, stop)
            != count
            or table.holds[start:stop].count(1) != count
            or ledger.has_rare_facts
        ):
            return False
        row = start
        while row < stop:
            attempt, holder = table.attempt[row], table.holder[row]
            end = row + 1
            while end < stop and table.attempt[end] == attempt and table.holder[end] == holder:
                end += 1
            ledger.free_values(holder, attempt, row, end - row, sum(table.nbytes[row:end]))
            row = end
        if table.free_rows(run, range(start, stop)):
            self._forget_run(run)
        return True

    def _release_value(self, row: int) -> None:
        """Order every holder to free the row's value."""
        ledger, table = self.ledger, self.ledger.table
        if row in ledger.actors:
            self.actors.end(row)
        attempt, nbytes = table.attempt[row], table.nbytes[row]
        if table.flags[row] & INTERMEDIATE:
            holdings.forget(ledger, row)
        for worker_index in table.holders(row):
            ledger.free_values(worker_index, attempt, row, 1, nbytes)
        table.holder[row] = -1
        table.replicas.pop(row, None)
        self._stop_pushing(row)
        self._drop_contained(row)
        table.state[row] = RELEASED

    def _stop_pushing(self, row: int) -> None:
        """A worker that is still sent the value will not need it."""
        ledger, attempt = self.ledger, self.ledger.table.attempt[row]
        if row in ledger.copying:
            ledger.uncopied.append(row)
        for worker_index in ledger.pushing.pop(row, ()):
            ledger.order_free(worker_index, attempt, row)
        spread = ledger.spreads.pop(row, None)
        if spread is not None:
            for worker_index in (*spread.under_way, *spread.waiting):
                ledger.order_free(worker_index, attempt, row)

    def _drop_contained(self, row: int) -> None:
        for inside in self.ledger.contains.pop(row, ()):
            self.unhold(inside)

    def _has_sent_bytes(self, row: int) -> bool:
        """Whether a client that wants the row was sent its bytes, perhaps of a value that was lost since.

        The futures inside are held for it: it may unpickle them much later.
        """
        ledger = self.ledger
        return bool(ledger.table.flags[row] & DELIVERED) or any(
            number in client.filled_aliases for client, number in ledger.aliases_of.get(row, ())
        )

    def set_contained(self, row: int, rows: list[int]) -> None:
        """The row's value has futures of these rows inside, and holds them while it exists."""
        holds = self.ledger.table.holds
        for inside in rows:
            holds[inside] += 1
        kept = self.ledger.contains.get(row, []) if self._has_sent_bytes(row) else []
        if kept:
            rows = [*rows, *kept]
        else:
            self._drop_contained(row)
        if rows:
            self.ledger.contains[row] = rows

    # ------------------------------------------------------------------ forgetting

    def _forget(self, row: int, run: Run) -> None:
        """Free a row that nobody holds and nobody would need again; its ancestors that only it needed come next."""
        ledger = self.ledger
        if ledger.suspects:
            ledger.acquit(row)
        for facts in (
            ledger.failures,
            ledger.failed_runs,
            ledger.deaths,
            ledger.missed,
            ledger.pushing,
            ledger.spreads,
        ):
            if facts:
                facts.pop(row, None)
        if row in ledger.locating:
            self.answer_locating(row)
        if run.makes_actor:
            self.actors.forget(row)
        self.linked.forget(row, run)

    def _forget_run(self, run: Run) -> None:
        if run.is_join:
            return
        self.ledger.take_arguments(run, run.count)
        run.client.drop_run(run)
        self.ledger.leave_lane(run)
        self.nesting.forget(run)
        self.forget_client(run.client)
        if run.function is not None:
            run.function.users -= 1
            if run.function.users == 0:
                self.ledger.functions.pop(run.function.identity, None)

    def forget_client(self, client: ClientRecord) -> None:
        """Drop the record of a client that ended, once none of its tasks lives on for others."""
        if client.ended and client.run_count == 0:
            self.ledger.clients.pop(client.identity, None)

    # ------------------------------------------------------------------ losing a worker's rows

    def drop_replica(self, row: int, worker_index: int, why: str) -> None:
        """One worker no longer has the row's value."""
        if holdings.drop_holder(self.ledger, row, worker_index) and self.ledger.table.holder[row] < 0:
            self.lost(row, why)
