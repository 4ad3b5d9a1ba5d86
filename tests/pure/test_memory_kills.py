"""The kernel's own count of processes that it ended for want of memory tells whose doing a death was."""

from __future__ import annotations

from pathlib import Path

from cluster.daemon.memory_kills import MemoryKills, counters


def test_each_death_needs_a_count_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("low 0\noom 3\noom_kill 3\n")
    kills = MemoryKills([file])
    assert not kills.one_more()
    file.write_text("low 0\noom 4\noom_kill 5\n")
    kills.look()  # the death is often learnt of after the next look
    assert kills.one_more()
    assert kills.one_more()
    assert not kills.one_more()


def test_what_was_counted_long_ago_explains_nothing(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("oom_kill 0\n")
    kills = MemoryKills([file])
    file.write_text("oom_kill 1\n")
    kills.look()
    kills.look()
    assert not kills.one_more()


def test_the_groups_counter_is_found_and_else_the_machines(tmp_path: Path) -> None:
    assert counters(tmp_path) == []
    groups, machine, mounted = tmp_path / "proc/self/cgroup", tmp_path / "proc/vmstat", tmp_path / "sys/fs/cgroup"
    groups.parent.mkdir(parents=True)
    machine.write_text("oom_kill 7\n")
    groups.write_text("0::/my/group\n")
    assert counters(tmp_path) == [machine]
    own = mounted / "my" / "group" / "memory.events"
    own.parent.mkdir(parents=True)
    own.write_text("oom_kill 0\n")
    assert counters(tmp_path) == [own]
    groups.write_text("4:memory:/not/mounted\n0::/\n")
    older = mounted / "memory" / "memory.oom_control"
    older.parent.mkdir()
    older.write_text("under_oom 0\noom_kill 0\n")
    assert counters(tmp_path) == [older]
