"""The slots: who gets which task, how much ahead, what is taken back, what is stopped, and what a death costs.

A slot's pipe holds as many tasks as last about 3 ms, so that it never waits for the agent; everything else stays in the
agent's queue, where a slot that becomes free finds it at once and a recall costs nothing. Tasks that are taken out of a
pipe, for whatever reason, go back to the front of the queue and are given out from there again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Final, cast

from cluster.errors import ProtocolError
from cluster.worker.events import (
    AnswerSegment,
    CreateSegment,
    DefineInSlot,
    GiveTasks,
    Interrupt,
    KillSlot,
    RemoveSegments,
    Say,
    SlotExited,
    StartSlot,
    TakeBack,
)
from cluster.worker.ledger import Ledger
from cluster.worker.queue import Assignment, ReadyQueue, Stretch
from cluster.worker.slots import RunTimes, Slot, SlotState
from cluster.worker.supply import Supply
from cluster.worker.values import Segment, value_key

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
# Between asking a task to stop and killing its slot.
_STOP_PATIENCE_SECONDS: Final = 1.0
# Pauses before a slot is started again that did not get ready: doubled each time.
_FIRST_RESTART_SECONDS: Final = 0.1
_LAST_RESTART_SECONDS: Final = 10.0
_FAILED_STARTS_WORTH_SAYING: Final = 3
# A slot forgets its functions when it has so many, and is handed again what it needs.
_FUNCTIONS_A_SLOT: Final = 1000


class Workforce:
    """All slots of an agent."""

    def __init__(
        self, count: int, ledger: Ledger, queue: ReadyQueue, supply: Supply, new_request: Callable[[], int]
    ) -> None:
        self.slots = [Slot(index) for index in range(count)]
        self.functions: dict[bytes, tuple[str, bytes]] = {}
        self._ledger = ledger
        self._queue = queue
        self._supply = supply
        self._new_request = new_request
        self._requests: dict[int, tuple[int, int, int]] = {}  # segments being created: slot, sequence, nbytes
        self._run_times: dict[bytes, RunTimes] = {}
        self._balance_at: float | None = None
        self._closing = False

    # ------------------------------------------------------------------ facts

    @property
    def running_count(self) -> int:
        """Slots with a task."""
        return sum(1 for slot in self.slots if slot.outstanding)

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
        for slot in self.slots:
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
            self._start(slot)

    def ready(self, index: int) -> None:
        """The slot waits for its first task."""
        slot = self.slots[index]
        if slot.state is SlotState.STARTING:
            slot.state = SlotState.READY
            slot.failed_starts = 0

    def exited(self, end: SlotExited, now: float) -> None:
        """The slot's process has ended. Only the task that it had claimed and not reported is charged with that."""
        slot = self.slots[end.slot]
        was_starting, was_ours = slot.state is SlotState.STARTING, slot.state is SlotState.ENDING
        self._drop_segment(slot)
        if end.unclaimed:
            self._put_back(slot, slot.cut(end.unclaimed[0]))
        while slot.outstanding:
            sequence = slot.pieces[0].sequence
            assignment, task = slot.end_front(1, now)
            kind = slot.stops.pop(sequence, "died")
            if was_ours and kind == "died":
                # We ended it for another task, which had just ended by itself.
                self._queue.put_back([(assignment, task, 1)])
            else:
                self._fail_dead(assignment, task, kind, end)
        slot.functions.clear()
        slot.stops.clear()
        slot.kill_at = None
        slot.taking_back = False
        slot.pipe_is_empty = True
        slot.state = SlotState.ABSENT
        if self._closing:
            return
        if not was_starting:
            self._start(slot)
            return
        slot.failed_starts += 1
        if slot.failed_starts >= _FAILED_STARTS_WORTH_SAYING:
            self._ledger.effects.append(
                Say(
                    f"slot {slot.index} has ended {slot.failed_starts} times in a row before it was ready, with "
                    f"{_cause(end)}; it is tried again. It last wrote: {end.last_lines.strip() or 'nothing'}"
                )
            )
        doublings = min(slot.failed_starts - 1, 10)
        slot.start_at = now + min(_LAST_RESTART_SECONDS, _FIRST_RESTART_SECONDS * 2**doublings)

    def stop_replacing(self) -> None:
        """From now on no slot is started any more."""
        self._closing = True
        for slot in self.slots:
            slot.start_at = None

    def end_running(self, now: float) -> None:
        """End every task that a slot still has; each is answered as cancelled."""
        for slot in self.slots:
            for piece in slot.pieces:
                for sequence in range(piece.sequence, piece.sequence + piece.count):
                    slot.stops.setdefault(sequence, "cancelled")
            self._pursue_stop(slot, now)

    def _start(self, slot: Slot) -> None:
        slot.start_at = None
        slot.state = SlotState.STARTING
        self._ledger.effects.append(StartSlot(slot.index))

    def _fail_dead(self, assignment: Assignment, task: int, kind: str, end: SlotExited) -> None:
        if kind == "died":
            message = f"the process that ran the task ended with {_cause(end)}"
        else:
            message = "the task did not stop when it was asked to, so its process was ended"
        details = {
            "message": message,
            "signal": end.signal,
            "exit_code": end.exit_code,
            "lines": end.last_lines,
            "peak_memory_bytes": end.peak_memory_bytes,
        }
        self._ledger.failed(assignment, task, kind, b"", details)

    # ------------------------------------------------------------------ reports

    def reported(self, index: int, reports: list[Any], now: float) -> None:
        """Tasks have ended in the slot."""
        slot = self.slots[index]
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
                self._one_report(slot, reports[position], now)
                seconds = (reports[position][1],)
            position += count
            slowest = max(slowest, max(seconds))
            self._run_times.setdefault(function_id, RunTimes()).add(seconds)
        slot.kill_at = None
        self._pursue_stop(slot, now)
        self.give_out(now)
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

    def _one_report(self, slot: Slot, report: list[Any], now: float) -> None:
        sequence, seconds, outcome = report[0], report[1], report[2]
        assignment, task = slot.end_front(1, now)
        kind = slot.stops.pop(sequence, "")
        row = assignment.rows[task]
        if type(outcome) is not bytes and outcome != "segment":
            self._drop_segment(slot)
            if outcome == "interrupted":
                outcome = kind or "cancelled"
            self._ledger.failed(assignment, task, outcome, report[3], report[4], seconds)
        elif kind == "cancelled":
            self._drop_segment(slot)
            self._ledger.failed(assignment, task, "cancelled", b"", {}, seconds)
        elif type(outcome) is bytes:
            values = self._supply.store_small(assignment.attempt, (row,), (outcome,))
            self._ledger.succeeded(assignment, (row,), [len(outcome)], values, (seconds,), now)
            self._ledger.note_contained(assignment, row, report[3] if len(report) > 3 else [])
        else:
            nbytes, contains = report[3], report[4]
            self._supply.store_segment(assignment.attempt, row, Segment(slot.segment, nbytes))
            slot.segment = ""
            self._ledger.succeeded(assignment, (row,), [nbytes], (b"",), (seconds,), now)
            self._ledger.note_contained(assignment, row, contains)

    # ------------------------------------------------------------------ segments for results

    def segment_asked(self, index: int, sequence: int, nbytes: int) -> None:
        """The slot's task has a large result."""
        request = self.slots[index].segment_request = self._new_request()
        self._requests[request] = (index, sequence, nbytes)
        self._ledger.effects.append(CreateSegment(request, nbytes, b""))

    def segment_created(self, request: int, path: str) -> None:
        """Hand the segment to the slot, if it still waits."""
        index, sequence, _ = self._requests.pop(request)
        slot = self.slots[index]
        if slot.segment_request != request:
            self._ledger.effects.append(RemoveSegments([path]))
            return
        slot.segment_request = 0
        slot.segment = path
        self._ledger.effects.append(AnswerSegment(index, sequence, path, ""))

    def segment_failed(self, request: int, reason: str) -> None:
        """There is no room for the result."""
        index, sequence, _ = self._requests.pop(request)
        slot = self.slots[index]
        if slot.segment_request == request:
            slot.segment_request = 0
            self._ledger.effects.append(AnswerSegment(index, sequence, "", reason))

    def _drop_segment(self, slot: Slot) -> None:
        slot.segment_request = 0
        if slot.segment:
            self._ledger.effects.append(RemoveSegments([slot.segment]))
            slot.segment = ""

    # ------------------------------------------------------------------ giving and taking back

    def give_out(self, now: float) -> None:
        """Fill the pipes that run low from the queue; if it is empty, let idle slots have a part of a full pipe."""
        if self._queue.count:
            takers = [slot for slot in self.slots if slot.state is SlotState.READY and not slot.taking_back]
            takers.sort(key=lambda slot: slot.outstanding)  # an idle slot comes before one that is only running low
            for position, slot in enumerate(takers):
                if not self._queue.count:
                    break
                self._fill(slot, -(-self._queue.count // (len(takers) - position)), now)
        self._balance(now)

    def _ahead(self, assignment: Assignment) -> int:
        # How many tasks of this function a slot may have, the running one counted.
        times = self._run_times.get(assignment.function_id)
        if times is None:
            return 1
        median = times.median_seconds
        return _AHEAD_TASKS if median * _AHEAD_TASKS <= _AHEAD_SECONDS else 1 + int(_AHEAD_SECONDS / median)

    def _fill(self, slot: Slot, share: int, now: float) -> None:
        while self._queue.count and share > 0:
            assignment = self._queue.head()
            ahead = self._ahead(assignment)
            if slot.outstanding:
                if now - slot.front_since > _STALLED_SECONDS or self._ahead(slot.pieces[-1].assignment) == 1:
                    return
                if slot.outstanding > ahead // 2:
                    return
            stretch = self._queue.take(min(share, ahead - slot.outstanding))
            share -= stretch[2]
            self._give(slot, stretch, now)

    def _give(self, slot: Slot, stretch: Stretch, now: float) -> None:
        assignment, first, count = stretch
        if assignment.function_id not in self.functions:
            for task in range(first, first + count):
                details = {"message": f"the function of {assignment.label} never came to this worker"}
                self._ledger.failed(assignment, task, "unrunnable", b"", details)
            return
        starts = inputs = b""
        values: list[Any] = []
        if assignment.inputs:
            packed = self._pack_inputs(assignment, first, count)
            if packed is None:
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
            )
        )

    def _pack_inputs(self, assignment: Assignment, first: int, count: int) -> tuple[bytes, bytes, list[Any]] | None:
        """The inputs of some tasks as a table and indices into it; None if one is gone, and then they have failed."""
        place: dict[int, int] = {}
        values: list[Any] = []
        starts, inputs = array("I", (0,)), array("I")
        # What all tasks take is listed once.
        for task in range(first, first + count) if assignment.input_starts else (first,):
            for need in assignment.needs(task):
                position = place.get(need)
                if position is None:
                    row, attempt = assignment.values[need][:2]
                    value = self._supply.values.get(value_key(attempt, row))
                    if value is None:
                        details = {"message": "an input is gone", "row": row, "attempt": attempt, "address": ""}
                        for failed in range(first, first + count):
                            self._ledger.failed(assignment, failed, "missing", b"", details)
                        return None
                    position = place[need] = len(values)
                    values.append(list(value) if isinstance(value, Segment) else value)
                inputs.append(position)
            starts.append(len(inputs))
        return starts.tobytes() if assignment.input_starts else b"", inputs.tobytes(), values

    def _balance(self, now: float) -> None:
        self._balance_at = None
        if self._queue.count:
            return
        if not any(slot.state is SlotState.READY and not slot.outstanding for slot in self.slots):
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
            self._ask_back(fullest)
        else:
            self._balance_at = patience_ends

    def _ask_back(self, slot: Slot) -> None:
        if slot.state is SlotState.READY and not slot.pipe_is_empty and not slot.taking_back:
            slot.taking_back = True
            self._ledger.effects.append(TakeBack(slot.index))

    def ask_all_back(self) -> bool:
        """Take back whatever is in the pipes; False if there can be nothing."""
        for slot in self.slots:
            self._ask_back(slot)
        return self.taking_back

    @property
    def taking_back(self) -> bool:
        """Whether records are being taken out of a pipe."""
        return any(slot.taking_back for slot in self.slots)

    def took_back(self, index: int, sequences: list[int], now: float) -> None:
        """Those records came back from the slot's pipe."""
        slot = self.slots[index]
        slot.taking_back = False
        slot.pipe_is_empty = True
        if sequences:
            self._put_back(slot, slot.cut(sequences[0]))
        self._pursue_stop(slot, now)

    def _put_back(self, slot: Slot, taken: list[tuple[int, Stretch]]) -> None:
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
        self._queue.put_back(stretches)

    # ------------------------------------------------------------------ stopping

    def stop(self, assignment: Assignment, task: int, now: float) -> None:
        """End a task that a slot has, claimed or not."""
        for slot in self.slots:
            sequence = slot.find(assignment, task)
            if sequence:
                slot.stops[sequence] = "cancelled"
                self._pursue_stop(slot, now)
                return

    def _pursue_stop(self, slot: Slot, now: float) -> None:
        """If tasks of the slot are to be stopped: take out those that are not claimed, interrupt the one that runs."""
        if not slot.stops or slot.state is not SlotState.READY:
            return
        if not slot.pipe_is_empty:
            self._ask_back(slot)
        elif slot.outstanding and slot.pieces[0].sequence in slot.stops and slot.kill_at is None:
            self._interrupt(slot, slot.pieces[0].sequence, now)

    def wake(self, now: float) -> None:
        """Do what was left for later: timeouts, kills, restarts, a second look at the pipes."""
        for slot in self.slots:
            if slot.start_at is not None and now >= slot.start_at:
                self._start(slot)
            if slot.state is not SlotState.READY or not slot.outstanding:
                continue
            front = slot.pieces[0]
            limit = front.assignment.timeout_seconds
            if slot.kill_at is not None:
                if now >= slot.kill_at:
                    slot.kill_at = None
                    slot.state = SlotState.ENDING
                    self._ledger.effects.append(KillSlot(slot.index))
            elif limit and now >= slot.front_since + limit:
                slot.stops.setdefault(front.sequence, "timeout")
                self._interrupt(slot, front.sequence, now)
        if self._balance_at is not None and now >= self._balance_at:
            self._balance(now)

    def _interrupt(self, slot: Slot, sequence: int, now: float) -> None:
        slot.kill_at = now + _STOP_PATIENCE_SECONDS
        self._ledger.effects.append(Interrupt(slot.index, sequence))


def _count_plain(reports: list[Any], start: int, limit: int) -> int:
    """How many reports from there on are small values without futures in them."""
    stop = min(len(reports), start + limit)
    for position in range(start, stop):
        report = reports[position]
        if len(report) != 3 or type(report[2]) is not bytes:
            return position - start
    return stop - start


def _cause(end: SlotExited) -> str:
    return f"signal {end.signal}" if end.signal >= 0 else f"exit status {end.exit_code}"
