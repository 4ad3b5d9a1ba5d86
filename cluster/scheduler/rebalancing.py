"""Values moved from workers that hold much to those that hold little, because a client asked for that.

Query
    rebalance           {"numbers": runs (empty: all values), "workers": […]}: `[moved, bytes, [errors]]`

A worker's fair part is by its memory limit. A value is copied first and given up at its old place when the copy is
there, so none is ever without a holder. What a granted task is about to take stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

from cluster.scheduler.administration import chosen_workers, rows_at
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.copies import Copies
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.questions import Questions
from cluster.scheduler.table import FINISHED, GRANTED
from cluster.scheduler.workers import WorkerRecord

__all__ = ["Rebalancing"]

VALUES_LIMIT: Final = 10_000
"""Values of one worker that one request looks at."""
TOLERATED_SHARE: Final = 0.05
"""Of a worker's fair part: moving more than that is worth a transfer."""
DEPENDENTS_LIMIT: Final = 64

Move = tuple[int, WorkerRecord, WorkerRecord]
"""A row, where it is, and where it is to go."""


class Rebalancing:
    """Answers this query."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, questions: Questions, copies: Copies) -> None:
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._questions = questions
        self._copies = copies
        questions.register("rebalance", self._rebalance)

    def _rebalance(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        workers = chosen_workers(self._ledger, self._questions, client, request, detail["workers"])
        if workers is None:
            return
        moves = self._plan([worker for worker in workers if not worker.draining], self._rows(client, detail["numbers"]))
        left, moved, nbytes = len(moves), 0, 0
        errors: list[str] = []
        if not left:
            self._questions.answer(client, request, [0, 0, []])

        def follow(move: Move, attempt: int) -> Callable[[str], None]:
            def copied(error: str) -> None:
                nonlocal left, moved, nbytes
                left -= 1
                if error:
                    errors.append(error)
                elif self._give_up(move, attempt):
                    moved += 1
                    nbytes += self._ledger.table.nbytes[move[0]]
                if not left:
                    self._questions.answer(client, request, [moved, nbytes, errors[:10]])

            return copied

        for move in moves:
            self._copies.copy(move[0], move[2], follow(move, self._ledger.table.attempt[move[0]]))

    def _rows(self, client: ClientRecord, runs: list[int]) -> set[int] | None:
        """The rows that a client named; None when it named none, which means all."""
        if not runs:
            return None
        return {
            row
            for position in range(0, len(runs), 2)
            for _, first, length in client.rows(runs[position], runs[position + 1])
            for row in range(first, first + length)
        }

    def _plan(self, workers: list[WorkerRecord], chosen: set[int] | None) -> list[Move]:
        """Which values should move where, so that each worker holds about its part."""
        weights = {worker.index: float(max(1, worker.memory.limit_bytes)) for worker in workers}
        total = sum(worker.held_bytes for worker in workers)
        fair = {index: total * weight / sum(weights.values()) for index, weight in weights.items()}
        beyond = {worker.index: worker.held_bytes - fair[worker.index] for worker in workers}
        least = [(nbytes, index) for index, nbytes in beyond.items()]  # and what some had beyond their parts before
        heapify(least)
        moves: list[Move] = []
        for giver in sorted(workers, key=lambda worker: -beyond[worker.index]):
            tolerated = TOLERATED_SHARE * fair[giver.index]
            for row in self._candidates(giver, chosen) if beyond[giver.index] > tolerated else ():
                if beyond[giver.index] <= tolerated:
                    break
                while least[0][0] != beyond[least[0][1]]:
                    heappop(least)
                taker = self._ledger.workers[least[0][1]]
                nbytes = self._ledger.table.nbytes[row]
                # It has to bring the two nearer to their parts, not to change their places.
                if nbytes < beyond[giver.index] - beyond[taker.index]:
                    moves.append((row, giver, taker))
                    for worker, change in ((giver, -nbytes), (taker, nbytes)):
                        beyond[worker.index] += change
                        heappush(least, (beyond[worker.index], worker.index))
        return moves

    def _candidates(self, giver: WorkerRecord, chosen: set[int] | None) -> list[int]:
        """Values that only this worker holds, and that nothing which is granted takes; large ones first."""
        table = self._ledger.table
        rows, _ = rows_at(self._ledger, giver.index, FINISHED, VALUES_LIMIT)
        found = [
            row
            for row in rows
            if table.nbytes[row] > 0
            and (chosen is None or row in chosen)
            and row not in table.replicas
            and row not in self._ledger.actors
            and not self._is_taken(row)
        ]
        return sorted(found, key=lambda row: -table.nbytes[row])

    def _is_taken(self, row: int) -> bool:
        table = self._ledger.table
        for place, dependent in enumerate(table.dependents(row)):
            behind = table.dependents(dependent) if self._ledger.run(dependent).is_join else (dependent,)
            if place == DEPENDENTS_LIMIT or any(table.state[other] == GRANTED for other in behind):
                return True
        return False

    def _give_up(self, move: Move, attempt: int) -> bool:
        """The copy is there: free the value at its old place, unless a task is about to take it from there by now."""
        row, giver, taker = move
        table = self._ledger.table
        known = row < len(table) and table.state[row] == FINISHED and table.attempt[row] == attempt
        holders = table.holders(row) if known else []
        if taker.index not in holders or giver.index not in holders or self._is_taken(row):
            return False
        self._ledger.order_free(giver.index, attempt, row)
        self._lifecycle.drop_replica(row, giver.index, f"it was moved to worker {taker.name}")
        return True
