"""Values that come from elsewhere and get a segment: asked for in `Room`, and made, refused, or not needed any more.

One of at most 1 MiB has come inside its message. Before a larger one comes, the shell asks whether there is room for it
(`RoomAsked`), and until the value is here, or will not come (`RoomReturned`), its segment counts as promised.

What waits for room shall cost nobody else anything. A task that needs the value has a slot in the scheduler's books: if
that slot stands idle here, the task goes back soon, and the scheduler knows what else there is to run. Nor does a
client stand and wait that pushes a value which no task needs here yet: its other values may find room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from cluster.worker.events import AnswerRoom, CreateSegment, RemoveSegments, RoomAsked, RoomReturned
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.queue import Assignment
from cluster.worker.room import Room
from cluster.worker.values import value_key

__all__ = ["NOBODY", "Arrival", "Arrivals"]

NOBODY: Final = -1
"""In the place of the peer that pushes a value: it is fetched."""
_HAS_COME: Final = -1


class Arrival(NamedTuple):
    """A value on its way into a segment. `incoming` is the shell's number for it, -1 if its bytes have come."""

    peer: int
    row: int
    attempt: int
    nbytes: int
    incoming: int = _HAS_COME

    @property
    def key(self) -> int:
        """The value's key."""
        return value_key(self.attempt, self.row)

    @property
    def has_come(self) -> bool:
        """Whether its bytes are here."""
        return self.incoming == _HAS_COME


class Arrivals:
    """All of them. `waiting` gives the tasks here that wait for a key; `slot_is_idle` says whether a slot could run
    something and has nothing."""

    def __init__(
        self,
        ledger: Ledger,
        memory: Memory,
        room: Room,
        new_request: Callable[[], int],
        waiting: Callable[[int], list[Assignment]],
    ) -> None:
        self.slot_is_idle: Callable[[], bool] = lambda: False
        self._ledger = ledger
        self._memory = memory
        self._room = room
        self._new_request = new_request
        self._waiting = waiting
        self._asked: dict[int, Arrival] = {}  # by request
        self._incoming: dict[int, int] = {}  # the requests of those that are to come, by the shell's number
        self._unneeded: set[int] = set()  # requests: the segment is being made, and nobody needs it any more

    def has_come(self, arrival: Arrival, data: bytes) -> None:
        """The bytes of a value are here and need a segment."""
        request = self._new_request()
        self._asked[request] = arrival
        self._room.ask(CreateSegment(request, arrival.nbytes, data), lambda: self._hurries(arrival))

    def is_to_come(self, event: RoomAsked) -> None:
        """A value is about to come."""
        request = self._new_request()
        arrival = self._asked[request] = Arrival(event.peer, event.row, event.attempt, event.nbytes, event.incoming)
        self._incoming[event.incoming] = request
        self._room.ask(CreateSegment(request, event.nbytes, b""), lambda: self._hurries(arrival))

    def _hurries(self, arrival: Arrival) -> bool:
        """Whether somebody loses by its wait."""
        waiting = self._waiting(arrival.key)
        if arrival.peer != NOBODY and not waiting:
            return True
        return any(each.takes_slots for each in waiting) and self.slot_is_idle()

    def will_not_come(self, event: RoomReturned) -> None:
        """The shell needs no segment for that value any more."""
        if event.path:
            self._give_back(event.path)
            return
        request = self._incoming.pop(event.incoming, None)
        if request is None:
            return  # it was refused meanwhile
        if self._room.withdraw(request):
            del self._asked[request]
        else:
            self._unneeded.add(request)

    def awaits(self, request: int) -> bool:
        """Whether that request was made here."""
        return request in self._asked

    def is_stuck(self, key: int) -> bool:
        """Whether that value waits for room, nobody knows how long."""
        return any(arrival.key == key and self._room.is_stuck(request) for request, arrival in self._asked.items())

    def find(self, request: int) -> Arrival | None:
        """What that request is for, if it was not answered yet."""
        return self._asked.get(request)

    def created(self, request: int, path: str) -> Arrival | None:
        """The segment is there; for which value, if somebody still needs it."""
        arrival = self._asked.pop(request)
        self._room.made(request, path)
        if request in self._unneeded:
            self._unneeded.remove(request)
            self._give_back(path)
            return None
        if not arrival.has_come:
            del self._incoming[arrival.incoming]
            self._ledger.effects.append(AnswerRoom(arrival.incoming, path, ""))
        return arrival

    def failed(self, request: int, reason: str) -> Arrival | None:
        """There is no room; for which value, if somebody still needs it."""
        arrival = self._asked.pop(request)
        if request in self._unneeded:
            self._unneeded.remove(request)
            return None
        if not arrival.has_come:
            del self._incoming[arrival.incoming]
            self._ledger.effects.append(AnswerRoom(arrival.incoming, "", reason))
        return arrival

    def _give_back(self, path: str) -> None:
        self._memory.segment(path, 0)
        self._ledger.effects.append(RemoveSegments([path]))
