"""Clients of every engine, for the contract that all of them keep."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from cluster import Client, LocalCluster
from tests.processes.whole_cluster import until
from tests.surroundings import Surroundings

LOCAL = ("inline", "threads", "processes", "cluster")
FOREIGN = ("dask", "ray", "ray-client")
SLOTS = 2
NEEDED = {"dask": ("distributed",), "ray": ("ray",), "ray-client": ("ray", "grpc")}

DASK_CLUSTER = """
import sys

import distributed

with distributed.LocalCluster(
    n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
) as dask_cluster:
    print(dask_cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@contextmanager
def dask_scheduler() -> Iterator[str]:
    """A Dask cluster in a process of its own: the address of its scheduler, for a client."""
    with (
        tempfile.TemporaryDirectory() as scratch,  # Dask leaves files of locks where it puts temporary ones
        subprocess.Popen(
            [sys.executable, "-c", DASK_CLUSTER],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": scratch},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        yield process.stdout.readline().strip().replace("tcp://", "dask://")


@contextmanager
def ray_head(files: str) -> Iterator[str]:
    """A Ray cluster in processes of its own: the address of its client port."""
    ports = free_ports(2)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={files}"]
    command += [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--node-ip-address=127.0.0.1"]
    command += [f"--num-cpus={SLOTS}", "--include-dashboard=false", "--object-store-memory=200000000"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until(lambda: answers(ports[1]), "Ray's client port does not open", seconds=90)
            yield f"ray://127.0.0.1:{ports[1]}"
        finally:
            process.terminate()


def free_ports(count: int) -> list[int]:
    """Ports below the range that Ray gives to its workers."""
    sockets = [socket.socket() for _ in range(count)]
    found: list[int] = []
    for port in range(7_000, 10_000):
        with suppress(OSError):
            sockets[len(found)].bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    for each in sockets:
        each.close()
    return found


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def client_of(engine: str) -> Iterator[Client]:
    """A client of that engine, and what it needs."""
    for module in NEEDED.get(engine, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    surroundings = Surroundings()
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        surroundings.enter(environment)
        environment.setenv("RAY_AUTH_MODE", "disabled")  # else a token in the user's home has a meaning
        if engine == "cluster":
            client = Client(stack.enter_context(LocalCluster(slots=SLOTS)))
        elif engine == "dask":
            client = Client(stack.enter_context(dask_scheduler()))
        elif engine == "ray":
            files = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            environment.setenv("RAY_TMPDIR", files)  # Ray leaves its logs
            client = Client("ray://local")
        elif engine == "ray-client":
            files = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            client = Client(stack.enter_context(ray_head(files)))
        else:
            client = Client(engine=engine, slots=1 if engine == "inline" else SLOTS)
        stack.enter_context(client)
        yield client
    left = surroundings.leave()
    assert not left, f"left behind by the engine {engine}: {left}"
