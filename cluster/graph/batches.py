"""Which tasks of a graph are sent together.

A graph is sent by depth, and the tasks of one kind in a batch, so that it is a few batches and not as many as it has
tasks. Where kinds take turns, as two loads for each sum do, they are sent by turns too: if all of the first kind came
first, all of them would be made before the first of the second is, and be held until then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final, TypeVar

__all__ = ["by_turns"]

Task = TypeVar("Task", bound=Hashable)

TURNS: Final = 1000  # a batch costs a scheduler as much as some dozen tasks


def by_turns(tasks: Sequence[Task], kind_of: Callable[[Task], Hashable]) -> Iterator[list[Task]]:
    """Give the tasks of one depth, which stand in the order in which they had best run, in batches of one kind each.

    Of so many tasks that there would be more than a thousand turns, those that are near one another are gathered first.

    >>> list(by_turns(["a0", "a1", "b0", "a2", "b1"], lambda task: task[0]))
    [['a0', 'a1'], ['b0'], ['a2'], ['b1']]
    """
    batch: list[Task] = []
    batch_kind: Hashable = None
    turn = max(1, -(-len(tasks) // TURNS))
    for start in range(0, len(tasks), turn):
        near: dict[Hashable, list[Task]] = {}
        for task in tasks[start : start + turn]:
            near.setdefault(kind_of(task), []).append(task)
        for kind, alike in near.items():
            if batch and kind == batch_kind:
                batch += alike
                continue
            if batch:
                yield batch
            batch, batch_kind = alike, kind
    if batch:
        yield batch
