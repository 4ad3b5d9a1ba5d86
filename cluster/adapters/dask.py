"""Dask's collections on a cluster: a client is a scheduler in Dask's sense, `x.compute(scheduler=client)`.

A graph is what Dask has made of the collections after all its own optimizations. Each of its tasks becomes a task here,
in depth-first order and sent in batches; fused tasks stay fused. Data inside the graph over 64 KiB travels once to each
worker that needs it. Nothing but what was asked for comes back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import dask
from dask._task_spec import Alias, DataNode, GraphNode, Task, convert_legacy_graph
from dask.utils import key_split

from cluster.adapters.dask_hdf5 import share_hdf5
from cluster.adapters.dask_locks import share_locks
from cluster.adapters.dask_tasks import Conversion
from cluster.client.client import Client
from cluster.client.future import Future
from cluster.client.graphs import GraphSubmission, input_of
from cluster.client.options import checked_options
from cluster.graph.batches import by_turns
from cluster.graph.order import depth_first
from cluster.graph.uses import Uses
from cluster.wire.payload import FutureReference

__all__ = ["compute", "get", "persist"]

ANNOTATIONS = ("allow_other_workers", "priority", "resources", "retries", "workers")
"""The annotations of `dask.annotate` that mean something here; others are for other schedulers, or for people."""


def get(client: Client, graph: Any, keys: Any, options: Mapping[str, Any], sync: bool) -> Any:
    """Compute keys of a graph: the values, or without `sync` futures of them, in the shape of the keys."""
    made = _submit(client, graph, list(dict.fromkeys(_flat(keys))), options)
    if sync:
        futures = {key: value for key, value in made.items() if isinstance(value, Future)}
        made.update(zip(futures, client.gather(list(futures.values())), strict=True))
    return _shaped(keys, made)


def persist(client: Client, collections: Any, options: Mapping[str, Any], optimize_graph: bool) -> Any:
    """The same collections, standing on futures of what the cluster makes and keeps of them."""
    several = isinstance(collections, list | tuple)
    kept = dask.persist(
        *(collections if several else [collections]),
        scheduler=partial(_get_futures, client, options),
        optimize_graph=optimize_graph,
    )
    return type(collections)(kept) if several else kept[0]


def compute(client: Client, values: Any, options: Mapping[str, Any], sync: bool) -> Any:
    """Futures in the place of collections, each of its whole value; with `sync` the values."""
    scheduler = partial(get, client, options=options, sync=True) if sync else partial(_get_futures, client, options)
    return dask.compute(values, scheduler=scheduler)[0]


def _get_futures(client: Client, options: Mapping[str, Any], graph: Any, keys: Any, **unused: Any) -> Any:
    return get(client, graph, keys, options, sync=False)


def _submit(client: Client, graph: Any, wanted: Sequence[Hashable], options: Mapping[str, Any]) -> dict[Hashable, Any]:
    """Submit what the keys need; by key its future, or what stood in the graph for it."""
    share_hdf5()
    nodes, options_of = _read(graph, options)
    inputs = {key: tuple(node.dependencies) for key, node in nodes.items()}
    try:
        order = depth_first(wanted, inputs.__getitem__)
    except KeyError as error:
        raise KeyError(f"{error.args[0]!r:.100} is not in the graph") from None
    with GraphSubmission(client) as submission:
        stands_for = _send(submission, order, wanted, nodes, inputs, options_of)
        return {
            key: submission.future_of(value.reference[1], key_split(key)) if type(value) is FutureReference else value
            for key in wanted
            for value in (stands_for[key],)
        }


def _send(
    submission: GraphSubmission,
    order: Iterable[Hashable],
    wanted: Iterable[Hashable],
    nodes: Mapping[Hashable, GraphNode],
    inputs: Mapping[Hashable, Sequence[Hashable]],
    options_of: _Options,
) -> dict[Hashable, Any]:
    """Send the tasks by depth, kinds by turns; by key what stands for its value in the arguments of others."""
    stands_for: dict[Hashable, Any] = {}
    depths: dict[Hashable, int] = {}
    depth_of = depths.__getitem__
    labels: dict[Hashable, str] = {}
    kinds: dict[Hashable, tuple[str, int]] = {}
    levels: list[list[Hashable]] = []
    aliases: dict[Hashable, Hashable] = {}
    for key in order:
        node = nodes[key]
        kind = type(node)
        if kind is Alias:
            aliases[key] = aliases.get(node.target, node.target)
            stands_for[key], depths[key] = stands_for[node.target], depths[node.target]
            continue
        if kind is DataNode:
            stands_for[key], depths[key] = node.value, 0
            if not isinstance(node.value, Future) and submission.is_large(node.value):
                submission.add_data(key, node.value)
                stands_for[key] = input_of(key)
            continue
        stands_for[key] = input_of(key)
        needed = inputs[key]
        depth = depths[key] = 1 + max(map(depth_of, needed)) if needed else 1
        if depth > len(levels):
            levels.append([])
        levels[depth - 1].append(key)
        name = key[0] if type(key) is tuple else key
        label = labels.get(name)
        if label is None:
            label = labels[name] = key_split(name)
        kinds[key] = label, id(node.func) if kind is Task else 0

    def taken_by(key: Hashable) -> Sequence[Hashable]:
        return [aliases.get(each, each) for each in inputs[key]] if aliases else inputs[key]

    uses = Uses(aliases.get(key, key) for key in wanted)
    for key in kinds:
        uses.count(taken_by(key))
    task_of = Conversion(stands_for.__getitem__).task_of
    for level in levels:
        for keys in by_turns(level, kinds.__getitem__):
            label, _ = kinds[keys[0]]
            for key in keys:
                submission.add(key, task_of(nodes[key]), label, options_of(key), uses.take(taken_by(key)))
    submission.send()
    return stands_for


class _Options:
    """The options of each task, from those of the whole graph and its annotations."""

    def __init__(self, of_all: Mapping[str, Any], annotations: Mapping[str, Mapping[Hashable, Any]]) -> None:
        self._given = {name: value for name, value in of_all.items() if value}
        around = dask.get_annotations()
        self._around = {name: around[name] for name in ANNOTATIONS if name in around}
        self._annotations = {name: annotations[name] for name in ANNOTATIONS if annotations.get(name)}
        self._checked: dict[str, dict[str, Any]] = {}
        self._plain = self._check({})

    def __call__(self, key: Hashable) -> dict[str, Any]:
        if not self._annotations:
            return self._plain
        return self._check({name: by_key[key] for name, by_key in self._annotations.items() if key in by_key})

    def _check(self, own: dict[str, Any]) -> dict[str, Any]:
        named = repr(own)
        options = self._checked.get(named)
        if options is None:
            options = self._checked[named] = checked_options(**{**self._around, **own, **self._given})
        return options


def _read(graph: Any, options: Mapping[str, Any]) -> tuple[Mapping[Hashable, GraphNode], _Options]:
    """The nodes of a graph in any of the forms that Dask has for one, and what is said of them."""
    annotations: Mapping[str, Any] = {}
    if hasattr(graph, "layers"):
        annotations = _annotations_of(graph.layers.values())
    elif hasattr(graph, "__dask_annotations__"):
        annotations = graph.__dask_annotations__()
    nodes = graph.__dask_graph__() if hasattr(graph, "__dask_graph__") else graph
    nodes = nodes if isinstance(nodes, dict) else dict(nodes)
    if not all(isinstance(node, GraphNode) for node in nodes.values()):
        nodes = convert_legacy_graph(nodes)
    return nodes, _Options(options, annotations)


def _annotations_of(layers: Iterable[Any]) -> dict[str, dict[Hashable, Any]]:
    found: dict[str, dict[Hashable, Any]] = {}
    for layer in layers:
        for name, value in (layer.annotations or {}).items():
            found.setdefault(name, {}).update({key: value(key) if callable(value) else value for key in layer})
    return found


def _flat(keys: Any) -> list[Hashable]:
    return [key for member in keys for key in _flat(member)] if type(keys) is list else [keys]


def _shaped(keys: Any, made: Mapping[Hashable, Any]) -> Any:
    """The values in the shape of the keys, with tuples for lists, as Dask's own schedulers give them."""
    return tuple(_shaped(member, made) for member in keys) if type(keys) is list else made[keys]


share_locks()
