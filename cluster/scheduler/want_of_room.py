"""What is remembered of workers that had no room: for an input of a task, or for a value that a client is to push."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["PATIENCE_SECONDS", "PushOrder", "Refusal", "Refusals"]

PATIENCE_SECONDS: Final = 15.0
"""So long something is waited for that nobody is known to do: as long as workers wait for room themselves."""


class Refusal(NamedTuple):
    """One worker's. `held_bytes` is what it held when it was granted the task: what it let go of since may do."""

    held_bytes: int
    at: float


class Refusals:
    """All that one task has met."""

    __slots__ = ("in_vain_since", "of_workers")

    def __init__(self) -> None:
        self.of_workers: dict[int, Refusal] = {}  # by the worker's index, each one's last
        self.in_vain_since = math.inf  # since then no other worker and no other task is known that may change it


class PushOrder:
    """One value that a client is to push to one worker, or to try again to push."""

    __slots__ = ("held_bytes", "no_room", "tried", "waits_since")

    def __init__(self) -> None:
        self.tried = 1  # so often, not counting for want of room
        self.no_room = ""  # why the worker had no room for it, if it said so
        self.waits_since = 0.0  # … and when it said so first, or when it had let go of something since
        self.held_bytes = 0  # … and what it held when it said so last
