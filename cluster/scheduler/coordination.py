"""Locks, semaphores, events, queues, variables, counters and published datasets, between clients.

What each kind can do is in `named_objects.py`. Here is what they share: whose requests they are, how long they wait,
and what becomes of them when a client goes.

**Requests.** A client's queries are numbered. A request is remembered, answer and all, until the client says that it
has settled it: each request names the oldest one that is still open (`floor`), and a client that took futures out
says so at once ("settle"). So a request that comes twice is done once and answered twice; a late one is known as such.
A client that stops waiting (Ctrl-C) withdraws: its place in the line, its lease or the item that it was given go back.

**Leases.** Each acquisition of a lock or a semaphore has a *fence*: a number greater than every one before, by which
whatever the lock protects can refuse a holder that has lost it. A holder keeps its lease as long as its connection
stands: what is alive cannot lose a lock because it computes, is stopped in a debugger, or holds the interpreter's lock
for an hour. (A host that vanished is noticed by the connection after 25 s.) When the connection is lost, the lease
ends `lease_seconds` later, or with the client's grace if that is shorter, or at once if the client has said goodbye; a
client that comes back before keeps it. Who waits in a line when its connection is lost loses its place. What a task
acquired ends with that run of the task, at the latest, in whatever way the run ends. (One that was told to stop has
ended for the scheduler, though it may go on for a second.)

**What stays.** Events, queues, variables, counters and datasets belong to nobody: they outlive the clients that made
them, and the futures inside are held as long. Nothing here survives the scheduler, except that fences go on rising.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Any

from cluster.errors import ProtocolError
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.kept_values import OVERHEAD_BYTES, KeptValues, Refusal
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.named_objects import KINDS, NOT_NOW, Dataset, Lease, Named, Party, Request, checked_arguments
from cluster.scheduler.nesting import Parent
from cluster.scheduler.questions import Questions

__all__ = ["Coordination"]

NAME_LIMIT = 1000
"""Characters of a name."""
OPEN_REQUESTS_LIMIT = 1000
"""So many requests one client may have open: each of its threads waits for one."""
LEASES_LIMIT = 1000
"""So many leases one client may hold."""
NAMES_TOLD_LIMIT = 10_000
FENCES_A_MILLISECOND = 1000
"""An epoch is a time in milliseconds, and no scheduler gives out as many fences in one: so they rise over restarts."""
IDLE_TIMERS_LIMIT = 64

TimerOwner = Request | Lease


class Coordination:
    """Every named object, and the requests for them."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle, questions: Questions) -> None:
        self.ledger = ledger
        self.questions = questions
        self.values = KeptValues(ledger, lifecycle)
        self.objects: dict[tuple[str, str], Named] = {}
        self.parties: dict[bytes, Party] = {}
        self._fences = itertools.count(ledger.epoch * FENCES_A_MILLISECOND + 1)
        self._timers: list[tuple[float, int, TimerOwner]] = []
        self._timers_set = 0
        self._timers_limit = IDLE_TIMERS_LIMIT
        self._nesting = lifecycle.nesting
        self._nesting.on_end.append(self._run_ended)
        questions.register("coordinate", self._asked)
        questions.register("coordinate_withdraw", self._withdrawn)
        questions.register("coordinate_settle", self._settled)
        questions.register("datasets", self._datasets)

    # ------------------------------------------------------------------ requests

    def _asked(self, now: float, client: ClientRecord, number: int, detail: Any) -> None:
        """`[floor, kind, name, action, seconds to wait (None: for ever), arguments]`"""
        match detail:
            case [int() as floor, str() as kind, str() as name, str() as action, seconds, list() as arguments] if (
                kind in KINDS and (seconds is None or isinstance(seconds, int | float))
            ):
                checked_arguments(KINDS[kind], action, arguments)
            case _:
                raise ProtocolError(f"a request to coordinate makes no sense: {detail!r:.200}")
        party = self._party(client, floor, number)
        known = party.requests.get(number)
        if known is not None:
            if known.outcome is not None:
                self._say(known)
            return
        if number < party.floor:
            return  # it came again, late
        try:
            self._check_bounds(party, name, action)
            target = self._object(kind, name)
        except Refusal as refusal:
            self.questions.answer(client, number, error=str(refusal))
            return
        request = party.requests[number] = Request(party, number, target, action, arguments)
        if action == "acquire" and not self._bind_to_run(request):
            self._end(request, f"the task that asked for {name!r} has ended")
            self._advance(target)
            return
        self._begin(now, request, math.inf if seconds is None else seconds)
        self._advance(target)

    def _begin(self, now: float, request: Request, seconds: float) -> None:
        target = request.target
        line = target.line_of(request)
        try:
            target.admit(request)
            result = target.serve(request) if not line else NOT_NOW
        except Refusal as refusal:
            self._end(request, str(refusal))
            return
        if result is not NOT_NOW:
            self._end(request, "", result)
        elif seconds <= 0:
            self._end(request, "", None)
        else:
            assert line is not None
            line[request] = None
            if seconds < math.inf:
                request.deadline = now + seconds
                self._set_timer(request.deadline, request)

    def _bind_to_run(self, request: Request) -> bool:
        """See whether a task asks for a lease: that ends with the task then. False if the task has ended by now.

        What an actor acquires is its own beyond the call, and ends with its process.
        """
        attempt, row = request.arguments[2:]
        if attempt < 0:
            return True
        holder = self._nesting.acquires(attempt, row)
        if holder is None:
            return False
        run = self.ledger.run(row)
        if not run.makes_actor and not run.calls_actor:
            request.holder = holder
            holder.acquiring[request] = None
        return True

    def _run_ended(self, holder: Parent) -> None:
        """A task has ended: it holds no lock any more, and asks for none."""
        waiting_first = sorted(holder.acquiring, key=lambda request: request.outcome is not None)
        for request in waiting_first:
            lease = request.lease
            if request.outcome is None:
                self._leave_line(request)
                self._end(request, f"the task that asked for {request.target.name!r} has ended")
            elif lease is not None and lease.fence in lease.leases.taken:
                lease.leases.end(lease)
                # A request that comes again, because its answer was lost, must not be told of the lease.
                request.outcome = (f"the task that asked for {request.target.name!r} has ended", None)
            self._advance(request.target)

    def _party(self, client: ClientRecord, floor: int, number: int) -> Party:
        party = self.parties.get(client.identity)
        if party is None:
            party = self.parties[client.identity] = Party(client)
        self._settle(party, number if floor < 0 else min(floor, number))
        return party

    def _check_bounds(self, party: Party, name: str, action: str) -> None:
        if not 0 < len(name) <= NAME_LIMIT:
            raise Refusal(f"a name has 1 to {NAME_LIMIT} characters, not {len(name)}")
        if len(party.requests) >= OPEN_REQUESTS_LIMIT:
            raise Refusal(f"a client can wait for {OPEN_REQUESTS_LIMIT} locks, events, queues … at a time")
        if action == "acquire" and len(party.leases) >= LEASES_LIMIT:
            raise Refusal(f"a client can hold {LEASES_LIMIT} leases at a time")

    def _object(self, kind: str, name: str) -> Named:
        target = self.objects.get((kind, name))
        if target is None:
            self.values.charge(OVERHEAD_BYTES + len(name))
            target = self.objects[kind, name] = KINDS[kind](name, self.values, self._fences)
        return target

    def _advance(self, target: Named) -> None:
        """Serve whoever can be served by now, and forget the object if nothing of it is left."""
        progress = True
        while progress:
            progress = False
            for line in target.lines:
                while line:
                    head = next(iter(line))
                    result = target.serve(head)
                    if result is NOT_NOW:
                        break
                    del line[head]
                    self._end(head, "", result)
                    progress = True
        if target.is_unused and self.objects.pop((target.kind, target.name), None) is not None:
            self.values.charge(-OVERHEAD_BYTES - len(target.name))

    def _end(self, request: Request, error: str, result: Any = None) -> None:
        """Answer a request; what it brought and could not leave is let go."""
        request.deadline = None
        if request.brought is not None:
            self.values.let_go(request.brought)
            request.brought = None
        request.arguments = []
        request.outcome = (error, result)
        if request.holder is not None and request.lease is None:
            request.holder.acquiring.pop(request, None)
        self._say(request)

    def _say(self, request: Request) -> None:
        assert request.outcome is not None
        error, result = request.outcome
        self.questions.answer(request.party.client, request.number, result, error)

    # ------------------------------------------------------------------ settling and withdrawing

    def _settled(self, now: float, client: ClientRecord, number: int, detail: Any) -> None:
        """`floor`; nothing is answered"""
        if not isinstance(detail, int):
            raise ProtocolError(f"a request is settled by its number, not by {detail!r:.100}")
        self._party(client, detail, number)

    def _settle(self, party: Party, floor: int) -> None:
        """The client has taken in the answers of all requests below; what they carried is its own matter now."""
        party.floor = max(party.floor, floor)
        for number in list(party.requests):  # in the order in which they came, which is almost that of the numbers
            if number >= party.floor:
                return
            request = party.requests[number]
            if request.outcome is not None:
                del party.requests[number]
                self._let_go_of_taken(request)

    def _let_go_of_taken(self, request: Request) -> None:
        for value in request.taken:
            self.values.let_go(value)
        request.taken = []

    def _withdrawn(self, now: float, client: ClientRecord, number: int, detail: Any) -> None:
        """`[floor, number]`: the client will not look at the answer of that request; answered when it is undone"""
        match detail:
            case [int() as floor, int() as withdrawn]:
                party = self._party(client, min(floor, withdrawn) if floor >= 0 else withdrawn, number)
            case _:
                raise ProtocolError(f"a request to withdraw makes no sense: {detail!r:.100}")
        request = party.requests.get(withdrawn)
        if request is not None:
            if request.outcome is None:
                self._leave_line(request)
                self._end(request, "it was withdrawn")
                self._advance(request.target)
            else:
                target = self._again(request.target)
                target.take_back(request)
                self._let_go_of_taken(request)
                self._advance(target)
        self.questions.answer(client, number)

    def _leave_line(self, request: Request) -> None:
        line = request.target.line_of(request)
        assert line is not None
        del line[request]

    def _again(self, target: Named) -> Named:
        """The object of that name, which may have been forgotten meanwhile, or be another."""
        known = self.objects.get((target.kind, target.name))
        if known is not None:
            return known
        self.values.nbytes += OVERHEAD_BYTES + len(target.name)
        self.objects[target.kind, target.name] = target
        return target

    def _datasets(self, now: float, client: ClientRecord, number: int, detail: Any) -> None:
        names = sorted(name for kind, name in self.objects if kind == Dataset.kind)
        self.questions.answer(client, number, names[:NAMES_TOLD_LIMIT])

    # ------------------------------------------------------------------ time and losses

    @property
    def look_again_at(self) -> float:
        """When time alone will matter."""
        return self._timers[0][0] if self._timers else math.inf

    def look_again(self, now: float) -> None:
        """End the waits and the leases whose time has come."""
        while self._timers and self._timers[0][0] <= now:
            due, _, owner = heapq.heappop(self._timers)
            if not _is_live(due, owner):
                continue
            if isinstance(owner, Lease):
                owner.leases.end(owner)
                # Should the client come back and ask again, because the answer was lost, it must not believe it.
                name = owner.leases.name
                owner.request.outcome = (f"the lease of {name!r} ended while the connection was lost", None)
                self._advance(owner.leases)
            else:
                self._leave_line(owner)
                self._end(owner, "", None)
                self._advance(owner.target)

    def _set_timer(self, due: float, owner: TimerOwner) -> None:
        self._timers_set += 1
        heapq.heappush(self._timers, (due, self._timers_set, owner))
        if len(self._timers) > self._timers_limit:
            self._timers = [timer for timer in self._timers if _is_live(timer[0], timer[2])]
            heapq.heapify(self._timers)
            self._timers_limit = max(IDLE_TIMERS_LIMIT, 2 * len(self._timers))

    def client_gone(self, now: float, client: ClientRecord) -> None:
        """A client's connection is lost: its leases run from now on, and it waits no more."""
        party = self.parties.get(client.identity)
        if party is None:
            return
        self._stop_waiting(party)
        for lease in party.leases.values():
            lease.lapses_at = now + lease.seconds
            self._set_timer(lease.lapses_at, lease)

    def client_left(self, client: ClientRecord) -> None:
        """A client has said goodbye, or did not come back: all its leases end."""
        party = self.parties.pop(client.identity, None)
        if party is None:
            return
        self._stop_waiting(party)
        for request in party.requests.values():
            self._let_go_of_taken(request)
        for lease in list(party.leases.values()):
            lease.leases.end(lease)
            self._advance(lease.leases)

    def _stop_waiting(self, party: Party) -> None:
        """Forget what a client waits for; should it ask again, it stands at the end of the line."""
        waiting = [request for request in party.requests.values() if request.outcome is None]
        for request in waiting:
            self._leave_line(request)
            request.deadline = None
            if request.holder is not None:
                request.holder.acquiring.pop(request, None)
            if request.brought is not None:
                self.values.let_go(request.brought)
                request.brought = None
            del party.requests[request.number]
        for request in waiting:
            if (request.target.kind, request.target.name) in self.objects:
                self._advance(request.target)


def _is_live(due: float, owner: TimerOwner) -> bool:
    """Whether a timer still means something."""
    if isinstance(owner, Request):
        return owner.deadline == due
    return owner.lapses_at == due and owner.fence in owner.leases.taken and not owner.party.client.connected
