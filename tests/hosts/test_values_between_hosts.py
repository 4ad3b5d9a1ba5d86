"""Values that pass from worker to worker over a network that spoils them, where TLS does not guard them."""

from __future__ import annotations

import json
import sys

import pytest

from tests.hosts.cluster_on_hosts import ClusterOnHosts

pytestmark = pytest.mark.timeout(120)

# Where the relay is; the port of the worker that announces the relay's host.
RELAY_HOST = 3
PORT = 9100

TAKEN_ELSEWHERE = """
    import hashlib, os

    def make(nbytes):
        return os.urandom(nbytes)

    def digest(data):
        return hashlib.sha256(data).hexdigest()

    with Client(address, timeout=30) as client:
        client.wait_for_workers(2)
        value = client.submit(make, int(arguments[0]), workers=["worker-1"])
        there = client.submit(digest, value, workers=["worker-1"]).result(30)
        print("made", flush=True)
        assert client.submit(digest, value, workers=["worker-2"]).result(60) == there
        [holders] = client.who_has([value]).values()
        print(len(holders), "have it", flush=True)
"""


@pytest.mark.parametrize(("nbytes", "order"), [(20_000_000, "corrupt 9000000"), (500_000, "corrupt 300000")])
def test_a_value_that_changes_on_its_way_is_fetched_again_and_that_is_an_event(
    cluster: ClusterOnHosts, nbytes: int, order: str
) -> None:
    address = cluster.network[RELAY_HOST].address
    cluster.start_scheduler("--host", cluster.network[0].address, "--insecure")
    worker = cluster.start_worker(1, "--port", str(PORT), "--address", address)
    worker.wait_for(" joined ")
    relay, _ = cluster.start_relay(RELAY_HOST, f"insecure://{cluster.network[1].address}:{PORT}", PORT)
    cluster.start_workers(2)
    relay.order(order)
    program = cluster.start_program(TAKEN_ELSEWHERE, str(nbytes))
    relay.wait_for("corrupted")
    program.wait_for("2 have it")
    assert program.end() == 0
    command = (sys.executable, "-m", "cluster.cli.main", "events", "--json", "--address", cluster.address)
    told = cluster.start(0, *command)
    assert told.end() == 0, told.text
    [damage] = [event for event in json.loads(told.text)["events"] if event["kind"] == "value_damaged"]
    assert "worker-1" in damage["text"] and "worker-2" in damage["text"] and address in damage["text"]


TAKEN_BY_THE_CLIENT = """
    import hashlib, os

    def make(nbytes):
        return os.urandom(nbytes)

    def digest(data):
        return hashlib.sha256(data).hexdigest()

    with Client(address, timeout=30) as client:
        client.wait_for_workers(1)
        value = client.submit(make, 500_000)
        there = client.submit(digest, value).result(30)
        print(digest(value.result(30)) == there, flush=True)
"""


def test_a_value_that_changes_on_its_way_to_a_client_is_fetched_again(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler("--host", cluster.network[0].address, "--insecure")
    worker = cluster.start_worker(1, "--port", str(PORT), "--address", cluster.network[RELAY_HOST].address)
    worker.wait_for(" joined ")
    relay, _ = cluster.start_relay(RELAY_HOST, f"insecure://{cluster.network[1].address}:{PORT}", PORT)
    relay.order("corrupt 300000")
    program = cluster.start_program(TAKEN_BY_THE_CLIENT)
    relay.wait_for("corrupted")
    program.wait_for("True")
    assert program.end() == 0, program.text


def test_a_value_that_is_cut_off_goes_on_where_it_stopped(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler("--host", cluster.network[0].address, "--insecure")
    worker = cluster.start_worker(1, "--port", str(PORT), "--address", cluster.network[RELAY_HOST].address)
    worker.wait_for(" joined ")
    relay, _ = cluster.start_relay(RELAY_HOST, f"insecure://{cluster.network[1].address}:{PORT}", PORT)
    cluster.start_workers(2)
    relay.order("cut 30000000")
    program = cluster.start_program(TAKEN_ELSEWHERE, "50000000")
    relay.wait_for("cut")
    program.wait_for("2 have it")
    assert program.end() == 0, program.text
