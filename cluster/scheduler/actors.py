"""What the scheduler keeps of an actor: where it lives, what it takes there, and who calls it."""

from __future__ import annotations

from collections import deque

__all__ = ["ActorRecord", "Line"]


class Line:
    """One client's calls to one actor."""

    __slots__ = ("granted", "held_by", "rows")

    def __init__(self) -> None:
        self.rows: deque[tuple[int, int]] = deque()  # (row, its run's identity): those that are not granted, and stale
        self.granted: set[int] = set()
        self.held_by = -1  # a granted call that takes values: nothing else is granted before it has ended


class ActorRecord:
    """An actor that lives, or is to."""

    __slots__ = ("lines", "resources", "worker")

    def __init__(self) -> None:
        self.worker = -1  # where it lives
        self.resources: tuple[tuple[str, float], ...] = ()  # what it keeps there
        self.lines: dict[bytes, Line] = {}  # by client
