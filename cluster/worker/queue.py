"""The granted tasks that no slot has: those that may start, in order, kept as stretches and not one by one."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

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
        "_died",
        "_indices",
        "actor_reference",
        "arguments",
        "attempt",
        "blob",
        "function_id",
        "inline_limit_bytes",
        "input_starts",
        "inputs",
        "is_actor_call",
        "is_coroutine",
        "label",
        "offsets",
        "origin",
        "parent",
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
        self.origin: list[Any] = grant.origin
        self.timeout_seconds = float(grant.options.get("timeout_seconds") or 0.0)
        attempt, row = grant.options.get("parent") or (-1, -1)
        self.parent: tuple[int, int] = (attempt, row)  # the run that submitted these tasks; (-1, -1): none did
        reference = grant.options.get("actor")
        self.actor_reference: list[Any] | None = reference  # of the future of what is to be an actor
        self.is_actor_call = bool(grant.options.get("actor_call"))  # the last input of each task is the actor
        self.is_coroutine = bool(grant.options.get("coroutine"))
        self._died: dict[int, int] | None = None  # made when it is first asked for
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

    @property
    def has_died(self) -> bool:
        """Whether any of the tasks has died in or with a process."""
        return len(self.origin) > 6 and bool(self.origin[6])

    @property
    def takes_slots(self) -> bool:
        """Whether each of the tasks takes a slot: an actor lives beside them, and so do coroutines."""
        return not (self.is_actor_call or self.is_coroutine or self.actor_reference is not None)

    @property
    def shown(self) -> bool:
        """Whether the client wants to see what the tasks write."""
        return bool(self.origin[5])

    def deaths_of(self, index: int) -> int:
        """How many processes the task has died in or with."""
        if self._died is None:
            died = self.origin[6] if len(self.origin) > 6 else []
            self._died = dict(zip(died[::2], died[1::2], strict=True))
        return self._died.get(self.rows[index], 0)

    def rows_from(self, first: int, count: int) -> int | bytes:
        """The rows of consecutive tasks: the first if they follow one another, else all, packed as 'Q'."""
        rows = self.rows
        return rows[first] if isinstance(rows, range) else cast("array[int]", rows[first : first + count]).tobytes()

    def needs(self, index: int) -> array[int]:
        """What task `index` takes as inputs, as indices of `values`."""
        starts = self.input_starts
        return self.inputs[starts[index] : starts[index + 1]] if starts else self.inputs

    def takes(self, index: int) -> array[int]:
        """What task `index` is given of these: an actor is not given to its own methods."""
        return self.needs(index)[:-1] if self.is_actor_call else self.needs(index)

    def actor_name(self, index: int) -> tuple[int, int]:
        """What the actor of a call is called: (attempt, row) of its creation."""
        row, attempt = self.values[self.needs(index)[-1]][:2]
        return attempt, row


Stretch: TypeAlias = tuple[Assignment, int, int]  # the assignment, the first index, how many


class ReadyQueue:
    """Tasks whose inputs are here and that no slot has, oldest first."""

    def __init__(self) -> None:
        self._stretches: deque[Stretch] = deque()
        self.count = 0
        self.for_actors: list[Stretch] = []  # creations and calls: no slot runs them
        self.coroutines: deque[Stretch] = deque()  # nor these, and they are not counted
        self.parts_died = False  # tasks that have died are each a stretch of their own
        self._holds_died = False  # perhaps

    def append(self, assignment: Assignment, first: int, count: int) -> None:
        """Put tasks last."""
        if assignment.is_actor_call or assignment.actor_reference is not None:
            self.for_actors.append((assignment, first, count))
            return
        if assignment.is_coroutine:
            self.coroutines.append((assignment, first, count))
            return
        if self.parts_died and assignment.has_died:
            self._stretches.extend((assignment, index, 1) for index in range(first, first + count))
            self.count += count
            self._holds_died = True
            return
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
            assignment, first, count = stretch
            if self.parts_died and assignment.has_died:
                self._stretches.extendleft((assignment, index, 1) for index in reversed(range(first, first + count)))
                self._holds_died = True
            else:
                self._stretches.appendleft(stretch)
            self.count += count

    def head(self) -> Assignment:
        """The assignment of the next task; the queue must not be empty."""
        return self._stretches[0][0]

    def take(self, limit: int) -> Stretch:
        """The next tasks, at most `limit`, of one assignment."""
        return self._take_at(0, limit)

    def children_of(self, parent: tuple[int, int]) -> Assignment | None:
        """The assignment of the first tasks that this run submitted, if there are any."""
        return next((stretch[0] for stretch in self._stretches if stretch[0].parent == parent), None)

    def take_children(self, parent: tuple[int, int], limit: int) -> Stretch:
        """The first of these tasks, at most `limit`, of one assignment."""
        for position, (assignment, _, _) in enumerate(self._stretches):
            if assignment.parent == parent:
                return self._take_at(position, limit)
        raise LookupError(f"no child of {parent} is queued")

    def _take_at(self, position: int, limit: int) -> Stretch:
        """The first tasks of the stretch there, at most `limit`."""
        assignment, first, count = self._stretches[position]
        taken = min(count, limit)
        if taken == count:
            del self._stretches[position]
        else:
            self._stretches[position] = (assignment, first + taken, count - taken)
        self.count -= taken
        return assignment, first, taken

    def holds_died(self) -> bool:
        """Whether a task is here that has died in or with a process."""
        if self._holds_died:
            self._holds_died = any(owner.deaths_of(first) for owner, first, _ in self._stretches)
        return self._holds_died

    def first_sound(self, parent: tuple[int, int] | None) -> Assignment | None:
        """The assignment of the first task that has not died, of those that this run submitted if one is given."""
        position = self._first_sound(parent)
        return None if position < 0 else self._stretches[position][0]

    def take_sound(self, parent: tuple[int, int] | None, limit: int) -> Stretch:
        """That task and what follows it, at most `limit`, of one assignment."""
        return self._take_at(self._first_sound(parent), limit)

    def _first_sound(self, parent: tuple[int, int] | None) -> int:
        for position, (assignment, first, _) in enumerate(self._stretches):
            if (parent is None or assignment.parent == parent) and not assignment.deaths_of(first):
                return position
        return -1

    def take_all_but_children(self, parents: set[tuple[int, int]]) -> list[Stretch]:
        """Everything that none of these runs submitted."""
        taken = [stretch for stretch in self._stretches if stretch[0].parent not in parents]
        self._stretches = deque(stretch for stretch in self._stretches if stretch[0].parent in parents)
        self.count = sum(stretch[2] for stretch in self._stretches)
        return taken

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

    def ahead_of(self, assignment: Assignment, index: int) -> int:
        """How many tasks stand before one; -1 if it is not here."""
        before = 0
        for owner, first, count in self._stretches:
            if owner is assignment and first <= index < first + count:
                return before + index - first
            before += count
        return -1

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
