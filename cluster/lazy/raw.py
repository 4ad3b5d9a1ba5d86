"""Computing raw graphs: dictionaries of keys to tasks (see `cluster.graph.raw`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

from cluster.client.client import Client
from cluster.client.functions import is_coroutine_function, label_of
from cluster.client.future import Future
from cluster.client.graphs import GraphSubmission, GraphTask, input_of
from cluster.client.options import checked_options
from cluster.graph.chains import Chain, Step, chains
from cluster.graph.order import depth_first
from cluster.graph.raw import inputs_in, is_key, is_task
from cluster.graph.uses import Uses
from cluster.wire.payload import FutureReference

__all__ = ["NestedCall", "get_raw", "run_nested", "values_of"]

_OF_EACH_TASK: Final = ("retries", "timeout_seconds")
"""Options that would mean another thing of several tasks that run as one."""
_NO_KEYWORDS: Final[dict[str, Any]] = {}


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
    """Submit what the keys need; return the keys' futures (or values that stood there) in the shape of `keys`.

    Tasks of which each takes only the value of the one before, and alone does, run as one, unless the options promise
    something of each.
    """
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

    order = depth_first(wanted, inputs_of)
    given = {name: value for name, value in options.items() if value is not None}
    together = not any(given.get(name) for name in _OF_EACH_TASK)
    kept = set(wanted)
    found = chains(
        order, inputs_of, lambda key, source: together and source not in kept and _may_join(graph, key, source)
    )
    with GraphSubmission(client) as submission:
        sending = _Sending(submission, graph, checked_options(**given))
        taken, uses = _taken(found, graph, inputs_of, wanted)
        for chain, needed in zip(found, taken, strict=True):
            if needed is None:
                sending.let_stand(chain[-1], has_inputs=bool(inputs[chain[-1]]))
            else:
                sending.add(chain, uses.take(needed))
        submission.send()
        return _shaped(keys, sending.futures(wanted))


def _taken(
    found: Iterable[Sequence[Hashable]],
    graph: Mapping[Any, Any],
    inputs_of: Callable[[Hashable], Sequence[Hashable]],
    wanted: Iterable[Hashable],
) -> tuple[list[list[Hashable] | None], Uses[Hashable]]:
    """The tasks whose values each chain takes, None if it is not run, and the count of all these.

    A key that is no task stands for the tasks that are named in what stands there.
    """
    behind: dict[Hashable, list[Hashable]] = {}
    taken: list[list[Hashable] | None] = []
    for chain in found:
        key, members = chain[-1], set(chain)
        keys = [each for member in chain for name in inputs_of(member) if name not in members for each in behind[name]]
        runs = _holds_task(graph[key])
        behind[key] = [key] if runs else keys
        taken.append(keys if runs else None)
    uses = Uses(each for key in wanted for each in behind[key])
    for needed in taken:
        uses.count(needed or ())
    return taken, uses


def _may_join(graph: Mapping[Any, Any], key: Hashable, source: Hashable) -> bool:
    """Whether a task takes another's value as one of its arguments, once, and both are plain calls."""
    return (
        _is_plain_call(graph[key])
        and _is_plain_call(graph[source])
        and [is_key(argument, graph) and argument == source for argument in graph[key][1:]].count(True) == 1
    )


def _is_plain_call(value: Any) -> bool:
    return is_task(value) and not is_coroutine_function(value[0]) and not any(map(_holds_task, value[1:]))


def _holds_task(value: Any) -> bool:
    return is_task(value) or (type(value) is list and any(map(_holds_task, value)))


class _Sending:
    """A graph on its way, and what stands for the values of its keys in the arguments of others."""

    def __init__(self, submission: GraphSubmission, graph: Mapping[Any, Any], options: dict[str, Any]) -> None:
        self._submission = submission
        self._graph = graph
        self._options = options
        self._stands: dict[Hashable, Any] = {}
        self._labels: dict[Hashable, str] = {}
        self._chains: dict[tuple[tuple[int, int, int], ...], Chain] = {}

    def add(self, chain: Sequence[Hashable], last_of: Sequence[Hashable]) -> None:
        """Add a task, or several that are run as one, or a list that holds tasks; `last_of`: the tasks that nothing
        takes after it."""
        key = chain[-1]
        value = self._graph[key]
        if not is_task(value):
            task, label = GraphTask(run_nested, (self._resolved(value),), _NO_KEYWORDS), "list"
        else:
            task = self._plain_task(value) if len(chain) == 1 else self._task_of_chain(chain)
            label = label_of(value[0])
        self._submission.add(key, task, label, self._options, last_of)
        self._stands[key] = input_of(key)
        self._labels[key] = label

    def let_stand(self, key: Hashable, *, has_inputs: bool) -> None:
        """What stands for a key is no task, but a value, another key, or a list of such."""
        value = self._graph[key]
        self._stands[key] = self._resolved(value) if has_inputs else value

    def futures(self, keys: Iterable[Hashable]) -> dict[Hashable, Any]:
        """Futures of keys, or the values that stood there, by key."""
        made: dict[Hashable, Future] = {}

        def with_futures(value: Any) -> Any:
            if type(value) is list:
                return list(map(with_futures, value))
            if type(value) is not FutureReference:
                return value
            key = value.reference[1]
            if key not in made:
                made[key] = self._submission.future_of(key, self._labels[key])
            return made[key]

        return {key: with_futures(self._stands[key]) for key in keys}

    def _plain_task(self, task: tuple[Any, ...]) -> GraphTask:
        args = [self._resolved(argument) for argument in task[1:]]
        if any(type(argument) is NestedCall for argument in args):
            return GraphTask(run_nested, (NestedCall(task[0], args),), _NO_KEYWORDS)
        return GraphTask(task[0], tuple(args), _NO_KEYWORDS)

    def _task_of_chain(self, chain: Sequence[Hashable]) -> GraphTask:
        steps: list[Step] = []
        args: list[Any] = []
        for index, key in enumerate(chain):
            function, *own = self._graph[key]
            place = -1
            if index:
                before = chain[index - 1]
                place = next(at for at, each in enumerate(own) if is_key(each, self._graph) and each == before)
                del own[place]
            args += map(self._resolved, own)
            steps.append((function, len(own), place))
        # Made once, so that its bytes are too: they are a function's, and it is not seen from outside what they are.
        alike = tuple((id(function), count, place) for function, count, place in steps)
        if alike not in self._chains:
            self._chains[alike] = Chain(steps)
        return GraphTask(self._chains[alike], tuple(args), _NO_KEYWORDS)

    def _resolved(self, value: Any) -> Any:
        """A value with what stands for keys, and calls for tasks."""
        if is_task(value):
            return NestedCall(value[0], [self._resolved(argument) for argument in value[1:]])
        if type(value) is list:
            members = [self._resolved(member) for member in value]
            # A list of values is not searched for calls where it arrives.
            return NestedCall(_list, members) if any(type(member) is NestedCall for member in members) else members
        return self._stands[value] if is_key(value, self._graph) else value


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


def _flat(keys: Any) -> list[Any]:
    return [key for member in keys for key in _flat(member)] if type(keys) is list else [keys]


def _shaped(keys: Any, made: dict[Hashable, Any]) -> Any:
    return [_shaped(member, made) for member in keys] if type(keys) is list else made[keys]
