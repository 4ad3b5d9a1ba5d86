"""What happened to tasks that does not happen to most: losses, repetitions, recalls, retries. Bounded in all.

What happens to every task (submitted, granted, finished) is not noted here, so that a plain task costs nothing: it is
read off the table when somebody asks.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["EVENTS_KEPT", "Happening", "History"]

EVENTS_KEPT = 20_000
TEXT_LIMIT = 300


class Happening(NamedTuple):
    """One thing that happened to the row of a run; `at` is in seconds of the scheduler's clock."""

    at: float
    row: int
    run_identity: int
    what: str
    why: str


class History:
    """The latest of these, of all tasks together; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._events: deque[Happening] = deque(maxlen=EVENTS_KEPT)
        self._noted = 0

    def note(self, at: float, row: int, run_identity: int, what: str, why: str = "") -> None:
        """Add one. The text is cut; the caller may share one text among many rows."""
        self._noted += 1
        self._events.append(Happening(at, row, run_identity, what, why if len(why) <= TEXT_LIMIT else why[:TEXT_LIMIT]))

    def of(self, row: int, run_identity: int) -> list[Happening]:
        """What is remembered of a task, oldest first. It looks at all that is kept: 1 ms when that is full."""
        return [event for event in self._events if event.row == row and event.run_identity == run_identity]

    @property
    def is_complete(self) -> bool:
        """Whether nothing was forgotten yet."""
        return self._noted == len(self._events)
