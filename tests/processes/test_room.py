"""A client with more arguments than the scheduler takes at once, on real daemons."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster import Client
from cluster.errors import CancelledError
from tests.processes.whole_cluster import Gate, own_bytes, until, wait_at, whole_cluster

pytestmark = pytest.mark.timeout(60)

PIECE_BYTES = 50_000
LIMIT_BYTES = 64 << 20


class Counted(np.ndarray):  # type: ignore[type-arg]
    """Knows how many of it there are, if whoever makes one says so."""

    alive = 0

    def __del__(self) -> None:
        Counted.alive -= 1


class Produced:
    """Makes items one by one, and knows how many were asked for."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.made = 0

    def __iter__(self) -> Iterator[bytes]:
        while self.left:
            self.left -= 1
            self.made += 1
            yield self.made.to_bytes(4, "little") * (PIECE_BYTES // 4)


def first_of(array: np.ndarray) -> int:  # type: ignore[type-arg]
    return int(array[0])


def first_number(piece: bytes) -> int:
    return int.from_bytes(piece[:4], "little")


def test_a_map_of_a_generator_waits_while_the_scheduler_has_enough(tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, whole_cluster() as cluster:
        client = cluster.client()
        blocker = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        before = own_bytes(cluster.scheduler.process.pid)
        produced = Produced(3000)  # 150 MB
        results: list[list[int]] = []
        mapper = threading.Thread(target=lambda: results.append(client.gather(client.map(first_number, produced))))
        mapper.start()
        until(lambda: not client._session.has_room, "the scheduler has enough", 30)
        assert produced.made * PIECE_BYTES < LIMIT_BYTES + (4 << 20)
        assert own_bytes(cluster.scheduler.process.pid) - before < LIMIT_BYTES + (32 << 20)
        assert client.scheduler_info()["tasks"] < 1500, "who asks is answered meanwhile"
        gate.open()
        mapper.join(50)
        assert results == [list(range(1, 3001))]
        assert blocker.result(10) is None


def test_a_map_of_a_generator_of_large_arguments_holds_few_of_them() -> None:
    def make() -> Iterator[np.ndarray]:  # type: ignore[type-arg]
        for at in range(30):
            array = np.full(1_000_000, at, dtype=np.int64).view(Counted)
            Counted.alive += 1
            highest.append(Counted.alive)
            yield array

    highest: list[int] = []
    with whole_cluster() as cluster:
        client = cluster.client()
        sums = client.map(first_of, make())
        assert client.gather(sums) == list(range(30))
    del sums
    assert Counted.alive <= 1  # the generator's last
    assert max(highest) <= 14, "64 MiB are 8 of them, and a part is 3"


def test_single_submits_wait_in_the_client_and_can_be_cancelled_dropped_and_waited_for(tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, whole_cluster() as cluster:
        client = cluster.client()
        client.submit(wait_at, gate.path).add_done_callback(lambda future: None)
        gate.wait_until_reached()
        futures = [client.submit(first_number, number.to_bytes(4, "little") * 12_500) for number in range(1600)]
        assert not client._session.has_room
        assert futures[-1].status == "pending"
        client.cancel(futures[-10:-5])
        assert [future.status for future in futures[-11:-4]] == ["pending", *["cancelled"] * 5, "pending"]
        dependent = client.submit(sum, [futures[-1], futures[-2]])
        del futures[100:1000]
        gate.open()
        assert dependent.result(30) == 1598 + 1599
        assert client.gather(futures[:-10]) == [*range(100), *range(1000, 1590)]
        with pytest.raises(CancelledError):
            futures[-6].result(10)
        del futures, dependent
        until(lambda: client.scheduler_info()["tasks"] == 0, "all is forgotten")


def test_a_map_of_a_list_returns_although_the_scheduler_has_enough(client: Client) -> None:
    # What is in memory already is packed at once: nobody waits for workers that may not be there yet.
    sums = client.map(len, [bytes(PIECE_BYTES) for _ in range(2000)], resources={"NOWHERE": 1})
    assert len(sums) == 2000 and not client._session.has_room
    client.cancel(sums)
    until(lambda: client._session.has_room, "cancelled tasks give their room back", 30)
