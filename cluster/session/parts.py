"""Gathering single submits into parts, and building Submit messages."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from cluster.wire import messages

__all__ = ["LINKED_PART_INPUTS", "LINKED_PART_TASKS", "PART_TASKS", "Call", "Function", "OpenPart"]

PART_TASKS = 16_384
LINKED_PART_TASKS = 2_048
LINKED_PART_INPUTS = 4_096
"""A part whose tasks have inputs is smaller, in tasks and in inputs: the scheduler links it in one step of its loop, at
1 to 2 µs each."""
GATHERED_BYTES = 256 * 1024


class Function(NamedTuple):
    """What the scheduler is told of a function: its pickled bytes under their content hash, and a name for people."""

    function_id: bytes
    name: str
    blob: bytes
    is_coroutine: bool = False
    """Whether calling it makes a coroutine, so that its tasks run many at once in a process."""


class Call(NamedTuple):
    """What consecutive tasks have in common. Tasks are gathered while the very same Call is submitted."""

    function: Function
    label: str
    options: dict[str, Any]
    arguments: int
    """0: a task's piece is the pickle of its positional arguments; 1: of (positional, keywords)."""


class OpenPart:
    """Single submits of one Call that have not left yet. Their numbers are implied by their places.

    A task is added by one append, so that an interrupt in the calling thread leaves either all of it or nothing.
    """

    __slots__ = ("_dependencies", "_inputs", "_nbytes", "_pieces", "call", "first", "full")

    def __init__(self, call: Call, first: int) -> None:
        self.call = call
        self.first = first
        self.full = False
        """Whether it must leave before another task is added."""
        self._nbytes = 0
        self._inputs = 0
        self._pieces: list[bytes] = []
        self._dependencies: dict[int, Sequence[int]] = {}

    def add(self, piece: bytes, dependencies: Sequence[int]) -> int:
        """Add a task; return its number."""
        pieces = self._pieces
        at = len(pieces)
        self._nbytes += len(piece)
        full = self._nbytes >= GATHERED_BYTES or at + 1 >= PART_TASKS
        if dependencies:
            self._dependencies[at] = dependencies
            self._inputs += len(dependencies)
        if self._inputs:
            full = full or at + 1 >= LINKED_PART_TASKS or self._inputs >= LINKED_PART_INPUTS
        self.full = full
        pieces.append(piece)
        return self.first + at

    @property
    def count(self) -> int:
        """How many tasks it has."""
        return len(self._pieces)

    def message(self) -> messages.Submit:
        """The part as it travels."""
        pieces = self._pieces
        starts, dependencies = b"", b""
        if self._dependencies:
            lists = [self._dependencies.get(at, ()) for at in range(len(pieces))]
            starts = array("I", accumulate(map(len, lists), initial=0)).tobytes()
            dependencies = array("q", [number for each in lists for number in each]).tobytes()
        return messages.Submit(
            first=self.first,
            count=len(pieces),
            batch=-1,
            function_id=self.call.function.function_id,
            label=self.call.label,
            options=self.call.options,
            arguments=self.call.arguments,
            offsets=array("I", accumulate(map(len, pieces), initial=0)).tobytes() if len(pieces) > 1 else b"",
            blob=b"".join(pieces),
            dependency_starts=starts,
            dependencies=dependencies,
        )
