"""Everything that the scheduler knows, and what it is about to say.

The ledger holds the table, the clients, the workers, the rare facts by row, and the outbox. It has the small steps that
all deciding parts share (make a row ready, tell a client, order a worker to free a value). Which step is right when is
decided above: `lifecycle.py` (states of tasks), `placement.py` (who runs what), `client_desk.py` and `worker_desk.py`
(messages).
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.ids import task_key
from cluster.scheduler.actors import ActorRecord
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.events import EventLog
from cluster.scheduler.fans import Waking
from cluster.scheduler.functions import FunctionRecord
from cluster.scheduler.history import History
from cluster.scheduler.hosts import Host
from cluster.scheduler.nesting import Parent
from cluster.scheduler.ready import ANYWHERE, Lane, Restriction
from cluster.scheduler.spreads import Spread
from cluster.scheduler.suspects import SuspectLane, Suspicion
from cluster.scheduler.table import DELIVERED, FINISHED, OWNER_WANTS, READY, Run, Table
from cluster.scheduler.want_of_room import PushOrder, Refusals
from cluster.scheduler.workers import COROUTINES, GrantRecord, WorkerRecord
from cluster.wire import messages

__all__ = ["Close", "Failure", "Ledger", "Send", "Settings"]

INLINE_BYTES_PER_FRAME = 64 * 1024


class Send(NamedTuple):
    """Effect: write a message to a peer."""

    peer: int
    message: Any


class Close(NamedTuple):
    """Effect: close a peer's connection."""

    peer: int
    reason: str


@dataclass(frozen=True)
class Settings:
    """What the scheduler's decisions depend on besides messages and time."""

    lead_seconds: float = 0.010
    worker_timeout_seconds: float = 10.0
    client_grace_seconds: float = 60.0
    lineage_rows: int = 1_000_000
    lineage_bytes: int = 1_000_000_000
    unmet_request_seconds: float = 60.0
    rows_per_step: int = 1024  # woken, released, cancelled … in one step of the loop: below 5 ms
    fan_rows: int = 32  # so many neighbours, two at least, that take one row are linked as one; fewer have an edge each
    arguments_told_bytes: int = 4 << 20  # of a client's arguments that were granted, before it is told
    versions: dict[str, str] = field(default_factory=dict)
    started_at: float = 0.0
    """When this life of the scheduler began, by the clock whose time is passed in."""


class Failure(NamedTuple):
    """Why a task has no value. Tasks that failed because of it share the object."""

    kind: str
    error: bytes
    details: dict[str, Any]
    row: int
    run_identity: int
    at: float = 0.0


class FinishedNotice:
    """A `Finished` under construction, so that single rows of one report leave as one message."""

    __slots__ = ("offsets", "pieces", "runs", "total")

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.offsets = array("I", [0])
        self.pieces: list[bytes] = []
        self.total = 0

    def add(self, number: int, piece: bytes) -> None:
        """Add one number with its value, or with no bytes when the value stays where it is."""
        runs = self.runs
        if runs and runs[-2] + runs[-1] == number:
            runs[-1] += 1
        else:
            runs += (number, 1)
        if piece:
            self.pieces.append(piece)
            self.total += len(piece)
        self.offsets.append(self.total)

    def message(self) -> messages.Finished:
        """What goes on the wire."""
        if not self.total:
            return messages.Finished(self.runs, b"", b"")
        return messages.Finished(self.runs, self.offsets.tobytes(), b"".join(self.pieces))


class Ledger:
    """The scheduler's memory. One instance is one epoch."""

    def __init__(self, epoch: int, settings: Settings) -> None:
        self.epoch = epoch
        self.settings = settings
        self.events = EventLog()
        self.now = 0.0  # the time of the event that is being handled
        self.history = History()
        self.table = Table(settings.fan_rows)
        self.clients: dict[bytes, ClientRecord] = {}
        self.client_of_peer: dict[int, ClientRecord] = {}
        self.workers: dict[int, WorkerRecord] = {}  # by index
        self.worker_of_peer: dict[int, WorkerRecord] = {}
        self.worker_called: dict[str, WorkerRecord] = {}  # by name and by address
        self.hosts: dict[str, Host] = {}  # by what their workers' addresses have before the port
        self.functions: dict[bytes, FunctionRecord] = {}
        self.failures: dict[int, Failure] = {}
        self.failed_runs: dict[int, int] = {}  # row -> runs that ended in an error (for `retries`)
        self.deaths: dict[int, int] = {}  # row -> slots that died while running it
        self.missed: dict[int, int] = {}  # row -> runs that could not get an input
        self.refusals: dict[int, Refusals] = {}  # row -> the workers that had no room for an input of it
        self.suspects: dict[int, Suspicion] = {}  # unfinished rows that were at a worker which ended
        self.contains: dict[int, list[int]] = {}  # row -> rows whose futures lie inside its value
        self.kept_rows: dict[int, int] = {}  # row -> values kept under names (`coordination.py`) with futures of it
        self.aliases_of: dict[int, list[tuple[ClientRecord, int]]] = {}  # row -> other clients' numbers for it
        self.pushing: dict[int, dict[int, PushOrder]] = {}  # offered row -> worker index -> what its client is to do
        self.copying: dict[int, int] = {}  # row -> copies that somebody ordered and waits for
        self.uncopied: list[int] = []  # of these rows the values went, and that was not told yet
        self.spreads: dict[int, Spread] = {}  # row -> whom its large value is being copied to, and who waits for it
        self.locating: dict[int, list[Any]] = {}  # row -> location requests that wait for it
        self.parents: dict[int, Parent] = {}  # row of a running task -> what is known of it that is of a parent
        self.actors: dict[int, ActorRecord] = {}  # row of an actor's creation -> where it lives, and who calls it
        self.deferred: deque[tuple[str, ClientRecord, int, int]] = deque()
        self.waking: deque[Waking] = deque()  # rows of fans that wait for nothing, and are still to be made ready
        self.preferred: dict[int, None] = {}  # workers that hold inputs of rows that just became ready
        self.relieved: dict[int, None] = {}  # workers whose memory was too full, and holds less now
        self.ready_anywhere = False  # rows became ready that no worker is preferred for
        self.ready_rows = 0
        self.outbox: list[tuple[int, Any]] = []
        self._attempts = 0
        self._workers_seen = 0
        self._frees: dict[int, list[int]] = {}

    # ------------------------------------------------------------------ identities

    def next_attempt(self) -> int:
        """An attempt number that was never used in this epoch."""
        self._attempts += 1
        return self._attempts

    def next_worker_index(self) -> int:
        """A worker index that was never used in this epoch."""
        self._workers_seen += 1
        return self._workers_seen - 1

    def join_host(self, address: str) -> Host:
        """The host of a worker with that address, which has just joined."""
        name = address.rpartition(":")[0]
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name)
        host.workers += 1
        return host

    def leave_host(self, host: Host) -> None:
        """A worker there is gone."""
        host.workers -= 1
        if not host.workers:
            del self.hosts[host.name]

    def number(self, row: int) -> int:
        """The row's number at the client that submitted it."""
        run = self.run(row)
        return run.first_number + row - run.start

    def run(self, row: int) -> Run:
        """The run of a row in use."""
        run = self.table.run_of[row]
        assert run is not None, f"row {row} is free"
        return run

    def key(self, row: int) -> str:
        """The row's name for people."""
        run = self.run(row)
        if run.is_join:
            return f"the inputs of {run.label}"
        own = run.options.get("key")
        if own:
            return str(own)
        return task_key(run.label, run.client.identity, run.batch, self.number(row))

    def note(self, row: int, what: str, why: str = "") -> None:
        """Note something rare that happens to a row, for its story."""
        self.history.note(self.now, row, self.run(row).identity, what, why)

    # ------------------------------------------------------------------ what is ready

    def enter_lane(self, run: Run, client: ClientRecord, options: dict[str, Any]) -> None:
        """Give a new run its lane: the client's for tasks with these options."""
        resources = options.get("resources", {})
        if "coroutine" in options:
            resources = {COROUTINES: 1.0, **resources}
        if "workers" not in options and not resources:
            restriction = ANYWHERE
        else:
            restriction = Restriction(
                tuple(options.get("workers", ())),
                bool(options.get("allow_other_workers", False)),
                tuple(sorted((str(name), float(amount)) for name, amount in resources.items())),
            )
        lane = client.lanes.get(restriction)
        if lane is None:
            lane = client.lanes[restriction] = Lane(restriction)
        lane.runs += 1
        run.lane = lane

    def leave_lane(self, run: Run) -> None:
        """The last row of a run was freed: its lane goes with the last of its runs, or there would be ever more."""
        lane = run.lane
        if lane is None:
            return
        lane.runs -= 1
        if not lane.runs and lane.restriction is not ANYWHERE:
            for key in (lane.restriction, ("marked", lane.restriction), ("charged", lane.restriction)):
                run.client.lanes.pop(key, None)

    def make_ready(self, run: Run, owner: int, start: int, stop: int) -> None:
        """Rows `start` to `stop` of a run may start; `owner` is the worker that should (NOBODY: any)."""
        count = stop - start
        table = self.table
        table.state[start:stop] = bytes((READY,)) * count
        assert run.lane is not None
        lane = self.lane_of(start, run) if self.suspects else run.lane  # a suspect becomes ready by itself
        lane.add(run, owner, start, stop)
        run.client.ready_rows += count
        self.ready_rows += count
        if owner >= 0:
            self.preferred[owner] = None
        else:
            self.ready_anywhere = True
        if run.parent >= 0:
            parent = self.parents[run.parent]
            parent.ready[run.identity] = run
            if parent.suspended_at >= 0:
                self.workers[parent.suspended_at].hungry[run.parent] = None

    def not_ready(self, row: int) -> None:
        """A ready row is about to change its state otherwise than by being granted."""
        run = self.run(row)
        self.lane_of(row, run).drop(run)
        run.client.ready_rows -= 1
        self.ready_rows -= 1

    def take_arguments(self, run: Run, rows: int) -> None:
        """So many rows of a run do not wait with their arguments any more: their client may send others."""
        if run.taken >= run.count:
            return
        untaken = run.count - run.taken
        rows = min(rows, untaken)
        nbytes = run.untaken_bytes * rows // untaken
        run.taken += rows
        run.untaken_bytes -= nbytes
        client = run.client
        client.argument_bytes -= nbytes
        client.taken_bytes += nbytes
        if client.taken_bytes - client.told_bytes >= self.settings.arguments_told_bytes and client.connected:
            client.told_bytes = client.taken_bytes
            self.send(client.peer, messages.ArgumentsTaken(client.taken_bytes))

    # ------------------------------------------------------------------ suspects

    def lane_of(self, row: int, run: Run) -> Lane:
        """The lane in which a row of the run waits when it is ready."""
        lane = run.lane
        assert lane is not None
        suspicion = self.suspects.get(row)
        if suspicion is None:
            return lane
        charged = suspicion.deaths > 0
        key = ("charged" if charged else "marked", lane.restriction)
        suspects = run.client.lanes.get(key)
        if suspects is None:
            suspects = run.client.lanes[key] = SuspectLane(lane.restriction, charged)
        return suspects

    def suspect(self, row: int, worker: WorkerRecord) -> Suspicion:
        """A worker ended that had the row: mark it; if it was marked, charge it."""
        self._unlist(row)
        suspicion = self.suspects.get(row)
        if suspicion is None:
            suspicion = self.suspects[row] = Suspicion()
        else:
            suspicion.deaths += 1
            suspicion.workers.append(worker.name)
        return suspicion

    def acquit(self, row: int) -> None:
        """The row came to an end without its worker's, or is to be tried anew."""
        if row in self.suspects:
            self._unlist(row)
            del self.suspects[row]

    def _unlist(self, row: int) -> None:
        """A row that is not ready is about to change its lane, which may still list it from before."""
        run = self.run(row)
        bucket = self.lane_of(row, run).bucket_of(run)
        if bucket is not None and bucket.dirty:
            bucket.forget(row)

    # ------------------------------------------------------------------ what is said

    def send(self, peer: int, message: Any) -> None:
        """Put a message into the outbox."""
        self.outbox.append((peer, message))

    def tell_finished(self, client: ClientRecord, number: int, piece: bytes) -> None:
        """Tell a client that one of its numbers has a value, with the value's bytes or without."""
        if not client.connected:
            return
        if self.outbox:
            peer, last = self.outbox[-1]
            if (
                peer == client.peer
                and type(last) is FinishedNotice
                and last.total + len(piece) <= INLINE_BYTES_PER_FRAME
            ):
                last.add(number, piece)
                return
        notice = FinishedNotice()
        notice.add(number, piece)
        self.outbox.append((client.peer, notice))

    def tell_finished_rows(self, run: Run, first: int, stop: int, offsets: array[int], blob: bytes) -> None:
        """Tell the owner of consecutive rows, which it wants, that they have values; `offsets`: in `blob`, or empty."""
        client, count, flags = run.client, stop - first, self.table.flags
        if not client.connected:
            return
        number = run.first_number + first - run.start
        if not offsets or client.congested:
            self.send(client.peer, messages.Finished([number, count], b"", b""))
            return
        blob = blob[offsets[0] : offsets[-1]]
        if offsets[0]:
            base = offsets[0]
            offsets = array("I", [offset - base for offset in offsets])
        if all(map(int.__lt__, offsets, offsets[1:])):  # every value came along
            flags[first:stop] = bytes((OWNER_WANTS | DELIVERED,)) * count
        else:
            for step in range(count):
                if offsets[step] < offsets[step + 1]:
                    flags[first + step] |= DELIVERED
        self.send(client.peer, messages.Finished([number, count], offsets.tobytes(), blob))

    def failure(self, row: int, kind: str, exception: str, message: str, **details: Any) -> Failure:
        """Why a row has no value, as the scheduler itself knows it; `exception` is what the client raises."""
        told = {"type": exception, "message": message, "key": self.key(row), **details}
        return Failure(kind, b"", told, row, self.run(row).identity, self.now)

    def tell_failed(self, client: ClientRecord, number: int, failure: Failure) -> None:
        """Tell a client why one of its numbers has no value."""
        if client.connected:
            message = messages.Failed([number, 1], failure.kind, failure.error, failure.details)
            self.outbox.append((client.peer, message))

    def tell_forgotten(self, client: ClientRecord, number: int, message: str, remedy: str) -> None:
        """Tell a client that the task which it names is no longer known."""
        details = {"type": "ValueLost", "message": message, "remedy": remedy}
        self.tell_failed(client, number, Failure("lost", b"", details, -1, -1))

    def tell_ended_with_parent(self, client: ClientRecord, number: int, row: int) -> None:
        """Tell a slot's client that a task which it still waits for was cancelled, as its parent has ended."""
        message = f"{self.key(row)} was cancelled, because the task that submitted it has ended"
        self.tell_failed(client, number, self.failure(row, "cancelled", "CancelledError", message))

    def tell_wanting(self, row: int, failure: Failure | None) -> None:
        """Tell every client that wants the row how it stands: failed, or (None) waiting for its value again."""
        run = self.run(row)
        wanting = list(self.aliases_of.get(row, ()))
        if self.table.flags[row] & OWNER_WANTS:
            wanting.append((run.client, run.first_number + row - run.start))
        for client, number in wanting:
            if failure is not None:
                self.tell_failed(client, number, failure)
            elif client.connected:
                self.outbox.append((client.peer, messages.Reset([number, 1])))

    @property
    def has_rare_facts(self) -> bool:
        """Whether any row at all has an entry in a side table that concerns finished rows."""
        return bool(
            self.contains
            or self.aliases_of
            or self.locating
            or self.pushing
            or self.spreads
            or self.copying
            or self.table.replicas
            or self.failed_runs
            or self.deaths
            or self.missed
        )

    def order_free(self, worker_index: int, attempt: int, row: int, count: int = 1) -> None:
        """Order a worker to free consecutive values; orders are gathered until the outbox is taken."""
        worker = self.workers.get(worker_index)
        if worker is not None:
            self._order_free(worker, attempt, row, count)

    def free_values(self, worker_index: int, attempt: int, row: int, count: int, nbytes: int) -> None:
        """Order a worker to free consecutive values of so many bytes, which count as its no longer."""
        worker = self.workers.get(worker_index)
        if worker is not None:
            self._order_free(worker, attempt, row, count)
            self._count_out(worker, nbytes, count)

    def _order_free(self, worker: WorkerRecord, attempt: int, row: int, count: int) -> None:
        if worker.lost:
            return
        orders = self._frees.setdefault(worker.index, [])
        if orders and orders[-3] == attempt and orders[-2] + orders[-1] == row:
            orders[-1] += count
        else:
            orders += (attempt, row, count)

    def count_in(self, worker_index: int, nbytes: int) -> None:
        """A worker holds one more value."""
        worker = self.workers.get(worker_index)
        if worker is not None:
            worker.held_values += 1
            worker.held_bytes += nbytes

    def count_out(self, worker_index: int, nbytes: int) -> None:
        """A worker holds one value less."""
        worker = self.workers.get(worker_index)
        if worker is not None:
            self._count_out(worker, nbytes, 1)

    def _count_out(self, worker: WorkerRecord, nbytes: int, values: int) -> None:
        worker.held_values -= values
        worker.held_bytes -= nbytes
        if worker.is_full:
            self.relieved[worker.index] = None

    def take_outbox(self) -> list[tuple[int, Any]]:
        """All that is to be sent, in order; the outbox is empty then."""
        outbox = self.outbox
        self.outbox = []
        for position, (peer, message) in enumerate(outbox):
            if type(message) is FinishedNotice:
                outbox[position] = (peer, message.message())
        if self._frees:
            for worker_index, orders in self._frees.items():
                worker = self.workers.get(worker_index)
                if worker is not None:
                    outbox.append((worker.peer, messages.Free(orders)))
            self._frees = {}
        return outbox

    # ------------------------------------------------------------------ grants

    def grant_of(self, worker: WorkerRecord, attempt: int, row: int) -> GrantRecord | None:
        """The grant under which that worker has the row, if it is the one that counts."""
        grant = worker.grants.get(attempt)
        if grant is None or not any(start <= row < stop for start, stop in grant.spans):
            return None
        return grant

    def has_value(self, row: int) -> bool:
        """Whether the row's value exists."""
        return self.table.state[row] == FINISHED
