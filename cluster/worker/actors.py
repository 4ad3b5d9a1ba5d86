"""Actors at a worker: each is an object in a process of its own, beside the slots, for as long as the scheduler says.

A creation and the calls that follow come as grants. They never stand in the queue that the slots are filled from: the
creation starts a process, and the calls wait for that process alone, in the order in which they came. For the rest it
is a `Slot`: it claims and reports, is interrupted and killed like any other, but it counts for none, and is not
replaced. When it ends and nobody had said so, the scheduler is told (`ActorEnded`), then the calls are answered for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from cluster.wire import messages
from cluster.worker.events import BecomeActor, KillSlot, SlotExited
from cluster.worker.ledger import Ledger
from cluster.worker.queue import Assignment, Stretch
from cluster.worker.slots import Slot, SlotState
from cluster.worker.values import value_key

if TYPE_CHECKING:
    from cluster.worker.supply import Supply
    from cluster.worker.workforce import Workforce

__all__ = ["ACTORS_AN_AGENT", "FIRST_ACTOR", "Actors"]

ACTORS_AN_AGENT: Final = 64
FIRST_ACTOR: Final = 1_000_000
"""The number of the first actor's process; those of slots are smaller."""

# What its pipe holds. The calls can run nowhere else, so what they take is of no interest.
_AHEAD_CALLS: Final = 256


class Actor:
    """One actor's process and what it has still to do."""

    __slots__ = ("assignment", "calls", "ended_because", "index", "is_made", "is_told_to_end", "slot")

    def __init__(self, slot: Slot, assignment: Assignment, index: int) -> None:
        self.slot = slot
        self.assignment = assignment
        self.index = index
        self.is_made = False
        self.is_told_to_end = False
        self.ended_because = "a call that was to be stopped did not stop"  # if this worker ends it by itself
        # Its creation, then calls that are not in its pipe.
        self.calls: deque[Stretch] = deque([(assignment, index, 1)])

    @property
    def name(self) -> tuple[int, int]:
        """What the scheduler calls it: (attempt, row) of its creation."""
        return self.assignment.attempt, self.assignment.rows[self.index]

    def put_back(self, stretches: list[Stretch]) -> None:
        """Put what was taken out of its pipe first again."""
        self.calls.extendleft(reversed(stretches))


class Actors:
    """All actors of an agent."""

    def __init__(self, workforce: Workforce, ledger: Ledger, supply: Supply, *, one_call_at_a_time: bool) -> None:
        self.slots: dict[int, Slot] = {}
        self._workforce = workforce
        self._ledger = ledger
        self._supply = supply
        self._one_call_at_a_time = one_call_at_a_time
        self._of_slot: dict[int, Actor] = {}
        self._by_name: dict[tuple[int, int], Actor] = {}
        self._processes = 0

    def of(self, slot: Slot) -> Actor | None:
        """The actor whose process this is."""
        return self._of_slot.get(slot.index)

    @property
    def waiting_count(self) -> int:
        """Calls that are not in a pipe."""
        return sum(stretch[2] for actor in self._of_slot.values() for stretch in actor.calls)

    def calls(self) -> Iterator[Stretch]:
        """The calls that are not in a pipe."""
        for actor in self._of_slot.values():
            yield from actor.calls

    # ------------------------------------------------------------------ what comes

    def take(self, stretches: list[Stretch], now: float) -> None:
        """Creations and calls whose inputs are here."""
        for assignment, first, count in stretches:
            if assignment.actor_reference is not None:
                for index in range(first, first + count):
                    self._make(assignment, index)
                continue
            actor = self._by_name.get(assignment.actor_name(first))
            if actor is None or actor.is_told_to_end:
                self._fail_all(deque([(assignment, first, count)]), "its process has ended")
                continue
            actor.calls.append((assignment, first, count))
            self._fill(actor, now)

    def _make(self, assignment: Assignment, index: int) -> None:
        if len(self._of_slot) >= ACTORS_AN_AGENT:
            message = (
                f"{assignment.label} cannot be an actor on this worker, which has {ACTORS_AN_AGENT} already, as many"
                " as it may: let go of some, or start more workers"
            )
            self._ledger.failed(assignment, index, "unrunnable", b"", {"message": message})
            return
        slot = Slot(FIRST_ACTOR + self._processes, given_singly=self._one_call_at_a_time)
        self._processes += 1
        actor = self._of_slot[slot.index] = Actor(slot, assignment, index)
        self._by_name[actor.name] = actor
        self.slots[slot.index] = slot
        self._workforce.start(slot)

    def ready(self, slot: Slot, now: float) -> None:
        """The process waits for its first task, which is to make the actor."""
        actor = self._of_slot[slot.index]
        assert actor.assignment.actor_reference is not None
        self._ledger.effects.append(BecomeActor(slot.index, actor.assignment.actor_reference))
        self._fill(actor, now)

    def _fill(self, actor: Actor, now: float) -> None:
        slot = actor.slot
        ahead = 1 if self._one_call_at_a_time else _AHEAD_CALLS
        while actor.calls and slot.state is SlotState.READY and slot.outstanding < ahead:
            if slot.taking_back:
                return
            assignment, first, count = actor.calls.popleft()
            taken = min(count, ahead - slot.outstanding)
            if taken < count:
                actor.calls.appendleft((assignment, first + taken, count - taken))
            self._workforce.give(slot, (assignment, first, taken), now)

    # ------------------------------------------------------------------ what becomes of it

    def went_on(self, slot: Slot, now: float) -> None:
        """The process reported something, or its pipe was emptied."""
        actor = self._of_slot[slot.index]
        if not actor.is_made and slot.state is SlotState.READY:
            attempt, row = actor.name
            actor.is_made = value_key(attempt, row) in self._supply.values
            if not actor.is_made and not slot.outstanding and not actor.calls:
                self._end(actor)  # its creation failed, or was cancelled
        self._fill(actor, now)

    def end(self, attempt: int, row: int) -> None:
        """Nobody holds that actor any more."""
        actor = self._by_name.get((attempt, row))
        if actor is not None and not actor.is_told_to_end:
            self._end(actor)

    def end_all(self, because: str) -> None:
        """End all processes; the scheduler is told when they have ended."""
        for actor in self._of_slot.values():
            actor.ended_because = because
            self._kill(actor)

    def _end(self, actor: Actor) -> None:
        actor.is_told_to_end = True
        self._kill(actor)

    def _kill(self, actor: Actor) -> None:
        if actor.slot.state is not SlotState.ENDING:
            actor.slot.state = SlotState.ENDING
            self._ledger.effects.append(KillSlot(actor.slot.index))

    def exited(self, slot: Slot, end: SlotExited, cause: str, now: float) -> None:
        """The process has ended: the call that ran is charged, the others can run nowhere."""
        actor = self._of_slot.pop(slot.index)
        del self._by_name[actor.name], self.slots[slot.index]
        if end.unclaimed:
            actor.put_back([stretch for _, stretch in slot.cut(end.unclaimed[0])])
        self._ledger.flush()
        was_stopped = slot.state is SlotState.ENDING and not actor.is_told_to_end
        if was_stopped:
            cause += f", which its worker sent because {actor.ended_because}"
        message = f"its process ended with {cause}"
        if actor.is_made and not actor.is_told_to_end:
            attempt, row = actor.name
            details = {
                "message": message,
                "signal": end.signal,
                "exit_code": end.exit_code,
                "lines": end.last_lines,
                "peak_memory_bytes": end.peak_memory_bytes,
            }
            self._ledger.send(messages.ActorEnded(self._ledger.epoch, row, attempt, details))
        while slot.outstanding:
            sequence = slot.pieces[0].sequence
            assignment, task = slot.end_front(1, now)
            kind = "cancelled" if actor.is_told_to_end else "died"
            self._workforce.fail_dead(assignment, task, slot.stops.pop(sequence, kind), end, waiting=False)
        self._fail_all(actor.calls, message, "cancelled" if actor.is_told_to_end else "died")

    def _fail_all(self, calls: deque[Stretch], message: str, kind: str = "died") -> None:
        for assignment, first, count in calls:
            for index in range(first, first + count):
                self._ledger.failed(assignment, index, kind, b"", {"message": f"the actor is lost: {message}"})

    # ------------------------------------------------------------------ stopping

    def withdraw(self, assignment: Assignment, index: int) -> bool:
        """Take out a call that is in no pipe, or end an actor that is not being made yet; False if it is neither."""
        for actor in self._of_slot.values():
            for position, (owner, first, count) in enumerate(actor.calls):
                if owner is not assignment or not first <= index < first + count:
                    continue
                del actor.calls[position]
                if index + 1 < first + count:
                    actor.calls.insert(position, (owner, index + 1, first + count - index - 1))
                if index > first:
                    actor.calls.insert(position, (owner, first, index - first))
                if not actor.is_made and assignment is actor.assignment:
                    self._end(actor)
                return True
        return False

    def place_of(self, assignment: Assignment, index: int) -> tuple[Slot, int] | None:
        """In whose line a call stands that is in no pipe, and how many go before it."""
        for actor in self._of_slot.values():
            ahead = actor.slot.outstanding
            for owner, first, count in actor.calls:
                if owner is assignment and first <= index < first + count:
                    return actor.slot, ahead + index - first
                ahead += count
        return None

    def withdraw_all(self) -> Iterator[tuple[Assignment, int]]:
        """Take out all calls that are in no pipe."""
        for actor in self._of_slot.values():
            while actor.calls:
                assignment, first, count = actor.calls.popleft()
                for index in range(first, first + count):
                    yield assignment, index

    def figures(self) -> dict[str, Any]:
        """What the heartbeat says."""
        return {"actors": len(self._of_slot)}
