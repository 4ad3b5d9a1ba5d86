"""What of the worker's memory is in use, and by whom: counted exactly where values are concerned, measured for slots.

    limit_bytes          what the worker may use in all
    segment_bytes        values in segments in memory
    small_bytes          values that are bytes inside the agent
    slot_bytes           what slots hold beyond: their heap, and pages that they changed in private maps (measured)
    promised_bytes       segments in memory that are reserved, or asked for, and do not hold a value yet
    free_segment_bytes   segments that are kept to be used again (measured); they are given back first
    open_segment_bytes   segments whose values were released while somebody still looks at them (measured)
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
    """The accounts of one worker. `disk_prefix` is how the paths of files on disk begin; empty: none lies there."""

    def __init__(self, limit_bytes: int, values: Values, disk_prefix: str) -> None:
        self.limit_bytes = limit_bytes
        self.slot_bytes = 0
        self.free_segment_bytes = 0
        self.open_segment_bytes = 0
        self.promised_bytes = 0
        self._values = values
        self._disk_prefix = disk_prefix
        self._asked: dict[int, int] = {}  # by request: segments that are being made
        self._promised: dict[str, int] = {}  # by path: made, and without a value

    def figures(self) -> dict[str, int]:
        """For the heartbeat."""
        return {
            "limit_bytes": self.limit_bytes,
            "segment_bytes": self._values.segment_bytes,
            "small_bytes": self._values.small_bytes,
            "slot_bytes": self.slot_bytes,
            "promised_bytes": self.promised_bytes,
            "free_segment_bytes": self.free_segment_bytes,
            "open_segment_bytes": self.open_segment_bytes,
            "disk_bytes": self._values.disk_bytes,
            "spilled_bytes": 0,
            "spilling_bytes": 0,
        }

    def measured(self, figures: dict[str, Any]) -> None:
        """The shell has looked at the processes."""
        self.slot_bytes = int(figures.get("slot_bytes", 0))
        self.free_segment_bytes = int(figures.get("free_segment_bytes", 0))
        self.open_segment_bytes = int(figures.get("open_segment_bytes", 0))

    # ------------------------------------------------------------------ segments without a value

    def asked(self, request: int, nbytes: int) -> None:
        """A segment is being made."""
        self._asked[request] = nbytes
        self.promised_bytes += nbytes

    def made(self, request: int, path: str) -> None:
        """It is there; an empty path: there is no room for it."""
        nbytes = self._asked.pop(request)
        if not path or self._lies_on_disk(path):
            self.promised_bytes -= nbytes
        else:
            self._promised[path] = nbytes

    def segment(self, path: str, nbytes: int) -> Segment:
        """The segment holds a value now, or nothing that anybody wants: it is promised no more."""
        self.promised_bytes -= self._promised.pop(path, 0)
        return Segment(path, nbytes, self._lies_on_disk(path))

    def _lies_on_disk(self, path: str) -> bool:
        return bool(self._disk_prefix) and path.startswith(self._disk_prefix)
