"""Copies of values that were made elsewhere: which of them could go, and the scheduler's leave to let them go.

A copy that no granted task needs is the first to go when memory is short. Only the scheduler knows whether another
copy is left, so it is asked; and it may have granted a task that needs this one before it heard, so the agent looks
once more when the answer comes, and if need be keeps the copy and says that it is still here.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.wire import messages
from cluster.worker.ledger import Ledger
from cluster.worker.values import value_key, value_name

__all__ = ["Replicas"]


class Replicas:
    """The copies that an agent holds, the one that was needed longest ago first."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sizes: dict[int, int] = {}  # by the value's key
        self._asked: set[int] = set()  # of these the scheduler was asked
        self._refused: set[int] = set()  # when it was asked last, it wanted these kept: there may be no others
        self._short_bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def came(self, key: int, nbytes: int) -> None:
        """A copy has come."""
        self._sizes[key] = nbytes

    def needed(self, keys: Iterable[int]) -> None:
        """A task was granted that takes these values."""
        for key in keys:
            nbytes = self._sizes.pop(key, None)
            if nbytes is not None:
                self._sizes[key] = nbytes

    def gone(self, keys: Iterable[int]) -> None:
        """These values are held no more."""
        for key in keys:
            if self._sizes.pop(key, None) is not None:
                self._asked.discard(key)
                self._refused.discard(key)

    @property
    def droppable_bytes(self) -> int:
        """How much room copies take that no granted task needs, and that the scheduler has not refused to let go."""
        return sum(self._sizes[key] for key in self._droppable() if key not in self._refused)

    def let_go(self, nbytes: int) -> None:
        """Memory is short by so much: at the end of this event, ask leave to drop copies that nobody needs here."""
        self._short_bytes = max(self._short_bytes, nbytes)

    def finish_event(self) -> None:
        """Ask the scheduler, if memory is short."""
        if not self._short_bytes or not self._ledger.epoch:
            return
        names: list[int] = []
        for key in self._droppable():
            if self._short_bytes <= 0:
                break
            self._short_bytes -= self._sizes[key]
            self._asked.add(key)
            names += value_name(key)
        self._short_bytes = 0
        if names:
            self._ledger.send(messages.DropReplicas(self._ledger.epoch, names))

    def answered(self, message: messages.DropAllowed) -> tuple[list[int], list[int]]:
        """The scheduler has answered: the keys of the copies to drop now, and of those that are needed after all."""
        asked, allowed = set(_keys(message.asked)), [key for key in _keys(message.allowed) if key in self._sizes]
        self._asked -= asked
        self._refused -= asked
        self._refused |= self._sizes.keys() & asked.difference(allowed)
        needed = self._ledger.needed_values()
        return [key for key in allowed if key not in needed], [key for key in allowed if key in needed]

    def size(self, key: int) -> int:
        """The size of a copy."""
        return self._sizes[key]

    def _droppable(self) -> list[int]:
        needed = self._ledger.needed_values()
        keys = [key for key in self._sizes if key not in needed and key not in self._asked]
        return sorted(keys, key=self._refused.__contains__)  # those that were refused last


def _keys(names: list[int]) -> list[int]:
    return [value_key(attempt, row) for row, attempt in zip(names[::2], names[1::2], strict=True)]
