"""Large arguments that are changed after the call, snapshots of them, and scattered data that has arrived."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster import Client, LocalCluster
from cluster.client import driver, mapping
from cluster.errors import ClusterError, ValueLost
from tests.processes.whole_cluster import Gate, until, wait_at

pytestmark = pytest.mark.timeout(30)

SIZE = 20_000


def first_of(array: np.ndarray, gate: object = None) -> int:  # type: ignore[type-arg]
    return int(array[0])


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


@pytest.fixture
def busy(local_cluster: LocalCluster, client: Client, gate: Gate) -> Iterator[object]:
    """Something that tasks can wait for, until the gate opens."""
    future = client.submit(wait_at, gate.path)
    gate.wait_until_reached()
    yield future
    gate.open()


def test_a_large_argument_that_was_changed_fails_its_task_and_says_what_to_do(
    client: Client, busy: object, gate: Gate
) -> None:
    array = np.zeros(SIZE)
    changed = client.submit(first_of, array, busy)
    array[0] = 5
    after = client.submit(first_of, array, busy)
    gate.open()
    with pytest.raises(ValueLost, match=r"a ndarray, was changed after the call") as caught:
        changed.result(10)
    assert any("copy=True" in note for note in caught.value.__notes__)
    assert after.result(10) == 5, "the same object, with what it held at that call"


def test_a_buffer_that_a_generator_fills_anew_is_noticed(client: Client) -> None:
    array = np.zeros(SIZE)

    def fill() -> Iterator[np.ndarray]:  # type: ignore[type-arg]
        for number in range(5):
            array[:] = number
            yield array

    assert client.gather(client.options(copy=True).map(first_of, fill()), timeout=10) == list(range(5))
    with pytest.raises(ValueLost, match="was changed"):
        client.gather(client.map(first_of, fill()), timeout=10)


def test_a_snapshot_is_taken_at_the_call_and_let_go_of_after_it(client: Client, busy: object, gate: Gate) -> None:
    array = np.zeros(SIZE)
    copying = client.options(copy=True)
    futures = [copying.submit(first_of, array, busy)]
    array[0] = 1
    futures += [copying.submit(first_of, array, busy), copying.submit(first_of, array, busy)]
    assert len(client._submission._offered) == 2, "the same content is kept once"
    gate.open()
    assert client.gather(futures, timeout=10) == [0, 1, 1]
    del futures
    assert client.submit(abs, -1).result(10) == 1
    assert not client._submission._offered and not client._submission._offered_by_identity


def test_copy_is_a_yes_or_a_no(client: Client) -> None:
    with pytest.raises(TypeError, match="copy must be"):
        client.options(copy="deep")  # type: ignore[arg-type]


def test_scattered_data_is_with_the_workers_when_the_call_returns() -> None:
    with LocalCluster(n_workers=2, slots=1) as cluster, Client(cluster) as client:
        until(lambda: len(client.scheduler_info()["workers"]) == 2, "both workers have joined")
        everywhere = client.scatter(np.ones(SIZE), broadcast=True)
        spread = client.scatter([np.ones(SIZE), np.zeros(SIZE)])
        holders = client.who_has([everywhere, *spread])
        assert sorted(map(len, holders.values())) == [1, 1, 2]
        (name, *_) = [worker["name"] for worker in client.scheduler_info()["workers"].values()]
        there = client.scatter(np.ones(SIZE), workers=name)
        assert len(client.who_has(there)[there.key]) == 1


class Counted:
    """Counts how often it is pickled."""

    times = 0

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        Counted.times += 1
        return bytes, (b"x" * 100_000,)


def test_scattered_data_is_pickled_once(client: Client) -> None:
    Counted.times = 0
    scattered = client.scatter([Counted(), Counted()])
    assert Counted.times == 2
    assert client.gather(client.map(len, scattered), timeout=10) == [100_000] * 2
    assert not client._submission._bytes


def test_scattering_to_a_worker_that_is_not_there_is_an_error_and_keeps_nothing(client: Client) -> None:
    with pytest.raises(ClusterError, match="names the workers unknown, which are not here; those connected are local"):
        client.scatter(np.ones(SIZE), workers=["unknown"])
    assert client.submit(abs, -1).result(10) == 1
    assert not client._submission._offered


def test_scattering_where_no_worker_is_returns_at_once() -> None:
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        assert client.scatter(1, broadcast=True).result(10) == 1


def test_it_is_sent_at_once_though_nobody_waits_and_somebody_just_did(
    local_cluster: LocalCluster, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background thread rests a while after somebody has waited; orders to send arguments are no time to rest."""
    monkeypatch.setattr(driver, "PARKED_SECONDS", 1000.0)
    with Client(local_cluster) as client:
        assert client.submit(abs, -1).result(10) == 1
        future = client.submit(wait_at, gate.path, np.zeros(SIZE))
        gate.wait_until_reached()
        gate.open()
        assert len(future.result(10)) == SIZE


def test_what_a_task_took_is_let_go_of_while_the_map_goes_on(
    local_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "PART_APART_BYTES", 1)
    monkeypatch.setattr(driver, "LATE_FLUSH_SECONDS", 1000.0)  # which does the same, if it comes to that
    with Client(local_cluster) as client:

        def arrays() -> Iterator[np.ndarray]:  # type: ignore[type-arg]
            for number in range(3):
                yield np.full(SIZE, number)
            until(lambda: len(client._submission._offered) <= 1, "the first ones are held no more")
            yield np.full(SIZE, 3)

        assert client.gather(client.map(first_of, arrays())) == [0, 1, 2, 3]


def test_hundreds_of_thousands_of_futures_are_one_argument(client: Client) -> None:
    """What names them to the worker takes more than 16 MB."""
    futures = client.map(abs, range(450_000))
    assert client.submit(len, futures).result(25) == 450_000
