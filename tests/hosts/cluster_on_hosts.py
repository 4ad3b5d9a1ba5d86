"""The real daemons and the programs of users, each on a host of its own with a settings directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.hosts.namespaces import Network
from tests.processes.whole_cluster import Daemon

__all__ = ["CLIENT_HOST", "ClusterOnHosts"]

# The scheduler is on the first host, workers on the next, the client on the last.
CLIENT_HOST = 4


class RelayProcess(Daemon):
    """A process of `relay.py`."""

    def order(self, line: str) -> None:
        """Have it obey, and wait until it has."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self.wait_for(f"obeyed {line}$")

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        super().__exit__(*exception)


class ClusterOnHosts:
    """A scheduler on host 0 and workers on hosts 1 to 3, as far as they are started; all end with the test."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self.address = ""
        self.scheduler: Daemon
        self.workers: list[Daemon] = []
        self.settings: dict[str, Any] = {"drain_seconds": 0.5}
        self._directory = directory
        self._stack = ExitStack()

    def directory(self, host: int) -> Path:
        """The settings directory of a host."""
        return self._directory / f"host-{host}"

    def environment(self, host: int) -> dict[str, str]:
        """What processes of a host find in their environment."""
        temporary = self._directory / f"tmp-{host}"
        temporary.mkdir(exist_ok=True)
        settings = {f"CLUSTER__{name.upper()}": str(value) for name, value in self.settings.items()}
        places = {"CLUSTER__DIRECTORY": str(self.directory(host)), "CLUSTER__SHARED_MEMORY_DIRECTORY": "/dev/shm"}
        return {**os.environ, **settings, **places, "TMPDIR": str(temporary)}

    def start(self, host: int, *command: str) -> Daemon:
        """Start a process on a host; it ends with the test."""
        started = Daemon(self.network[host].command(*command), self.environment(host))
        return self._stack.enter_context(started)

    def start_scheduler(self, *arguments: str) -> Daemon:
        """Start the scheduler; without arguments it listens at its host's address."""
        arguments = arguments or ("--host", self.network[0].address)
        self.scheduler = self.start(0, sys.executable, "-m", "cluster.cli.scheduler", "--port", "0", *arguments)
        self.address = self.scheduler.wait_for(r"listening at (\S+)")
        return self.scheduler

    def copy_secret(self, host: int) -> None:
        """What a user does once for each machine."""
        if not host:
            return
        self.directory(host).mkdir(mode=0o700, exist_ok=True)
        shutil.copy2(self.directory(0) / "secret", self.directory(host) / "secret")

    def start_worker(self, host: int, *arguments: str, address: str = "", slots: int = 1) -> Daemon:
        """Start a worker named for its host, without waiting for it to join."""
        self.copy_secret(host)
        command = (sys.executable, "-m", "cluster.cli.worker", address or self.address, "--name", f"worker-{host}")
        worker = self.start(host, *command, "--slots", str(slots), *arguments)
        self.workers.append(worker)
        return worker

    def start_workers(self, *hosts: int, slots: int = 1) -> list[Daemon]:
        """Start workers on these hosts and wait until they have joined."""
        workers = [self.start_worker(host, slots=slots) for host in hosts]
        for worker in workers:
            worker.wait_for(" joined ")
        return workers

    def start_relay(self, host: int, target: str, port: int = 0) -> tuple[RelayProcess, str]:
        """Start a relay on a host; returned with the address that leads through it."""
        scheme, _, rest = target.partition("://")
        target_host, _, target_port = rest.rpartition(":")
        here = self.network[host].address
        command = (sys.executable, "-m", "tests.hosts.relay", here, str(port), target_host, target_port)
        started = RelayProcess(self.network[host].command(*command), self.environment(host), stdin=subprocess.PIPE)
        relay = self._stack.enter_context(started)
        return relay, f"{scheme}://{here}:{relay.wait_for(r'ready (.*)')}"

    def start_program(self, text: str, *arguments: str, host: int = CLIENT_HOST) -> Daemon:
        """Start a program of a user, which finds `address` and `Client`."""
        self.copy_secret(host)
        head = "import sys\nfrom cluster import *\naddress, *arguments = sys.argv[1:]\n"
        return self.start(host, sys.executable, "-u", "-c", head + textwrap.dedent(text), self.address, *arguments)

    def run_program(self, text: str, *arguments: str, host: int = CLIENT_HOST) -> str:
        """Run a program of a user to its end; what it printed."""
        program = self.start_program(text, *arguments, host=host)
        status = program.end()
        assert status == 0, program.text
        return program.text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
