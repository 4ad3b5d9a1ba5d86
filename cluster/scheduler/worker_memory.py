"""What one worker's memory holds and is about to hold, as far as the scheduler decides by it.

What is held is counted exactly, by values and holders. Whose it is matters: *intermediate* values are kept by
unfinished tasks alone, and go when these have run; what a client wants goes when the client lets go of it, or to disk.
The agent's reports tell what only it can know: how much it has spilled, and how much its slots hold of their own.
"""

from __future__ import annotations

import math
from typing import Any, Final

__all__ = ["WorkerMemory"]

BUDGET_SHARE: Final = 0.6
"""Of a worker's memory limit; the rest is for the slots: their interpreters, and what tasks make on the way."""
LEAST_BUDGET_SHARE: Final = 0.2  # however much the slots hold, which the agent looks after
SPILLING_WAITED_FOR_SECONDS: Final = 2.0  # two reports: a spill that gets nowhere stops nobody


class WorkerMemory:
    """The figures of one worker. All are in bytes; shares of clients are by the client's identity."""

    __slots__ = (
        "coming",
        "coming_bytes",
        "intermediate",
        "limit_bytes",
        "promised",
        "promised_bytes",
        "slot_bytes",
        "spilled_bytes",
        "spilling_since",
    )

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes  # 0: unknown, and nothing is held back there
        self.intermediate: dict[bytes, int] = {}
        self.promised: dict[bytes, int] = {}  # what granted tasks are expected to make
        self.promised_bytes = 0
        self.coming: dict[int, int] = {}  # row of an input that a granted task brings here -> its size
        self.coming_bytes = 0
        self.slot_bytes = 0
        self.spilled_bytes = 0
        self.spilling_since = -math.inf

    @property
    def full_budget_bytes(self) -> float:
        """What values may take here when slots hold little."""
        return BUDGET_SHARE * self.limit_bytes if self.limit_bytes > 0 else math.inf

    @property
    def budget_bytes(self) -> float:
        """What values may take here, those promised and on their way among them."""
        limit = self.limit_bytes
        if limit <= 0:
            return math.inf
        beyond = max(0.0, self.slot_bytes - (1.0 - BUDGET_SHARE) * limit)
        return max(self.full_budget_bytes - beyond, LEAST_BUDGET_SHARE * limit)

    def reported(self, report: dict[str, Any], now: float) -> None:
        """Take in what the agent says; what it does not say is not known, and counts as nothing."""
        self.slot_bytes = int(report.get("slot_bytes") or 0)
        self.spilled_bytes = int(report.get("disk_bytes") or report.get("spilled_bytes") or 0)
        if not report.get("spilling_bytes"):
            self.spilling_since = -math.inf
        elif self.spilling_since == -math.inf:
            self.spilling_since = now

    def is_spilling(self, now: float) -> bool:
        """Whether the agent is moving values to disk, and that is still worth waiting for."""
        return now - self.spilling_since < SPILLING_WAITED_FOR_SECONDS

    def in_memory_bytes(self, held_bytes: int) -> int:
        """Of so many bytes of values that are held, those that are not on disk."""
        return max(0, held_bytes - self.spilled_bytes)

    def used_bytes(self, held_bytes: int) -> int:
        """All that counts against the budget."""
        return self.in_memory_bytes(held_bytes) + self.promised_bytes + self.coming_bytes

    def used_share(self, held_bytes: int) -> tuple[float, int]:
        """By how much of its budget a worker is full; where no budget is known, the bytes decide."""
        return self.used_bytes(held_bytes) / self.budget_bytes, held_bytes

    def own_bytes(self, client: bytes, held_bytes: int) -> int:
        """What counts of that for the work of one client: its intermediate values, and what is still to come."""
        intermediate = min(self.intermediate.get(client, 0), self.in_memory_bytes(held_bytes))
        return intermediate + self.promised.get(client, 0) + self.coming_bytes

    def add_intermediate(self, client: bytes, nbytes: int) -> None:
        """Count a client's intermediate value in, or, below zero, out."""
        _add(self.intermediate, client, nbytes)

    def promise(self, client: bytes, nbytes: int) -> None:
        """Tasks were granted that will make so much; below zero: they have ended."""
        self.promised_bytes += nbytes
        _add(self.promised, client, nbytes)

    def expect(self, row: int, nbytes: int) -> None:
        """An input will be brought here."""
        if row not in self.coming:
            self.coming[row] = nbytes
            self.coming_bytes += nbytes

    def arrived(self, row: int) -> None:
        """It has come, or nobody brings it any more."""
        self.coming_bytes -= self.coming.pop(row, 0)


def _add(shares: dict[bytes, int], client: bytes, nbytes: int) -> None:
    left = shares.get(client, 0) + nbytes
    if left:
        shares[client] = left
    else:
        shares.pop(client, None)
