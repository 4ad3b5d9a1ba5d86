"""Who takes the values of a graph's tasks, while it is sent: what was taken for the last time need not be kept."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["Uses"]

Task = TypeVar("Task", bound=Hashable)


class Uses(Generic[Task]):
    """Counts who takes each value. First `count` is called for all tasks, then `take` for each.

    >>> uses = Uses(kept=["c"])
    >>> uses.count(["a", "b"]), uses.count(["a", "a", "c"])
    (None, None)
    >>> uses.take(["a", "b"]), uses.take(["a", "a", "c"])
    (['b'], ['a'])
    """

    def __init__(self, kept: Iterable[Task]) -> None:
        self._left: dict[Task, int] = dict.fromkeys(kept, 1)  # which nobody takes: these never come to an end

    def count(self, inputs: Iterable[Task]) -> None:
        """Some task takes these, or one of them more than once."""
        left = self._left
        for each in inputs:
            left[each] = left.get(each, 0) + 1

    def take(self, inputs: Iterable[Task]) -> list[Task]:
        """The same again, when that task is sent; those that no other task takes after it."""
        left, last = self._left, []
        for each in inputs:
            count = left[each] = left[each] - 1
            if not count:
                last.append(each)
        return last
