"""Locks, semaphores, events, queues, variables and counters that clients, and tasks, share by name.

They are made without asking anybody: a name is enough, and whoever uses the same name means the same thing. They can be
arguments of tasks; a copy that arrives somewhere is bound to the client there, and holds nothing.

Whatever asks the scheduler is an operation, so the client's face decides: with an `AsyncClient` every method gives
something to await. `named_async.py` says so to type checkers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from cluster.client.coordination import ITEM_LIMIT_BYTES, Coordination
from cluster.client.core import ClientCore, current_client
from cluster.client.operations import Operation
from cluster.errors import ClusterError
from cluster.ids import new_id

__all__ = ["Counter", "Event", "Lock", "Queue", "Semaphore", "Variable"]

BATCH_BYTES = 1 << 20
ACQUISITIONS_KEPT = 10_000
"""So many an object remembers: those of tasks that ended without a release stand among them."""

T = TypeVar("T")


class Named:
    """A name, and the client that it is used through: the one given, or else the newest when it is first used."""

    _kind: ClassVar[str]
    _asynchronous: ClassVar[bool] = False
    """Which face the client is to have when none was given."""

    def __init__(self, name: str | None = None, client: ClientCore | None = None) -> None:
        self.name = f"{type(self).__name__.lower()}-{new_id().hex()}" if name is None else name
        self._client = client

    def _ask(self, action: str, *arguments: Any, timeout: float | None = None, load: Any = None) -> Operation[Any]:
        return self._coordination()._coordinate(
            self._kind, self.name, action, *arguments, timeout=_checked(timeout), load=load
        )

    def _do(self, operation: Operation[Any]) -> Any:
        """Carry it out; with an AsyncClient, what is to be awaited for that."""
        return self._coordination()._complete(operation)

    def _ask_for(self, kind: Callable[[Any], T], action: str, *arguments: Any) -> Operation[T]:
        """The answer, made into what the caller is to have."""
        return kind((yield from self._ask(action, *arguments)))

    def _coordination(self) -> Coordination:
        if self._client is None:
            self._client = current_client(asynchronous=self._asynchronous)
        if self._client is None:
            kind = "an AsyncClient" if self._asynchronous else "a Client"
            raise ClusterError(f"{self!r} needs a client: make {kind} first, or pass client=")
        if not isinstance(self._client, Coordination):
            raise TypeError(f"client must be a Client, not {type(self._client).__name__}")
        if self._asynchronous and not self._client.asynchronous:
            raise TypeError(f"{self!r} needs an AsyncClient, and was given a blocking Client")
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class _Held(NamedTuple):
    """One acquisition, and the run of the task that made it, if a task did."""

    fence: int
    task: tuple[int, int] | None


class Leased(Named):
    """What can be held, so many times at a time."""

    _kind = "lease"

    def __init__(self, name: str | None, client: ClientCore | None, max_leases: int, lease_seconds: float) -> None:
        super().__init__(name, client)
        if not isinstance(max_leases, int) or max_leases < 1:
            raise ValueError(f"max_leases must be a whole number of at least 1, not {max_leases!r}")
        if not lease_seconds >= 0:
            raise ValueError(f"lease_seconds must be at least 0, not {lease_seconds!r}")
        self.max_leases = max_leases
        self.lease_seconds = float(lease_seconds)
        self._held: list[_Held] = []

    @property
    def fence(self) -> int | None:
        """The number of this object's latest acquisition, greater than those of all before; None if it holds nothing.

        A store that refuses a smaller number than it has seen is safe from a holder that lost its lease unawares.
        """
        own = self._own()
        return own[-1].fence if own else None

    def release(self) -> None:
        """Give back the oldest acquisition made through this object.

        Raises RuntimeError when there is none, and ClusterError when its lease has ended meanwhile.
        """
        return self._do(self._release())  # type: ignore[no-any-return]

    def _acquire(self, timeout: float | None) -> Operation[bool]:
        task = self._coordination()._holding_task()
        holder = (-1, -1) if task is None else task
        fence = yield from self._ask("acquire", self.max_leases, self.lease_seconds, *holder, timeout=timeout)
        if fence is not None:
            self._held.append(_Held(fence, task))
            del self._held[:-ACQUISITIONS_KEPT]
        return fence is not None

    def _own(self) -> list[_Held]:
        """The acquisitions that are not another task's, which ran in this process before or waits below this one."""
        if not self._held:
            return []
        task = self._coordination()._holding_task()
        return [held for held in self._held if held.task is None or held.task == task]

    def _release(self) -> Operation[None]:
        own = self._own()
        if not own:
            raise RuntimeError(f"{self!r} was not acquired")
        held = own[0]
        self._held.remove(held)
        try:
            yield from self._ask("release", held.fence)
        except Exception:
            raise
        except BaseException:
            self._held.insert(0, held)  # interrupted, perhaps before the scheduler was told
            raise

    def __enter__(self) -> Self:
        if self._coordination().asynchronous:
            raise TypeError(f"{self!r} of an AsyncClient is entered with `async with`")
        self._do(self._acquire(None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        if not self._coordination().asynchronous:
            raise TypeError(f"{self!r} of a blocking Client is entered with `with`; give it an AsyncClient")
        await self._do(self._acquire(None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._do(self._release())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_held": []}


class Lock(Leased):
    """Held by one at a time, over all clients, in the order of asking. Not reentrant, as `threading.Lock`.

    The holder keeps it as long as its connection to the scheduler stands, whatever it is busy with. It is free again at
    once when the holder's client is closed, and `lease_seconds` after its connection was lost (or when the client's
    grace ends, 60 s, if that comes first). What a task acquires is released when the task ends, in whatever way; a task
    that is cancelled loses it as soon as that is decided, and may run on for a second: see `fence`. An actor keeps what
    it acquires over its calls.

    >>> from cluster import Client, LocalCluster, Lock
    >>> with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
    ...     with Lock("the printer") as lock:
    ...         print(lock.locked(), Lock("the printer").acquire(timeout=0.1))
    True False
    """

    def __init__(
        self, name: str | None = None, client: ClientCore | None = None, *, lease_seconds: float = 30.0
    ) -> None:
        super().__init__(name, client, 1, lease_seconds)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Wait until it is ours and return True; False after `timeout` seconds, or at once if not `blocking`."""
        if not blocking and timeout is not None:
            raise ValueError("a timeout has no meaning for an acquire that does not block")
        return self._do(self._acquire(timeout if blocking else 0.0))  # type: ignore[no-any-return]

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return self._do(self._ask_for(lambda told: bool(told[0]), "look"))  # type: ignore[no-any-return]

    def owner(self) -> str | None:
        """The name of the client that holds it, or None."""
        return self._do(self._ask_for(lambda told: next(iter(told[1]), None), "look"))  # type: ignore[no-any-return]


class Semaphore(Leased):
    """Held by at most `max_leases` at a time; else as `Lock`. All who use a name must agree on the number."""

    def __init__(
        self,
        max_leases: int = 1,
        name: str | None = None,
        client: ClientCore | None = None,
        *,
        lease_seconds: float = 30.0,
    ) -> None:
        super().__init__(name, client, max_leases, lease_seconds)

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for a lease and return True; False after `timeout` seconds."""
        return self._do(self._acquire(timeout))  # type: ignore[no-any-return]

    def get_value(self) -> int:
        """How many leases are taken."""
        return self._do(self._ask_for(lambda told: int(told[0]), "look"))  # type: ignore[no-any-return]


class Event(Named):
    """Set or not; who waits goes on when it is set. Not set at first; it stays set when the client that set it goes."""

    _kind = "event"

    def set(self) -> None:
        """Set it, and wake all who wait."""
        return self._do(self._ask("set"))  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Make it not set."""
        return self._do(self._ask("clear"))  # type: ignore[no-any-return]

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._do(self._ask_for(bool, "look"))  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set and return True; False after `timeout` seconds."""
        return self._do(self._wait(timeout))  # type: ignore[no-any-return]

    def _wait(self, timeout: float | None) -> Operation[bool]:
        return bool((yield from self._ask("wait", timeout=timeout)))


class Counter(Named):
    """A whole number of up to 63 bits, zero at first, which every client may add to."""

    _kind = "counter"

    def add(self, amount: int = 1) -> int:
        """Add to it, and return its new value: no two calls get the same one if all add 1."""
        return self._do(self._ask_for(int, "add", amount))  # type: ignore[no-any-return]

    @property
    def value(self) -> int:
        """How it stands."""
        return self.add(0)


class Queue(Named):
    """First in, first out, for small data (64 KiB an item) and futures, which it keeps as long as they lie in it.

    `maxsize` is for puts through this object: they wait while so many items lie in the queue (0: never). An item that
    was taken is the taker's: it is gone if the taker dies.
    """

    _kind = "queue"

    def __init__(self, name: str | None = None, client: ClientCore | None = None, maxsize: int = 0) -> None:
        super().__init__(name, client)
        if not isinstance(maxsize, int) or maxsize < 0:
            raise ValueError(f"maxsize must be a whole number of at least 0, not {maxsize!r}")
        self.maxsize = maxsize

    def put(self, value: Any, timeout: float | None = None) -> None:
        """Append an item; raises TimeoutError when there was no room for `timeout` seconds.

        Raises ValueError for a value over 64 KiB, and ClusterError when the scheduler keeps 64 MiB of such data.
        """
        return self._do(self._put(value, timeout))  # type: ignore[no-any-return]

    def get(self, timeout: float | None = None, batch: bool = False) -> Any:
        """Wait for an item and take it; raises TimeoutError when none has come in `timeout` seconds.

        With `batch`, a list of all items that lie in the queue now, perhaps none.
        """
        return self._do(self._get_batch() if batch else self._get(timeout))

    def qsize(self) -> int:
        """How many items lie in it."""
        return self._do(self._ask_for(int, "look"))  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop all items, and let go of the futures among them; the name can be used again."""
        return self._do(self._ask("clear"))  # type: ignore[no-any-return]

    def _put(self, value: Any, timeout: float | None) -> Operation[None]:
        data, references = yield from self._coordination()._encode_shared(value, ITEM_LIMIT_BYTES)
        done = yield from self._ask("put", self.maxsize, data, references, timeout=timeout)
        if not done:
            raise TimeoutError(f"{self!r} was full for {timeout} seconds")

    def _get(self, timeout: float | None) -> Operation[Any]:
        found = yield from self._ask("get", timeout=timeout, load=self._load)
        if found is None:
            raise TimeoutError(f"nothing came into {self!r} for {timeout} seconds")
        return found[0]

    def _get_batch(self) -> Operation[list[Any]]:
        items: list[Any] = []
        wanted = math.inf
        while len(items) < wanted:
            found, there = yield from self._ask("take", BATCH_BYTES, load=self._load_batch)
            wanted = min(wanted, len(items) + there)
            items += found
            if not found:
                break
        return items

    def _load(self, found: list[Any] | None) -> list[Any] | None:
        return None if found is None else [self._coordination()._load_shared(value) for value in found]

    def _load_batch(self, found: list[Any]) -> tuple[list[Any] | None, int]:
        return self._load(found[0]), found[1]


class Variable(Named):
    """A value that clients share: small data (64 KiB) or futures, which it keeps until it is set anew or deleted."""

    _kind = "variable"

    def set(self, value: Any) -> None:
        """Give it a value; raises as `Queue.put`."""
        return self._do(self._set(value))  # type: ignore[no-any-return]

    def get(self, timeout: float | None = None) -> Any:
        """Wait until it has a value and return that; raises TimeoutError when it had none for `timeout` seconds."""
        return self._do(self._get(timeout))

    def delete(self) -> None:
        """Make it one that was never set."""
        return self._do(self._ask_for(lambda known: None, "delete"))  # type: ignore[no-any-return]

    def _set(self, value: Any) -> Operation[None]:
        data, references = yield from self._coordination()._encode_shared(value, ITEM_LIMIT_BYTES)
        yield from self._ask("set", data, references)

    def _get(self, timeout: float | None) -> Operation[Any]:
        load = self._coordination()._load_shared_if_any
        found = yield from self._ask("get", timeout=timeout, load=load)
        if found is None:
            raise TimeoutError(f"{self!r} was not set for {timeout} seconds")
        return found[0]


def _checked(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or math.isnan(timeout):
        raise TypeError(f"a timeout is a number of seconds or None, not {timeout!r}")
    return max(0.0, float(timeout))
