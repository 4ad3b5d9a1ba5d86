"""A large value that several workers need: few copies at a time from each holder, and from each new holder the next.

Copies spread as a tree, so the first holder's connection is not shared by all who want the value. Who has to wait is
granted its tasks all the same, with no holder named; it is told by `Fetch` when its turn has come. A client that
broadcasts a value pushes it to one worker, and the others get it from that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.spreads import Spread
from cluster.scheduler.workers import WorkerRecord
from cluster.wire import messages

__all__ = ["CLIENT", "Spreading"]

COPIES_AT_ONCE: Final = 2
"""From one holder: the second uses the time in which the first begins and ends."""
CLIENT: Final = -1
"""The source of a copy that its client pushes."""

Push = Callable[[int, WorkerRecord], None]


class Spreading:
    """All values that spread just now; they are listed in `ledger.spreads`, by row."""

    def __init__(self, ledger: Ledger, push: Push) -> None:
        self.ledger = ledger
        self._push = push

    def sources(self, row: int, worker: WorkerRecord) -> list[str]:
        """From whom a worker that needs the value is to fetch it, best first; nobody: it waits, and will be told."""
        spread = self.ledger.spreads.setdefault(row, Spread())
        if worker.index in spread.under_way:
            return self._addresses(row, spread.under_way[worker.index])
        if worker.index in spread.waiting:
            return []
        source = self._free_source(row, spread)
        if source is None:
            spread.waiting[worker.index] = None
            return []
        spread.under_way[worker.index] = source
        if source == CLIENT:  # since the last holder is lost
            self._push(row, worker)
        return self._addresses(row, source)

    def expects(self, row: int, worker: WorkerRecord) -> bool:
        """Whether a worker will get the value anyway."""
        spread = self.ledger.spreads.get(row)
        return spread is not None and (worker.index in spread.under_way or worker.index in spread.waiting)

    def broadcast(self, row: int, workers: list[WorkerRecord]) -> None:
        """Have each of these get a value that only its client has."""
        spread = self.ledger.spreads.setdefault(row, Spread())
        for worker in workers:
            if worker.index not in spread.under_way:
                spread.waiting[worker.index] = None
        self._go_on(row, spread)

    def held(self, row: int, worker: WorkerRecord) -> None:
        """A worker has the value now, and can give it to others."""
        self._ended(row, worker.index)

    def failed(self, row: int, worker: WorkerRecord) -> None:
        """A worker could not get it. Whether it tries again is for others to say."""
        self._ended(row, worker.index)

    def worker_lost(self, worker: WorkerRecord) -> None:
        """A worker is gone: it needs nothing, and gives nothing."""
        for row in list(self.ledger.spreads):
            self._ended(row, worker.index)

    def gives(self, row: int, worker: WorkerRecord) -> bool:
        """Whether somebody is being given the value by that worker."""
        spread = self.ledger.spreads.get(row)
        return spread is not None and worker.index in spread.under_way.values()

    # ------------------------------------------------------------------ inside

    def _ended(self, row: int, index: int) -> None:
        spread = self.ledger.spreads.get(row)
        if spread is None:
            return
        spread.under_way.pop(index, None)
        spread.waiting.pop(index, None)
        self._go_on(row, spread)

    def _go_on(self, row: int, spread: Spread) -> None:
        ledger, table = self.ledger, self.ledger.table
        while spread.waiting:
            index = next(iter(spread.waiting))
            worker = ledger.workers[index]
            source = self._free_source(row, spread)
            if source is None:
                break
            del spread.waiting[index]
            spread.under_way[index] = source
            if source == CLIENT:
                self._push(row, worker)
            else:
                entry = [row, table.attempt[row], table.nbytes[row], self._addresses(row, source)]
                ledger.send(worker.peer, messages.Fetch([entry]))
        if not spread.waiting and not spread.under_way:
            del ledger.spreads[row]

    def _free_source(self, row: int, spread: Spread) -> int | None:
        """The holder that gives the fewest copies just now, if it may give one more."""
        given: dict[int, int] = dict.fromkeys(self._living_holders(row), 0)
        if not given:
            run = self.ledger.run(row)
            pushes = run.offered and run.client.connected and not spread.under_way
            return CLIENT if pushes else None
        for source in spread.under_way.values():
            if source in given:
                given[source] += 1
        best = min(given, key=given.__getitem__)
        return best if given[best] < COPIES_AT_ONCE else None

    def _living_holders(self, row: int) -> list[int]:
        workers = self.ledger.workers
        return [index for index in self.ledger.table.holders(row) if not workers[index].lost]

    def _addresses(self, row: int, source: int) -> list[str]:
        if source == CLIENT:
            return []
        workers = self.ledger.workers
        living = self._living_holders(row)
        first = [source] if source in living else []
        return [workers[index].address for index in (*first, *(each for each in living if each != source))]
