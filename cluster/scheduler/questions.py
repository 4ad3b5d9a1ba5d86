"""What clients ask: where values are, how the cluster stands, and whatever other parts register an answer for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.table import FAILED, FINISHED, FREE, RELEASED
from cluster.wire import messages

__all__ = ["Questions"]

Answerer: TypeAlias = Callable[[float, ClientRecord, int, Any], None]
"""Called with the time, the client, the request's number and the query's detail."""


class LocationRequest:
    """A client's `Locate` that waits until all its numbers have ended."""

    __slots__ = ("client", "left", "questions", "request", "rows")

    def __init__(self, questions: Questions, client: ClientRecord, request: int) -> None:
        self.questions = questions
        self.client = client
        self.request = request
        self.rows: list[tuple[int, int, int]] = []  # (number, row, run identity)
        self.left = 0

    def ended(self) -> None:
        """One row more has ended."""
        self.left -= 1
        if self.left == 0:
            self.questions.answer_location(self)


class Questions:
    """Answers clients' questions from the ledger."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, process_id: int) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self._process_id = process_id
        self._answerers: dict[str, Answerer] = {
            "ping": self._ping,
            "who_has": self._who_has,
            "scheduler_info": self._scheduler_info,
        }

    def locate(self, client: ClientRecord, message: messages.Locate) -> None:
        """Where values are; the answer waits for values that are still being made."""
        ledger, table = self.ledger, self.ledger.table
        request = LocationRequest(self, client, message.request)
        waiting = []
        for position in range(0, len(message.runs), 2):
            for number, row, length in client.rows(message.runs[position], message.runs[position + 1]):
                for step in range(length):
                    current = row + step
                    request.rows.append((number + step, current, ledger.run(current).identity))
                    if table.state[current] not in (FINISHED, FAILED, FREE):  # free: it was abandoned with its parent
                        waiting.append(current)
        request.left = len(waiting)
        if not waiting:
            self.answer_location(request)
        for row in waiting:
            ledger.locating.setdefault(row, []).append(request)
            if table.state[row] == RELEASED:
                self.lifecycle.revive(row)

    def answer_location(self, request: LocationRequest) -> None:
        """All numbers of a request have ended: say where the values are."""
        ledger, table = self.ledger, self.ledger.table
        entries = []
        for number, row, identity in request.rows:
            run = table.run_of[row]
            if run is None or run.identity != identity or table.state[row] != FINISHED:
                continue
            addresses = [ledger.workers[index].address for index in table.holders(row)]
            entries.append([number, row, table.attempt[row], table.nbytes[row], addresses])
        if request.client.connected:
            ledger.send(request.client.peer, messages.Located(request.request, entries))

    def register(self, what: str, answer: Answerer) -> None:
        """Have queries of this name answered by that; it may call `answer` later."""
        self._answerers[what] = answer

    def query(self, now: float, client: ClientRecord, message: messages.Query) -> None:
        """Answer a query, or have the part answer that knows."""
        answerer = self._answerers.get(message.what)
        if answerer is None:
            self.answer(client, message.request, error=f"the scheduler does not know the query {message.what!r}")
        else:
            answerer(now, client, message.request, message.detail)

    def answer(self, client: ClientRecord, request: int, result: Any = None, error: str = "") -> None:
        """Answer a query of a client, if it is still there."""
        if client.connected:
            self.ledger.send(client.peer, messages.Answer(request, error, result))

    def _ping(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self.answer(client, request)

    def _who_has(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        ledger = self.ledger
        found = []
        for number in detail:
            row = client.row(int(number))
            holders = [] if row < 0 or not ledger.has_value(row) else ledger.table.holders(row)
            found.append([ledger.workers[index].address for index in holders])
        self.answer(client, request, found)

    def _scheduler_info(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        ledger = self.ledger
        result = {
            "process_id": self._process_id,
            "epoch": ledger.epoch,
            "versions": ledger.settings.versions,
            "tasks": ledger.table.rows_used,
            "clients": sum(known.connected and not known.in_slot for known in ledger.clients.values()),
            "workers": {
                worker.address: {
                    "name": worker.name,
                    "slots": worker.slots,
                    "memory_limit_bytes": worker.memory.limit_bytes,
                    "resources": worker.declared_resources,
                    "process_id": worker.process_id,
                    "granted": worker.outstanding,
                    "held_values": worker.held_values,
                    "held_bytes": worker.held_bytes,
                    "draining": worker.draining,
                    "last_seen_seconds": now - worker.last_seen,
                    "report": worker.report,
                }
                for worker in ledger.workers.values()
            },
        }
        self.answer(client, request, result)
