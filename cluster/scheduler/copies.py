"""Copies of values on other workers: made because somebody asked, or because a worker is to go.

Queries
    replicate           {"numbers": runs, "count": n, "workers": […]}: each value on n workers (0: all of those)
    retire_workers      {"workers": […], "close": bool}: grant them nothing more, hand on what only they hold, end them
"""

from __future__ import annotations

from collections.abc import Callable, Container
from heapq import heapify, heappop, heappush
from typing import Any, Final

from cluster.scheduler.administration import chosen_workers, rows_at
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.placement import Placement
from cluster.scheduler.questions import Questions
from cluster.scheduler.spreads import SPREAD_FROM_BYTES
from cluster.scheduler.table import FINISHED
from cluster.scheduler.workers import WorkerRecord
from cluster.wire import messages

__all__ = ["Copies"]

ROWS_A_STEP: Final = 512
"""Rows of a worker that is to go which are looked at, and copied if need be, at one time."""
SEARCHES_LIMIT: Final = 3
"""So often its values are gone through when some could not be copied."""

Copied = Callable[[str], None]
"""Called with what went wrong, or nothing."""


class Copies:
    """The copies that are under way, and the workers that are to go."""

    def __init__(self, ledger: Ledger, placement: Placement, questions: Questions) -> None:
        self.ledger = ledger
        self.placement = placement
        self.questions = questions
        self.retiring: dict[int, _Retirement] = {}  # by the worker's index
        self._under_way: dict[tuple[int, int, int], list[Copied]] = {}  # (worker index, row, attempt)
        questions.register("replicate", self._replicate)
        questions.register("retire_workers", self._retire)

    # ------------------------------------------------------------------ one copy

    def copy(self, row: int, worker: WorkerRecord, copied: Copied) -> None:
        """Have a worker get a copy of a value; `copied` is called once."""
        ledger, table = self.ledger, self.ledger.table
        attempt = table.attempt[row]
        holders = table.holders(row)
        waiting = self._under_way.setdefault((worker.index, row, attempt), [])
        waiting.append(copied)
        if len(waiting) > 1:
            return
        ledger.copying[row] = ledger.copying.get(row, 0) + 1
        if holders and table.nbytes[row] > SPREAD_FROM_BYTES:
            addresses = self.placement.spreading.sources(row, worker)
            if addresses:  # else it waits for its turn
                ledger.send(worker.peer, messages.Fetch([[row, attempt, table.nbytes[row], addresses]]))
        elif holders:
            addresses = [ledger.workers[index].address for index in holders]
            ledger.send(worker.peer, messages.Fetch([[row, attempt, table.nbytes[row], addresses]]))
        else:  # only its client has it
            self.placement.order_push(row, worker)

    def held(self, worker: WorkerRecord, values: list[int]) -> None:
        """A worker has values that it did not make."""
        if self._under_way:
            for position in range(0, len(values), 3):
                self._ended(worker, values[position], values[position + 1], "")

    def failed(self, worker: WorkerRecord, message: messages.FetchFailed) -> None:
        """A worker could not get a copy."""
        self._ended(worker, message.row, message.attempt, message.reason or "nobody has it any more")

    def awaits(self, row: int, worker: WorkerRecord) -> bool:
        """Whether a copy of a value is being made at that worker."""
        return (worker.index, row, self.ledger.table.attempt[row]) in self._under_way

    def not_pushed(self, row: int, worker: WorkerRecord, error: str) -> None:
        """A client could not push a value to a worker."""
        self._ended(worker, row, self.ledger.table.attempt[row], error or "its client could not send it")

    def worker_gone(self, worker: WorkerRecord) -> None:
        """A worker is lost."""
        for _, row, attempt in [name for name in self._under_way if name[0] == worker.index]:
            self._ended(worker, row, attempt, f"worker {worker.name} was lost")
        retirement = self.retiring.pop(worker.index, None)
        if retirement is not None:
            retirement.gone()

    def tell_of_released(self) -> None:
        """Of some values that are being copied the last reason to have them is gone: there will be no copies."""
        rows, self.ledger.uncopied = set(self.ledger.uncopied), []
        for name in [name for name in self._under_way if name[1] in rows]:
            self._end(name, "the value was released, or lost, meanwhile")

    def _ended(self, worker: WorkerRecord, row: int, attempt: int, error: str) -> None:
        self._end((worker.index, row, attempt), error)

    def _end(self, name: tuple[int, int, int], error: str) -> None:
        waiting = self._under_way.pop(name, None)
        if waiting is None:
            return
        copying, row = self.ledger.copying, name[1]
        copying[row] -= 1
        if not copying[row]:
            del copying[row]
        for copied in waiting:
            copied(error)

    # ------------------------------------------------------------------ replicate

    def _replicate(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        ledger, table = self.ledger, self.ledger.table
        workers = chosen_workers(ledger, self.questions, client, request, detail["workers"])
        if workers is None:
            return
        workers = [worker for worker in workers if not worker.draining]
        count = int(detail["count"]) or len(workers)
        if count > len(workers):
            there = f"there are {len(workers)}" if not detail["workers"] else f"{len(workers)} were named"
            self.questions.answer(client, request, error=f"copies on {count} workers were asked for, and {there}")
            return
        plan: list[tuple[int, WorkerRecord]] = []
        takers, chosen = _Takers(workers), {worker.index for worker in workers}
        runs = detail["numbers"]
        for position in range(0, len(runs), 2):
            for _, first, length in client.rows(runs[position], runs[position + 1]):
                for row in range(first, first + length):
                    if ledger.has_value(row):
                        holders = chosen.intersection(table.holders(row))
                        found = takers.take(table.nbytes[row], count - len(holders), holders)
                        plan += [(row, worker) for worker in found]
        self._make(plan, lambda errors: self.questions.answer(client, request, [len(plan), errors[:10]]))

    def _make(self, plan: list[tuple[int, WorkerRecord]], done: Callable[[list[str]], None]) -> None:
        errors: list[str] = []
        left = len(plan)
        if not plan:
            done(errors)

        def copied(error: str) -> None:
            nonlocal left
            if error:
                errors.append(error)
            left -= 1
            if not left:
                done(errors)

        for row, worker in plan:
            self.copy(row, worker, copied)

    # ------------------------------------------------------------------ workers that are to go

    def _retire(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        ledger = self.ledger
        workers = chosen_workers(ledger, self.questions, client, request, detail["workers"])
        if workers is None:
            return
        staying = [worker for worker in ledger.workers.values() if worker not in workers and not worker.draining]
        holding = [worker for worker in workers if worker.held_values or worker.outstanding]
        if holding and not staying:
            error = (
                f"worker {holding[0].name} has tasks or values, and no other worker would be left to hand them to: "
                "start one first, or cancel the tasks and release the futures"
            )
            self.questions.answer(client, request, error=error)
            return
        answer = _RetirementAnswer(self, client, request, [worker.address for worker in workers])
        for worker in workers:
            worker.draining = True
            self.placement.refresh(worker)
            self.placement.recall_all(worker)
            self.retiring[worker.index] = _Retirement(self, worker, answer, bool(detail["close"]))
        answer.start()

    def look_after_retiring(self) -> None:
        """Go on with workers that are to go; called after every event while there are any."""
        for retirement in list(self.retiring.values()):
            retirement.go_on()

    @property
    def searching(self) -> bool:
        """Whether there is more to do at once, without any event."""
        return any(retirement.searching for retirement in self.retiring.values())


class _Takers:
    """Workers that copies are planned for, who has most room first: what was planned for each before counts."""

    def __init__(self, workers: list[WorkerRecord]) -> None:
        self._heap = [(worker.memory.used_share(worker.held_bytes), worker.index, worker) for worker in workers]
        heapify(self._heap)

    def take(self, nbytes: int, count: int, without: Container[int]) -> list[WorkerRecord]:
        """The next so many for a value of that size, those of some indices left out."""
        passed: list[tuple[tuple[float, int], int, WorkerRecord]] = []
        found: list[WorkerRecord] = []
        while len(found) < count:
            entry = heappop(self._heap)
            (_, held), index, worker = entry
            if index in without:
                passed.append(entry)
            else:
                found.append(worker)
                passed.append((worker.memory.used_share(held + nbytes), index, worker))
        for entry in passed:
            heappush(self._heap, entry)
        return found


class _RetirementAnswer:
    """One query's answer, when all its workers have gone."""

    def __init__(self, copies: Copies, client: ClientRecord, request: int, addresses: list[str]) -> None:
        self._copies = copies
        self._client = client
        self._request = request
        self._addresses = addresses
        self._left = len(addresses) + 1
        self._errors: list[str] = []

    def start(self) -> None:
        """All are on their way."""
        self.ended("")

    def ended(self, error: str) -> None:
        """One has gone, or stays for this reason."""
        if error:
            self._errors.append(error)
        self._left -= 1
        if not self._left:
            result = None if self._errors else self._addresses
            self._copies.questions.answer(self._client, self._request, result, "; ".join(self._errors))


class _Retirement:
    """One worker that is to go: first its tasks end, then what only it holds is copied, then it is told to end."""

    def __init__(self, copies: Copies, worker: WorkerRecord, answer: _RetirementAnswer, close: bool) -> None:
        self._copies = copies
        self._worker = worker
        self._answer = answer
        self._close = close
        self._next_row = 0  # where the search for values goes on; -1: it has come to the end
        self._copying = 0
        self._told = False
        self._missed = False  # a copy could not be made since the search began
        self._searches = 0

    @property
    def searching(self) -> bool:
        """Whether the next step needs no event."""
        return not (self._worker.outstanding or self._copying or self._told)

    def go_on(self) -> None:
        """Do the next step, if it can be done."""
        if not self.searching:
            return
        ledger, table = self._copies.ledger, self._copies.ledger.table
        if self._next_row >= 0:
            start = self._next_row
            rows, self._next_row = rows_at(ledger, self._worker.index, FINISHED, ROWS_A_STEP, start)
            only = [row for row in rows if table.holds[row] > 0 and len(table.holders(row)) == 1]
            if only:
                self._hand_on(only)
        elif self._missed and self._searches < SEARCHES_LIMIT:
            self._missed, self._next_row = False, 0  # what could not be copied may have been freed, or may be now
            self._searches += 1
        elif self._missed:
            self._stay("nobody could take over all values that only it holds")
        else:
            self._told = True
            if self._close:
                ledger.send(self._worker.peer, messages.ShutDown("it was retired"))
            else:
                self._copies.retiring.pop(self._worker.index, None)
                self._answer.ended("")

    def _hand_on(self, rows: list[int]) -> None:
        staying = [worker for worker in self._copies.ledger.workers.values() if not worker.draining]
        if not staying:
            self._stay("no other worker is left to hand its values to")
            return
        takers = _Takers(staying)
        for row in rows:
            (taker,) = takers.take(self._copies.ledger.table.nbytes[row], 1, ())
            self._copying += 1
            self._copies.copy(row, taker, self._copied)

    def _copied(self, error: str) -> None:
        self._copying -= 1
        self._missed = self._missed or bool(error)

    def _stay(self, why: str) -> None:
        reason = f"worker {self._worker.name} stays: {why}"
        self._copies.retiring.pop(self._worker.index, None)
        self._worker.draining = False
        self._copies.placement.refresh(self._worker)
        self._answer.ended(reason)

    def gone(self) -> None:
        """The worker's connection has ended."""
        self._answer.ended("")
