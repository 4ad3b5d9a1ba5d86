"""What the scheduler keeps of a running task that submits tasks, or that waits for some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scheduler.table import Run

if TYPE_CHECKING:
    from cluster.scheduler.named_objects import Request

__all__ = ["Parent"]


class Parent:
    """A run of a task that has children, waits, holds locks, or is to report futures; forgotten when the run ends."""

    __slots__ = ("acquiring", "children", "handed_over", "ready", "suspended_at")

    def __init__(self) -> None:
        self.children: dict[int, Run] = {}  # what it submitted, by the run's identity, as long as rows are left
        self.ready: dict[int, Run] = {}  # of these, where rows may be ready
        self.handed_over: list[int] = []  # rows held for futures in the value that it is about to report
        self.acquiring: dict[Request, None] = {}  # for locks and semaphores: in line, or with a lease
        self.suspended_at = -1  # the worker where it waits for tasks, taking no slot
