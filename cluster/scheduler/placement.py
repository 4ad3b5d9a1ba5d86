"""Who runs what, and when: late, by measured time, near the data, in fair shares.

Tasks stay in the ready lanes until a slot can start them. A worker is granted a task for each free slot, and ahead of
that no more than `lead_seconds` of measured work a slot, so that the round trip to the scheduler is hidden and little
has to be taken back. A function that was never measured gets free slots only.

The promise that this file keeps: no startable task waits longer than 100 ms while a slot that may run it is idle. Work
that was granted ahead to a worker which then got stuck is recalled when another worker has an idle slot and nothing to
do.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from itertools import islice
from typing import Any

from cluster.scheduler.actor_desk import ActorDesk
from cluster.scheduler.admission import Admission
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.ready import ANYWHERE, Bucket, Lane
from cluster.scheduler.sizes import SMALL_BYTES
from cluster.scheduler.spreading import Spreading
from cluster.scheduler.spreads import SPREAD_FROM_BYTES
from cluster.scheduler.startable import bytes_to_move, expected_wait_seconds, is_kept_apart, moving_pays
from cluster.scheduler.suspects import SuspectLane
from cluster.scheduler.table import GRANTED, Run
from cluster.scheduler.want_of_room import PushOrder
from cluster.scheduler.workers import GrantRecord, WorkerRecord
from cluster.wire import messages

__all__ = ["Placement"]

TASKS_PER_GRANT = 2048
LINKED_TASKS_PER_GRANT = 512
EDGES_PER_GRANT = 16_384  # that begin or end at its tasks: a report follows them all in one step
BYTES_PER_GRANT = 1 << 20
WORTH_SHARING_SECONDS = 0.001  # less work than this is not divided among workers: granting it would cost as much
INLINE_AWAITED_BYTES = 4096  # results that somebody waits for travel with the notice up to this size
INLINE_ALWAYS_BYTES = 64  # smaller than the notice's own bookkeeping: asking again would cost more
ROWS_SEARCHED = 16  # in one stretch, when nothing else is left for an idle worker
GRANTS_PER_STEP = 128  # about 4 ms; when thousands of workers are idle, the others come in the steps that follow
GRANT_IN_INPUTS = 20  # to name so many inputs takes as long as a grant does otherwise
HUNGRY_LOOKED_AT = 64  # tasks that wait, and runs of each one's children; all but a few are blocked by nothing
IN_VAIN_LIMIT = 8  # what so many idle workers leave to those who hold its inputs all leave to these; they take turns
GAIN = 4.0  # times that a wait is longer than a transfer, for a worker to prefer other workers' work to its own
WRITTEN_BYTES_PER_SECOND = 2e9  # results into segments: between fresh memory and such as is used again
LOOK_AGAIN_SECONDS = 0.025  # a quarter of the promise


class Placement:
    """Grants ready rows to workers, and recalls what was granted to a worker that got stuck."""

    def __init__(self, ledger: Ledger, actors: ActorDesk) -> None:
        self.ledger = ledger
        self.actors = actors
        self.admission = Admission(ledger)
        self.full: dict[int, WorkerRecord] = {}  # idle or roomy but for their memory: nothing was admitted there
        self.spreading = Spreading(ledger, self.order_push)
        self.idle: dict[int, WorkerRecord] = {}  # with a free slot, longest idle first
        self.roomy: dict[int, WorkerRecord] = {}  # all slots taken, less than half the lead granted
        self.surplus: dict[int, WorkerRecord] = {}  # with more granted tasks than slots
        self.look_again_at = math.inf
        self.cut_short = False  # the last placing ended before all workers had been looked at
        self._grants_left = 0  # of this step
        self._recalls = 0
        self._now = 0.0  # of the latest placing
        self._left_alone = False  # a row that might move was left to who holds its inputs, for the time being
        self._all_in_vain = False
        self._in_vain: dict[tuple[int, ...], int] = {}  # lanes -> workers that in this step found nothing in them

    # ------------------------------------------------------------------ workers' room

    def refresh(self, worker: WorkerRecord) -> None:
        """The worker's outstanding work changed: list it where its room says."""
        index = worker.index
        self.ledger.preferred[index] = None  # it may have work of its own, and is looked at before others
        if worker.is_full:
            worker.is_full = False
            self.full.pop(index, None)
        if worker.outstanding > worker.slots and not worker.lost:
            self.surplus[index] = worker
        else:
            self.surplus.pop(index, None)
        if worker.draining:
            self.idle.pop(index, None)
            self.roomy.pop(index, None)
        elif worker.outstanding < worker.slots:
            self.idle[index] = worker
            self.roomy.pop(index, None)
        else:
            self.idle.pop(index, None)
            # Refilled by halves: topping it up with each report would grant tasks one by one.
            if self._lead_left(worker) > self.ledger.settings.lead_seconds * worker.slots / 2:
                self.roomy[index] = worker
            else:
                self.roomy.pop(index, None)

    def _lead_left(self, worker: WorkerRecord) -> float:
        if self._now < worker.lead_after or worker.room < worker.slots:
            return 0.0
        return self.ledger.settings.lead_seconds * worker.slots - worker.outstanding_lead

    def _lead_taken(self, run: Run, seconds: float) -> float:
        """What a task of a run takes of the lead: its time, or what writing its result takes; a long one takes no more
        than one slot's lead.

        A slot is busy while it writes, which is not measured. Large values that are made quickly would otherwise be
        made ahead of the tasks that take them, which become ready a moment later.
        """
        if seconds <= 0:
            return 0.0
        writing = (run.output_sizes.estimate_bytes or 0) / WRITTEN_BYTES_PER_SECOND
        return min(max(seconds, writing), self.ledger.settings.lead_seconds)

    # ------------------------------------------------------------------ granting

    def place(self, now: float, search: int = 0) -> None:
        """Grant what can be granted: free slots first, then the lead.

        `search`: how many rows of another worker's stretch are looked at for one that may move.
        """
        ledger = self.ledger
        self._now = now
        self._grants_left = GRANTS_PER_STEP
        if self.full:
            self._look_at_full()
        if ledger.ready_rows:
            self._in_vain.clear()
            self._all_in_vain = False
            self.admission.begin_step()
            # Who holds the inputs comes first, but a free slot comes before a place in a line.
            self._serve_preferred(self.idle, now, search)
            self._serve(self.idle, now, search)
            self._serve_preferred(self.roomy, now, search)
            self._serve(self.roomy, now, search)
        ledger.preferred.clear()
        self.cut_short = self._grants_left <= 0
        ledger.ready_anywhere = False
        self._plan_next_look(now)

    def _look_at_full(self) -> None:
        """List those workers again to which something may be admitted that was not before."""
        ledger = self.ledger
        if ledger.ready_anywhere:
            changed = list(self.full)
        else:
            changed = [index for index in (*ledger.relieved, *ledger.preferred) if index in self.full]
        ledger.relieved.clear()
        for index in changed:
            worker = self.full.get(index)
            if worker is not None:
                self.refresh(worker)

    def _serve_preferred(self, workers: dict[int, WorkerRecord], now: float, search: int) -> None:
        for index in list(self.ledger.preferred):
            while index in workers and self.ledger.ready_rows and self._grants_left > 0:
                if not self._grant_next(workers[index], now, search):
                    break

    def _serve(self, workers: dict[int, WorkerRecord], now: float, search: int) -> None:
        served_nothing = []
        while workers and self.ledger.ready_rows and self._grants_left > 0:
            index, worker = next(iter(workers.items()))
            del workers[index]
            if self._grant_next(worker, now, search):
                continue
            if self._all_in_vain:  # no task asks for any worker in particular, so the others would find nothing either
                served_nothing.append(worker)
                break
            if self.admission.refused:
                worker.is_full = True
                self.idle.pop(index, None)
                self.full[index] = worker
            else:
                served_nothing.append(worker)
        for worker in served_nothing:
            workers[worker.index] = worker

    def _grant_next(self, worker: WorkerRecord, now: float, search: int) -> bool:
        """One grant to a worker, from the client whose turn it is; False when nothing may run there now."""

        def limit(run: Run) -> int:
            allowed = self._limit(run, worker, worker.free_slots)
            return min(allowed, self.admission.limit(run, worker, now)) if allowed > 0 else 0

        def one(run: Run) -> int:
            return min(1, self.admission.limit(run, worker, now))

        def judge(run: Run) -> Callable[[int], bool] | None:
            return self.admission.judge(run, worker, now)

        self.admission.refused = False
        if worker.hungry and self._grant_child(worker, now):
            return True
        lanes = self._lanes_by_turn(worker, now)
        alike = None if any(_differs_by_worker(lane) for lane in lanes) else tuple(map(id, lanes))
        if alike is not None and self._in_vain.get(alike, 0) >= IN_VAIN_LIMIT:
            unrestricted = all(
                lane.restriction == ANYWHERE or not lane.size
                for client in self.ledger.clients.values()
                for lane in client.lanes.values()
            )
            self._all_in_vain = unrestricted and not self.ledger.parents
            return False
        self._left_alone = False
        # Work that others hold the inputs of is taken from them at once where that gains much, and else when there is
        # nothing of its own that the worker could do.
        for may_move in (self._gains_by_moving, self._may_move):
            for lane in lanes:
                suspects = lane if isinstance(lane, SuspectLane) else None
                if suspects is not None and not self._takes_suspect(worker, suspects):
                    continue
                allowed = limit if suspects is None else one
                taken = lane.take(
                    worker.index, worker.host, allowed, self.ledger.table.state, may_move, search, judge, now
                )
                if taken is not None:
                    run, spans = taken
                    grant = self._grant(worker, run, spans, now)
                    grant.charged = suspects is not None and suspects.charged
                    return True
            if not self._left_alone:
                break
        if alike is not None and not self.admission.refused:
            self._in_vain[alike] = self._in_vain.get(alike, 0) + 1
        return False

    def _grant_child(self, worker: WorkerRecord, now: float) -> bool:
        """Grant children of a task that waits at the worker: they run in its own slot, so nobody else comes first."""
        parents = self.ledger.parents
        for row in list(reversed(worker.hungry))[:HUNGRY_LOOKED_AT]:
            parent = parents[row]
            for identity, run in list(islice(parent.ready.items(), HUNGRY_LOOKED_AT)):
                found = False
                for lane in _lanes_of(run):
                    bucket = lane.bucket_of(run)
                    if bucket is not None and bucket.size:
                        found = True
                        if self._grant_child_from(worker, run, lane, bucket, now):
                            return True
                if not found:
                    del parent.ready[identity]
            if not parent.ready:
                del worker.hungry[row]
        return False

    def _grant_child_from(self, worker: WorkerRecord, run: Run, lane: Lane, bucket: Bucket, now: float) -> bool:
        charged = isinstance(lane, SuspectLane) and lane.charged
        limit = self._limit(run, worker, worker.slots - worker.outstanding)
        if isinstance(lane, SuspectLane):
            limit = 0 if is_kept_apart(worker, lane) else min(limit, 1, worker.slots - worker.outstanding)
        if limit <= 0 or not worker.permits(lane.restriction):
            return False
        spans = bucket.take(worker.index, limit, self.ledger.table.state, self._may_move, 0)
        if not spans:
            return False
        lane.size -= sum(stop - start for start, stop in spans)
        self._grant(worker, run, spans, now).charged = charged
        return True

    def _takes_suspect(self, worker: WorkerRecord, lane: SuspectLane) -> bool:
        """Whether a suspect would start there at once, and, once charged, be the only such one there."""
        if not worker.free_slots or worker.room_for(lane.restriction) == 0:
            return False
        return not is_kept_apart(worker, lane)

    def _lanes_by_turn(self, worker: WorkerRecord, now: float) -> list[Lane]:
        """The lanes that a worker may take from: least served client first, then priority, depth and age."""
        found = []
        for client in self.ledger.clients.values():
            if client.ready_rows:
                for lane in client.lanes.values():
                    first = lane.first()
                    if first is not None and worker.permits(lane.restriction):
                        found.append((client, lane, first[:3]))
        if len(found) > 1:
            used = {client.identity: client.used_seconds(now) for client, _, _ in found}
            found.sort(key=lambda item: (used[item[0].identity], item[2]))
        return [lane for _, lane, _ in found]

    def _limit(self, run: Run, worker: WorkerRecord, limit: int) -> int:
        """How many tasks of a run the worker may be granted now; `limit`: if none may be granted ahead."""
        assert run.lane is not None and run.function is not None
        share = math.ceil(self.ledger.ready_rows / max(1, len(self.ledger.workers)))
        median = run.function.median_seconds
        if run.is_coroutine:
            # As many as there is room for, but only where one that computes would have a slot to itself at first.
            limit = TASKS_PER_GRANT if limit > 0 and worker.free_slots else 0
        elif median is not None:
            each = self._lead_taken(run, median)
            limit = max(limit, math.ceil(self._lead_left(worker) / each))
            share = max(share, int(WORTH_SHARING_SECONDS / each))
        room = worker.room_for(run.lane.restriction)
        if room is not None:
            limit = min(limit, room)
        if run.makes_actor:
            limit = min(limit, 1)
        # Tasks with inputs or dependents are finished one by one, and a report should not hold the loop up.
        plain = run.dependency_starts is None and not run.has_dependents
        limit = min(limit, share, TASKS_PER_GRANT if plain else LINKED_TASKS_PER_GRANT)
        if not plain and limit > 1:
            limit = min(limit, max(1, EDGES_PER_GRANT // self._edges_of_one(run)))
        if run.offsets is not None and limit > 1:
            limit = min(limit, max(1, BYTES_PER_GRANT * run.count // (len(run.blob) + 1)))
        return limit

    def _edges_of_one(self, run: Run) -> int:
        """How many edges a task of a run has, at least one. The last of them speaks for all."""
        return 1 + run.inputs_of_one + self.ledger.table.heirs[run.start + run.count - 1]

    def _may_move(self, row: int, owner: int, thief: int) -> bool:
        """Whether a row of another worker's stretch is expected to start sooner here, inputs moved, than there."""
        return self._moves(row, owner, thief, 1.0)

    def _gains_by_moving(self, row: int, owner: int, thief: int) -> bool:
        """Whether it is expected to start much sooner: the wait there is several times as long as the transfer."""
        if self._moves(row, owner, thief, GAIN):
            return True
        self._left_alone = self._left_alone or self._moves(row, owner, thief, 1.0)
        return False

    def _moves(self, row: int, owner: int, thief: int, gain: float) -> bool:
        holder = self.ledger.workers.get(owner)
        lane = self.ledger.run(row).lane
        if holder is None or holder.draining or (lane is not None and not holder.permits(lane.restriction)):
            return True
        nbytes = bytes_to_move(self.ledger, row, self.ledger.workers[thief])
        return moving_pays(nbytes, expected_wait_seconds(holder, self._now) / gain)

    def _grant(self, worker: WorkerRecord, run: Run, spans: list[tuple[int, int]], now: float) -> GrantRecord:
        """Grant rows that were ready."""
        count = sum(stop - start for start, stop in spans)
        run.client.ready_rows -= count
        self.ledger.ready_rows -= count
        return self.grant(worker, run, spans, now)

    def grant(self, worker: WorkerRecord, run: Run, spans: list[tuple[int, int]], now: float) -> GrantRecord:
        """Grant rows of a run to a worker, whether they were ready or not."""
        ledger, table = self.ledger, self.ledger.table
        function = run.function
        assert function is not None
        attempt = ledger.next_attempt()
        for start, stop in spans:
            count = stop - start
            table.attempt[start:stop] = array("q", (attempt,)) * count
            table.state[start:stop] = bytes((GRANTED,)) * count
            table.holder[start:stop] = array("i", (worker.index,)) * count
        median = function.median_seconds
        seconds = median if median is not None else ledger.settings.lead_seconds
        if run.makes_actor or run.calls_actor or run.is_coroutine:
            seconds = 0.0  # it takes no slot time
        grant = GrantRecord(run, spans, seconds, self._lead_taken(run, seconds), now)
        grant.held_bytes = worker.held_bytes
        worker.add_grant(attempt, grant)
        self._grants_left -= 1 + grant.left * run.inputs_of_one // GRANT_IN_INPUTS
        run.client.granted_seconds += grant.left * seconds
        ledger.take_arguments(run, grant.left)
        if function.identity not in worker.functions:
            worker.functions.add(function.identity)
            ledger.send(worker.peer, messages.DefineFunction(function.identity, function.name, function.blob))
        ledger.send(worker.peer, self._grant_message(worker, grant, attempt))
        self.refresh(worker)
        return grant

    def _grant_message(self, worker: WorkerRecord, grant: GrantRecord, attempt: int) -> messages.Grant:
        run, spans = grant.run, grant.spans
        runs: list[int] = []
        for start, stop in spans:
            runs += (start, stop - start)
        offsets, blob = _arguments_of(run, spans)
        input_starts, inputs = b"", b""
        values: list[Any] = []
        if run.dependency_starts is not None:
            input_starts, inputs, values = self._inputs_of(grant, worker)
        options: dict[str, Any] = {}
        if "timeout_seconds" in run.options:
            options["timeout_seconds"] = run.options["timeout_seconds"]
        if run.is_coroutine:
            options["coroutine"] = True
        if run.parent >= 0:
            options["parent"] = [self.ledger.table.attempt[run.parent], run.parent]
        if run.makes_actor or run.calls_actor:
            options.update(self.actors.grant_options(run, spans[0][0]))
        assert run.function is not None
        return messages.Grant(
            attempt,
            runs,
            run.function.identity,
            run.label,
            run.arguments,
            offsets,
            blob,
            input_starts,
            inputs,
            values,
            INLINE_AWAITED_BYTES if run.awaited else INLINE_ALWAYS_BYTES,
            options,
            self._origin_of(run, spans),
        )

    def _origin_of(self, run: Run, spans: list[tuple[int, int]]) -> list[Any]:
        ledger = self.ledger
        before: list[int] = []
        died: list[int] = []
        if ledger.deaths or ledger.failed_runs:
            for start, stop in spans:
                rows = range(start, stop)
                for row in sorted((ledger.deaths.keys() & rows) | (ledger.failed_runs.keys() & rows)):
                    before += (row, ledger.deaths.get(row, 0) + ledger.failed_runs.get(row, 0))
                    died += (row, ledger.deaths.get(row, 0))
        key = run.options.get("key") or ""
        shift = run.first_number - run.start
        return [run.client.identity, run.batch, shift, key, before, run.client.shows_output, died]

    def _inputs_of(self, grant: GrantRecord, worker: WorkerRecord) -> tuple[bytes, bytes, list[Any]]:
        table = self.ledger.table
        if grant.run.takes_join:
            shared = table.inputs_of(grant.run.dependencies[0])
            values = [self._location(source, worker, grant) for source in shared]
            return b"", array("I", range(len(values))).tobytes(), values
        run = grant.run
        starts, sources = array("I", (0,)), array("q")
        assert run.dependency_starts is not None
        for start, stop in grant.spans:
            mine = run.dependency_starts[start - run.start : stop - run.start + 1]
            shift = len(sources) - mine[0]
            starts.extend([position + shift for position in mine[1:]])
            sources += run.dependencies[mine[0] : mine[-1]]
        place_of = {source: place for place, source in enumerate(dict.fromkeys(sources))}
        indices = array("I", map(place_of.__getitem__, sources))
        holder, replicas, nbytes, attempt, run_of = (
            table.holder, table.replicas, table.nbytes, table.attempt, table.run_of,
        )  # fmt: skip
        workers = self.ledger.workers
        values = []
        for source in place_of:
            size, source_run = nbytes[source], run_of[source]
            if size > SMALL_BYTES or source in replicas or source_run is None or source_run.offered:
                values.append(self._location(source, worker, grant))
            else:
                values.append([source, attempt[source], size, workers[holder[source]].addresses])
        return starts.tobytes(), indices.tobytes(), values

    def _location(self, source: int, worker: WorkerRecord, grant: GrantRecord) -> list[Any]:
        """An input as a grant names it; a value that only its client has is ordered to be pushed."""
        ledger, table = self.ledger, self.ledger.table
        holder = table.holder[source]
        if holder >= 0 and source not in table.replicas:
            addresses = ledger.workers[holder].addresses
        else:
            addresses = [ledger.workers[index].address for index in table.holders(source)]
        if worker.address in addresses:
            pass
        elif ledger.run(source).offered:
            # Its client pushes it: agents hold a copy as well perhaps, but the client's is nearest to this host's
            # memory.
            if not self.spreading.expects(source, worker):
                self.order_push(source, worker)
            addresses = []
        elif table.nbytes[source] > SPREAD_FROM_BYTES:
            addresses = self.spreading.sources(source, worker)
        nbytes = table.nbytes[source]
        if nbytes > SMALL_BYTES and holder != worker.index and worker.index not in table.holders(source):
            worker.memory.expect(source, nbytes)
            grant.coming.append(source)
        return [source, table.attempt[source], nbytes, addresses]

    def order_push(self, row: int, worker: WorkerRecord) -> None:
        """Have the client that offered a value push it to a worker, unless that is under way."""
        under_way = self.ledger.pushing.setdefault(row, {})
        if worker.index not in under_way:
            under_way[worker.index] = PushOrder()
            self.send_push(row, worker)

    def send_push(self, row: int, worker: WorkerRecord) -> None:
        """Tell the client that offered a value to push it to a worker, once more if need be."""
        ledger = self.ledger
        message = messages.Push(ledger.number(row), row, ledger.table.attempt[row], worker.address)
        ledger.send(ledger.run(row).client.peer, message)

    # ------------------------------------------------------------------ taking back

    def recall_all(self, worker: WorkerRecord) -> None:
        """Take back whatever a worker was granted and has not begun."""
        if worker.outstanding:
            self._recalls += 1
            worker.recall_pending = True
            self.ledger.send(worker.peer, messages.Recall(self._recalls, worker.outstanding))

    def look_again(self, now: float) -> None:
        """Recall from stuck workers for idle ones, and see whether time alone made something startable."""
        self.look_again_at = math.inf
        for worker in list(self.full.values()):
            self.refresh(worker)  # a spill may have ended, or be waited for no longer
        self.place(now, ROWS_SEARCHED)
        # What others were granted may be small enough for a worker that has no room for what is ready.
        idle = [worker for worker in (*self.idle.values(), *self.full.values()) if worker.free_slots]
        if not idle:
            return
        wanted = sum(worker.free_slots for worker in idle)
        for worker in self.surplus.values():
            surplus = worker.outstanding - worker.slots
            if wanted <= 0:
                break
            if worker.recall_pending or now < worker.recall_after:
                continue
            oldest = worker.oldest_grant
            if oldest is None or now - oldest.granted_at < LOOK_AGAIN_SECONDS * 0.99:
                continue
            if not any(other is not worker for other in idle):
                continue
            self._recalls += 1
            worker.recall_pending = True
            if worker.recalled_in_vain:
                count = surplus  # of what is left nobody needs much either, perhaps
            else:
                count = min(surplus, max(wanted, surplus // 2))
                wanted -= count
            self.ledger.send(worker.peer, messages.Recall(self._recalls, count))
        self._plan_next_look(now)

    def _plan_next_look(self, now: float) -> None:
        if not (self.idle or self.full) or self.look_again_at <= now + LOOK_AGAIN_SECONDS:
            return
        if self.ledger.ready_rows or self.surplus:
            self.look_again_at = now + LOOK_AGAIN_SECONDS


def _differs_by_worker(lane: Lane) -> bool:
    """Whether a task of a lane may be granted to one of two workers that both permit it, and not to the other."""
    return bool(lane.restriction.resources) or isinstance(lane, SuspectLane)


def _lanes_of(run: Run) -> list[Lane]:
    """Where ready rows of a run may be listed: its own lane, and those of its client's suspects."""
    assert run.lane is not None
    lanes = run.client.lanes
    suspects = (lanes.get((kind, run.lane.restriction)) for kind in ("marked", "charged"))
    return [run.lane, *(lane for lane in suspects if lane is not None)]


def _arguments_of(run: Run, spans: list[tuple[int, int]]) -> tuple[bytes, bytes]:
    """The packed arguments of some rows of a run, with offsets that start at zero."""
    if run.offsets is None:
        return b"", bytes(run.blob)
    offsets, blob = run.offsets, run.blob
    packed = array("I", (0,))
    pieces = []
    total = 0
    for start, stop in spans:
        place, last = start - run.start, stop - run.start
        base = offsets[place]
        pieces.append(blob[base : offsets[last]])
        shift = total - base
        packed.extend([offset + shift for offset in offsets[place + 1 : last + 1]])
        total = packed[-1]
    return packed.tobytes(), b"".join(pieces)
