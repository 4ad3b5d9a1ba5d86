"""What tasks write and how far they say they are: passed on to their clients, and found again when one asks.

The text itself stays with the agents. Kept here is who has some of which run, and each run's latest progress; both are
bounded, the oldest goes first, and an entry whose row is somebody else's by now is told by its run or its attempt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.orders import Orders
from cluster.scheduler.questions import Questions
from cluster.scheduler.table import FREE, GRANTED
from cluster.scheduler.workers import WorkerRecord
from cluster.wire import messages
from cluster.wire.task_output import CUT

__all__ = ["Output"]

PLACES_KEPT: Final = 100_000  # tasks that wrote something; about 300 bytes each
PROGRESS_KEPT: Final = 10_000
RUNS_OF_A_TASK: Final = 8
ANSWERED_BYTES: Final = 8 << 20
PROGRESS_ANSWERED: Final = 100


class _Place(NamedTuple):
    """A run that wrote something, and the worker that has it."""

    attempt: int
    worker: int


class _Progress(NamedTuple):
    attempt: int
    fraction: float
    message: str


class _Collection:
    """The answers to one question for a task's logs, while they come in."""

    def __init__(self, count: int, then: Callable[[list[Any]], None]) -> None:
        self.left = count
        self.then = then
        self.runs: list[Any] = [None] * count


class Output:
    """Passes output on, and answers the queries "task_output" and "progress"."""

    def __init__(self, ledger: Ledger, orders: Orders, questions: Questions) -> None:
        self.ledger = ledger
        self._orders = orders
        self._questions = questions
        self._places: dict[int, tuple[int, list[_Place]]] = {}  # row -> run identity, where
        self._progress: dict[int, _Progress] = {}  # by row
        questions.register("task_output", self._logs)
        questions.register("progress", self._tell_progress)

    # ------------------------------------------------------------------ what agents say

    def wrote(self, worker: WorkerRecord, message: messages.Output) -> None:
        """Runs of tasks wrote something: note where, and pass on what their clients want to see."""
        ledger = self.ledger
        shown: dict[bytes, tuple[ClientRecord, list[Any]]] = {}
        for attempt, row, entries in message.tasks:
            if not self._is_run(attempt, row):
                continue
            run = ledger.run(row)
            self._note(row, run.identity, _Place(attempt, worker.index))
            if entries and run.client.connected and run.client.shows_output:
                _, tasks = shown.setdefault(run.client.identity, (run.client, []))
                tasks.append([ledger.number(row), ledger.key(row), worker.name, entries])
        for client, tasks in shown.values():
            self._pass_on(client, tasks)

    def _pass_on(self, client: ClientRecord, tasks: list[Any]) -> None:
        if client.congested:
            client.unshown_bytes += sum(len(entry[2]) for task in tasks for entry in task[3])
            return
        if client.unshown_bytes:
            number, key, worker, entries = tasks[0]
            cut = [CUT, entries[0][1], str(client.unshown_bytes).encode()]
            client.unshown_bytes = 0
            tasks[0] = [number, key, worker, [cut, *entries]]
        self.ledger.send(client.peer, messages.TaskOutput(tasks))

    def _is_run(self, attempt: int, row: int) -> bool:
        table = self.ledger.table
        return 0 <= row < len(table) and table.state[row] != FREE and table.attempt[row] == attempt

    def _note(self, row: int, run_identity: int, place: _Place) -> None:
        known = self._places.get(row)
        if known is None or known[0] != run_identity:
            self._places.pop(row, None)
            self._places[row] = (run_identity, [place])
            if len(self._places) > PLACES_KEPT:
                del self._places[next(iter(self._places))]
        elif place not in known[1]:
            known[1].append(place)
            del known[1][:-RUNS_OF_A_TASK]

    def progressed(self, message: messages.Progress) -> None:
        """A task says how far it is."""
        row = message.row
        if self._is_run(message.attempt, row) and self.ledger.table.state[row] == GRANTED:
            self._progress.pop(row, None)
            self._progress[row] = _Progress(message.attempt, message.fraction, message.message)
            if len(self._progress) > PROGRESS_KEPT:
                del self._progress[next(iter(self._progress))]

    def show(self, client: ClientRecord, shown: bool) -> None:
        """A client says whether it wants to see what its tasks write."""
        client.shows_output = shown

    # ------------------------------------------------------------------ what clients ask

    def _logs(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        row = client.row(int(detail))
        self.gather(row, lambda runs: self._questions.answer(client, request, runs))

    def gather(self, row: int, then: Callable[[list[Any]], None]) -> None:
        """Ask for what each run of a task wrote: `[worker, entries, forgotten]`, oldest first; of no row, nothing."""
        known = self._places.get(row) if row >= 0 else None
        places = known[1] if known is not None and known[0] == self.ledger.run(row).identity else []
        if not places:
            then([])
            return
        collection = _Collection(len(places), then)
        for at, place in enumerate(places):
            self._ask_for_log(collection, at, place, row)

    def _ask_for_log(self, collection: _Collection, at: int, place: _Place, row: int) -> None:
        worker = self.ledger.workers.get(place.worker)

        def answered(error: str, result: Any) -> None:
            name = worker.name if worker is not None else ""
            collection.runs[at] = [name, *result] if not error else [name, [], True]
            collection.left -= 1
            if not collection.left:
                collection.then(_newest(collection.runs))

        if worker is None:
            answered("it is gone", None)
        else:
            self._orders.give(worker, "logs", [place.attempt, row], answered)

    def _tell_progress(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        """Of runs of numbers, upwards: how many are with a worker, and what those that told said of themselves."""
        table, ledger = self.ledger.table, self.ledger
        granted = 0
        firsts, counts = detail[::2], detail[1::2]
        for first, count in zip(firsts, counts, strict=True):
            for _, row, length in client.rows(first, count):
                granted += table.state.count(GRANTED, row, row + length)
        told: list[Any] = []
        for row, progress in reversed(self._progress.items()):
            if len(told) >= PROGRESS_ANSWERED:
                break
            if not self._is_run(progress.attempt, row) or table.state[row] != GRANTED:
                continue
            run = ledger.run(row)
            number = ledger.number(row)
            at = bisect_right(firsts, number) - 1
            if run.client is client and at >= 0 and number < firsts[at] + counts[at]:
                told.append([number, ledger.key(row), progress.fraction, progress.message])
        self._questions.answer(client, request, [granted, told])


def _newest(runs: list[Any]) -> list[Any]:
    """The latest runs, as many as an answer may hold."""
    size = 0
    for at in range(len(runs) - 1, -1, -1):
        size += sum(len(entry[2]) + 16 for entry in runs[at][1])
        if size > ANSWERED_BYTES:
            return runs[at + 1 :]
    return runs
