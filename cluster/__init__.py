"""Run Python functions on many cores and hosts: `Client` submits, `LocalCluster` starts a cluster on this machine.

Names are loaded when they are first used, so that `import cluster` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster.client import providers
from cluster.daemon import in_slot
from cluster.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.client.actor import Actor
    from cluster.client.asynchronous import AsyncClient, AsyncFuture, AsyncFutureSequence
    from cluster.client.client import Client
    from cluster.client.future import Future, FutureSequence
    from cluster.client.in_slot import get_client
    from cluster.client.named import Counter, Event, Lock, Queue, Semaphore, Variable
    from cluster.client.named_async import (
        AsyncCounter,
        AsyncEvent,
        AsyncLock,
        AsyncQueue,
        AsyncSemaphore,
        AsyncVariable,
    )
    from cluster.client.providers import CollectionsLike
    from cluster.client.waiting import as_completed, fire_and_forget, wait
    from cluster.daemon.task_context import current
    from cluster.deploy.local import LocalCluster
    from cluster.errors import (
        CancelledError,
        ClusterError,
        ConnectionLost,
        OutOfMemory,
        RemoteError,
        SerializationError,
        TaskDied,
        TaskTimeout,
        Unrunnable,
        ValueLost,
    )
    from cluster.lazy.compute import compute, persist
    from cluster.lazy.delayed import Delayed, delayed
    from cluster.lazy.drawing import visualize
    from cluster.wire.serializers import register_serializer

__all__ = [
    "Actor",
    "AsyncClient",
    "AsyncCounter",
    "AsyncEvent",
    "AsyncFuture",
    "AsyncFutureSequence",
    "AsyncLock",
    "AsyncQueue",
    "AsyncSemaphore",
    "AsyncVariable",
    "CancelledError",
    "Client",
    "ClusterError",
    "ConnectionLost",
    "Counter",
    "Delayed",
    "Event",
    "Future",
    "FutureSequence",
    "LocalCluster",
    "Lock",
    "OutOfMemory",
    "Queue",
    "RemoteError",
    "Semaphore",
    "SerializationError",
    "TaskDied",
    "TaskTimeout",
    "Unrunnable",
    "ValueLost",
    "Variable",
    "__version__",
    "as_completed",
    "compute",
    "current",
    "delayed",
    "fire_and_forget",
    "get_client",
    "persist",
    "register_serializer",
    "visualize",
    "wait",
]

_MODULES = {
    "Actor": "cluster.client.actor",
    "AsyncClient": "cluster.client.asynchronous",
    "AsyncCounter": "cluster.client.named_async",
    "AsyncEvent": "cluster.client.named_async",
    "AsyncFuture": "cluster.client.asynchronous",
    "AsyncFutureSequence": "cluster.client.asynchronous",
    "AsyncLock": "cluster.client.named_async",
    "AsyncQueue": "cluster.client.named_async",
    "AsyncSemaphore": "cluster.client.named_async",
    "AsyncVariable": "cluster.client.named_async",
    "Client": "cluster.client.client",
    "Counter": "cluster.client.named",
    "Delayed": "cluster.lazy.delayed",
    "Event": "cluster.client.named",
    "Future": "cluster.client.future",
    "FutureSequence": "cluster.client.future",
    "LocalCluster": "cluster.deploy.local",
    "Lock": "cluster.client.named",
    "Queue": "cluster.client.named",
    "Semaphore": "cluster.client.named",
    "Variable": "cluster.client.named",
    "as_completed": "cluster.client.waiting",
    "compute": "cluster.lazy.compute",
    "current": "cluster.daemon.task_context",
    "delayed": "cluster.lazy.delayed",
    "fire_and_forget": "cluster.client.waiting",
    "get_client": "cluster.client.in_slot",
    "persist": "cluster.lazy.compute",
    "register_serializer": "cluster.wire.serializers",
    "visualize": "cluster.lazy.drawing",
    "wait": "cluster.client.waiting",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "cluster.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _local_cluster(**shape: int | None) -> LocalCluster:
    local: Callable[..., LocalCluster] = __getattr__("LocalCluster")
    return local(**shape)


def _asynchronous_client() -> type[AsyncClient]:
    kind: type[AsyncClient] = __getattr__("AsyncClient")
    return kind


def _engine_client(engine: str, address: object, asynchronous: bool) -> type[Client]:
    kind: type[Client] = import_module("cluster.adapters.engines.client").client_type(engine, address, asynchronous)
    return kind


def _client_in_slot() -> Any:
    return import_module("cluster.client.in_slot").SlotClient


providers.local_cluster_provider(_local_cluster)
providers.asynchronous_client_provider(_asynchronous_client)
providers.engine_client_provider(_engine_client)


def _collections() -> CollectionsLike:
    made: CollectionsLike = import_module("cluster.lazy.collections").ClientCollections()
    return made


def _adapter(name: str) -> Any:
    return import_module(f"cluster.adapters.{name}")


providers.collections_provider(_collections)
providers.adapter_provider(_adapter)
in_slot.client_provider(_client_in_slot)
