"""The real daemons as processes of a test, gates that tasks wait at, and what a process holds."""

from __future__ import annotations

import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from cluster import Client

DEADLINE_SECONDS = 10.0
DRAIN_SECONDS = 0.5  # a test that fails while a task waits at a gate should not wait for that task
ROOT = Path(__file__).parents[2]


class Daemon:
    """A process, and the lines that it prints on either output."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str] | None = None, *, stdin: int = subprocess.DEVNULL
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.printed: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str, seconds: float = DEADLINE_SECONDS) -> str:
        """The first group of the pattern in the next line that matches it (all of the match if it has no group)."""
        while True:
            line = self._lines.get(timeout=seconds)
            assert line is not None, f"no {pattern!r} before the end:\n{self.text}"
            if found := re.search(pattern, line):
                return found[found.re.groups]

    @property
    def text(self) -> str:
        """All that it has printed."""
        return "".join(self.printed)

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def end(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the process to end by itself: its exit status; all that it printed has been read then."""
        status = self.process.wait(seconds)
        self._reader.join(DEADLINE_SECONDS)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


def daemon(command: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Daemon:
    """`cluster-scheduler` or `cluster-worker`."""
    module = command.replace("cluster-", "cluster.cli.")
    return Daemon([sys.executable, "-m", module, *arguments], environment)


def script(text: str, *arguments: str) -> Daemon:
    """A program of a user."""
    return Daemon([sys.executable, "-c", textwrap.dedent(text), *arguments])


class WholeCluster:
    """A scheduler and workers, each a `Daemon`."""

    def __init__(self, stack: ExitStack, environment: dict[str, str]) -> None:
        self._stack = stack
        self._environment = environment
        self.scheduler = stack.enter_context(daemon("cluster-scheduler", "--port", "0", environment=environment))
        self.address = self.scheduler.wait_for(r"listening at (\S+)")
        self.workers: list[Daemon] = []
        self.directory = os.environ["CLUSTER__DIRECTORY"]

    def add_workers(self, *workers: tuple[str, ...], slots: int = 1) -> list[Daemon]:
        """Start workers named `worker-0` and so on with these further arguments, and wait until they have joined."""
        added = []
        for further in workers:
            name = f"worker-{len(self.workers)}"
            arguments = (self.address, "--directory", self.directory, "--slots", str(slots), "--name", name, *further)
            worker = self._stack.enter_context(daemon("cluster-worker", *arguments, environment=self._environment))
            self.workers.append(worker)
            added.append(worker)
        for worker in added:
            worker.wait_for(" joined ")
        return added

    def segments(self) -> list[Path]:
        """The files of values that lie in shared memory."""
        return list(Path(self._environment["CLUSTER__SHARED_MEMORY_DIRECTORY"]).glob("cluster-*/*/s*"))

    def new_client(self) -> Client:
        """A client for the test to close."""
        return Client(self.address, directory=self.directory)

    def client(self) -> Client:
        """A client that ends before the daemons do."""
        return self._stack.enter_context(self.new_client())


@contextmanager
def whole_cluster(workers: int = 1, slots: int = 1, **settings: Any) -> Iterator[WholeCluster]:
    """Daemons with these settings."""
    settings = {"drain_seconds": DRAIN_SECONDS, **settings}
    environment = {**os.environ, **{f"CLUSTER__{name.upper()}": str(value) for name, value in settings.items()}}
    with ExitStack() as stack:
        cluster = WholeCluster(stack, environment)
        cluster.add_workers(*[()] * workers, slots=slots)
        yield cluster


class Gate:
    """Tasks wait at it until it is opened, and the test knows that they do: a named pipe, so no clock is involved."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._ends: list[int] = []

    def wait_until_reached(self) -> None:
        """Wait for a task to come; it waits there from now on, and so do those that come later."""
        self._ends.append(os.open(self.path, os.O_WRONLY))
        self._ends.append(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK))  # what is written stays, whoever dies

    def open(self) -> None:
        """Let all go on that wait, and that will."""
        os.write(self._ends[0], bytes(1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for end in self._ends:
            os.close(end)


def wait_at(path: str, value: Any = None) -> Any:
    """A task: wait until the gate at that path opens."""
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 1)
    os.close(descriptor)
    return value


def hold_the_lock_at(path: str) -> str:
    """A task: wait at the gate in C code that never gives up the interpreter's lock."""
    descriptor = os.open(path, os.O_RDONLY)
    ctypes.PyDLL(None).read(descriptor, ctypes.create_string_buffer(1), 1)
    os.close(descriptor)
    return "held"


def until(condition: Any, what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + seconds
    while not (outcome := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.01)
    return outcome


class PackedWhenHeld:
    """A zero as an argument, packed only once nothing runs and the workers hold so many values, no more and no fewer.

    The scheduler is asked on the connection by which it was sent all the tasks before, so it knows of these.
    """

    def __init__(self, client: Client, values: int) -> None:
        self._client = client
        self._values = values

    def _is_so(self) -> bool:
        workers = self._client.scheduler_info()["workers"].values()
        return not any(worker["granted"] for worker in workers) and self._values == sum(
            worker["held_values"] for worker in workers
        )

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        until(self._is_so, f"{self._values} values at the workers")
        return int, ()


def own_bytes(process_id: int) -> int:
    """The memory of a process that is its own: files that it has mapped, segments among them, left out."""
    resident, shared = Path(f"/proc/{process_id}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def worker_of(process_id: int) -> int:
    """The agent that a slot's starter belongs to."""
    return psutil.Process(process_id).ppid()
