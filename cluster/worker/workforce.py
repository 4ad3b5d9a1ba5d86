"""The slots: who gets which task, how much ahead, what is taken back, what is stopped, and what a death costs.

A slot's pipe holds as many tasks as last about 3 ms, so that it never waits for the agent; everything else stays in the
agent's queue, where a slot that becomes free finds it at once and a recall costs nothing. Tasks that are taken out of a
pipe, for whatever reason, go back to the front of the queue and are given out from there again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, cast

from cluster.errors import ProtocolError
from cluster.worker.actors import FIRST_ACTOR, Actors
from cluster.worker.coroutines import FIRST_COROUTINES, Coroutines
from cluster.worker.deaths import cause_of, details_of_death
from cluster.worker.events import (
    DefineInSlot,
    GiveTasks,
    Interrupt,
    KillSlot,
    Say,
    SlotExited,
    StartSlot,
    TakeBack,
)
from cluster.worker.inputs import GoneInput, pack_inputs
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.nesting import Nesting
from cluster.worker.output import Outputs
from cluster.worker.queue import Assignment, ReadyQueue, Stretch
from cluster.worker.room import Room
from cluster.worker.slot_segments import SlotSegments
from cluster.worker.slots import STOP_PATIENCE_SECONDS, MemoryEnd, RunTimes, Slot, SlotState
from cluster.worker.spilling import Spilling
from cluster.worker.supply import Supply
from cluster.worker.threads import Threads

__all__ = ["Workforce"]

# What a pipe holds: this much time, so that a slot is busy while its agent is not looking …
_AHEAD_SECONDS: Final = 0.003
# … and never more tasks, for their data lie in the slot's memory and sockets.
_AHEAD_TASKS: Final = 256
# A slot that has not ended a task for so long gets nothing more into its pipe.
_STALLED_SECONDS: Final = 0.003
# Work in a pipe that is expected to take less is left there unless it turns out to take longer.
_WORTH_TAKING_BACK_SECONDS: Final = 0.0005
# A success of a task that ran so long is reported at once: such tasks are no flood, and somebody may wait.
_REPORT_AT_ONCE_SECONDS: Final = 0.001
# Pauses before a slot is started again that did not get ready: doubled each time.
_FIRST_RESTART_SECONDS: Final = 0.1
_LAST_RESTART_SECONDS: Final = 10.0
_FAILED_STARTS_WORTH_SAYING: Final = 3
# A slot forgets its functions when it has so many, and is handed again what it needs.
_FUNCTIONS_A_SLOT: Final = 1000


class Workforce:
    """All slots of an agent."""

    def __init__(
        self,
        count: int,
        ledger: Ledger,
        queue: ReadyQueue,
        supply: Supply,
        outputs: Outputs,
        memory: Memory,
        room: Room,
        spilling: Spilling,
        new_request: Callable[[], int],
        *,
        one_task_at_a_time: bool = False,
        threads: int = 1,
    ) -> None:
        """`one_task_at_a_time`: no pipe holds anything ahead, and so nothing is ever taken back from one. `threads`: so
        many of the slots are in each process."""
        self.slots = [Slot(index, given_singly=one_task_at_a_time) for index in range(count)]
        self.one_task_at_a_time = one_task_at_a_time
        self.functions: dict[bytes, tuple[str, bytes]] = {}
        self.paused = False
        """Whether no slot is given anything for now."""
        self.crowded = False
        """Whether there is no room for more values: then one task runs at a time, to make some free."""
        self._ledger = ledger
        self._queue = queue
        self._supply = supply
        self._outputs = outputs
        self.segments = SlotSegments(ledger, new_request, self._find, memory, room)
        self._spilling = spilling
        self._run_times: dict[bytes, RunTimes] = {}
        self._balance_at: float | None = None
        self._closing = False
        self.nesting = Nesting(self, ledger, queue, count)
        self.actors = Actors(self, ledger, supply, one_call_at_a_time=one_task_at_a_time)
        self.coroutines = Coroutines(self, ledger, queue, count // threads)
        self.threads = Threads(self, ledger, queue, count, threads)

    # ------------------------------------------------------------------ facts

    @property
    def running_count(self) -> int:
        """Slots with a task, be it one that waits for others."""
        busy = sum(1 for slot in self.processes if slot.outstanding or slot.stack) + self.coroutines.count
        return busy + self.actors.waiting_count if self.actors.slots else busy

    @property
    def processes(self) -> Collection[Slot]:
        """The slots, and the actors' processes: all that run one task at a time."""
        return [*self.slots, *self.actors.slots.values()] if self.actors.slots else self.slots

    def process(self, index: int) -> Slot:
        """The slot of that number, or the process of an actor or of coroutines."""
        if index < FIRST_ACTOR:
            return self.slots[index]
        return self.actors.slots[index] if index < FIRST_COROUTINES else self.coroutines.slots[index]

    def _find(self, index: int) -> Slot | None:
        if index < FIRST_ACTOR:
            return self.slots[index]
        return self.actors.slots.get(index) if index < FIRST_COROUTINES else self.coroutines.slots.get(index)

    def expected_seconds(self, slot: Slot) -> float:
        """How long what is in the slot's pipe is expected to take; infinite if a function was never measured."""
        total = 0.0
        for piece in slot.pieces:
            times = self._run_times.get(piece.assignment.function_id)
            if times is None:
                return float("inf")
            total += piece.count * times.median_seconds
        return total

    def next_wakeup(self) -> float | None:
        """When `wake` has something to do."""
        times = [] if self._balance_at is None else [self._balance_at]
        if (due := self.coroutines.next_wakeup()) is not None:
            times.append(due)
        for slot in self.processes:
            if slot.stack and slot.stack[-1].timeout_at is not None and slot.state is SlotState.READY:
                times.append(slot.stack[-1].timeout_at)
            if slot.state is SlotState.READY and slot.outstanding:
                if slot.kill_at is not None:
                    times.append(slot.kill_at)
                elif slot.pieces[0].assignment.timeout_seconds:
                    times.append(slot.front_since + slot.pieces[0].assignment.timeout_seconds)
            elif slot.start_at is not None:
                times.append(slot.start_at)
        return min(times, default=None)

    # ------------------------------------------------------------------ life of a slot

    def start_all(self) -> None:
        """Start every slot."""
        for slot in self.slots:
            if slot.state is SlotState.ABSENT:
                self.start(slot)

    def ready(self, index: int, now: float) -> None:
        """The slot waits for its first task."""
        slot = self.process(index)
        if slot.state is SlotState.STARTING:
            slot.state = SlotState.READY
            slot.failed_starts = 0
            if index >= FIRST_COROUTINES:
                self.coroutines.ready(slot, now)
            elif index >= FIRST_ACTOR:
                self.actors.ready(slot, now)

    def exited(self, end: SlotExited, now: float) -> None:
        """The slot's process has ended. Only the task that it had claimed and not reported is charged with that."""
        slot = self.process(end.slot)
        if end.slot >= FIRST_COROUTINES:
            self.segments.drop(slot)
            self.coroutines.exited(end, cause_of(end), now)
            return
        if end.slot >= FIRST_ACTOR:
            self.segments.drop(slot)
            self.actors.exited(slot, end, cause_of(end), now)
            return
        was_starting = self.threads.vacate(slot, end, now)
        if self._closing:
            return
        if not was_starting:
            if not self.nesting.is_spare(slot):
                self.start(slot)
            return
        slot.failed_starts += 1
        if slot.failed_starts >= _FAILED_STARTS_WORTH_SAYING:
            self._ledger.effects.append(
                Say(
                    f"slot {slot.index} has ended {slot.failed_starts} times in a row before it was ready, with "
                    f"{cause_of(end)}; it is tried again. It last wrote: {end.last_lines.strip() or 'nothing'}"
                )
            )
        doublings = min(slot.failed_starts - 1, 10)
        for one in self.threads.members(slot):
            one.start_at = now + min(_LAST_RESTART_SECONDS, _FIRST_RESTART_SECONDS * 2**doublings)

    def renew(self) -> None:
        """Replace the process of each slot as soon as it has ended the task that it runs."""
        for slot in self.slots:
            if slot.state is SlotState.READY:
                self.renew_slot(slot)
        self.coroutines.renew()

    def renew_slot(self, slot: Slot) -> None:
        """Replace a slot's process as soon as it has ended the task that it runs."""
        for one in self.threads.members(slot):
            one.renew = True
            self._pursue_renewal(one)

    def _pursue_renewal(self, slot: Slot) -> None:
        if not slot.renew or slot.state is not SlotState.READY:
            return
        if not slot.pipe_is_empty:
            self.ask_back(slot)
        elif self.threads.idle(slot):
            self.end(slot)

    def end_slots(self) -> None:
        """Replace the process of every slot now; a task that is lost with that, and was not stopped, runs again."""
        for slot in self.slots:
            if slot.state is SlotState.READY:
                self.end(slot)
        self.coroutines.end_all()
        self.actors.end_all("the worker's slots were restarted")

    def end(self, slot: Slot) -> None:
        """End a slot's process."""
        members = self.threads.members(slot)
        for one in members:
            one.renew = False
            one.kill_at = None
            one.state = SlotState.ENDING
        self._ledger.effects.append(KillSlot(members[0].index))

    def stop_replacing(self) -> None:
        """From now on no slot is started any more."""
        self._closing = True
        for slot in self.slots:
            slot.start_at = None

    def end_running(self, now: float) -> None:
        """End every task that a slot still has; each is answered as cancelled."""
        for assignment, task in self.actors.withdraw_all():
            self._ledger.failed(assignment, task, "cancelled", b"", {})
        for slot in self.processes:
            for piece in slot.pieces:
                for sequence in range(piece.sequence, piece.sequence + piece.count):
                    slot.stops.setdefault(sequence, "cancelled")
            for frame in slot.stack:
                slot.stops.setdefault(frame.sequence, "cancelled")
            self.pursue_stop(slot, now)
        self.coroutines.stop_all(now)

    def start(self, slot: Slot) -> None:
        """Start a slot's process."""
        members = self.threads.members(slot)
        for one in members:
            one.start_at = None
            one.state = SlotState.STARTING
        self._ledger.effects.append(StartSlot(members[0].index, len(members)))

    def fail_dead(
        self,
        assignment: Assignment,
        task: int,
        kind: str,
        end: SlotExited,
        *,
        waiting: bool,
        beside: int = 0,
        memory: MemoryEnd | None = None,
    ) -> None:
        """A task has ended with its process; `waiting`: while another ran inside it; `beside`: with so many others;
        `memory`: because it held too much."""
        lines = self._outputs.last_lines(assignment.attempt, assignment.rows[task])
        details = details_of_death(end, kind, lines, waiting=waiting, beside=beside, memory=memory)
        self._ledger.failed(assignment, task, kind, b"", details)

    # ------------------------------------------------------------------ reports

    def reported(self, index: int, reports: list[Any], now: float) -> None:
        """Tasks have ended in the slot."""
        slot = self.process(index)
        if index >= FIRST_COROUTINES:
            self.coroutines.reported(slot, reports, now)
            return
        slowest, position = 0.0, 0
        while position < len(reports):
            if reports[position][0] != slot.pieces[0].sequence:
                raise ProtocolError(f"slot {index} reports task {reports[position][0]}, which it was not given to run")
            function_id = slot.pieces[0].assignment.function_id
            count = _count_plain(reports, position, slot.pieces[0].count) if not slot.stops else 0
            if count:
                batch = reports[position : position + count]
                seconds = self._plain_values(slot, batch, now)
            else:
                count = 1
                self.one_report(slot, *slot.end_front(1, now), reports[position], now)
                seconds = (reports[position][1],)
            position += count
            slowest = max(slowest, max(seconds))
            self._run_times.setdefault(function_id, RunTimes()).add(seconds)
        slot.kill_at = None
        self.pursue_stop(slot, now)
        if index < FIRST_ACTOR:
            self._pursue_renewal(slot)
            self.give_out(now)
        else:
            self.actors.went_on(slot, now)
        if slowest >= _REPORT_AT_ONCE_SECONDS or not slot.outstanding:
            self._ledger.flush()

    def _plain_values(self, slot: Slot, batch: list[Any], now: float) -> tuple[float, ...]:
        """Small values of consecutive tasks, which is what a flood consists of: handled as columns."""
        assignment, first = slot.end_front(len(batch), now)
        _, seconds, values = zip(*batch, strict=True)
        rows = assignment.rows[first : first + len(batch)]
        values = self._supply.store_small(assignment.attempt, rows, values)
        self._ledger.succeeded(assignment, rows, list(map(len, values)), values, seconds, now)
        return cast("tuple[float, ...]", seconds)

    def one_report(self, slot: Slot, assignment: Assignment, task: int, report: list[Any], now: float) -> None:
        """One task has ended, however it did."""
        sequence, seconds, outcome = report[0], report[1], report[2]
        kind = slot.stops.pop(sequence, "")
        row = assignment.rows[task]
        if type(outcome) is not bytes and outcome != "segment":
            self.segments.drop(slot, sequence)
            if outcome == "interrupted":
                outcome = kind or "cancelled"
            elif outcome == "missing":
                self._supply.files_gone(assignment, report[4].pop("files", []))
            self._ledger.failed(assignment, task, outcome, report[3], report[4], seconds)
        elif kind == "cancelled":
            self.segments.drop(slot, sequence)
            self._ledger.failed(assignment, task, "cancelled", b"", {}, seconds)
        elif type(outcome) is bytes:
            values = self._supply.store_small(assignment.attempt, (row,), (outcome,))
            self._ledger.succeeded(assignment, (row,), [len(outcome)], values, (seconds,), now)
            self._ledger.note_contained(assignment, row, report[3] if len(report) > 3 else [])
        else:
            nbytes, contains = report[3], report[4]
            self._supply.store_segment(assignment.attempt, row, slot.segment, nbytes)
            slot.segment = ""
            self._ledger.succeeded(assignment, (row,), [nbytes], (b"",), (seconds,), now)
            self._ledger.note_contained(assignment, row, contains)

    # ------------------------------------------------------------------ giving and taking back

    def give_out(self, now: float) -> None:
        """Fill the pipes that run low from the queue; if it is empty, let idle slots have a part of a full pipe."""
        if self._queue.coroutines and not self.paused:
            self.coroutines.give_out(now)
        self.threads.part()
        if self.nesting.active:
            self.nesting.give_out(now)
        elif self._queue.count and not self.paused:
            takers = [
                slot for slot in self.slots if slot.state is SlotState.READY and not (slot.taking_back or slot.renew)
            ]
            # An idle slot comes before one that is only running low, and one thread of each process before a second.
            threads = self.threads.count
            takers.sort(key=lambda slot: (slot.outstanding, slot.index % threads))
            if self.crowded:
                takers = [] if self.running_count else takers[:1]
            for position, slot in enumerate(takers):
                if not self._queue.count:
                    break
                self.fill(slot, -(-self._queue.count // (len(takers) - position)), now)
        self._balance(now)

    def _ahead(self, assignment: Assignment) -> int:
        # How many tasks of this function a slot may have, the running one counted. Where one runs at a time, what stood
        # behind it would be taken back for the idle slots, and given to this one again, for ever.
        times = self._run_times.get(assignment.function_id)
        if times is None or self.one_task_at_a_time or self.crowded:
            return 1
        median = times.median_seconds
        return _AHEAD_TASKS if median * _AHEAD_TASKS <= _AHEAD_SECONDS else 1 + int(_AHEAD_SECONDS / median)

    def fill(self, slot: Slot, share: int, now: float) -> None:
        """Give a slot tasks, up to so many; inside a task that waits only its children."""
        parent = slot.stack[-1].name if slot.stack else None
        sound = self.threads.take_sound_only(slot)
        while self._queue.count and share > 0:
            if sound:
                assignment = self._queue.first_sound(parent)
            else:
                assignment = self._queue.head() if parent is None else self._queue.children_of(parent)
            if assignment is None:
                return
            ahead = self._ahead(assignment)
            if slot.outstanding:
                if now - slot.front_since > _STALLED_SECONDS or self._ahead(slot.pieces[-1].assignment) == 1:
                    return
                if slot.outstanding > ahead // 2:
                    return
            limit = min(share, ahead - slot.outstanding)
            if sound:
                stretch = self._queue.take_sound(parent, limit)
            else:
                stretch = self._queue.take(limit) if parent is None else self._queue.take_children(parent, limit)
            share -= stretch[2]
            self.give(slot, stretch, now)

    def give(self, slot: Slot, stretch: Stretch, now: float) -> None:
        """Put tasks into a slot's pipe; what lacks its function or an input fails."""
        assignment, first, count = stretch
        if assignment.function_id not in self.functions:
            for task in range(first, first + count):
                message = f"the function of {assignment.label} never came to this worker"
                self._ledger.failed(assignment, task, "unrunnable", b"", {"message": message})
            return
        starts = inputs = b""
        values: list[Any] = []
        if assignment.inputs:
            if self._supply.sends_back(assignment, first, count, now):
                return
            packed = pack_inputs(assignment, first, count, self._supply.values, self._spilling.used)
            if isinstance(packed, GoneInput):
                row, attempt = packed
                details = {"message": "an input is gone", "row": row, "attempt": attempt, "address": ""}
                for failed in range(first, first + count):
                    self._ledger.failed(assignment, failed, "missing", b"", details)
                return
            starts, inputs, values = packed
        function_id = assignment.function_id
        if function_id not in slot.functions:
            if len(slot.functions) >= _FUNCTIONS_A_SLOT:
                slot.functions.clear()
            slot.functions.add(function_id)
            name, function = self.functions[function_id]
            self._ledger.effects.append(DefineInSlot(slot.index, function_id, name, function))
        offsets, blob = assignment.offsets, assignment.blob
        if offsets and count < len(assignment.rows):
            offsets = offsets[4 * first : 4 * (first + count + 1)]
            start, stop = int.from_bytes(offsets[:4], "little"), int.from_bytes(offsets[-4:], "little")
            blob = blob[start:stop]
        sequence = slot.give(assignment, first, count, now)
        self._ledger.effects.append(
            GiveTasks(
                slot.index,
                sequence,
                count,
                function_id,
                assignment.label,
                assignment.arguments,
                offsets,
                blob,
                starts,
                inputs,
                values,
                [assignment.attempt, assignment.rows_from(first, count), assignment.origin, assignment.timeout_seconds],
            )
        )

    def _balance(self, now: float) -> None:
        self._balance_at = None
        if self._queue.count:
            return
        if self.nesting.active:
            if not self.nesting.free_seats:
                return
        elif not any(slot.state is SlotState.READY and not slot.outstanding for slot in self.slots):
            return
        full = [
            slot
            for slot in self.slots
            if slot.outstanding > 1 and slot.state is SlotState.READY and not (slot.taking_back or slot.pipe_is_empty)
        ]
        if not full:
            return
        fullest = max(full, key=lambda slot: slot.outstanding)
        patience_ends = fullest.front_since + _WORTH_TAKING_BACK_SECONDS
        if now >= patience_ends or self.expected_seconds(fullest) > _WORTH_TAKING_BACK_SECONDS:
            self.ask_back(fullest)
        else:
            self._balance_at = patience_ends

    def ask_back(self, slot: Slot) -> None:
        """Take out what is in the slot's pipe, if there can be anything."""
        if slot.state is SlotState.READY and not slot.pipe_is_empty and not slot.taking_back:
            slot.taking_back = True
            self._ledger.effects.append(TakeBack(slot.index))

    def ask_all_back(self) -> None:
        """Take back whatever is in the pipes."""
        for slot in self.slots:
            self.ask_back(slot)

    @property
    def taking_back(self) -> bool:
        """Whether records are being taken out of a pipe."""
        return any(slot.taking_back for slot in self.slots)

    def took_back(self, index: int, sequences: list[int], now: float) -> None:
        """Those records came back from the slot's pipe."""
        slot = self.process(index)
        slot.taking_back = False
        slot.pipe_is_empty = True
        if sequences:
            self.put_back(slot, slot.cut(sequences[0]))
        if slot.stack:
            self.nesting.pipe_emptied(slot)
        self.pursue_stop(slot, now)
        if index < FIRST_ACTOR:
            self._pursue_renewal(slot)
        else:
            self.actors.went_on(slot, now)

    def put_back(self, slot: Slot, taken: list[tuple[int, Stretch]]) -> None:
        """Tasks have come out of the slot's pipe: they are given out again, unless they were to be stopped."""
        stretches: list[Stretch] = []
        for sequence, (assignment, first, count) in taken:
            if not slot.stops:
                stretches.append((assignment, first, count))
                continue
            for offset in range(count):
                kind = slot.stops.pop(sequence + offset, "")
                if kind == "cancelled":
                    self._ledger.failed(assignment, first + offset, kind, b"", {})
                else:
                    stretches.append((assignment, first + offset, 1))
        (self.actors.of(slot) or self._queue).put_back(stretches)

    # ------------------------------------------------------------------ stopping

    def stop(self, assignment: Assignment, task: int, now: float) -> None:
        """End a task that a slot has, claimed or not."""
        if self.actors.slots and self.actors.withdraw(assignment, task):
            self._ledger.failed(assignment, task, "cancelled", b"", {})
            return
        if assignment.is_coroutine:
            self.coroutines.stop(assignment, task, now)
            return
        for slot in self.processes:
            sequence = slot.find(assignment, task)
            if sequence:
                slot.stops[sequence] = "cancelled"
                self.pursue_stop(slot, now)
                return

    def pursue_stop(self, slot: Slot, now: float) -> None:
        """If tasks of the slot are to be stopped: take out those that are not claimed, interrupt the one that runs."""
        if not slot.stops or slot.state is not SlotState.READY:
            return
        if not slot.pipe_is_empty:
            self.ask_back(slot)
        elif slot.stack and not self.nesting.pursue_stop(slot, now):
            return
        elif slot.outstanding and slot.pieces[0].sequence in slot.stops and slot.kill_at is None:
            self._interrupt(slot, slot.pieces[0].sequence, now)

    def wake(self, now: float) -> None:
        """Do what was left for later: timeouts, kills, restarts, a second look at the pipes."""
        self.coroutines.wake(now)
        for slot in self.processes:
            if slot.start_at is not None and now >= slot.start_at:
                self.start(slot)
            if slot.stack:
                self.nesting.time_out(slot, now)
            if slot.state is not SlotState.READY or not slot.outstanding:
                continue
            front = slot.pieces[0]
            limit = front.assignment.timeout_seconds
            if slot.kill_at is not None:
                if now >= slot.kill_at:
                    self.threads.out_of_patience(slot, now)
            elif limit and now >= slot.front_since + limit:
                slot.stops.setdefault(front.sequence, "timeout")
                self._interrupt(slot, front.sequence, now)
        self.threads.wake()
        if self._balance_at is not None and now >= self._balance_at:
            self._balance(now)

    def _interrupt(self, slot: Slot, sequence: int, now: float) -> None:
        slot.kill_at = now + STOP_PATIENCE_SECONDS
        self._ledger.effects.append(Interrupt(slot.index, sequence))


def _count_plain(reports: list[Any], start: int, limit: int) -> int:
    """How many reports from there on are small values without futures in them."""
    stop = min(len(reports), start + limit)
    for position in range(start, stop):
        report = reports[position]
        if len(report) != 3 or type(report[2]) is not bytes:
            return position - start
    return stop - start
