"""The ways into the cluster for programs that are written for another interface."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from cluster.client.core import ClientCore
from cluster.client.providers import adapter

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Interfaces"]


class Interfaces(ClientCore):
    """What a client offers to programs that exist already."""

    def _begin(self) -> None:
        super()._begin()
        if hasattr(sys.modules.get("joblib"), "parallel_config"):
            adapter("joblib")  # which registers the backend "cluster"

    def as_executor(self, **options: Any) -> Executor:
        """A `concurrent.futures.Executor` whose calls run on the cluster.

        `max_workers` bounds how many of them are there at once; the other options are those of `Client.options`, except
        `key`. Raises TypeError or ValueError for what is none.
        """
        executor: Executor = adapter("executor").ClusterExecutor(self, **options)
        return executor

    def joblib(self, **options: Any) -> AbstractContextManager[Any]:
        """Within this `with` block, joblib's `Parallel` runs on this cluster; the options are joblib's."""
        context: AbstractContextManager[Any] = adapter("joblib").parallel_on(self, **options)
        return context
