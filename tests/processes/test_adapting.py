"""A local cluster that grows with its work and shrinks without losing anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import Client, Future, LocalCluster
from cluster.deploy import adapting
from tests.processes.whole_cluster import Gate, wait_at


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(adapting, "DOWN_AFTER_SECONDS", 1.0)
    yield


def two_that_run_at_once(client: Client, stack: ExitStack, folder: Path) -> tuple[list[Gate], list[Future]]:
    """Two tasks that have both begun, and what lets them end."""
    gates = [stack.enter_context(Gate(folder / f"gate-{number}")) for number in range(2)]
    futures = [client.submit(wait_at, gate.path) for gate in gates]
    for gate in gates:
        gate.wait_until_reached()
    return gates, futures


@pytest.mark.usefixtures("quick")
def test_workers_come_with_work_and_go_without_losing_values(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=0, slots=1, memory_limit="1GB") as cluster,
        Client(cluster) as client,
        ExitStack() as stack,
    ):
        cluster.adapt(minimum=0, maximum=2)
        gates, futures = two_that_run_at_once(client, stack, tmp_path)
        assert len(client.nthreads()) == 2
        kept = client.map(lambda number: bytes([number]) * 100_000, range(20))
        for gate in gates:
            gate.open()
        client.gather(futures)
        client.gather(kept)
        client.wait_for_workers(1)
        while len(cluster.workers) > 1:
            client.submit(abs, -1).result()  # keeps one of them needed, and the time goes on
        assert [value[:1] for value in client.gather(kept)] == [bytes([number]) for number in range(20)]
        cluster.adapt(minimum=2, maximum=2)
        client.wait_for_workers(2, timeout=60)


def test_a_worker_with_threads_counts_for_as_many_tasks_as_it_runs_at_once(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=0, slots=1, threads=2, memory_limit="1GB") as cluster,
        Client(cluster) as client,
        ExitStack() as stack,
    ):
        cluster.adapt(minimum=0, maximum=2)
        gates, futures = two_that_run_at_once(client, stack, tmp_path)
        assert len(cluster.workers) == 1
        for gate in gates:
            gate.open()
        client.gather(futures)


def test_bounds_that_mean_nothing_are_refused() -> None:
    with LocalCluster(n_workers=0) as cluster:
        with pytest.raises(ValueError, match="minimum must be a number of workers"):
            cluster.adapt(-1)
        with pytest.raises(ValueError, match="maximum must be at least 1 and at least minimum"):
            cluster.adapt(3, 2)
