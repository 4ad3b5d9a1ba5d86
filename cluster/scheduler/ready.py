"""The tasks that may start, in the order in which they should, with each worker's stretch of a batch.

A **lane** holds one client's ready tasks of one restriction (most tasks have none): whether a worker may take from a
lane is then one question for all of them. A lane is a heap of buckets by priority, then depth (consumers before
producers), then age. A **bucket** holds the ready rows of one run as stretches of consecutive rows, each owned by a
worker or by nobody. A worker draws from its own stretch; when that is empty it takes half of the largest other one. So
neighbours, which often feed one consumer, stay together without anybody having planned it.

A row that leaves the ready state otherwise than by being taken (a cancel, a lost input) is not looked up here: it is
skipped when its turn comes, because its state says that it is not ready.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import chain
from typing import NamedTuple

from cluster.scheduler.hosts import Host
from cluster.scheduler.neighbours import Neighbours
from cluster.scheduler.table import GRANTED, READY, Run

__all__ = ["ANYWHERE", "NOBODY", "Bucket", "Lane", "Restriction"]

NOBODY = -1
VICTIMS_LOOKED_AT = 8
BLOCKED_BUCKETS_LOOKED_AT = 32
BLOCKED_BUCKETS_SEARCHED = 256  # when there is time for it
SPANS_LOOKED_AT = 10_000
WORTH_MOVING_BYTES = 64 << 10
MATES_LOOKED_AT = 4  # of a worker's own stretch, before those that come first
ADMITTED_AMONG = 16  # rows of a stretch, when a worker's memory is nearly full

Span = tuple[int, int]


class Restriction(NamedTuple):
    """Where a task may run: on these workers (names or addresses; empty: on any) with these resources free."""

    workers: tuple[str, ...] = ()
    allow_other_workers: bool = False
    resources: tuple[tuple[str, float], ...] = ()


ANYWHERE = Restriction()


class Bucket:
    """The ready rows of one run, as stretches by owner."""

    __slots__ = ("_heap", "_lengths", "dirty", "listed", "neighbours", "place", "run", "size", "spans")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.size = 0  # rows that are ready; the spans may list a few that no longer are
        self.dirty = False  # some listed row may not be ready
        self.listed = False  # stands in its lane's heap
        self.neighbours: Neighbours | None = None  # what was submitted in one go with it
        self.place = 0  # among these
        self.spans: dict[int, deque[list[int]]] = {}
        self._lengths: dict[int, int] = {}
        self._heap: list[Span] = []  # (-length at some time, owner): the length is checked when it is used

    def add(self, owner: int, start: int, stop: int) -> None:
        """List rows `start` to `stop` as that owner's."""
        spans = self.spans.get(owner)
        if spans is None:
            self.spans[owner] = deque([[start, stop]])
            self._lengths[owner] = stop - start
            heappush(self._heap, (start - stop, owner))
        else:
            if spans[-1][1] == start:
                spans[-1][1] = stop
            else:
                spans.append([start, stop])
            self._lengths[owner] += stop - start
        self.size += stop - start

    def owner_of(self, row: int) -> int:
        """Whose stretch a row stands in; NOBODY's too if that is not seen in as many spans as are worth a look."""
        looked_at = 0
        for owner, spans in self.spans.items():
            for start, stop in spans:
                looked_at += 1
                if start <= row < stop:
                    return owner
                if looked_at > SPANS_LOOKED_AT:
                    return NOBODY
        return NOBODY

    def take(
        self,
        worker: int,
        limit: int,
        state: bytearray,
        may_move: Callable[[int, int, int], bool],
        search: int,
        admits: Callable[[int], bool] | None = None,
    ) -> list[Span]:
        """Up to `limit` ready rows for a worker, as spans; its own first.

        `may_move(row, owner, worker)` says whether rows of another owner's stretch are better run here. The last row
        speaks for its stretch; where it does not move, `search` further rows are looked at, and move alone.
        `admits(row)`, if given, says whether the worker's memory has room for a row; then one is taken at a time.
        """
        if admits is not None:
            # A row without inputs is looked at once for all workers; so more are, when there is time for it.
            among = ADMITTED_AMONG * search if search and self.run.dependency_starts is None else ADMITTED_AMONG
            return self._take_admitted(worker, state, may_move, admits, among)
        taken: list[Span] = []
        while limit > 0 and self.size > 0:
            spans = self.spans.get(worker)
            if spans is None:
                if not self._take_over(worker, limit, may_move, search):
                    break
                continue
            start, stop = spans[0]
            if self.dirty and state.count(READY, start, stop) != stop - start:
                if state[start] != READY:
                    self._shorten(worker, spans, start, start + 1)
                    continue
                middle = start
                while middle < stop and state[middle] == READY:
                    middle += 1
                stop = middle
            stop = min(stop, start + limit)
            self._shorten(worker, spans, start, stop)
            if self.dirty:
                # A row may be listed twice, when it became ready again; the second time it is no longer.
                state[start:stop] = bytes((GRANTED,)) * (stop - start)
            taken.append((start, stop))
            self.size -= stop - start
            limit -= stop - start
        if self.size == 0:
            self._clear()
        return taken

    def _take_admitted(
        self,
        worker: int,
        state: bytearray,
        may_move: Callable[[int, int, int], bool],
        admits: Callable[[int], bool],
        among: int,
    ) -> list[Span]:
        """One ready row that is admitted, if there is one among those that are worth a look: the worker's own first."""
        for owner in [worker, *(owner for owner in self.spans if owner != worker)][: 1 + VICTIMS_LOOKED_AT]:
            looked_at = 0
            for span in self.spans.get(owner, ()):
                for row in range(*span):
                    if looked_at == among:
                        break
                    if state[row] != READY:
                        continue
                    looked_at += 1
                    if (owner in (worker, NOBODY) or may_move(row, owner, worker)) and admits(row):
                        self.forget(row)
                        self.size -= 1
                        if self.size == 0:
                            self._clear()
                        return [(row, row + 1)]
        return []

    def forget(self, row: int) -> None:
        """Take a row out of every stretch that still lists it."""
        for owner in [owner for owner, spans in self.spans.items() if any(row in range(*span) for span in spans)]:
            kept: deque[list[int]] = deque()
            for start, stop in self.spans[owner]:
                cut = ([start, row], [row + 1, stop]) if start <= row < stop else ([start, stop],)
                kept.extend(piece for piece in cut if piece[0] < piece[1])
            self._keep(owner, kept)

    def _shorten(self, owner: int, spans: deque[list[int]], start: int, stop: int) -> None:
        self._lengths[owner] -= stop - start
        if spans[0][1] == stop:
            spans.popleft()
            if not spans:
                del self.spans[owner]
                del self._lengths[owner]
        else:
            spans[0][0] = stop

    def _take_over(self, thief: int, limit: int, may_move: Callable[[int, int, int], bool], search: int) -> bool:
        """Give half of the largest other stretch to `thief`, all if the grant takes it; False when none may move."""
        refused: list[Span] = []
        victim = None
        while self._heap and len(refused) < VICTIMS_LOOKED_AT:
            length, owner = self._heap[0]
            actual = self._lengths.get(owner, 0)
            if actual != -length:
                heappop(self._heap)
                if actual:
                    heappush(self._heap, (-actual, owner))
                continue
            if owner == NOBODY or may_move(self.spans[owner][-1][1] - 1, owner, thief):
                victim = owner
                break
            refused.append(heappop(self._heap))
        if victim is not None:
            heappop(self._heap)  # its entry; those that were refused may be larger, and come back after it
        for entry in refused:
            heappush(self._heap, entry)
        if victim is None:
            return any(self._move_one(owner, thief, may_move, search) for _, owner in refused)
        self._move(victim, thief, limit)
        return True

    def _move_one(self, victim: int, thief: int, may_move: Callable[[int, int, int], bool], search: int) -> bool:
        """Give one row out of the middle of a stretch to `thief`, if one of `search` rows may move."""
        spans = self.spans[victim]
        for position in range(len(spans) - 1, max(-1, len(spans) - 1 - search), -1):
            start, stop = spans[position]
            for row in range(stop - 1, max(start - 1, stop - 1 - search), -1):
                if may_move(row, victim, thief):
                    spans[position] = [row + 1, stop]
                    spans.insert(position, [start, row])
                    self._keep(victim, deque(span for span in spans if span[0] < span[1]))
                    self._keep(thief, deque([[row, row + 1]]))
                    return True
        return False

    def _keep(self, owner: int, spans: deque[list[int]]) -> None:
        if spans:
            self.spans[owner] = spans
            self._lengths[owner] = sum(stop - start for start, stop in spans)
            heappush(self._heap, (-self._lengths[owner], owner))
        else:
            del self.spans[owner]
            del self._lengths[owner]

    def _move(self, victim: int, thief: int, limit: int) -> None:
        spans = self.spans[victim]
        remaining = self._lengths[victim]
        # A stretch is not cut into pieces smaller than a grant: neighbours that run apart are finished one by one, and
        # so is all that follows from them.
        wanted = remaining if remaining <= limit else (remaining + 1) // 2
        moved: deque[list[int]] = deque()
        left = wanted
        # Nobody's stretch is taken from the front, so that rows run in order; another's from the back.
        front = victim == NOBODY
        while left:
            start, stop = spans[0] if front else spans[-1]
            if stop - start <= left:
                (spans.popleft if front else spans.pop)()
                piece = [start, stop]
            elif front:
                spans[0][0] = start + left
                piece = [start, start + left]
            else:
                spans[-1][1] = stop - left
                piece = [stop - left, stop]
            if front:
                moved.append(piece)
            else:
                moved.appendleft(piece)
            left -= piece[1] - piece[0]
        self.spans[thief] = moved
        self._lengths[thief] = wanted
        heappush(self._heap, (-wanted, thief))
        if spans:
            self._lengths[victim] = remaining - wanted
            heappush(self._heap, (wanted - remaining, victim))
        else:
            del self.spans[victim]
            del self._lengths[victim]

    def _clear(self) -> None:
        self.spans.clear()
        self._lengths.clear()
        self._heap.clear()
        self.dirty = False


class Lane:
    """One client's ready rows under one restriction."""

    __slots__ = ("_neighbours", "heap", "restriction", "runs", "size", "unmet_since")

    def __init__(self, restriction: Restriction) -> None:
        self.restriction = restriction
        self.runs = 0  # that have rows, ready or not
        self.size = 0
        self.unmet_since = math.inf  # since when no connected worker can meet the restriction of what is ready
        self.heap: list[tuple[int, int, int, Bucket]] = []
        self._neighbours: dict[tuple[int, int], Neighbours] = {}  # the latest, by priority and depth

    def add(self, run: Run, owner: int, start: int, stop: int) -> None:
        """Make rows `start` to `stop` of a run ready."""
        bucket = self.bucket_of(run)
        if bucket is None:
            bucket = self.open_bucket(run)
            if run.dependency_starts is None:
                self._add_to_neighbours(bucket)
        bucket.add(owner, start, stop)
        self.size += stop - start
        if not bucket.listed:
            bucket.listed = True
            heappush(self.heap, (-run.priority, -run.depth, run.identity, bucket))

    def _add_to_neighbours(self, bucket: Bucket) -> None:
        run = bucket.run
        neighbours = self._neighbours.get((run.priority, run.depth))
        if neighbours is None or not neighbours.takes(run.submitted_at):
            neighbours = self._neighbours[run.priority, run.depth] = Neighbours()
        neighbours.add(bucket, run.submitted_at)
        bucket.neighbours = neighbours

    def bucket_of(self, run: Run) -> Bucket | None:
        """Where the run's rows are listed."""
        return run.bucket

    def open_bucket(self, run: Run) -> Bucket:
        """Make the place where the run's rows are listed."""
        run.bucket = Bucket(run)
        return run.bucket

    def close_bucket(self, run: Run) -> None:
        """Nothing of the run is listed any more."""
        run.bucket = None

    def drop(self, run: Run) -> None:
        """A row of the run is no longer ready."""
        bucket = self.bucket_of(run)
        assert bucket is not None
        bucket.size -= 1
        bucket.dirty = True
        self.size -= 1

    def first(self) -> tuple[int, int, int, Bucket] | None:
        """The heap entry of the bucket whose turn it is."""
        heap = self.heap
        while heap:
            bucket = heap[0][3]
            if bucket.size > 0:
                return heap[0]
            heappop(heap)
            self.close_bucket(bucket.run)
            if bucket.neighbours is not None:
                bucket.neighbours.leave(bucket)
        self._neighbours.clear()
        return None

    def take(
        self,
        worker: int,
        host: Host,
        limit: Callable[[Run], int],
        state: bytearray,
        may_move: Callable[[int, int, int], bool],
        search: int,
        judge: Callable[[Run], Callable[[int], bool] | None],
        now: float,
    ) -> tuple[Run, list[Span]] | None:
        """The next rows for a worker, all of one run; None when nothing here may run there now.

        `judge(run)`: what says of single rows whether the worker's memory has room for them, if any does not.
        """
        blocked: list[tuple[int, int, int, Bucket]] = []
        found = None
        tried = None  # neighbours of which the worker's own stretch was looked at
        looked_at = BLOCKED_BUCKETS_SEARCHED if search else BLOCKED_BUCKETS_LOOKED_AT
        while len(blocked) < looked_at:
            entry = self.first()
            if entry is None:
                break
            bucket = entry[3]
            buckets: Iterable[Bucket] = (bucket,)
            if bucket.neighbours is not None and bucket.neighbours is not tried and _is_worth_moving(bucket.run):
                tried = bucket.neighbours
                buckets = chain(tried.of(worker, host, MATES_LOOKED_AT, now), buckets)
            for candidate in buckets:
                allowed = limit(candidate.run)
                if allowed > 0:
                    spans = candidate.take(worker, allowed, state, may_move, search, judge(candidate.run))
                    if spans:
                        self.size -= sum(stop - start for start, stop in spans)
                        found = candidate.run, spans
                        break
            if found is not None:
                break
            blocked.append(heappop(self.heap))
        for entry in blocked:
            heappush(self.heap, entry)
        return found


def _is_worth_moving(run: Run) -> bool:
    """Whether tasks of a run have consumers, and make, or may make, what takes a while to move to these."""
    made = run.output_sizes.estimate_bytes
    return run.has_dependents and (made is None or made >= WORTH_MOVING_BYTES)
