"""Tasks that wait for tasks: who runs inside whom, and how many processes run at once.

A worker has as many *seats* as slots: so many tasks run at a time. As long as no task waits for others, each process
has its seat, and nothing here is used. A task that waits gives its seat up and keeps its process, on the stack of that
process (`Slot.stack`). Then, in this order:

1. A task whose wait is over takes the next free seat. Until all of these have one, nothing new is given out, and the
   pipes are emptied, so that the next task to end makes room.
2. Children of the innermost task that waits in a process run inside that process, on top of it. A recursion a thousand
   deep takes one process.
3. Everything else needs a process in which no task waits: one of the slots, or a further one, which is started when a
   seat is free and none is left. A worker has at most eight further processes for each slot; so many are kept when
   they idle as there are slots.

When a task begins to wait, what was granted ahead and cannot start at once goes back to the scheduler, which then
grants the children first. When no further process can be had, the scheduler is told (`Room`), and grants nothing but
children.

A task that is to be stopped while it waits is made to go on at once, seat or not, by being interrupted; what runs
inside it is stopped before. Those are its descendants; the scheduler runs them again if they are still wanted. When a
process dies, the task that ran is charged with it, as always. Those that waited below it are answered as "died" while
waiting, of which the scheduler allows more: it was a child of theirs that did it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from cluster.errors import ProtocolError
from cluster.wire import messages
from cluster.worker.events import GoOn, KillSlot, NoteWait, SlotExited
from cluster.worker.ledger import Ledger
from cluster.worker.queue import ReadyQueue
from cluster.worker.slots import STOP_PATIENCE_SECONDS, Slot, SlotState

if TYPE_CHECKING:
    from cluster.worker.workforce import Workforce

__all__ = ["Nesting"]

FURTHER_PROCESSES_A_SLOT: Final = 8
_NOT_ASKED: Final = -1  # the number of a Recalled that nobody asked for


class Nesting:
    """The part of the workforce that knows of tasks that wait."""

    def __init__(self, workforce: Workforce, ledger: Ledger, queue: ReadyQueue, seats: int) -> None:
        self.active = False  # a task waits, or there are further processes
        self._workforce = workforce
        self._ledger = ledger
        self._queue = queue
        self._seats = seats
        self._woken: deque[Slot] = deque()
        self._change = 0
        self._room_told = seats
        self._hands_back = False  # what cannot start at once goes back to the scheduler

    @property
    def free_seats(self) -> int:
        """How many tasks more may run now."""
        return max(0, self._seats - sum(slot.runs for slot in self._workforce.slots))

    @property
    def is_full(self) -> bool:
        """Whether no further process may be started."""
        return len(self._workforce.slots) >= self._seats * (1 + FURTHER_PROCESSES_A_SLOT)

    def is_spare(self, slot: Slot) -> bool:
        """Whether this is a further process, started only when it is needed."""
        return slot.index >= self._seats

    # ------------------------------------------------------------------ waiting and going on

    def waits(self, index: int, sequence: int, now: float) -> None:
        """The slot's task waits for others."""
        slot = self._workforce.slots[index]
        if slot.state is not SlotState.READY:
            return  # it was killed meanwhile
        if not slot.pieces or slot.pieces[0].sequence != sequence:
            raise ProtocolError(f"slot {index} says that task {sequence} waits, which does not run there")
        if sequence in slot.stops:
            self._ledger.effects.append(GoOn(index, sequence, interrupted=True))
            return
        self.active = True
        attempt, row = slot.suspend(now).name
        self._tell(messages.Suspended, row, attempt)
        if slot.pipe_is_empty:
            self.pipe_emptied(slot)
        else:
            self._workforce.ask_back(slot)

    def pipe_emptied(self, slot: Slot) -> None:
        """Nothing is left in the pipe of a process with tasks that wait."""
        frame = slot.stack[-1]
        # Without a pipe to take from, a child may be left that was given as the task went on: it is to run inside, too.
        if not frame.noted and (slot.given_singly or not slot.outstanding):
            frame.noted = True
            self._hands_back = True
            self._ledger.effects.append(NoteWait(slot.index, frame.sequence))

    def woken(self, index: int, sequence: int) -> None:
        """What the innermost task of the slot waited for has come."""
        slot = self._workforce.slots[index]
        if slot.state is SlotState.READY and slot.stack and slot.stack[-1].sequence == sequence:
            attempt, row = slot.stack[-1].name
            self._tell(messages.Resumed, row, attempt)
            slot.woken = True
            self._woken.append(slot)
            self.let_go_on()

    def let_go_on(self) -> None:
        """Give free seats to tasks that want to go on; let there be some soon."""
        free = self.free_seats if self._woken else 0
        while self._woken and free:
            free -= 1
            self._go_on(self._woken.popleft(), interrupted=False)
        if self._woken:
            for slot in self._workforce.slots:
                if slot.runs:
                    self._workforce.ask_back(slot)

    def _go_on(self, slot: Slot, *, interrupted: bool) -> None:
        frame = slot.resume()
        self._ledger.effects.append(GoOn(slot.index, frame.sequence, interrupted))
        self._workforce.ask_back(slot)  # its children, which would be run inside the task below it, when it has ended

    # ------------------------------------------------------------------ giving out

    def give_out(self, now: float) -> None:
        """As `Workforce.give_out`, while tasks wait or there are further processes."""
        self.let_go_on()
        if not self._woken and self._queue.count and not self._workforce.paused:
            self._fill_all(now)
            if self._hands_back:
                self._hand_back()
            # What is left then are children that a process with a task inside keeps waiting: no grant may follow.
            if self._queue.count and self.free_seats:
                self._start_further()
        self._hands_back = False
        self._end_spares()
        self._tell_room()

    def _fill_all(self, now: float) -> None:
        workforce, queue = self._workforce, self._queue
        slots = [
            slot
            for slot in workforce.slots
            if slot.state is SlotState.READY and not slot.taking_back and (slot.stack or not slot.renew)
        ]
        idle = [slot for slot in slots if not slot.outstanding and (not slot.stack or slot.stack[-1].noted)]
        free = self.free_seats
        # Where there are more seats than processes, further ones are coming, and nothing is put into a pipe for later.
        share = -(-queue.count // free) if 0 < free <= len(idle) else 1
        for slot in sorted(idle, key=lambda slot: not slot.stack):  # inside those that wait first
            if free and queue.count:
                workforce.fill(slot, share, now)
                free -= bool(slot.outstanding)
        if not free:
            share = -(-queue.count // self._seats)
            for slot in slots:
                if slot.outstanding and queue.count:
                    workforce.fill(slot, share, now)

    def _hand_back(self) -> None:
        """Give what cannot start now back to the scheduler, which may have better for the free seats."""
        innermost = {slot.stack[-1].name for slot in self._workforce.slots if slot.stack}
        names: list[int] = []
        for assignment, first, count in self._queue.take_all_but_children(innermost):
            for index in range(first, first + count):
                names += self._ledger.brought_back(assignment, index)
        if names:
            self._ledger.send(messages.Recalled(self._ledger.epoch, _NOT_ASKED, names))

    def _start_further(self) -> None:
        """Start processes for tasks that have a seat and no process; give them back if none can be had."""
        workforce = self._workforce
        coming = sum(
            slot.state is SlotState.STARTING or slot.start_at is not None or slot.state is SlotState.ENDING
            for slot in workforce.slots
        )
        if any(slot.stack and not slot.stack[-1].noted for slot in workforce.slots):
            return  # a process that is just being emptied may take what is queued
        wanted = min(self._queue.count, self.free_seats) - coming
        for slot in workforce.slots:
            if wanted > 0 and slot.state is SlotState.ABSENT and slot.start_at is None:
                workforce.start(slot)
                wanted -= 1
        while wanted > 0 and not self.is_full:
            slot = Slot(len(workforce.slots), given_singly=workforce.one_task_at_a_time)
            workforce.slots.append(slot)
            workforce.start(slot)
            wanted -= 1
        if wanted > 0 and not coming:
            self._hand_back()

    def _end_spares(self) -> None:
        """End further processes that idle, but for one a slot; when all are gone and nobody waits, all is as before."""
        slots = self._workforce.slots
        idle = [slot for slot in slots if slot.state is SlotState.READY and not slot.outstanding and not slot.stack]
        for slot in reversed(idle[self._seats * 2 :]):
            if self.is_spare(slot) and not slot.taking_back:
                slot.state = SlotState.ENDING
                self._ledger.effects.append(KillSlot(slot.index))
        while len(slots) > self._seats and slots[-1].state is SlotState.ABSENT and slots[-1].start_at is None:
            if self._workforce.segments.awaited:  # perhaps one for that process, and its number must stay known
                break
            slots.pop()
        self.active = len(slots) > self._seats or any(slot.stack for slot in slots)

    def _tell_room(self) -> None:
        kept = sum(1 for slot in self._workforce.slots if slot.stack)
        room = min(self._seats, self._seats * (1 + FURTHER_PROCESSES_A_SLOT) - kept)
        if room != self._room_told:
            self._room_told = room
            self._change += 1
            self._ledger.send(messages.Room(self._ledger.epoch, self._change, room))

    def _tell(self, kind: type[messages.Suspended] | type[messages.Resumed], row: int, attempt: int) -> None:
        self._change += 1
        self._ledger.send(kind(self._ledger.epoch, self._change, row, attempt))

    # ------------------------------------------------------------------ stopping, dying

    def pursue_stop(self, slot: Slot, now: float) -> bool:
        """If a task that waits is to be stopped: stop what is inside it, or make it go on; False if that is all."""
        doomed = any(frame.sequence in slot.stops for frame in slot.stack)
        if doomed and slot.outstanding and not slot.woken:
            slot.stops.setdefault(slot.pieces[0].sequence, "cancelled")
        elif doomed:
            slot.stops.setdefault(slot.stack[-1].sequence, "cancelled")
            if slot.woken:
                self._woken.remove(slot)
            else:
                attempt, row = slot.stack[-1].name
                self._tell(messages.Resumed, row, attempt)
            slot.kill_at = now + STOP_PATIENCE_SECONDS
            self._go_on(slot, interrupted=True)
            return False
        return True

    def time_out(self, slot: Slot, now: float) -> None:
        """See whether a task that waits has taken longer than it may."""
        first = slot.stack[-1].timeout_at
        if first is None or now < first or slot.state is not SlotState.READY:
            return
        nearest: float | None = None
        for frame in slot.stack:
            limit = frame.assignment.timeout_seconds
            ends = frame.since + limit if limit else None
            if ends is not None and now >= ends:
                slot.stops.setdefault(frame.sequence, "timeout")
            else:
                nearest = _earlier(nearest, ends)
            frame.timeout_at = nearest
        self._workforce.pursue_stop(slot, now)

    def exited(self, slot: Slot, end: SlotExited, *, charged: bool) -> None:
        """A process has ended in which tasks waited; `charged`: another task answers for that."""
        was_ours = slot.state is SlotState.ENDING
        while slot.stack:
            frame = slot.stack.pop()
            kind = slot.stops.get(frame.sequence, "cancelled" if was_ours else "died")
            self._workforce.fail_dead(frame.assignment, frame.index, kind, end, waiting=charged)
            charged = True
        if slot.woken:
            slot.woken = False
            self._woken.remove(slot)


def _earlier(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)
