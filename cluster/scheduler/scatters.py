"""Answers clients that wait until values which they scatter have arrived at the workers."""

from __future__ import annotations

from collections import deque
from typing import Any

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.questions import Questions
from cluster.scheduler.workers import WorkerRecord

__all__ = ["Scatters"]

NAMES_SHOWN = 20


class Scatter:
    """One scatter: the rows whose pushes have perhaps not ended."""

    __slots__ = ("client", "request", "rows")

    def __init__(self, client: ClientRecord, request: int, rows: deque[tuple[int, int]]) -> None:
        self.client = client
        self.request = request
        self.rows = rows  # (row, its run's identity)


class Scatters:
    """The scatters that are under way."""

    def __init__(self, ledger: Ledger, questions: Questions) -> None:
        self.ledger = ledger
        self.questions = questions
        self._under_way: list[Scatter] = []
        questions.register("scattered", self._ask)

    @property
    def pending(self) -> bool:
        """Whether somebody waits."""
        return bool(self._under_way)

    def _ask(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        """Detail: the first number, how many, and the workers that were named. The result: which worker had no room, or
        nothing."""
        first, count, names = detail
        unknown = [str(name) for name in names if name not in self.ledger.worker_called]
        if unknown:
            self.questions.answer(client, request, error=self._unknown(unknown))
            return
        rows = deque(
            (row + step, self.ledger.run(row).identity)
            for _, row, length in client.rows(first, count)
            for step in range(length)
        )
        self._under_way.append(Scatter(client, request, rows))

    def _unknown(self, names: list[str]) -> str:
        known = sorted(worker.name for worker in self.ledger.workers.values() if not worker.lost)
        listed = ", ".join(known[:NAMES_SHOWN])
        if len(known) > NAMES_SHOWN:
            listed += f" and {len(known) - NAMES_SHOWN} more"
        there = f"those connected are {listed}" if known else "none is connected"
        return f"scatter names the workers {', '.join(names[:NAMES_SHOWN])}, which are not here; {there}"

    def look(self) -> None:
        """Answer those whose pushes have ended. Each row is looked at until it is there, and then no more."""
        table, pushing, spreads = self.ledger.table, self.ledger.pushing, self.ledger.spreads
        for scatter in list(self._under_way):
            rows = scatter.rows
            while rows:
                row, identity = rows[0]
                run = table.run_of[row]
                if run is not None and run.identity == identity and (pushing.get(row) or row in spreads):
                    break
                rows.popleft()
            if not rows:
                self._under_way.remove(scatter)
                self.questions.answer(scatter.client, scatter.request)
            elif not scatter.client.connected:
                self._under_way.remove(scatter)

    def awaits(self, row: int) -> bool:
        """Whether somebody waits until a value has arrived."""
        identity = self.ledger.run(row).identity
        return any((row, identity) in scatter.rows for scatter in self._under_way)

    def failed(self, row: int, worker: WorkerRecord, error: str, *, no_room: bool) -> None:
        """A value could not be sent to a worker, and will not be tried again; `no_room`: for want of room there."""
        identity = self.ledger.run(row).identity
        for scatter in [each for each in self._under_way if (row, identity) in each.rows]:
            self._under_way.remove(scatter)
            if no_room:
                self.questions.answer(scatter.client, scatter.request, error)  # which is another exception there
            else:
                text = f"a value could not be sent to worker {worker.name} at {worker.address}: {error}"
                self.questions.answer(scatter.client, scatter.request, error=text)
