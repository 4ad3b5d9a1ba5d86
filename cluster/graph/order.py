"""In which order the tasks of a graph are submitted.

Every task comes after its inputs, and as soon after them as may be: depth first, so that what was made is used up
before more is made. Of a task's inputs the one with the most tasks behind it comes first, since it is held while the
others are made (Sethi and Ullman, "The generation of optimal code for arithmetic expressions", 1970).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["CycleError", "depth_first"]

Task = TypeVar("Task", bound=Hashable)

_OPEN = -1
_LARGE = 1 << 60  # counting what is shared for each doubles with every level of diamonds


class CycleError(ValueError):
    """Tasks that need one another; `cycle` lists them, the first again at the end."""

    def __init__(self, cycle: Sequence[Hashable]) -> None:
        self.cycle = list(cycle)
        shown = [f"{task!r:.60}" for task in self.cycle]
        if len(shown) > 10:
            shown[5:-5] = [f"… {len(shown) - 10} more …"]
        super().__init__("these tasks need one another, so none can run first: " + " → ".join(shown))


def depth_first(roots: Iterable[Task], inputs_of: Callable[[Task], Sequence[Task]]) -> list[Task]:
    """Give all tasks that the roots need, and them, each once and after its inputs.

    Raises CycleError. No depth is too great: it does not recurse.

    >>> graph = {"a": [], "b": ["a"], "c": ["a", "b"], "unused": []}
    >>> depth_first(["c"], graph.__getitem__)
    ['a', 'b', 'c']
    """
    sizes = _sizes(roots, inputs_of)
    ordered: list[Task] = []
    seen: set[Task] = set()
    for root in sorted(dict.fromkeys(roots), key=lambda task: -sizes[task]):
        stack = [root]
        while stack:
            task = stack[-1]
            if task in seen:
                stack.pop()
                continue
            missing = [source for source in inputs_of(task) if source not in seen]
            if missing:
                missing.sort(key=sizes.__getitem__)  # the last one pushed is the first one visited
                stack += missing
                continue
            seen.add(task)
            ordered.append(task)
            stack.pop()
    return ordered


def _sizes(roots: Iterable[Task], inputs_of: Callable[[Task], Sequence[Task]]) -> dict[Task, int]:
    """For each task how much is behind it: itself and what each input has, shared inputs counted for each."""
    sizes: dict[Task, int] = {}
    for root in roots:
        stack = [root]
        while stack:
            task = stack[-1]
            size = sizes.get(task)
            if size is None:
                sizes[task] = _OPEN
                for source in inputs_of(task):
                    known = sizes.get(source)
                    if known is None:
                        stack.append(source)
                    elif known == _OPEN:
                        raise CycleError(_cycle(stack, source, sizes))
                continue
            if size == _OPEN:
                sizes[task] = min(_LARGE, 1 + sum(sizes[source] for source in inputs_of(task)))
            stack.pop()
    return sizes


def _cycle(stack: Sequence[Any], closing: Any, sizes: Mapping[Any, int]) -> list[Any]:
    """The open tasks from the closing one on, in the order in which they need one another."""
    path = [task for task in stack if sizes.get(task) == _OPEN]
    path = list(dict.fromkeys(reversed(path)))[::-1]  # it was opened where it stands last
    return [*path[path.index(closing) :], closing]
