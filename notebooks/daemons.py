"""Starts `cluster-scheduler` and `cluster-worker` as one would in two terminals, and stops them afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue

START_SECONDS = 20.0
STOP_SECONDS = 10.0


@contextmanager
def running_daemons(workers: int, slots: int) -> Iterator[str]:
    """The address of a scheduler on this machine with that many workers; all of them have ended when the block has."""
    with ExitStack() as stack:
        scheduler = stack.enter_context(running("cluster-scheduler", "--port", "0"))
        # The scheduler prints the very line that starts a worker.
        address = scheduler.wait_for(r"cluster-worker (tcp://\S+)")
        started = [
            stack.enter_context(running("cluster-worker", address, "--slots", str(slots), "--name", f"worker-{number}"))
            for number in range(1, workers + 1)
        ]
        for worker in started:
            worker.wait_for(r"(joined)")
        yield address


class Daemon:
    """A running command, and the lines that it prints."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: Queue[str | None] = Queue()
        # Read to the end in a thread: a daemon must never stand still because nobody reads what it prints.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str) -> str:
        """The first group of the pattern, from the first printed line that matches it."""
        printed = ""
        while True:
            try:
                line = self._lines.get(timeout=START_SECONDS)
            except Empty:
                raise TimeoutError(f"{self.command[0]} did not start in {START_SECONDS:.0f} s:\n{printed}") from None
            if line is None:
                raise RuntimeError(f"{' '.join(self.command)} ended:\n{printed}")
            printed += line
            found = re.search(pattern, line)
            if found:
                return found.group(1)

    def stop(self) -> None:
        """Ask it to end, wait until it has, and insist where it does not."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def running(command: str, *arguments: str) -> Iterator[Daemon]:
    """A command of this environment, running for the length of the block."""
    daemon = Daemon([str(Path(sys.executable).with_name(command)), *arguments])
    try:
        yield daemon
    finally:
        daemon.stop()
