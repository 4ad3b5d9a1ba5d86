"""The asyncio face: the same client, whose calls that wait are awaited instead.

There is one implementation. What waits is an operation (`operations.py`), and `AsyncClient` carries it out on the event
loop. So a method of `Client` that waits gives, called on an AsyncClient, something to await; what is declared under
`TYPE_CHECKING` only says so to type checkers. A subclass and not a second class beside it: every part of a client
serves both faces from the day on which it is written, and whatever takes a `Client` or a `Future` knows these as well.
The price is that their methods' types differ from those of their base, which is marked where it is so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload

from cluster.client.client import Client, WithOptions
from cluster.client.explanation import Explanation, Story
from cluster.client.future import Future, FutureSequence, register_future_class
from cluster.client.log_lines import LogLine
from cluster.client.on_loop import OnLoop, aside, check_loop
from cluster.client.operations import Aside, Operation, Until
from cluster.errors import ClusterError
from cluster.transport.blocking import BlockingConnection

if TYPE_CHECKING:
    import pdb

__all__ = ["AsyncClient", "AsyncFuture", "AsyncFutureSequence"]

T = TypeVar("T")


class AsyncFuture(Future):
    """The result of one task of an `AsyncClient`: `await future`. What returns at once does so here too.

    Cancelling the asyncio task that awaits the result cancels the task on the cluster, as asyncio does with its own:
    for all of this client, and with all that depends on it; another client that wants it too keeps it. To give up
    waiting only, use `future.result(timeout)`, or `asyncio.shield(future.result())`.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        _client: AsyncClient

        def add_done_callback(self, function: Callable[[AsyncFuture], object]) -> None:
            """Call `function(future)` on the event loop when the task has ended."""

        async def explain(self) -> Explanation: ...  # type: ignore[override]
        async def story(self) -> Story: ...  # type: ignore[override]
        async def logs(self) -> list[LogLine]: ...  # type: ignore[override]

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.result().__await__()

    async def result(self, timeout: float | None = None) -> Any:
        """The value, each time a new copy; raises what the task raised if it failed.

        After `timeout` seconds TimeoutError is raised, and the task goes on.
        """
        return await self._client._result(self._wanted(), timeout)

    async def exception(self, timeout: float | None = None) -> BaseException | None:  # type: ignore[override]
        """What the task raised once it has ended, or None if it succeeded."""
        return await self._client._exception(self._wanted(), timeout)

    async def traceback(self, timeout: float | None = None) -> str | None:  # type: ignore[override]
        """The task's traceback as text once it has ended, the user's frames only, None if it succeeded."""
        return await self._client._traceback(self._wanted(), timeout)


class AsyncFutureSequence(FutureSequence):
    """The futures of an `AsyncClient.map`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, index: int) -> AsyncFuture: ...
        @overload
        def __getitem__(self, index: slice) -> AsyncFutureSequence: ...
        def __getitem__(self, index: int | slice) -> AsyncFuture | AsyncFutureSequence: ...
        def __iter__(self) -> Iterator[AsyncFuture]: ...


register_future_class(AsyncFuture, AsyncFutureSequence)


class AsyncClient(Client):
    """A `Client` for an asyncio event loop: whatever waits is awaited, and nothing holds the loop up.

    It is connected by `async with AsyncClient(…) as client`, or `client = await AsyncClient(…)`, and belongs to the
    loop that runs then. Its arguments are those of `Client`. `submit`, `map`, `cancel` and `retry` return at once. They
    take what they are given into memory; when over 64 MiB of it wait because the scheduler does not take them, they
    raise ClusterError: `await client.drain()` now and then between large submits. Packing a long `map` takes time (0.05
    to 1 µs an item): `await asyncio.to_thread(client.map, function, items)` leaves the loop free, and waits by itself.

    >>> import asyncio
    >>> from cluster import AsyncClient, LocalCluster
    >>> async def main(cluster):
    ...     async with AsyncClient(cluster) as client:
    ...         return await client.submit(pow, 2, 10), await client.gather(client.map(abs, [-1, -2]))
    >>> with LocalCluster(n_workers=1, slots=2) as cluster:
    ...     asyncio.run(main(cluster))
    (1024, [1, 2])
    """

    asynchronous = True
    _future_type = AsyncFuture
    _sequence_type = AsyncFutureSequence
    _on_loop: OnLoop

    # ------------------------------------------------------------------ the beginning and the end

    def _begin(self) -> None:
        """Connecting waits, so it is awaited."""
        self._connecting = False

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._connected().__await__()

    async def _connected(self) -> Self:
        if "_on_loop" in self.__dict__:
            check_loop(self._on_loop.loop)
            return self
        if self._connecting:
            raise ClusterError("this client is being connected already; await it once, and use it then")
        self._connecting = True
        try:
            self._stand_on(await self._connect_aside())
            self._on_loop = OnLoop(self._driver, self._abandon)
            try:
                await self._on_loop.carry_out(self._join())
            except BaseException:
                await self.close()
                raise
        finally:
            self._connecting = False
        return self

    async def _connect_aside(self) -> BlockingConnection:
        executor = concurrent.futures.ThreadPoolExecutor(1, "cluster-connect")
        connecting = executor.submit(self._connect)
        executor.shutdown(wait=False)
        try:
            return await asyncio.wrap_future(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._undo)
            raise

    def _undo(self, connecting: concurrent.futures.Future[BlockingConnection]) -> None:
        """Nobody waits any more for the connection that was made here."""
        if not connecting.cancelled() and connecting.exception() is None:
            connecting.result().close()
            self._end_own_cluster()

    def _abandon(self) -> None:
        self._shut("the event loop of this client was closed; close a client before its loop")

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> NoReturn:
        raise TypeError("an AsyncClient is entered with `async with`")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name in ("_driver", "_session", "_submission", "_results", "_drop", "_on_loop"):
                raise ClusterError("this client is not connected yet: `await` it, or enter it with `async with`")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def status(self) -> str:
        """ "running", "closed" when the connection has ended, or "connecting" before the client was awaited."""
        return super().status if "_on_loop" in self.__dict__ else "connecting"

    async def close(self) -> None:  # type: ignore[override]
        """End the connection: all that this client wants is released, and its futures are of no use any more."""
        if "_on_loop" in self.__dict__:
            check_loop(self._on_loop.loop)
            self._on_loop.stop()
            await asyncio.shield(asyncio.ensure_future(aside(self._shut)))

    async def drain(self) -> None:
        """Wait until the system has taken all that was submitted; returns at once if nothing waits."""
        await self._complete(self._draining())

    def _draining(self) -> Operation[None]:
        yield Until(self._driver.sent)
        self._driver.check()

    # ------------------------------------------------------------------ awaiting

    def _complete_at_once(self, operation: Operation[T]) -> T:
        if threading.get_ident() != self._on_loop.thread:
            return super()._complete_at_once(operation)
        try:
            step = next(operation)
            while isinstance(step, Aside) or step.ready():
                step = operation.send(step.function() if isinstance(step, Aside) else True)
        except StopIteration as end:
            result: T = end.value
            return result
        operation.close()
        raise ClusterError(
            "the scheduler holds as many bytes of this client's arguments as it may, and the event loop cannot be held "
            "up until it has room: `await asyncio.to_thread(client.map, function, items)` waits for that"
        )

    def _complete(self, operation: Operation[T]) -> Coroutine[Any, Any, T]:  # type: ignore[override]
        return self._on_loop.carry_out(operation)

    async def _complete_for(self, numbers: Sequence[int], operation: Operation[T]) -> T:  # type: ignore[override]
        """Whoever is cancelled while awaiting results cancels their tasks."""
        try:
            return await self._on_loop.carry_out(operation)
        except asyncio.CancelledError:
            if self.status == "running":
                self._change_numbers(numbers, self._session.cancel)
            raise

    if TYPE_CHECKING:
        # What these do stands at the methods of the same names in Client and its parts.

        def submit(
            self,
            function: Callable[..., Any],
            /,
            *args: Any,
            key: str | None = ...,
            workers: str | Iterable[str] | None = ...,
            resources: Mapping[str, float] | None = ...,
            retries: int = ...,
            priority: int = ...,
            allow_other_workers: bool = ...,
            actor: bool = ...,
            pure: bool = ...,
            **kwargs: Any,
        ) -> AsyncFuture: ...
        def map(
            self,
            function: Callable[..., Any],
            /,
            *iterables: Iterable[Any],
            key: str | None = ...,
            workers: str | Iterable[str] | None = ...,
            resources: Mapping[str, float] | None = ...,
            retries: int = ...,
            priority: int = ...,
            allow_other_workers: bool = ...,
            **kwargs: Any,
        ) -> AsyncFutureSequence: ...
        def options(
            self,
            *,
            label: str | None = ...,
            key: str | None = ...,
            workers: str | Iterable[str] | None = ...,
            resources: Mapping[str, float] | None = ...,
            retries: int = ...,
            priority: int = ...,
            allow_other_workers: bool = ...,
            timeout_seconds: float | None = ...,
            memory: str | int | None = ...,
            copy: bool = ...,
        ) -> AsyncWithOptions: ...
        async def scatter(
            self, data: Any, *, workers: str | Iterable[str] | None = ..., broadcast: bool = ...
        ) -> Any: ...
        async def gather(self, futures: Any, *, errors: str = ..., timeout: float | None = ...) -> Any: ...
        async def _logs_of(self, future: Future) -> list[LogLine]: ...  # type: ignore[override]
        async def debug(self, future: Future, *, debugger: pdb.Pdb | None = ...) -> Any: ...
        async def explain(self, future: Future | str) -> Explanation: ...  # type: ignore[override]
        async def story(self, future: Future | str) -> Story: ...  # type: ignore[override]
        async def recreate_error_locally(self, future: Future) -> Any: ...
        async def who_has(self, futures: Any) -> dict[str, list[str]]: ...  # type: ignore[override]
        async def scheduler_info(self) -> dict[str, Any]: ...  # type: ignore[override]
        async def nthreads(self) -> dict[str, int]: ...  # type: ignore[override]
        async def has_what(  # type: ignore[override]
            self, workers: str | Iterable[str] | None = ...
        ) -> dict[str, list[str]]: ...
        async def processing(  # type: ignore[override]
            self, workers: str | Iterable[str] | None = ...
        ) -> dict[str, list[str]]: ...
        async def run(  # type: ignore[override]
            self,
            function: Callable[..., Any],
            /,
            *args: Any,
            workers: str | Iterable[str] | None = ...,
            on_error: str = ...,
            **kwargs: Any,
        ) -> dict[str, Any]: ...
        async def upload_file(self, filename: str | Path) -> None: ...  # type: ignore[override]
        async def upload_package(self, package: ModuleType | str | Path) -> None: ...  # type: ignore[override]
        async def rebalance(  # type: ignore[override]
            self, futures: Any = ..., *, workers: str | Iterable[str] | None = ...
        ) -> None: ...
        async def replicate(  # type: ignore[override]
            self, futures: Any, n: int | None = ..., *, workers: str | Iterable[str] | None = ...
        ) -> None: ...
        async def retire_workers(  # type: ignore[override]
            self, workers: str | Iterable[str] | None = ..., *, close_workers: bool = ...
        ) -> list[str]: ...
        async def restart(self) -> None: ...  # type: ignore[override]
        async def wait_for_workers(  # type: ignore[override]
            self, n_workers: int = ..., timeout: float | None = ...
        ) -> None: ...
        async def get_versions(  # type: ignore[override]
            self, check: bool = ..., packages: Iterable[str] = ...
        ) -> dict[str, Any]: ...
        async def publish_dataset(  # type: ignore[override]
            self, *value: Any, name: str | None = ..., override: bool = ..., **datasets: Any
        ) -> None: ...
        async def publish(  # type: ignore[override]
            self, name: str, value: Any, *, override: bool = ...
        ) -> None: ...
        async def get_dataset(self, name: str, default: Any = ...) -> Any: ...
        async def list_datasets(self) -> tuple[str, ...]: ...  # type: ignore[override]
        async def unpublish_dataset(self, name: str) -> None: ...  # type: ignore[override]
        async def unpublish(self, name: str) -> None: ...  # type: ignore[override]
        async def _result(self, number: int, timeout: float | None) -> Any: ...
        async def _exception(  # type: ignore[override]
            self, number: int, timeout: float | None
        ) -> BaseException | None: ...
        async def _traceback(self, number: int, timeout: float | None) -> str | None: ...  # type: ignore[override]


class AsyncWithOptions(WithOptions):
    """`submit` and `map` of an AsyncClient with options chosen before; its `options` makes it."""

    if TYPE_CHECKING:

        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncFuture: ...
        def map(
            self, function: Callable[..., Any], /, *iterables: Iterable[Any], **kwargs: Any
        ) -> AsyncFutureSequence: ...
