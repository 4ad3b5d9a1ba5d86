"""Values of 200 MB through every way that there is, with the real client on real daemons."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

from cluster import Client
from tests.processes.whole_cluster import ROOT, WholeCluster, own_bytes, until, whole_cluster

pytestmark = pytest.mark.timeout(60)

NUMBERS = 25_000_000  # of 8 bytes each
ALLOWED_GROWTH_BYTES = 48 << 20  # a quarter of one value: pieces under way, and what the allocator keeps


def make() -> np.ndarray[Any, Any]:
    return np.arange(NUMBERS, dtype=np.int64)


def add_one(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values += 1  # it is the task's own copy: nobody else sees this
    return values


def check(values: np.ndarray[Any, Any], first: int) -> bool:
    return bool(values[0] == first and values[-1] == first + NUMBERS - 1 and len(values) == NUMBERS)


def is_same(values: np.ndarray[Any, Any], first: int) -> bool:
    return bool(np.array_equal(values, np.arange(first, first + NUMBERS)))


def daemons_bytes(cluster: WholeCluster) -> list[int]:
    return [own_bytes(daemon.process.pid) for daemon in (cluster.scheduler, *cluster.workers)]


def assert_nothing_is_left(cluster: WholeCluster, client: Client, before: list[int]) -> None:
    until(lambda: not cluster.segments(), "the segments are gone")
    until(lambda: client.scheduler_info()["tasks"] == 0, "the scheduler has forgotten all of it")
    growth = [after - start for after, start in zip(daemons_bytes(cluster), before, strict=True)]
    assert max(growth) < ALLOWED_GROWTH_BYTES, growth


def test_large_values_arrive_whole_and_leave_nothing() -> None:
    with whole_cluster(workers=2) as cluster:
        client = cluster.client()
        assert client.gather([client.submit(abs, -1, workers=name) for name in ("worker-0", "worker-1")]) == [1, 1]
        before = daemons_bytes(cluster)
        array = make()

        # An argument, and a result that is taken to the client.
        future = client.submit(add_one, array, workers="worker-0")
        assert is_same(future.result(30), 1)
        assert array[0] == 0
        # A result that the other worker fetches; the task that changes it changes its own copy alone.
        moved = client.submit(add_one, future, workers="worker-1")
        assert client.submit(check, moved, 2, workers="worker-1").result(30)
        assert client.submit(check, future, 1, workers="worker-0").result(30)
        assert len(client.who_has([future])[future.key]) == 2
        del future, moved
        assert_nothing_is_left(cluster, client, before)

        # Scattered, used on both workers, and gathered.
        scattered = client.scatter(array, broadcast=True)
        checks = [client.submit(is_same, scattered, 0, workers=name) for name in ("worker-0", "worker-1")]
        assert client.gather(checks, timeout=30) == [True, True]
        assert is_same(client.gather(scattered), 0)
        del scattered, checks
        assert_nothing_is_left(cluster, client, before)
        assert "Traceback" not in cluster.scheduler.text + "".join(worker.text for worker in cluster.workers)


FULL_MEMORY = """
    import sys
    import numpy as np
    from cluster import Client, LocalCluster

    with LocalCluster(n_workers=2, slots=1) as cluster, Client(cluster) as client:
        made = client.map(np.full, [500_000] * 6, range(6))
        sums = client.map(np.sum, made)
        assert client.gather(sums, timeout=30) == [500_000 * k for k in range(6)]
        assert [values[-1] for values in client.gather(made, timeout=30)] == list(range(6))
        scattered = client.scatter(np.ones(500_000))
        assert client.submit(np.sum, scattered).result(30) == 500_000
    print("all right")
"""


def test_where_shared_memory_is_tiny_values_go_to_disk_and_that_is_said_once() -> None:
    memory = os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"]
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount_tmpfs = f"mount -t tmpfs -o size=1m tmpfs {memory}"
    try:
        tried = subprocess.run([*mount, mount_tmpfs], capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        pytest.skip("there is no unshare to make a private mount with")
    if tried.returncode:
        pytest.skip(f"no private mount can be made here: {tried.stderr.strip()}")
    program = [sys.executable, "-c", textwrap.dedent(FULL_MEMORY)]
    command = [*mount, f'{mount_tmpfs} && exec "$@"', "sh", *program]
    found = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=ROOT)
    assert found.stdout == "all right\n", found.stderr
    said = [line for line in found.stderr.splitlines() if "values go to disk" in line]
    assert 1 <= len(said) <= 2, found.stderr  # once by each of the two workers
    assert "Traceback" not in found.stderr
