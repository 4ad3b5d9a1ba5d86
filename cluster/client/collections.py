"""Lazy values and graphs, as a client computes them; what they are is said in `cluster.lazy`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.client.core import ClientCore
from cluster.client.providers import adapter, collections

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
        """Compute a Delayed or a Dask collection, or several in a container; return futures in their place, at once.

        With `sync=True` it waits, and returns the values; that of an AsyncClient is awaited. The options are those of
        `submit` and go to each task.

        >>> from cluster import Client, delayed
        >>> with Client() as client:
        ...     client.compute([delayed(abs)(-1), delayed(abs)(-2)], sync=True)
        [1, 2]
        """
        options = _given(workers, resources, retries, priority, allow_other_workers, timeout_seconds)
        if _has_dask_collections(values):
            self._check_blocks(sync)
            return adapter("dask").compute(self, values, options, sync)
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
        optimize_graph: bool = True,
    ) -> Any:
        """Begin to compute a Delayed, or several in a container; return the same, standing on what the cluster keeps.

        Returns at once. The values stay on the cluster as long as what is returned here. It may be a Dask collection,
        or a list of such; only these are optimized before, unless `optimize_graph` is False.
        """
        options = _given(workers, resources, retries, priority, allow_other_workers, timeout_seconds)
        if _has_dask_collections(values):
            return adapter("dask").persist(self, values, options, optimize_graph)
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
        **unused: Any,
    ) -> Any:
        """Compute keys of a raw graph, a dictionary of keys to tasks as Dask's custom graphs are.

        A task is a tuple of a function and its arguments, among which may be keys, lists, and further tasks that run
        inside this one. `keys` is one key or nested lists of keys, and so is what is returned: values, or with
        `sync=False` futures. Raises KeyError for a key that is not in the graph, ValueError for tasks that need one
        another.

        Tasks of which each takes only the value of the one before, and alone does, run as one, unless `retries` or
        `timeout_seconds` is given.

        Dask calls this too, with graphs of its own, where a client is its scheduler: `x.compute(scheduler=client)`.
        Options that Dask has for its other schedulers are then passed over.

        >>> from cluster import Client
        >>> with Client() as client:
        ...     client.get({"x": 1, "y": (abs, -2), "z": (sum, ["x", "y"])}, ["y", "z"])
        [2, 3]
        """
        options = _given(workers, resources, retries, priority, allow_other_workers, timeout_seconds)
        if _is_dask_graph(dsk):
            self._check_blocks(sync)
            return adapter("dask").get(self, dsk, keys, options, sync)
        if unused:
            raise TypeError(f"get() got an unexpected keyword argument {next(iter(unused))!r}")
        return collections().get(self, dsk, keys, options, sync)

    def _check_blocks(self, sync: bool) -> None:
        if sync and self.asynchronous:
            raise TypeError("Dask's values cannot be awaited; pass sync=False and `await client.gather(…)` the futures")


def _is_dask_graph(graph: Any) -> bool:
    """Whether it is one that Dask has made: not a dictionary of tuples, which anybody may have written."""
    specification = sys.modules.get("dask._task_spec")
    if specification is None:
        return False
    if hasattr(graph, "__dask_graph__") or type(graph).__module__.startswith("dask."):
        return True
    return any(isinstance(node, specification.GraphNode) for node in graph.values())


def _has_dask_collections(values: Any) -> bool:
    """Whether values, at any depth of plain containers, are Dask's."""
    if "dask.base" not in sys.modules:
        return False
    if isinstance(values, list | tuple | set | frozenset):
        return any(map(_has_dask_collections, values))
    if type(values) is dict:
        return any(map(_has_dask_collections, values.values()))
    return hasattr(values, "__dask_graph__") and not isinstance(values, type)


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
