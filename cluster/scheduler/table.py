"""The one table of all tasks: columns of small integers, a row a task.

Nothing here decides. The table allots rows by runs, keeps who depends on whom, and frees a run when its last row is
gone.

A **run** is a part of a batch, or several that follow each other (`continuing.py`): consecutive client numbers on
consecutive rows, with one function and one set of options. What is equal for all its rows is kept once, in the `Run`;
what differs lies in the columns:

====================  =====================================================================================
``state``             one of the codes below
``flags``             bits below
``attempt``           the attempt that runs the row now or made its value
``run_of``            the row's Run (a reference, so no second index is needed)
``waiting``           how many of its inputs have no value yet
``holds``             how many reasons there are to keep (or to make) its value: wants of clients, unfinished
                      tasks that take it as input, values that contain a future of it (another task's, or what
                      lies in a queue, a variable or a published dataset), a keep
``heirs``             how many rows, finished or not, would need this row to be computed again
``holder``            index of the worker that holds its value, or -1; further replicas are in ``replicas``
``nbytes``            size of its value
``first_edge``        head of the list of rows that depend on it
``recipe_before``     its neighbours in its client's list of recipes (``lineage.py``): the older one, and in
``recipe_after``      ``recipe_after`` the newer one, or NOT_LISTED
====================  =====================================================================================

A **join** is a run of one row that nobody submitted: it stands for the inputs that many tasks share. Those tasks depend
on the join, and the join on the inputs, so that an all-to-all of n tasks has 2 n edges and not n squared. A join is
finished when all its inputs are, has no value, and while it counts as finished it holds its inputs' values as a value
would hold the futures inside it.

Edges are a linked list in columns, so that later batches can join it. An edge whose dependent has been freed is not
hunted down at once: it names the dependent's run, and run identities never repeat, so that a stale edge is recognised;
a list in which stale edges prevail is rebuilt (amortised constant cost). Where many neighbours take one row, they
have a *fan* instead of an edge each (`fans.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cluster.scheduler.fans import Fans, Links, all_alike, divide_links
from cluster.scheduler.sizes import OutputSizes

if TYPE_CHECKING:
    from cluster.scheduler.clients import ClientRecord
    from cluster.scheduler.functions import FunctionRecord
    from cluster.scheduler.ready import Bucket, Lane

__all__ = [
    "FAILED",
    "FINISHED",
    "FREE",
    "GRANTED",
    "NOT_COUNTED",
    "NOT_LISTED",
    "READY",
    "RELEASED",
    "STATE_NAMES",
    "WAITING",
    "Run",
    "Table",
]

FREE = 0  # no task here
WAITING = 1  # some input has no value yet
READY = 2  # may start; in the ready queue
GRANTED = 3  # a worker has it
FINISHED = 4  # its value exists
RELEASED = 5  # its value is gone; the row is kept as a recipe
FAILED = 6  # ended without a value; the reason is in the failures' side table

STATE_NAMES = ("free", "waiting", "ready", "granted", "finished", "released", "failed")

OWNER_WANTS = 1  # the client that submitted it holds its future
KEPT = 2  # to be run to the end whoever wants it
DELIVERED = 4  # the owner has the value's bytes; losing every replica costs it nothing
NO_RECIPE = 8  # an input's recipe was given up, so that it cannot be computed again
INTERMEDIATE = 16  # the value is counted as one that only unfinished tasks keep (`holdings.py`)
STALE_EDGES_BEFORE_REBUILD = 32
REBUILDS_SPREAD = 64  # how unlike each other rows are in that
NOT_COUNTED = -1  # of a row that waits for who knows how many inputs: it is counted before the step ends
NOT_LISTED = -2  # of a row that is no recipe, or was given up as one

NO_PARENT = -1  # of a run: no task submitted it
ABANDONED = -2  # … the task that submitted it has ended


class Run:
    """Consecutive rows with one function and one set of options."""

    __slots__ = (
        "arguments",
        "awaited",
        "batch",
        "blob",
        "bucket",
        "calls_actor",
        "client",
        "count",
        "dependencies",
        "dependency_starts",
        "depth",
        "first_number",
        "function",
        "has_dependents",
        "identity",
        "is_coroutine",
        "is_join",
        "label",
        "lane",
        "live",
        "makes_actor",
        "memory_bytes",
        "offered",
        "offsets",
        "options",
        "output_sizes",
        "parent",
        "priority",
        "start",
        "submitted_at",
        "taken",
        "takes_join",
        "untaken_bytes",
    )

    def __init__(self, identity: int, start: int, count: int, client: ClientRecord, first_number: int) -> None:
        self.identity = identity
        self.start = start
        self.count = count
        self.submitted_at = 0.0
        self.client = client
        self.first_number = first_number
        self.batch = -1
        self.label = ""
        self.function: FunctionRecord | None = None
        self.options: dict[str, Any] = {}
        self.memory_bytes = 0  # what a task needs while it runs, its result included, as its client says; 0: not said
        self.output_sizes = _UNKNOWN_SIZES  # of results of its function under its label
        self.priority = 0
        self.depth = 0
        self.arguments = 0
        self.offsets: array[int] | None = None  # None: every task has the whole blob
        self.blob: bytes | bytearray = b""
        self.dependency_starts: array[int] | None = None  # None: no task has inputs
        self.dependencies: array[int] = _NO_ROWS  # rows
        self.live = count
        self.bucket: Bucket | None = None
        self.lane: Lane | None = None
        self.offered = False  # values that the client made; there is nothing to run
        self.awaited = False
        self.has_dependents = False
        self.taken = 0  # rows whose arguments were granted, or are not needed; one granted twice may count twice
        self.untaken_bytes = 0  # of arguments as its client sent them, each row's counted as the average of the others'
        self.parent = NO_PARENT  # the row of the running task that submitted it
        self.makes_actor = False  # creations of actors
        self.calls_actor = False  # calls of actors' methods; the last input of each is the actor's creation
        self.is_coroutine = False  # its tasks run many at once in a process beside the slots
        self.takes_join = False  # all its tasks have one input, a join
        self.is_join = False  # stands for the inputs that all tasks of another run share; nothing to run either

    @property
    def inputs_of_one(self) -> int:
        """How many inputs one of its tasks takes, in the mean."""
        return len(self.dependencies) // self.count

    def argument_bytes(self, row: int) -> int:
        """Bytes of the row's packed arguments."""
        if self.offsets is None:
            return len(self.blob)
        place = row - self.start
        return self.offsets[place + 1] - self.offsets[place]

    def argument_bytes_of_rows(self, rows: range) -> int:
        """Bytes of the packed arguments of these rows."""
        offsets = self.offsets
        if offsets is None:
            return len(self.blob) * len(rows)
        first, last = rows.start - self.start, rows[-1] - self.start
        if rows.step == 1:
            return offsets[last + 1] - offsets[first]
        return sum(offsets[first + 1 : last + 2 : rows.step]) - sum(offsets[first : last + 1 : rows.step])

    def inputs_of_rows(self, rows: range) -> Sequence[int]:
        """All inputs of these rows, one row's after the other's."""
        starts, dependencies = self.dependency_starts, self.dependencies
        if starts is None:
            return dependencies
        first, last = rows.start - self.start, rows[-1] - self.start
        if rows.step == 1:
            return dependencies[starts[first] : starts[last + 1]]
        begins, ends = starts[first : last + 1 : rows.step], starts[first + 1 : last + 2 : rows.step]
        return [source for begin, end in zip(begins, ends, strict=True) for source in dependencies[begin:end]]


_NO_ROWS: array[int] = array("q")
_UNKNOWN_SIZES = OutputSizes()  # of runs that run nothing: nobody adds to them


class Table:
    """Columns, runs, free space and edges. Rows are plain integers; the caller keeps the states' meaning."""

    def __init__(self, fan_rows: int) -> None:
        self._fan_rows = fan_rows
        self.state = bytearray()
        self.flags = bytearray()
        self.attempt: array[int] = array("q")
        self.run_of: list[Run | None] = []
        self.waiting: array[int] = array("i")
        self.holds: array[int] = array("i")
        self.heirs: array[int] = array("i")
        self.holder: array[int] = array("i")
        self.nbytes: array[int] = array("q")
        self.first_edge: array[int] = array("q")
        self.recipe_before: array[int] = array("i")
        self.recipe_after: array[int] = array("i")
        self.edge_row: array[int] = array("q")
        self.edge_run: array[int] = array("q")
        self.edge_next: array[int] = array("q")
        self.free_edge = -1
        self.fans = Fans()
        self.stale_edges: dict[int, int] = {}
        self.walked: set[int] = set()  # rows whose edges somebody is in the middle of: they are not rebuilt
        self.replicas: dict[int, list[int]] = {}
        self.runs_made = 0
        self.rows_used = 0
        self._free_count: dict[int, int] = {}  # first row of a free span -> its length
        self._free_start: dict[int, int] = {}  # row after a free span -> its first row
        self._free_by_class: list[list[int]] = [[] for _ in range(64)]

    # ------------------------------------------------------------------ rows

    def allocate(self, count: int, client: ClientRecord, first_number: int) -> Run:
        """A run of `count` fresh rows, in state FREE, wanted by nobody."""
        start = self._find_space(count)
        run = Run(self.runs_made, start, count, client, first_number)
        self.runs_made += 1
        self._begin_rows(run, start, count)
        return run

    def extend(self, run: Run, count: int) -> bool:
        """Give a run so many fresh rows behind its last one; False, and nothing done, when these are not free."""
        start = run.start + run.count
        room = self._free_count.get(start, 0)
        if room < count and start + room == len(self.state):
            self._add_space(start + room, self._grow(count - room))
            room = self._free_count[start]
        if room < count:
            return False
        del self._free_count[start]
        del self._free_start[start + room]
        listed = self._free_by_class[room.bit_length() - 1]
        if listed[-1] == start:  # else it is dropped when it is come upon
            listed.pop()
        if room > count:
            self._list_space(start + count, room - count)
        run.count += count
        run.live += count
        self._begin_rows(run, start, count)
        return True

    def _begin_rows(self, run: Run, start: int, count: int) -> None:
        stop = start + count
        self.rows_used += count
        zeros = bytes(count)
        self.state[start:stop] = zeros
        self.flags[start:stop] = zeros
        self.run_of[start:stop] = [run] * count
        zero_ints = array("i", bytes(4 * count))
        self.waiting[start:stop] = zero_ints
        self.holds[start:stop] = zero_ints
        self.heirs[start:stop] = zero_ints
        self.holder[start:stop] = array("i", b"\xff" * (4 * count))
        self.recipe_after[start:stop] = array("i", (NOT_LISTED,)) * count
        zero_longs = array("q", bytes(8 * count))
        self.attempt[start:stop] = zero_longs  # or late news of the row's former task would be this one's
        self.nbytes[start:stop] = zero_longs
        self.first_edge[start:stop] = array("q", b"\xff" * (8 * count))

    def free_rows(self, run: Run, rows: range) -> bool:
        """As `free` for several rows of a run, none of which has failed."""
        count, span = len(rows), slice(rows.start, rows.stop, rows.step)
        self.state[span] = bytes(count)
        for row in self.fans.of_any(rows):
            del self.fans[row]
            self.stale_edges.pop(row, None)
        heads = self.first_edge[span]
        if heads.count(-1) != count:
            self._free_edges(heads)
            self.first_edge[span] = array("q", b"\xff" * (8 * count))
            if self.stale_edges:
                for row in rows:
                    self.stale_edges.pop(row, None)
        run.live -= count
        return self._free_run_without_rows(run)

    def free(self, row: int) -> bool:
        """Forget a row. True when its run went with it, so that the caller can forget the run as well."""
        run = self.run_of[row]
        assert run is not None
        self.state[row] = FREE
        self.walked.discard(row)
        if row in self.fans:
            del self.fans[row]
            self.stale_edges.pop(row, None)
        edge = self.first_edge[row]
        if edge >= 0:
            self._free_edges((edge,))
            self.first_edge[row] = -1
            self.stale_edges.pop(row, None)
        run.live -= 1
        return self._free_run_without_rows(run)

    def _free_run_without_rows(self, run: Run) -> bool:
        if run.live:
            return False
        start, count = run.start, run.count
        self.run_of[start : start + count] = [None] * count
        self.rows_used -= count
        self._add_space(start, count)
        return True

    def __len__(self) -> int:
        return len(self.state)

    def _find_space(self, count: int) -> int:
        for size_class in range(count.bit_length() - 1, 64):
            starts = self._free_by_class[size_class]
            # The first class may hold spans that are too short; the later ones cannot.
            for position in range(len(starts) - 1, max(-1, len(starts) - 9), -1):
                start = starts[position]
                length = self._free_count.get(start, 0)
                if length.bit_length() - 1 != size_class:  # merged or used since it was listed
                    del starts[position]
                elif length >= count:
                    del starts[position]
                    del self._free_count[start]
                    del self._free_start[start + length]
                    if length > count:
                        self._list_space(start + count, length - count)
                    return start
        start = len(self.state)
        extra = self._grow(count) - count
        if extra:
            self._list_space(start + count, extra)
        return start

    def _grow(self, least: int) -> int:
        """Lengthen the columns by at least so many rows; by how many."""
        count = max(least, min(len(self.state) // 4, 65536), 64)
        self.state.extend(bytes(count))
        self.flags.extend(bytes(count))
        self.run_of.extend([None] * count)
        for column in (self.waiting, self.holds, self.heirs, self.holder, self.recipe_before, self.recipe_after):
            column.frombytes(bytes(4 * count))
        for column in (self.attempt, self.nbytes):
            column.frombytes(bytes(8 * count))
        self.first_edge.frombytes(b"\xff" * (8 * count))
        return count

    def _add_space(self, start: int, count: int) -> None:
        stop = start + count
        following = self._free_count.pop(stop, 0)
        if following:
            del self._free_start[stop + following]
            count += following
        before = self._free_start.pop(start, None)
        if before is not None:
            count += self._free_count.pop(before)
            start = before
        self._list_space(start, count)

    def _list_space(self, start: int, count: int) -> None:
        self._free_count[start] = count
        self._free_start[start + count] = start
        self._free_by_class[count.bit_length() - 1].append(start)

    def span_at(self, row: int) -> tuple[Run | None, int]:
        """The run that a row is in and the row after it; for a free row None and where to look next."""
        run = self.run_of[row]
        if run is not None:
            return run, run.start + run.count
        return None, row + self._free_count.get(row, 1)

    # ------------------------------------------------------------------ edges

    def inputs_of(self, row: int) -> array[int]:
        """The rows whose values a row takes, in the order of its marks; the same row may stand there twice."""
        run = self.run_of[row]
        assert run is not None
        starts = run.dependency_starts
        if starts is None:
            return _NO_ROWS
        place = row - run.start
        return run.dependencies[starts[place] : starts[place + 1]]

    def depth_above(self, sources: array[int]) -> int:
        """The depth of a run whose tasks take the values of these rows; their runs have dependents from now on."""
        depth = 0
        for run in dict.fromkeys(map(self.run_of.__getitem__, sources)):
            assert run is not None
            run.has_dependents = True
            depth = max(depth, run.depth + 1)
        return depth

    def link(self, run: Run, first: int) -> None:
        """Note that the rows of a run from `first` on take their inputs' values, and hold these."""
        fans, by_edges = divide_links(run, first, self._fan_rows)
        for source, fan in fans:
            count = len(fan.rows)
            self.holds[source] += count
            self.heirs[source] += count
            self.fans.add(source, fan)
        for links in by_edges:
            self._link_by_edges(run.identity, links)

    def _link_by_edges(self, identity: int, links: Links) -> None:
        """An edge for each of these inputs."""
        sources = links.sources
        first_edge, heirs, holds = self.first_edge, self.heirs, self.holds
        edge_row, edge_run, edge_next = self.edge_row, self.edge_run, self.edge_next
        free = self.free_edge
        for dependent, (begin, stop) in enumerate(pairwise(links.starts), links.first):
            for source in sources[begin:stop]:
                holds[source] += 1
                heirs[source] += 1
                edge = free
                if edge >= 0:
                    free = edge_next[edge]
                    edge_row[edge] = dependent
                    edge_run[edge] = identity
                    edge_next[edge] = first_edge[source]
                else:
                    edge = len(edge_row)
                    edge_row.append(dependent)
                    edge_run.append(identity)
                    edge_next.append(first_edge[source])
                first_edge[source] = edge
        self.free_edge = free

    def dependents(self, row: int) -> Iterator[int]:
        """The rows that take this row's value; one that takes it twice comes twice."""
        yield from self.rows_of_edges(row)
        yield from self.rows_of_fans(row)

    def rows_of_edges(self, row: int) -> Iterator[int]:
        """Those of the rows that take this row's value to which an edge leads, newest first."""
        edge = self.first_edge[row]
        edge_row, edge_run, edge_next, run_of, state = (
            self.edge_row,
            self.edge_run,
            self.edge_next,
            self.run_of,
            self.state,
        )
        while edge >= 0:
            dependent = edge_row[edge]
            run = run_of[dependent]
            if run is not None and run.identity == edge_run[edge] and state[dependent] != FREE:
                yield dependent
            edge = edge_next[edge]

    def rows_of_fans(self, row: int) -> Iterator[int]:
        """Those of the rows that take this row's value which stand in its fans."""
        run_of, state = self.run_of, self.state
        for fan in tuple(self.fans.get(row, ())):
            for dependent in fan.rows:
                if run_of[dependent] is fan.run and state[dependent] != FREE:
                    yield dependent

    def has_dependents(self, row: int) -> bool:
        """Whether rows take this row's value, or did; all of them may have been freed."""
        return self.first_edge[row] >= 0 or row in self.fans

    def dependent_of(self, edge: int) -> int:
        """The row that an edge leads to; -1 when that has been freed."""
        dependent = self.edge_row[edge]
        run = self.run_of[dependent]
        stale = run is None or run.identity != self.edge_run[edge] or self.state[dependent] == FREE
        return -1 if stale else dependent

    def drop_heirs(self, sources: Sequence[int]) -> list[int]:
        """A dependent of each of these rows is gone (of one that stands there twice, two): those nobody needs any more.

        The others keep its edges until stale ones prevail.
        """
        if all_alike(sources):
            return self._drop_heirs_of(sources[0], len(sources))
        heirs, holds, stale_edges, unneeded = self.heirs, self.holds, self.stale_edges, []
        for source in sources:
            left = heirs[source] = heirs[source] - 1
            if not left and not holds[source]:
                unneeded.append(source)
                continue
            stale = stale_edges[source] = stale_edges.get(source, 0) + 1
            if stale > STALE_EDGES_BEFORE_REBUILD and stale > left:
                self._rebuild_if_due(source, stale, left)
        return unneeded

    def _drop_heirs_of(self, source: int, count: int) -> list[int]:
        """As `drop_heirs` for one row, so many dependents of which are gone."""
        left = self.heirs[source] = self.heirs[source] - count
        if not left and not self.holds[source]:
            return [source]
        stale = self.stale_edges[source] = self.stale_edges.get(source, 0) + count
        self._rebuild_if_due(source, stale, left)
        return []

    def _rebuild_if_due(self, source: int, stale: int, left: int) -> None:
        # The inputs of a shuffle's tasks lose their heirs side by side: they are not all rebuilt in one step.
        spread = max(left, REBUILDS_SPREAD) * (source % REBUILDS_SPREAD) // REBUILDS_SPREAD
        if stale > max(STALE_EDGES_BEFORE_REBUILD, left) + spread and source not in self.walked:
            del self.stale_edges[source]
            self._rebuild_edges(source)

    def _rebuild_edges(self, source: int) -> None:
        kept = []
        edge = self.first_edge[source]
        while edge >= 0:
            following = self.edge_next[edge]
            dependent = self.edge_row[edge]
            run = self.run_of[dependent]
            if run is not None and run.identity == self.edge_run[edge] and self.state[dependent] != FREE:
                kept.append(edge)
            else:
                self.edge_next[edge] = self.free_edge
                self.free_edge = edge
            edge = following
        head = -1
        for edge in reversed(kept):
            self.edge_next[edge] = head
            head = edge
        self.first_edge[source] = head
        self.fans.prune(source, self.state)

    def _free_edges(self, heads: Iterable[int]) -> None:
        """All edges of the lists that begin with these; -1: an empty list."""
        edge_next, free = self.edge_next, self.free_edge
        for head in heads:
            edge = head
            while edge >= 0:
                following = edge_next[edge]
                edge_next[edge] = free
                free, edge = edge, following
        self.free_edge = free

    # ------------------------------------------------------------------ replicas

    def holders(self, row: int) -> list[int]:
        """Indices of the workers that hold the row's value."""
        holder = self.holder[row]
        if holder < 0:
            return []
        more = self.replicas.get(row)
        return [holder] if more is None else [holder, *more]

    def add_holder(self, row: int, worker: int) -> bool:
        """Note a replica; False when it was known."""
        holder = self.holder[row]
        if holder < 0:
            self.holder[row] = worker
            return True
        if holder == worker:
            return False
        more = self.replicas.setdefault(row, [])
        if worker in more:
            return False
        more.append(worker)
        return True

    def drop_holder(self, row: int, worker: int) -> bool:
        """Forget a replica; False when it was not known."""
        more = self.replicas.get(row)
        if self.holder[row] == worker:
            if more:
                self.holder[row] = more.pop(0)
            else:
                self.holder[row] = -1
        elif more and worker in more:
            more.remove(worker)
        else:
            return False
        if more is not None and not more:
            del self.replicas[row]
        return True
