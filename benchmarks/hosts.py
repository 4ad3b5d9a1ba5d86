"""Values between hosts: a gigabyte from worker to worker beside a plain socket, and a broadcast beside single copies.

The hosts are network namespaces of this machine, each with an address and shared memory of its own, so both ends share
its cores: the processor time of both is given, too. The comparison writes into a fresh mapped file, by the same way
between the same two hosts, in turns with ours.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.case import Case, Figure, Goal, Measurement
from benchmarks.systems import System
from tests.hosts.cluster_on_hosts import ClusterOnHosts
from tests.hosts.namespaces import Network, why_not

ROUNDS = 3
SHARED_MEMORY = "/dev/shm"
BROADCAST_WORKERS = 8

# Says "ready", then for each line that it reads: makes a value at worker-1, copies it to the groups of workers named
# there, one group after the other, and says how many seconds the copying took.
COPYING = """
import os, json, time

def make(nbytes):
    return os.urandom(1 << 20) * (nbytes >> 20)

nbytes = int(arguments[0])
with Client(address) as client:
    client.wait_for_workers(int(arguments[1]))
    named = {worker["name"]: place for place, worker in client.scheduler_info()["workers"].items()}
    print("ready", flush=True)
    for line in sys.stdin:
        value = client.submit(make, nbytes, workers=["worker-1"])
        wait([value])
        began = time.perf_counter()
        for workers in json.loads(line):
            client.replicate([value], workers=workers)
        seconds = time.perf_counter() - began
        held = sorted(client.who_has([value]).values(), key=len)[0]
        print(json.dumps([seconds, len(held)]), flush=True)
        value.release()
"""


class Hosts:
    """A cluster over hosts, a program of a user on the last of them, and raw copies between the first two workers."""

    def __init__(self, cluster: ClusterOnHosts, workers: int, nbytes: int) -> None:
        self.cluster = cluster
        self.workers = workers
        self.nbytes = nbytes
        self._program = subprocess.Popen(
            cluster.network[workers + 1].command(
                sys.executable, "-u", "-c", _head() + COPYING, cluster.address, str(nbytes), str(workers)
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=cluster.environment(workers + 1),
        )
        self._said("ready")

    def _said(self, what: str) -> str:
        assert self._program.stdout is not None
        line = self._program.stdout.readline().strip()
        if not line or (what and line != what):
            raise RuntimeError(f"the program on the last host said {line!r}")
        return line

    def copy(self, *groups: list[str]) -> float:
        """Copy a fresh value to workers, each group when the one before has it; the seconds."""
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(groups) + "\n")
        self._program.stdin.flush()
        seconds, holders = json.loads(self._said(""))
        if holders != 1 + sum(map(len, groups)):
            raise RuntimeError(f"{holders} workers have the value")
        return float(seconds)

    def processor_seconds(self) -> list[float]:
        """The processor time of the first two workers' agents so far."""
        found = []
        for worker in self.cluster.workers[:2]:
            times = psutil.Process(worker.process.pid).cpu_times()
            found.append(times.user + times.system)
        return found

    @contextlib.contextmanager
    def raw_sender(self) -> Iterator[int]:
        """The other end of raw copies, on the first worker's host; its port."""
        network, directory = self.cluster.network, SHARED_MEMORY
        command = ("benchmarks.raw_copy", "send", network[1].address, str(self.nbytes), directory)
        with subprocess.Popen(
            network[1].command(sys.executable, "-m", *command), stdout=subprocess.PIPE, text=True
        ) as sender:
            assert sender.stdout is not None
            try:
                yield int(sender.stdout.readline())
            finally:
                sender.kill()

    def raw_copy(self, port: int, way: str) -> float:
        """Copy as much to the second worker's host by a plain socket; the seconds."""
        network = self.cluster.network
        command = (
            "benchmarks.raw_copy",
            "receive",
            network[1].address,
            str(port),
            str(self.nbytes),
            SHARED_MEMORY,
            way,
        )
        said = subprocess.run(
            network[2].command(sys.executable, "-m", *command), stdout=subprocess.PIPE, text=True, check=True
        )
        return float(json.loads(said.stdout)["seconds"])

    def close(self) -> None:
        """End the program."""
        self._program.communicate()


def _head() -> str:
    return "import sys\nfrom cluster import *\naddress, *arguments = sys.argv[1:]\n"


@contextlib.contextmanager
def hosts(workers: int, nbytes: int, *scheduler_arguments: str) -> Iterator[Hosts]:
    """A cluster with that many workers of one slot, each on a host."""
    if reason := why_not():
        raise RuntimeError(reason)
    with (
        tempfile.TemporaryDirectory() as directory,
        Network(workers + 2) as network,
        ClusterOnHosts(network, Path(directory)) as cluster,
    ):
        cluster.start_scheduler("--host", network[0].address, *scheduler_arguments)
        cluster.start_workers(*range(1, workers + 1))
        cluster.copy_secret(workers + 1)
        opened = Hosts(cluster, workers, nbytes)
        try:
            yield opened
        finally:
            opened.close()


def measure_transfer(system: System, nbytes: int, encrypted: bool) -> Measurement:
    """The medians of several rounds, in which ours and the plain sockets take turns; the first warms up."""
    ways = ("tls",) if encrypted else ("sendfile", "send")
    ours: list[float] = []
    raw: dict[str, list[float]] = {way: [] for way in ways}
    began = time.perf_counter()
    with hosts(2, nbytes, *(() if encrypted else ("--insecure",))) as opened, opened.raw_sender() as port:
        opened.copy(["worker-2"])
        before = opened.processor_seconds()
        for _ in range(ROUNDS):
            ours.append(opened.copy(["worker-2"]))
            for way in ways:
                raw[way].append(opened.raw_copy(port, way))
        after = opened.processor_seconds()
    gigabytes = nbytes / 1e9
    figures = {"ours": gigabytes / statistics.median(ours)}
    for way in ways:
        figures[f"raw, {way}"] = gigabytes / statistics.median(raw[way])
    best = max(figures[f"raw, {way}"] for way in ways)
    figures["share of the raw copy"] = figures["ours"] / best
    spent = [(b - a) / ROUNDS for a, b in zip(before, after, strict=True)]
    figures["processor time, holder"], figures["processor time, receiver"] = spent
    notes = (f"ours, slowest and fastest: {max(ours):.2f} and {min(ours):.2f} s; first-touched memory varies most",)
    return Measurement(nbytes, 1, time.perf_counter() - began, figures, {}, notes)


def measure_plain(system: System, nbytes: int) -> Measurement:
    """Without encryption, each piece with its checksum."""
    return measure_transfer(system, nbytes, encrypted=False)


def measure_encrypted(system: System, nbytes: int) -> Measurement:
    """By TLS, against a blocking `ssl` socket."""
    return measure_transfer(system, nbytes, encrypted=True)


def measure_broadcast(system: System, nbytes: int) -> Measurement:
    """One value to all other workers at once, and to one after the other."""
    others = [f"worker-{number}" for number in range(2, BROADCAST_WORKERS + 1)]
    tree: list[float] = []
    single: list[float] = []
    began = time.perf_counter()
    with hosts(BROADCAST_WORKERS, nbytes, "--insecure") as opened:
        opened.copy(others)
        for _ in range(ROUNDS):
            tree.append(opened.copy(others))
            single.append(opened.copy(*([name] for name in others)))
    figures = {"as a tree": statistics.median(tree), "one after the other": statistics.median(single)}
    return Measurement(nbytes, len(others), time.perf_counter() - began, figures)


def transfer_figures(least: float, aim: float, *ways: str) -> tuple[Figure, ...]:
    return (
        Figure("ours", "GB/s", higher_is_better=True),
        *(Figure(f"raw, {way}", "GB/s", higher_is_better=True) for way in ways),
        Figure("share of the raw copy", "", higher_is_better=True, at_least=Goal(least), aim=Goal(aim)),
        Figure("processor time, holder", "s"),
        Figure("processor time, receiver", "s"),
    )


CASES = (
    Case(
        name="hosts-plain",
        title="A value from worker to worker on another host, checksummed, beside a plain socket",
        sizes=(1 << 30,),
        ladder=(1 << 30,),
        figures=transfer_figures(0.6, 0.8, "sendfile", "send"),
        measure=measure_plain,
        only=frozenset({"cluster"}),
        opens_system=False,
    ),
    Case(
        name="hosts-tls",
        title="The same encrypted, beside a plain blocking ssl socket",
        sizes=(1 << 30,),
        ladder=(1 << 30,),
        figures=transfer_figures(0.8, 0.95, "tls"),
        measure=measure_encrypted,
        only=frozenset({"cluster"}),
        opens_system=False,
    ),
    Case(
        name="hosts-broadcast",
        title=f"A value to {BROADCAST_WORKERS - 1} other workers, each on a host",
        sizes=(100 << 20,),
        ladder=(100 << 20,),
        figures=(Figure("as a tree", "s"), Figure("one after the other", "s")),
        measure=measure_broadcast,
        only=frozenset({"cluster"}),
        opens_system=False,
    ),
)
