"""Slots that hold much memory, on real daemons."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cluster import Client, OutOfMemory
from tests.processes.whole_cluster import WholeCluster, until, whole_cluster

pytestmark = pytest.mark.timeout(90)

MIB = 1 << 20


@pytest.fixture
def cluster() -> Iterator[WholeCluster]:
    with whole_cluster(workers=0) as started:
        yield started


def start(cluster: WholeCluster, limit: str, slots: int = 1) -> Client:
    cluster.add_workers(("--memory-limit", limit), slots=slots)
    return cluster.client()


def leak(mebibytes: int) -> int:
    """Hold memory for ever; the process that does."""
    import builtins

    held = getattr(builtins, "leaked", [])
    held.append(np.ones(mebibytes * MIB, np.uint8))
    builtins.leaked = held  # type: ignore[attr-defined]
    return os.getpid()


def use_and_free(mebibytes: int) -> int:
    """Take memory in small pieces, so that it lies in the heap, and free it."""
    pieces = [bytes(4000) for _ in range(mebibytes * 256)]
    return len(pieces)


def take(mebibytes: int) -> int:
    """Need so much at once, and keep it until the end of the world."""
    held = []
    for _ in range(mebibytes // 50):
        held.append(np.ones(50 * MIB, np.uint8))
    return sum(map(len, held))


def hold(mebibytes: int) -> int:
    held = np.ones(mebibytes * MIB, np.uint8)
    ctypes.CDLL(None).usleep(60_000_000)
    return len(held)


def report(client: Client) -> dict[str, Any]:
    (worker,) = client.scheduler_info()["workers"].values()
    figures: dict[str, Any] = worker["report"]
    return figures


@pytest.mark.fast_path("only then freed memory is kept")
def test_an_idle_slot_gives_back_what_it_has_freed(cluster: WholeCluster) -> None:
    client = start(cluster, "8GB")
    client.submit(use_and_free, 200).result(30)
    until(lambda: report(client)["slot_bytes"] > 150 * MIB, "it keeps what it has freed")
    until(lambda: 0 < report(client)["slot_bytes"] < 80 * MIB, "it gave that back", 30)


def test_leaks_of_more_than_the_limit_recycle_the_slot_and_the_work_ends(cluster: WholeCluster) -> None:
    client = start(cluster, "400MB")
    processes = set()
    for _ in range(25):
        processes.add(client.submit(leak, 40).result(30))
    assert len(processes) > 1
    assert not [line for line in cluster.workers[0].printed if "died" in line]


def test_a_task_that_needs_more_than_there_is_fails_alone_with_the_figures(cluster: WholeCluster) -> None:
    client = start(cluster, "500MB", slots=2)
    other = client.map(abs, range(-100, 0))
    greedy = client.submit(hold, 700)
    error = greedy.exception(60)
    assert isinstance(error, OutOfMemory)
    assert (error.cause, error.out_of_memory_by) == ("out of memory", "worker")
    assert error.memory_limit_bytes == 500_000_000
    assert error.used_bytes > 500_000_000
    assert error.peak_memory_bytes > 400 * MIB
    assert error.attempts == 2
    assert client.gather(other) == list(range(100, 0, -1))


def use_for_a_while(mebibytes: int) -> int:
    held = np.ones(mebibytes * MIB, np.uint8)
    ctypes.CDLL(None).usleep(1_500_000)
    return len(held)


@pytest.mark.parametrize("memory", [None, "10MB"])
def test_tasks_that_do_not_fit_beside_each_other_end_one_after_the_other(
    cluster: WholeCluster, memory: str | None
) -> None:
    client = start(cluster, "500MB", slots=2)
    results = client.options(memory=memory).map(use_for_a_while, [300] * 4)
    assert client.gather(results, timeout=60) == [300 * MIB] * 4
    assert any("slot died" in str(result.story()) for result in results), "two of them began side by side"


def is_place_left_alone() -> bool:
    """Whether a large piece of the heap is where the one before it was, though small ones were asked for meanwhile."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    large = libc.malloc(24 * MIB)
    libc.malloc(5 * MIB)  # what is free behind it would be one piece with it
    libc.free(large)
    for _ in range(100):
        libc.malloc(5000)
    return bool(libc.malloc(24 * MIB) == large)


@pytest.mark.fast_path("the allocator is glibc's, with settings of our own")
def test_nothing_small_is_put_where_a_large_array_was(cluster: WholeCluster) -> None:
    assert start(cluster, "1 GB").submit(is_place_left_alone).result(30)
