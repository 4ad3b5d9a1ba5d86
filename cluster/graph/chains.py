"""Chains: tasks of which each takes the value of the one before it, and nobody else does.

What is in between is then never stored, moved or asked for, so that the tasks of a chain are best run as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from types import CoroutineType
from typing import Any, Final, TypeVar

__all__ = ["Chain", "Step", "chains"]

Task = TypeVar("Task", bound=Hashable)

_LENGTH_LIMIT: Final = 32  # of a task that failed everything is run again, and what it does is to be seen in pieces


Step = tuple[Callable[..., Any], int, int]
"""A function of a chain, how many of the arguments are its own, and at which place among them it takes the value so
far; the first has none, and -1."""


class Chain:
    """Several functions as one: each is called with the value of the one before and with its own arguments.

    >>> Chain([(max, 2, -1), (pow, 1, 0)])(2, 3, 4)
    81
    """

    __slots__ = ("steps",)

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.steps,)

    @property
    def __name__(self) -> str:
        """For people."""
        return " → ".join(getattr(function, "__name__", type(function).__name__) for function, _, _ in self.steps)

    def __call__(self, *args: Any) -> Any:
        """Call them all; the last one's value."""
        value = None
        start = 0
        for function, count, place in self.steps:
            own = args[start : start + count]
            start += count
            if type(value) is CoroutineType:  # of a plain function; a slot too runs what is returned so to its end
                value = import_module("asyncio").run(value)  # loaded when it is needed, which is seldom
            value = function(*own) if place < 0 else function(*own[:place], value, *own[place:])
        return value


def chains(
    order: Sequence[Task], inputs_of: Callable[[Task], Sequence[Task]], joins: Callable[[Task, Task], bool]
) -> list[list[Task]]:
    """Give the tasks of an order, which has inputs before who takes them, as chains; most may have one member.

    `joins(task, source)`: whether a task and its one input, which nobody else takes, may run as one.

    >>> graph = {"a": [], "b": ["a"], "c": ["b"], "d": ["b", "c"]}
    >>> chains(list(graph), graph.__getitem__, lambda task, source: True)
    [['a', 'b'], ['c'], ['d']]
    """
    takers = Counter(source for task in order for source in inputs_of(task))
    found: dict[Task, list[Task]] = {}  # by the last member, in the order of these
    for task in order:
        inputs = inputs_of(task)
        chain: list[Task] = []
        if len(inputs) == 1 and takers[inputs[0]] == 1 and joins(task, inputs[0]):
            before = found[inputs[0]]
            if len(before) < _LENGTH_LIMIT:
                del found[inputs[0]]
                chain = before
        chain.append(task)
        found[task] = chain
    return list(found.values())
