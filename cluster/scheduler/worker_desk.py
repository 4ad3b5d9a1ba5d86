"""Messages of agents: what ran, what failed, what came back, what they hold."""

from __future__ import annotations

from array import array
from typing import Any

from cluster.errors import ProtocolError
from cluster.scheduler import holdings, refusals
from cluster.scheduler.ledger import INLINE_BYTES_PER_FRAME, Close, Failure, Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.placement import LOOK_AGAIN_SECONDS, Placement
from cluster.scheduler.table import FINISHED, GRANTED, OWNER_WANTS, Run
from cluster.scheduler.workers import GrantRecord, WorkerRecord
from cluster.wire import messages

__all__ = ["WorkerDesk"]

LEAD_WITHHELD_SECONDS = 0.1
DEATHS_ALLOWED = 3  # slots that a task may kill before it fails; as in Dask's allowed-failures
MEMORY_DEATHS_ALLOWED = 2  # … by holding so much that the worker passed its limit; more with the option `retries`
DEATHS_ALLOWED_WAITING = 10  # … while it waited: a child that ran in its slot did it. They are its own, so not for ever
_LEFT_BEHIND = "the call was not run, since the worker is ending"
MISSES_ALLOWED = 10  # inputs that a task may fail to get before it fails: it bounds a spin, nothing else


class WorkerDesk:
    """Applies agents' messages to the ledger."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, placement: Placement) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self.placement = placement

    # ------------------------------------------------------------------ coming and going

    def join(self, now: float, peer: int, message: messages.WorkerJoin) -> Close | None:
        """A worker introduces itself; a name or address in use is refused."""
        ledger = self.ledger
        for what, called in (("name", message.name), ("address", message.address)):
            if called in ledger.worker_called:
                ledger.events.note("worker_refused", message.name, f"its {what} belongs to another worker")
                reason = f"the {what} {called} belongs to another worker that is connected; give --name another value"
                ledger.send(peer, messages.ShutDown(reason))
                return Close(peer, reason)
        worker = WorkerRecord(
            ledger.next_worker_index(),
            message.worker_id,
            message.name,
            message.address,
            message.slots,
            message.memory_limit_bytes,
            {str(name): float(amount) for name, amount in message.resources.items()},
            message.process_id,
            peer,
            now,
            ledger.join_host(message.address),
        )
        worker.versions = message.versions
        slots = f"{worker.slots} slot{'' if worker.slots == 1 else 's'}"
        ledger.events.note("worker_joined", worker.name, f"{slots}, at {worker.address}")
        ledger.workers[worker.index] = worker
        ledger.worker_called[worker.name] = ledger.worker_called[worker.address] = worker
        ledger.worker_of_peer[peer] = worker
        ledger.send(peer, messages.WorkerWelcome(ledger.epoch, worker.index, ledger.settings.versions))
        self.placement.refresh(worker)
        return None

    def draining(self, worker: WorkerRecord) -> None:
        """The worker will end: grant it nothing more."""
        if not worker.draining:
            self.ledger.events.note("worker_draining", worker.name, "it was asked to end")
        worker.draining = True
        self.placement.refresh(worker)

    def reported(self, worker: WorkerRecord, report: dict[str, Any]) -> None:
        """A heartbeat's figures."""
        if report.get("disk_bytes") and not worker.report.get("disk_bytes"):
            self.ledger.events.note("store_full", worker.name, "memory for values is full; values go to disk")
        if report.get("intake_paused") and not worker.report.get("intake_paused"):
            problem = report.get("spill_problem", "")
            self.ledger.events.note(
                "memory_full", worker.name, f"it begins nothing new until memory is free: {problem}"
            )
        elif worker.report.get("intake_paused") and not report.get("intake_paused"):
            self.ledger.events.note("memory_free", worker.name, "there is room for values again; work goes on")
        worker.report = report
        worker.memory.reported(report, self.ledger.now)
        self.placement.refresh(worker)

    # ------------------------------------------------------------------ runs that succeeded

    def done(self, now: float, worker: WorkerRecord, message: messages.Done) -> None:
        """Rows of one attempt that have values now."""
        sizes = array("q", message.sizes)
        offsets = array("I", message.offsets)
        count = sum(message.runs[1::2])
        if len(sizes) != count or (offsets and len(offsets) != count + 1):
            raise ProtocolError("a report's sizes do not fit its rows")
        grant = worker.grants.get(message.attempt)
        contained = {entry[0]: entry[1] for entry in message.contains}
        place = 0
        for position in range(0, len(message.runs), 2):
            first, length = message.runs[position], message.runs[position + 1]
            if not (
                grant is not None
                and not contained
                and self._finish_span(worker, message, grant, first, length, sizes, offsets, place)
            ):
                self._finish_rows(worker, message, first, length, sizes, offsets, place, contained)
            place += length
        if grant is not None:
            assert grant.run.function is not None
            grant.run.function.observe(message.median_seconds)
            grant.run.output_sizes.observe(sizes, sum(sizes))
            if not grant.run.is_coroutine:  # that waited, for the most part, and took nobody's slot
                grant.run.client.charge(now, message.run_seconds)
        worker.last_progress = now
        self.placement.refresh(worker)

    def _finish_span(
        self,
        worker: WorkerRecord,
        message: messages.Done,
        grant: GrantRecord,
        first: int,
        count: int,
        sizes: array[int],
        offsets: array[int],
        place: int,
    ) -> bool:
        """Finish consecutive rows by whole columns, if nothing about them is special: the path of a plain map."""
        table, run = self.ledger.table, grant.run
        stop = first + count
        client = run.client
        if run.dependency_starts is not None or run.has_dependents:
            if not self.lifecycle.linked.are_plain(worker, run, message.attempt, first, stop):
                return False
            pieces = offsets[place : place + count + 1] if offsets else offsets
            self._account(worker, message.attempt, grant, count)
            self.lifecycle.linked.finish(worker, run, first, sizes[place : place + count], pieces, message.blob)
            return True
        if not (
            first >= run.start
            and stop <= run.start + run.count
            and client.connected
            and table.state.count(GRANTED, first, stop) == count
            and table.attempt[first:stop].count(message.attempt) == count
            and table.flags.count(OWNER_WANTS, first, stop) == count
            and not self.ledger.locating
            and not self.ledger.aliases_of
            and (not self.ledger.parents or self.ledger.parents.keys().isdisjoint(range(first, stop)))
        ):
            return False
        table.state[first:stop] = bytes((FINISHED,)) * count
        mine = sizes[place : place + count]
        table.nbytes[first:stop] = mine
        worker.held_values += count
        worker.held_bytes += sum(mine)
        self._account(worker, message.attempt, grant, count)
        if self.ledger.suspects:
            for row in range(first, stop):
                self.ledger.acquit(row)
        pieces = offsets[place : place + count + 1] if offsets else offsets
        self.ledger.tell_finished_rows(run, first, stop, pieces, message.blob)
        return True

    def _finish_rows(
        self,
        worker: WorkerRecord,
        message: messages.Done,
        first: int,
        count: int,
        sizes: array[int],
        offsets: array[int],
        place: int,
        contained: dict[int, Any],
    ) -> None:
        ledger = self.ledger
        grant = worker.grants.get(message.attempt)
        for step in range(count):
            row = first + step
            if not self._accept(worker, message.attempt, row):
                # Nobody asked for this any more, or the row is somebody else's: the value is an orphan.
                if not self._is_known_value(row, message.attempt):
                    ledger.order_free(worker.index, message.attempt, row)
                    if grant is not None and grant.run.makes_actor:
                        ledger.send(worker.peer, messages.EndActor(message.attempt, row))
                continue
            piece = b""
            if offsets:
                piece = message.blob[offsets[place + step] : offsets[place + step + 1]]
                if len(piece) > INLINE_BYTES_PER_FRAME:
                    piece = b""
            references = contained.get(row)
            if references:
                self.lifecycle.set_contained(row, self._rows_of(references))
            self.lifecycle.finished(row, worker, sizes[place + step], piece)

    def _rows_of(self, references: list[Any]) -> list[int]:
        rows = []
        for position in range(0, len(references), 2):
            client = self.ledger.clients.get(references[position])
            row = -1 if client is None else client.row(references[position + 1])
            if row >= 0:
                rows.append(row)
        return rows

    def _is_known_value(self, row: int, attempt: int) -> bool:
        table = self.ledger.table
        return row < len(table) and table.state[row] == FINISHED and table.attempt[row] == attempt

    def _accept(self, worker: WorkerRecord, attempt: int, row: int) -> bool:
        """Whether a report about a run is the one that counts; then the run is counted out, once."""
        table = self.ledger.table
        if worker.suspended:
            self.lifecycle.nesting.end_suspension(worker, attempt, row)
        stopped = worker.stopping.pop((attempt, row), None)
        if stopped is not None:
            if attempt in worker.grants:
                self._account(worker, attempt, stopped, 1)
            return False
        if not (row < len(table) and table.state[row] == GRANTED and table.attempt[row] == attempt):
            return False
        grant = worker.grants.get(attempt)
        if grant is None or table.holder[row] != worker.index:
            return False
        self._account(worker, attempt, grant, 1)
        return True

    def _account(self, worker: WorkerRecord, attempt: int, grant: GrantRecord, count: int) -> None:
        grant.run.client.granted_seconds -= worker.end(attempt, count)

    # ------------------------------------------------------------------ runs that did not

    def run_failed(self, now: float, worker: WorkerRecord, message: messages.RunFailed) -> None:
        """One run ended without a value: run it again, or fail the task."""
        row, attempt = message.row, message.attempt
        if message.kind == "missing":
            self._input_missing(worker, message.details)
        grant = worker.grants.get(attempt)
        if grant is not None and not grant.run.is_coroutine:
            grant.run.client.charge(now, message.run_seconds)
        worker.last_progress = now
        if self._accept(worker, attempt, row):
            assert grant is not None
            if message.kind == "full":
                refusals.note_refusal(self.ledger, row, worker, grant.held_bytes)
            self._again_or_fail(worker, message, self.ledger.run(row))
        self.placement.refresh(worker)

    def _again_or_fail(self, worker: WorkerRecord, message: messages.RunFailed, run: Run) -> None:
        ledger, lifecycle, row = self.ledger, self.lifecycle, message.row
        details = dict(message.details)
        if run.calls_actor and message.kind in ("died", "cancelled"):
            lost = lifecycle.actors.failure_of(row)
            ledger.table.holder[row] = -1
            details = {**lifecycle.actors.lost_details(ledger.table.inputs_of(row)[-1], _LEFT_BEHIND), **details}
            lifecycle.fail(row, lost or Failure("died", b"", details, row, run.identity, ledger.now))
            return
        if message.kind == "cancelled":
            lifecycle.requeue(row, "run ended", f"worker {worker.name} is ending")  # it was not our order
            return
        if message.kind == "missing":
            misses = ledger.missed[row] = ledger.missed.get(row, 0) + 1
            if misses <= MISSES_ALLOWED:
                lifecycle.requeue(row, "input missing", f"at worker {worker.name}: {details.get('message', '')}")
                return
            details["message"] = f"an input of {ledger.key(row)} could not be fetched in {misses} attempts"
        elif message.kind == "full":
            if run.calls_actor:  # which can go nowhere else, and keeps nobody from a slot while it waits there
                misses = ledger.missed[row] = ledger.missed.get(row, 0) + 1
                again = misses <= MISSES_ALLOWED
            else:
                again = refusals.is_worth_waiting(ledger, row)
            if again:
                lifecycle.requeue(row, "input refused", f"at worker {worker.name}: {details.get('message', '')}")
                return
            details["remedy"] = refusals.REMEDY
        elif message.kind == "died":
            self._note(worker, "task_died", row, run, details)
            self._learn_need(run, details)
            deaths = ledger.deaths[row] = ledger.deaths.get(row, 0) + 1
            details["attempts"] = deaths
            if deaths < _deaths_allowed(run, details):
                lifecycle.requeue(row, "slot died", f"at worker {worker.name}: {_told(details)}")
                return
        else:
            runs = ledger.failed_runs[row] = ledger.failed_runs.get(row, 0) + 1
            details["attempts"] = runs
            if runs <= int(run.options.get("retries", 0)) and message.kind != "unserializable":
                lifecycle.requeue(row, "run failed", f"at worker {worker.name}: {_told(details)}")
                return
        details["key"] = ledger.key(row)
        details["worker"] = worker.name
        kind = "lost" if message.kind == "missing" else message.kind
        self._note(worker, "task_failed", row, run, details)
        # The run is counted out already; the row is no longer that worker's.
        ledger.table.holder[row] = -1
        lifecycle.fail(row, Failure(kind, message.error, details, row, run.identity, ledger.now))

    def _note(self, worker: WorkerRecord, kind: str, row: int, run: Run, details: dict[str, Any]) -> None:
        said = f"{details.get('type', 'error')}: {details.get('message', '')}"
        self.ledger.events.note_task(kind, run.label, self.ledger.key(row), f"on {worker.name}: {said}")

    def _learn_need(self, run: Run, details: dict[str, Any]) -> None:
        """If a task was ended for what it took, and would have fitted into the worker's memory alone: its like count
        with as much from now on, those that run too, so that it is not beside them when it is tried again."""
        nbytes = int(details.get("needed_bytes") or 0)
        if not 0 < nbytes <= int(details.get("memory_limit_bytes") or 0):
            return
        if run.memory_bytes:
            run.memory_bytes = max(run.memory_bytes, nbytes)
        else:
            run.output_sizes.observe_need(nbytes)
        for worker in self.ledger.workers.values():
            for grant in worker.grants.values():
                same_sizes = grant.run.output_sizes is run.output_sizes and not grant.run.memory_bytes
                if grant.run is run or (same_sizes and not run.memory_bytes):
                    worker.expect_more(grant, nbytes)

    def actor_ended(self, worker: WorkerRecord, message: messages.ActorEnded) -> None:
        """An actor's process has ended, and nobody had told it to."""
        row, table = message.row, self.ledger.table
        if self.lifecycle.actors.lives_at(row, worker.index) and table.attempt[row] == message.attempt:
            details = {**message.details, "worker": worker.name}
            self.lifecycle.lose_actor(row, str(details.pop("message", "")), details)

    def _input_missing(self, worker: WorkerRecord, details: dict[str, Any]) -> None:
        """A worker could not get a value from its holder: that replica does not count any more."""
        ledger, table = self.ledger, self.ledger.table
        row, attempt = int(details.get("row", -1)), details.get("attempt")
        if not (0 <= row < len(table) and table.state[row] == FINISHED and table.attempt[row] == attempt):
            return
        for index in table.holders(row):
            holder = ledger.workers.get(index)
            if self.lifecycle.actors.lives_at(row, index):
                continue  # it lives there, even if nobody could get through to it just now
            if holder is not None and holder.address == details.get("address"):
                ledger.order_free(index, table.attempt[row], row)
                self.lifecycle.drop_replica(row, index, f"worker {holder.name} could not give it away")

    def damaged(self, worker: WorkerRecord, message: messages.ValueDamaged) -> None:
        """A value changed on its way to a worker, which fetches it again: somebody should look at the machines."""
        holder = self.ledger.worker_called.get(message.address)
        named = f"worker {holder.name} at {message.address}" if holder is not None else message.address
        known = self._is_known_value(message.row, message.attempt)
        value = f"the value of {self.ledger.key(message.row)}" if known else "a value that nobody needs by now"
        text = f"{value} came damaged from {named} to worker {worker.name} at {worker.address}; it is fetched again"
        self.ledger.events.note("value_damaged", worker.name, text)

    def lost_value(self, worker: WorkerRecord, message: messages.FetchFailed) -> None:
        """What a worker held is damaged."""
        self.ledger.events.note("value_lost", worker.name, message.reason)
        self._input_missing(worker, {"row": message.row, "attempt": message.attempt, "address": message.address})

    def recalled(self, now: float, worker: WorkerRecord, message: messages.Recalled) -> None:
        """What a recall brought back, and nothing else, is granted again."""
        holds, is_needed = self.ledger.table.holds, False
        for position in range(0, len(message.names), 2):
            attempt, row = message.names[position], message.names[position + 1]
            if self._accept(worker, attempt, row):
                is_needed = is_needed or holds[row] > 0
                self.lifecycle.requeue(row, "taken back", f"from worker {worker.name}, before a slot had begun it")
        if message.request >= 0:
            worker.recall_pending = False
            worker.recall_after = 0.0 if message.names else now + 2 * LOOK_AGAIN_SECONDS
            worker.recalled_in_vain = bool(message.names) and not is_needed
            if worker.recalled_in_vain:
                self.placement.look_again_at = now  # who is idle has waited for a look already
            if message.names:
                worker.lead_after = now + LEAD_WITHHELD_SECONDS
        self.placement.refresh(worker)

    # ------------------------------------------------------------------ values

    def held(self, worker: WorkerRecord, values: list[int]) -> None:
        """A worker has values that it did not make: replicas, or values that a client pushed."""
        ledger, table = self.ledger, self.ledger.table
        for position in range(0, len(values), 3):
            row, attempt, nbytes = values[position : position + 3]
            if not self._is_known_value(row, attempt):
                ledger.order_free(worker.index, attempt, row)
                continue
            under_way = ledger.pushing.get(row)
            if under_way is not None:
                under_way.pop(worker.index, None)
                if not under_way:
                    del ledger.pushing[row]
            holdings.forget(ledger, row)
            table.nbytes[row] = nbytes
            if table.add_holder(row, worker.index):
                ledger.count_in(worker.index, nbytes)
            holdings.note(ledger, row)
            worker.memory.arrived(row)
            self.placement.spreading.held(row, worker)
        self.placement.refresh(worker)

    def drop_replicas(self, worker: WorkerRecord, message: messages.DropReplicas) -> None:
        """A worker is short of memory: it may drop copies of what others hold, unless it is giving them to somebody."""
        ledger, table = self.ledger, self.ledger.table
        allowed: list[int] = []
        for position in range(0, len(message.values), 2):
            row, attempt = message.values[position : position + 2]
            if not self._is_known_value(row, attempt) or worker.index not in table.holders(row):
                continue
            run = ledger.run(row)
            holders = [ledger.workers[index] for index in table.holders(row) if index != worker.index]
            # One that drains may have given it to this worker because it goes.
            others = any(not holder.lost and not holder.draining for holder in holders)
            elsewhere = others or (run.offered and run.client.connected)
            if elsewhere and not run.makes_actor and not self.placement.spreading.gives(row, worker):
                self.lifecycle.drop_replica(row, worker.index, f"worker {worker.name} let its copy go")
                allowed += (row, attempt)
        ledger.send(worker.peer, messages.DropAllowed(message.values, allowed))

    def fetch_failed(self, worker: WorkerRecord, message: messages.FetchFailed) -> None:
        """A worker could not get a copy: whoever waits behind it comes next."""
        if self._is_known_value(message.row, message.attempt):
            self.placement.spreading.failed(message.row, worker)


def _deaths_allowed(run: Run, details: dict[str, Any]) -> int:
    if details.get("out_of_memory_by") == "worker":
        # It would need as much the next time, and ending it cost the worker a lot.
        return max(MEMORY_DEATHS_ALLOWED, 1 + int(run.options.get("retries", 0)))
    return DEATHS_ALLOWED_WAITING if details.get("waiting") else DEATHS_ALLOWED


def _told(details: dict[str, Any]) -> str:
    """What a failed run says of itself, in a line."""
    kind = f"{details['type']}: " if details.get("type") else ""
    lines = str(details.get("lines") or "").strip()[-150:]
    return f"{kind}{details.get('message', '')}"[:150] + (f"; it last wrote: {lines}" if lines else "")
