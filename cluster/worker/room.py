"""Room for values: who asks for a segment gets it in memory, after values have made room for it, or on disk.

Requests stand in one line. The first is given room in memory if it fits; else values are spilled, and it waits for
them; if there is nothing to spill, it gets a file on disk. While the disk has no room either, they wait for something
to become free, each for itself: whoever fits by then does not stand behind who does not. Results go before values that
come from elsewhere, since a task that ends may make room, and while one waits no new tasks are begun beside those that
run. Nobody waits for ever: when nothing has become free for long, that there is no room is the answer; and it is so
soon where somebody loses by the wait, such as a slot that could run another task.
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
# How long a request waits while the disk is full and nothing becomes free …
PATIENCE_SECONDS: Final = 15.0
# … and at the expense of somebody else: what a task that has just ended took is freed by then.
_HURRIED_SECONDS: Final = 0.05


class _Request:
    """Somebody who asks for a segment: in the line, or with room for it that is being made a segment."""

    __slots__ = ("effect", "hurried_since", "hurries", "refused_at_bytes", "stuck_since")

    def __init__(self, effect: CreateSegment, hurries: Callable[[], bool] | None) -> None:
        self.effect = effect
        self.hurries = hurries
        self.stuck_since: float | None = None  # there is no room for it, on disk neither
        self.hurried_since: float | None = None  # … and somebody loses by its wait
        self.refused_at_bytes: int | None = None  # what segments took when the store had no room for it

    @property
    def is_result(self) -> bool:
        """Whether a task waits in its slot for it."""
        return self.hurries is None


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
        self.stuck: list[int] = []
        """Requests for values from elsewhere that have begun to wait, on nothing that is under way; the same."""
        self.let_go: Callable[[int], int] = lambda nbytes: 0
        """Asks for so much memory from those who hold what others hold too; how much they will give."""
        self._line: deque[_Request] = deque()
        self._given: dict[int, _Request] = {}  # answers to come
        self._relieve_at = 0.0
        self._is_behind = False
        self._held = (0, 0)  # what values took in memory, and on disk, when that was looked at last
        self._freed_at = 0.0  # when it had become less

    @property
    def is_short(self) -> bool:
        """Whether memory is full and the disk too: no new work should be begun."""
        memory = self._memory
        return bool(self._spilling.problem) and (self._has_results or memory.used_bytes > memory.limit_bytes)

    @property
    def _has_results(self) -> bool:
        return any(request.is_result for request in self._line)

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
        hurried = [each.hurried_since + _HURRIED_SECONDS for each in self._line if each.hurried_since is not None]
        if self._has_results:  # which come before these
            hurried.clear()
        return min((self._spilling.retry_at, *hurried))

    def ask(self, effect: CreateSegment, hurries: Callable[[], bool] | None = None) -> None:
        """Perform that effect as soon as there is room for it; it comes in `serve`.

        `hurries`: it is for a value that comes from elsewhere; whether, just now, somebody loses by its wait.
        """
        self._line.append(_Request(effect, hurries))

    def is_stuck(self, request: int) -> bool:
        """Whether it waits, and nothing that is under way will end that."""
        return any(each.effect.request == request and each.stuck_since is not None for each in self._line)

    def withdraw(self, request: int) -> bool:
        """Nobody needs that segment any more; False if it is being made already."""
        for each in self._line:
            if each.effect.request == request:
                self._line.remove(each)
                return True
        return False

    def serve(self, now: float) -> None:
        """Give room to those who can have it; called at the end of each event."""
        self._spilling.drop_copies()
        self._look_at_held(now)
        disk_may_do = now >= self._spilling.retry_at  # the first who tries the disk tells when it is tried again
        while self._line and self._serve(self._line[0], now, disk_may_do):
            self._line.popleft()
        if self._line and self._spilling.problem:
            self._serve_others(now, disk_may_do)
        self._relieve(now)

    def _serve_others(self, now: float, disk_may_do: bool) -> None:
        """Nothing can go to disk, and there is no room for the first: see who else fits."""
        waiting = list(self._line)
        results = [each for each in waiting if each.is_result]
        for request in results or waiting[1:]:
            if request is not waiting[0] and self._serve(request, now, disk_may_do):
                self._line.remove(request)

    def _serve(self, request: _Request, now: float, disk_may_do: bool) -> bool:
        memory, spilling, nbytes = self._memory, self._spilling, request.effect.nbytes
        excess = memory.given_bytes + nbytes - self._limit_bytes()
        if excess > 0:
            self._packing.drop_copies(excess)
            excess = memory.given_bytes + nbytes - self._limit_bytes()
        refused_at = request.refused_at_bytes
        was_refused = refused_at is not None and memory.given_bytes >= refused_at and not disk_may_do
        if excess <= 0 and not was_refused:
            self._give(request, on_disk=False)
            return True
        has_lost_patience = self._has_lost_patience(request, now)
        if was_refused and not has_lost_patience:
            return False  # the store had no room, and nothing has become free since
        if not has_lost_patience:
            if nbytes <= self._limit_bytes() and self._free(excess, now):
                return False
            if spilling.problem and not disk_may_do:
                return False
        if spilling.has_quota(nbytes, now):
            self._give(request, on_disk=True)
            return True
        if not self._has_lost_patience(request, now):
            return False
        used, limit = format_bytes(memory.used_bytes), format_bytes(memory.limit_bytes)
        reason = f"no room for {format_bytes(nbytes)}: {used} of {limit} are in use, and {spilling.problem}"
        self.refused.append((request.effect.request, reason))
        return True

    def _look_at_held(self, now: float) -> None:
        """See whether something has become free, in memory or on disk."""
        held = self._memory.given_bytes, self._spilling.held_bytes
        if held[0] < self._held[0] or held[1] < self._held[1]:
            self._freed_at = now
        self._held = held
        if not self._spilling.problem:
            for request in self._line:
                request.stuck_since = request.hurried_since = None

    def _has_lost_patience(self, request: _Request, now: float) -> bool:
        """Whether nothing has become free for long while that request waited, though the disk is full."""
        if not self._spilling.problem:
            return False
        if request.stuck_since is None:
            request.stuck_since = now
            if not request.is_result:
                self.stuck.append(request.effect.request)
        if request.hurries is None or not request.hurries():
            request.hurried_since = None
        elif request.hurried_since is None:
            request.hurried_since = now
        elif now >= request.hurried_since + _HURRIED_SECONDS:
            return True
        return now >= max(request.stuck_since, self._freed_at) + PATIENCE_SECONDS

    def made(self, request: int, path: str) -> None:
        """The segment is there."""
        del self._given[request]
        self._memory.made(request, path)

    def tries_again(self, request: int, reason: str, now: float) -> bool:
        """The segment could not be made; whether that is no answer yet, since something may become free."""
        memory = self._memory
        again = self._given.pop(request)
        memory.made(request, "")
        self._held = memory.given_bytes, self._spilling.held_bytes  # what was promised in vain has not become free
        if not memory.given_bytes + memory.disk_bytes:
            return False
        self._spilling.stop(now, reason)
        if self._has_lost_patience(again, now):
            return False
        again.refused_at_bytes = memory.given_bytes
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
