"""What a simulated slot holds of its own: some tasks take much, and leave it there, freed or leaked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.worker import events

if TYPE_CHECKING:
    from cluster.simulation.slots import SlotProcess

__all__ = ["NEW_SLOT_BYTES", "Heap"]

NEW_SLOT_BYTES: Final = 1000


class Heap:
    """The memory of one slot's process."""

    def __init__(self, slot: SlotProcess) -> None:
        self._slot = slot
        self._plan = slot.agent.world.plan
        self._random = slot.agent.world.random_of("heaps")
        self._taken = 0  # by the running task
        self._leaked = 0
        self._freed = 0  # and not given back
        self._is_to_trim = False

    @property
    def nbytes(self) -> int:
        """What the process holds."""
        return NEW_SLOT_BYTES + self._taken + self._leaked + self._freed

    def task_begins(self) -> None:
        """Perhaps it takes much."""
        if self._plan.greed and not self._slot.agent.world.healed and self._random.random() < self._plan.greed:
            self._taken = int(self._plan.memory_limit_bytes * self._random.choice((0.1, 0.5, 1.2)))

    def task_ended(self) -> None:
        """What it took is free, or leaked. Then memory is given back, if that was asked for."""
        if self._taken and self._random.random() < 0.5:
            self._leaked += self._taken
        else:
            self._freed += self._taken
        self._taken = 0
        if self._is_to_trim:
            self._trim()

    def ask_to_trim(self, *, idle: bool) -> None:
        """Give back what is free: now, or when the running task has ended."""
        self._is_to_trim = True
        if idle and self._slot.idle:
            self._trim()

    def _trim(self) -> None:
        self._is_to_trim = False
        self._freed = 0
        self._slot.report(events.SlotTrimmed(self._slot.index, self.nbytes))
