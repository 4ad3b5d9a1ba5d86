"""Values that do not fit into a worker's memory, on real daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import Client, wait
from tests.processes.whole_cluster import ROOT, WholeCluster, until, whole_cluster

pytestmark = pytest.mark.timeout(120)

NUMBERS = 1_000_000  # of 8 bytes each
LIMIT = "120MB"
VALUES = 40  # 320 MB


def make(index: int) -> np.ndarray[Any, Any]:
    return np.full(NUMBERS, index, dtype=np.int64)


def make_counted(index: int, folder: str) -> np.ndarray[Any, Any]:
    """The same, and a file for each run."""
    (Path(folder) / f"{index}-{os.urandom(4).hex()}").touch()
    return make(index)


def total(*values: np.ndarray[Any, Any]) -> int:
    return sum(int(value.sum()) for value in values)


def report(client: Client) -> dict[str, Any]:
    (worker,) = client.scheduler_info()["workers"].values()
    figures: dict[str, Any] = worker["report"]
    return figures


def spilled_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("cluster-*/spill-*/s*"))


def event_kinds(cluster: WholeCluster) -> set[str]:
    """The kinds of events that the command shows."""
    command = [sys.executable, "-m", "cluster.cli.main", "events", "--json"]
    where = ["--address", cluster.address, "--directory", cluster.directory]
    shown = subprocess.run([*command, *where], capture_output=True, text=True, check=True)
    return {event["kind"] for event in json.loads(shown.stdout)["events"]}


def shared_bytes(cluster: WholeCluster) -> int:
    """What lies in shared memory; segments come and go meanwhile."""
    nbytes = 0
    for file in cluster.segments():
        with suppress(FileNotFoundError):
            nbytes += file.stat().st_size
    return nbytes


def start(cluster: WholeCluster) -> Client:
    cluster.add_workers(("--memory-limit", LIMIT))
    return cluster.client()


@pytest.mark.parametrize("compression", ["", "lz4", "zstd"])
def test_more_values_than_memory_are_kept_and_used_and_leave_nothing(tmp_path: Path, compression: str) -> None:
    if compression:
        pytest.importorskip({"lz4": "lz4.frame", "zstd": "zstandard"}[compression])
    with whole_cluster(workers=0, spill_directory=tmp_path, spill_compression=compression) as cluster:
        client = start(cluster)
        futures = client.map(make, range(VALUES))
        most = 0
        for future in futures:
            future.result(60)
            most = max(most, shared_bytes(cluster))
        assert most <= 120_000_000
        files = spilled_files(tmp_path)
        assert len(files) >= VALUES - 15
        # What these tasks take was spilled, for the most part.
        sums = [client.submit(total, futures[at], futures[-1 - at]) for at in range(VALUES // 2)]
        assert client.gather(sums) == [NUMBERS * (VALUES - 1)] * (VALUES // 2)
        assert int(futures[0].result(60)[-1]) == 0, "a client gets it too"
        del sums, future, futures
        until(lambda: not spilled_files(tmp_path) and not cluster.segments(), "the files are gone")
        until(lambda: report(client)["spilled_bytes"] == 0, "and the worker counts none")


def test_a_byte_that_changes_on_disk_makes_the_value_be_computed_again(tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "spill"
    runs.mkdir()
    folder.mkdir()
    with whole_cluster(workers=0, spill_directory=folder) as cluster:
        client = start(cluster)
        futures = client.map(make_counted, range(20), [str(runs)] * 20)
        wait(futures, timeout=60)
        until(lambda: report(client)["spilling_bytes"] == 0, "all is written")
        for file in spilled_files(folder):
            with open(file, "r+b") as opened:
                opened.seek(NUMBERS)
                (byte,) = opened.read(1)
                opened.seek(NUMBERS)
                opened.write(bytes([byte ^ 128]))
        assert client.submit(total, *futures).result(90) == NUMBERS * sum(range(20))
        again = len(list(runs.iterdir())) - 20
        assert again >= 5
        assert "value_lost" in event_kinds(cluster)


def test_a_quota_keeps_values_in_memory_and_work_goes_on_when_some_are_released(tmp_path: Path) -> None:
    quota = 40_000_000
    settings = {"spill_directory": tmp_path, "spill_quota_bytes": quota}
    with whole_cluster(workers=0, **settings) as cluster:
        cluster.add_workers(("--memory-limit", LIMIT), slots=2)
        client = cluster.client()
        futures = [client.submit(make, index) for index in range(VALUES)]
        until(lambda: report(client).get("intake_paused"), "there is no room anywhere", 60)
        assert sum(file.stat().st_size for file in spilled_files(tmp_path)) <= quota
        assert "quota" in report(client)["spill_problem"]
        done = [future for future in futures if future.done()]
        assert 0 < len(done) < VALUES
        # Each that is let go of makes room for another.
        seen = 0
        for future in futures:
            seen += int(future.result(60)[0])
            future.release()
        assert seen == sum(range(VALUES))
        until(lambda: not report(client)["intake_paused"], "there is room again")
        assert {"memory_full", "memory_free"} <= event_kinds(cluster)


SMALL_MEMORY = """
    import sys
    from pathlib import Path
    from tests.processes import test_spilling
    test_spilling.use_a_small_shared_memory(Path(sys.argv[1]))
"""


def use_a_small_shared_memory(folder: Path) -> None:
    """In a mount namespace of its own, with a shared memory of 24 MB at that folder."""
    with whole_cluster(shared_memory_directory=folder) as cluster:
        client = cluster.client()
        futures = client.map(make, range(10))
        sums = [client.submit(total, future) for future in futures]
        assert client.gather(sums) == [NUMBERS * index for index in range(10)]
        assert int(client.gather(futures)[9][0]) == 9
        until(lambda: report(client)["disk_bytes"] > 5 * 8 * NUMBERS, "values are files on disk")
        assert sum("values go to disk" in line for line in cluster.workers[0].printed) == 1, "that was said once"
        print("all went on")


SMALL_DISK = """
    import os, sys
    from pathlib import Path
    from tests.processes import test_spilling
    test_spilling.fill_a_small_disk(Path(sys.argv[1]))
"""


def fill_a_small_disk(folder: Path) -> None:
    """In a mount namespace of its own, with a file system of 48 MB at that folder."""
    with whole_cluster(workers=0, spill_directory=folder) as cluster:
        client = start(cluster)
        futures = [client.submit(make, index) for index in range(VALUES)]
        until(lambda: report(client).get("intake_paused"), "the disk is full", 60)
        assert str(folder) in report(client)["spill_problem"], report(client)
        seen = 0
        for future in futures:
            seen += int(future.result(60)[0])
            future.release()
        assert seen == sum(range(VALUES))
        print("all went on")


def in_a_small_file_system(folder: Path, megabytes: int, program: str) -> None:
    """Run a program with a small file system mounted at that folder, in a namespace that ends with it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root on Linux alone")
    mount = f'mount -t tmpfs -o size={megabytes}m none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", str(folder), sys.executable, textwrap.dedent(program)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    if "unshare failed" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip(f"no namespace for mounts here: {ended.stderr.strip()}")
    assert "all went on" in ended.stdout, ended.stdout + ended.stderr


def test_a_full_disk_pauses_the_worker_says_which_and_loses_nothing(tmp_path: Path) -> None:
    in_a_small_file_system(tmp_path, 48, SMALL_DISK)


def test_where_shared_memory_is_small_values_are_files_and_that_is_said_once(tmp_path: Path) -> None:
    in_a_small_file_system(tmp_path, 24, SMALL_MEMORY)
