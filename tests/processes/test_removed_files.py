"""Values' files that somebody else removes: who cleans up temporary files, or systemd when its user logs out."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import Client, wait
from cluster.errors import StoreFull
from cluster.storage.segments import UNLOCKED_GRACE_SECONDS, SegmentDirectory, sweep
from tests.processes.whole_cluster import WholeCluster, until, whole_cluster

pytestmark = pytest.mark.timeout(60)

NUMBERS = 1_000_000


def make(index: int) -> np.ndarray[Any, Any]:
    return np.full(NUMBERS, index, dtype=np.int64)


def add(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return one + other


def total(*values: np.ndarray[Any, Any]) -> int:
    return sum(int(value[0]) for value in values)


# --------------------------------------------------------------------------- a directory


def test_a_directory_that_was_removed_is_made_again_at_its_place_and_locked(tmp_path: Path) -> None:
    with SegmentDirectory(tmp_path, "agent") as directory:
        gone = directory.create(5000)
        shutil.rmtree(directory.path.parent)
        path = directory.create(5000)
        assert os.path.exists(path)
        assert Path(path).parent == directory.path
        shutil.rmtree(directory.path)
        directory.keep()
        assert sorted(os.listdir(directory.path)) == ["lock"]
        assert sweep(tmp_path) == []
        directory.remove(gone)
        with pytest.raises(FileNotFoundError):
            directory.rename(path, is_free=True)
    assert not directory.path.exists()


def test_a_lock_that_was_removed_is_made_again_before_a_sweep_takes_the_directory(tmp_path: Path) -> None:
    with SegmentDirectory(tmp_path, "agent") as directory:
        path = directory.create(5000)
        (directory.path / "lock").unlink()
        directory.keep()
        long_ago = time.time() - 2 * UNLOCKED_GRACE_SECONDS
        os.utime(directory.path, (long_ago, long_ago))
        assert sweep(tmp_path) == []
        os.utime(directory.path / "lock", (long_ago, long_ago))
        directory.keep()
        assert (directory.path / "lock").stat().st_mtime > long_ago + 1, "who cleans up goes by the times"
        assert os.path.exists(path)


def test_where_a_directory_cannot_be_made_again_its_store_is_full(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    directory = SegmentDirectory(parent, "agent")
    shutil.rmtree(parent)
    with pytest.raises(StoreFull, match="cannot be made"):
        directory.create(5000)
    parent.mkdir()
    assert os.path.exists(directory.create(5000))
    directory.close()


# --------------------------------------------------------------------------- a cluster


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


@pytest.fixture
def cluster(shared_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WholeCluster]:
    """Two workers whose values lie in a folder of the test, and whose memory holds six of them together."""
    monkeypatch.setenv("CLUSTER__SHARED_MEMORY_DIRECTORY", str(shared_memory))
    (tmp_path / "spill").mkdir()
    with whole_cluster(workers=0, shared_memory_directory=shared_memory, spill_directory=tmp_path / "spill") as cluster:
        cluster.add_workers(*[("--memory-limit", "60MB")] * 2)
        yield cluster


def use_all(client: Client, futures: Any) -> None:
    """Values are used at their worker and at others, and brought to the client."""
    indices = list(range(len(futures)))
    assert [int(value[0]) for value in client.gather(futures, timeout=30)] == indices
    sums = client.map(add, futures[::2], futures[1::2])
    assert client.submit(total, *sums, *futures).result(30) == 2 * sum(indices)


@pytest.mark.parametrize("whole", [False, True])
def test_values_whose_segments_were_removed_are_computed_again(
    cluster: WholeCluster, shared_memory: Path, whole: bool
) -> None:
    client = cluster.client()
    futures = client.map(make, range(6))
    scattered = client.scatter([make(6), make(7)])
    wait(futures, timeout=30)
    (first,) = client.gather([futures[0]])
    for _ in range(2):
        assert cluster.segments()
        if whole:
            shutil.rmtree(shared_memory / f"cluster-{os.getuid()}")
        else:
            for file in cluster.segments():
                file.unlink()
        use_all(client, [*futures, *scattered])
        assert client.submit(total, make(8)).result(10) == 8
    assert first[-1] == 0, "who has it mapped keeps it"
    assert any("was removed by somebody else" in worker.text for worker in cluster.workers)
    assert len(client.nthreads()) == 2
    del futures, scattered, first
    until(lambda: not any(worker["held_bytes"] for worker in workers_of(client)), "all is released")


def workers_of(client: Client) -> list[dict[str, Any]]:
    return list(client.scheduler_info()["workers"].values())


def test_a_spill_directory_that_was_removed_costs_the_values_in_it_alone(cluster: WholeCluster, tmp_path: Path) -> None:
    client = cluster.client()
    futures = client.map(make, range(20))
    wait(futures, timeout=30)
    until(lambda: not any(worker["report"]["spilling_bytes"] for worker in workers_of(client)), "all is written")
    shutil.rmtree(tmp_path / "spill" / f"cluster-{os.getuid()}")
    use_all(client, futures)
    more = client.map(make, range(20))
    use_all(client, more)
    assert len(client.nthreads()) == 2
