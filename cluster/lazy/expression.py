"""Calls that were written down and not made: nodes, and how they are found in what users pass around.

A node is a call (a function, its arguments, the nodes among them) or a leaf (a value that is there, or a future). Nodes
refer to one another directly: adding one costs the same however large the graph is that it stands on.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from cluster.errors import ClusterError

__all__ = ["Lazy", "Node", "find_nodes", "inputs_of", "replace_lazy"]

_CONTAINERS: Final = (list, tuple, set, frozenset)


class Node:
    """One call, or one leaf. `key` names it: two nodes of one key are the same computation."""

    __slots__ = ("args", "function", "inputs", "key", "kwargs", "label")

    def __init__(
        self,
        key: str,
        label: str,
        function: Callable[..., Any] | None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        inputs: Sequence[Node] = (),
    ) -> None:
        self.key = key
        self.label = label
        self.function = function
        """None: a leaf, whose value is `args[0]`."""
        self.args = args
        self.kwargs: Mapping[str, Any] = kwargs or {}
        self.inputs = inputs

    def __repr__(self) -> str:
        return f"<Node {self.key}>"


class Lazy:
    """What stands for the result of a node. What is computed lazily derives from it."""

    __slots__ = ("_node",)

    _node: Node

    def _standing_on(self, node: Node) -> Lazy:
        """The same for another node, which has the same value."""
        raise NotImplementedError


inputs_of: Final[Callable[[Node], Sequence[Node]]] = operator.attrgetter("inputs")


def find_nodes(values: Iterable[Any]) -> list[Node]:
    """The nodes inside values, at any depth of lists, tuples, sets, dicts and dataclasses, each once."""
    found: dict[int, Node] = {}
    _find(values, found)
    return list(found.values())


def _find(values: Iterable[Any], found: dict[int, Node]) -> None:
    for value in values:
        if isinstance(value, Lazy):
            found[id(value._node)] = value._node
        elif isinstance(value, _CONTAINERS):
            _find(value, found)
        elif type(value) is dict:
            _find(value.keys(), found)
            _find(value.values(), found)
        elif _is_plain_dataclass(value):
            _find((getattr(value, field.name) for field in dataclasses.fields(value)), found)


def replace_lazy(value: Any, replacement: Callable[[Lazy], Any]) -> Any:
    """The value with something else for what is lazy in it; containers without any are passed on as they are."""
    if isinstance(value, Lazy):
        return replacement(value)
    if isinstance(value, _CONTAINERS):
        members = [replace_lazy(member, replacement) for member in value]
        if all(map(operator.is_, members, value)):
            return value
        # A named tuple takes its fields one by one.
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    if type(value) is dict:
        items = [(replace_lazy(key, replacement), replace_lazy(member, replacement)) for key, member in value.items()]
        unchanged = all(key is old and member is value[old] for (key, member), old in zip(items, value, strict=True))
        return value if unchanged else dict(items)
    if _is_plain_dataclass(value):
        changes = {}
        for field in dataclasses.fields(value):
            before = getattr(value, field.name)
            after = replace_lazy(before, replacement)
            if after is not before:
                changes[field.name] = after
        return _with_fields(value, changes) if changes else value
    return value


def _is_plain_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _with_fields(value: Any, changes: dict[str, Any]) -> Any:
    unsettable = [field.name for field in dataclasses.fields(value) if field.name in changes and not field.init]
    if unsettable:
        raise ClusterError(
            f"{type(value).__name__}.{unsettable[0]} holds a lazy value, and cannot be given one when a "
            f"{type(value).__name__} is made; pass that value as an argument of its own"
        )
    return dataclasses.replace(value, **changes)
