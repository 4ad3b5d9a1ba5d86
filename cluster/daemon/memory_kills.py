"""Whether the kernel has ended processes because memory ran out: it counts them, for the machine and for each group."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cluster.storage.host_limits import control_groups, text_of

__all__ = ["MemoryKills", "counters"]

_FILES: Final = {1: "memory.oom_control", 2: "memory.events"}  # by the version of the control group


def counters(root: Path = Path("/")) -> list[Path]:
    """The files with an `oom_kill` line that concern this process: its control group's or that of
    the next above which counts, else the whole machine's."""
    groups = [group / _FILES[version] for version, group in control_groups(root, "memory")]
    return [path for path in (*groups, root / "proc/vmstat") if _count(path) is not None][:1]


def _count(path: Path) -> int | None:
    for line in text_of(path).splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill":
            return int(number)
    return None


class MemoryKills:
    """Compares the kernel's count with what it was a few seconds ago."""

    def __init__(self, files: list[Path] | None = None) -> None:
        self._files = counters() if files is None else files
        self._latest = self._before = self._total()

    def _total(self) -> int:
        return sum(_count(path) or 0 for path in self._files)

    def look(self) -> None:
        """Time has passed: what was counted before the look before this one is of no interest any more."""
        self._before, self._latest = self._latest, self._total()

    def one_more(self) -> bool:
        """A process was killed: whether that may have been the kernel's doing, for want of memory."""
        if self._total() <= self._before:
            return False
        self._before += 1  # the next death needs a count of its own
        return True
