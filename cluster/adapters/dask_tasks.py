"""What the nodes of a Dask graph are, said as calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from types import GeneratorType
from typing import Any, Final

from dask._task_spec import Alias, DataNode, Dict, GraphNode, List, Set, Task, TaskRef, Tuple

from cluster.client.graphs import GraphTask, packed_with_marks
from cluster.lazy.raw import NestedCall, run_nested
from cluster.wire.payload import FutureReference, Mark

__all__ = ["Conversion"]

_CONTAINERS: Final[dict[type[Any], Callable[[Any], Any]]] = {List: list, Tuple: tuple, Set: set}
_PLAIN: Final = frozenset({int, bool, type(None), type(...), slice})
_SHORT: Final = frozenset({str, bytes})
_SHORT_LENGTH: Final = 1000
_NOTHING: Final[dict[str, Any]] = {}
_WITHOUT_GENERATORS: Final = ("_operator", "builtins", "dask.array", "dask.dataframe", "numpy", "operator", "pandas")
PATTERNS_LIMIT: Final = 10_000


class _NotPlain(Exception):
    """Among the arguments is something that a pattern has no place for."""


class Conversion:
    """Says the nodes of one graph as calls; `value_of` gives what stands for the value of another node.

    The tasks of a layer mostly have the same arguments but for their inputs. Such a pattern is packed once.
    """

    def __init__(self, value_of: Callable[[Hashable], Any]) -> None:
        self._value_of = value_of
        self._patterns: dict[tuple[Any, ...], bytes] = {}
        self._functions: dict[int, Callable[..., Any]] = {}

    def task_of(self, node: GraphNode) -> GraphTask:
        """The call that makes a node's value."""
        if type(node) is not Task:
            return GraphTask(run_nested, (self._argument(node),), _NOTHING)
        if not node.kwargs:
            inputs: list[Hashable] = []
            try:
                pattern = self._pattern(node.args, inputs)
            except _NotPlain:
                pass
            else:
                return GraphTask(self._function(node.func), (), _NOTHING, inputs, self._packed(pattern))
        call = self._call(node)
        function = self._function(node.func)
        if any(type(each) is NestedCall for each in (*call.args, *call.kwargs.values())):
            call.function = function
            return GraphTask(run_nested, (call,), _NOTHING)
        return GraphTask(function, tuple(call.args), call.kwargs)

    def _function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        known = self._functions.get(id(function))
        if known is None:
            known = function if _makes_no_generator(function) else _Listing(function)
            self._functions[id(function)] = known
        return known

    # ------------------------------------------------------------------ arguments that are packed once

    def _pattern(self, arguments: Any, inputs: list[Hashable]) -> tuple[Any, ...]:
        """The arguments with their kinds in the place of inputs and beside what is data; raises _NotPlain."""
        pattern: list[Any] = []
        for argument in arguments:
            kind = type(argument)
            if kind is TaskRef:
                stands = self._value_of(argument.key)
                if type(stands) is not FutureReference:
                    raise _NotPlain
                inputs.append(stands.reference[1])
                pattern.append(kind)
            elif kind in _PLAIN:
                pattern += (kind, argument)  # of both, since True equals 1
            elif kind in _SHORT:
                if len(argument) > _SHORT_LENGTH:
                    raise _NotPlain
                pattern += (kind, argument)
            elif kind is List:
                pattern += (kind, self._pattern(argument.args, inputs))
            elif kind is tuple:
                pattern += (kind, self._pattern_of_data(argument))
            else:
                raise _NotPlain
        return tuple(pattern)

    def _pattern_of_data(self, members: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same for a tuple, in which nothing stands for an input."""
        if TaskRef in map(type, members) or List in map(type, members):
            raise _NotPlain
        return self._pattern(members, [])

    def _packed(self, pattern: tuple[Any, ...]) -> bytes:
        try:
            packed = self._patterns.get(pattern)
        except TypeError:  # there are slices in it, which have no hash before Python 3.12
            return packed_with_marks(tuple(_arguments(pattern, [0])))
        if packed is None:
            if len(self._patterns) >= PATTERNS_LIMIT:
                self._patterns.clear()
            packed = self._patterns[pattern] = packed_with_marks(tuple(_arguments(pattern, [0])))
        return packed

    # ------------------------------------------------------------------ any others

    def _call(self, task: Task) -> NestedCall:
        return NestedCall(
            task.func,
            [self._argument(each) for each in task.args],
            {name: self._argument(each) for name, each in task.kwargs.items()},
        )

    def _argument(self, argument: Any) -> Any:
        """A value with what stands for other nodes' values, and calls for tasks that are part of this one."""
        kind = type(argument)
        if kind is TaskRef:
            return self._value_of(argument.key)
        if not isinstance(argument, GraphNode):
            return argument
        if kind is Alias:
            return self._value_of(argument.target)
        if kind is DataNode:
            return argument.value
        if kind is Task:
            return self._call(argument)
        if kind in _CONTAINERS or kind is Dict:
            members = [self._argument(each) for each in argument.args]
            make: Callable[[Any], Any] = _CONTAINERS.get(kind, _dict_of)
            # What arrives in a container is not searched for calls.
            nested = any(type(member) is NestedCall for member in members)
            return NestedCall(_made, [make, *members]) if nested else make(members)
        keys: list[Hashable] = [*argument.dependencies]
        return NestedCall(_run_node, [argument, keys, *map(self._value_of, keys)])


class _Listing:
    """Calls a function, and runs a generator that it gives to its end: in Dask's graphs a partition may be one, since
    there it is often taken by a task of the same process."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return _Listing, (self.function,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self.function(*args, **kwargs)
        return list(value) if type(value) is GeneratorType else value


def _makes_no_generator(function: Any) -> bool:
    """Whether it is of a library whose functions give arrays, frames and numbers."""
    while isinstance(function, partial):
        function = function.func
    return (getattr(function, "__module__", None) or "").startswith(_WITHOUT_GENERATORS)


def _arguments(pattern: tuple[Any, ...], next_input: list[int]) -> list[Any]:
    """What `_pattern` was made of, with marks for the inputs."""
    arguments: list[Any] = []
    parts = iter(pattern)
    for kind in parts:
        if kind is TaskRef:
            arguments.append(Mark(next_input[0]))
            next_input[0] += 1
        elif kind is List:
            arguments.append(_arguments(next(parts), next_input))
        elif kind is tuple:
            arguments.append(tuple(_arguments(next(parts), next_input)))
        else:
            arguments.append(next(parts))
    return arguments


def _made(make: Callable[[Any], Any], *members: Any) -> Any:
    return make(members)


def _dict_of(flat: Any) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _run_node(node: Any, keys: list[Hashable], *values: Any) -> Any:
    """A kind of node that is not known here computes itself."""
    return node(dict(zip(keys, values, strict=True)))
