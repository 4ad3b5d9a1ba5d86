"""Spans of a graph's rows: what their ends and their releases drag along, in one loop over a report's rows.

Here is what is the same for all rows: holds, heirs, notices, who becomes ready. What side tables say of some row,
`lifecycle.py` sees to, and comes here with that one row; *plain* rows, of which they say nothing, come many at a time.
What is equal for a span is then decided once, and the rows which it wakes become ready as spans again. For a tree of
half a million tasks that is a third of the scheduler's time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from cluster.scheduler import holdings
from cluster.scheduler.fans import Fan, Waking, all_alike
from cluster.scheduler.homes import home
from cluster.scheduler.ledger import INLINE_BYTES_PER_FRAME, Ledger
from cluster.scheduler.lineage import Lineage
from cluster.scheduler.ready import NOBODY
from cluster.scheduler.sizes import SMALL_BYTES
from cluster.scheduler.table import (
    DELIVERED,
    FINISHED,
    FREE,
    GRANTED,
    INTERMEDIATE,
    KEPT,
    NO_RECIPE,
    OWNER_WANTS,
    RELEASED,
    WAITING,
    Run,
)
from cluster.scheduler.workers import WorkerRecord

__all__ = ["LinkedRows"]

ROW_IN_INPUTS = 8  # to leave so many inputs takes as long as to forget a row does otherwise
STRIDED_LEAST = 8  # rows apart from each other: fewer are looked at one by one
TOLD_TOGETHER_LEAST = 16  # fewer rows share a message with others
SPAN_LEAST = 1024  # a span may cost so much, however little of a limit is left: what follows from it comes in spans too


class LinkedRows:
    """Finishes spans of plain rows with inputs or dependents, and releases and forgets such rows."""

    def __init__(
        self,
        ledger: Ledger,
        unneeded: list[int],
        lineage: Lineage,
        may_start: Callable[[int, Run], None],
        run_forgotten: Callable[[Run], None],
    ) -> None:
        self._ledger = ledger
        self._unneeded = unneeded  # rows whose holds fell to zero; shared with the lifecycle
        self._may_start = may_start
        self._lineage = lineage
        self._run_forgotten = run_forgotten

    def are_plain(self, worker: WorkerRecord, run: Run, attempt: int, first: int, stop: int) -> bool:
        """Whether all these rows run there under that attempt, and nothing about them is special."""
        ledger, table, count = self._ledger, self._ledger.table, stop - first
        return not (
            worker.stopping
            or worker.suspended
            or ledger.suspects
            or ledger.refusals
            or ledger.locating
            or ledger.aliases_of
            or run.calls_actor
            or run.makes_actor
            or first < run.start
            or stop > run.start + run.count
            or table.state.count(GRANTED, first, stop) != count
            or table.attempt[first:stop].count(attempt) != count
            or not ledger.parents.keys().isdisjoint(range(first, stop))
        )

    def finish(
        self, worker: WorkerRecord, run: Run, first: int, sizes: array[int], offsets: array[int], blob: bytes
    ) -> None:
        """Granted rows of a run, from `first` on, have values of those sizes; `offsets`: in `blob`, or empty."""
        table = self._ledger.table
        stop = first + len(sizes)
        table.state[first:stop] = bytes((FINISHED,)) * len(sizes)
        table.nbytes[first:stop] = sizes
        worker.held_values += len(sizes)
        total = sum(sizes)
        worker.held_bytes += total
        if table.flags.count(0, first, stop) != len(sizes):
            self._tell(run, first, stop, offsets, blob)
        if total > SMALL_BYTES and max(sizes) > SMALL_BYTES:
            for row in range(first, stop):
                holdings.note(self._ledger, row)
        if run.has_dependents:
            self.wake(first, stop, worker.index)
        holds, unneeded = table.holds, self._unneeded
        # The list is worked off from its end, and rows that rise make one order to free them.
        unneeded.extend([row for row in range(stop - 1, first - 1, -1) if not holds[row]])
        if run.dependency_starts is not None:
            place = first - run.start
            starts = run.dependency_starts
            sources = run.dependencies[starts[place] : starts[place + len(sizes)]]
            left = []
            if all_alike(sources):
                holds[sources[0]] -= len(sources) - 1
                sources = sources[:1]
            for source in sources:
                reasons = holds[source] = holds[source] - 1
                if not reasons:
                    left.append(source)
            self._note_unneeded(left, run, len(sizes))

    def _note_unneeded(self, inputs: list[int], run: Run, count: int) -> None:
        """Inputs of so many tasks of a run are needed no more.

        The tasks of a shuffle each take one of every stretch, in turn: in each stretch lies a row of every task. In one
        order or the other rows follow each other that are as far apart as their neighbours.
        """
        if run.inputs_of_one <= count:
            inputs.sort(reverse=True)
        self._unneeded.extend(inputs)

    def _tell(self, run: Run, first: int, stop: int, offsets: array[int], blob: bytes) -> None:
        """Tell the owner of those values that it wants, and end what kept a row until it ended."""
        ledger, client = self._ledger, run.client
        flags, holds = ledger.table.flags, ledger.table.holds
        if stop - first >= TOLD_TOGETHER_LEAST and flags.count(OWNER_WANTS, first, stop) == stop - first:
            ledger.tell_finished_rows(run, first, stop, offsets, blob)
            return
        for place, row in enumerate(range(first, stop)):
            if flags[row] & OWNER_WANTS:
                piece = b""
                if offsets and not client.congested:
                    piece = blob[offsets[place] : offsets[place + 1]]
                    if len(piece) > INLINE_BYTES_PER_FRAME:
                        piece = b""
                ledger.tell_finished(client, run.first_number + row - run.start, piece)
                if piece and client.connected:
                    flags[row] |= DELIVERED
            if flags[row] & KEPT:
                flags[row] &= ~KEPT
                holds[row] -= 1

    def wake(self, first: int, stop: int, latest: int = NOBODY) -> None:
        """Dependents that waited for one of these rows last become ready, in the order of submission.

        `latest`: the worker that made these rows' values.
        """
        table = self._ledger.table
        state, waiting, run_of = table.state, table.waiting, table.run_of
        edge_row, edge_run, edge_next = table.edge_row, table.edge_run, table.edge_next
        woken: list[int] = []
        for edge in table.first_edge[first:stop]:
            before = len(woken)
            while edge >= 0:
                dependent = edge_row[edge]
                if state[dependent] == WAITING:
                    run = run_of[dependent]
                    if run is not None and run.identity == edge_run[edge]:
                        left = waiting[dependent] = waiting[dependent] - 1
                        if not left:
                            woken.append(dependent)
                edge = edge_next[edge]
            if len(woken) - before > 1:  # edges are kept newest first
                woken[before:] = woken[: before - 1 if before else None : -1]
        if woken:
            self.make_ready(woken, latest)
        if table.fans:
            for row in table.fans.of_any(range(first, stop)):
                for fan in tuple(table.fans[row]):
                    if fan.run.live and not self._wake_alike(fan, latest) and self._count_down(fan):
                        self._ledger.waking.append(Waking(fan, latest))
            self.wake_some(self._ledger.settings.rows_per_step)

    def _wake_alike(self, fan: Fan, latest: int) -> bool:
        """Make all of a fan's rows ready, if that is one step; False, and nothing done, if it is not."""
        ledger, table = self._ledger, self._ledger.table
        run, start, stop, count = fan.run, fan.start, fan.stop, len(fan.rows)
        if (
            not fan.takes_nothing_else
            or ledger.suspects
            or ledger.refusals
            or table.waiting[start:stop] != array("i", (1,)) * count
            or table.state[start:stop] != bytes((WAITING,)) * count
        ):
            return False
        table.waiting[start:stop] = array("i", bytes(4 * count))
        ledger.make_ready(run, home(ledger, start, run, table.inputs_of(start), latest), start, stop)
        return True

    def _count_down(self, fan: Fan) -> bool:
        """Rows of a fan wait for one input less; whether some wait for none now."""
        table, start, stop = self._ledger.table, fan.start, fan.stop
        state, waiting = table.state, table.waiting
        if state[start:stop] == bytes((WAITING,)) * (stop - start):
            waiting[start:stop] = array("i", [left - 1 for left in waiting[start:stop]])
        else:
            for row in fan.rows:
                if state[row] == WAITING:
                    waiting[row] -= 1
        return 0 in waiting[start:stop]

    def wake_some(self, rows: int) -> int:
        """Make rows of fans ready that wait for nothing any more; how many of the allowed rows are left."""
        table, waking = self._ledger.table, self._ledger.waking
        state, waiting = table.state, table.waiting
        while waking and rows > 0:
            piece = waking[0]
            start = piece.start
            piece.start = stop = min(piece.stop, start + rows)
            if piece.start == piece.stop:
                waking.popleft()
            if piece.run.live:
                rows -= stop - start
                woken = [row for row in range(start, stop) if state[row] == WAITING and not waiting[row]]
                self.make_ready(woken, piece.latest)
        return rows

    def make_ready(self, woken: Iterable[int], latest: int = NOBODY) -> None:
        """All inputs of these waiting rows have values; neighbours with one home become ready as one span."""
        ledger, table = self._ledger, self._ledger.table
        run_of = table.run_of
        start = stop = -1
        owner, preferred, listed, shared = NOBODY, NOBODY, None, None
        for row in woken:
            run = run_of[row]
            assert run is not None
            if run.is_join or run.calls_actor:
                self._may_start(row, run)
                continue
            sources = table.inputs_of(row)
            if run is not listed or sources != shared or ledger.refusals:
                preferred, shared = home(ledger, row, run, sources, latest), sources
            if row == stop and run is listed and preferred == owner and not ledger.suspects:  # these stand apart
                stop += 1
                continue
            if listed is not None:
                ledger.make_ready(listed, owner, start, stop)
            start, stop, owner, listed = row, row + 1, preferred, run
        if listed is not None:
            ledger.make_ready(listed, owner, start, stop)

    # ------------------------------------------------------------------ what nobody needs

    def release(self, limit: int) -> int:
        """Release or forget rows from the end of the list of unneeded ones, up to the first that is not plain.

        At most `limit`; how many of these are left.
        """
        ledger, table, unneeded = self._ledger, self._ledger.table, self._unneeded
        if ledger.has_rare_facts or ledger.actors or ledger.suspects or ledger.failures:
            return limit
        state, holds, heirs, run_of = table.state, table.holds, table.heirs, table.run_of
        freed, lineage = _Freed(ledger), self._lineage
        apart = 0  # so many rows are looked at one by one
        while unneeded and limit > 0:
            row = unneeded[-1]
            row_state = state[row]
            run = run_of[row]
            if apart:
                apart -= 1
            elif row_state != FREE and run is not None and not run.offered and not run.is_join:
                rows = self._neighbours(run, max(limit, SPAN_LEAST) // (1 + run.inputs_of_one // ROW_IN_INPUTS))
                cost = self._release_rows(rows, run, freed) if len(rows) > 1 else 0
                if cost:
                    limit -= cost
                    continue
                apart = len(rows) - 1
            if row_state == FREE or holds[row] > 0:
                unneeded.pop()
            elif run is None or run.offered or run.is_join:
                break
            elif row_state == FINISHED:
                unneeded.pop()
                if table.flags[row] & INTERMEDIATE:
                    holdings.forget(ledger, row)
                freed.add(range(row, row + 1))
                state[row] = RELEASED
                if heirs[row]:
                    limit -= lineage.enter(row, run) // ROW_IN_INPUTS
                else:
                    self.forget(row, run)
                    limit -= run.inputs_of_one // ROW_IN_INPUTS
            elif row_state == RELEASED and not heirs[row]:
                unneeded.pop()
                lineage.leave(row, run)
                self.forget(row, run)
                limit -= run.inputs_of_one // ROW_IN_INPUTS
            else:
                break
            limit -= 1
        freed.order()
        return limit

    def _neighbours(self, run: Run, limit: int) -> range:
        """Those rows of a run at the end of the list of unneeded ones, at most so many, that are equally far apart.

        They rise.
        """
        unneeded = self._unneeded
        last = unneeded[-1]
        step = unneeded[-2] - last if len(unneeded) > 1 else 0
        if not step:
            return range(last, last + 1)
        in_run = run.start + run.count - last if step > 0 else last - run.start + 1
        limit = min(limit, len(unneeded), -(in_run // -abs(step)))
        count = 1
        while count < limit and unneeded[-1 - count] == last + step * count:
            count += 1
        if count == 1 or (count < STRIDED_LEAST and step not in (1, -1)):
            return range(last, last + 1)
        return range(last, last + step * count, step) if step > 0 else range(last + step * (count - 1), last + 1, -step)

    def _release_rows(self, rows: range, run: Run, freed: _Freed) -> int:
        """Release or forget the last of the unneeded rows, if they are alike; what that costs, 0 if they are not."""
        table, lineage, count = self._ledger.table, self._lineage, len(rows)
        span = slice(rows.start, rows.stop, rows.step)
        row_state, flags, heirs = table.state[rows.start], table.flags[span], table.heirs[span]
        has_heirs, plain = 0 not in heirs, flags.count(0)
        if (
            row_state not in (FINISHED, RELEASED)
            or (has_heirs and row_state == RELEASED)
            or table.state[span].count(row_state) != count
            or plain + flags.count(NO_RECIPE) != count
            or any(table.holds[span])
            or (not has_heirs and any(heirs))
        ):
            return 0
        del self._unneeded[-count:]
        if row_state == FINISHED:
            freed.add(rows)
            table.state[span] = bytes((RELEASED,)) * count
            if has_heirs:
                return count + lineage.enter_rows(rows, run) // ROW_IN_INPUTS
        else:
            lineage.leave_rows(rows, run)
        if plain == count:
            sources = run.inputs_of_rows(rows)
        else:
            sources = [source for row in rows if not table.flags[row] for source in table.inputs_of(row)]
        if table.free_rows(run, rows):
            self._run_forgotten(run)
        self._note_unneeded(table.drop_heirs(sources), run, count)
        return count * (1 + run.inputs_of_one // ROW_IN_INPUTS)

    def forget(self, row: int, run: Run) -> None:
        """Free a row of which no side table says anything; its ancestors that only it needed come next."""
        table = self._ledger.table
        sources = () if table.flags[row] & NO_RECIPE else table.inputs_of(row)
        if table.free(row):
            self._run_forgotten(run)
        self._unneeded.extend(table.drop_heirs(sources))


class _Freed:
    """Values to be freed, gathered while they are consecutive."""

    __slots__ = ("attempt", "holder", "ledger", "nbytes", "start", "stop")

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.start = self.stop = self.attempt = self.holder = -1
        self.nbytes = 0

    def add(self, rows: range) -> None:
        """The values of rows that rise."""
        table = self.ledger.table
        holders, span = table.holder, slice(rows.start, rows.stop, rows.step)
        if rows.step == 1:
            self._add_consecutive(rows.start, rows.stop)
        else:
            self.order()
            for row, attempt, holder, size in zip(
                rows, table.attempt[span], holders[span], table.nbytes[span], strict=True
            ):
                self.ledger.free_values(holder, attempt, row, 1, size)
        holders[span] = array("i", (-1,)) * len(rows)

    def _add_consecutive(self, first: int, stop: int) -> None:
        table = self.ledger.table
        attempts, holders = table.attempt, table.holder
        row = first
        while row < stop:
            attempt, holder = attempts[row], holders[row]
            end = row + 1
            while end < stop and attempts[end] == attempt and holders[end] == holder:
                end += 1
            if row != self.stop or attempt != self.attempt or holder != self.holder:
                self.order()
                self.start, self.attempt, self.holder, self.nbytes = row, attempt, holder, 0
            self.stop = end
            self.nbytes += sum(table.nbytes[row:end])
            row = end

    def order(self) -> None:
        if self.holder >= 0:
            self.ledger.free_values(self.holder, self.attempt, self.start, self.stop - self.start, self.nbytes)
        self.stop = self.holder = -1
