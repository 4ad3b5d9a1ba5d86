"""Computing raw graphs: dictionaries of keys to tasks (see `cluster.graph.raw`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from cluster.client.client import Client, WithOptions
from cluster.client.functions import label_of
from cluster.client.future import Future
from cluster.graph.order import depth_first
from cluster.graph.raw import inputs_in, is_key, is_task

__all__ = ["NestedCall", "get_raw", "run_nested", "values_of"]


class NestedCall:
    """A task inside a task: it runs where the outer one does."""

    __slots__ = ("args", "function", "kwargs")

    def __init__(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any] | None = None) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return NestedCall, (self.function, self.args, self.kwargs) if self.kwargs else (self.function, self.args)


def run_nested(value: Any) -> Any:
    """Run a call and those among its arguments, innermost first; anything else is a value."""
    if type(value) is not NestedCall:
        return value
    kwargs = {name: run_nested(each) for name, each in value.kwargs.items()}
    return value.function(*map(run_nested, value.args), **kwargs)


def _list(*members: Any) -> list[Any]:
    return list(members)


def get_raw(client: Client, graph: Mapping[Any, Any], keys: Any, options: dict[str, Any]) -> Any:
    """Submit what the keys need; return the keys' futures (or values that stood there) in the shape of `keys`."""
    wanted = _flat(keys)
    for key in wanted:
        if not is_key(key, graph):
            raise KeyError(f"{key!r:.100} is not in the graph")
    inputs: dict[Hashable, list[Hashable]] = {}

    def inputs_of(key: Hashable) -> list[Hashable]:
        found = inputs.get(key)
        if found is None:
            found = inputs[key] = inputs_in(graph[key], graph)
        return found

    made: dict[Hashable, Any] = {}
    submitters: dict[str, WithOptions] = {}
    for key in depth_first(wanted, inputs_of):
        value = graph[key]
        if is_task(value):
            label = label_of(value[0])
            submitter = submitters.get(label)
            if submitter is None:
                submitter = submitters[label] = client.options(**options, label=label)
            made[key] = _submit(submitter, value, graph, made)
        elif inputs[key]:
            made[key] = _resolved(value, graph, made)
            if type(made[key]) is NestedCall:
                made[key] = client.options(**options, label="list").submit(run_nested, made[key])
        else:
            made[key] = value
    return _shaped(keys, made)


def values_of(client: Client, shape: Any) -> Any:
    """The values of futures in nested lists; what is no future is one already."""
    return _filled(shape, client.gather(_futures_in(shape)))


async def values_awaited(client: Client, shape: Any) -> Any:
    """As `values_of`, through an AsyncClient."""
    return _filled(shape, await client.gather(_futures_in(shape)))


def _futures_in(shape: Any) -> list[Future]:
    return [each for each in _flat(shape) if isinstance(each, Future)]


def _filled(shape: Any, gathered: Iterable[Any]) -> Any:
    values = iter(gathered)

    def filled(member: Any) -> Any:
        if type(member) is list:
            return [filled(each) for each in member]
        return next(values) if isinstance(member, Future) else member

    return filled(shape)


def _submit(
    submitter: WithOptions, task: tuple[Any, ...], graph: Mapping[Any, Any], made: dict[Hashable, Any]
) -> Future:
    args = [_resolved(argument, graph, made) for argument in task[1:]]
    if any(type(argument) is NestedCall for argument in args):
        return submitter.submit(run_nested, NestedCall(task[0], args))
    return submitter.submit(task[0], *args)


def _resolved(value: Any, graph: Mapping[Any, Any], made: dict[Hashable, Any]) -> Any:
    """A value with futures for keys and calls for tasks."""
    if is_task(value):
        return NestedCall(value[0], [_resolved(argument, graph, made) for argument in value[1:]])
    if type(value) is list:
        members = [_resolved(member, graph, made) for member in value]
        # A list of values is not searched for calls where it arrives.
        return NestedCall(_list, members) if any(type(member) is NestedCall for member in members) else members
    return made[value] if is_key(value, graph) else value


def _flat(keys: Any) -> list[Any]:
    return [key for member in keys for key in _flat(member)] if type(keys) is list else [keys]


def _shaped(keys: Any, made: dict[Hashable, Any]) -> Any:
    return [_shaped(member, made) for member in keys] if type(keys) is list else made[keys]
