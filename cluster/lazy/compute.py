"""Computing what was delayed: each node a task, submitted after its inputs; its value stays on the cluster unless it
was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from cluster.client.client import Client, WithOptions
from cluster.client.core import current_client
from cluster.client.future import Future
from cluster.errors import ClusterError
from cluster.graph.order import depth_first
from cluster.lazy.expression import Lazy, Node, find_nodes, inputs_of, replace_lazy

__all__ = ["compute", "compute_awaited", "futures_for", "newest_client", "persist"]


def compute(*values: Any, client: Client | None = None, **options: Any) -> tuple[Any, ...]:
    """Compute several values together, so that what they share is made once; return them in their order.

    Each may be a Delayed, or a container with some inside; anything else is returned as it is. `client` is the newest
    open one unless given; `options` are those of `Client.compute`. Raises what a task raised.

    >>> from cluster import compute, delayed
    >>> square = delayed(pow)(3, 2)
    >>> compute(square, [square + 1, "text"])  # doctest: +SKIP
    (9, [10, 'text'])
    """
    made = futures_for(values, client, options)
    futures = _futures_among(made)
    return _filled(values, made, futures[0]._client.gather(futures) if futures else [])


async def compute_awaited(value: Any, client: Client, options: dict[str, Any]) -> Any:
    """As `compute`, of one value through an AsyncClient."""
    made = futures_for([value], client, options)
    return _filled([value], made, await client.gather(_futures_among(made)))[0]


def _futures_among(made: dict[str, Any]) -> list[Future]:
    return [value for value in made.values() if isinstance(value, Future)]


def _filled(values: Iterable[Any], made: dict[str, Any], gathered: Iterable[Any]) -> tuple[Any, ...]:
    """What was asked for; `gathered` are the values of the futures among what was made, in their order."""
    arrived = iter(gathered)
    computed = {key: next(arrived) if isinstance(value, Future) else value for key, value in made.items()}
    return tuple(replace_lazy(value, lambda lazy: computed[lazy._node.key]) for value in values)


def persist(*values: Any, client: Client | None = None, **options: Any) -> tuple[Any, ...]:
    """Begin to compute several values; return the same with each Delayed standing on what the cluster keeps of it.

    Returns at once. The values are kept on the cluster as long as what is returned here.
    """
    made = futures_for(values, client, options)

    def standing_on_value(lazy: Lazy) -> Lazy:
        node = lazy._node
        return lazy._standing_on(Node(node.key, node.label, None, (made[node.key],)))

    return tuple(replace_lazy(value, standing_on_value) for value in values)


def newest_client() -> Client:
    """The client that computes when none was named; raises ClusterError when there is none."""
    client = current_client(asynchronous=False)
    if client is None:
        raise ClusterError(
            "there is no client to compute with: make one first, `client = Client()` for a cluster on this machine, or "
            "`Client('tcp://host:port')` for one that runs"
        )
    return cast("Client", client)


def futures_for(values: Iterable[Any], client: Client | None, options: dict[str, Any]) -> dict[str, Any]:
    """Submit what values need; by key of each node among them its future, or its value if that is there.

    The futures of what was needed on the way are given up as soon as everything is submitted: a value is freed when the
    last task that takes it has ended.
    """
    roots = find_nodes(values)
    made: dict[str, Any] = {}
    owner = client
    submitters: dict[str, WithOptions] = {}

    def result_of(lazy: Lazy) -> Any:
        return made[lazy._node.key]

    for node in depth_first(roots, inputs_of):
        if node.key in made:
            continue
        if node.function is None:
            made[node.key] = node.args[0]
            continue
        submitter = submitters.get(node.label)
        if submitter is None:
            owner = owner or newest_client()
            submitter = submitters[node.label] = owner.options(**options, label=node.label)
        made[node.key] = _submit(submitter, node, result_of)
    return {node.key: made[node.key] for node in roots}


def _submit(submitter: WithOptions, node: Node, result_of: Callable[[Lazy], Any]) -> Future:
    assert node.function is not None
    if not node.inputs:
        return submitter.submit(node.function, *node.args, **node.kwargs)
    args = [replace_lazy(argument, result_of) for argument in node.args]
    return submitter.submit(
        node.function, *args, **{name: replace_lazy(argument, result_of) for name, argument in node.kwargs.items()}
    )
