"""Lazy values and graphs, as a client computes them; what they are is said in `cluster.lazy`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.client.core import ClientCore
from cluster.client.providers import collections

__all__ = ["Collections"]


class Collections(ClientCore):
    """The part of `Client` that computes what was written down before."""

    def compute(
        self,
        values: Any,
        *,
        sync: bool = False,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        allow_other_workers: bool = False,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Compute a Delayed, or several in a container; return futures in their place, at once.

        With `sync=True` it waits, and returns the values; that of an AsyncClient is awaited. The options are those of
        `submit` and go to each task.

        >>> from cluster import Client, delayed
        >>> with Client() as client:
        ...     client.compute([delayed(abs)(-1), delayed(abs)(-2)], sync=True)
        [1, 2]
        """
        options = _given(workers, resources, retries, priority, allow_other_workers, timeout_seconds)
        return collections().compute(self, values, options, sync)

    def persist(
        self,
        values: Any,
        *,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        allow_other_workers: bool = False,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Begin to compute a Delayed, or several in a container; return the same, standing on what the cluster keeps.

        Returns at once. The values stay on the cluster as long as what is returned here.
        """
        options = _given(workers, resources, retries, priority, allow_other_workers, timeout_seconds)
        return collections().persist(self, values, options)

    def get(
        self,
        dsk: Mapping[Any, Any],
        keys: Any,
        *,
        sync: bool = True,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        allow_other_workers: bool = False,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Compute keys of a raw graph, a dictionary of keys to tasks as Dask's custom graphs are.

        A task is a tuple of a function and its arguments, among which may be keys, lists, and further tasks that run
        inside this one. `keys` is one key or nested lists of keys, and so is what is returned: values, or with
        `sync=False` futures. Raises KeyError for a key that is not in the graph, ValueError for tasks that need one
        another.

        >>> from cluster import Client
        >>> with Client() as client:
        ...     client.get({"x": 1, "y": (abs, -2), "z": (sum, ["x", "y"])}, ["y", "z"])
        [2, 3]
        """
        options = _given(workers, resources, retries, priority, allow_other_workers, timeout_seconds)
        return collections().get(self, dsk, keys, options, sync)


def _given(
    workers: str | Iterable[str] | None,
    resources: Mapping[str, float] | None,
    retries: int,
    priority: int,
    allow_other_workers: bool,
    timeout_seconds: float | None,
) -> dict[str, Any]:
    return {
        "workers": workers,
        "resources": resources,
        "retries": retries,
        "priority": priority,
        "allow_other_workers": allow_other_workers,
        "timeout_seconds": timeout_seconds,
    }
