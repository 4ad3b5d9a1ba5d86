"""The granted tasks that no slot has: those that may start, in order, kept as stretches and not one by one."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

from cluster.wire import messages

__all__ = ["Assignment", "ReadyQueue", "Stretch", "spread_runs"]


def spread_runs(runs: list[int]) -> Sequence[int]:
    """The numbers that runs stand for; a single run takes no memory.

    >>> list(spread_runs([4, 2, 9, 1]))
    [4, 5, 9]
    """
    if len(runs) == 2:
        return range(runs[0], runs[0] + runs[1])
    rows = array("Q")
    for position in range(0, len(runs), 2):
        rows.extend(range(runs[position], runs[position] + runs[position + 1]))
    return rows


class Assignment:
    """One grant: rows under one attempt, and what they need to run. A task in it is an index."""

    __slots__ = (
        "_indices",
        "arguments",
        "attempt",
        "blob",
        "function_id",
        "inline_limit_bytes",
        "input_starts",
        "inputs",
        "label",
        "offsets",
        "remaining",
        "rows",
        "timeout_seconds",
        "unsent",
        "unsent_contains",
        "values",
    )

    def __init__(self, grant: messages.Grant) -> None:
        self.attempt = grant.attempt
        self.rows = spread_runs(grant.runs)
        self.function_id = grant.function_id
        self.label = grant.label
        self.arguments = grant.arguments
        self.offsets = grant.offsets
        self.blob = grant.blob
        self.input_starts = array("I", grant.input_starts)
        self.inputs = array("I", grant.inputs)
        self.values: list[Any] = grant.values
        self.inline_limit_bytes = grant.inline_limit_bytes
        self.timeout_seconds = float(grant.options.get("timeout_seconds") or 0.0)
        self._indices: dict[int, int] | None = None  # made when a task is first looked for
        self.remaining = len(self.rows)  # tasks that have not been answered for
        # Ended and not reported yet: (row, nbytes, bytes that travel along, seconds) each.
        self.unsent: list[tuple[int, int, bytes, float]] = []
        self.unsent_contains: list[Any] = []

    def index_of(self, row: int) -> int:
        """The task's index, -1 if the row is not in this grant."""
        if isinstance(self.rows, range):
            return row - self.rows.start if row in self.rows else -1
        if self._indices is None:
            self._indices = {row: index for index, row in enumerate(self.rows)}
        return self._indices.get(row, -1)

    def needs(self, index: int) -> array[int]:
        """What task `index` takes as inputs, as indices of `values`."""
        starts = self.input_starts
        return self.inputs[starts[index] : starts[index + 1]] if starts else self.inputs


Stretch: TypeAlias = tuple[Assignment, int, int]  # the assignment, the first index, how many


class ReadyQueue:
    """Tasks whose inputs are here and that no slot has, oldest first."""

    def __init__(self) -> None:
        self._stretches: deque[Stretch] = deque()
        self.count = 0

    def append(self, assignment: Assignment, first: int, count: int) -> None:
        """Put tasks last."""
        if self._stretches:
            last, last_first, last_count = self._stretches[-1]
            if last is assignment and last_first + last_count == first:
                self._stretches[-1] = (assignment, last_first, last_count + count)
                self.count += count
                return
        self._stretches.append((assignment, first, count))
        self.count += count

    def put_back(self, stretches: list[Stretch]) -> None:
        """Put tasks first, in their order: they had left the queue before all that is in it now."""
        for stretch in reversed(stretches):
            self._stretches.appendleft(stretch)
            self.count += stretch[2]

    def head(self) -> Assignment:
        """The assignment of the next task; the queue must not be empty."""
        return self._stretches[0][0]

    def take(self, limit: int) -> Stretch:
        """The next tasks, at most `limit`, of one assignment."""
        assignment, first, count = self._stretches[0]
        if count <= limit:
            self._stretches.popleft()
            self.count -= count
            return assignment, first, count
        self._stretches[0] = (assignment, first + limit, count - limit)
        self.count -= limit
        return assignment, first, limit

    def youngest(self) -> Assignment | None:
        """The assignment of the last task."""
        return self._stretches[-1][0] if self._stretches else None

    def take_youngest(self) -> tuple[Assignment, int]:
        """The last task, the other way round."""
        assignment, first, count = self._stretches.pop()
        if count > 1:
            self._stretches.append((assignment, first, count - 1))
        self.count -= 1
        return assignment, first + count - 1

    def remove(self, assignment: Assignment, index: int) -> bool:
        """Take one task out from wherever it is; False if it is not here."""
        for position, (owner, first, count) in enumerate(self._stretches):
            if owner is assignment and first <= index < first + count:
                del self._stretches[position]
                if index + 1 < first + count:
                    self._stretches.insert(position, (owner, index + 1, first + count - index - 1))
                if index > first:
                    self._stretches.insert(position, (owner, first, index - first))
                self.count -= 1
                return True
        return False
