"""Segments for the large results of slots' tasks: asked for, created, handed over, or given back."""

from __future__ import annotations

from collections.abc import Callable

from cluster.worker.events import AnswerSegment, CreateSegment, RemoveSegments
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.room import Room
from cluster.worker.slots import Slot

__all__ = ["SlotSegments"]


class SlotSegments:
    """What slots were promised. `find` gives a process by its number, None if it is no more."""

    def __init__(
        self,
        ledger: Ledger,
        new_request: Callable[[], int],
        find: Callable[[int], Slot | None],
        memory: Memory,
        room: Room,
    ) -> None:
        self._ledger = ledger
        self._room = room
        self._memory = memory
        self._new_request = new_request
        self._find = find
        self._requests: dict[int, tuple[int, int]] = {}  # being created: slot, sequence

    @property
    def awaited(self) -> bool:
        """Whether segments are being created."""
        return bool(self._requests)

    def asked(self, index: int, sequence: int, nbytes: int) -> None:
        """The slot's task has a large result."""
        slot = self._find(index)
        if slot is None:
            return
        request = slot.segment_request = self._new_request()
        slot.segment_for = sequence
        self._requests[request] = (index, sequence)
        self._room.ask(CreateSegment(request, nbytes, b"", index))

    def created(self, request: int, path: str) -> None:
        """Hand the segment to the slot, if it still waits."""
        index, sequence = self._requests.pop(request)
        self._room.made(request, path)
        slot = self._find(index)
        if slot is None or slot.segment_request != request:
            self._remove(path)
            return
        slot.segment_request = 0
        slot.segment = path
        self._ledger.effects.append(AnswerSegment(index, sequence, path, ""))

    def failed(self, request: int, reason: str) -> None:
        """There is no room for the result."""
        index, sequence = self._requests.pop(request)
        slot = self._find(index)
        if slot is not None and slot.segment_request == request:
            slot.segment_request = 0
            self._ledger.effects.append(AnswerSegment(index, sequence, "", reason))

    def drop(self, slot: Slot, sequence: int = 0) -> None:
        """The slot's task did not use it, or has ended before it came; with a sequence, only if it was that task's."""
        if sequence and sequence != slot.segment_for:
            return
        if slot.segment_request and self._room.withdraw(slot.segment_request):
            del self._requests[slot.segment_request]
        slot.segment_request = 0
        if slot.segment:
            self._remove(slot.segment)
            slot.segment = ""

    def _remove(self, path: str) -> None:
        self._memory.segment(path, 0)
        self._ledger.effects.append(RemoveSegments([path]))
