"""What clients ask of the cluster as a whole: who holds and runs what, functions run aside, modules, restarts.

Queries (names as clients send them; workers are named by name or address, an empty list means all of them)
    has_what, processing    {"workers": […], "limit": n}: `{address: [number of tasks, [keys]]}`
    run                     {"workers": […], "name", "function", "arguments"}: `{address: [error, answer]}`
    upload                  {"name", "data"}: `{address: error}`; workers that join later get it too
    wait_for_workers        number: answered when so many are there
    restart                 stops all tasks of all clients and replaces the processes of all slots
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Final

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.orders import Orders
from cluster.scheduler.questions import Questions
from cluster.scheduler.table import FINISHED, GRANTED
from cluster.scheduler.wants import Wants
from cluster.scheduler.workers import WorkerRecord

__all__ = ["Administration", "rows_at"]

KEYS_LIMIT: Final = 10_000
UPLOADS_LIMIT_BYTES: Final = 64 << 20


class Administration:
    """Answers these queries."""

    def __init__(self, ledger: Ledger, questions: Questions, orders: Orders, wants: Wants) -> None:
        self.ledger = ledger
        self.questions = questions
        self.orders = orders
        self.wants = wants
        self._uploads: dict[str, bytes] = {}
        self._waiting_for_workers: list[tuple[int, ClientRecord, int]] = []
        questions.register("has_what", self._has_what)
        questions.register("processing", self._processing)
        questions.register("run", self._run)
        questions.register("upload", self._upload)
        questions.register("wait_for_workers", self._wait_for_workers)
        questions.register("restart", self._restart)

    def joined(self, worker: WorkerRecord) -> None:
        """A worker has joined: it gets what was uploaded before, ahead of any task, and may be who is waited for."""
        for name, data in self._uploads.items():
            self.orders.give(worker, "upload", {"name": name, "data": data}, _nobody_asked)
        waiting, self._waiting_for_workers = self._waiting_for_workers, []
        for count, client, request in waiting:
            self._answer_when_there(count, client, request)

    # ------------------------------------------------------------------ who has and does what

    def _has_what(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self._list_rows(client, request, detail, FINISHED)

    def _processing(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self._list_rows(client, request, detail, GRANTED)

    def _list_rows(self, client: ClientRecord, request: int, detail: Any, state: int) -> None:
        workers = self._chosen(client, request, detail)
        if workers is None:
            return
        limit = min(KEYS_LIMIT, int(detail["limit"]))
        found = {}
        for worker in workers:
            keys = [self.ledger.key(row) for row in rows_at(self.ledger, worker.index, state, limit)[0]]
            limit -= len(keys)
            count = worker.held_values if state == FINISHED else worker.outstanding
            found[worker.address] = [max(count, len(keys)), keys]
        self.questions.answer(client, request, found)

    # ------------------------------------------------------------------ orders to several workers

    def _run(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        workers = self._chosen(client, request, detail)
        if workers == []:
            self.questions.answer(client, request, error="no worker is connected: client.wait_for_workers(1) waits")
        elif workers is not None:
            errand = {name: detail[name] for name in ("name", "function", "arguments")}
            self._order_all(workers, "run", errand, lambda found: self.questions.answer(client, request, found))

    def _upload(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        name, data = str(detail["name"]), bytes(detail["data"])
        kept = sum(len(blob) for known, blob in self._uploads.items() if known != name)
        if kept + len(data) > UPLOADS_LIMIT_BYTES:
            error = (
                f"the scheduler keeps {kept} bytes of uploaded modules for workers that join later, and at most "
                f"{UPLOADS_LIMIT_BYTES} in all: install {name} where the workers run instead"
            )
            self.questions.answer(client, request, error=error)
            return
        self._uploads[name] = data

        def stored(found: dict[str, list[Any]]) -> None:
            errors = {address: error for address, (error, _) in found.items() if error}
            if errors and len(errors) == len(found):
                self._uploads.pop(name, None)  # nobody could store it: it is not worth keeping
            self.questions.answer(client, request, errors)

        self._order_all(list(self.ledger.workers.values()), "upload", {"name": name, "data": data}, stored)

    def _restart(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        for known in self.ledger.clients.values():
            for run in known.all_runs():
                self.wants.defer("cancel", known, [run.first_number, run.count])
            for number in known.aliases:
                self.wants.defer("cancel", known, [number, 1])
        workers = list(self.ledger.workers.values())
        self._order_all(workers, "restart", None, lambda found: self.questions.answer(client, request, len(found)))

    def _order_all(
        self, workers: list[WorkerRecord], what: str, detail: Any, done: Callable[[dict[str, list[Any]]], None]
    ) -> None:
        """Order something of several workers; `done` is called with `{address: [error, result]}` when all answered."""
        found: dict[str, list[Any]] = {}
        left = len(workers)
        if not left:
            done(found)

        def order(worker: WorkerRecord) -> None:
            def answered(error: str, result: Any) -> None:
                nonlocal left
                found[worker.address] = [error, result]
                left -= 1
                if not left:
                    done(found)

            self.orders.give(worker, what, detail, answered)

        for worker in workers:
            order(worker)

    # ------------------------------------------------------------------ waiting for workers

    def _wait_for_workers(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self._answer_when_there(int(detail), client, request)

    def _answer_when_there(self, count: int, client: ClientRecord, request: int) -> None:
        there = sum(not worker.draining for worker in self.ledger.workers.values())
        if there >= count:
            self.questions.answer(client, request, there)
        elif client.connected:
            self._waiting_for_workers.append((count, client, request))

    def _chosen(self, client: ClientRecord, request: int, detail: Any) -> list[WorkerRecord] | None:
        """The workers that a query names; None when it named an unknown one, which is answered here."""
        return chosen_workers(self.ledger, self.questions, client, request, detail["workers"])


def chosen_workers(
    ledger: Ledger, questions: Questions, client: ClientRecord, request: int, names: list[str]
) -> list[WorkerRecord] | None:
    """The workers of these names or addresses, all for none; None when one is unknown, which is answered here."""
    unknown = [name for name in names if name not in ledger.worker_called]
    if unknown:
        known = ", ".join(sorted(worker.name for worker in ledger.workers.values())) or "none"
        questions.answer(client, request, error=f"no worker is called {unknown[0]!r}; there are: {known}")
        return None
    if not names:
        return list(ledger.workers.values())
    return list({ledger.worker_called[name].index: ledger.worker_called[name] for name in names}.values())


def rows_at(ledger: Ledger, worker_index: int, state: int, limit: int, start: int = 0) -> tuple[list[int], int]:
    """Up to so many rows in that state at a worker, from a row on, and where to go on; -1: there are no more.

    Replicas of other workers' values are not among them. The column is searched as bytes: a million rows take 2 ms.
    """
    table = ledger.table
    data = memoryview(table.holder).cast("B")[start * table.holder.itemsize :].tobytes()
    needle = array("i", (worker_index,)).tobytes()
    width = len(needle)
    found: list[int] = []
    position = data.find(needle)
    while position >= 0:
        row, rest = divmod(position, width)
        if rest == 0 and table.state[start + row] == state:
            if len(found) == limit:
                return found, start + row
            found.append(start + row)
        position = data.find(needle, position + (width if rest == 0 else 1))
    return found, -1


def _nobody_asked(error: str, result: Any) -> None:
    """A worker that could not store a module fails the tasks that import it, and they say so."""
