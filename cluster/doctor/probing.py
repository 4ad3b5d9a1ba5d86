"""Looks at this machine, and at the cluster if one is there; changes nothing."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, Final

import psutil

from cluster import config
from cluster.certificate import CERTIFICATE_FILE, load_certificate, read_expiry
from cluster.client.inquiry import Inquiry
from cluster.doctor.findings import Cluster, Findings, Folder
from cluster.errors import ClusterError, SettingError
from cluster.installed import installed_versions
from cluster.private_files import read_private_file
from cluster.secret import SECRET_FILE, load_or_create_secret
from cluster.storage.host_limits import group_memory_used_bytes, host_limits
from cluster.storage.segments import abandoned_bytes, lies_in_memory
from cluster.storage.spill import default_spill_parent
from cluster.transport.blocking import BlockingConnection

__all__ = ["look"]

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
WORKERS_ASKED: Final = 64
WORKER_ANSWER_SECONDS: Final = 2.0


def look(address: str | None = None, directory: Path | None = None) -> Findings:
    """Everything that `checks` judges. The cluster is the one at that address, or where the settings say."""
    settings_problem = ""
    try:
        settings = config.load(address=address, directory=directory)
    except SettingError as error:
        settings, settings_problem = config.Settings(), str(error)
    looked_at = address or settings.address or f"tcp://127.0.0.1:{settings.scheduler_port}"
    cluster: Cluster | None = None
    cluster_problem = ""
    secret_problem = _secret_problem(settings.directory)
    certificate_problem, certificate_until = _certificate(settings.directory)
    try:
        cluster = None if secret_problem else _ask(looked_at, settings)
        cluster_problem = "it was not asked, for lack of a secret" if secret_problem else ""
    except ClusterError as error:
        cluster_problem = str(error)
    memory = psutil.virtual_memory()
    limits = host_limits()
    return Findings(
        versions=installed_versions(),
        settings_problem=settings_problem,
        secret_problem=secret_problem,
        certificate_problem=certificate_problem,
        certificate_until=certificate_until,
        today=date.today(),
        unreachable_workers=_unreachable(cluster, settings),
        address=looked_at,
        expected=bool(address or settings.address),
        cluster=cluster,
        cluster_problem=cluster_problem,
        port=settings.scheduler_port,
        port_user=_port_user(settings.scheduler_port),
        cores=os.cpu_count() or 1,
        cores_allowed=limits.cores,
        thread_variables={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        open_files_limit=_limit(resource.RLIMIT_NOFILE) or 1 << 20,
        processes_limit=_limit(resource.RLIMIT_NPROC),
        processes=_own_processes(),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        container_memory_bytes=limits.memory_bytes if limits.memory_by.startswith("cgroup") else None,
        container_memory_used_bytes=group_memory_used_bytes(),
        shared_memory=_folder(settings.shared_memory_directory),
        disk=_folder(settings.spill_directory or default_spill_parent(Path(tempfile.gettempdir()))),
        limits=limits,
    )


def _secret_problem(directory: Path) -> str:
    if not (directory / SECRET_FILE).exists():
        return ""  # it is made at the first start
    try:
        load_or_create_secret(directory)
    except SettingError as error:
        return str(error)
    return ""


def _certificate(directory: Path) -> tuple[str, date | None]:
    """Why the certificate cannot be used, and until when it is valid; it is not made here."""
    file = directory / CERTIFICATE_FILE
    if not file.exists():
        return "", None
    try:
        text = read_private_file(file, "certificate") or ""
        load_certificate(file, text)
    except (SettingError, OSError) as error:
        return str(error), None
    return "", read_expiry(text)


def _unreachable(cluster: Cluster | None, settings: config.Settings) -> dict[str, str]:
    """Workers that this process cannot connect to, and why; of very many, only the first are tried."""
    if cluster is None:
        return {}
    secret = load_or_create_secret(settings.directory)

    def problem(address: str) -> str:
        try:
            seconds = WORKER_ANSWER_SECONDS
            BlockingConnection.connect(address, secret, "client", ("worker",), timeout_seconds=seconds).close()
        except ClusterError as error:
            return str(error)
        return ""

    addresses = [worker["address"] for worker in cluster.workers[:WORKERS_ASKED]]
    with ThreadPoolExecutor(WORKERS_ASKED) as threads:
        problems = zip(addresses, threads.map(problem, addresses), strict=True)
        return {address: said for address, said in problems if said}


def _ask(address: str, settings: config.Settings) -> Cluster:
    with Inquiry(address, settings) as scheduler:
        status = scheduler.ask("status")
        workers: list[dict[str, Any]] = scheduler.ask("workers")
        before, started = time.time(), time.monotonic()
        there = float(scheduler.ask("clock"))
        round_trip_seconds = time.monotonic() - started
    return Cluster(
        address=address,
        versions=status["versions"],
        workers=workers,
        clock_ahead_seconds=there - before - round_trip_seconds / 2,
        round_trip_seconds=round_trip_seconds,
    )


def _port_user(port: int) -> str | None:
    if port == 0:
        return None
    with socket.socket() as probe:
        # As a scheduler would: a port that only lingers from a connection that has ended counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return None
        except PermissionError:
            return "the system alone: ports below 1024 need its leave"
        except OSError:
            return _listener(port)


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            has_port = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if has_port and connection.pid:
                return f"process {connection.pid}, {psutil.Process(connection.pid).name()}"
    except psutil.Error:
        return "a process that this user may not see"
    return "a process of another user, or outside this container"


def _limit(what: int) -> int | None:
    soft = resource.getrlimit(what)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _own_processes() -> int:
    own = os.getuid()
    count = 0
    for process in psutil.process_iter():
        try:
            count += process.uids().real == own
        except psutil.Error:  # it has just ended
            continue
    return count


def _folder(path: Path) -> Folder:
    if not path.is_dir():
        return Folder(path=str(path), problem=f"{path} is no folder")
    if not os.access(path, os.W_OK | os.X_OK):
        return Folder(path=str(path), problem=f"{path} cannot be written by this user")
    usage = shutil.disk_usage(path)
    return Folder(
        path=str(path),
        size_bytes=usage.total,
        free_bytes=usage.free,
        in_memory=lies_in_memory(path),
        abandoned_bytes=abandoned_bytes(path),
    )
