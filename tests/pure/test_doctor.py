"""What `cluster doctor` makes of what it finds."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from cluster.doctor.checks import Check, check_all, worst_outcome
from cluster.doctor.findings import Cluster, Findings, Folder
from cluster.storage.host_limits import HostLimits

GIB = 1 << 30
VERSIONS = {"python": "3.11.7", "cluster": "0.1.0", "msgpack": "1.1", "numpy": "2.0"}
WORKER = {"name": "w1", "versions": VERSIONS}
CLUSTER = Cluster(
    address="tcp://127.0.0.1:8770",
    versions=VERSIONS,
    workers=[WORKER],
    clock_ahead_seconds=0.01,
    round_trip_seconds=0.001,
)
SOUND = Findings(
    versions=VERSIONS,
    address="tcp://127.0.0.1:8770",
    port=8770,
    cores=4,
    cores_allowed=4.0,
    open_files_limit=65536,
    shared_memory=Folder(path="/dev/shm", size_bytes=8 * GIB, free_bytes=8 * GIB, in_memory=True),
    disk=Folder(path="/tmp", size_bytes=100 * GIB, free_bytes=50 * GIB),
    limits=HostLimits(16 * GIB, "host", 4.0, "host"),
)


def found(findings: Findings, name: str) -> Check:
    """The one check of that name, all others being ok."""
    checks = check_all(findings)
    others = [check for check in checks if check.name != name and check.outcome != "ok"]
    assert not others
    (check,) = [check for check in checks if check.name == name]
    return check


def test_a_sound_machine_is_ok_with_a_cluster_and_without() -> None:
    for findings in (SOUND, replace(SOUND, cluster=CLUSTER, port_user="process 7, python")):
        checks = check_all(findings)
        assert {check.outcome for check in checks} == {"ok"}
        assert not any(check.remedy for check in checks)
        assert worst_outcome(checks) == "ok"


def test_what_a_container_allows_is_what_a_worker_takes() -> None:
    limits = HostLimits(2 * GIB, "cgroup v2", 1.5, "cgroup v1")
    findings = replace(SOUND, cores_allowed=1.5, limits=limits)
    assert found(findings, "cores").found == "4, of which this process may use 1.5"
    assert found(findings, "a worker's defaults").found == "2 slots (cgroup v1), memory_limit 1.60 GiB (cgroup v2)"


SHARED, DISK = SOUND.shared_memory, SOUND.disk
WRONG: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "settings": ({"settings_problem": "no such thing"}, "settings", "failure", "cluster config"),
    "secret": ({"secret_problem": "others may read it"}, "secret", "failure", "message says"),
    "a certificate that is none": (
        {"certificate_problem": "x.pem does not hold"}, "encryption", "failure", "remove the file"
    ),
    "a certificate that has run out": (
        {"certificate_until": date(2026, 1, 1), "today": date(2026, 1, 2)}, "encryption", "warning", "made anew"
    ),
    "nothing is encrypted": (
        {"cluster": replace(CLUSTER, address="insecure://10.0.0.5:8770")}, "encryption", "warning", "--insecure"
    ),
    "a worker that cannot be reached": (
        {"cluster": CLUSTER, "unreachable_workers": {"tls://10.0.0.7:9": "no answer"}},
        "workers' addresses", "warning", "open their ports",
    ),
    "an address that was given": (
        {"expected": True, "cluster_problem": "cannot connect"}, "scheduler", "failure", "cluster-scheduler"
    ),
    "no workers": ({"cluster": replace(CLUSTER, workers=[])}, "scheduler", "warning", "cluster-worker tcp://127.0.0.1"),
    "a worker's package": (
        {"cluster": replace(CLUSTER, workers=[{"name": "w", "versions": {**VERSIONS, "numpy": "1.26"}}])},
        "versions there", "warning", "same versions",
    ),
    "a clock ahead": ({"cluster": replace(CLUSTER, clock_ahead_seconds=5.0)}, "clock", "warning", "NTP"),
    "a clock behind": ({"cluster": replace(CLUSTER, clock_ahead_seconds=-5.0)}, "clock", "warning", "NTP"),
    "a port in use": ({"port_user": "process 9, nginx"}, "port 8770", "warning", "--port"),
    "threads": ({"thread_variables": {"OMP_NUM_THREADS": "2"}}, "threads of BLAS and OpenMP", "warning", "--slots 2"),
    "threads that are no number": (
        {"thread_variables": {"OMP_NUM_THREADS": "all"}}, "threads of BLAS and OpenMP", "warning", "a number"
    ),
    "memory": ({"memory_available_bytes": GIB}, "memory", "warning", "kill slots"),
    "the container's memory": (
        {"container_memory_bytes": GIB, "container_memory_used_bytes": GIB}, "container's memory", "warning", "raise"
    ),
    "no shared memory": (
        {"shared_memory": Folder(path="/x", problem="/x is no folder")}, "shared memory", "failure",
        "shared_memory_directory",
    ),
    "shared memory on a disk": (
        {"shared_memory": replace(SHARED, in_memory=False)}, "shared memory", "warning", "tmpfs"
    ),
    "little shared memory": (
        {"shared_memory": replace(SHARED, size_bytes=64 << 20, free_bytes=64 << 20)}, "shared memory", "warning",
        "--shm-size",
    ),
    "shared memory full": ({"shared_memory": replace(SHARED, free_bytes=GIB // 2)}, "shared memory", "warning", "room"),
    "leftovers": (
        {"shared_memory": replace(SHARED, abandoned_bytes=5)}, "leftover values", "warning", "next worker"
    ),
    "no folder for files": ({"disk": Folder(path="/x", problem="no")}, "disk for values", "failure", "spill_directory"),
    "a full disk": ({"disk": replace(DISK, free_bytes=1 << 20)}, "disk for values", "failure", "room"),
    "little disk": ({"disk": replace(DISK, free_bytes=GIB)}, "disk for values", "warning", "room"),
    "a disk in memory": ({"disk": replace(DISK, in_memory=True)}, "disk for values", "warning", "on a disk"),
    "few open files": ({"open_files_limit": 256}, "open files", "failure", "ulimit -n"),
    "rather few open files": ({"open_files_limit": 1024}, "open files", "warning", "ulimit -n"),
    "few processes": ({"processes_limit": 100, "processes": 82}, "processes", "warning", "ulimit -u"),
    "no processes": ({"processes_limit": 100, "processes": 99}, "processes", "failure", "ulimit -u"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(WRONG))
def test_what_is_wrong_is_found_alone_and_has_a_remedy(what: str) -> None:
    changes, name, outcome, remedy = WRONG[what]
    check = found(replace(SOUND, **changes), name)
    assert check.outcome == outcome
    assert remedy in check.remedy
    assert worst_outcome(check_all(replace(SOUND, **changes))) == outcome


def test_the_schedulers_packages_of_values_do_not_count_a_missing_one_at_a_worker_does() -> None:
    bare = {name: version for name, version in VERSIONS.items() if name != "numpy"}
    workers = [{"name": f"w{number}", "versions": bare} for number in range(5)]
    check = found(replace(SOUND, cluster=replace(CLUSTER, versions=bare, workers=workers)), "versions there")
    assert check.found == "numpy missing instead of 2.0 (w0, w1, w2 and 2 more)"


def test_a_slow_round_trip_does_not_make_a_clock_wrong() -> None:
    slow = replace(CLUSTER, clock_ahead_seconds=1.5, round_trip_seconds=2.0)
    assert found(replace(SOUND, cluster=slow), "clock").outcome == "ok"


def test_one_thread_for_each_slot_is_what_a_careful_user_sets() -> None:
    threads = {"OMP_NUM_THREADS": "1,2", "MKL_NUM_THREADS": "1"}
    assert found(replace(SOUND, thread_variables=threads), "threads of BLAS and OpenMP").outcome == "ok"
