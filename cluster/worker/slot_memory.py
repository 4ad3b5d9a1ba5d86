"""What is done about the memory that slots hold: trimmed, recycled, and at last ended, in this order.

A slot keeps what it frees, since touching the same memory again is twenty times quicker than fresh memory. It is asked
to give that back when it has been idle for a while, or when the worker's memory runs short, and answers with what it
holds then. What that is more than a new slot holds has grown: caches, leaks, fragments. A slot that has grown is
replaced between two tasks.

If all of this does not help and the worker passes its limit, the task in the largest slot is ended, before the kernel
ends something else: that task alone is charged, and the error says who held how much. And if it is the worker's own
process that has grown, which nothing here can mend, the worker drains and starts again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from cluster.units import format_bytes
from cluster.worker.actors import FIRST_ACTOR
from cluster.worker.events import KillSlot, Say, TrimSlot
from cluster.worker.slots import MemoryEnd, Slot, SlotState

if TYPE_CHECKING:
    from cluster.worker.ledger import Ledger
    from cluster.worker.memory import Memory
    from cluster.worker.room import Room
    from cluster.worker.workforce import Workforce

__all__ = ["SlotMemory"]

# A slot that has been without a task for so long gives back what it does not use.
_IDLE_SECONDS: Final = 5.0
# Less is not worth the system calls, nor a new process.
_WORTH_TRIMMING_BYTES: Final = 32 << 20
_WORTH_RECYCLING_BYTES: Final = 64 << 20
# A slot that has grown by this part of its share of the limit is replaced though memory is not short.
_GROWN_PART: Final = 0.5
# Between two requests to a slot.
_TRIMMED_SECONDS: Final = 2.0
# The worker has to be above its limit for so long before a task is ended: what was freed is counted late.
_ABOVE_SECONDS: Final = 0.5
# The worker starts again if it is above its limit for so long and its own processes have grown by this part of it.
_HELPLESS_SECONDS: Final = 30.0
_OWN_PART: Final = 0.5


class SlotMemory:
    """Judges the slots by what was measured."""

    def __init__(self, ledger: Ledger, workforce: Workforce, memory: Memory, room: Room) -> None:
        self._ledger = ledger
        self._workforce = workforce
        self._memory = memory
        self._room = room
        self._least_bytes = 0  # what a slot holds that has not grown
        self._trimmed_at: dict[int, float] = {}
        self._above_since: float | None = None
        self._helpless_since: float | None = None
        self._first_own_bytes = 0
        self.restart_reason = ""
        """Why the worker has to start anew; empty: it need not."""

    def started(self, index: int) -> None:
        """A new process runs in that slot."""
        self._trimmed_at.pop(index, None)

    def measured(self, slots: dict[int, int], new_bytes: int, now: float) -> None:
        """The processes of slots hold so much; `new_bytes`: what a new one would."""
        if new_bytes:
            self._least_bytes = min(self._least_bytes or new_bytes, new_bytes)
        is_short = self._room.is_tight
        for slot in self._workforce.processes:
            nbytes = slots.get(slot.index, 0)
            if slot.state is SlotState.READY and nbytes - self._least_bytes > _WORTH_TRIMMING_BYTES:
                self._trim(slot, is_short, now)
        self._end_the_largest(slots, now)
        self._judge_the_agent(now)

    def _trim(self, slot: Slot, is_short: bool, now: float) -> None:
        threads = self._workforce.threads
        idle = threads.idle(slot)
        idle_since = max(one.front_since for one in threads.members(slot))
        trimmed_at = self._trimmed_at.get(slot.index, -math.inf)
        # Once is enough as long as it has no further task.
        is_long_idle = idle and now - idle_since >= _IDLE_SECONDS and trimmed_at < idle_since
        if (is_long_idle or is_short) and now - trimmed_at >= _TRIMMED_SECONDS:
            self._trimmed_at[slot.index] = now
            self._ledger.effects.append(TrimSlot(slot.index, idle))

    def trimmed(self, index: int, nbytes: int) -> None:
        """The slot has given back what it could, between two tasks, and holds so much."""
        if index >= FIRST_ACTOR:
            return  # nothing takes its place
        slot = self._workforce.slots[index]
        if slot.state is not SlotState.READY or slot.renew:
            return
        grown = nbytes - self._least_bytes
        threads = self._workforce.threads
        members = threads.members(slot)
        share = len(members) * self._memory.limit_bytes / len(self._workforce.slots)
        is_short = self._room.is_tight
        if not is_short and len(members) > 1 and not threads.idle(slot):
            return  # its other threads would have to stand still until all tasks have ended
        if grown > _WORTH_RECYCLING_BYTES and (is_short or grown > _GROWN_PART * share):
            self._ledger.effects.append(
                Say(
                    f"slot {index} is replaced: it holds {format_bytes(nbytes)} between tasks, "
                    f"{format_bytes(grown)} more than a new one"
                )
            )
            self._workforce.renew_slot(slot)

    def _judge_the_agent(self, now: float) -> None:
        """See whether the worker's own processes have grown by half of its limit, which it has passed for long."""
        memory = self._memory
        own_bytes = memory.own_bytes
        used = memory.used_bytes
        # What it held at first it would hold again: a limit that is too small for that is nothing to start anew for.
        self._first_own_bytes = min(self._first_own_bytes or own_bytes, own_bytes)
        if used <= memory.limit_bytes or own_bytes - self._first_own_bytes < _OWN_PART * memory.limit_bytes:
            self._helpless_since = None
        elif self._helpless_since is None:
            self._helpless_since = now
        elif now - self._helpless_since >= _HELPLESS_SECONDS:
            self.restart_reason = (
                f"its own process holds {format_bytes(own_bytes)} that are no values, of its memory limit of "
                f"{format_bytes(memory.limit_bytes)}, and nothing else could be freed"
            )

    def _end_the_largest(self, slots: dict[int, int], now: float) -> None:
        """If the worker is above its limit and nothing else helps, end the task in the slot that holds most."""
        memory = self._memory
        used = memory.used_bytes
        if used <= memory.limit_bytes or memory.spilling_bytes:
            self._above_since = None
            return
        if self._above_since is None:
            self._above_since = now
        if now - self._above_since < _ABOVE_SECONDS:
            return
        threads = self._workforce.threads
        running = [
            (slots.get(threads.members(slot)[0].index, 0), slot)
            for slot in self._workforce.slots
            if slot.state is SlotState.READY and slot.outstanding and slot.end_for_memory is None
        ]
        nbytes, slot = max(running, key=lambda item: item[0], default=(0, None))
        # Ending one must be of use: it holds a good part of what is too much.
        if slot is None or nbytes - self._least_bytes < max(_WORTH_RECYCLING_BYTES, (used - memory.limit_bytes) / 4):
            return
        self._above_since = None
        members = threads.members(slot)
        for one in members:  # which of the threads took it nobody can tell
            if one.outstanding:
                one.end_for_memory = MemoryEnd(one.pieces[0].sequence, nbytes, used, memory.limit_bytes)
            one.kill_at = None
            one.state = SlotState.ENDING
        self._ledger.effects.append(KillSlot(members[0].index))
