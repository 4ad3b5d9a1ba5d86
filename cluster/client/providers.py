"""What a client needs from floors above it, registered by the package's root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["LocalClusterLike", "local_cluster_provider", "open_local_cluster"]


class LocalClusterLike(Protocol):
    """What a client needs to know of a cluster object."""

    @property
    def scheduler_address(self) -> str:
        """Where the scheduler listens."""
        ...

    @property
    def secret(self) -> bytes:
        """What connections prove."""
        ...

    def close(self) -> None:
        """End the cluster."""
        ...

    def explain_failure(self) -> str:
        """Why its processes have ended, if one has; else an empty text."""
        ...


_providers: list[Callable[[], LocalClusterLike]] = []


def local_cluster_provider(provider: Callable[[], LocalClusterLike]) -> None:
    """Register what makes a local cluster for a client that was given no address."""
    _providers[:] = [provider]


def open_local_cluster() -> LocalClusterLike:
    """Make a local cluster."""
    return _providers[0]()
