"""The two commands as a user meets them, and what the scheduler's process does with strangers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster import Client, fire_and_forget
from cluster.errors import WrongSecret
from cluster.secret import load_or_create_secret
from cluster.transport.blocking import BlockingConnection
from tests.processes.peers import read_to_end
from tests.processes.whole_cluster import Daemon, daemon, own_bytes, until, whole_cluster

pytestmark = pytest.mark.timeout(60)

AT_ONCE_SECONDS = 5.0  # beside the start of an interpreter on a busy machine


def inc(x: int) -> int:
    return x + 1


# --------------------------------------------------------------------------- starting and ending


@pytest.mark.parametrize("with_directory", [False, True])
def test_the_line_that_the_scheduler_prints_starts_a_worker(with_directory: bool, own_directory: Path) -> None:
    directory = own_directory / "with 'space"
    arguments = ("--directory", str(directory)) if with_directory else ()
    with daemon("cluster-scheduler", "--port", "0", *arguments) as scheduler:
        address = scheduler.wait_for(r"cluster-scheduler listening at (tcp://127\.0\.0\.1:\d+)$")
        line = scheduler.wait_for(r"start workers with: +(cluster-worker .*)$")
        assert address in line
        # As in another terminal: nothing is known there but the command's folder.
        terminal = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        del terminal["CLUSTER__DIRECTORY"]
        with Daemon(["/bin/sh", "-c", f"exec {line}"], terminal) as worker:
            worker.wait_for(rf"joined {address} with \d+ slot")
            with Client(address, directory=directory if with_directory else None) as client:
                assert client.submit(inc, 1).result(10) == 2
        assert shlex.split(line)[:2] == ["cluster-worker", address]


def test_the_scheduler_ends_with_all_its_workers_when_it_is_asked_to() -> None:
    with whole_cluster(workers=2, slots=2) as cluster:
        client = cluster.client()
        assert client.submit(inc, 1).result(10) == 2
        below = [child for worker in cluster.workers for child in psutil.Process(worker.process.pid).children(True)]
        assert len(below) >= 4
        cluster.scheduler.signal(signal.SIGTERM)
        assert cluster.scheduler.end() == 0
        assert [worker.end() for worker in cluster.workers] == [0, 0]
        assert all("the scheduler was asked to end" in worker.text for worker in cluster.workers)
        assert not psutil.wait_procs(below, timeout=5)[1]
        assert "Traceback" not in cluster.scheduler.text + "".join(worker.text for worker in cluster.workers)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


WRONG = {
    "a port in use": (["cluster-scheduler", "--port", "TAKEN"], "port TAKEN on 127.0.0.1 is in use"),
    "an address that this machine has not": (
        ["cluster-scheduler", "--host", "192.0.2.1"],
        "cannot listen on tls://192.",
    ),
    "a name for this machine alone": (["cluster-scheduler", "--host", "127.1"], "'127.1' stands for 127.0.0.1 here"),
    "a name that nobody has": (["cluster-scheduler", "--host", "nobody.invalid"], "cannot listen at 'nobody.invalid'"),
    "an option that is not known": (["cluster-scheduler", "--prot", "1"], "unrecognized arguments: --prot"),
    "a port that is none": (["cluster-scheduler", "--port", "70000"], "a port is a number from 0 to 65535"),
    "a secret that others may read": (["cluster-scheduler", "--port", "0"], "run: chmod 600"),
    "a worker's port in use": (["cluster-worker", "SCHEDULER", "--port", "TAKEN"], "port TAKEN on 127.0.0.1 is in use"),
    "a worker's address that is none": (["cluster-worker", "SCHEDULER", "--host", "a b"], "cannot listen at 'a b'"),
    "a worker without an address": (["cluster-worker"], "required: address"),
    "no slots": (["cluster-worker", "SCHEDULER", "--slots", "none"], "a worker has 1 to 1024 slots, not none"),
    "no amount of memory": (["cluster-worker", "SCHEDULER", "--memory-limit", "lots"], "lots"),
    "a worker's port that is none": (["cluster-worker", "SCHEDULER", "--port", "70000"], "0 to 65535"),
    "no place for values": (["cluster-worker", "SCHEDULER"], "values cannot be kept in /nowhere"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_a_command_that_cannot_start_says_why_in_one_line_at_once(
    what: str, taken_port: int, own_directory: Path
) -> None:
    if "secret" in what:
        load_or_create_secret(own_directory)
        (own_directory / "secret").chmod(0o644)
    command, said = WRONG[what]
    command = [word.replace("TAKEN", str(taken_port)).replace("SCHEDULER", "tcp://127.0.0.1:1") for word in command]
    environment = {**os.environ, "CLUSTER__SHARED_MEMORY_DIRECTORY": "/nowhere"} if "values" in what else None
    started = time.monotonic()
    with daemon(command[0], *command[1:], environment=environment) as refused:
        status = refused.end()
    assert time.monotonic() - started < AT_ONCE_SECONDS
    assert status == 2
    assert len(refused.printed) == 1, refused.text
    assert refused.text.startswith(f"{command[0]}: ")
    assert said.replace("TAKEN", str(taken_port)) in refused.text


# --------------------------------------------------------------------------- nothing is unpickled

WATCHED = """
import atexit, os, sys
sys.addaudithook(lambda event, _: event == "pickle.find_class" and os._exit(97))
from cluster.cli.scheduler import main
status = main(["--port", "0"])
print("loaded:", [name for name in ("cloudpickle", "numpy", "pandas") if name in sys.modules], flush=True)
sys.exit(status)
"""


def test_the_scheduler_unpickles_nothing_in_a_whole_session_of_work() -> None:
    def fail(x: int) -> int:
        raise ValueError(np.float64(x))

    with Daemon([sys.executable, "-c", WATCHED]) as scheduler:
        address = scheduler.wait_for(r"listening at (\S+)")
        with daemon("cluster-worker", address, "--slots", "1") as worker:
            worker.wait_for("joined")
            with Client(address) as client, Client(address) as other:
                array = np.arange(100_000.0)
                futures = client.map(np.sqrt, [array, np.float64(4), 9])
                assert client.gather(futures)[1:] == [2, 3]
                assert client.submit(np.sum, futures[2]).result(10) == 3
                assert client.submit(np.sum, client.scatter(array)).result(10) == array.sum()
                assert isinstance(client.submit(fail, 1).exception(10), ValueError)
                inside = client.scatter([futures[1]])
                assert other.submit(lambda held: held, inside).result(10)[0].result(10) == 2
                cancelled = client.submit(time.sleep, 60)
                cancelled.cancel()
                fire_and_forget(client.submit(inc, 1, key="forgotten"))
                assert client.options(timeout_seconds=5, label="x").submit(inc, 1).result(10) == 2
                assert client.who_has([futures[0]]) and client.scheduler_info()["workers"]
                assert isinstance(client.submit(os._exit, 3).exception(20), Exception)
        scheduler.signal(signal.SIGTERM)
        assert scheduler.end() == 0, scheduler.text
        assert "loaded: []" in scheduler.text


# --------------------------------------------------------------------------- strangers

STRANGERS = {
    "127.0.1.1": b"\xff\x00" * 2500,
    "127.0.1.2": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "127.0.1.3": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "127.0.1.4": struct.pack("<Q", 2**62) + bytes(100),
    "127.0.1.5": struct.pack(">Q", 2**62) + bytes(100),
}
SLOW = "127.0.1.6"
ALLOWED_GROWTH_BYTES = 4 << 20


def _stranger(address: str, source: str) -> socket.socket:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), 15, (source, 0))


def refused_hosts(listener: Daemon) -> list[str]:
    return re.findall(r"refused a connection from ([0-9.]+): ", listener.text)


def test_strangers_on_the_real_ports_are_refused_while_a_map_runs() -> None:
    with whole_cluster(workers=1, slots=2) as cluster:
        client = cluster.client()
        for _ in range(2):  # the second takes more room: it begins before all of the first has been let go
            assert sum(client.gather(client.map(inc, range(60_000)))) == sum(range(60_001))
        [worker_address] = client.scheduler_info()["workers"]
        listeners = {cluster.address: cluster.scheduler, worker_address: cluster.workers[0]}
        before = {address: own_bytes(listener.process.pid) for address, listener in listeners.items()}
        slow = [_stranger(address, SLOW) for address in listeners]
        for stranger in slow:
            stranger.sendall(b"CLU")
        futures = client.map(inc, range(60_000))
        for address in listeners:
            for source, data in STRANGERS.items():
                for _ in range(3):
                    with _stranger(address, source) as stranger:
                        stranger.sendall(data)
                        answer = read_to_end(stranger)
                    assert len(answer) < 300
                    assert (b"400" in answer) == (b"HTTP" in data)
            with pytest.raises(WrongSecret):
                BlockingConnection.connect(address, bytes(32), "client", ("scheduler", "worker"))
        assert sum(client.gather(futures, timeout=60)) == sum(range(60_001))
        del futures
        assert client.gather(client.map(inc, range(100)), timeout=5) == list(range(1, 101))
        for stranger in slow:
            assert len(read_to_end(stranger)) < 300  # hung up on, 5 s after it came
            stranger.close()
        for address, listener in listeners.items():
            hosts = sorted([*STRANGERS, SLOW, "127.0.0.1"])
            until(lambda listener=listener, hosts=hosts: len(refused_hosts(listener)) >= len(hosts), "all are named")
            assert sorted(refused_hosts(listener)) == hosts, listener.text
            assert own_bytes(listener.process.pid) - before[address] < ALLOWED_GROWTH_BYTES
