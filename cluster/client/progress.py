"""Live progress of tasks: counted from what the client knows anyway, drawn as the place allows."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

from cluster.client.core import ClientCore, each_future
from cluster.client.future import FutureSequence
from cluster.client.operations import Operation, Until
from cluster.errors import ClusterError
from cluster.session import table as states
from cluster.session.machine import Session
from cluster.session.table import Numbers, runs_of
from cluster.units import format_seconds

__all__ = ["LabelCounts", "ProgressDisplay", "ProgressDisplays", "Screen", "Snapshot", "TaskProgress"]

REFRESH_SECONDS: Final = 0.25
PLAIN_LINE_SECONDS: Final = 5.0
RUNS_ASKED: Final = 4096
TASKS_SHOWN: Final = 8


class LabelCounts(NamedTuple):
    """How the tasks of one label stand; `rate` in tasks a second, `seconds_left` None while it cannot be told."""

    label: str
    total: int
    done: int
    failed: int
    running: int
    rate: float
    seconds_left: float | None

    @property
    def waiting(self) -> int:
        """Neither ended nor with a worker."""
        return max(0, self.total - self.done - self.failed - self.running)

    def figures(self) -> str:
        """The counts for people."""
        parts = [f"{self.done} of {self.total} done"]
        for count, name in ((self.running, "running"), (self.waiting, "waiting"), (self.failed, "failed")):
            if count:
                parts.append(f"{count} {name}")
        if self.rate:
            parts.append(f"{self.rate:.3g}/s")
        if self.seconds_left is not None and self.done + self.failed < self.total:
            parts.append(f"{format_seconds(self.seconds_left)} left")
        return ", ".join(parts)


class TaskProgress(NamedTuple):
    """What a running task last said of itself."""

    key: str
    fraction: float
    message: str


class Snapshot(NamedTuple):
    """How all stand at one moment."""

    labels: list[LabelCounts]
    tasks: list[TaskProgress]
    ended: bool


class Screen(Protocol):
    """Where progress is drawn."""

    def draw(self, snapshot: Snapshot) -> None:
        """Show how it stands now."""

    def close(self) -> None:
        """It has ended, or nobody looks any more."""


class PlainScreen:
    """Lines on stderr: when something changed, at most every five seconds, and at the end."""

    def __init__(self) -> None:
        self._drawn_at = float("-inf")
        self._last: list[LabelCounts] = []

    def draw(self, snapshot: Snapshot) -> None:
        """Write a line for each label."""
        now = time.monotonic()
        if snapshot.labels == self._last or not (snapshot.ended or now - self._drawn_at >= PLAIN_LINE_SECONDS):
            return
        self._drawn_at, self._last = now, snapshot.labels
        if sys.stderr is not None:
            lines = [f"{counts.label}: {counts.figures()}" for counts in snapshot.labels]
            lines += [f"  {task.key}: {task.fraction:.0%} {task.message}" for task in snapshot.tasks[:TASKS_SHOWN]]
            sys.stderr.write("\n".join(lines) + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Nothing is left to be taken down."""


class _Group:
    """The tasks of one label, and how fast they end."""

    def __init__(self, label: str, numbers: list[Numbers], session: Session) -> None:
        self.label = label
        self.are_done = [session.all_done(each) for each in numbers]
        self.runs = [run for each in numbers for run in _pairs(runs_of(each))]
        self.total = sum(count for _, count in self.runs)
        self._began: tuple[float, int] | None = None

    def count(self, session: Session, now: float, granted: int) -> LabelCounts:
        """Count by columns. Numbers that were released meanwhile count as done."""
        failed = pending = 0
        for first, count in self.runs:
            pending += max(0, first + count - max(first, session.table.next_number))
            for page, low, high, _ in session.table.spans(first, count):
                failed += page.states.count(states.FAILED, low, high)
                pending += page.states.count(states.PENDING, low, high)
        ended = self.total - pending
        if self._began is None:
            self._began = (now, ended)
        seconds, since = now - self._began[0], ended - self._began[1]
        rate = since / seconds if seconds > 0 and since > 0 else 0.0
        left = pending / rate if rate else None
        return LabelCounts(self.label, self.total, ended - failed, failed, min(granted, pending), rate, left)


class ProgressDisplay:
    """Draws how tasks stand until all have ended; `Client.progress` makes it.

    In a `with` statement it goes on drawing beside the body, and the end of the body waits for the tasks.
    """

    def __init__(self, client: ProgressDisplays, groups: list[_Group], futures: Any, screen: Screen) -> None:
        self._client = client
        self._groups = groups
        self._futures = futures  # kept, or tasks would be cancelled that nobody else holds
        self._screen = screen
        self._stopped = False
        self._thread: threading.Thread | None = None
        self.snapshot: Snapshot | None = None
        """How they stood when it was last drawn."""

    def wait(self) -> None:
        """Draw until all have ended. Raises ConnectionLost when that cannot be known any more."""
        try:
            self._client._complete(self._watch())
        finally:
            self._screen.close()

    def close(self) -> None:
        """Draw no more; the tasks go on."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._draw_beside, name="cluster-progress", daemon=True)
        self._thread.start()

    def _draw_beside(self) -> None:
        try:
            self.wait()
        except ClusterError as error:
            if sys.stderr is not None:
                sys.stderr.write(f"progress is no longer shown: {error}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._thread is not None:
            self._thread.join()
        self.close()

    def _watch(self) -> Operation[None]:
        client = self._client
        session = client._session
        groups = self._groups
        while not self._stopped:
            began = time.monotonic()
            told = []
            for group in groups:
                told.append((yield from client._ask("progress", _asked(group.runs))))
            labels = []
            for group, (granted, _) in zip(groups, told, strict=True):
                with client._driver.guard():
                    labels.append(group.count(session, time.monotonic(), granted))
            ended = all(counts.done + counts.failed == counts.total for counts in labels)
            tasks = [TaskProgress(str(key), fraction, str(text)) for _, each in told for _, key, fraction, text in each]
            self.snapshot = Snapshot(labels, [] if ended else tasks[:TASKS_SHOWN], ended)
            self._screen.draw(self.snapshot)
            if ended:
                return
            pause_seconds = max(REFRESH_SECONDS, 20 * (time.monotonic() - began))
            yield Until(self._is_over, time.monotonic() + pause_seconds)
            client._driver.check()

    def _is_over(self) -> bool:
        return self._stopped or all(is_done() for group in self._groups for is_done in group.are_done)


class ProgressDisplays(ClientCore):
    """The part of `Client` that shows progress."""

    def progress(self, futures: Any, *, block: bool = True) -> ProgressDisplay:
        """Show live how these tasks stand, by label: done, running, waiting, failed, rate and time left.

        In a terminal and a notebook it is drawn in place, elsewhere as lines on stderr; with what tasks say themselves
        by `cluster.current().progress`. It returns when all have ended, in whatever way. With `block=False` it draws
        beside the program: use that in a `with` statement, or call its `wait`. The tasks are not slowed down: it counts
        what the client is told anyway, and asks one question in a quarter of a second.
        """
        groups = _groups(self, futures)
        display = ProgressDisplay(self, groups, futures, _screen())
        if block:
            display.wait()
        else:
            display._start()
        return display


def _groups(client: ClientCore, futures: Any) -> list[_Group]:
    by_label: dict[str, list[Numbers]] = {}
    single: dict[str, list[int]] = {}
    sequences = futures if isinstance(futures, list | tuple) else [futures]
    for each in sequences:
        if isinstance(each, FutureSequence):
            if each._client is not client:
                raise ClusterError("these are futures of another client; use that client for them")
            by_label.setdefault(each._label, []).append(each.numbers())
            continue
        for future in each_future(each):
            client._check_own(future)
            single.setdefault(future._origin.label, []).append(future.number)
    for label, numbers in single.items():
        by_label.setdefault(label, []).append(_sorted_numbers(numbers))
    return [_Group(label, numbers, client._session) for label, numbers in by_label.items()]


def _sorted_numbers(numbers: Iterable[int]) -> Any:
    return sorted(set(numbers))


def _asked(runs: Sequence[tuple[int, int]]) -> list[int]:
    """Runs as the scheduler is asked about them: upwards, and not too many at once."""
    return [part for run in sorted(runs)[:RUNS_ASKED] for part in run]


def _pairs(runs: list[int]) -> list[tuple[int, int]]:
    return list(zip(runs[::2], runs[1::2], strict=True))


def _screen() -> Screen:
    """What suits the place: a notebook, a terminal, or neither. What they need is loaded only then."""
    screen: Screen
    interactive: Any = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    if shell is not None and getattr(shell, "kernel", None) is not None:
        screen = import_module("cluster.client.progress_notebook").NotebookScreen()
    elif sys.stderr is not None and sys.stderr.isatty():
        screen = import_module("cluster.client.progress_terminal").TerminalScreen()
    else:
        screen = PlainScreen()
    return screen
