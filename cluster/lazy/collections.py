"""What a client calls to compute lazy values and graphs; the package's root registers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.client.client import Client
from cluster.lazy.compute import compute, compute_awaited, futures_for, persist
from cluster.lazy.expression import replace_lazy
from cluster.lazy.raw import get_raw, values_awaited, values_of

__all__ = ["ClientCollections"]


class ClientCollections:
    """See `cluster.client.providers.CollectionsLike`."""

    def compute(self, client: Client, values: Any, options: dict[str, Any], sync: bool) -> Any:
        """Futures in the place of what is lazy, or with `sync` values, which an AsyncClient awaits."""
        if sync and client.asynchronous:
            return compute_awaited(values, client, options)
        if sync:
            return compute(values, client=client, **options)[0]
        made = futures_for([values], client, options)
        return replace_lazy(values, lambda lazy: made[lazy._node.key])

    def persist(self, client: Client, values: Any, options: dict[str, Any]) -> Any:
        """The same values, standing on what is being made."""
        return persist(values, client=client, **options)[0]

    def get(self, client: Client, graph: Mapping[Any, Any], keys: Any, options: dict[str, Any], sync: bool) -> Any:
        """Futures in the shape of the keys, or with `sync` values."""
        futures = get_raw(client, graph, keys, options)
        if sync and client.asynchronous:
            return values_awaited(client, futures)
        return values_of(client, futures) if sync else futures
