"""Raw graphs: dictionaries of keys to tasks, as Dask has had them from its beginning.

A task is a tuple that begins with something callable; among its arguments may be keys, lists, and further tasks, which
are part of it. Whatever else stands for a key is a value, or another key.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

__all__ = ["inputs_in", "is_key", "is_task"]


def is_task(value: Any) -> bool:
    """Whether a value is a task.

    >>> is_task((sum, [1, 2])), is_task((1, 2))
    (True, False)
    """
    return type(value) is tuple and bool(value) and callable(value[0])


def is_key(value: Any, graph: Mapping[Any, Any]) -> bool:
    """Whether a value names something in the graph."""
    if isinstance(value, list | dict | set):
        return False
    try:
        return value in graph
    except TypeError:  # it cannot be hashed, so it is no key
        return False


def inputs_in(value: Any, graph: Mapping[Any, Any]) -> list[Hashable]:
    """The keys that a task, a list or a value names, each once, in order.

    >>> inputs_in((sum, ["a", (abs, "b"), "a"]), {"a": 1, "b": 2})
    ['a', 'b']
    """
    found: dict[Hashable, None] = {}
    stack = [value]
    while stack:
        each = stack.pop()
        if is_task(each):
            stack += reversed(each[1:])
        elif type(each) is list:
            stack += reversed(each)
        elif is_key(each, graph):
            found[each] = None
    return list(found)
