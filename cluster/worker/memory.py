"""What of the worker's memory is in use, and by whom: counted exactly where values are concerned, measured for slots.

    limit_bytes          what the worker may use in all
    segment_bytes        values in segments in memory
    small_bytes          values that are bytes inside the agent
    slot_bytes           what slots hold beyond: their heap, and pages that they changed in private maps (measured)
    agent_bytes          what the agent and its starter hold in all, small values among it (measured)
    arriving_bytes       segments that values of other workers and of clients are coming into (measured)
    promised_bytes       segments in memory that are reserved, or being made, and do not hold a value yet
    free_segment_bytes   segments that are kept to be used again (measured); they are given back first
    open_segment_bytes   segments whose value was released while somebody still looks at it (measured)
    disk_bytes           values in files on disk, of which
    spilled_bytes        … had been in memory
    spilling_bytes       values in memory that are being copied to disk

A value is counted by its own size. What is measured is up to two seconds old.
"""

from __future__ import annotations

from typing import Any

from cluster.worker.values import Segment, Values

__all__ = ["Memory"]


class Memory:
    """The accounts of one worker. `disk_prefixes`: how the paths of files on disk begin."""

    def __init__(self, limit_bytes: int, values: Values, disk_prefixes: tuple[str, ...]) -> None:
        self.limit_bytes = limit_bytes
        self.slot_bytes = 0
        self.agent_bytes = 0
        self.arriving_bytes = 0
        self.free_segment_bytes = 0
        self.open_segment_bytes = 0
        self.promised_bytes = 0
        self.promised_disk_bytes = 0  # being made on disk
        self.spilled_bytes = 0
        self.spilling_bytes = 0
        self._values = values
        self._disk_prefixes = disk_prefixes
        self._asked: dict[int, int] = {}  # by request: segments that are wanted
        self._given: dict[int, bool] = {}  # … and are being made: whether in memory
        self._promised: dict[str, int] = {}  # by path: made, and without a value

    @property
    def given_bytes(self) -> int:
        """What segments in memory take, or soon will."""
        return self._values.segment_bytes + self.promised_bytes

    @property
    def unshared_bytes(self) -> int:
        """What is in use beside these, and what nobody can have before those who look at it let go."""
        own = max(self._values.small_bytes, self.agent_bytes) + self.slot_bytes
        return own + self.open_segment_bytes + self.arriving_bytes

    @property
    def own_bytes(self) -> int:
        """What the agent and its starter hold that is no value."""
        return max(0, self.agent_bytes - self._values.small_bytes)

    @property
    def fullness(self) -> float:
        """The part of the limit that is in use."""
        return (self.given_bytes + self.unshared_bytes) / self.limit_bytes

    def figures(self) -> dict[str, int]:
        """For the heartbeat."""
        return {
            "limit_bytes": self.limit_bytes,
            "segment_bytes": self._values.segment_bytes,
            "small_bytes": self._values.small_bytes,
            "slot_bytes": self.slot_bytes,
            "agent_bytes": self.agent_bytes,
            "arriving_bytes": self.arriving_bytes,
            "promised_bytes": self.promised_bytes,
            "free_segment_bytes": self.free_segment_bytes,
            "open_segment_bytes": self.open_segment_bytes,
            "disk_bytes": self.disk_bytes,
            "spilled_bytes": self.spilled_bytes,
            "spilling_bytes": self.spilling_bytes,
        }

    def measured(self, figures: dict[str, Any]) -> None:
        """The shell has looked at the processes."""
        self.slot_bytes = int(figures.get("slot_bytes", 0))
        self.agent_bytes = int(figures.get("agent_bytes", 0))
        self.free_segment_bytes = int(figures.get("free_segment_bytes", 0))
        self.open_segment_bytes = int(figures.get("open_segment_bytes", 0))
        # What the store has and the machine does not know: values on their way here.
        self.arriving_bytes = max(0, int(figures.get("store_bytes", 0)) - self.given_bytes)

    # ------------------------------------------------------------------ segments without a value

    def asked(self, request: int, nbytes: int) -> None:
        """A segment is wanted."""
        self._asked[request] = nbytes

    def given(self, request: int, *, on_disk: bool) -> None:
        """It may be made now, in memory or on disk."""
        self._given[request] = not on_disk
        if on_disk:
            self.promised_disk_bytes += self._asked[request]
        else:
            self.promised_bytes += self._asked[request]

    def made(self, request: int, path: str) -> None:
        """It is there; an empty path: there is no room for it."""
        nbytes = self._asked.pop(request)
        if self._given.pop(request):
            self.promised_bytes -= nbytes
        else:
            self.promised_disk_bytes -= nbytes
        if path:
            self._promised[path] = nbytes
            self._count_promise(path, nbytes)

    def promise(self, request: int) -> int:
        """What was promised to that request, in memory."""
        return self._asked[request] if self._given[request] else 0

    @property
    def disk_bytes(self) -> int:
        """Values in files on disk."""
        return self._values.disk_bytes

    def recount_promised(self) -> int:
        """What is promised, counted anew."""
        asked = sum(nbytes for request, nbytes in self._asked.items() if self._given.get(request))
        return asked + sum(nbytes for path, nbytes in self._promised.items() if not self._lies_on_disk(path))

    def segment(self, path: str, nbytes: int) -> Segment:
        """The segment holds a value now, or nothing that anybody wants: it is promised no more."""
        self._count_promise(path, -self._promised.pop(path, 0))
        return Segment(path, nbytes, self._lies_on_disk(path))

    def _count_promise(self, path: str, nbytes: int) -> None:
        if self._lies_on_disk(path):
            self.promised_disk_bytes += nbytes
        else:
            self.promised_bytes += nbytes

    def _lies_on_disk(self, path: str) -> bool:
        return path.startswith(self._disk_prefixes)
