"""Messages of clients: coming, going, and what they bring: tasks, values, futures of others."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Set
from itertools import pairwise
from operator import sub
from typing import Any

from cluster.errors import ProtocolError
from cluster.scheduler import holdings
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.continuing import extend_run, kept_options
from cluster.scheduler.functions import FunctionRecord
from cluster.scheduler.homes import home
from cluster.scheduler.ledger import Failure, Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.placement import Placement
from cluster.scheduler.ready import NOBODY
from cluster.scheduler.spreads import SPREAD_FROM_BYTES
from cluster.scheduler.table import (
    DELIVERED,
    FAILED,
    FINISHED,
    GRANTED,
    KEPT,
    OWNER_WANTS,
    READY,
    WAITING,
    Run,
)
from cluster.wire import messages

__all__ = ["ClientDesk"]

_UNFINISHED = frozenset((WAITING, READY, GRANTED))


class ClientDesk:
    """Applies clients' messages to the ledger."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, placement: Placement) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self.placement = placement
        self.on_leave: list[Callable[[ClientRecord], None]] = []
        """Called when a client is gone for good."""

    # ------------------------------------------------------------------ coming and going

    def join(self, peer: int, message: messages.ClientJoin) -> None:
        """A client introduces itself."""
        ledger = self.ledger
        if not 0 < message.weight < math.inf:
            raise ProtocolError(f"a client's weight must be above 0 and finite, not {message.weight}")
        client = ledger.clients.get(message.client_id)
        if client is None:
            client = ledger.clients[message.client_id] = ClientRecord(
                message.client_id, message.name, peer, ledger.table.state
            )
        else:
            ledger.client_of_peer.pop(client.peer, None)
            client.peer = peer
        client.weight = message.weight
        client.connected = True
        client.gone_at = math.inf
        ledger.client_of_peer[peer] = client
        python = message.versions.get("python", "unknown")
        ledger.events.note("client_joined", client.name, f"Python {python}")
        ledger.send(peer, messages.ClientWelcome(ledger.epoch, ledger.settings.versions))

    def gone(self, now: float, client: ClientRecord) -> None:
        """A client's connection is lost: its wants stay for a while, what only its memory held is lost."""
        client.connected = False
        client.gone_at = now
        table = self.ledger.table
        for run in client.all_runs():
            if run.offered:
                for row in range(run.start, run.start + run.count):
                    if table.state[row] == FINISHED and table.holder[row] < 0:
                        self.lifecycle.lost(row, f"client {client.name}, who alone had it, is gone")
        if client.in_slot:
            self.leave(client)

    def leave(self, client: ClientRecord) -> None:
        """A client is done, or did not come back: everything that it wants is released."""
        ledger = self.ledger
        if client.connected:
            self.gone(0.0, client)
        client.gone_at = math.inf
        ledger.client_of_peer.pop(client.peer, None)
        for run in client.all_runs():
            ledger.deferred.append(("release", client, run.first_number, run.count))
        for number in list(client.aliases):
            ledger.deferred.append(("release", client, number, 1))
        ledger.deferred.append(("end", client, 0, 0))
        for left in self.on_leave:
            left(client)

    def end(self, client: ClientRecord) -> None:
        """All that a client wanted is released: forget it, unless tasks of its own still run for others."""
        for function in client.functions.values():
            function.users -= 1
            if function.users == 0:
                self.ledger.functions.pop(function.identity, None)
        client.functions = {}
        client.ended = True
        self.lifecycle.forget_client(client)

    # ------------------------------------------------------------------ tasks and values

    def define_function(self, client: ClientRecord, message: messages.DefineFunction) -> None:
        """A function's bytes, before the first task that names it."""
        if message.function_id in client.functions:
            return
        function = self.ledger.functions.get(message.function_id)
        if function is None:
            function = FunctionRecord(message.function_id, message.name, message.blob)
            self.ledger.functions[message.function_id] = function
        function.users += 1
        client.functions[message.function_id] = function

    def submit(self, client: ClientRecord, message: messages.Submit) -> None:
        """A part of a batch: a run, or more rows of the run before it."""
        if not client.take_numbers(message.first, message.count):
            return
        offsets, starts = _columns_of(message)
        continued = extend_run(self.ledger, client, message, offsets, starts)
        run = continued or self._new_run(client, message, offsets, starts)
        table, count = self.ledger.table, message.count
        stop = run.start + run.count
        start = stop - count
        table.flags[start:stop] = bytes((OWNER_WANTS,)) * count
        keep = bool(message.options.get("keep"))
        table.holds[start:stop] = array("i", (2 if keep else 1,)) * count
        if keep:
            table.flags[start:stop] = bytes((OWNER_WANTS | KEPT,)) * count
        if message.dependencies:
            table.state[start:stop] = bytes((WAITING,)) * count  # a task may take the one before it in its part
            if continued is None:
                self._link_new(client, run, message)
            else:
                self._link(run, start)
        else:
            owner = NOBODY
            if message.options.get("allow_other_workers"):
                owner = home(self.ledger, start, run, table.inputs_of(start))
            self.ledger.make_ready(run, owner, start, stop)

    def _new_run(
        self, client: ClientRecord, message: messages.Submit, offsets: array[int] | None, starts: array[int] | None
    ) -> Run:
        function = client.functions.get(message.function_id)
        if function is None:
            raise ProtocolError(f"tasks of {message.label!r} name a function that was never defined")
        run = self.ledger.table.allocate(message.count, client, message.first)
        client.add_run(run)
        function.users += 1
        run.submitted_at = self.ledger.now
        run.function = function
        run.label = message.label
        run.output_sizes = function.output_sizes.of(message.label)
        run.memory_bytes = max(0, int(message.options.get("memory_bytes", 0)))
        run.batch = message.batch
        run.options = kept_options(message.options)
        run.priority = int(message.options.get("priority", 0))
        run.awaited = bool(message.options.get("awaited"))
        run.arguments = message.arguments
        run.offsets = offsets
        run.blob = message.blob
        run.untaken_bytes = len(message.blob)
        client.argument_bytes += len(message.blob)
        run.dependency_starts = starts
        self.ledger.enter_lane(run, client, message.options)
        if "actor" in message.options:
            run.makes_actor = run.has_dependents = True
        elif "actor_call" in message.options:
            if starts is None or any(first == stop for first, stop in pairwise(starts)):
                raise ProtocolError(f"calls of {message.label!r} name no actor")
            run.calls_actor = True
        elif "coroutine" in message.options:
            run.is_coroutine = True
        if "parent" in message.options:
            self.lifecycle.nesting.adopt(run, message.options["parent"])
        return run

    def _link_new(self, client: ClientRecord, run: Run, message: messages.Submit) -> None:
        """Turn the inputs' numbers of a new run into rows, and link it to these."""
        table, lifecycle = self.ledger.table, self.lifecycle
        sources = client.rows_of(array("q", message.dependencies))
        if run.dependency_starts is None:
            join = self._join(sources, run)
            run.takes_join = join >= 0
            sources = array("q", (join,)) * run.count
            run.dependency_starts = array("I", range(run.count + 1))
        run.dependencies = sources
        orphans = self._set_orphans_apart(run) if -1 in sources else {}
        run.depth = table.depth_above(run.dependencies)
        strangers = lifecycle.actors.enlist(run, orphans) if run.calls_actor else ()
        self._link(run, run.start, orphans.keys() | strangers)
        for row in strangers:
            lifecycle.fail(row, self._no_actor(row))
        for row in orphans:
            table.state[row] = WAITING
            lifecycle.fail(row, self._orphaned(row))

    def _link(self, run: Run, first: int, apart: Set[int] = frozenset()) -> None:
        """Hold the inputs of a run's rows from `first` on, count what each waits for, and start them but for some."""
        table = self.ledger.table
        table.link(run, first)
        starts, place = run.dependency_starts, first - run.start
        assert starts is not None
        if not apart and not run.calls_actor:
            states = set(map(table.state.__getitem__, run.dependencies[starts[place] :]))
            if states == {FINISHED}:
                self.lifecycle.linked.make_ready(range(first, run.start + run.count))
                return
            missing = array("i", map(sub, starts[place + 1 :], starts[place:]))
            if _UNFINISHED.issuperset(states) and 0 not in missing:
                table.waiting[first : first + len(missing)] = missing
                return
        for row in range(first, run.start + run.count):
            if row not in apart:
                self.lifecycle.start_row(row, run)

    def _join(self, sources: array[int], run: Run) -> int:
        """The row of a join of these inputs; -1 when one of them is gone."""
        if -1 in sources:
            return -1
        row = self.lifecycle.join(sources, run)
        self.lifecycle.start_row(row, self.ledger.run(row))
        return row

    def _set_orphans_apart(self, run: Run) -> dict[int, None]:
        """The rows with an input that was released already. They are left without inputs."""
        starts, rows = run.dependency_starts, run.dependencies
        assert starts is not None
        orphans: dict[int, None] = {}
        kept_starts, kept_rows = array("I", (0,)), array("q")
        for place in range(run.count):
            mine = rows[starts[place] : starts[place + 1]]
            if -1 in mine:
                orphans[run.start + place] = None
            else:
                kept_rows.extend(mine)
            kept_starts.append(len(kept_rows))
        run.dependency_starts, run.dependencies = kept_starts, kept_rows
        return orphans

    def _no_actor(self, row: int) -> Failure:
        message = f"{self.ledger.key(row)} calls a method of something that is no actor"
        remedy = "submit the class with actor=True"
        return self.ledger.failure(row, "unrunnable", "Unrunnable", message, remedy=remedy)

    def _orphaned(self, row: int) -> Failure:
        key = self.ledger.key(row)
        message = f"an input of {key} was released before {key} was submitted"
        remedy = "keep the future of the input until the task that takes it is submitted"
        return self.ledger.failure(row, "lost", "ValueLost", message, remedy=remedy)

    def offer(self, client: ClientRecord, message: messages.Offer) -> None:
        """Values in the client's own memory."""
        if not client.take_numbers(message.first, message.count):
            return
        ledger, table = self.ledger, self.ledger.table
        sizes = array("q", message.sizes)
        if len(sizes) != message.count or (message.contains and len(message.contains) != message.count):
            raise ProtocolError("offered values do not fit their sizes")
        run = table.allocate(message.count, client, message.first)
        client.add_run(run)
        run.offered = True
        run.submitted_at = ledger.now
        run.label = "scatter"
        start, stop = run.start, run.start + run.count
        table.state[start:stop] = bytes((FINISHED,)) * run.count
        table.flags[start:stop] = bytes((OWNER_WANTS | DELIVERED,)) * run.count
        table.holds[start:stop] = array("i", (1,)) * run.count
        table.nbytes[start:stop] = sizes
        table.attempt[start:stop] = array("q", (ledger.next_attempt(),)) * run.count
        for place, references in enumerate(message.contains):
            rows = [row for row in map(self._row_of_reference, references) if row >= 0]
            self.lifecycle.set_contained(start + place, rows)
        if message.placement != "demand":
            self._push_at_once(run, message)

    def _push_at_once(self, run: Run, message: messages.Offer) -> None:
        workers = [
            worker
            for worker in self.ledger.workers.values()
            if not worker.draining
            and (not message.workers or worker.name in message.workers or worker.address in message.workers)
        ]
        if not workers:
            return  # pushed when a task needs it
        for place, row in enumerate(range(run.start, run.start + run.count)):
            if message.placement != "broadcast":
                targets = [workers[place % len(workers)]]
            elif self.ledger.table.nbytes[row] > SPREAD_FROM_BYTES:
                self.placement.spreading.broadcast(row, workers)
                continue
            else:
                targets = workers
            for worker in targets:
                self.placement.order_push(row, worker)

    def alias(self, client: ClientRecord, message: messages.Alias) -> None:
        """Futures of other clients that came inside a value: each gets a number, and a want."""
        ledger, table = self.ledger, self.ledger.table
        for number, reference in enumerate(message.references, message.first):
            if number in client.aliases:
                continue
            row = self._row_of_reference(reference)
            if row < 0:
                ledger.tell_forgotten(
                    client,
                    number,
                    "the task behind this future was released before the future arrived here",
                    "keep the value that contains the future until the future was unpickled",
                )
                continue
            client.aliases[number] = row
            table.holds[row] += 1
            ledger.aliases_of.setdefault(row, []).append((client, number))
            holdings.note(ledger, row)
            if table.state[row] == FAILED:
                ledger.tell_failed(client, number, ledger.failures[row])
            else:
                self.lifecycle.catch_up(client, number, row)

    def _row_of_reference(self, reference: Any) -> int:
        client = self.ledger.clients.get(reference[0])
        return -1 if client is None else client.row(reference[1])


def _columns_of(message: messages.Submit) -> tuple[array[int] | None, array[int] | None]:
    """Where each task's arguments begin, and its inputs; None if all have the whole blob, or no inputs of their own."""
    offsets = starts = None
    if message.offsets:
        offsets = array("I", message.offsets)
        if len(offsets) != message.count + 1 or offsets[-1] != len(message.blob):
            raise ProtocolError(f"the arguments of {message.label!r} do not fit their offsets")
    if message.dependency_starts:
        starts = array("I", message.dependency_starts)
        if len(starts) != message.count + 1 or 8 * starts[-1] != len(message.dependencies):
            raise ProtocolError(f"the inputs of {message.label!r} do not fit their index")
    return offsets, starts
