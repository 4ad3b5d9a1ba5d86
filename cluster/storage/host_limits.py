"""What this process may use of its host: a container's memory and processor time and not the host's, and `ulimit`.

Control groups lie within one another, and the narrowest limit of all that a process is in is the one that holds. Both
versions are read, also side by side; in a container the path that a process is told may begin above what is mounted.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["HostLimits", "control_groups", "group_memory_used_bytes", "host_limits", "text_of"]

# More than any host has: how version 1 says that there is no limit.
_NO_LIMIT_BYTES: Final = 1 << 60
# What is left for the scheduler, clients and everything else on the host.
_WORKERS_PART: Final = 0.8


class HostLimits(NamedTuple):
    """What may be used, and what says so."""

    memory_bytes: int
    memory_by: str
    """"host", "cgroup v1", "cgroup v2" or "ulimit -v"."""
    cores: float
    cores_by: str
    """"host", "affinity", "cgroup v1" or "cgroup v2"."""

    @property
    def slots(self) -> int:
        """How many slots a worker has unless it is told otherwise: the cores, rounded up."""
        return max(1, ceil(self.cores))

    def worker_memory_bytes(self, workers: int = 1) -> int:
        """The memory limit of each of so many workers unless they are told otherwise."""
        return int(_WORKERS_PART * self.memory_bytes) // max(1, workers)


def host_limits(root: Path = Path("/")) -> HostLimits:
    """Look at this process's limits; `root` is where /proc and /sys are looked for.

    >>> host_limits().memory_bytes > 0
    True
    """
    memory = [(_host_memory_bytes(root), "host")]
    cores = [(float(os.cpu_count() or 1), "host")]
    memory += [(nbytes, f"cgroup v{version}") for nbytes, version, _ in _memory_groups(root)]
    for version, group in control_groups(root, "cpu"):
        if version == 2:
            quota, _, period = text_of(group / "cpu.max").partition(" ")
        else:
            quota, period = text_of(group / "cpu.cfs_quota_us"), text_of(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            cores.append((int(quota) / int(period), f"cgroup v{version}"))
    if hasattr(os, "sched_getaffinity"):
        cores.append((float(len(os.sched_getaffinity(0))), "affinity"))
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        memory.append((address_space, "ulimit -v"))
    # The first of equals: what is no narrower than the host is not named.
    return HostLimits(*min(memory, key=lambda one: one[0]), *min(cores, key=lambda one: one[0]))


def group_memory_used_bytes(root: Path = Path("/")) -> int:
    """What the control group with the narrowest limit of memory uses of it; 0 without one."""
    narrowest = min(_memory_groups(root), key=lambda one: one[0], default=None)
    if narrowest is None:
        return 0
    _, version, group = narrowest
    text = text_of(group / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
    return int(text) if text.isdigit() else 0


def _memory_groups(root: Path) -> Iterator[tuple[int, int, Path]]:
    """The control groups that limit this process's memory: (bytes, version, path)."""
    for version, group in control_groups(root, "memory"):
        text = text_of(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text.isdigit() and int(text) < _NO_LIMIT_BYTES:
            yield int(text), version, group


def _host_memory_bytes(root: Path) -> int:
    for line in text_of(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def control_groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """The directories of all control groups that this process is in, as far as they are mounted: (version, path). Its
    own comes before those that it lies in."""
    mounted = root / "sys/fs/cgroup"
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, version = (mounted, mounted / "unified"), 2
        elif controller in controllers.split(","):
            tops, version = (mounted / controllers, mounted / controller), 1
        else:
            continue
        for top in dict.fromkeys(tops):
            yield from ((version, group) for group in _upwards(top, path))


def _upwards(top: Path, path: str) -> Iterator[Path]:
    """The group below `top` and those that it lies in; in a container `top` may be the group itself."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    while True:
        group = top.joinpath(*parts)
        if group.is_dir():
            yield group
        if not parts:
            return
        parts.pop()


def text_of(file: Path) -> str:
    """What the kernel says in that file; nothing if there is none."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # another kind of system
        return ""
