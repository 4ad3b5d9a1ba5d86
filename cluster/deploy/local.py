"""A cluster on this machine: the same daemons as anywhere, as processes that end with this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from cluster import config
from cluster.client.html import card
from cluster.daemon.slot_protocol import MOST_THREADS
from cluster.deploy.adapting import Adapting
from cluster.deploy.adapting_local import Adaptation
from cluster.errors import ConnectionLost
from cluster.ids import new_id
from cluster.secret import load_or_create_secret
from cluster.storage.host_limits import host_limits
from cluster.units import format_bytes, parse_bytes

__all__ = ["LocalCluster"]

ENDING_SECONDS = 10.0
"""How long the processes may take to end by themselves before they are killed."""
LISTEN_BACKLOG = 128
MOST_SLOTS = 1024
"""As for `cluster-worker`."""


class _Daemon(NamedTuple):
    name: str
    process: subprocess.Popen[bytes]
    socket: socket.socket
    """A worker that has joined sends a byte; the daemon ends when this closes, with this process at the latest."""


class LocalCluster:
    """A scheduler and workers as processes of this machine, which end with this object or this process.

    `n_workers` workers have `slots` slots each (all cores are shared out if it is not given; `threads_per_worker` is
    another name for it). With `threads`, each slot's process runs so many tasks at once, for tasks that wait for input
    and output or release the GIL; then one task cannot be stopped for certain, and a crash ends all tasks of its
    process, which run again. `memory_limit` is each worker's, as bytes or text ("8GB"); "auto" shares out four fifths
    of what the machine, or its container, has. `directory` is where the secret is, if not in the usual place. Tasks see
    this process's `sys.path`.
    """

    def __init__(
        self,
        n_workers: int = 1,
        slots: int | None = None,
        *,
        threads_per_worker: int | None = None,
        threads: int = 1,
        memory_limit: str | int = "auto",
        directory: str | Path | None = None,
    ) -> None:
        if slots is not None and threads_per_worker is not None:
            raise ValueError("slots and threads_per_worker mean the same; give one of them")
        _check_number("n_workers", n_workers, 0)
        _check_number("threads", threads, 1, MOST_THREADS)
        slots = slots if slots is not None else threads_per_worker
        limits = host_limits()
        self.slots = max(1, limits.slots // max(1, n_workers)) if slots is None else slots
        _check_number("slots", self.slots, 1, MOST_SLOTS)
        self.threads = threads
        self.memory_limit_bytes = (
            limits.worker_memory_bytes(n_workers) if memory_limit == "auto" else parse_bytes(memory_limit)
        )
        settings = config.load(directory=None if directory is None else Path(directory))
        self.directory = settings.directory
        self._scheduler: list[_Daemon] = []
        self._workers: dict[str, _Daemon] = {}
        self._workers_made = 0
        self._adaptation: Adaptation | None = None
        # Runs at the latest when the interpreter ends; if that is killed, the closing of the sockets does.
        self._end = weakref.finalize(self, _end, self._scheduler, self._workers)
        self._token = new_id().hex()[:6]
        try:
            self.secret = load_or_create_secret(self.directory)
            # The socket listens before the scheduler runs, so that workers and clients can start at the same time as it
            # does: their connections wait in the backlog.
            with socket.create_server(("127.0.0.1", 0), backlog=LISTEN_BACKLOG) as listening:
                self.scheduler_address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
                descriptor = listening.fileno()
                arguments = ["--listen-fd", str(descriptor)]
                self._scheduler.append(self._start("scheduler", arguments, "cluster.cli.scheduler", (descriptor,)))
            self.scale(n_workers)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> list[str]:
        """The names of the workers."""
        return list(self._workers)

    def adapt(self, minimum: int = 0, maximum: int | None = None) -> None:
        """Start and end workers from now on as there is work for them: at least `minimum`, at most `maximum` of them.

        Without a maximum there are as many as have a core for each slot. Workers are started as soon as there is more
        work than is done in a few seconds, or more is held than fits; one is ended when it was not needed for ten
        seconds, after it has handed on what only it holds. Called again, it changes the bounds.
        """
        maximum = max(1, minimum, host_limits().slots // self.slots) if maximum is None else maximum
        for name, bound in (("minimum", minimum), ("maximum", maximum)):
            if isinstance(bound, bool) or not isinstance(bound, int) or bound < 0:
                raise ValueError(f"{name} must be a number of workers, at least 0, not {bound!r}")
        if maximum < max(1, minimum):
            raise ValueError(f"maximum must be at least 1 and at least minimum ({minimum}), not {maximum}")
        if self._adaptation is not None:
            self._adaptation.adapting.minimum, self._adaptation.adapting.maximum = minimum, maximum
            return
        tasks_at_once = self.slots * self.threads
        self._adaptation = Adaptation(self, Adapting(minimum, maximum, tasks_at_once, self.memory_limit_bytes))

    def forget_ended(self) -> set[str]:
        """Forget workers whose processes have ended; the names of the others."""
        for name, daemon in list(self._workers.items()):
            if daemon.process.poll() is not None:
                daemon.socket.close()
                del self._workers[name]
        return set(self._workers)

    def scale(self, n_workers: int) -> None:
        """Start workers until there are so many; ends none."""
        while len(self._workers) < n_workers:
            name = f"local-{self._token}-{self._workers_made}"
            self._workers_made += 1
            arguments = [
                self.scheduler_address,
                *("--slots", str(self.slots)),
                *("--threads", str(self.threads)),
                *("--memory-limit", str(self.memory_limit_bytes)),
                *("--name", name),
                *("--python-path", os.pathsep.join(path or os.getcwd() for path in sys.path)),
            ]
            self._workers[name] = self._start(name, arguments, "cluster.cli.worker", ())

    def wait_until_joined(self, timeout_seconds: float) -> None:
        """Wait until the workers that were started have joined the scheduler, or ended, or the time is up.

        A client that is made on this object does so, up to its `timeout`. Raises ConnectionLost if all have ended:
        tasks would wait without end.
        """
        deadline = time.monotonic() + timeout_seconds
        daemons = list(self._workers.values())
        for daemon in daemons:
            left_seconds = max(0.001, deadline - time.monotonic())
            daemon.socket.settimeout(left_seconds)
            with suppress(TimeoutError, subprocess.TimeoutExpired):
                if not daemon.socket.recv(1, socket.MSG_PEEK):  # the byte stays there for the next client
                    daemon.process.wait(left_seconds)
        if daemons and all(daemon.process.poll() is not None for daemon in daemons):
            raise ConnectionLost(self.explain_failure())

    def explain_failure(self) -> str:
        """Which of the processes have ended by themselves, and how; an empty text if none has."""
        ended = [
            f"{daemon.name} (exit status {daemon.process.returncode})"
            for daemon in (*self._scheduler, *self._workers.values())
            if daemon.process.poll() is not None
        ]
        return f"processes of this local cluster have ended: {', '.join(ended)}; see what they wrote" if ended else ""

    def close(self) -> None:
        """End all processes and wait until they are gone."""
        if self._adaptation is not None:
            self._adaptation.end()
            self._adaptation = None
        self._end()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LocalCluster at {self.scheduler_address}, {len(self._workers)} workers of {self._size()}>"

    def _size(self) -> str:
        return f"{self.slots} slots" + (f" of {self.threads} threads" if self.threads > 1 else "")

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [
            ("scheduler", self.scheduler_address),
            ("workers", len(self._workers)),
            ("slots", len(self._workers) * self.slots * self.threads),
            ("memory", f"{format_bytes(self.memory_limit_bytes)} a worker"),
        ]
        failure = self.explain_failure()
        return card("LocalCluster", [*facts, ("failure", failure)] if failure else facts)

    def _start(self, name: str, arguments: list[str], module: str, descriptors: tuple[int, ...]) -> _Daemon:
        paths = (_package_parent(), os.environ.get("PYTHONPATH"))
        ours, given = socket.socketpair()
        try:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", module, *arguments),
                    *("--port", "0", "--directory", str(self.directory), "--parent-socket", str(given.fileno())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(given.fileno(), *descriptors),
                start_new_session=True,  # Ctrl-C at the terminal is for the user's program alone
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            given.close()
        return _Daemon(name, process, ours)


def _end(scheduler: list[_Daemon], workers: dict[str, _Daemon]) -> None:
    daemons = [*scheduler, *workers.values()]  # in this order, or the scheduler would complain of its workers' going
    workers.clear()
    scheduler.clear()
    for daemon in daemons:
        daemon.socket.close()
    deadline = time.monotonic() + ENDING_SECONDS
    for daemon in daemons:
        try:
            daemon.process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()


def _check_number(name: str, value: object, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least or (most is not None and value > most):
        limits = f"from {least} to {most}" if most is not None else f"at least {least}"
        raise ValueError(f"{name} must be {limits}, not {value}")


def _package_parent() -> str:
    """Where this package lies: the daemons run this very one, wherever they are started."""
    return str(Path(__file__).resolve().parents[2])
