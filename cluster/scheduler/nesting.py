"""What the scheduler keeps of a running task that submits tasks, or that waits for some."""

from __future__ import annotations

from cluster.scheduler.table import Run

__all__ = ["Parent"]


class Parent:
    """One run of a task that has children, waits, or is about to report futures; it is forgotten when the run ends."""

    __slots__ = ("children", "handed_over", "ready", "suspended_at")

    def __init__(self) -> None:
        self.children: dict[int, Run] = {}  # what it submitted, by the run's identity, as long as rows are left
        self.ready: dict[int, Run] = {}  # of these, where rows may be ready
        self.handed_over: list[int] = []  # rows held for futures in the value that it is about to report
        self.suspended_at = -1  # the worker where it waits for tasks, taking no slot
