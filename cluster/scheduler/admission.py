"""Whether a worker's memory has room for what a task is about to make; if not, the task is held back.

A worker's *budget* is a share of its memory limit (`worker_memory.py`). Against it count the values that it holds and
that are not on disk, what its granted tasks are expected to make, and the inputs that are on their way to it. A task is
admitted when what it makes, and the inputs that must be moved for it, fit as well. Besides:

- One that frees about as much as it makes always passes: nothing gets worse by it. (A value that several unfinished
  tasks keep is freed by each of them in part.) Not so with `memory=`: who says what a task needs is taken at his word.
- What is there for others never takes all: results that a client wants, and other clients' values, can go to disk. At
  least half of the budget is for the work of those clients that have work there, in equal parts. So what is held for
  one cannot stop another's producers.
- The world never stops. When nothing of the client runs at the worker, and nothing is being moved or spilled there, the
  first task that uses values up, or makes the last one that another task waits for, is admitted whatever it needs. Any
  other is when nothing of the client runs anywhere: as long as something does, its end may make room. Not for one that
  needs more than an empty worker's budget: that is admitted where it fits into the memory limit with what is there.
- Where an input was refused, since neither memory nor disk had room for it, a task waits for better (`refusals.py`).
- Nothing is known of a function until its first result has come. Until then its tasks are granted to free slots only,
  and where there is any room at all.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.refusals import has_refused
from cluster.scheduler.table import INTERMEDIATE, WAITING, Run
from cluster.scheduler.workers import WorkerRecord

__all__ = ["Admission", "freed_bytes", "is_held_back", "need_bytes", "room_bytes"]

WORK_SHARE: Final = 0.5  # of the budget, which is never taken by what is there for others
EASY_SHARE: Final = 0.5  # of the budget: up to there nobody looks at single tasks

AS_MUCH: Final = 0.8  # estimates of two functions whose results are alike differ by so much, now and then
BRINGING_SHARE: Final = 0.8  # of the memory limit, with what is brought for a task that frees what it makes
DEPENDENTS_LOOKED_AT: Final = 16
STEPS_FOLLOWED: Final = 8  # through tasks that take one value each
NO_LIMIT: Final = 1 << 62


def room_bytes(worker: WorkerRecord, client: bytes) -> float:
    """How much more a client's tasks may make at a worker, or move there; below zero when there is too much."""
    memory, held = worker.memory, worker.held_bytes
    budget = memory.budget_bytes
    working = len(memory.promised) + (client not in memory.promised)
    own = budget * WORK_SHARE / working - memory.own_bytes(client, held)
    return max(own, budget - memory.used_bytes(held))


def made_bytes(run: Run) -> int | None:
    """What a task of a run makes, or needs; None when nobody knows yet."""
    return run.memory_bytes or run.output_sizes.taken_bytes


def need_bytes(ledger: Ledger, row: int, worker: WorkerRecord) -> int:
    """What a task would add to a worker's memory: what it makes, and the inputs that are neither there nor coming."""
    table, coming = ledger.table, worker.memory.coming
    nbytes = made_bytes(ledger.run(row)) or 0
    for source in _values_taken(ledger, row):
        if source not in coming and worker.index not in table.holders(source):
            nbytes += table.nbytes[source]
    return nbytes


def freed_bytes(ledger: Ledger, row: int) -> float:
    """What goes when a task has run: its part of each intermediate input, by how many unfinished tasks keep that.

    An input smaller than its function's results mostly are counts as one of these, since what it is compared with, the
    estimate of what the task makes, is of the larger ones too.
    """
    table = ledger.table
    through = 1  # tasks that share the inputs behind a join
    sources = table.inputs_of(row)
    if len(sources) == 1 and ledger.run(sources[0]).is_join:
        through = max(1, table.holds[sources[0]])
    freed = 0.0
    for source in _values_taken(ledger, row):
        if table.flags[source] & INTERMEDIATE:
            usual = ledger.run(source).output_sizes.estimate_bytes or 0
            freed += max(table.nbytes[source], usual) / (through * max(1, table.holds[source]))
    return freed


def is_held_back(ledger: Ledger, row: int, worker: WorkerRecord, now: float) -> bool:
    """Whether a ready task must wait, as things are, for room in a worker's memory."""
    run = ledger.run(row)
    if not run.calls_actor and has_refused(ledger, row, worker):
        return True
    made = made_bytes(run)
    if run.makes_actor or run.calls_actor or made == 0:
        return False
    room = room_bytes(worker, run.client.identity)
    need = need_bytes(ledger, row, worker)
    if room > 0 and need <= room:
        return False
    if made is not None and not run.memory_bytes and freed_bytes(ledger, row) >= made * AS_MUCH:
        # What has to be brought here for it is freed elsewhere first, and must find a place until then.
        memory = worker.memory
        brought = need - made
        if not brought or memory.used_bytes(worker.held_bytes) + need <= BRINGING_SHARE * memory.limit_bytes:
            return False
    return not (
        stands_still(worker, run.client.identity, now) and (_waits_in_vain(worker, need) or _helps(ledger, row, run))
    )


def stands_still(worker: WorkerRecord, client: bytes, now: float) -> bool:
    """Whether waiting brings nothing at a worker: no task of the client runs, nothing is moved or spilled there."""
    memory = worker.memory
    if memory.coming or memory.is_spilling(now):
        return False
    return not any(
        grant.run.client.identity == client
        and grant.left > sum(attempt == waiting for waiting, _ in worker.suspended)
        and not (grant.run.makes_actor or grant.run.calls_actor)
        for attempt, grant in worker.grants.items()
    )


def _waits_in_vain(worker: WorkerRecord, need: int) -> bool:
    """Whether a task finds no room at a worker however much goes there, and yet its memory is large enough."""
    memory = worker.memory
    return need > memory.full_budget_bytes and memory.used_bytes(worker.held_bytes) + need <= memory.limit_bytes


def _helps(ledger: Ledger, row: int, run: Run) -> bool:
    """Whether a task for which there is no room is worth the overflow: it uses values up, or completes what another
    takes; or nothing of its client runs anywhere, so that nothing else would ever make room."""
    return run.dependency_starts is not None or run.client.running == 0 or _completes_a_consumer(ledger, row)


def _completes_a_consumer(ledger: Ledger, row: int) -> bool:
    """Whether some task has all its other inputs, and waits for a row or for what is made of it alone."""
    table = ledger.table
    for _ in range(STEPS_FOLLOWED):
        following = -1
        for dependent in islice(table.dependents(row), DEPENDENTS_LOOKED_AT):
            if table.state[dependent] == WAITING and table.waiting[dependent] == 1:
                if len(_values_taken(ledger, dependent)) > 1:
                    return True
                following = dependent
        if following < 0:
            return False
        row = following
    return False


def _values_taken(ledger: Ledger, row: int) -> dict[int, None]:
    """The rows whose values a task takes, each once; behind a join, those that the join stands for."""
    sources = ledger.table.inputs_of(row)
    if len(sources) == 1 and ledger.run(sources[0]).is_join:
        sources = ledger.table.inputs_of(sources[0])
    return dict.fromkeys(sources)


class Admission:
    """What placement asks before it grants tasks of a run. `refused` is set when memory alone kept one back."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.refused = False
        self._no_help: set[int] = set()  # rows of which that was found in this step, whatever the worker

    def begin_step(self) -> None:
        """What was found of single rows may have changed."""
        self._no_help.clear()

    def limit(self, run: Run, worker: WorkerRecord, now: float) -> int:
        """How many tasks of a run may be granted to a worker at one time, as far as its memory goes."""
        made = made_bytes(run)
        if made == 0 or run.makes_actor or run.calls_actor:
            return NO_LIMIT
        if run.dependency_starts is not None:
            easy = EASY_SHARE * worker.memory.budget_bytes - worker.memory.used_bytes(worker.held_bytes)
            if made is None:
                return NO_LIMIT if easy >= 0 else 1
            return max(1, int(min(easy, NO_LIMIT) // made))  # beyond that they are looked at one by one
        client = run.client.identity
        room = room_bytes(worker, client)
        fit = 0 if room <= 0 else NO_LIMIT if made is None else int(min(room, NO_LIMIT) // made)
        if fit == 0 and stands_still(worker, client, now):
            return 1  # perhaps: single rows are looked at then
        self.refused = self.refused or not fit
        return fit

    def judge(self, run: Run, worker: WorkerRecord, now: float) -> Callable[[int], bool] | None:
        """A judge of the single rows of a run; None when all of them may go."""
        made = made_bytes(run)
        refusals = self._ledger.refusals
        was_refused = bool(refusals) and any(run.start <= row < run.start + run.count for row in refusals)
        if run.calls_actor or ((made == 0 or run.makes_actor) and not was_refused):
            return None
        memory = worker.memory
        if run.dependency_starts is None:
            room = room_bytes(worker, run.client.identity)
            if room > 0 and (made or 0) <= room:
                return None

            def helps(row: int) -> bool:
                if _waits_in_vain(worker, made or 0):
                    return True
                if row not in self._no_help and _helps(self._ledger, row, run):
                    return True
                self._no_help.add(row)
                self.refused = True
                return False

            return helps  # for there is no room, and `limit` saw that nothing moves here
        is_easy = memory.used_bytes(worker.held_bytes) + (made or 0) <= EASY_SHARE * memory.budget_bytes
        if is_easy and not was_refused:
            return None

        def admits(row: int) -> bool:
            held_back = is_held_back(self._ledger, row, worker, now)
            self.refused = self.refused or held_back
            return not held_back

        return admits
