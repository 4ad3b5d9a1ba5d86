"""The agent's machine: `handle(now, event) -> effects`, driven by the daemon and by the simulator alike.

It has four parts, each with its own reason to change: the `Ledger` (what is owed to the scheduler), the `Supply`
(values held, fetched, pushed and served), the `ReadyQueue` (tasks that may start) and the `Workforce` (slots). This
class reads the scheduler's messages and does what concerns several parts: recalls, stops, draining, the heartbeat.

It does no I/O, reads no clock, and draws nothing at random. `events.py` says what a shell has to keep to.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, assert_never

from cluster.wire import messages
from cluster.wire.task_output import Piece
from cluster.worker import events
from cluster.worker.coroutines import FIRST_COROUTINES
from cluster.worker.disk_events import DiskEvent
from cluster.worker.errands import Errands
from cluster.worker.events import RESTART_STATUS, Close, Effect, Event, Say
from cluster.worker.inputs import keys_in_slots
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.orders import Orders
from cluster.worker.output import Outputs
from cluster.worker.packing import Packing
from cluster.worker.queue import Assignment, ReadyQueue
from cluster.worker.room import Room
from cluster.worker.slot_memory import SlotMemory
from cluster.worker.slots import SlotState
from cluster.worker.spilling import Spilling
from cluster.worker.supply import Supply
from cluster.worker.uploads import Uploads
from cluster.worker.values import Values, value_name
from cluster.worker.whereabouts import Whereabouts
from cluster.worker.workforce import Workforce

__all__ = ["Agent", "AgentIdentity"]

_DRAINING_REQUEST: Final = -1  # the number of a Recalled that nobody asked for


class AgentIdentity(NamedTuple):
    """What an agent says of itself when it joins, its two intervals, and what its slots can."""

    worker_id: bytes
    name: str
    address: str
    slots: int
    memory_limit_bytes: int
    resources: dict[str, float]
    versions: dict[str, str]
    process_id: int
    heartbeat_interval_seconds: float
    drain_seconds: float
    one_task_at_a_time: bool = False
    """Whether the shell has no pipe that tasks can be taken back from (see `events`)."""
    disk_prefixes: tuple[str, ...] = ()
    """How the paths of segments begin that lie on disk and not in memory."""
    spill_quota_bytes: int = 0
    """How much of the disk spilled values may take; 0: as much as there is; below 0: there is none."""
    spill_compression: str = ""
    """How spilled values are compressed: "", "lz4" or "zstd"."""
    threads: int = 1
    """How many of the slots are in each process."""


class Agent:
    """One worker's decisions."""

    def __init__(self, identity: AgentIdentity) -> None:
        self._identity = identity
        self._ledger = Ledger()
        self._queue = ReadyQueue()
        self._last_request = 0
        values = Values()
        self.memory = Memory(identity.memory_limit_bytes, values, identity.disk_prefixes)
        self.spilling = Spilling(
            self._ledger,
            values,
            self.memory,
            self._ledger.needed_values,
            lambda: keys_in_slots(self.workforce),
            quota_bytes=identity.spill_quota_bytes,
            compression=identity.spill_compression,
        )
        self.packing = Packing(
            self._ledger,
            values,
            self.memory,
            self.spilling,
            self._ledger.needed_values,
            self._new_request,
            compression=identity.spill_compression,
        )
        self.room = Room(self._ledger, values, self.memory, self.spilling, self.packing)
        self.supply = Supply(
            self._ledger,
            self._queue,
            identity.address,
            self._new_request,
            values,
            self.memory,
            self.room,
            self.spilling,
            self.packing,
        )
        self.room.let_go = self.supply.let_replicas_go
        self.supply.arrivals.slot_is_idle = self._slot_is_idle
        self.orders = Orders(self._ledger)
        self.outputs = Outputs(self._ledger, self.orders)
        self.workforce = Workforce(
            identity.slots,
            self._ledger,
            self._queue,
            self.supply,
            self.outputs,
            self.memory,
            self.room,
            self.spilling,
            self._new_request,
            one_task_at_a_time=identity.one_task_at_a_time,
            threads=identity.threads,
        )
        self.slot_memory = SlotMemory(self._ledger, self.workforce, self.memory, self.room)
        self.errands = Errands(self._ledger, self.orders)
        self.uploads = Uploads(self._ledger, self.orders, self.workforce)
        self.orders.register("restart", self._restart)
        self.whereabouts = Whereabouts(
            self._ledger, self._queue, self.supply, self.workforce, self.orders, lambda: self._now
        )
        self._recalls: list[messages.Recall] = []
        self._newest_recall = -1
        self._heartbeat_at: float | None = None
        self._now = 0.0
        self._draining = False
        self._drain_ends: float | None = None
        self._ending = False
        self._is_short = False
        self.closed = False

    def _new_request(self) -> int:
        self._last_request += 1
        return self._last_request

    @property
    def welcomed(self) -> bool:
        """Whether the scheduler has accepted this worker."""
        return self._heartbeat_at is not None

    @property
    def unanswered_count(self) -> int:
        """Granted tasks that were not answered for yet."""
        return len(self._ledger)

    def assignment_of(self, attempt: int) -> Assignment | None:
        """What was granted under that attempt, as long as some of it is not answered for."""
        return self._ledger.find(attempt)

    @property
    def next_wakeup(self) -> float | None:
        """When a `Tick` is wanted at the latest."""
        if self.closed:
            return None
        if self.supply.freeing:
            return self._now
        times = (
            self._heartbeat_at,
            self._ledger.flush_at,
            self.outputs.flush_at,
            self._drain_ends,
            self.room.next_wakeup,
            self.workforce.next_wakeup(),
        )
        return min((time for time in times if time is not None), default=None)

    def handle(self, now: float, event: Event) -> list[Effect]:
        """Take in one event; what is to be done, in order."""
        effects = self._ledger.effects = []
        self._now = now
        if self.closed:
            return effects
        self._take(now, event)
        if self._queue.for_actors:
            calls, self._queue.for_actors = self._queue.for_actors, []
            self.workforce.actors.take(calls, now)
        if self._recalls and not self.workforce.taking_back:
            self._answer_recalls()
        if not self._draining:
            self.workforce.give_out(now)
        elif self.workforce.nesting.active:
            self.workforce.nesting.let_go_on()
        self.supply.finish_event()
        self.packing.finish_event(now)
        self.room.serve(now)
        if self.room.stuck:
            stuck, self.room.stuck = self.room.stuck, []
            self.supply.let_others_pass(stuck)
        if self.room.refused:
            refused, self.room.refused = self.room.refused, []
            for request, reason in refused:
                self._no_room(request, reason)
        self._note_shortage(now)
        if self._draining:
            self._drain(now)
        return effects

    def _measured(self, figures: dict[str, int], slots: dict[int, int], now: float) -> None:
        self.memory.measured(figures)
        self.slot_memory.measured(slots, figures.get("starter_bytes", 0), now)
        if self.slot_memory.restart_reason and not self._draining:
            self._ledger.effects.append(Say(f"the worker drains and restarts: {self.slot_memory.restart_reason}"))
            self._start_draining(now)

    def _slot_is_idle(self) -> bool:
        """Whether a slot could run a task, and none is here for it."""
        workforce = self.workforce
        if self._queue.count or workforce.paused or (workforce.crowded and workforce.running_count):
            return False
        if workforce.nesting.active:
            return workforce.nesting.free_seats > 0
        return any(slot.state is SlotState.READY and not slot.outstanding for slot in workforce.slots)

    def _no_room(self, request: int, reason: str) -> None:
        """Whoever asked for that segment does not get one."""
        if self.supply.arrivals.awaits(request):
            self.supply.segment_failed(request, reason)
        else:
            self.workforce.segments.failed(request, reason)

    def _note_shortage(self, now: float) -> None:
        """While there is no room anywhere, begin nothing new beside what runs, and say so at once."""
        is_short = self.room.is_short
        crowded = self.room.falls_behind() or is_short
        if crowded != self.workforce.crowded:
            self.workforce.crowded = crowded
            if not crowded:
                self.workforce.give_out(now)
        if is_short != self._is_short:
            self._is_short = is_short
            if self.welcomed:
                self._heartbeat_at = now

    def _take(self, now: float, event: Event) -> None:
        workforce, supply = self.workforce, self.supply
        match event:
            case events.SlotReports(slot, reports):
                writer = workforce.threads.writer(slot)
                if writer >= FIRST_COROUTINES:
                    process = workforce.process(slot)
                    self.outputs.ended_among_others(writer, [process.run_at(report[0]) for report in reports])
                elif self.outputs.writes(slot):
                    self.outputs.ended(slot, workforce.process(slot).run_at(reports[-1][0] + 1))
                workforce.reported(slot, reports, now)
            case events.FromScheduler(message):
                self._scheduler_says(now, message)
            case events.Tick():
                self._wake(now)
            case events.TookBack(slot, sequences):
                workforce.took_back(slot, sequences, now)
            case events.FromPeer(peer, message):
                self._peer_says(peer, message, now)
            case events.RoomAsked() | events.RoomReturned() | events.ValuePut():
                self._value_comes(event)
            case events.ValueFetched() | events.ValueNotFetched():
                self._value_comes(event)
            case events.SlotWaits(slot, sequence):
                workforce.nesting.waits(slot, sequence, now)
            case events.SlotWoken(slot, sequence):
                workforce.nesting.woken(slot, sequence)
            case events.CoroutineStopping(slot, sequence):
                workforce.coroutines.stopping(slot, sequence)
            case events.SegmentAsked(slot, sequence, nbytes):
                workforce.segments.asked(slot, sequence, nbytes)
            case events.SegmentCreated(request, path):
                if supply.arrivals.awaits(request):
                    supply.segment_created(request, path)
                else:
                    workforce.segments.created(request, path)
            case events.SegmentFailed(request, reason):
                if not self.room.tries_again(request, reason, now):
                    self._no_room(request, reason)
            case events.Spilled() | events.SpillFailed() | events.SpilledChecked():
                self._disk_says(now, event)
            case events.PackWritten() | events.PackFailed() | events.PackRead():
                self._disk_says(now, event)
            case events.FileGone(row, attempt, path):
                supply.file_gone(row, attempt, path)
            case events.PeerSent(peer, gone):
                supply.returning.sent(peer, now, gone=gone)
            case events.SlotReady(slot):
                self.slot_memory.started(slot)
                workforce.ready(slot, now)
            case events.SlotWrote(slot, pieces, seconds):
                self._written(slot, pieces, seconds, now)
            case events.ProgressMade(attempt, row, fraction, message):
                self.outputs.progress(attempt, row, fraction, message, now)
            case events.SlotExited(slot):
                self.outputs.ended(workforce.threads.writer(slot), None)
                workforce.exited(event, now)
            case events.ErrandReported(request, report):
                self.errands.reported(request, report)
            case events.ErrandEnded():
                self.errands.ended(event)
            case events.ModuleStored(request, error):
                self.uploads.stored(request, error)
            case events.Measured(figures, slots):
                self._measured(figures, slots, now)
            case events.SlotTrimmed(slot, nbytes):
                self.slot_memory.trimmed(slot, nbytes)
            case events.Started():
                self._join()
            case events.DrainAsked():
                self._start_draining(now)
            case events.EndAsked():
                self._close("it was told to end at once", 0)
            case _:
                assert_never(event)

    def _value_comes(self, event: Event) -> None:
        match event:
            case events.RoomAsked():
                self.supply.is_to_come(event)
            case events.RoomReturned():
                self.supply.arrivals.will_not_come(event)
            case events.ValuePut():
                self.supply.arrived_in_segment(*event)
            case events.ValueFetched():
                self.supply.fetched(*event)
            case events.ValueNotFetched():
                self.supply.not_fetched(*event)

    def _disk_says(self, now: float, event: DiskEvent) -> None:
        match event:
            case events.Spilled():
                self.spilling.spilled(event)
            case events.SpillFailed():
                path = self.spilling.spill_failed(event, now)
                if path:
                    self.supply.file_gone(*value_name(event.key), path)
            case events.SpilledChecked():
                self.supply.spilled_checked(event, now)
            case events.PackWritten():
                self.packing.written(event)
                self.room.packed()
            case events.PackFailed():
                self.packing.failed(event, now)
            case events.PackRead():
                self.supply.pack_read(event, now)

    def _peer_says(self, peer: int, message: Any, now: float) -> None:
        if isinstance(message, messages.GetValues):
            self.supply.serve(peer, message, now)
        elif isinstance(message, messages.GetPiece):
            self.supply.serve_piece(peer, message, now)
        else:
            self.supply.put(peer, message)

    def _written(self, slot: int, pieces: list[Piece], seconds: float, now: float) -> None:
        writer = self.workforce.threads.writer(slot)
        front = self.workforce.process(slot).front() if writer == slot else None
        self.outputs.take(writer, front, pieces, seconds, now)

    # ------------------------------------------------------------------ the scheduler

    def _join(self) -> None:
        identity = self._identity
        self._ledger.send(messages.WorkerJoin(*identity[:8]))
        self.workforce.start_all()

    def _scheduler_says(self, now: float, message: Any) -> None:
        match message:
            case messages.Grant():
                assignment = self._ledger.open(message)
                if assignment is not None:
                    self.supply.bring(assignment, now)
            case messages.DefineFunction(function_id, name, blob):
                self.workforce.functions[function_id] = (name, blob)
            case messages.EndActor(attempt, row):
                self.workforce.actors.end(attempt, row)
            case messages.Free(values):
                self.supply.free(values)
                self.outputs.free(values)
            case messages.Recall(request):
                if request <= self._newest_recall:  # it came before
                    self._ledger.send(messages.Recalled(self._ledger.epoch, request, []))
                else:
                    self._newest_recall = request
                    self._recalls.append(message)
                    if message.count > self._queue.count + self.supply.waiting_count:
                        self.workforce.ask_all_back()
            case messages.Stop(names):
                self._stop(names, now)
            case messages.Fetch(values):
                self.supply.order(values)
            case messages.DropAllowed():
                self.supply.drop_replicas(message)
            case messages.WorkerWelcome(epoch):
                self._ledger.epoch = epoch
                if not self.welcomed:
                    self._heartbeat_at = now
                    self._wake(now)
            case messages.Order():
                self.orders.take(message)
            case messages.ShutDown(reason):
                self._close(f"the scheduler said so: {reason}", 0 if self.welcomed else 2)
            case messages.Heartbeat():
                pass
            case _:
                self._close(f"the scheduler sent a {type(message).__name__}, which is not for workers", 1)

    def _answer_recalls(self) -> None:
        recalls, self._recalls = self._recalls, []
        for recall in recalls:
            self._bring_back(recall.request, recall.count)

    def _bring_back(self, request: int, count: int) -> None:
        """Answer a recall with the youngest of what no slot has claimed."""
        names: list[int] = []
        queue, supply = self._queue, self.supply
        for _ in range(min(count, queue.count + supply.waiting_count)):
            queued, waiting = queue.youngest(), supply.youngest_waiting()
            if queued is None or (waiting is not None and waiting.attempt >= queued.attempt):
                task = supply.take_youngest_waiting()
            else:
                task = queue.take_youngest()
            names += self._ledger.brought_back(*task)
        self._ledger.send(messages.Recalled(self._ledger.epoch, request, names))

    def _stop(self, names: list[int], now: float) -> None:
        for position in range(0, len(names), 2):
            attempt, row = names[position], names[position + 1]
            assignment = self._ledger.find(attempt)
            if assignment is None:
                continue
            task = assignment.index_of(row)
            if task < 0:
                continue
            if self.supply.stop_waiting(assignment, task) or self._queue.remove(assignment, task):
                self._ledger.failed(assignment, task, "cancelled", b"", {})
            else:
                self.workforce.stop(assignment, task, now)

    def _restart(self, request: int, detail: Any) -> None:
        """The order "restart": a new process for every slot, at once."""
        self.workforce.end_slots()
        self.orders.answer(request)

    # ------------------------------------------------------------------ time

    def _wake(self, now: float) -> None:
        ledger = self._ledger
        if ledger.flush_at is not None and now >= ledger.flush_at:
            ledger.flush()
        if self.outputs.flush_at is not None and now >= self.outputs.flush_at:
            self.outputs.flush()
        self.workforce.wake(now)
        if self._heartbeat_at is not None and now >= self._heartbeat_at:
            self._heartbeat_at = now + self._identity.heartbeat_interval_seconds
            report = {
                "slots_running": self.workforce.running_count,
                "tasks_queued": self._queue.count,
                "tasks_waiting": self.supply.waiting_count,
                "values": self.supply.values.count,
                "fetched_bytes": self.supply.fetched_bytes,
                "linked_bytes": self.supply.linked_bytes,
                **self.workforce.actors.figures(),
                **self.workforce.threads.figures(),
                "coroutines": self.workforce.coroutines.count,
                **self.memory.figures(),
                "intake_paused": self._is_short,
                "spill_problem": self.spilling.problem if self._is_short else "",
            }
            ledger.send(messages.AgentHeartbeat(ledger.epoch, report))

    # ------------------------------------------------------------------ the end

    def _start_draining(self, now: float) -> None:
        if self._draining:
            return
        self._draining = True
        self.workforce.stop_replacing()
        self._drain_ends = now + self._identity.drain_seconds
        self._ledger.send(messages.Draining(self._ledger.epoch))
        self.workforce.ask_all_back()

    def _drain(self, now: float) -> None:
        if self.closed:
            return
        self.workforce.coroutines.hand_back()
        if self._queue.count + self.supply.waiting_count:
            self._bring_back(_DRAINING_REQUEST, self._queue.count + self.supply.waiting_count)
        self._ledger.flush()
        if not self.workforce.running_count:
            reason = self.slot_memory.restart_reason
            self._close(f"it starts again: {reason}" if reason else "it has drained", RESTART_STATUS if reason else 0)
        elif self._drain_ends is not None and now >= self._drain_ends and not self._ending:
            self._ending = True
            self._drain_ends = None
            self.workforce.end_running(now)

    def _close(self, reason: str, exit_status: int) -> None:
        self._ledger.flush()
        self.closed = True
        self._ledger.effects.append(Close(reason, exit_status))
