"""What of the worker's memory is in use, and by whom: counted exactly where values are concerned, measured for slots.

    limit_bytes          what the worker may use in all
    segment_bytes        values in segments in memory
    small_bytes          values that are bytes inside the agent
    slot_bytes           what slots hold beyond: their heap, and pages that they changed in private maps (measured)
    agent_bytes          what the agent and its starter hold in all, small values among it (measured)
    promised_bytes       segments in memory that are reserved, or being made, and do not hold a value yet
    surplus_bytes        what segments take beyond that: whole pages, and what is about to be removed (measured)
    free_segment_bytes   segments that are kept to be used again (measured); they are given back first
    open_segment_bytes   segments whose value was released while somebody still looks at it (measured)
    disk_bytes           values that are on disk and not in memory
    spilled_bytes        what the files take of those that had been in memory
    spilling_bytes       values in memory that are being copied to disk

A value is counted by its own size. What is measured is up to two seconds old; what small values have taken or given
back since then is added.
"""

from __future__ import annotations

from cluster.worker.values import Segment, Values

__all__ = ["Memory"]


class Memory:
    """The accounts of one worker. `disk_prefixes`: how the paths of files on disk begin."""

    def __init__(self, limit_bytes: int, values: Values, disk_prefixes: tuple[str, ...]) -> None:
        self.limit_bytes = limit_bytes
        self.slot_bytes = 0
        self.agent_bytes = 0
        self._small_cost_bytes = 0  # when that was measured
        self.surplus_bytes = 0
        self.free_segment_bytes = 0
        self.open_segment_bytes = 0
        self.promised_bytes = 0
        self.promised_disk_bytes = 0  # being made on disk
        self.spilled_bytes = 0
        self.spilling_bytes = 0
        self._values = values
        self._disk_prefixes = disk_prefixes
        self._given: dict[int, tuple[int, bool]] = {}  # by request: what is being made, and whether on disk
        self._promised: dict[str, int] = {}  # by path: made, and without a value

    @property
    def given_bytes(self) -> int:
        """What segments in memory take, or soon will."""
        return self._values.segment_bytes + self.promised_bytes

    @property
    def unshared_bytes(self) -> int:
        """What is in use beside these, and what nobody can have before those who look at it let go."""
        since = self._values.small_cost_bytes - self._small_cost_bytes
        own = max(self._values.small_bytes, self.agent_bytes + since if self.agent_bytes else 0)
        return own + self.slot_bytes + self.open_segment_bytes + self.surplus_bytes

    @property
    def used_bytes(self) -> int:
        """All that is in use."""
        return self.given_bytes + self.unshared_bytes

    @property
    def own_bytes(self) -> int:
        """What the agent and its starter hold that is no value."""
        return max(0, self.agent_bytes - self._small_cost_bytes)

    @property
    def disk_bytes(self) -> int:
        """Values that are on disk and not in memory."""
        return self._values.disk_bytes + self._values.packed.nbytes

    @property
    def fullness(self) -> float:
        """The part of the limit that is in use."""
        return self.used_bytes / self.limit_bytes

    def figures(self) -> dict[str, int]:
        """For the heartbeat."""
        return {
            "limit_bytes": self.limit_bytes,
            "segment_bytes": self._values.segment_bytes,
            "small_bytes": self._values.small_bytes,
            "slot_bytes": self.slot_bytes,
            "agent_bytes": self.agent_bytes,
            "promised_bytes": self.promised_bytes,
            "surplus_bytes": self.surplus_bytes,
            "free_segment_bytes": self.free_segment_bytes,
            "open_segment_bytes": self.open_segment_bytes,
            "disk_bytes": self.disk_bytes,
            "spilled_bytes": self.spilled_bytes,
            "spilling_bytes": self.spilling_bytes,
        }

    def measured(self, figures: dict[str, int]) -> None:
        """The shell has looked at the processes."""
        self.slot_bytes = figures.get("slot_bytes", 0)
        self.agent_bytes = figures.get("agent_bytes", 0)
        self._small_cost_bytes = self._values.small_cost_bytes
        self.free_segment_bytes = figures.get("free_segment_bytes", 0)
        self.open_segment_bytes = figures.get("open_segment_bytes", 0)
        self.surplus_bytes = max(0, figures.get("store_bytes", 0) - self.given_bytes)

    # ------------------------------------------------------------------ segments without a value

    def given(self, request: int, nbytes: int, *, on_disk: bool) -> None:
        """A segment may be made, in memory or on disk."""
        self._given[request] = nbytes, on_disk
        self._count_promise(nbytes, on_disk)

    def made(self, request: int, path: str) -> None:
        """It is there; an empty path: there is no room for it."""
        nbytes, on_disk = self._given.pop(request)
        self._count_promise(-nbytes, on_disk)
        if path:
            self._promised[path] = nbytes
            self._count_promise(nbytes, self._lies_on_disk(path))

    def recount_promised(self) -> int:
        """What is promised, counted anew."""
        given = sum(nbytes for nbytes, on_disk in self._given.values() if not on_disk)
        return given + sum(nbytes for path, nbytes in self._promised.items() if not self._lies_on_disk(path))

    def segment(self, path: str, nbytes: int) -> Segment:
        """The segment holds a value now, or nothing that anybody wants: it is promised no more."""
        on_disk = self._lies_on_disk(path)
        self._count_promise(-self._promised.pop(path, 0), on_disk)
        return Segment(path, nbytes, on_disk)

    def _count_promise(self, nbytes: int, on_disk: bool) -> None:
        if on_disk:
            self.promised_disk_bytes += nbytes
        else:
            self.promised_bytes += nbytes

    def _lies_on_disk(self, path: str) -> bool:
        return path.startswith(self._disk_prefixes)
