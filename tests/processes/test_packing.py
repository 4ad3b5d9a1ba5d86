"""Far more small results than fit into a worker's memory, on real daemons."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster import Client, Future, wait
from tests.processes.test_spilling import event_kinds, in_a_small_file_system, report, spilled_files
from tests.processes.whole_cluster import WholeCluster, until, whole_cluster

pytestmark = pytest.mark.timeout(180)

LIMIT = "120MB"
MOST_BYTES = 160_000_000  # what was freed just now is given back within a second or two
COUNT = 18_000
SIZES = (200, 1_000, 1_000, 5_000, 20_000, 60_000)  # 262 MB in all


def small(index: int) -> bytes:
    """A result that says whose it is, and that packs a little."""
    size = SIZES[index % len(SIZES)]
    return (b"%d " % index).ljust(size // 2, b".") + Random(index).randbytes(size - size // 2)


def small_counted(index: int, path: str) -> bytes:
    """The same, and a byte in a file for each run."""
    with open(path, "ab", buffering=0) as runs:
        runs.write(b".")
    return small(index)


def lengths(*values: bytes) -> int:
    return sum(map(len, values))


def held_bytes(cluster: WholeCluster) -> int:
    """What the first worker's process has of its own."""
    status = Path(f"/proc/{cluster.workers[0].process.pid}/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def start(cluster: WholeCluster) -> Client:
    cluster.add_workers(("--memory-limit", LIMIT))
    return cluster.client()


def all_counted(client: Client, runs: Path) -> Sequence[Future]:
    """All results made, each run counted in that file."""
    futures = client.map(small_counted, range(COUNT), [str(runs)] * COUNT)
    wait(futures, timeout=120)
    return futures


def figure(client: Client, name: str) -> Any:
    return report(client).get(name)


@pytest.mark.parametrize("compression", ["", "lz4", "zstd"])
def test_small_results_that_do_not_fit_are_kept_and_used_and_leave_nothing(tmp_path: Path, compression: str) -> None:
    if compression:
        pytest.importorskip({"lz4": "lz4.frame", "zstd": "zstandard"}[compression])
    with whole_cluster(workers=0, spill_directory=tmp_path, spill_compression=compression) as cluster:
        client = start(cluster)
        futures = client.map(small, range(COUNT))
        wait(futures, timeout=120)
        assert held_bytes(cluster) < MOST_BYTES
        assert len(spilled_files(tmp_path)) >= 15
        until(lambda: figure(client, "values") == COUNT, "all are counted")
        # A task takes some of all ages, a client gets all of them.
        assert client.submit(lengths, *futures[:: COUNT // 60]).result(60) == sum(
            map(len, map(small, range(0, COUNT, COUNT // 60)))
        )
        assert client.gather(futures) == list(map(small, range(COUNT)))
        assert held_bytes(cluster) < MOST_BYTES
        del futures
        until(lambda: not spilled_files(tmp_path) and not figure(client, "values"), "the files are gone")
        until(lambda: not figure(client, "spilled_bytes") and not figure(client, "disk_bytes"), "and none is counted")


def test_bytes_that_change_on_disk_make_those_values_be_computed_again(tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "spill"
    folder.mkdir()
    with whole_cluster(workers=0, spill_directory=folder) as cluster:
        client = start(cluster)
        futures = all_counted(client, runs)
        until(lambda: figure(client, "spilling_bytes") == 0, "all is written")
        for file in spilled_files(folder):
            with open(file, "r+b") as opened:
                opened.seek(100_000)
                opened.write(os.urandom(8))
        assert client.gather(futures) == list(map(small, range(COUNT)))
        again = runs.stat().st_size - COUNT
        assert 10 <= again <= COUNT // 4, f"{again} were computed again"
        assert "value_lost" in event_kinds(cluster)


def test_a_worker_that_dies_with_packs_takes_nothing_that_is_not_computed_again(tmp_path: Path) -> None:
    with whole_cluster(workers=0, spill_directory=tmp_path) as cluster:
        client = start(cluster)
        futures = client.map(small, range(COUNT))
        wait(futures, timeout=120)
        assert spilled_files(tmp_path)
        cluster.workers[0].process.kill()
        cluster.add_workers(("--memory-limit", LIMIT))
        assert client.gather(futures) == list(map(small, range(COUNT)))
        folders = {file.parent for file in spilled_files(tmp_path)}
        assert len(folders) == 1, "the files of the one that died are gone, and the other has its own"


def test_a_worker_that_is_retired_hands_on_its_packs_though_the_other_is_full_too(tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "spill"
    folder.mkdir()
    with whole_cluster(workers=0, spill_directory=folder) as cluster:
        client = start(cluster)
        futures = all_counted(client, runs)
        cluster.add_workers(("--memory-limit", LIMIT))
        client.retire_workers(["worker-0"])
        assert client.gather(futures) == list(map(small, range(COUNT)))
        assert runs.stat().st_size == COUNT, "none was computed again"
        assert spilled_files(folder), "and what was handed on is on disk again"


SMALL_DISK = """
    import sys
    from pathlib import Path
    from tests.processes import test_packing
    test_packing.fill_a_small_disk(Path(sys.argv[1]))
"""


def fill_a_small_disk(folder: Path) -> None:
    """In a mount namespace of its own, with a file system of 64 MB at that folder."""
    with whole_cluster(workers=0, spill_directory=folder) as cluster:
        client = start(cluster)
        futures = client.map(small, range(COUNT))
        until(lambda: figure(client, "intake_paused"), "the disk is full", 60)
        assert str(folder) in figure(client, "spill_problem")
        # What is let go of makes room for others.
        for index, future in enumerate(futures):
            assert future.result(60) == small(index)
            future.release()
        print("all went on")


def test_a_full_disk_pauses_the_worker_says_which_and_loses_no_small_value(tmp_path: Path) -> None:
    in_a_small_file_system(tmp_path, 64, SMALL_DISK)
