"""Whether the kernel has ended processes because memory ran out: it counts them, for the machine and for each group."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["MemoryKills", "counters"]

_MACHINE: Final = Path("/proc/vmstat")
_GROUPS: Final = Path("/proc/self/cgroup")


def counters(groups: Path = _GROUPS, mounted: Path = Path("/sys/fs/cgroup"), machine: Path = _MACHINE) -> list[Path]:
    """The files with an `oom_kill` line that concern this process: its control group's, else the whole machine's."""
    found = []
    for line in _text(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found.append(mounted / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            # In a container the path that is named may not be mounted; the root of the mount is the group then.
            group = mounted / "memory"
            found += [group / path.lstrip("/") / "memory.oom_control", group / "memory.oom_control"]
    found.append(mounted / "memory.events")
    counting = [path for path in found if _count(path) is not None]
    return counting[:1] or ([machine] if _count(machine) is not None else [])


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no such kernel, or not for us
        return ""


def _count(path: Path) -> int | None:
    for line in _text(path).splitlines():
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
