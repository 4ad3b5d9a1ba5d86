"""The lock that Dask puts into graphs, made one that excludes the tasks of all processes.

Dask's `SerializableLock` guards what several tasks may not touch at once, a file mostly. Pickled, it locks each process
for itself. In a task here it is a lock of the cluster, by the same token; anywhere else it is what it was.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from dask.utils import SerializableLock

from cluster.client.named import Lock
from cluster.daemon import in_slot
from cluster.wire.pickling import register_reducer

__all__ = ["GraphLock", "lock_of", "share_locks"]

PREFIX: Final = "dask-lock-"


class GraphLock:
    """What a `SerializableLock` is in a task: it has the same methods."""

    def __init__(self, token: Any) -> None:
        self.token = token
        self._lock = Lock(f"{PREFIX}{token}")

    def __reduce__(self) -> tuple[Any, ...]:
        return lock_of, (self.token,)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire it, waiting as `threading.Lock.acquire` does."""
        if not blocking:
            timeout = 0
        return self._lock.acquire(timeout=None if timeout < 0 else timeout)

    def release(self) -> None:
        """Release it."""
        self._lock.release()

    def locked(self) -> bool:
        """Whether anybody has it."""
        return self._lock.locked()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def lock_of(token: Any) -> GraphLock | SerializableLock:
    """The lock of a token in the process that loads it; found in pickles only."""
    return SerializableLock(token) if in_slot.surroundings() is None else GraphLock(token)


def share_locks() -> None:
    """From now on the locks in what this process sends are the cluster's."""
    register_reducer(SerializableLock, lambda lock: (lock_of, (lock.token,)))
