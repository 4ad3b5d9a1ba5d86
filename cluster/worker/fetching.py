"""Which missing values to ask whom for: many in flight, few connections, one holder after the other."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from cluster.worker.pieces import IN_MESSAGE_BYTES
from cluster.worker.queue import Assignment
from cluster.worker.values import value_key

__all__ = ["Fetching", "Want"]

# A value that came damaged so often from one agent counts as missing there: its memory, or the way, is bad.
_DAMAGES_BORNE: Final = 2

# In flight from one agent: enough to hide the round trip, few enough that a value asked for later waits little.
_VALUES_IN_FLIGHT: Final = 64
_BYTES_IN_FLIGHT: Final = 64 * 1024 * 1024


class Want:
    """A value that is not here, and who needs it."""

    __slots__ = ("address", "attempt", "begun", "damages", "nbytes", "ordered", "row", "tried", "untried", "waiting")

    def __init__(self, row: int, attempt: int, nbytes: int) -> None:
        self.row = row
        self.attempt = attempt
        self.nbytes = nbytes
        self.untried: deque[str] = deque()
        self.tried: list[str] = []
        self.address = ""  # who has been asked, or is about to be; empty: nobody (a client pushes the value)
        self.begun = False  # the shell was told to fetch a large one, and keeps what has come
        self.damages: dict[str, int] = {}  # how often it came damaged, by address
        self.ordered = False  # the scheduler asked for this copy
        self.waiting: list[tuple[Assignment, int]] = []  # the tasks (assignment, index)

    def learn(self, addresses: list[str]) -> None:
        """More agents that hold it."""
        for address in addresses:
            if address != self.address and address not in self.tried and address not in self.untried:
                self.untried.append(address)


class Lane:
    """What is asked of one agent: all small values, or all large ones, which no small one waits behind."""

    __slots__ = ("bytes_in_flight", "in_flight", "queue")

    def __init__(self) -> None:
        self.queue: deque[Want] = deque()
        self.in_flight: dict[int, Want] = {}
        self.bytes_in_flight = 0


class Fetching:
    """All wants of an agent."""

    def __init__(self, own_address: str) -> None:
        self._own_address = own_address
        self._wants: dict[int, Want] = {}
        self._lanes: dict[tuple[str, bool], Lane] = {}  # by the agent's address, and whether for large values
        self._changed: dict[tuple[str, bool], None] = {}  # a dictionary for its order

    def __len__(self) -> int:
        return len(self._wants)

    def want(self, entry: list[Any]) -> Want:
        """Note that a value is needed: `[row, attempt, nbytes, [addresses]]`."""
        row, attempt, nbytes, addresses = entry
        key = value_key(attempt, row)
        want = self._wants.get(key)
        if want is None:
            want = self._wants[key] = Want(row, attempt, nbytes)
        want.learn([address for address in addresses if address != self._own_address])
        if not want.address and not self._next_holder(want) and addresses:
            want.tried.append(self._own_address)  # said to be here, and it is not
        return want

    def find(self, key: int) -> Want | None:
        """The want of that key, if there is one."""
        return self._wants.get(key)

    def forget(self, key: int) -> Want | None:
        """The value is here, or nobody needs it: end the want. What is in flight stays counted until it ends."""
        return self._wants.pop(key, None)

    def ended(self, address: str, key: int) -> None:
        """A value asked of that agent has come, or will not."""
        for name in ((address, False), (address, True)):
            lane = self._lanes.get(name)
            want = None if lane is None else lane.in_flight.pop(key, None)
            if lane is not None and want is not None:
                lane.bytes_in_flight -= want.nbytes
                self._changed[name] = None

    def stands_aside(self, key: int) -> None:
        """There is no room for a value that was asked for: others are asked for meanwhile."""
        want = self._wants.get(key)
        if want is not None:
            self.ended(want.address, key)

    def goes_on(self, key: int) -> None:
        """There is room for it by now."""
        want = self._wants.get(key)
        if want is not None and want.begun:
            lane = self._lanes.setdefault((want.address, True), Lane())
            if key not in lane.in_flight:
                lane.in_flight[key] = want
                lane.bytes_in_flight += want.nbytes

    def damaged(self, address: str, key: int) -> Want | None:
        """What that agent gave was damaged: others are asked, then it again. As `failed` if that was too often."""
        want = self._wants.get(key)
        if want is not None and want.address == address:
            want.damages[address] = want.damages.get(address, 0) + 1
            if want.damages[address] <= _DAMAGES_BORNE:
                self.ended(address, key)
                want.untried.append(address)
                self._next_holder(want)
                return None
        return self.failed(address, key)

    def failed(self, address: str, key: int) -> Want | None:
        """That agent did not give the value. The want, if it was the last who could: then it is ended here."""
        self.ended(address, key)
        want = self._wants.get(key)
        if want is None or want.address != address:
            return None
        want.tried.append(address)
        want.address = ""
        if self._next_holder(want):
            return None
        return self._wants.pop(key)

    def requests(self) -> list[tuple[str, list[int], bool]]:
        """What to ask whom now: (address, flat `[row, attempt, nbytes, …]`, whether these travel in pieces)."""
        found: list[tuple[str, list[int], bool]] = []
        for name in self._changed:
            (address, in_pieces), lane = name, self._lanes[name]
            values: list[int] = []
            while lane.queue and len(lane.in_flight) < _VALUES_IN_FLIGHT:
                want = lane.queue[0]
                if lane.in_flight and lane.bytes_in_flight + want.nbytes > _BYTES_IN_FLIGHT:
                    break
                lane.queue.popleft()
                key = value_key(want.attempt, want.row)
                if self._wants.get(key) is not want or want.address != address or key in lane.in_flight:
                    continue  # it came otherwise, or nobody needs it by now
                lane.in_flight[key] = want
                want.begun = in_pieces
                lane.bytes_in_flight += want.nbytes
                values += (want.row, want.attempt, want.nbytes)
            if values:
                found.append((address, values, in_pieces))
            elif not lane.in_flight and not lane.queue:
                del self._lanes[name]
        self._changed.clear()
        return found

    def _next_holder(self, want: Want) -> bool:
        if not want.untried:
            return False
        want.address = want.untried.popleft()
        name = (want.address, want.nbytes > IN_MESSAGE_BYTES)
        self._lanes.setdefault(name, Lane()).queue.append(want)
        self._changed[name] = None
        return True
