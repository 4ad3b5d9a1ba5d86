"""What happened in the cluster as a whole, the newest of it: who came and went, what failed, warnings.

Two rings, so that a flood of failing tasks does not push out the loss of a worker that explains it. Failures of tasks
with one label that follow one another are one event with a count. What happened to one task is not kept here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["ClusterEvent", "EventLog"]

RING_EVENTS = 1000  # of each of the two rings
GATHERED_SECONDS = 10.0  # failures of one label count as one event for so long
TEXT_CHARACTERS = 500
SUBJECT_CHARACTERS = 200


class ClusterEvent(NamedTuple):
    """One event. `number` only grows; an event that is counted again gets a new one."""

    number: int
    time: float
    kind: str
    subject: str
    text: str
    times: int


class EventLog:
    """The rings. `now` is set by the machine before anything is noted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.on_noted: Callable[[], None] | None = None
        self.last_number = 0
        self._cluster: deque[ClusterEvent] = deque(maxlen=RING_EVENTS)
        self._tasks: deque[ClusterEvent] = deque(maxlen=RING_EVENTS)
        self._group = ""
        self._group_since = 0.0

    def note(self, kind: str, subject: str, text: str) -> None:
        """Something happened to a worker or a client."""
        self._append(self._cluster, kind, subject, text, 1)

    def note_task(self, kind: str, label: str, subject: str, text: str) -> None:
        """A task ended badly; `subject` is its key. The text of a gathered event is its last task's."""
        times = 1
        group = f"{kind} {label}"
        if self._tasks and group == self._group and self.now - self._group_since < GATHERED_SECONDS:
            times += self._tasks.pop().times
        else:
            self._group, self._group_since = group, self.now
        self._append(self._tasks, kind, subject, text, times)

    def after(self, number: int) -> list[ClusterEvent]:
        """The events with larger numbers that are still kept, oldest first."""
        found = []
        for ring in (self._cluster, self._tasks):
            for event in reversed(ring):
                if event.number <= number:
                    break
                found.append(event)
        return sorted(found)

    def _append(self, ring: deque[ClusterEvent], kind: str, subject: str, text: str, times: int) -> None:
        self.last_number += 1
        ring.append(
            ClusterEvent(self.last_number, self.now, kind, subject[:SUBJECT_CHARACTERS], text[:TEXT_CHARACTERS], times)
        )
        if self.on_noted is not None:
            self.on_noted()
