"""Futures, and sequences of them that make a Future only when one is looked at."""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from cluster.client.html import card
from cluster.errors import ClusterError
from cluster.ids import task_key
from cluster.session.table import Numbers
from cluster.wire.payload import future_from, futures_from, register_future_type

if TYPE_CHECKING:
    from cluster.client.client import Client
    from cluster.client.explanation import Explanation, Story
    from cluster.client.log_lines import LogLine

__all__ = ["Future", "FutureSequence", "Origin", "register_future_class"]


STATES_SHOWN = 10_000
"""Of so many futures of a sequence a notebook is told how they stand."""


class Origin(NamedTuple):
    """What the keys of futures are made of: one for all tasks of a function, or of a batch."""

    label: str
    batch: int
    key: str | None = None
    submitted: tuple[bytes, int] | None = None
    """For a task of another client: that client's id and number, by which the future travels on. The number that it has
    here means nothing to others once it is released."""


class Future:
    """The result of one task, which may still be running.

    The task is wanted as long as a Future of it exists in this client: dropping the last one cancels what has not run,
    and frees the value. Futures of the same task are equal. A future may be an argument of another task, at any depth:
    that task then waits for it and receives its value. Inside a value it travels as a future, and is bound to the
    client that loads it.
    """

    __slots__ = ("__weakref__", "_client", "_drop", "_origin", "number")

    def __init__(self, client: Client, number: int, origin: Origin, drop: Callable[[int], None]) -> None:
        self._client = client
        self.number = number
        self._origin = origin
        self._drop = drop

    def __del__(self) -> None:
        # A finalizer may run anywhere, in the middle of our own code too: it only notes.
        if self.number >= 0:
            self._drop(self.number)

    @property
    def key(self) -> str:
        """The task's name for people."""
        label, batch, key, _ = self._origin
        return key or task_key(label, self._client.id, batch, self.number)

    @property
    def status(self) -> str:
        """ "pending", "finished", "error" or "cancelled"; "lost" when the connection ended before the task did."""
        return self._client._status(self._wanted())

    def done(self) -> bool:
        """Whether the task has ended, in whatever way. Returns at once."""
        return self._client._status(self._wanted()) != "pending"

    def cancelled(self) -> bool:
        """Whether the task was cancelled, or one that it needs."""
        return self._client._status(self._wanted()) == "cancelled"

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the value and return it, each time a new copy; raise what the task raised if it failed.

        After `timeout` seconds TimeoutError is raised, and the task goes on.
        """
        return self._client._result(self._wanted(), timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end of the task and return what it raised, or None if it succeeded."""
        return self._client._exception(self._wanted(), timeout)

    def traceback(self, timeout: float | None = None) -> str | None:
        """Wait for the end of the task; return its traceback as text, the user's frames only, None if it succeeded."""
        return self._client._traceback(self._wanted(), timeout)

    def logs(self) -> list[LogLine]:
        """What the task has written until now: lines with time and stream, of each attempt, 1 MB at most of each.

        It prints, warns and logs into this; the worker that ran it keeps it as long as the task is wanted, within
        64 MB for all its tasks. What was left out is said in a line of the stream "cut". Raises ConnectionLost.
        """
        return self._client._logs_of(self)

    def add_done_callback(self, function: Callable[[Future], object]) -> None:
        """Call `function(future)` when the task has ended, at once if it has; in the client's background thread."""
        self._client._add_done_callback(self, function)

    def cancel(self) -> bool:
        """Stop the task and everything that depends on it, running or not; False if it had ended already."""
        self._client.cancel(self)
        return self.cancelled()

    def retry(self) -> None:
        """Run a failed task again."""
        self._client.retry(self)

    def explain(self) -> Explanation:
        """Say why the task is where it is, what it waits for, and what to do about it; see `Client.explain`."""
        return self._client.explain(self)

    def story(self) -> Story:
        """Tell what has happened to the task, with reasons and times; see `Client.story`."""
        return self._client.story(self)

    def release(self) -> None:
        """Give the task up now, as dropping the last reference does; the future cannot be used any more."""
        number, self.number = self.number, -1
        if number >= 0:
            self._drop(number)

    def _wanted(self) -> int:
        return check_reference(self.number)

    def __reduce__(self) -> tuple[Any, ...]:
        self._wanted()
        return future_from, _reference(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Future) and self.number == other.number and self._client is other._client

    def __hash__(self) -> int:
        return hash(self.number)

    def __repr__(self) -> str:
        return "<Future released>" if self.number < 0 else f"<Future {self.key} {self.status}>"

    def _repr_html_(self) -> str:
        if self.number < 0:
            return card("Future", [("status", "released")])
        return card("Future", [("key", self.key), ("status", self.status)])


class Holding:
    """Keeps numbers wanted for the sequences that look at them; they are released when the last one is gone."""

    __slots__ = ("__weakref__", "_drop", "_origins", "_runs")

    def __init__(self, runs: list[range], label: str, drop: Callable[[range], None]) -> None:
        self._runs = runs
        self._origins = [Origin(label, run.start) for run in runs]
        self._drop = drop

    def __del__(self) -> None:
        self.release()

    def origin_of(self, number: int) -> Origin:
        """What the key of one of the numbers is made of: each run is a batch."""
        at = bisect_right(self._runs, number, key=_start) - 1 if len(self._runs) > 1 else 0
        return self._origins[at]

    def release(self) -> None:
        """Give the numbers up now."""
        runs, self._runs = self._runs, []
        for run in runs:
            self._drop(run)


def _start(run: range) -> int:
    return run.start


class FutureSequence(Sequence[Future]):
    """The futures of a `map`, in the order of its items. It takes no memory for a future that nobody looks at.

    Slices are views: they keep the whole sequence wanted. A Future taken from it keeps its own task wanted, when the
    sequence is gone too. Passed inside an argument it becomes the list of the values.
    """

    __slots__ = ("__weakref__", "_client", "_holding", "_label", "_numbers")

    def __init__(self, client: Client, numbers: Numbers, label: str, holding: Holding) -> None:
        self._client = client
        self._numbers = numbers
        self._label = label
        self._holding: Holding | None = holding

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Future: ...
    @overload
    def __getitem__(self, index: slice) -> FutureSequence: ...
    def __getitem__(self, index: int | slice) -> Future | FutureSequence:
        holding = self._held()
        if isinstance(index, slice):
            return type(self)(self._client, self._numbers[index], self._label, holding)
        try:
            number: int = self._numbers[operator.index(index)]
        except IndexError:
            raise IndexError(f"no future {index} in a sequence of {len(self)}") from None
        return self.future_of(number)

    def __iter__(self) -> Iterator[Future]:
        self._held()
        return map(self.future_of, self._numbers)

    def __contains__(self, future: object) -> bool:
        return isinstance(future, Future) and future._client is self._client and future.number in self._numbers

    def __reversed__(self) -> Iterator[Future]:
        return iter(self[::-1])

    def __reduce__(self) -> tuple[Any, ...]:
        self._held()
        return futures_from, (_references(self),)

    def __repr__(self) -> str:
        return f"<FutureSequence of {len(self)} {self._label}>"

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [("function", self._label), ("futures", len(self))]
        if self._holding is None:
            return card("FutureSequence", [*facts, ("status", "released")])
        looked_at = self._numbers[:STATES_SHOWN]
        states = Counter(map(self._client._status, looked_at))
        said = ", ".join(f"{count} {state}" for state, count in states.most_common())
        cut = f" (the first {STATES_SHOWN})" if len(self) > STATES_SHOWN else ""
        return card("FutureSequence", [*facts, ("status", said + cut)])

    def release(self) -> None:
        """Give up this sequence's hold on its tasks; it cannot be used any more."""
        self._holding = None

    def future_of(self, number: int) -> Future:
        """A Future of one of the numbers."""
        return self._client._future(number, self._held().origin_of(number))

    @property
    def client_id(self) -> bytes:
        """The id of the client whose tasks these are."""
        return self._client.id

    def numbers(self) -> Numbers:
        """The tasks' numbers in this client."""
        self._held()
        return self._numbers

    def _held(self) -> Holding:
        if self._holding is None:
            raise ClusterError("this sequence of futures was released; keep it until its values have been used")
        return self._holding


def check_reference(number: int) -> int:
    """Raise ClusterError for what a released future is referred to by."""
    if number < 0:
        raise ClusterError("this future was released; keep it until its value has been used")
    return number


# What cannot be pickled is searched for what is to blame in it; so these never raise, and whoever uses them checks.


def _reference(future: Future) -> tuple[Any, ...]:
    label, batch, key, submitted = future._origin
    if submitted is None or future.number < 0:
        submitted = future._client.id, future.number
    return *submitted, label, batch, key


def _references(sequence: FutureSequence) -> list[tuple[bytes, int]]:
    client_id = sequence._client.id
    if sequence._holding is None:
        return [(client_id, -1)]
    return [(client_id, number) for number in sequence._numbers]


def numbers_of(futures: Iterable[Future], client_id: bytes) -> list[int] | None:
    """The numbers of futures, None if one is of another client; raises ClusterError if one was released."""
    numbers = []
    for future in futures:
        if future._client.id != client_id:
            return None
        numbers.append(check_reference(future.number))
    return numbers


def packed_numbers(numbers: Numbers) -> array[int]:
    """The numbers as packed 'q'."""
    return numbers if isinstance(numbers, array) else array("q", numbers)


def register_future_class(kind: type[Future], sequence_kind: type[FutureSequence]) -> None:
    """Have the picklers know a client's futures; they look at an object's very class."""
    register_future_type(kind, _reference)
    register_future_type(sequence_kind, _references, sequence=True)


register_future_class(Future, FutureSequence)
