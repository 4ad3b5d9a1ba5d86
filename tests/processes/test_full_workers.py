"""Large values for a worker that has no room for them, in memory and on disk, on real daemons."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import Client, Future
from tests.processes.test_spilling import event_kinds, total
from tests.processes.whole_cluster import WholeCluster, until, whole_cluster

pytestmark = pytest.mark.timeout(60)

HELD = 6
HELD_NUMBERS = 30_000_000 // 8
LARGE_NUMBERS = 130_000_000 // 8


def ones(count: int) -> np.ndarray[Any, Any]:
    return np.ones(count, dtype=np.int64)


class Full:
    """`worker-0` holds 180 MB of 300, and its processes take some; `worker-1` has what it likes."""

    def __init__(self, cluster: WholeCluster) -> None:
        self.cluster = cluster
        cluster.add_workers(("--memory-limit", "300MB"), ())
        self.client: Client = cluster.client()
        self.held: list[Future] = [self.client.submit(ones, HELD_NUMBERS, workers="worker-0") for _ in range(HELD)]
        for future in self.held:
            future.exception(20)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Full]:
    with whole_cluster(workers=0, spill_directory=tmp_path, spill_quota_bytes=1_000_000) as cluster:
        yield Full(cluster)


def test_a_task_whose_large_input_has_no_room_waits_for_a_release_and_keeps_nobody_from_anything(full: Full) -> None:
    client = full.client
    value = client.submit(ones, LARGE_NUMBERS, workers="worker-1")
    task = client.submit(total, value, workers="worker-0")
    until(lambda: "had no room for an input of it" in str(client.explain(task)), "it was refused")
    assert client.submit(total, ones(3), workers="worker-0").result(10) == 3
    assert not task.done()
    full.held.clear()
    assert task.result(20) == LARGE_NUMBERS


def test_what_is_scattered_to_a_full_worker_waits_for_a_release_and_holds_up_nothing_else(full: Full) -> None:
    client = full.client
    scattered: list[Future] = []
    waiting = threading.Thread(
        target=lambda: scattered.append(client.scatter(ones(LARGE_NUMBERS), workers=["worker-0"]))
    )
    waiting.start()
    until(lambda: "push_waits" in event_kinds(full.cluster), "that is an event")
    assert client.submit(total, client.scatter(ones(500_000), workers=["worker-0"])).result(10) == 500_000
    assert waiting.is_alive()
    full.held.clear()
    waiting.join(20)
    assert client.submit(total, scattered[0], workers="worker-0").result(10) == LARGE_NUMBERS
