"""What the findings mean: each check is ok, a warning or a failure, and what is not ok has a remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cluster.doctor.findings import Findings, Folder
from cluster.units import format_bytes, format_seconds

__all__ = ["Check", "check_all", "worst_outcome"]

OK: Final = "ok"
WARNING: Final = "warning"
FAILURE: Final = "failure"

CLOCK_SECONDS: Final = 1.0  # beyond it, times in logs of two hosts no longer tell what came first
OPEN_FILES_NEEDED: Final = 256
OPEN_FILES_WISHED: Final = 4096
PROCESSES_BESIDE_SLOTS: Final = 16
FREE_PART: Final = 0.1
SHARED_MEMORY_WISHED_BYTES: Final = 1 << 30
DISK_NEEDED_BYTES: Final = 100 << 20
DISK_WISHED_BYTES: Final = 5 << 30


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    outcome: str
    found: str
    remedy: str = ""


def check_all(findings: Findings) -> list[Check]:
    """Every check, in the order in which a person would go through them."""
    return [
        _versions_here(findings),
        _settings(findings),
        _secret(findings),
        _encryption(findings),
        _scheduler(findings),
        *_versions_there(findings),
        *_reachability(findings),
        *_clock(findings),
        *_port(findings),
        _cores(findings),
        _threads(findings),
        _memory(findings),
        *_container_memory(findings),
        _worker_defaults(findings),
        _shared_memory(findings.shared_memory),
        *_abandoned(findings),
        _disk(findings.disk),
        _open_files(findings),
        _processes(findings),
    ]


def worst_outcome(checks: Iterable[Check]) -> str:
    """The worst of the outcomes.

    >>> worst_outcome([Check("a", "ok", ""), Check("b", "warning", "", "do it")])
    'warning'
    """
    return max((check.outcome for check in checks), key=(OK, WARNING, FAILURE).index, default=OK)


def _versions_here(findings: Findings) -> Check:
    return Check("versions here", OK, _listed(findings.versions))


def _settings(findings: Findings) -> Check:
    if findings.settings_problem:
        return Check("settings", FAILURE, findings.settings_problem, "correct it, then see `cluster config`")
    return Check("settings", OK, "all are known and have sense")


def _secret(findings: Findings) -> Check:
    if findings.secret_problem:
        return Check("secret", FAILURE, findings.secret_problem, "do what the message says; nothing connects before")
    return Check("secret", OK, "this user's alone, or to be made at the first start")


def _encryption(findings: Findings) -> Check:
    until = findings.certificate_until
    if findings.certificate_problem:
        return Check("encryption", FAILURE, findings.certificate_problem, "remove the file to have a certificate made")
    if findings.cluster is not None and findings.cluster.address.startswith("insecure://"):
        remedy = "start scheduler and workers without --insecure, unless the network itself encrypts"
        return Check("encryption", WARNING, f"none with {findings.cluster.address}", remedy)
    if until is None:
        return Check("encryption", OK, "TLS 1.3 beyond this machine; the certificate is made when it is needed")
    if until < findings.today:
        remedy = "nobody checks its date; it is made anew when a scheduler or worker starts here"
        return Check("encryption", WARNING, f"the certificate was valid until {until}", remedy)
    return Check("encryption", OK, f"TLS 1.3 beyond this machine; the certificate is valid until {until}")


def _reachability(findings: Findings) -> list[Check]:
    """Whether values can come straight from the workers."""
    if findings.cluster is None or not findings.cluster.workers:
        return []
    unreachable = findings.unreachable_workers
    if not unreachable:
        return [Check("workers' addresses", OK, "all can be connected to")]
    found = f"{_some(list(unreachable))}: {next(iter(unreachable.values()))}"
    remedy = "open their ports, or start them with --host or --address so that others reach them"
    return [Check("workers' addresses", WARNING, found, remedy)]


def _scheduler(findings: Findings) -> Check:
    cluster = findings.cluster
    if cluster is not None:
        workers = f"{len(cluster.workers)} worker{'' if len(cluster.workers) == 1 else 's'}"
        found = f"{cluster.address} answers in {format_seconds(cluster.round_trip_seconds)}; {workers}"
        if not cluster.workers:
            return Check("scheduler", WARNING, found, f"start one: cluster-worker {cluster.address}")
        return Check("scheduler", OK, found)
    if findings.expected:
        remedy = "start it with cluster-scheduler, or correct --address or the setting `address`"
        return Check("scheduler", FAILURE, findings.cluster_problem, remedy)
    return Check("scheduler", OK, f"none at {findings.address}, and no other address was given")


def _versions_there(findings: Findings) -> list[Check]:
    """The scheduler holds nobody's values, so only its own version counts; a worker's packages all do."""
    cluster = findings.cluster
    if cluster is None:
        return []
    sides: list[tuple[str, dict[str, str], tuple[str, ...]]]
    sides = [("scheduler", cluster.versions, ("python", "cluster", "msgpack"))]
    sides += [(worker["name"], worker["versions"], tuple(findings.versions)) for worker in cluster.workers]
    differing: dict[str, list[str]] = {}
    for side, versions, names in sides:
        for name in names:
            here, there = findings.versions.get(name), versions.get(name)
            if here is not None and here != there:
                differing.setdefault(f"{name} {there or 'missing'} instead of {here}", []).append(side)
    if not differing:
        return [Check("versions there", OK, "as here")]
    found = "; ".join(f"{difference} ({_some(sides)})" for difference, sides in sorted(differing.items()))
    return [Check("versions there", WARNING, found, "install the same versions everywhere, or values may not load")]


def _clock(findings: Findings) -> list[Check]:
    cluster = findings.cluster
    if cluster is None:
        return []
    ahead = cluster.clock_ahead_seconds
    sure_seconds = max(0.0, abs(ahead) - cluster.round_trip_seconds / 2)
    found = f"the scheduler's is {format_seconds(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}"
    if sure_seconds > CLOCK_SECONDS:
        return [Check("clock", WARNING, found, "keep clocks by NTP (timedatectl set-ntp true) on all hosts")]
    return [Check("clock", OK, found)]


def _port(findings: Findings) -> list[Check]:
    if not findings.port:
        return []
    name = f"port {findings.port}"
    if findings.port_user is None:
        return [Check(name, OK, "free, for a scheduler on this machine")]
    if findings.cluster is not None and findings.cluster.address.endswith(f":{findings.port}"):
        return [Check(name, OK, f"the scheduler's ({findings.port_user})")]
    remedy = "if that is no scheduler, give the next one another port: cluster-scheduler --port, or scheduler_port"
    return [Check(name, WARNING, f"used by {findings.port_user}", remedy)]


def _slots(findings: Findings) -> int:
    return findings.limits.slots  # what a worker has unless it is told otherwise


def _cores(findings: Findings) -> Check:
    found = f"{findings.cores}"
    if findings.cores_allowed < 0.9 * findings.cores:
        found += f", of which this process may use {findings.cores_allowed:g}"
    return Check("cores", OK, found)


def _threads(findings: Findings) -> Check:
    """Variables that a user has set are passed on to slots as they are; where none is, workers divide the cores."""
    variables = findings.thread_variables
    if not variables:
        return Check("threads of BLAS and OpenMP", OK, "not set: each slot gets cores / slots")
    found = _listed(variables, "=")
    wrong = [name for name, value in variables.items() if not _is_count(value)]
    if wrong:
        return Check("threads of BLAS and OpenMP", WARNING, found, f"{', '.join(wrong)} should be a number; unset it")
    threads = max(int(value.split(",")[0]) for value in variables.values())
    if threads * _slots(findings) > findings.cores and threads > 1:
        slots = _slots(findings)
        found += f": {slots} slots of {threads} threads on {findings.cores} cores"
        remedy = f"unset {', '.join(variables)}, or start workers with --slots {max(1, findings.cores // threads)}"
        return Check("threads of BLAS and OpenMP", WARNING, found, remedy)
    return Check("threads of BLAS and OpenMP", OK, found)


def _is_count(text: str) -> bool:
    first = text.split(",")[0].strip()  # OMP_NUM_THREADS may be a list, a number for each level of nesting
    return first.isascii() and first.isdigit() and int(first) > 0


def _memory(findings: Findings) -> Check:
    total, available = findings.memory_bytes, findings.memory_available_bytes
    found = f"{format_bytes(available)} of {format_bytes(total)} available"
    if available < FREE_PART * total:
        return Check("memory", WARNING, found, "end what uses it, or the kernel may kill slots")
    return Check("memory", OK, found)


def _container_memory(findings: Findings) -> list[Check]:
    limit, used = findings.container_memory_bytes, findings.container_memory_used_bytes
    if limit is None:
        return []
    found = f"{format_bytes(used)} of {format_bytes(limit)} used"
    if used > (1 - FREE_PART) * limit:
        return [Check("container's memory", WARNING, found, "raise the limit, or the kernel may kill slots")]
    return [Check("container's memory", OK, found)]


def _worker_defaults(findings: Findings) -> Check:
    limits = findings.limits
    memory, slots = format_bytes(limits.worker_memory_bytes()), f"{limits.slots} slot{'' if limits.slots == 1 else 's'}"
    return Check("a worker's defaults", OK, f"{slots} ({limits.cores_by}), memory_limit {memory} ({limits.memory_by})")


def _shared_memory(folder: Folder) -> Check:
    name = "shared memory"
    if folder.problem:
        return Check(name, FAILURE, folder.problem, "set shared_memory_directory to a folder where you may write")
    found = f"{folder.path}: {format_bytes(folder.free_bytes)} of {format_bytes(folder.size_bytes)} free"
    elsewhere = "set shared_memory_directory to a place with more room, or release values"
    if not folder.in_memory:
        remedy = "values over 64 KiB pass through a disk; set shared_memory_directory to a tmpfs such as /dev/shm"
        return Check(name, WARNING, f"{found}; it is no memory but a disk", remedy)
    if folder.size_bytes < SHARED_MEMORY_WISHED_BYTES:
        remedy = "give the container more (docker run --shm-size 4g), or set shared_memory_directory"
        return Check(name, WARNING, found, remedy)
    if folder.free_bytes < FREE_PART * folder.size_bytes:
        return Check(name, WARNING, found, elsewhere)
    return Check(name, OK, found)


def _abandoned(findings: Findings) -> list[Check]:
    nbytes = findings.shared_memory.abandoned_bytes + findings.disk.abandoned_bytes
    if not nbytes:
        return [Check("leftover values", OK, "none")]
    found = f"{format_bytes(nbytes)} of processes that are dead"
    return [Check("leftover values", WARNING, found, "the next worker that starts here removes them")]


def _disk(folder: Folder) -> Check:
    name = "disk for values"
    if folder.problem:
        return Check(name, FAILURE, folder.problem, "set spill_directory to a folder where you may write")
    found = f"{folder.path}: {format_bytes(folder.free_bytes)} of {format_bytes(folder.size_bytes)} free"
    remedy = "make room, or set spill_directory to a folder on a larger disk: values go there when memory is full"
    if folder.free_bytes < DISK_NEEDED_BYTES:
        return Check(name, FAILURE, found, remedy)
    if folder.in_memory:
        return Check(name, WARNING, f"{found}; it lies in memory", "set spill_directory to a folder on a disk")
    if folder.free_bytes < DISK_WISHED_BYTES:
        return Check(name, WARNING, found, remedy)
    return Check(name, OK, found)


def _open_files(findings: Findings) -> Check:
    limit = findings.open_files_limit
    found = f"a process may open {limit}"
    remedy = f"raise it before starting daemons: ulimit -n {OPEN_FILES_WISHED}"
    needed = OPEN_FILES_NEEDED + 8 * _slots(findings)
    if limit < needed:
        return Check("open files", FAILURE, f"{found}; a worker with {_slots(findings)} slots needs {needed}", remedy)
    if limit < min(OPEN_FILES_WISHED, 4 * needed):
        return Check("open files", WARNING, found, remedy)
    return Check("open files", OK, found)


def _processes(findings: Findings) -> Check:
    if findings.processes_limit is None:
        return Check("processes", OK, f"{findings.processes} of this user, without a limit")
    left = findings.processes_limit - findings.processes
    found = f"{findings.processes} of {findings.processes_limit} that this user may have"
    if left < _slots(findings) + PROCESSES_BESIDE_SLOTS:
        remedy = "raise it before starting daemons (ulimit -u), or end processes; threads count too"
        return Check("processes", FAILURE if left < PROCESSES_BESIDE_SLOTS else WARNING, found, remedy)
    return Check("processes", OK, found)


def _listed(values: dict[str, str], separator: str = " ") -> str:
    return ", ".join(f"{name}{separator}{value}" for name, value in values.items())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
