"""A cluster over several hosts: what crosses the network is encrypted, and only who has the secret takes part."""

from __future__ import annotations

import json
import re
import signal
import sys
import textwrap

import psutil
import pytest

from tests.hosts.cluster_on_hosts import ClusterOnHosts
from tests.hosts.namespaces import why_not
from tests.processes.whole_cluster import Daemon

pytestmark = pytest.mark.timeout(90)

WORK = """
    import numpy

    def chunk(i):
        return numpy.full(100_000, i, "f8")

    def total(chunks):
        return sum(float(c.sum()) for c in chunks)

    with Client(address) as client:
        client.wait_for_workers(int(arguments[0]))
        chunks = client.map(chunk, range(12))
        assert client.submit(total, chunks).result(30) == 66 * 100_000
        assert [c[0] for c in client.gather(chunks)] == list(range(12))
        assert client.gather(client.map(abs, range(-1000, 0))) == list(range(1000, 0, -1))
        assert client.submit(total, [client.scatter(numpy.ones(2_000_000))]).result(30) == 2_000_000
        print(sorted(client.scheduler_info()["workers"]))
"""


def test_scheduler_workers_and_client_each_on_a_host(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler()
    cluster.start_workers(1, 2, 3)
    assert re.fullmatch(r"tls://10\.77\.0\.1:\d+", cluster.address)
    said = cluster.run_program(WORK, "3")
    assert re.fullmatch(r"\['tls://10.77.0.2:\d+', 'tls://10.77.0.3:\d+', 'tls://10.77.0.4:\d+'\]\n", said)
    cluster.scheduler.signal(signal.SIGTERM)
    assert cluster.scheduler.end() == 0
    assert [worker.end() for worker in cluster.workers] == [0, 0, 0]
    for daemon in (cluster.scheduler, *cluster.workers):
        assert "Traceback" not in daemon.text
        assert "WARNING" not in daemon.text


def test_over_ipv6_too(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler("--host", "::")
    assert re.fullmatch(r"tls://\[fd77::1\]:\d+", cluster.address)
    cluster.start_workers(1, 2)
    assert re.fullmatch(r"\['tls://\[fd77::2\]:\d+', 'tls://\[fd77::3\]:\d+'\]\n", cluster.run_program(WORK, "2"))


def test_the_printed_lines_work_in_another_machines_terminal(cluster: ClusterOnHosts) -> None:
    scheduler = cluster.start_scheduler("--host", "0.0.0.0")
    line = scheduler.wait_for(r"start workers with: +(cluster-worker .*)$")
    copying = scheduler.wait_for(r"^  (mkdir .*)$")
    own = str(cluster.directory(0))
    assert f"mkdir -p -m 700 {own} && scp -p " in copying
    assert copying.endswith(f"@10.77.0.1:{own}/secret {own}/")
    cluster.copy_secret(1)
    own_line = line.replace("cluster-worker", f"{sys.executable} -m cluster.cli.worker").replace(
        own, str(cluster.directory(1))
    )
    cluster.start(1, "sh", "-c", f"exec {own_line} --slots 1").wait_for(" joined ")
    # On the scheduler's own machine, the same line; and by loopback nothing needs to be encrypted.
    cluster.start_worker(0).wait_for(" joined ")
    port = cluster.address.rpartition(":")[2]
    cluster.start_worker(0, "--name", "other", address=f"tcp://127.0.0.1:{port}").wait_for(" joined ")
    assert cluster.address in scheduler.wait_for(".*where no other machine reaches it.*")
    with_loopback = WORK.replace("Client(address)", f'Client("tcp://127.0.0.1:{port}")')
    cluster.run_program(with_loopback, "3", host=0)


def test_what_others_are_told_may_be_another_name(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler("--host", cluster.network[0].address, "--address", "10.77.0.1")
    worker = cluster.start_worker(1, "--host", "localhost")
    assert worker.wait_for(r" at (\S+) joined ").startswith("tcp://127.0.0.1:")
    worker = cluster.start_worker(2, "--host", "0.0.0.0", "--address", "node-two.example")
    assert worker.wait_for(r" at (\S+) joined ").startswith("tls://node-two.example:")


def test_a_worker_with_another_secret_is_refused_with_one_line_on_each_side(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler()
    command = (sys.executable, "-m", "cluster.cli.worker", cluster.address)
    worker = cluster.start(1, *command)
    assert worker.end() == 2
    assert len(worker.printed) == 1
    assert "copy the file `secret`" in worker.text
    assert "refused a connection from 10.77.0.2: the peer has another secret" in cluster.scheduler.wait_for(
        ".*refused.*"
    )


def test_who_does_not_encrypt_is_refused_from_another_host(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler()
    plain = cluster.address.replace("tls://", "insecure://")
    worker = cluster.start_worker(1, address=plain)
    assert worker.end() == 2
    assert "it takes encrypted connections only; write tls://" in worker.printed[-1]
    line = cluster.scheduler.wait_for(".*refused.*")
    assert "from 10.77.0.2: it does not encrypt" in line


def test_encryption_is_switched_off_only_by_name_and_each_daemon_warns(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler("--host", cluster.network[0].address, "--insecure")
    assert cluster.address.startswith("insecure://10.77.0.1:")
    assert "who listens on the network can read" in cluster.scheduler.wait_for(".*nothing is encrypted.*")
    workers = cluster.start_workers(1, 2)
    said = cluster.run_program(WORK, "2")
    assert said.count("insecure://") == 2
    assert all("nothing is encrypted" in worker.text for worker in workers)
    # Whoever encrypts is told, and nothing is said plainly instead.
    worker = cluster.start_worker(3, address=cluster.address.replace("insecure://", "tls://"))
    assert worker.end() == 2
    assert "it refuses encrypted connections" in worker.printed[-1]
    assert "a TLS hello, but nothing is encrypted on this port" in cluster.scheduler.wait_for(".*refused.*")


def test_nothing_listens_beyond_its_machine_unless_asked(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler("--host", "127.0.0.1")
    assert cluster.address.startswith("tcp://127.0.0.1:")
    worker = cluster.start_worker(1, address=cluster.address.replace("127.0.0.1", cluster.network[0].address))
    assert worker.end() == 2
    assert "cannot connect to tls://10.77.0.1:" in worker.text


def test_the_doctor_looks_at_encryption_and_at_every_worker_from_where_it_runs(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler()
    cluster.start_workers(1)
    cluster.start_worker(2, "--address", "10.77.0.99").wait_for(" joined ")  # a host that nobody has
    cluster.copy_secret(4)
    command = (sys.executable, "-m", "cluster.cli.main", "doctor", "--address", cluster.address, "--json")
    doctor = cluster.start(4, *command)
    assert doctor.end(30) == 0, doctor.text
    checks = {check["name"]: check for check in json.loads(doctor.text)["checks"]}
    assert checks["scheduler"]["outcome"] == "ok"
    assert "TLS 1.3 beyond this machine" in checks["encryption"]["found"]
    reached = checks["workers' addresses"]
    assert reached["outcome"] == "warning"
    assert re.match(r"tls://10\.77\.0\.99:\d+: cannot connect to ", reached["found"])


MAKER = """
    import subprocess, sys, time
    from tests.hosts.namespaces import Network
    network = Network(2)
    sleeper = subprocess.Popen(network[1].command("sleep", "1000"))
    print("sleeper", sleeper.pid, flush=True)
    time.sleep(1000)
"""


def test_hosts_and_what_runs_there_end_with_their_maker_however_that_ends() -> None:
    if reason := why_not():
        pytest.skip(reason)
    with Daemon([sys.executable, "-c", textwrap.dedent(MAKER)]) as maker:
        maker.wait_for("sleeper")
        below = psutil.Process(maker.process.pid).children(recursive=True)
        assert len(below) == 4  # the switch, two that hold the hosts, and what runs there
        maker.signal(signal.SIGKILL)
        assert not psutil.wait_procs(below, timeout=10)[1]
