"""What clients share by name: locks and semaphores, events, queues, variables, counters, published datasets.

Each object has lines of requests that wait, first come first served. `serve` says what a request gets now, or
`NOT_NOW`; it is asked for the head of a line whenever something has changed, and for a newcomer whose line is empty. An
object that is as it was before anybody named it (`is_unused`) is forgotten, so names cost nothing once nobody uses
them.

=========  =====================  ==================================================================================
kind       action                 answer
=========  =====================  ==================================================================================
lease      acquire (most, lease)  the fence of the lease; waits. A lock is a semaphore of one
           release (fence)        None
           look                   [leases taken, the names of those who have them]
event      set, clear, look       None, None, whether it is set
           wait                   True; waits
queue      put (max, data, refs)  True; waits while it is full
           get                    [value]; waits
           take (bytes)           [values that are there], and how many there were; never waits
           look, clear            how many are there; None
variable   set (data, refs)       None
           get                    value; waits until it is set
           delete                 None
counter    add (number)           the new value; `add 0` looks
dataset    publish (data, refs,   True; False when the name is taken and is not to be replaced
           replace)
           get, delete            value, or None; whether there was one
=========  =====================  ==================================================================================

A request that waited for as long as it may is answered None.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from cluster.errors import ProtocolError
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.kept_values import KeptValue, KeptValues, Refusal
from cluster.scheduler.nesting import Parent

__all__ = ["KINDS", "NOT_NOW", "Dataset", "Lease", "Named", "Party", "Request", "checked_arguments"]

NOT_NOW = object()
"""What `serve` returns for a request that has to wait."""
NAMES_TOLD = 100
ITEMS_AT_ONCE = 1024
LARGEST_COUNT = (1 << 63) - 1


class Party:
    """One client as the holder of leases, and as the sender of requests that it has not settled."""

    __slots__ = ("client", "floor", "leases", "requests")

    def __init__(self, client: ClientRecord) -> None:
        self.client = client
        self.floor = 0  # the client has settled every request below
        self.requests: dict[int, Request] = {}
        self.leases: dict[int, Lease] = {}  # by fence


class Lease:
    """One acquisition of a lock, or of a part of a semaphore."""

    __slots__ = ("fence", "lapses_at", "leases", "party", "request", "seconds")

    def __init__(self, leases: Leases, request: Request, fence: int, seconds: float) -> None:
        self.leases = leases
        self.request = request
        self.party = request.party
        self.fence = fence
        self.seconds = seconds
        self.lapses_at: float | None = None  # while its holder's connection is lost


class Request:
    """One request of a client, from its arrival until the client says that it has taken the answer in."""

    __slots__ = (
        "action", "arguments", "brought", "deadline", "holder", "lease", "number", "outcome", "party", "taken",
        "target",
    )  # fmt: skip

    def __init__(self, party: Party, number: int, target: Named, action: str, arguments: list[Any]) -> None:
        self.party = party
        self.number = number
        self.target = target
        self.action = action
        self.arguments = arguments
        self.deadline: float | None = None  # while it waits and may not wait for ever
        self.outcome: tuple[str, Any] | None = None  # error and result, once answered
        self.brought: KeptValue | None = None  # what it is to put, as long as it has not been put
        self.taken: list[KeptValue] = []  # what the answer carries
        self.lease: Lease | None = None
        self.holder: Parent | None = None  # the run of a task that asks for a lease, which ends with it


Line = OrderedDict[Request, None]
Actions = dict[str, tuple[Callable[[Any, Request], Any], tuple[type, ...]]]


class Named:
    """What all kinds have in common."""

    kind: ClassVar[str]
    actions: ClassVar[Actions]
    """What serves an action, and the types of its arguments."""

    def __init__(self, name: str, values: KeptValues, fences: Iterator[int]) -> None:
        self.name = name
        self.values = values
        self.fences = fences
        self.lines: tuple[Line, ...] = (OrderedDict(),)

    @property
    def is_unused(self) -> bool:
        """Whether it is as one that nobody ever named."""
        raise NotImplementedError

    def line_of(self, request: Request) -> Line | None:
        """Where a request that cannot be served waits; None for one that never waits."""
        return None

    def admit(self, request: Request) -> None:
        """See whether a request that has just come can be met at all; raises Refusal."""

    def serve(self, request: Request) -> Any:
        """Do what is asked if that can be done now; raises Refusal, and nothing is changed."""
        return self.actions[request.action][0](self, request)

    def take_back(self, request: Request) -> None:
        """Undo what the answer gave: the client will not look at it."""

    def clear(self) -> None:
        """Let go of every value, when the scheduler's work is over."""


# --------------------------------------------------------------------------- locks and semaphores


class Leases(Named):
    """At most so many leases at a time."""

    kind = "lease"

    def __init__(self, name: str, values: KeptValues, fences: Iterator[int]) -> None:
        super().__init__(name, values, fences)
        self.most = 0
        self.taken: dict[int, Lease] = {}  # by fence

    @property
    def is_unused(self) -> bool:
        """Whether nobody has a lease or waits for one."""
        return not self.taken and not self.lines[0]

    def line_of(self, request: Request) -> Line | None:
        """Those who acquire wait."""
        return self.lines[0] if request.action == "acquire" else None

    def admit(self, request: Request) -> None:
        """See whether all agree on how many leases there are."""
        if request.action != "acquire":
            return
        most = request.arguments[0]
        if most < 1:
            raise Refusal(f"{self.name!r} can have 1 lease or more, not {most}")
        if self.is_unused:
            self.most = most
        elif most != self.most:
            raise Refusal(f"{self.name!r} is in use with {self.most} leases at most, and was now named with {most}")

    def _acquire(self, request: Request) -> Any:
        if len(self.taken) >= self.most:
            return NOT_NOW
        seconds = request.arguments[1]
        lease = request.lease = Lease(self, request, next(self.fences), max(0.0, seconds))
        self.taken[lease.fence] = request.party.leases[lease.fence] = lease
        return lease.fence

    def _release(self, request: Request) -> None:
        (fence,) = request.arguments
        lease = self.taken.get(fence)
        if lease is None or lease.party is not request.party:
            raise Refusal(
                f"{self.name!r} is not held by this client under fence {fence}: it was released before, or its lease "
                "ended with the task that had acquired it, or while the connection was lost"
            )
        self.end(lease)

    def _look(self, request: Request) -> Any:
        names = [lease.party.client.name for lease, _ in zip(self.taken.values(), range(NAMES_TOLD), strict=False)]
        return [len(self.taken), names]

    def end(self, lease: Lease) -> None:
        """A lease is over."""
        del self.taken[lease.fence]
        del lease.party.leases[lease.fence]
        if lease.request.holder is not None:
            lease.request.holder.acquiring.pop(lease.request, None)

    def take_back(self, request: Request) -> None:
        """End the lease that nobody knows of."""
        lease = request.lease
        if lease is not None and lease.fence in self.taken:
            self.end(lease)

    actions: ClassVar[Actions] = {
        "acquire": (_acquire, (int, float, int, int)),
        "release": (_release, (int,)),
        "look": (_look, ()),
    }


# --------------------------------------------------------------------------- events and counters


class Event(Named):
    """Set or not."""

    kind = "event"

    def __init__(self, name: str, values: KeptValues, fences: Iterator[int]) -> None:
        super().__init__(name, values, fences)
        self.is_set = False

    @property
    def is_unused(self) -> bool:
        """Whether it is not set, and nobody waits for it."""
        return not self.is_set and not self.lines[0]

    def line_of(self, request: Request) -> Line | None:
        """Those who wait, wait."""
        return self.lines[0] if request.action == "wait" else None

    def _set(self, request: Request) -> None:
        self.is_set = True

    def _clear(self, request: Request) -> None:
        self.is_set = False

    def _look(self, request: Request) -> Any:
        return self.is_set

    def _wait(self, request: Request) -> Any:
        return True if self.is_set else NOT_NOW

    actions: ClassVar[Actions] = {"set": (_set, ()), "clear": (_clear, ()), "look": (_look, ()), "wait": (_wait, ())}


class Counter(Named):
    """A whole number."""

    kind = "counter"

    def __init__(self, name: str, values: KeptValues, fences: Iterator[int]) -> None:
        super().__init__(name, values, fences)
        self.value = 0

    @property
    def is_unused(self) -> bool:
        """Whether it stands at zero."""
        return not self.value

    def _add(self, request: Request) -> Any:
        value = self.value + request.arguments[0]
        if not -LARGEST_COUNT <= value <= LARGEST_COUNT:
            raise Refusal(f"the counter {self.name!r} would pass 63 bits")
        self.value = value
        return value

    actions: ClassVar[Actions] = {"add": (_add, (int,))}


# --------------------------------------------------------------------------- values under names


class Queue(Named):
    """Values, first in first out."""

    kind = "queue"

    def __init__(self, name: str, values: KeptValues, fences: Iterator[int]) -> None:
        super().__init__(name, values, fences)
        self.items: deque[KeptValue] = deque()
        self.lines = (OrderedDict(), OrderedDict())

    @property
    def is_unused(self) -> bool:
        """Whether nothing lies in it and nobody waits."""
        return not self.items and not any(self.lines)

    def line_of(self, request: Request) -> Line | None:
        """Those who get wait apart from those who put."""
        return self.lines[("get", "put").index(request.action)] if request.action in ("get", "put") else None

    def admit(self, request: Request) -> None:
        """Take in what is to be put: it is held while it waits for room."""
        if request.action == "put":
            most, data, references = request.arguments
            request.brought = self.values.take_in(data, references)
            request.arguments = [most]

    def _put(self, request: Request) -> Any:
        most = request.arguments[0]
        if 0 < most <= len(self.items):
            return NOT_NOW
        assert request.brought is not None
        self.items.append(request.brought)
        request.brought = None
        return True

    def _get(self, request: Request) -> Any:
        if not self.items:
            return NOT_NOW
        request.taken.append(self.items.popleft())
        return [request.taken[0].answer]

    def _take(self, request: Request) -> Any:
        (budget,) = request.arguments
        there = len(self.items)
        while self.items and len(request.taken) < ITEMS_AT_ONCE and budget > 0:
            request.taken.append(self.items.popleft())
            budget -= request.taken[-1].nbytes
        return [[value.answer for value in request.taken], there]

    def _look(self, request: Request) -> Any:
        return len(self.items)

    def _clear(self, request: Request) -> None:
        self.clear()

    def take_back(self, request: Request) -> None:
        """Put back in front what nobody has seen."""
        self.items.extendleft(reversed(request.taken))
        request.taken = []

    def clear(self) -> None:
        """Let go of all that lies in it."""
        while self.items:
            self.values.let_go(self.items.popleft())

    actions: ClassVar[Actions] = {
        "put": (_put, (int, bytes, list)),
        "get": (_get, ()),
        "take": (_take, (int,)),
        "look": (_look, ()),
        "clear": (_clear, ()),
    }


class Variable(Named):
    """One value, which the next one replaces."""

    kind = "variable"

    def __init__(self, name: str, values: KeptValues, fences: Iterator[int]) -> None:
        super().__init__(name, values, fences)
        self.value: KeptValue | None = None

    @property
    def is_unused(self) -> bool:
        """Whether it has no value, and nobody waits for one."""
        return self.value is None and not self.lines[0]

    def line_of(self, request: Request) -> Line | None:
        """Those who get wait."""
        return self.lines[0] if request.action == "get" else None

    def _set(self, request: Request) -> None:
        data, references = request.arguments
        value = self.values.take_in(data, references)
        self.clear()
        self.value = value

    def _get(self, request: Request) -> Any:
        return NOT_NOW if self.value is None else self._hand_out(self.value, request)

    def _hand_out(self, value: KeptValue, request: Request) -> Any:
        self.values.share(value)
        request.taken.append(value)
        return value.answer

    def _delete(self, request: Request) -> Any:
        known = self.value is not None
        self.clear()
        return known

    def clear(self) -> None:
        """Let go of the value."""
        if self.value is not None:
            self.values.let_go(self.value)
            self.value = None

    actions: ClassVar[Actions] = {"set": (_set, (bytes, list)), "get": (_get, ()), "delete": (_delete, ())}


class Dataset(Variable):
    """A value that nobody waits for."""

    kind = "dataset"

    def line_of(self, request: Request) -> Line | None:
        """Who asks for what is not published is told so."""
        return None

    def _publish(self, request: Request) -> Any:
        data, references, replace = request.arguments
        if self.value is not None and not replace:
            return False
        value = self.values.take_in(data, references)
        self.clear()
        self.value = value
        return True

    def _look_up(self, request: Request) -> Any:
        return None if self.value is None else self._hand_out(self.value, request)

    actions: ClassVar[Actions] = {
        "publish": (_publish, (bytes, list, bool)),
        "get": (_look_up, ()),
        "delete": (Variable._delete, ()),
    }


KINDS: dict[str, type[Named]] = {kind.kind: kind for kind in (Leases, Event, Queue, Variable, Counter, Dataset)}


def checked_arguments(kind: type[Named], action: str, arguments: list[Any]) -> list[Any]:
    """The arguments of an action, if there is such an action with such arguments; raises ProtocolError."""
    if action not in kind.actions:
        raise ProtocolError(f"a {kind.kind} cannot {action!r:.100}")
    types = kind.actions[action][1]
    if len(arguments) != len(types) or not all(map(_fits, arguments, types)):
        raise ProtocolError(f"the arguments of {kind.kind} {action} make no sense: {arguments!r:.200}")
    return arguments


def _fits(argument: Any, kind: type) -> bool:
    """Whether an argument is what it should be; a list is one of futures, each `[client_id, number]`."""
    if kind is list:
        return isinstance(argument, list) and all(map(_is_reference, argument))
    return isinstance(argument, kind) or (kind is float and isinstance(argument, int))


def _is_reference(reference: Any) -> bool:
    match reference:
        case [bytes(), int()]:
            return True
    return False
