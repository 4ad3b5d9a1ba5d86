"""What code inside a task can learn and tell of its task: `cluster.current()`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

from cluster.errors import ClusterError

__all__ = ["TaskContext", "TaskRun", "current", "running_inside"]

LOGGER_NAME = "cluster.task"


class TaskRun(Protocol):
    """A run of a task, as the slot that runs it tells of it."""

    key: str
    worker: str
    attempt: int
    deadline: float | None

    def is_running(self) -> bool:
        """Whether it has not ended."""

    def is_cancelled(self) -> bool:
        """Whether it was asked to stop."""

    def report_progress(self, fraction: float, message: str) -> bool:
        """Tell how far it is; False in a process that the task started."""

    def report_log(self, record: logging.LogRecord) -> None:
        """Hand a record to the client."""


class TaskContext:
    """The task that the calling code runs in; `cluster.current()` returns it."""

    __slots__ = ("_run",)

    def __init__(self, run: TaskRun) -> None:
        self._run = run

    @property
    def key(self) -> str:
        """The task's key, as its future has it."""
        return self._run.key

    @property
    def worker(self) -> str:
        """The name of the worker that runs it."""
        return self._run.worker

    @property
    def attempt(self) -> int:
        """1 when it runs for the first time, 2 after it failed or its process died once, and so on."""
        return self._run.attempt

    @property
    def deadline(self) -> float | None:
        """When it will be stopped, as `time.monotonic()` counts; None if it was given no `timeout_seconds`."""
        return self._run.deadline

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop. The main thread is interrupted as well; threads of the task look here."""
        return self._run.is_cancelled()

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how much is done, from 0.0 to 1.0, with a few words (1000 bytes); about 3 µs, so call it as you like.

        Whoever watches sees the latest about ten times a second. Raises ValueError for another fraction, ClusterError
        when the task has ended or in a process that it started.
        """
        if not isinstance(message, str):
            raise TypeError(f"message must be text, not {type(message).__name__}")
        fraction = float(fraction)
        if not (math.isfinite(fraction) and 0.0 <= fraction <= 1.0):
            raise ValueError(f"the fraction must be from 0.0 to 1.0, not {fraction}")
        self._check_running()
        if not self._run.report_progress(fraction, message):
            raise ClusterError("progress is reported by the task itself, not by a process that it started")

    def log(self, message: str | logging.LogRecord, level: int = logging.INFO) -> None:
        """Write a line, or a logging record, to the task's log; the client that submitted it shows it in any case.

        A line comes from the logger "cluster.task". Raises ClusterError when the task has ended.
        """
        if not isinstance(message, logging.LogRecord):
            message = logging.LogRecord(LOGGER_NAME, level, "", 0, str(message), None, None)
        self._check_running()
        self._run.report_log(message)

    def _check_running(self) -> None:
        if not self._run.is_running():
            raise ClusterError(f"{self.key} has ended; a context is good for its own task only")

    def __repr__(self) -> str:
        return f"<TaskContext of {self.key}, attempt {self.attempt} on {self.worker}>"


_look: list[Callable[[], Any]] = []


def running_inside(look: Callable[[], TaskRun | None]) -> None:
    """This process runs tasks: `look` tells of the one that the calling code is, before those registered earlier do."""
    _look.insert(0, look)


def current() -> TaskContext:
    """The task that the calling code runs in. Raises ClusterError outside of one.

    >>> import cluster
    >>> def work(steps):
    ...     task = cluster.current()
    ...     for step in range(steps):
    ...         task.progress(step / steps, f"step {step}")
    ...     return task.attempt
    >>> with cluster.LocalCluster(slots=1) as local, cluster.Client(local) as client:
    ...     client.submit(work, 3).result()
    1
    """
    run = next((found for look in _look if (found := look()) is not None), None)
    if run is None:
        raise ClusterError("cluster.current() tells of the running task, and this code does not run inside one")
    return TaskContext(run)
