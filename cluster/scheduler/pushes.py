"""Values that only their client has and pushes to workers: what follows when one does not get there.

Where a worker has no room for one, that is said (`push_waits`), and it is tried again each second for as long as a
worker waits for room itself. Tasks that need it there do not wait so: their worker gives them back (`refusals.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.copies import Copies
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.placement import Placement
from cluster.scheduler.refusals import REMEDY
from cluster.scheduler.scatters import Scatters
from cluster.scheduler.table import GRANTED
from cluster.scheduler.want_of_room import PATIENCE_SECONDS, PushOrder
from cluster.scheduler.workers import WorkerRecord
from cluster.units import format_bytes
from cluster.wire import messages

__all__ = ["Pushes"]

PUSHES_TRIED = 15  # the first twice at once, then one a second: a worker that died in silence is given up before


class Pushes:
    """Has pushes tried again, and tells all who wait for one that is given up."""

    def __init__(
        self, ledger: Ledger, lifecycle: Lifecycle, placement: Placement, scatters: Scatters, copies: Copies
    ) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self.placement = placement
        self.scatters = scatters
        self.copies = copies
        self._failed: dict[tuple[int, int, int], None] = {}  # row, its run's identity, worker

    def pushed(self, client: ClientRecord, message: messages.Pushed) -> None:
        """A client could not push a value: try again, or fail who waits for it there. (Workers tell of success.)"""
        row = client.row(message.number)
        worker = self.ledger.worker_called.get(message.address)
        if row < 0 or worker is None or not message.error:
            return
        order = self.ledger.pushing.get(row, {}).get(worker.index)
        if order is None:
            return
        if message.full:
            self._finds_no_room(row, worker, order, message.error)
            return
        order.no_room = ""
        if order.tried == 1:
            order.tried = 2
            self.placement.send_push(row, worker)
        elif order.tried < PUSHES_TRIED:
            order.tried += 1
            self._try_again_later(row, worker)
        else:
            text = f"the client could not send an argument to worker {worker.name} at {worker.address}: {message.error}"
            self._give_up(row, worker, message.error)
            self._fail_takers(row, worker, text, "see that the client can connect to the worker's address")

    def _finds_no_room(self, row: int, worker: WorkerRecord, order: PushOrder, error: str) -> None:
        ledger = self.ledger
        if not order.no_room:
            order.waits_since = ledger.now
            if ledger.now >= worker.called_roomless_at + PATIENCE_SECONDS:
                worker.called_roomless_at = ledger.now
                client = ledger.run(row).client.name
                ledger.events.note("push_waits", worker.name, f"what client {client} sends there waits: {error}")
        elif worker.held_bytes < order.held_bytes:
            order.waits_since = ledger.now
        order.no_room, order.held_bytes = error, worker.held_bytes
        if ledger.now < order.waits_since + PATIENCE_SECONDS or next(self._takers(row, worker), None) is not None:
            self._try_again_later(row, worker)
            return
        held, limit = format_bytes(worker.held_bytes), format_bytes(worker.memory.limit_bytes)
        where = f"worker {worker.name} at {worker.address}, with {held} of values and a memory limit of {limit}"
        self._give_up(row, worker, f"{where}, had {error}; {REMEDY}", no_room=True)

    def _try_again_later(self, row: int, worker: WorkerRecord) -> None:
        self._failed[row, self.ledger.run(row).identity, worker.index] = None

    def refused(self, client: ClientRecord, message: messages.PushRefused) -> None:
        """A client will not push a value: fail who waits for it there."""
        row = client.row(message.number)
        worker = self.ledger.worker_called.get(message.address)
        if row >= 0 and worker is not None and worker.index in self.ledger.pushing.get(row, {}):
            self._give_up(row, worker, message.message)
            self._fail_takers(row, worker, message.message, message.remedy)

    def no_room(self, worker: WorkerRecord, message: messages.RunFailed) -> None:
        """A worker had no room for an input: if a client was to push it and nobody else waits for it there, it need not
        go on."""
        table = self.ledger.table
        row = int(message.details.get("row", -1))
        is_known = 0 <= row < len(table) and table.attempt[row] == message.details.get("attempt")
        if not is_known or worker.index not in self.ledger.pushing.get(row, {}):
            return
        others = row in self.ledger.spreads or self.scatters.awaits(row) or self.copies.awaits(row, worker)
        if not others and next(self._takers(row, worker), None) is None:
            del self.ledger.pushing[row][worker.index]

    def _give_up(self, row: int, worker: WorkerRecord, error: str, *, no_room: bool = False) -> None:
        """A value will not get to a worker; tasks apart, all who wait for it hear why."""
        del self.ledger.pushing[row][worker.index]
        self.placement.spreading.failed(row, worker)
        self.scatters.failed(row, worker, error, no_room=no_room)
        self.copies.not_pushed(row, worker, error)

    def _fail_takers(self, row: int, worker: WorkerRecord, text: str, remedy: str) -> None:
        failure = self.ledger.failure(row, "lost", "ValueLost", text, worker=worker.name, remedy=remedy)
        for taker in list(self._takers(row, worker)):
            self.lifecycle.fail(taker, failure)

    def _takers(self, row: int, worker: WorkerRecord) -> Iterator[int]:
        """The tasks that were granted to a worker and take a value."""
        table = self.ledger.table
        for dependent in table.dependents(row):
            if self.ledger.run(dependent).is_join:
                yield from self._takers(dependent, worker)
            elif table.state[dependent] == GRANTED and table.holder[dependent] == worker.index:
                yield dependent

    def retry(self) -> None:
        """Order again what failed since the last time; called every second."""
        failed, self._failed = self._failed, {}
        for row, identity, worker_index in failed:
            run = self.ledger.table.run_of[row]
            worker = self.ledger.workers.get(worker_index)
            is_same = run is not None and run.identity == identity
            if is_same and worker is not None and worker_index in self.ledger.pushing.get(row, {}):
                self.placement.send_push(row, worker)
