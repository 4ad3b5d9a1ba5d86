"""Run Python functions on many cores and hosts: `Client` submits, `LocalCluster` starts a cluster on this machine.

Names are loaded when they are first used, so that `import cluster` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster.client import providers
from cluster.version import __version__

if TYPE_CHECKING:
    from cluster.client.client import Client
    from cluster.client.future import Future, FutureSequence
    from cluster.client.waiting import as_completed, fire_and_forget, wait
    from cluster.deploy.local import LocalCluster
    from cluster.errors import (
        CancelledError,
        ClusterError,
        ConnectionLost,
        RemoteError,
        SerializationError,
        TaskDied,
        TaskTimeout,
        ValueLost,
    )

__all__ = [
    "CancelledError",
    "Client",
    "ClusterError",
    "ConnectionLost",
    "Future",
    "FutureSequence",
    "LocalCluster",
    "RemoteError",
    "SerializationError",
    "TaskDied",
    "TaskTimeout",
    "ValueLost",
    "__version__",
    "as_completed",
    "fire_and_forget",
    "wait",
]

_MODULES = {
    "Client": "cluster.client.client",
    "Future": "cluster.client.future",
    "FutureSequence": "cluster.client.future",
    "LocalCluster": "cluster.deploy.local",
    "as_completed": "cluster.client.waiting",
    "fire_and_forget": "cluster.client.waiting",
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


def _local_cluster() -> LocalCluster:
    local: type[LocalCluster] = __getattr__("LocalCluster")
    return local()


providers.local_cluster_provider(_local_cluster)
