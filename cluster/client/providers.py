"""What a client needs from floors above it, registered by the package's root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = [
    "CollectionsLike",
    "LocalClusterLike",
    "adapter",
    "adapter_provider",
    "asynchronous_client_provider",
    "client_type_for",
    "collections",
    "collections_provider",
    "engine_client_provider",
    "local_cluster_provider",
    "open_local_cluster",
]


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

    def wait_until_joined(self, timeout_seconds: float) -> None:
        """Wait until the workers that were started have joined the scheduler, or ended, or the time is up; raises
        ConnectionLost if all have ended."""
        ...

    def explain_failure(self) -> str:
        """Why its processes have ended, if one has; else an empty text."""
        ...


_providers: list[Callable[..., LocalClusterLike]] = []


def local_cluster_provider(provider: Callable[..., LocalClusterLike]) -> None:
    """Register what makes a local cluster: for a client that was given no address, or of the shape that is given."""
    _providers[:] = [provider]


def open_local_cluster(**shape: int | None) -> LocalClusterLike:
    """Make a local cluster; the arguments are those of `LocalCluster`."""
    return _providers[0](**shape)


class CollectionsLike(Protocol):
    """What computes lazy values and graphs for a client."""

    def compute(self, client: Any, values: Any, options: dict[str, Any], sync: bool) -> Any:
        """Submit what a lazy value, or several in a container, need; the same with futures in their place, or with
        `sync` with their values."""
        ...

    def persist(self, client: Any, values: Any, options: dict[str, Any]) -> Any:
        """The same values, standing on what is being made on the cluster."""
        ...

    def get(self, client: Any, graph: Any, keys: Any, options: dict[str, Any], sync: bool) -> Any:
        """Submit what the keys of a raw graph need; futures in the shape of the keys, or with `sync` their values."""
        ...


_collections: list[Callable[[], CollectionsLike]] = []


def collections_provider(provider: Callable[[], CollectionsLike]) -> None:
    """Register what computes lazy values."""
    _collections[:] = [provider]


def collections() -> CollectionsLike:
    """What computes lazy values."""
    return _collections[0]()


_adapters: list[Callable[[str], Any]] = []


def adapter_provider(provider: Callable[[str], Any]) -> None:
    """Register what loads the adapter of a name."""
    _adapters[:] = [provider]


def adapter(name: str) -> Any:
    """The module that speaks another library's interface; raises ModuleNotFoundError if that library is missing."""
    return _adapters[0](name)


_asynchronous_types: list[Callable[[], type[Any]]] = []


def asynchronous_client_provider(provider: Callable[[], type[Any]]) -> None:
    """Register what gives the class that `Client(asynchronous=True)` makes: it derives from Client."""
    _asynchronous_types[:] = [provider]


_engine_types: list[Callable[[str, object, bool], type[Any]]] = []


def engine_client_provider(provider: Callable[[str, object, bool], type[Any]]) -> None:
    """Register what gives the class that `Client(engine=…)` makes: it derives from Client."""
    _engine_types[:] = [provider]


def client_type_for(engine: str, address: object, asynchronous: bool) -> type[Any] | None:
    """The class of clients for an engine, or for a foreign cluster's address; None for a cluster of ours."""
    foreign = isinstance(address, str) and address.startswith(("dask://", "ray://"))
    if engine != "cluster" or foreign:
        return _engine_types[0](engine, address, asynchronous)
    return _asynchronous_types[0]() if asynchronous else None
