"""Clients of every engine, for the contract that all of them keep."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from cluster import Client, LocalCluster
from tests.surroundings import Surroundings

LOCAL = ("inline", "threads", "processes", "cluster")
FOREIGN = ("dask", "ray")
SLOTS = 2

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
def client_of(engine: str) -> Iterator[Client]:
    """A client of that engine, and what it needs."""
    if engine in FOREIGN and importlib.util.find_spec("distributed" if engine == "dask" else "ray") is None:
        pytest.skip(f"{engine} is not installed")
    surroundings = Surroundings()
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        surroundings.enter(environment)
        if engine == "cluster":
            client = Client(stack.enter_context(LocalCluster(slots=SLOTS)))
        elif engine == "dask":
            client = Client(stack.enter_context(dask_scheduler()))
        elif engine == "ray":
            files = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            environment.setenv("RAY_TMPDIR", files)  # Ray leaves its logs
            client = Client("ray://local")
        else:
            client = Client(engine=engine, slots=1 if engine == "inline" else SLOTS)
        stack.enter_context(client)
        yield client
    left = surroundings.leave()
    assert not left, f"left behind by the engine {engine}: {left}"
