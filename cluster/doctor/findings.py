"""What a look at the machine and the cluster brought, as plain values; `checks.py` says what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any

from cluster.storage.host_limits import HostLimits, host_limits

__all__ = ["Cluster", "Findings", "Folder"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the scheduler said."""

    address: str
    versions: dict[str, str]
    workers: list[dict[str, Any]]
    """As the query "workers" answers."""
    clock_ahead_seconds: float
    """How far its clock is ahead of ours, by the middle of one round trip …"""
    round_trip_seconds: float
    """… so that half of this is what the difference may be wrong by."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder where values may lie."""

    path: str
    problem: str = ""
    """Why it cannot be used; empty if it can."""
    size_bytes: int = 0
    free_bytes: int = 0
    in_memory: bool = False
    abandoned_bytes: int = 0
    """Values of processes that are dead."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that is looked at."""

    versions: dict[str, str]
    settings_problem: str = ""
    secret_problem: str = ""
    certificate_problem: str = ""
    certificate_until: date | None = None
    """Until when it is valid; None without one, or if it is of the user's own making."""
    today: date = date(2000, 1, 1)
    unreachable_workers: dict[str, str] = field(default_factory=dict)
    """Of the cluster's workers, by address, those that this process cannot connect to, and why."""
    address: str = ""
    """Where a scheduler was looked for …"""
    expected: bool = False
    """… and whether somebody named that address."""
    cluster: Cluster | None = None
    cluster_problem: str = ""
    port: int = 0
    port_user: str | None = None
    """Who has the scheduler's port, as far as that can be seen; None if it is free."""
    cores: int = 1
    cores_allowed: float = 1.0
    """By affinity and by the container's quota."""
    thread_variables: dict[str, str] = field(default_factory=dict)
    open_files_limit: int = 1 << 20
    processes_limit: int | None = None
    """None: unlimited."""
    processes: int = 0
    memory_bytes: int = 1 << 34
    memory_available_bytes: int = 1 << 34
    container_memory_bytes: int | None = None
    """What the container may use; None without a limit."""
    container_memory_used_bytes: int = 0
    shared_memory: Folder = Folder(path="/dev/shm")
    disk: Folder = Folder(path="/tmp")
    limits: HostLimits = field(default_factory=host_limits)
    """What a worker takes its defaults from."""
