"""What a slot's process and the client inside it are to each other.

The client is made when a task first asks for it, after the fork, and serves all tasks of the process. What makes it is
registered by the package's root, since clients stand on a higher floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from cluster.wire.encoded import Reference

__all__ = [
    "ClientInSlot",
    "ClusterOfSlot",
    "Surroundings",
    "Wait",
    "client_provider",
    "enter",
    "enter_threads",
    "new_client",
    "surroundings",
]


class ClusterOfSlot:
    """The cluster that a slot belongs to, as a client needs to know it."""

    def __init__(self, scheduler_address: str, secret: bytes) -> None:
        self.scheduler_address = scheduler_address
        self.secret = secret

    def close(self) -> None:
        """Nothing: it is not this process's to end."""

    def wait_until_joined(self, timeout_seconds: float) -> None:
        """Nothing to wait for: the worker of this slot is there."""

    def explain_failure(self) -> str:
        """An empty text: nothing more is known of it here than that it cannot be reached."""
        return ""


class ClientInSlot(Protocol):
    """What the slot asks of the client in it."""

    def bind(self, reference: Reference) -> Any:
        """A future that came inside a value."""
        ...

    def hand_over(self, task: tuple[int, int], contains: list[Any]) -> None:
        """Have these futures, flat `[client_id, number, …]`, held until the scheduler knows what the task made."""
        ...

    def settle(self, task: tuple[int, int]) -> None:
        """A task has ended: see to it that the scheduler knows of its children before it hears of the end."""
        ...

    def owes(self, task: tuple[int, int]) -> bool:
        """Whether `settle` has to ask the scheduler, and so takes its time."""
        ...

    def close(self) -> None:
        """Its process, or its part of a process, takes no task any more."""
        ...


class Wait(Protocol):
    """A task that waits. Entered, it gives its seat up; left, it has one again."""

    descriptors: list[int]
    """What to poll beside the client's connection."""

    def attend(self, readable: list[int]) -> None:
        """Something came there: take it, which may be to run a task inside the one that waits."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Surroundings(Protocol):
    """What a client asks of the slot that it is in."""

    cluster: ClusterOfSlot

    def client(self) -> Any:
        """The process's client; it is made at the first call."""
        ...

    def task(self) -> tuple[int, int] | None:
        """The name (attempt, row) of the task that the calling code is of."""
        ...

    def runs_here(self) -> bool:
        """Whether tasks run in the calling thread, one at a time."""
        ...

    def may_wait(self) -> bool:
        """Whether it is the task itself that asks, and not a thread of it, or somebody between two tasks."""
        ...

    def wait(self) -> Wait:
        """What the task has to be in while it waits."""
        ...


_find: list[Callable[[], Surroundings | None]] = []
_providers: list[Callable[[], Callable[[Surroundings], Any]]] = []


def client_provider(provider: Callable[[], Callable[[Surroundings], Any]]) -> None:
    """Register what gives the class of clients in slots."""
    _providers[:] = [provider]


def new_client(around: Surroundings) -> Any:
    """Make the process's client."""
    return _providers[0]()(around)


def enter(around: Surroundings | None) -> None:
    """This process is a slot, or (None) is none any more: it was forked from one."""
    _find[:] = [] if around is None else [lambda: around]


def enter_threads(find: Callable[[], Surroundings | None]) -> None:
    """This process is several slots: `find` gives the one that the calling code runs in."""
    _find[:] = [find]


def surroundings() -> Surroundings | None:
    """The slot that the calling code runs in, if it does."""
    return _find[0]() if _find else None
