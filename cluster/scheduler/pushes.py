"""Values that only their client has and pushes to workers: what follows when one does not get there."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.copies import Copies
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.placement import Placement
from cluster.scheduler.scatters import Scatters
from cluster.scheduler.table import GRANTED
from cluster.scheduler.workers import WorkerRecord
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
        self._failed: list[tuple[int, int, int]] = []  # row, its run's identity, worker

    def pushed(self, client: ClientRecord, message: messages.Pushed) -> None:
        """A client could not push a value: try again, or fail who waits for it there. (Workers tell of success.)"""
        row = client.row(message.number)
        worker = self.ledger.worker_called.get(message.address)
        if row < 0 or worker is None or not message.error:
            return
        under_way = self.ledger.pushing.get(row, {})
        tried = under_way.get(worker.index, 0)
        if tried == 1:
            self._push_again(row, worker.index)
            return
        if 1 < tried < PUSHES_TRIED:
            self._failed.append((row, self.ledger.run(row).identity, worker.index))
            return
        if tried:
            text = f"the client could not send an argument to worker {worker.name} at {worker.address}: {message.error}"
            self._give_up(row, worker, message.error)
            self._fail_takers(row, worker, text, "see that the client can connect to the worker's address")

    def refused(self, client: ClientRecord, message: messages.PushRefused) -> None:
        """A client will not push a value: fail who waits for it there."""
        row = client.row(message.number)
        worker = self.ledger.worker_called.get(message.address)
        if row >= 0 and worker is not None and worker.index in self.ledger.pushing.get(row, {}):
            self._give_up(row, worker, message.message)
            self._fail_takers(row, worker, message.message, message.remedy)

    def no_room(self, worker: WorkerRecord, message: messages.RunFailed) -> None:
        """A worker had no room for an input: if a client was to push it and no other task waits for it there, it need
        not go on."""
        table = self.ledger.table
        row = int(message.details.get("row", -1))
        is_known = 0 <= row < len(table) and table.attempt[row] == message.details.get("attempt")
        if not is_known or worker.index not in self.ledger.pushing.get(row, {}):
            return
        if next(self._takers(row, worker), None) is None:
            self._give_up(row, worker, str(message.details.get("message", "")))

    def _give_up(self, row: int, worker: WorkerRecord, error: str) -> None:
        """A value will not get to a worker; tasks apart, all who wait for it hear why."""
        del self.ledger.pushing[row][worker.index]
        self.placement.spreading.failed(row, worker)
        self.scatters.failed(row, worker, error)
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
        failed, self._failed = self._failed, []
        for row, identity, worker_index in failed:
            run = self.ledger.table.run_of[row]
            if run is not None and run.identity == identity:
                self._push_again(row, worker_index)

    def _push_again(self, row: int, worker_index: int) -> None:
        under_way = self.ledger.pushing.get(row, {})
        tried = under_way.pop(worker_index, None)
        worker = self.ledger.workers.get(worker_index)
        if tried is not None and worker is not None:
            self.placement.order_push(row, worker)
            under_way[worker_index] = tried + 1
