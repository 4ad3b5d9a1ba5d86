"""What the scheduler keeps of a client: its numbers, its wants, its share of the slots."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from cluster.scheduler.functions import FunctionRecord
from cluster.scheduler.ready import Lane
from cluster.scheduler.table import FREE, Run

__all__ = ["ClientRecord"]

SHARE_MEMORY_SECONDS = 60.0  # "the last minute" over which clients have equal shares
DEAD_RUNS_BEFORE_COMPACTION = 64


class ClientRecord:
    """One client's numbers (as runs), aliases for others' tasks, functions, ready lanes and used slot time."""

    def __init__(self, identity: bytes, name: str, peer: int, states: bytearray) -> None:
        self.identity = identity
        self._states = states  # the table's column: a row of a living run may be free by itself
        self.name = name
        self.peer = peer
        self.connected = True
        self.in_slot = False  # it lives in a worker's slot: its wants end with its connection
        self.ended = False  # all that it wanted was released for good
        self.gone_at = math.inf  # when the connection was lost
        self.congested = False  # the client does not read what was sent
        self.shows_output = False  # it wants to see what its tasks write
        self.unshown_bytes = 0  # … and it was too slow for so much of it
        self.functions: dict[bytes, FunctionRecord] = {}
        self.aliases: dict[int, int] = {}  # own number -> row of another client's task
        self.filled_aliases: set[int] = set()  # those of which it was sent the bytes, with futures inside
        self.lanes: dict[object, Lane] = {}
        self.ready_rows = 0
        self.running = 0  # its granted tasks that take slots
        self.granted_seconds = 0.0  # what its granted tasks are expected to take
        self.weight = 1.0
        self.argument_bytes = 0  # of its tasks that were never granted
        self.taken_bytes = 0  # of all others
        self.told_bytes = 0  # so much of that it was told
        self.oldest_recipe = self.newest_recipe = -1  # rows, the ends of a list in the table's columns
        self.recipe_rows = 0
        self.recipe_bytes = 0
        self._taken: list[list[int]] = []  # numbers that ever came, as sorted [first, stop]
        self._used_seconds = 0.0
        self._used_at = 0.0
        self._firsts: array[int] = array("q")
        self._runs: list[Run | None] = []
        self._dead_runs = 0
        self._last: Run | None = None

    # ------------------------------------------------------------------ numbers

    def take_numbers(self, first: int, count: int) -> bool:
        """Note numbers that came; False when they came before, so that a part sent twice is recognised.

        Numbers come almost in order, so that there are few gaps (one for each call that another thread overtook).
        """
        taken, stop = self._taken, first + count
        position = bisect_right(taken, first, key=lambda piece: piece[0])
        if position and taken[position - 1][1] > first:
            return False
        if position < len(taken) and taken[position][0] < stop:
            return False
        if position and taken[position - 1][1] == first:
            position -= 1
            taken[position][1] = stop
        else:
            taken.insert(position, [first, stop])
        if position + 1 < len(taken) and taken[position + 1][0] == stop:
            taken[position][1] = taken.pop(position + 1)[1]
        return True

    def add_run(self, run: Run) -> None:
        """Note a run."""
        if self._firsts and run.first_number < self._firsts[-1]:
            position = bisect_right(self._firsts, run.first_number)
            self._firsts.insert(position, run.first_number)
            self._runs.insert(position, run)
        else:
            self._firsts.append(run.first_number)
            self._runs.append(run)

    def drop_run(self, run: Run) -> None:
        """Forget a run whose rows are all free."""
        position = bisect_right(self._firsts, run.first_number) - 1
        if self._last is run:
            self._last = None
        self._runs[position] = None
        self._dead_runs += 1
        if self._dead_runs > DEAD_RUNS_BEFORE_COMPACTION and 2 * self._dead_runs > len(self._runs):
            kept = [known for known in self._runs if known is not None]
            self._runs = list(kept)
            self._firsts = array("q", [known.first_number for known in kept])
            self._dead_runs = 0

    def run_with(self, number: int) -> Run | None:
        """The run that has this number, if any is left."""
        run = self._last
        if run is not None and 0 <= number - run.first_number < run.count:
            return run
        position = bisect_right(self._firsts, number) - 1
        if position < 0:
            return None
        run = self._runs[position]
        if run is None or number - run.first_number >= run.count:
            return None
        self._last = run
        return run

    def row(self, number: int) -> int:
        """The row of a number, or -1 when the scheduler no longer (or not yet) knows it."""
        run = self.run_with(number)
        if run is not None:
            row = run.start + number - run.first_number
            return row if self._states[row] != FREE else -1
        return self.aliases.get(number, -1)

    def rows_of(self, numbers: array[int]) -> array[int]:
        """The rows of several, -1 for what is gone. Inputs mostly lie in one run, which is then found once."""
        run = self.run_with(min(numbers))
        if run is not None and max(numbers) < run.first_number + run.count and run.live == run.count:
            shift = run.start - run.first_number
            return array("q", [number + shift for number in numbers])
        return array("q", map(self.row, numbers))

    def rows(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Known parts of a run of numbers, as `(number, row, count)`; unknown numbers are passed over."""
        number, stop = first, first + count
        while number < stop:
            run = self.run_with(number)
            if run is not None:
                row = run.start + number - run.first_number
                length = min(stop, run.first_number + run.count) - number
                yield number, row, length
                number += length
                continue
            alias = self.aliases.get(number)
            if alias is not None:
                yield number, alias, 1
                number += 1
                continue
            number = self._next_known(number, stop)

    def _next_known(self, number: int, stop: int) -> int:
        position = bisect_right(self._firsts, number)
        following = self._firsts[position] if position < len(self._firsts) else stop
        for alias in self.aliases:
            if number < alias < following:
                following = alias
        return min(following, stop)

    @property
    def run_count(self) -> int:
        """How many runs are left."""
        return len(self._runs) - self._dead_runs

    def all_runs(self) -> list[Run]:
        """The runs that are left, in the order of their numbers."""
        return [run for run in self._runs if run is not None]

    def runs_from(self, number: int, limit: int) -> list[Run]:
        """Runs whose numbers begin there or later, in their order; fewer than `limit` when there are no more."""
        found: list[Run] = []
        for position in range(bisect_left(self._firsts, number), len(self._runs)):
            run = self._runs[position]
            if run is not None:
                found.append(run)
                if len(found) == limit:
                    break
        return found

    # ------------------------------------------------------------------ share

    def used_seconds(self, now: float) -> float:
        """Slot time over about the last minute, what is granted counted as it is expected, by weight."""
        decayed = self._used_seconds * math.exp((self._used_at - now) / SHARE_MEMORY_SECONDS)
        return (decayed + self.granted_seconds) / self.weight

    def charge(self, now: float, seconds: float) -> None:
        """Note slot time that the client's tasks took."""
        self._used_seconds = self._used_seconds * math.exp((self._used_at - now) / SHARE_MEMORY_SECONDS) + seconds
        self._used_at = now
