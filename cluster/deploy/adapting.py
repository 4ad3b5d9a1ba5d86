"""How many workers there should be: up at once, down late and only by those that have nothing to do.

Work asks for as many slots as bring the backlog to an end in a few seconds, but for no more than there are tasks; what
is held asks for as many workers as have room for it. More workers are wanted the moment that one of the two says so.
Fewer only when that was so for a while without a break: starting a worker costs more than an idle one.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

__all__ = ["Adapting", "Decision", "Load", "WorkerLoad"]

BACKLOG_SECONDS: Final = 5.0
"""In about so long what waits should be done."""
DOWN_AFTER_SECONDS: Final = 10.0
HELD_SHARE: Final = 0.5
"""Of the memory limits of all workers: what they hold should not be more."""


class WorkerLoad(NamedTuple):
    """One worker that is to stay, as the scheduler knows it."""

    name: str
    granted: int
    held_bytes: int


class Load(NamedTuple):
    """What there is to do and to hold."""

    backlog_seconds: float
    tasks: int
    workers: list[WorkerLoad]


class Decision(NamedTuple):
    """How many workers to have, which of those that are there to retire, and why."""

    workers: int
    retire: list[str]
    why: str


class Adapting:
    """Decides for workers of a size between a least and a most of them."""

    def __init__(self, minimum: int, maximum: int, slots: int, memory_limit_bytes: int) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self._slots = slots
        self._room_bytes = HELD_SHARE * memory_limit_bytes
        self._wanted: deque[tuple[float, int]] = deque()  # when, and how many

    def decide(self, now: float, load: Load, workers: int) -> Decision:
        """What to do now; `workers` are there or starting, those that are to go left out."""
        slots = min(load.tasks, math.ceil(load.backlog_seconds / BACKLOG_SECONDS))
        by_work = math.ceil(max(slots, min(1, load.tasks)) / self._slots)
        held = sum(worker.held_bytes for worker in load.workers)
        by_memory = math.ceil(held / self._room_bytes) if self._room_bytes > 0 else 0
        wanted = min(self.maximum, max(self.minimum, by_work, by_memory))
        self._wanted.append((now, wanted))
        since = self._wanted[0][0]
        why = (
            f"{load.tasks} tasks of {load.backlog_seconds:.1f} s ask for {by_work} workers, {held} bytes of values for "
            f"{by_memory}, and {self.minimum} to {self.maximum} are allowed"
        )
        while len(self._wanted) > 1 and self._wanted[1][0] <= now - DOWN_AFTER_SECONDS:
            self._wanted.popleft()
        if wanted >= workers:
            return Decision(wanted, [], why)
        if now - since < DOWN_AFTER_SECONDS:
            return Decision(workers, [], why)
        keep = max(many for _, many in self._wanted)
        idle = sorted((worker for worker in load.workers if not worker.granted), key=lambda worker: worker.held_bytes)
        retire = [worker.name for worker in idle[: max(0, workers - keep)]]
        return Decision(workers - len(retire), retire, why)
