"""Slots that are threads: a worker may have several in each process, for tasks that wait or release the GIL.

A worker with `threads` has that many slots in one process; the slots of a process follow one another, and each has its
own pipes, so tasks are claimed, taken back and reported as anywhere. What differs is what the slots share: the process.

Stopping. A thread cannot be ended from outside. One that does not answer an interrupt within a second is *left*: its
task is answered as stopped, the slot goes on with a new thread, and the old one runs on for as long as it likes, or
until its process idles and is replaced for that reason. If not even the leaving is answered within a further second,
nobody in that process gets the interpreter lock any more: it is ended, and its other tasks run again, uncharged.

Death. Nobody can tell which thread ended its process. All tasks that ran are charged, and whatever has died so runs
apart from then on, in a further process with one thread (`cluster.worker.nesting` starts those). So the one that did it
fails by name, and takes nobody along a second time. Further processes, actors and coroutines have no such threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cluster.worker.events import LeaveThread, Say, SlotExited
from cluster.worker.ledger import Ledger
from cluster.worker.queue import ReadyQueue
from cluster.worker.slots import STOP_PATIENCE_SECONDS, Slot, SlotState

if TYPE_CHECKING:
    from cluster.worker.workforce import Workforce

__all__ = ["FIRST_WRITER", "Threads"]

FIRST_WRITER: Final = 3_000_000
"""What the threads of a process write comes from a number from here on: this, and the first of its slots."""


class Threads:
    """Which slots share a process, and what follows from that."""

    def __init__(self, workforce: Workforce, ledger: Ledger, queue: ReadyQueue, seats: int, threads: int) -> None:
        self.count = threads
        """Threads of each process, 1 where slots are processes."""
        self._workforce = workforce
        self._ledger = ledger
        self._queue = queue
        self._seats = seats
        self._leaving: dict[int, int] = {}  # slot -> the sequence whose thread is being left
        self._left: dict[int, int] = {}  # first slot of a process -> threads that were left there
        queue.parts_died = threads > 1

    # ------------------------------------------------------------------ who is with whom

    def shares(self, slot: Slot) -> bool:
        """Whether the slot is a thread among others."""
        return self.count > 1 and slot.index < self._seats

    def members(self, slot: Slot) -> list[Slot]:
        """All slots of the slot's process."""
        if not self.shares(slot):
            return [slot]
        first = slot.index - slot.index % self.count
        return self._workforce.slots[first : first + self.count]

    def writer(self, index: int) -> int:
        """The number under which output of that slot's process is kept."""
        if self.count == 1 or index >= self._seats:
            return index
        return FIRST_WRITER + index - index % self.count

    def idle(self, slot: Slot) -> bool:
        """Whether nothing runs or waits in the slot's process."""
        return not any(one.outstanding or one.stack for one in self.members(slot))

    def figures(self) -> dict[str, Any]:
        """For the heartbeat; nothing where slots are processes."""
        return {} if self.count == 1 else {"threads": self.count, "threads_left": sum(self._left.values())}

    # ------------------------------------------------------------------ giving out

    def take_sound_only(self, slot: Slot) -> bool:
        """Whether the slot gets no task that has died: unless no further process can be had, that is run apart."""
        return self.shares(slot) and not self._workforce.nesting.is_full

    def part(self) -> None:
        """If a task waits that is to run apart, let there be further processes."""
        if self.count > 1 and self._queue.holds_died():
            self._workforce.nesting.active = True

    # ------------------------------------------------------------------ stopping

    def out_of_patience(self, slot: Slot, now: float) -> None:
        """The slot's task was asked to stop, and has not stopped."""
        sequence = slot.pieces[0].sequence
        # What waits below it, in the same thread, cannot go on in another.
        if not self.shares(slot) or slot.stack or self._leaving.get(slot.index) == sequence:
            self._workforce.end(slot)
            return
        self._leaving[slot.index] = sequence
        slot.kill_at = now + STOP_PATIENCE_SECONDS
        first = self.members(slot)[0].index
        self._left[first] = self._left.get(first, 0) + 1
        label = slot.pieces[0].assignment.label
        text = f"a thread of slot {slot.index} runs {label} and did not stop when asked to: it is left to itself"
        self._ledger.effects += (LeaveThread(slot.index, sequence), Say(text))

    def wake(self) -> None:
        """Replace processes in which threads were left, as soon as they have nothing to do."""
        if self._left and not self._queue.count and not self._workforce.paused:
            for first in list(self._left):
                slot = self._workforce.slots[first]
                if self.idle(slot) and all(one.state is SlotState.READY for one in self.members(slot)):
                    self._workforce.end(slot)

    # ------------------------------------------------------------------ the end of a process

    def vacate(self, slot: Slot, end: SlotExited, now: float) -> bool:
        """Clear the slot, and those that shared its process; whether that was still starting."""
        members = self.members(slot)
        was_starting = all(one.state is SlotState.STARTING for one in members)
        was_ours = slot.state is SlotState.ENDING
        self._left.pop(members[0].index, None)
        workforce = self._workforce
        for one, unclaimed in zip(members, (end.unclaimed, *end.unclaimed_beside), strict=True):
            workforce.segments.drop(one)
            if unclaimed:
                workforce.put_back(one, one.cut(unclaimed[0]))
        ran = sum(one.outstanding for one in members)
        for one in members:
            beside = ran - one.outstanding
            was_charged = beside > 0
            while one.outstanding:
                sequence = one.pieces[0].sequence
                assignment, task = one.end_front(1, now)
                kind = one.stops.pop(sequence, "died")
                memory = one.end_for_memory
                if memory is not None and memory.sequence == sequence:
                    workforce.fail_dead(assignment, task, kind, end, waiting=False, beside=beside, memory=memory)
                    was_charged = True
                elif was_ours and kind == "died":
                    # We ended it for another task, which had just ended by itself, or did not stop beside it.
                    self._queue.put_back([(assignment, task, 1)])
                else:
                    workforce.fail_dead(assignment, task, kind, end, waiting=False, beside=beside)
                    was_charged = True
            if one.stack:
                workforce.nesting.exited(one, end, charged=was_charged or was_ours)
            one.functions.clear()
            one.stops.clear()
            one.kill_at = None
            one.end_for_memory = None
            one.renew = one.taking_back = False
            one.pipe_is_empty = True
            one.state = SlotState.ABSENT
        return was_starting
