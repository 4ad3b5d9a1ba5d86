"""Tasks that are coroutines: many run at once in a process of their own kind, beside the slots.

They wait, for the most part, and so they count for no slot: a task that computes never waits behind one that sleeps.
The scheduler bounds how many a worker has (the resource `coroutines`). There is one such process for each slot, started
when there is something for it, and each new task goes to the one that has fewest.

Nobody can tell which coroutine of a process it was that ended it. All are charged, and the next time those that died
are kept apart: after one death a task runs beside at most nine of its kind, after two alone. So the one that did it
fails by name, and takes nobody along.

Stopping one cancels its asyncio task, and what it does then is its own affair: it is waited for, unless its event loop
does not even take note of that. Then its process is ended, and the others run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cluster.errors import ProtocolError
from cluster.worker.events import BecomeCoroutines, Say, SlotExited, StopCoroutine
from cluster.worker.ledger import Ledger
from cluster.worker.queue import Assignment, ReadyQueue, Stretch
from cluster.worker.slots import STOP_PATIENCE_SECONDS, Slot, SlotState

if TYPE_CHECKING:
    from cluster.worker.workforce import Workforce

__all__ = ["FIRST_COROUTINES", "Coroutines"]

FIRST_COROUTINES: Final = 2_000_000
"""The number of the first process of coroutines; those of slots and actors are smaller."""

# A process that has so many gets no more while another may be started.
_WELL_FILLED: Final = 100
# A process never has more: their records must fit into its pipe.
_MOST: Final = 4000
# By how often they died with their process: how many may be together. The first stands for all.
_TOGETHER_AFTER: Final = (0, 10, 1)
# Processes for those that died, a slot; one more for each slot is for all others.
_PROCESSES_APART_A_SLOT: Final = 4
_FIRST_RESTART_SECONDS: Final = 0.1
_LAST_RESTART_SECONDS: Final = 10.0


class _Running(NamedTuple):
    assignment: Assignment
    task: int
    since: float


class CoroutineProcess(Slot):
    """A process and the coroutines that it has; none is ahead of another."""

    def __init__(self, index: int, deaths: int) -> None:
        super().__init__(index, given_singly=True)
        self.deaths = deaths  # of those that run here, at most two
        self.running: dict[int, _Running] = {}
        self.timeouts: list[tuple[float, int]] = []  # a heap of (when, sequence)
        self.kills: dict[int, float] = {}  # sequence that was told to stop -> when patience with its loop ends

    @property
    def room(self) -> int:
        """How many more may come."""
        return max(0, (_TOGETHER_AFTER[self.deaths] or _WELL_FILLED) - self.outstanding)

    def give(self, assignment: Assignment, index: int, count: int, now: float) -> int:
        """Note tasks as given; the first one's sequence."""
        sequence = self.next_sequence
        self.next_sequence += count
        self.outstanding += count
        for offset in range(count):
            self.running[sequence + offset] = _Running(assignment, index + offset, now)
            if assignment.timeout_seconds:
                heappush(self.timeouts, (now + assignment.timeout_seconds, sequence + offset))
        return sequence

    def end(self, sequence: int) -> tuple[Assignment, int]:
        """That task has ended."""
        assignment, index, _ = self.running.pop(sequence)
        self.outstanding -= 1
        self.kills.pop(sequence, None)
        return assignment, index

    def find(self, assignment: Assignment, index: int) -> int:
        """The sequence of a task that it has, 0 if it has it not."""
        for sequence, running in self.running.items():
            if running.assignment is assignment and running.task == index:
                return sequence
        return 0

    def front(self) -> tuple[int, int] | None:
        """None: what no coroutine is named for is nobody's."""
        return None

    def run_at(self, sequence: int) -> tuple[int, int] | None:
        """Attempt and row of a task that it has."""
        running = self.running.get(sequence)
        return None if running is None else (running.assignment.attempt, running.assignment.rows[running.task])


class Coroutines:
    """All coroutines of an agent. Those that no process has stand in `ReadyQueue.coroutines`."""

    def __init__(self, workforce: Workforce, ledger: Ledger, queue: ReadyQueue, seats: int) -> None:
        self.slots: dict[int, CoroutineProcess] = {}
        self._workforce = workforce
        self._ledger = ledger
        self._waiting = queue.coroutines
        self._queue = queue
        self._seats = seats
        self._processes = 0
        self._failed_starts = 0
        self._start_at: float | None = None  # not before, since the last one did not get ready

    @property
    def count(self) -> int:
        """Coroutines that run, or wait for a process."""
        if not self.slots and not self._waiting:
            return 0
        return sum(slot.outstanding for slot in self.slots.values()) + sum(count for _, _, count in self._waiting)

    def stretches(self) -> Iterator[Stretch]:
        """Those that processes have."""
        for slot in self.slots.values():
            for running in slot.running.values():
                yield running.assignment, running.task, 1

    # ------------------------------------------------------------------ giving out

    def give_out(self, now: float) -> None:
        """Give what waits to processes, and start some."""
        waiting = self._waiting
        kept: deque[Stretch] = deque()
        full: set[int] = set()
        while waiting:
            assignment, first, count = waiting.popleft()
            deaths = min(assignment.deaths_of(first), len(_TOGETHER_AFTER) - 1)
            alike = 1
            while alike < count and min(assignment.deaths_of(first + alike), len(_TOGETHER_AFTER) - 1) == deaths:
                alike += 1
            if alike < count:
                waiting.appendleft((assignment, first + alike, count - alike))
            process = None if deaths in full else self._process_for(deaths)
            if process is None:
                full.add(deaths)
                kept.append((assignment, first, alike))
                continue
            given = min(alike, process.room or _WELL_FILLED)
            if given < alike:
                waiting.appendleft((assignment, first + given, alike - given))
            self._workforce.give(process, (assignment, first, given), now)
        waiting.extend(kept)

    def _process_for(self, deaths: int) -> CoroutineProcess | None:
        """The process that takes the next of those that died so often; None: wait for one."""
        mine = [slot for slot in self.slots.values() if slot.deaths == deaths and not slot.renew]
        up = [slot for slot in mine if slot.state is SlotState.READY]
        least = min(up, key=lambda slot: slot.outstanding, default=None)
        if least is not None and least.room:
            return least
        if any(slot.state is SlotState.STARTING for slot in mine):
            return None
        allowed = self._seats * _PROCESSES_APART_A_SLOT if deaths else self._seats
        if len(mine) < allowed:
            self._start(deaths)
            return None
        return None if deaths or least is None or least.outstanding + _WELL_FILLED > _MOST else least

    def _start(self, deaths: int) -> None:
        if self._start_at is None:
            slot = CoroutineProcess(FIRST_COROUTINES + self._processes, deaths)
            self._processes += 1
            self.slots[slot.index] = slot
            self._workforce.start(slot)

    def hand_back(self) -> None:
        """Put what no process has into the queue, from which the scheduler takes it back."""
        if self._waiting:
            self._queue.put_back(list(self._waiting))
            self._waiting.clear()

    def ready(self, slot: Slot, now: float) -> None:
        """A process waits for its first task."""
        self._failed_starts = 0
        self._ledger.effects.append(BecomeCoroutines(slot.index))

    # ------------------------------------------------------------------ ends

    def reported(self, process: Slot, reports: list[Any], now: float) -> None:
        """Coroutines have ended, in any order."""
        slot = self.slots[process.index]
        for report in reports:
            if report[0] not in slot.running:
                raise ProtocolError(f"process {slot.index} reports task {report[0]}, which it was not given to run")
            self._workforce.one_report(slot, *slot.end(report[0]), report, now)
        self._let_go(slot)
        self._ledger.flush()

    def _let_go(self, slot: CoroutineProcess) -> None:
        if not slot.outstanding and slot.state is SlotState.READY and (slot.renew or slot.deaths):
            self._workforce.end(slot)

    def renew(self) -> None:
        """Give these processes nothing more, and end each when it has nothing left."""
        for slot in self.slots.values():
            slot.renew = True
            self._let_go(slot)

    def end_all(self) -> None:
        """End all processes now; what is lost with that, and was not stopped, runs again."""
        for slot in self.slots.values():
            if slot.state is SlotState.READY:
                self._workforce.end(slot)

    def exited(self, end: SlotExited, cause: str, now: float) -> None:
        """A process has ended: what it had begun is charged, unless it was ended from here."""
        slot = self.slots.pop(end.slot)
        was_starting, was_ours = slot.state is SlotState.STARTING, slot.state is SlotState.ENDING
        if was_starting:
            self._failed_starts += 1
            doublings = min(self._failed_starts - 1, 10)
            self._start_at = now + min(_LAST_RESTART_SECONDS, _FIRST_RESTART_SECONDS * 2**doublings)
            last_lines = end.last_lines.strip() or "nothing"
            self._ledger.effects.append(
                Say(
                    f"a process for coroutines has ended before it was ready, with {cause}. It last wrote: {last_lines}"
                )
            )
        unclaimed = set(end.unclaimed)
        began = len(slot.running) - len(unclaimed)
        for sequence, (assignment, index, _) in slot.running.items():
            kind = slot.stops.get(sequence, "died")
            if sequence in unclaimed and kind == "cancelled":
                self._ledger.failed(assignment, index, kind, b"", {})
            elif kind == "died" and (was_ours or sequence in unclaimed):
                self._waiting.append((assignment, index, 1))
            else:
                self._workforce.fail_dead(assignment, index, kind, end, waiting=False, beside=max(0, began - 1))
        self._ledger.flush()

    # ------------------------------------------------------------------ stopping

    def stop(self, assignment: Assignment, index: int, now: float) -> None:
        """Stop a coroutine, which may have a process or not."""
        for position, (owner, first, count) in enumerate(self._waiting):
            if owner is assignment and first <= index < first + count:
                del self._waiting[position]
                if index + 1 < first + count:
                    self._waiting.insert(position, (owner, index + 1, first + count - index - 1))
                if index > first:
                    self._waiting.insert(position, (owner, first, index - first))
                self._ledger.failed(assignment, index, "cancelled", b"", {})
                return
        for slot in self.slots.values():
            sequence = slot.find(assignment, index)
            if sequence:
                self._stop(slot, sequence, "cancelled", now)
                return

    def stop_all(self, now: float) -> None:
        """Stop all."""
        for slot in self.slots.values():
            for sequence in slot.running:
                self._stop(slot, sequence, "cancelled", now)

    def _stop(self, slot: CoroutineProcess, sequence: int, kind: str, now: float) -> None:
        if sequence in slot.stops:
            return
        slot.stops[sequence] = kind
        slot.kills[sequence] = now + STOP_PATIENCE_SECONDS
        self._ledger.effects.append(StopCoroutine(slot.index, sequence))

    def stopping(self, index: int, sequence: int) -> None:
        """The loop has taken note: the coroutine takes the time that it takes."""
        self.slots[index].kills.pop(sequence, None)

    # ------------------------------------------------------------------ time

    def next_wakeup(self) -> float | None:
        """When `wake` has something to do."""
        times = [self._start_at] if self._start_at is not None else []
        for slot in self.slots.values():
            if slot.state is SlotState.READY:
                while slot.timeouts and slot.timeouts[0][1] not in slot.running:
                    heappop(slot.timeouts)
                if slot.timeouts:
                    times.append(slot.timeouts[0][0])
                times += slot.kills.values()
        return min(times, default=None)

    def wake(self, now: float) -> None:
        """Stop what has run too long, end the process of what did not stop."""
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
        for slot in self.slots.values():
            if slot.state is not SlotState.READY:
                continue
            while slot.timeouts and now >= slot.timeouts[0][0]:
                _, sequence = heappop(slot.timeouts)
                if sequence in slot.running:
                    self._stop(slot, sequence, "timeout", now)
            if any(now >= at for at in slot.kills.values()):
                self._workforce.end(slot)

    # ------------------------------------------------------------------ questions

    def whereabouts(self, assignment: Assignment, index: int, now: float) -> dict[str, Any]:
        """As `Whereabouts` says."""
        for slot in self.slots.values():
            sequence = slot.find(assignment, index)
            if sequence:
                seconds = now - slot.running[sequence].since
                stopping = slot.stops.get(sequence, "")
                return {"where": "slot", "slot": slot.index, "ahead": 0, "seconds": seconds, "stopping": stopping}
        ahead = 0
        for owner, first, count in self._waiting:
            if owner is assignment and first <= index < first + count:
                ready = sum(slot.state is SlotState.READY for slot in self.slots.values())
                ahead += index - first
                return {"where": "queued", "ahead": ahead, "ready": ready, "slots": len(self.slots), "busy": []}
            ahead += count
        return {"where": "gone"}
