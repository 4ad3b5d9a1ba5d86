"""A client that cannot reach a worker: what it gets and gives passes through the scheduler, and it is told so."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from cluster import Client
from cluster.client.relay import relay_to
from cluster.errors import ConnectionLost
from cluster.secret import load_or_create_secret
from cluster.transport import blocking
from cluster.transport.addresses import parse_address
from cluster.transport.blocking import BlockingConnection
from cluster.wire import messages
from tests.processes.whole_cluster import WholeCluster, own_bytes, until, whole_cluster

pytestmark = pytest.mark.timeout(60)

NUMBERS = 2_000_000
HELD_LIMIT_BYTES = 16 << 20


def count_from(first: int, given: object = None) -> np.ndarray[Any, Any]:
    return np.arange(first, first + NUMBERS)


def worker_addresses(client: Client) -> list[str]:
    return list(client.scheduler_info()["workers"])


@pytest.fixture
def cluster() -> Iterator[WholeCluster]:
    with whole_cluster() as running:
        yield running


@pytest.fixture
def unreachable(cluster: WholeCluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the cluster's worker, which this process cannot connect to."""
    (address,) = worker_addresses(cluster.client())
    connect = socket.create_connection

    def refuse(where: tuple[str, int], *arguments: Any) -> socket.socket:
        if where == parse_address(address):
            raise ConnectionRefusedError(111, "there is a wall")
        return connect(where, *arguments)

    monkeypatch.setattr(blocking.socket, "create_connection", refuse)
    return address


@pytest.mark.parametrize("fast_paths", [True, False])
def test_results_and_arguments_pass_through_the_scheduler_and_that_is_said_once(
    cluster: WholeCluster,
    unreachable: str,
    fast_paths: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", str(fast_paths).lower())
    client = cluster.client()
    with caplog.at_level(logging.WARNING, "cluster.client"):
        assert np.array_equal(client.submit(count_from, 3).result(20), count_from(3))
        assert client.submit(np.sum, count_from(0)).result(20) == count_from(0).sum()
        scattered = client.scatter(count_from(1))
        assert client.submit(len, scattered).result(20) == NUMBERS
        values = client.gather(client.map(count_from, range(5)), timeout=30)
    assert [int(value[0]) for value in values] == list(range(5))
    (record,) = caplog.records
    assert unreachable in record.getMessage() and "pass through the scheduler" in record.getMessage()
    assert "there is a wall" in record.getMessage()
    said = [line for line in cluster.scheduler.printed if "pass through the scheduler" in line]
    assert len(said) <= 1, "however many connections there are"


def test_the_scheduler_holds_little_of_a_value_however_slowly_it_is_read(
    cluster: WholeCluster, unreachable: str
) -> None:
    client = cluster.client()
    future = client.submit(np.zeros, 12_000_000)
    client.submit(len, future).result(20)
    before = own_bytes(cluster.scheduler.process.pid)
    ((_, row, attempt, nbytes, _),) = client._complete(client._results._locate([future.number], None))
    secret = load_or_create_secret(client._settings.directory)
    connection = BlockingConnection.connect(
        unreachable, secret, "client", ("worker",), through=lambda: relay_to(unreachable, cluster.address, secret)
    )
    try:
        connection.send(messages.GetValues(1, [row, attempt]))
        (stream,) = connection.receive(10)
        assert stream == messages.ValueStream(1, row, attempt, nbytes)
        piece, read, most = memoryview(bytearray(1 << 20)), 0, 0
        while read < nbytes:
            read += connection.receive_raw(piece, 10)
            most = max(most, own_bytes(cluster.scheduler.process.pid) - before)
        assert most < HELD_LIMIT_BYTES
        assert client.submit(abs, -1).result(10) == 1, "and serves everybody else meanwhile"
    finally:
        connection.close()


def test_what_a_relay_was_for_ends_with_it(cluster: WholeCluster, unreachable: str) -> None:
    port = parse_address(unreachable)[1]

    def relayed() -> int:
        connections = psutil.Process(cluster.scheduler.process.pid).net_connections("tcp")
        return sum(1 for each in connections if each.raddr and each.raddr.port == port)

    with cluster.new_client() as client:
        assert client.submit(count_from, 1).result(20)[0] == 1
        assert relayed() == 1
    until(lambda: relayed() == 0, "the scheduler has let go of the worker")


@pytest.mark.kills_processes
def test_a_worker_that_dies_is_gone_for_relayed_clients_too(cluster: WholeCluster, unreachable: str) -> None:
    client = cluster.client()
    future = client.submit(count_from, 5)
    assert future.result(20)[0] == 5
    cluster.workers[0].signal(signal.SIGKILL)
    cluster.add_workers(())
    assert future.result(30)[0] == 5, "computed again"


def test_the_scheduler_connects_to_its_workers_only(cluster: WholeCluster) -> None:
    client = cluster.client()
    secret = load_or_create_secret(client._settings.directory)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConnectionLost, match=f"no worker listens at {address}"):
            relay_to(address, cluster.address, secret)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_nothing_but_data_goes_over_a_relay(cluster: WholeCluster) -> None:
    client = cluster.client()
    secret = load_or_create_secret(client._settings.directory)
    connection = BlockingConnection.connect(cluster.address, secret, "client", ("scheduler",))
    try:
        connection.send(messages.Relay(worker_addresses(client)[0]))
        assert connection.receive(10) == [messages.Relayed("")]
        connection.send(messages.Leave())
        with pytest.raises(ConnectionLost):
            connection.receive(10)
    finally:
        connection.close()
    assert client.submit(abs, -1).result(10) == 1
