"""Locks, semaphores, events, queues, variables and counters on an event loop: those of `named.py`, awaited.

`Lock("x", client=async_client)` is awaited just so; these say to type checkers what is awaited, and take the newest
`AsyncClient` when none is given.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, NoReturn

from cluster.client.named import Counter, Event, Lock, Queue, Semaphore, Variable

__all__ = ["AsyncCounter", "AsyncEvent", "AsyncLock", "AsyncQueue", "AsyncSemaphore", "AsyncVariable"]


class AsyncLock(Lock):
    """A `Lock` of an AsyncClient: `async with AsyncLock("the printer")`.

    Who is cancelled while it waits leaves the line. It belongs to the client, not to the asyncio task that acquired it.

    >>> import asyncio
    >>> from cluster import AsyncClient, AsyncLock, LocalCluster
    >>> async def main(cluster):
    ...     async with AsyncClient(cluster), AsyncLock("the printer") as lock:
    ...         return await lock.locked(), await AsyncLock("the printer").acquire(timeout=0.1)
    >>> with LocalCluster(n_workers=1, slots=1) as cluster:
    ...     asyncio.run(main(cluster))
    (True, False)
    """

    _asynchronous = True

    if TYPE_CHECKING:

        async def acquire(  # type: ignore[override]
            self, blocking: bool = True, timeout: float | None = None
        ) -> bool: ...
        async def release(self) -> None: ...  # type: ignore[override]
        async def locked(self) -> bool: ...  # type: ignore[override]
        async def owner(self) -> str | None: ...  # type: ignore[override]
        def __enter__(self) -> NoReturn: ...


class AsyncSemaphore(Semaphore):
    """A `Semaphore` of an AsyncClient: `async with AsyncSemaphore(3, "printers")`."""

    _asynchronous = True

    if TYPE_CHECKING:

        async def acquire(self, timeout: float | None = None) -> bool: ...  # type: ignore[override]
        async def release(self) -> None: ...  # type: ignore[override]
        async def get_value(self) -> int: ...  # type: ignore[override]
        def __enter__(self) -> NoReturn: ...


class AsyncEvent(Event):
    """An `Event` of an AsyncClient."""

    _asynchronous = True

    if TYPE_CHECKING:

        async def set(self) -> None: ...  # type: ignore[override]
        async def clear(self) -> None: ...  # type: ignore[override]
        async def is_set(self) -> bool: ...  # type: ignore[override]
        async def wait(self, timeout: float | None = None) -> bool: ...  # type: ignore[override]


class AsyncCounter(Counter):
    """A `Counter` of an AsyncClient."""

    _asynchronous = True

    if TYPE_CHECKING:

        async def add(self, amount: int = 1) -> int: ...  # type: ignore[override]
        @property
        def value(self) -> Awaitable[int]: ...  # type: ignore[override]


class AsyncQueue(Queue):
    """A `Queue` of an AsyncClient: an item that came to one who was cancelled goes back."""

    _asynchronous = True

    if TYPE_CHECKING:

        async def put(self, value: Any, timeout: float | None = None) -> None: ...  # type: ignore[override]
        async def get(self, timeout: float | None = None, batch: bool = False) -> Any: ...
        async def qsize(self) -> int: ...  # type: ignore[override]
        async def close(self) -> None: ...  # type: ignore[override]


class AsyncVariable(Variable):
    """A `Variable` of an AsyncClient."""

    _asynchronous = True

    if TYPE_CHECKING:

        async def set(self, value: Any) -> None: ...  # type: ignore[override]
        async def get(self, timeout: float | None = None) -> Any: ...
        async def delete(self) -> None: ...  # type: ignore[override]
