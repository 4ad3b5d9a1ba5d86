"""What the scheduler knows of a function: its opaque bytes, how long its tasks run, how large their results are."""

from __future__ import annotations

from cluster.scheduler.sizes import SizesByLabel

__all__ = ["FunctionRecord"]

# The slot's own work around a task that does nothing, so that a lead of seconds is never a lead of millions of tasks.
SHORTEST_TASK_SECONDS = 10e-6
STEP = 1.25


class FunctionRecord:
    """A function's bytes under their content hash, with the decayed median of its tasks' run times.

    The estimate moves towards each reported median by a bounded factor, so that it follows the median of what is
    reported (the sign of the error decides, not its size): one long task does not end the lead of a function of short
    ones.
    """

    __slots__ = ("blob", "identity", "median_seconds", "name", "output_sizes", "users")

    def __init__(self, identity: bytes, name: str, blob: bytes) -> None:
        self.identity = identity
        self.name = name
        self.blob = blob
        self.median_seconds: float | None = None
        self.output_sizes = SizesByLabel()
        self.users = 0  # runs and clients that may name it again

    def observe(self, median_seconds: float) -> None:
        """Take a report's median into the estimate."""
        seconds = max(median_seconds, SHORTEST_TASK_SECONDS)
        known = self.median_seconds
        if known is None:
            self.median_seconds = seconds
        elif seconds > known:
            self.median_seconds = min(seconds, known * STEP)
        else:
            self.median_seconds = max(seconds, known / STEP)
