"""What a network does to those who talk over it: delay, stall, cut, change; and what comes of the work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.hosts.cluster_on_hosts import ClusterOnHosts, RelayProcess
from tests.hosts.test_hosts import WORK
from tests.processes.whole_cluster import Gate

pytestmark = pytest.mark.timeout(120)

# Where the relay is; the port of a worker that announces the relay's host.
RELAY_HOST = 3
PORT = 9100

ONE_VALUE_TAKEN_ELSEWHERE = """
    import numpy

    def make(count):
        return numpy.arange(count, dtype="f8")

    def total(values):
        return float(values.sum())

    with Client(address, timeout=30) as client:
        client.wait_for_workers(2)
        value = client.submit(make, 1_000_000, workers=["worker-1"])
        wait([value])
        print("made", flush=True)
        assert client.submit(total, value, workers=["worker-2"]).result(60) == 999_999 * 500_000
        print("taken", flush=True)
"""


def worker_behind_relay(cluster: ClusterOnHosts) -> RelayProcess:
    """A worker on host 1 whose values are fetched through a relay, and one on host 2."""
    worker = cluster.start_worker(1, "--port", str(PORT), "--address", cluster.network[RELAY_HOST].address)
    worker.wait_for(" joined ")
    relay, _ = cluster.start_relay(RELAY_HOST, f"tls://{cluster.network[1].address}:{PORT}", PORT)
    cluster.start_workers(2)
    return relay


def test_with_delay_everything_works(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler()
    relay, address = cluster.start_relay(RELAY_HOST, cluster.address)
    relay.order("delay 0.02")
    for host in (1, 2):
        cluster.start_worker(host, address=address).wait_for(" joined ")
    cluster.address = address
    cluster.run_program(WORK, "2")


def test_with_packets_that_are_lost_late_and_out_of_order_everything_works(cluster: ClusterOnHosts) -> None:
    try:
        for host in (1, 2):
            cluster.network.impair(host, "delay", "20ms", "5ms", "loss", "1%", "reorder", "10%")
    except OSError as error:
        pytest.skip(f"the kernel impairs no links here, and the relay alone delays, stalls, cuts and corrupts: {error}")
    cluster.start_scheduler()
    cluster.start_workers(1, 2)
    cluster.run_program(WORK, "2")
    cluster.start_program(ONE_VALUE_TAKEN_ELSEWHERE).wait_for("taken", 60)


@pytest.mark.parametrize("protection", ["encrypted", "checksummed"])
@pytest.mark.parametrize("order", ["cut 3000000", "corrupt 3000000"])
def test_a_value_that_is_cut_or_changed_on_its_way_is_fetched_again(
    cluster: ClusterOnHosts, order: str, protection: str
) -> None:
    insecure = ("--insecure",) if protection == "checksummed" else ()
    cluster.start_scheduler("--host", cluster.network[0].address, *insecure)
    relay = worker_behind_relay(cluster)
    relay.order(order)
    program = cluster.start_program(ONE_VALUE_TAKEN_ELSEWHERE)
    program.wait_for("made")
    relay.wait_for("cut" if "cut" in order else "corrupted", 30)
    program.wait_for("taken", 30)
    assert program.end() == 0
    for worker in cluster.workers:
        assert worker.process.poll() is None, worker.text


def test_a_byte_changed_between_worker_and_scheduler_ends_that_worker_alone(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler()
    relay, address = cluster.start_relay(RELAY_HOST, cluster.address)
    harmed = cluster.start_worker(1, address=address)
    harmed.wait_for(" joined ")
    cluster.start_workers(2)
    relay.order("corrupt 100")
    program = cluster.start_program("""
        with Client(address) as client:
            assert client.gather(client.map(abs, range(-1000, 0)), timeout=30) == list(range(1000, 0, -1))
    """)
    assert program.end(40) == 0, program.text
    assert harmed.end() == 1
    assert "what it sent was changed on the way" in harmed.text


VALUE_BEHIND_A_STALLED_LINK = """
    import numpy

    def make(count):
        return numpy.arange(count, dtype="f8")

    def hold(path):
        open(path, "rb", 0).read(1)

    def total(values):
        return float(values.sum())

    with Client(address) as client:
        value = client.submit(make, 1_000_000)
        wait([value])
        holding = client.submit(hold, arguments[0], workers=["worker-1"])
        hold(arguments[1])
        assert client.submit(total, value, workers=["worker-2"]).result(60) == 999_999 * 500_000
        print("taken", flush=True)
        holding.result(10)
"""


@pytest.mark.slow
def test_a_peer_that_stalls_is_given_up_and_the_work_goes_on(cluster: ClusterOnHosts, own_directory: Path) -> None:
    cluster.start_scheduler()
    worker = cluster.start_worker(1, "--port", str(PORT), "--address", cluster.network[RELAY_HOST].address)
    worker.wait_for(" joined ")
    relay, _ = cluster.start_relay(RELAY_HOST, f"tls://{cluster.network[1].address}:{PORT}", PORT)
    with Gate(own_directory / "task") as task, Gate(own_directory / "program") as held:
        program = cluster.start_program(VALUE_BEHIND_A_STALLED_LINK, task.path, held.path)
        task.wait_until_reached()  # so the value is made again elsewhere, if it is
        held.wait_until_reached()
        cluster.start_workers(2)
        relay.order("stall")
        held.open()
        # Nobody is told: the one who waits for the value finds out, and it is had in another way.
        program.wait_for("taken", 60)
        task.open()
        assert program.end() == 0
    assert [each.process.poll() for each in cluster.workers] == [None, None]


def test_a_worker_whose_way_to_the_scheduler_stalls_is_lost_and_its_work_goes_on(
    cluster: ClusterOnHosts, own_directory: Path
) -> None:
    cluster.settings |= {"worker_timeout_seconds": 2.0, "heartbeat_interval_seconds": 0.2}
    cluster.start_scheduler()
    relay, address = cluster.start_relay(RELAY_HOST, cluster.address)
    lost = cluster.start_worker(1, address=address)
    lost.wait_for(" joined ")
    with Gate(own_directory / "gate") as held:
        program = cluster.start_program(HELD_TASK, held.path)
        held.wait_until_reached()
        cluster.start_workers(2)
        relay.order("stall")
        cluster.scheduler.wait_for("worker-1")
        held.wait_until_reached()  # by the second run, on the other worker
        held.open()
        program.wait_for("worker-2", 20)
        assert program.end() == 0
        relay.order("go")
        assert lost.end(20) == 1
        assert "the scheduler at" in lost.text


HELD_TASK = """
    import os

    def hold(path):
        with open(path) as gate:
            os.read(gate.fileno(), 1)
        return current().worker

    with Client(address) as client:
        client.wait_for_workers(1)
        print(client.submit(hold, arguments[0]).result(60), flush=True)
"""


def test_a_worker_that_is_cut_off_ends_when_it_is_back_and_may_be_started_again(
    cluster: ClusterOnHosts, own_directory: Path
) -> None:
    cluster.settings |= {"worker_timeout_seconds": 2.0, "heartbeat_interval_seconds": 0.2}
    cluster.start_scheduler()
    (lost,) = cluster.start_workers(1)
    with Gate(own_directory / "gate") as held:
        program = cluster.start_program(HELD_TASK, held.path)
        held.wait_until_reached()
        cluster.start_workers(2)
        cluster.network.cut(1)
        cluster.scheduler.wait_for("worker-1")
        held.wait_until_reached()
        held.open()
        program.wait_for("worker-2", 20)
        assert program.end() == 0
        assert lost.process.poll() is None
        cluster.network.join(1)
        assert lost.end(40) == 1
        assert "the scheduler at" in lost.text
        cluster.start_workers(1)


def test_a_client_whose_host_is_cut_off_for_a_while_loses_nothing(cluster: ClusterOnHosts, own_directory: Path) -> None:
    cluster.start_scheduler()
    cluster.start_workers(1)
    with Gate(own_directory / "gate") as held:
        program = cluster.start_program(HELD_TASK, held.path)
        held.wait_until_reached()
        cluster.network.cut(4)
        held.open()
        # The task has ended, and its end was sent to nobody, when the worker runs another client's task.
        cluster.run_program("with Client(address) as client: print(client.submit(abs, -1).result(10))", host=2)
        cluster.network.join(4)
        program.wait_for("worker-1", 30)
        assert program.end() == 0


def test_the_relay_changes_the_byte_that_it_was_told_to(cluster: ClusterOnHosts) -> None:
    speak = "import socket; s = socket.create_server(('', 0)); print(s.getsockname()[1]); s.accept()[0].send(bytes(10))"
    port = cluster.start(0, sys.executable, "-u", "-c", speak).wait_for(".+")
    relay, address = cluster.start_relay(RELAY_HOST, f"tcp://{cluster.network[0].address}:{port}")
    relay.order("corrupt 3")
    listen = "import socket, sys; print(socket.create_connection((sys.argv[1], sys.argv[2])).recv(10).hex())"
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    assert "00000001000000000000" in cluster.start(1, sys.executable, "-c", listen, host, port).wait_for(".+")
