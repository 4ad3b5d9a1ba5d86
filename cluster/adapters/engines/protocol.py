"""What an engine has to do, what it is given to run, and what it says came of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from cluster.session.machine import Failure
from cluster.session.parts import Function

__all__ = ["Engine", "Outcome", "Run"]


class Run:
    """One run of a task."""

    __slots__ = (
        "arguments",
        "attempt",
        "cancelled",
        "depth",
        "ended",
        "function",
        "has_slot",
        "inputs",
        "key",
        "keywords",
        "offered",
        "progress",
    )

    def __init__(
        self,
        key: str,
        function: Function,
        arguments: bytes,
        keywords: bool,
        inputs: list[Any],
        attempt: int,
        depth: int,
    ) -> None:
        self.key = key
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.inputs = inputs
        """The values of the inputs, as the engine keeps them."""
        self.attempt = attempt
        """1 for the first."""
        self.depth = depth
        """How many tasks stand above it, each submitted by the one before."""
        self.cancelled = False
        """Whether nobody wants what comes of it."""
        self.ended = False
        self.has_slot = False
        """Whether it counts for a slot of its own; what runs inside another does not."""
        self.offered: list[tuple[int, int]] = []
        """Which inputs the client still has to give: place among the inputs, and number."""
        self.progress: tuple[float, str] | None = None


class Outcome(NamedTuple):
    """What came of a run."""

    failure: Failure | None = None
    value: Any = None
    """The value as the engine keeps it: it is given to `fetch`, and to runs that take it."""
    small: bytes = b""
    """The value's bytes, if it is small and here."""
    nbytes: int = 0
    contains: Sequence[tuple[bytes, int]] = ()
    """The futures that lie in the value, by client and number."""


class Engine(Protocol):
    """Runs calls. Everything else (who is next, what is kept, retries) is the desk's."""

    name: str
    slots: int
    """How many runs may be under way."""
    in_caller: bool
    """Whether a run takes place in the thread that submits it, or waits for it, and has ended when `start` returns."""
    without_effect: frozenset[str]
    """Options of tasks that mean nothing here and are accepted all the same; other restrictions are refused."""

    def start(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        """Have a run begin; `finish` is called once, from any thread, when it has ended."""
        ...

    def cancel(self, run: Run) -> None:
        """Stop a run if that can be done. It is finished in any case."""
        ...

    def put(self, data: bytes) -> Any:
        """Take the bytes of a value that the client has; they are given to runs as an input."""
        ...

    def fetch(self, values: Sequence[Any]) -> Sequence[bytes]:
        """The bytes of values."""
        ...

    def close(self) -> None:
        """The client has ended."""
        ...
