"""Large values that several workers need, on a real cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cluster import Client, LocalCluster

LARGE_BYTES = 20_000_000


@pytest.fixture(scope="module")
def cluster_shape() -> tuple[int, int]:
    return 4, 1


@pytest.fixture
def client(local_cluster: LocalCluster) -> Iterator[Client]:
    with Client(local_cluster) as connected:
        yield connected


def count_and_look(data: bytes) -> tuple[int, bytes]:
    return len(data), data[-100:]


def names(client: Client) -> list[str]:
    return [worker["name"] for worker in client.scheduler_info()["workers"].values()]


def test_a_broadcast_reaches_every_worker_whole(client: Client) -> None:
    data = os.urandom(LARGE_BYTES)
    future = client.scatter(data, broadcast=True)
    assert [len(holders) for holders in client.who_has([future]).values()] == [4]
    used = [client.submit(count_and_look, future, workers=[name]) for name in names(client)]
    assert client.gather(used) == [(LARGE_BYTES, data[-100:])] * 4


def test_a_value_that_all_want_at_once_comes_to_all(client: Client) -> None:
    future = client.submit(os.urandom, LARGE_BYTES)
    used = [client.submit(count_and_look, future, workers=[name]) for name in names(client)]
    assert len(set(client.gather(used))) == 1
    assert [len(holders) for holders in client.who_has([future]).values()] == [4]


def test_replicate_makes_copies_of_many_large_values(client: Client) -> None:
    futures = client.map(os.urandom, [3_000_000 + number for number in range(12)])
    client.replicate(futures)
    assert [len(holders) for holders in client.who_has(futures).values()] == [4] * 12
