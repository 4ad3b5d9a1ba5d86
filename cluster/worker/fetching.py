"""Which missing values to ask whom for: many in flight, few connections, one holder after the other."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from cluster.worker.queue import Assignment
from cluster.worker.values import value_key

__all__ = ["Fetching", "Want"]

# In flight from one agent: enough to hide the round trip, few enough that a value asked for later waits little.
_VALUES_IN_FLIGHT: Final = 64
_BYTES_IN_FLIGHT: Final = 64 * 1024 * 1024


class Want:
    """A value that is not here, and who needs it."""

    __slots__ = ("address", "attempt", "nbytes", "ordered", "row", "tried", "untried", "waiting")

    def __init__(self, row: int, attempt: int, nbytes: int) -> None:
        self.row = row
        self.attempt = attempt
        self.nbytes = nbytes
        self.untried: deque[str] = deque()
        self.tried: list[str] = []
        self.address = ""  # who has been asked, or is about to be; empty: nobody (a client pushes the value)
        self.ordered = False  # the scheduler asked for this copy
        self.waiting: list[tuple[Assignment, int]] = []  # the tasks (assignment, index)

    def learn(self, addresses: list[str]) -> None:
        """More agents that hold it."""
        for address in addresses:
            if address != self.address and address not in self.tried and address not in self.untried:
                self.untried.append(address)


class Holder:
    """What is asked of one agent."""

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
        self._holders: dict[str, Holder] = {}
        self._changed: dict[str, None] = {}  # a dictionary for its order

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
        holder = self._holders.get(address)
        want = None if holder is None else holder.in_flight.pop(key, None)
        if holder is not None and want is not None:
            holder.bytes_in_flight -= want.nbytes
            self._changed[address] = None

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

    def requests(self) -> list[tuple[str, list[int]]]:
        """What to ask whom now: (address, flat `[row, attempt, nbytes, …]`)."""
        found: list[tuple[str, list[int]]] = []
        for address in self._changed:
            holder = self._holders[address]
            values: list[int] = []
            while holder.queue and len(holder.in_flight) < _VALUES_IN_FLIGHT:
                want = holder.queue[0]
                if holder.in_flight and holder.bytes_in_flight + want.nbytes > _BYTES_IN_FLIGHT:
                    break
                holder.queue.popleft()
                key = value_key(want.attempt, want.row)
                if self._wants.get(key) is not want or want.address != address or key in holder.in_flight:
                    continue  # it came otherwise, or nobody needs it by now
                holder.in_flight[key] = want
                holder.bytes_in_flight += want.nbytes
                values += (want.row, want.attempt, want.nbytes)
            if values:
                found.append((address, values))
            elif not holder.in_flight and not holder.queue:
                del self._holders[address]
        self._changed.clear()
        return found

    def _next_holder(self, want: Want) -> bool:
        if not want.untried:
            return False
        want.address = want.untried.popleft()
        self._holders.setdefault(want.address, Holder()).queue.append(want)
        self._changed[want.address] = None
        return True
