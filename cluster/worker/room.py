"""Room for values: who asks for a segment gets it in memory, after values have made room for it, or on disk.

Requests stand in one line. The first is given room in memory if it fits; else values are spilled, and it waits for
them; if there is nothing to spill, it gets a file on disk. While the disk has no room either, it waits for something to
become free, and no new tasks are begun beside those that run. Nobody waits for ever: when nothing has become free for
long, that there is no room is the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from cluster.units import format_bytes
from cluster.worker.events import CreateSegment, ShrinkSegments
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.packing import Packing
from cluster.worker.spilling import Spilling
from cluster.worker.values import Values

__all__ = ["Room"]

# Above this part of the limit values are spilled though nobody waits, down to the other: who asks next need not wait.
SPILL_ABOVE: Final = 0.85
SPILL_DOWN_TO: Final = 0.75
# Values may always take this part, however much slots hold: where they hold more, other remedies are needed.
_VALUES_PART: Final = 0.25
# To look for what can be spilled costs a walk over what is needed.
_RELIEVED_SECONDS: Final = 0.05
# How long a request waits while the disk is full and nothing becomes free.
PATIENCE_SECONDS: Final = 15.0


class _Request:
    """Somebody who asks for a segment: in the line, or with room for it that is being made a segment."""

    __slots__ = ("effect", "given_bytes", "patience_ends", "refused_at_bytes")

    def __init__(self, effect: CreateSegment) -> None:
        self.effect = effect
        self.patience_ends: float | None = None  # nothing has become free for it until then: there is no room
        self.given_bytes = 0  # what segments took when that was looked at last
        self.refused_at_bytes: int | None = None  # … and when the store had no room for this one


class Room:
    """The line of those who ask for segments."""

    def __init__(self, ledger: Ledger, values: Values, memory: Memory, spilling: Spilling, packing: Packing) -> None:
        self._ledger = ledger
        self._values = values
        self._memory = memory
        self._spilling = spilling
        self._packing = packing
        self.refused: list[tuple[int, str]] = []
        """Requests that waited in vain, and why; whoever takes them out answers them."""
        self.let_go: Callable[[int], int] = lambda nbytes: 0
        """Asks for so much memory from those who hold what others hold too; how much they will give."""
        self._line: deque[_Request] = deque()
        self._given: dict[int, _Request] = {}  # answers to come
        self._relieve_at = 0.0
        self._is_behind = False

    @property
    def is_short(self) -> bool:
        """Whether memory is full and the disk too: no new work should be begun."""
        memory = self._memory
        return bool(self._spilling.problem) and (bool(self._line) or memory.used_bytes > memory.limit_bytes)

    def falls_behind(self) -> bool:
        """Whether small values are made faster than they go to disk: then too, until enough have gone."""
        part = SPILL_ABOVE if self._is_behind else 1.0
        self._is_behind = self._packing.is_writing and self._memory.fullness > part
        return self._is_behind

    @property
    def is_tight(self) -> bool:
        """Whether so much is in use that it should become less."""
        return self._memory.used_bytes > SPILL_ABOVE * self._memory.limit_bytes

    @property
    def next_wakeup(self) -> float | None:
        """When `serve` should be called at the latest."""
        if not self._line or not self._spilling.problem or self._memory.spilling_bytes:
            return None  # nobody waits, or for what is on its way
        return self._spilling.retry_at

    def ask(self, effect: CreateSegment) -> None:
        """Perform that effect as soon as there is room for it; it comes in `serve`."""
        self._line.append(_Request(effect))

    def serve(self, now: float) -> None:
        """Give room to those who can have it; called at the end of each event."""
        self._spilling.drop_copies()
        while self._line and self._serve(self._line[0], now):
            self._line.popleft()
        self._relieve(now)

    def _serve(self, request: _Request, now: float) -> bool:
        memory, spilling, nbytes = self._memory, self._spilling, request.effect.nbytes
        excess = memory.given_bytes + nbytes - self._limit_bytes()
        if excess > 0:
            self._packing.drop_copies(excess)
            excess = memory.given_bytes + nbytes - self._limit_bytes()
        refused_at = request.refused_at_bytes
        if refused_at is not None and memory.given_bytes >= refused_at and now < spilling.retry_at:
            return False  # the store had no room, and nothing has become free since
        if excess <= 0:
            self._give(request, on_disk=False)
            return True
        if not spilling.problem or not self._has_lost_patience(request, now):
            if nbytes <= self._limit_bytes() and self._free(excess, now):
                return False
            if spilling.problem and now < spilling.retry_at:
                return False
        if spilling.has_quota(nbytes, now):
            self._give(request, on_disk=True)
            return True
        if not self._has_lost_patience(request, now):
            return False
        self.refused.append((request.effect.request, f"no room for {format_bytes(nbytes)}: {spilling.problem}"))
        return True

    def _has_lost_patience(self, request: _Request, now: float) -> bool:
        """Whether nothing has become free for long while that request waited."""
        given_bytes = self._memory.given_bytes
        if request.patience_ends is None or given_bytes < request.given_bytes:
            request.patience_ends = now + PATIENCE_SECONDS
        request.given_bytes = given_bytes
        return now >= request.patience_ends

    def made(self, request: int, path: str) -> None:
        """The segment is there."""
        del self._given[request]
        self._memory.made(request, path)

    def tries_again(self, request: int, reason: str, now: float) -> bool:
        """The segment could not be made; whether that is no answer yet, since something may become free."""
        memory = self._memory
        again = self._given.pop(request)
        memory.made(request, "")
        if not memory.given_bytes + memory.disk_bytes or self._has_lost_patience(again, now):
            return False
        again.refused_at_bytes = memory.given_bytes
        self._spilling.stop(now, reason)
        self._line.appendleft(again)
        return True

    def _limit_bytes(self) -> int:
        memory = self._memory
        return max(memory.limit_bytes - memory.unshared_bytes, int(memory.limit_bytes * _VALUES_PART))

    def _give(self, request: _Request, *, on_disk: bool) -> None:
        effect = request.effect
        self._memory.given(effect.request, effect.nbytes, on_disk=on_disk)
        self._given[effect.request] = request
        self._ledger.effects.append(effect._replace(on_disk=on_disk))

    def _relieve(self, now: float) -> None:
        memory = self._memory
        used = memory.used_bytes
        excess = min(used + memory.free_segment_bytes - memory.limit_bytes, memory.free_segment_bytes)
        if excess > 0:
            memory.free_segment_bytes -= excess  # until it is measured again
            self._ledger.effects.append(ShrinkSegments(excess))
        if self.is_tight and (memory.given_bytes or self._values.small_count) and now >= self._relieve_at:
            self._relieve_at = now + _RELIEVED_SECONDS
            self._packing.drop_copies(used - int(SPILL_DOWN_TO * memory.limit_bytes))
            used = memory.used_bytes
            wanted = used - int(SPILL_DOWN_TO * memory.limit_bytes)
            if self.let_go(wanted) > used - SPILL_ABOVE * memory.limit_bytes:
                return  # copies of what others hold go first
            self._free(wanted, now, needed_too=used > memory.limit_bytes)

    def _free(self, nbytes: int, now: float, *, needed_too: bool = False) -> bool:
        """Have so much go to disk, first of the kind of values that takes more; whether some are on their way."""
        if self._values.small_cost_bytes > self._values.segment_bytes:
            self._packing.free(nbytes, now)
            return self._spilling.free(nbytes, now, needed_too=needed_too)
        self._spilling.free(nbytes, now)
        return self._packing.free(nbytes, now) or self._spilling.free(nbytes, now, needed_too=needed_too)

    def packed(self) -> None:
        """Values have left memory in a pack: look at once whether more should."""
        self._relieve_at = 0.0
