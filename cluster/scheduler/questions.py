"""What clients ask: where values are, and how the cluster stands."""

from __future__ import annotations

from typing import Any

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.table import FAILED, FINISHED, RELEASED
from cluster.wire import messages

__all__ = ["Questions"]


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
                    if table.state[current] not in (FINISHED, FAILED):
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

    def query(self, now: float, client: ClientRecord, message: messages.Query) -> None:
        """A snapshot for people."""
        ledger = self.ledger
        error = ""
        result: Any = None
        if message.what == "ping":
            pass
        elif message.what == "scheduler_info":
            result = {
                "process_id": self._process_id,
                "epoch": ledger.epoch,
                "tasks": ledger.table.rows_used,
                "clients": sum(known.connected for known in ledger.clients.values()),
                "workers": {
                    worker.address: {
                        "name": worker.name,
                        "slots": worker.slots,
                        "memory_limit_bytes": worker.memory_limit_bytes,
                        "resources": worker.resources,
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
        elif message.what == "who_has":
            result = []
            for number in message.detail:
                row = client.row(int(number))
                holders = [] if row < 0 or not ledger.has_value(row) else ledger.table.holders(row)
                result.append([ledger.workers[index].address for index in holders])
        else:
            error = f"the scheduler does not know the query {message.what!r}"
        ledger.send(client.peer, messages.Answer(message.request, error, result))
