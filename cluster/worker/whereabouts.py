"""Where a granted task is just now: waiting for inputs, queued, or in which slot and since when.

The order's detail is `[attempt, row]`, and its result a dictionary:

===========  ==========================================================================================
``where``    "fetching": waits for inputs. "queued": no slot has it. "slot": a slot has it.
             "gone": it has ended (the report may be under way), or was given back.
``ahead``    how many tasks go before it in the queue, or in its slot; 0 in a slot: it is what the slot runs
``slot``     the slot's number
``seconds``  how long it has been running there (to within a report's delay)
``stopping`` why it was asked to stop, if it was: "cancelled" or "timeout"
``is_thread`` whether that slot is a thread among others of its process
``ready``    how many slots of the worker are up, of how many ``slots``
``busy``     for how many seconds each of these has run what it runs, longest first
``inputs``   up to five of what it waits for: `[row, attempt, nbytes, who is asked]` each, of ``lacking``
``no_room``  why there is no room for one of these, if it waits for some
===========  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cluster.worker.ledger import Ledger
from cluster.worker.orders import Orders
from cluster.worker.queue import Assignment, ReadyQueue
from cluster.worker.slots import SlotState
from cluster.worker.supply import Supply
from cluster.worker.workforce import Workforce

__all__ = ["Whereabouts"]

_SHOWN: Final = 5


class Whereabouts:
    """Answers the order "whereabouts"."""

    def __init__(
        self,
        ledger: Ledger,
        queue: ReadyQueue,
        supply: Supply,
        workforce: Workforce,
        orders: Orders,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._supply = supply
        self._workforce = workforce
        self._orders = orders
        self._clock = clock
        orders.register("whereabouts", self._tell)

    def _tell(self, request: int, detail: Any) -> None:
        attempt, row = detail
        self._orders.answer(request, self.find(attempt, row))

    def find(self, attempt: int, row: int) -> dict[str, Any]:
        """What there is to say of a run."""
        assignment = self._ledger.find(attempt)
        index = -1 if assignment is None else assignment.index_of(row)
        return {"where": "gone"} if assignment is None or index < 0 else self._find(assignment, index)

    def _find(self, assignment: Assignment, index: int) -> dict[str, Any]:
        now = self._clock()
        lacking = self._supply.lacking(assignment, index)
        if lacking:
            inputs = [[want.row, want.attempt, want.nbytes, want.address] for want in lacking[:_SHOWN]]
            no_room = self._supply.problem_of(lacking)
            return {"where": "fetching", "lacking": len(lacking), "inputs": inputs, "no_room": no_room}
        for slot in self._workforce.processes:
            sequence = slot.find(assignment, index)
            if any(frame.sequence == sequence for frame in slot.stack):
                woken = slot.woken and slot.stack[-1].sequence == sequence
                return {"where": "waits", "slot": slot.index, "woken": woken}
            if sequence:
                return {
                    "where": "slot",
                    "slot": slot.index,
                    "ahead": slot.ahead_of(sequence),
                    "seconds": now - slot.front_since,
                    "stopping": slot.stops.get(sequence, ""),
                    "is_thread": self._workforce.threads.shares(slot),
                }
        if assignment.is_coroutine:
            return self._workforce.coroutines.whereabouts(assignment, index, now)
        place = self._workforce.actors.place_of(assignment, index)
        if place is not None:
            slot, ahead = place
            return {"where": "slot", "slot": slot.index, "ahead": ahead, "seconds": 0.0, "stopping": ""}
        ahead = self._queue.ahead_of(assignment, index)
        if ahead < 0:
            return {"where": "gone"}
        slots = self._workforce.slots
        busy = sorted((now - slot.front_since for slot in slots if slot.outstanding), reverse=True)
        ready = sum(slot.state is SlotState.READY for slot in slots)
        return {"where": "queued", "ahead": ahead, "ready": ready, "slots": len(slots), "busy": busy[:_SHOWN]}
