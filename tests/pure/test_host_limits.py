"""The narrowest limit holds, whichever version of control groups sets it and however deep it lies: on copied trees."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from cluster.storage.host_limits import group_memory_used_bytes, host_limits

GIB = 1 << 30
NONE_V1 = "9223372036854771712"


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process_id: set(range(16)), raising=False)


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with these control groups and their files, on a host of 64 GiB."""
    for name, text in {"proc/self/cgroup": groups, "proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_without_control_groups_the_host_is_the_limit(tmp_path: Path) -> None:
    limits = host_limits(tree(tmp_path, "", {}))
    assert limits == (64 * GIB, "host", 16.0, "host")
    assert limits.slots == 16
    assert limits.worker_memory_bytes(2) == int(0.8 * 64 * GIB) // 2


def test_version_2_in_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": str(2 * GIB), "sys/fs/cgroup/cpu.max": "150000 100000"}
    limits = host_limits(tree(tmp_path, "0::/", files))
    assert limits == (2 * GIB, "cgroup v2", 1.5, "cgroup v2")
    assert limits.slots == 2


def test_version_2_nested_the_narrowest_of_all_groups_holds(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/system.slice/memory.max": str(3 * GIB),
        "sys/fs/cgroup/system.slice/worker.service/memory.max": "max",
        "sys/fs/cgroup/system.slice/cpu.max": "max 100000",
        "sys/fs/cgroup/system.slice/worker.service/cpu.max": "400000 100000",
    }
    limits = host_limits(tree(tmp_path, "0::/system.slice/worker.service", files))
    assert limits == (3 * GIB, "cgroup v2", 4.0, "cgroup v2")


def test_what_is_used_is_what_the_group_with_the_narrowest_limit_uses(tmp_path: Path) -> None:
    nested = {
        "sys/fs/cgroup/system.slice/memory.max": str(3 * GIB),
        "sys/fs/cgroup/system.slice/memory.current": str(GIB),
        "sys/fs/cgroup/system.slice/worker.service/memory.max": "max",
        "sys/fs/cgroup/system.slice/worker.service/memory.current": "4096",
    }
    older = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": NONE_V1,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(40 * GIB),
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": str(8 * GIB),
        "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": str(2 * GIB),
    }
    assert group_memory_used_bytes(tree(tmp_path / "2", "0::/system.slice/worker.service", nested)) == GIB
    assert group_memory_used_bytes(tree(tmp_path / "1", "4:memory:/docker/abc", older)) == 2 * GIB
    assert group_memory_used_bytes(tree(tmp_path / "0", "", {})) == 0


def test_version_1_nested(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc"
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": NONE_V1,
        "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": str(8 * GIB),
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": NONE_V1,
        "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    limits = host_limits(tree(tmp_path, groups, files))
    assert limits == (8 * GIB, "cgroup v1", 2.5, "cgroup v1")
    assert limits.slots == 3


def test_version_1_in_a_container_whose_path_is_not_mounted(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB)}
    limits = host_limits(tree(tmp_path, "4:memory:/docker/abc", files))
    assert (limits.memory_bytes, limits.memory_by) == (GIB, "cgroup v1")


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(5 * GIB),
        "sys/fs/cgroup/unified/job/cpu.max": "100000 100000",
    }
    limits = host_limits(tree(tmp_path, "4:memory:/job\n0::/job", files))
    assert limits == (5 * GIB, "cgroup v1", 1.0, "cgroup v2")


def test_affinity_and_ulimit_are_limits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process_id: {0, 3, 5}, raising=False)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (GIB, GIB))
    assert host_limits(tree(tmp_path, "", {})) == (GIB, "ulimit -v", 3.0, "affinity")
