"""Waiting for several futures at once, as `concurrent.futures` and Dask name it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, overload

from cluster.client.client import Client
from cluster.client.future import Future, FutureSequence
from cluster.client.operations import Operation, Raised, Until
from cluster.errors import ClusterError
from cluster.session import table as states

if TYPE_CHECKING:
    from cluster.client.asynchronous import AsyncFuture

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "AsCompleted",
    "DoneAndNotDone",
    "as_completed",
    "fire_and_forget",
    "wait",
]

F = TypeVar("F", bound=Future)

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"
FIRST_EXCEPTION = "FIRST_EXCEPTION"


class DoneAndNotDone(NamedTuple, Generic[F]):
    """What `wait` returns."""

    done: set[F]
    not_done: set[F]


@overload
def wait(  # type: ignore[overload-overlap]  # an AsyncFuture is a Future whose methods that wait are awaited
    futures: AsyncFuture | Iterable[AsyncFuture], timeout: float | None = ..., return_when: str = ...
) -> Coroutine[Any, Any, DoneAndNotDone[AsyncFuture]]: ...
@overload
def wait(
    futures: Future | Iterable[Future], timeout: float | None = ..., return_when: str = ...
) -> DoneAndNotDone[Future]: ...
def wait(futures: Any, timeout: float | None = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait for futures and return which are done, and which are not, as sets. An AsyncClient's: `await wait(…)`.

    `return_when` is "ALL_COMPLETED", "FIRST_COMPLETED" or "FIRST_EXCEPTION" (a failure, else all). After `timeout`
    seconds it returns what there is, as `concurrent.futures.wait` does.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"return_when must be ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION, not {return_when!r}")
    wanted = _futures_of(futures)
    if not wanted:
        return _Nothing(set(), set())
    client = _client_of(wanted)
    return client._complete(_waiting(client, wanted, timeout, return_when))


class _Nothing(DoneAndNotDone[Future]):
    """What comes of no futures, on either face: nobody can tell whose they are."""

    def __await__(self) -> Generator[Any, Any, Self]:
        yield from ()  # there is nothing to wait for
        return self


def _waiting(
    client: Client, wanted: list[Future], timeout: float | None, return_when: str
) -> Operation[DoneAndNotDone[Future]]:
    deadline = None if timeout is None else time.monotonic() + timeout
    numbers = list({future._wanted(): None for future in wanted})
    driver, session = client._driver, client._session
    with driver.guard():
        session.want(numbers)
        if return_when == ALL_COMPLETED:
            ready: Any = session.all_done(numbers)
        else:
            watch = session.watch(set(numbers))
            ready = watch.completed.__len__
            if return_when == FIRST_EXCEPTION:
                ready = _FirstException(client, watch.completed, len(numbers))
    try:
        yield Until(ready, deadline)
    finally:
        if return_when != ALL_COMPLETED:
            with driver.guard():
                session.unwatch(watch)
    with driver.guard():
        done = {number for number in numbers if session.is_done(number)}
    return DoneAndNotDone(
        {future for future in wanted if future.number in done},
        {future for future in wanted if future.number not in done},
    )


class _FirstException:
    """Has one failed, or have all ended?"""

    def __init__(self, client: Client, completed: deque[range], count: int) -> None:
        self._session = client._session
        self._completed = completed
        self._left = count
        self._failed = False

    def __call__(self) -> bool:
        while self._completed:
            numbers = self._completed.popleft()
            self._left -= len(numbers)
            self._failed = self._failed or any(self._session.state(number) == states.FAILED for number in numbers)
        return self._failed or not self._left


class AsCompleted(Iterator[Any]):
    """Gives futures as they become done, failed ones too; `as_completed` makes it. More can be added meanwhile."""

    def __init__(
        self, futures: Iterable[Future], with_results: bool, raise_errors: bool, timeout: float | None
    ) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._with_results = with_results
        self._raise_errors = raise_errors
        self._sequence = futures if isinstance(futures, FutureSequence) else None
        self._futures: dict[int, Future] = {}
        self._ready: deque[Future] = deque()
        self._client: Client | None = None
        self._watch: Any = None
        self._left = 0
        if self._sequence is not None and len(self._sequence):
            numbers = self._sequence.numbers()
            self._begin(self._sequence._client, numbers)
            self._left = len(numbers)
        elif self._sequence is None:
            self.update(futures)

    def _begin(self, client: Client, numbers: Sequence[int]) -> None:
        self._client = client
        with client._driver.guard():
            client._session.want(numbers)
            self._watch = client._session.watch(numbers if isinstance(numbers, range) else set(numbers))
        client._driver.flush()

    def add(self, future: Future) -> None:
        """Wait for one more."""
        if self._client is None:
            self._begin(future._client, set())  # type: ignore[arg-type]
        assert self._client is not None
        self._client._check_own(future)
        if future.number in self._futures:
            return
        self._futures[future.number] = future
        self._left += 1
        with self._client._driver.guard():
            self._client._session.flush()
            self._client._session.want([future.number])
            self._client._session.watch_more(self._watch, future.number)
        self._client._driver.send()

    def update(self, futures: Iterable[Future]) -> None:
        """Wait for more."""
        for future in _futures_of(futures):
            self.add(future)

    def count(self) -> int:
        """How many have not been given out."""
        return self._left

    def is_empty(self) -> bool:
        """Whether all have been given out."""
        return self._left == 0

    def has_ready(self) -> bool:
        """Whether the next one comes without waiting."""
        self._take()
        return bool(self._ready)

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that are done; if none is, and `block`, the next as soon as it is. Of an AsyncClient's: await it."""
        if self._client is None:
            if block:
                raise StopIteration
            return []
        return self._client._complete(self._batch(self._client, block))

    def _batch(self, client: Client, block: bool) -> Operation[Any]:
        batch: list[Any] = []
        while self.has_ready() or (block and not batch):
            each = yield from self._next(client)
            if isinstance(each, Raised):
                return each
            batch.append(each)
        return batch

    def __iter__(self) -> AsCompleted:
        return self

    def __next__(self) -> Any:
        if not self._left:
            self._end()
            raise StopIteration
        assert self._client is not None
        if self._client.asynchronous:
            raise TypeError("these are futures of an AsyncClient; write `async for`")
        return self._client._complete(self._next(self._client))

    def __aiter__(self) -> AsCompleted:
        return self

    async def __anext__(self) -> Any:
        if not self._left:
            self._end()
            raise StopAsyncIteration
        assert self._client is not None
        if not self._client.asynchronous:
            raise TypeError("these are futures of a blocking Client; write `for`, or use an AsyncClient")
        return await self._client._complete(self._next(self._client))

    def _next(self, client: Client) -> Operation[Any]:
        self._take()
        completed = self._watch.completed
        while not self._ready:
            if not (yield Until(lambda: bool(completed), self._deadline)):
                raise TimeoutError(f"{self._left} tasks had not ended in time")
            self._take()
        future = self._ready.popleft()
        self._left -= 1
        if not self._left:
            self._end()
        if not self._with_results:
            return future
        results = client._results
        error = yield from results.exception(future.number, None)
        if error is None:
            value = yield from results.value(future.number, None)
            return value if isinstance(value, Raised) else (future, value)
        return Raised(error) if self._raise_errors else (future, error)

    def _take(self) -> None:
        if self._watch is None or self._client is None:
            return
        with self._client._driver.guard():
            while self._watch.completed:
                for number in self._watch.completed.popleft():
                    future = self._futures.pop(number, None)
                    if future is None and self._sequence is not None:
                        future = self._sequence.future_of(number)
                    if future is not None:
                        self._ready.append(future)

    def _end(self) -> None:
        if self._watch is not None and self._client is not None:
            with self._client._driver.guard():
                self._client._session.unwatch(self._watch)
            self._watch = None
            self._client = None


def as_completed(
    futures: Iterable[Future] = (),
    *,
    with_results: bool = False,
    raise_errors: bool = True,
    timeout: float | None = None,
) -> AsCompleted:
    """Iterate over futures in the order in which they become done; failed and cancelled ones come too.

    `with_results` gives (future, value) pairs; then a failure is raised, or with `raise_errors=False` stands in the
    value's place. `timeout` seconds after the call TimeoutError is raised. More can be added with `.add` and `.update`.
    """
    return AsCompleted(futures, with_results, raise_errors, timeout)


def fire_and_forget(futures: Future | Iterable[Future]) -> None:
    """Have tasks run to their end though nobody keeps their futures.

    Tasks that wait in this process until the scheduler takes their arguments have left it when this returns.
    """
    wanted = _futures_of(futures)
    if not wanted:
        return
    client = _client_of(wanted)
    with client._driver.guard():
        numbers = sorted({future._wanted() for future in wanted})
        client._session.keep(numbers)
    client._driver.send()
    if not client._session.has_left(numbers):
        client._driver.wait_until(lambda: client._session.has_left(numbers))


def _futures_of(futures: Future | Iterable[Future]) -> list[Future]:
    found = [futures] if isinstance(futures, Future) else list(futures)
    for future in found:
        if not isinstance(future, Future):
            raise TypeError(f"a Future is needed, and {type(future).__name__} was given: {future!r:.100}")
    return found


def _client_of(futures: list[Future]) -> Client:
    client = futures[0]._client
    if any(future._client is not client for future in futures):
        raise ClusterError("these futures belong to several clients; wait for those of each client by themselves")
    return client
