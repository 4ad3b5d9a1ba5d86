"""What must be true of locks, queues and their like between any two events, counted anew; for tests and simulator.

A fault is an AssertionError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cluster.scheduler.coordination import Coordination
from cluster.scheduler.kept_values import OVERHEAD_BYTES, KeptValue
from cluster.scheduler.named_objects import Event, Leases, Named, Queue, Request, Variable

__all__ = ["check_coordination"]


def check_coordination(coordination: Coordination) -> None:
    """Nobody waits for what is there, nobody is forgotten, and everything that is kept is counted once a user."""
    timers = {(due, id(owner)) for due, _, owner in coordination._timers}
    waiting: set[int] = set()
    leases: dict[int, Leases] = {}
    for (kind, name), target in coordination.objects.items():
        assert (target.kind, target.name) == (kind, name), f"{kind} {name!r} is listed under another name"
        assert not target.is_unused, f"{kind} {name!r} is used by nobody and was not forgotten"
        for line in target.lines:
            for request in line:
                waiting.add(id(request))
                assert request.outcome is None and request.target is target, f"{name!r} has an answered one in line"
                known = request.party.requests.get(request.number) is request
                assert known, f"{name!r} lets a request wait that its client does not have"
        _check_heads(target)
        if isinstance(target, Leases):
            assert len(target.taken) <= target.most, f"{name!r} has {len(target.taken)} holders, not {target.most}"
            for fence, lease in target.taken.items():
                assert fence not in leases and lease.fence == fence, f"fence {fence} is there twice"
                assert lease.party.leases.get(fence) is lease, f"the holder of {name!r} does not know it"
                leases[fence] = target
    for identity, party in coordination.parties.items():
        assert party.client.identity == identity, f"client {party.client.name} is listed under another identity"
        for fence, lease in party.leases.items():
            assert leases.get(fence) is lease.leases, f"client {party.client.name} has lease {fence} of nothing"
            if not party.client.connected:
                assert (lease.lapses_at, id(lease)) in timers, f"the lease {fence} of a lost client would never end"
        for lease in party.leases.values():
            assert _is_bound(coordination, lease.request), f"the lease {lease.fence} would outlive its task"
        for request in party.requests.values():
            if request.outcome is None:
                assert party.client.connected, f"client {party.client.name} is lost, and waits"
                assert id(request) in waiting, f"request {request.number} of {party.client.name} was forgotten"
                timed = request.deadline is None or (request.deadline, id(request)) in timers
                assert timed, f"request {request.number} of {party.client.name} would never time out"
                bound = _is_bound(coordination, request)
                assert bound, f"request {request.number} of {party.client.name} would wait longer than its task runs"
    _check_values(coordination)


def _is_bound(coordination: Coordination, request: Request) -> bool:
    """Whether the run that asked, if one did, goes on, and will end what it asked for."""
    holder = request.holder
    return holder is None or (request in holder.acquiring and holder in coordination.ledger.parents.values())


def _check_heads(target: Named) -> None:
    """Who stands at the head of a line cannot be served."""
    if isinstance(target, Leases):
        free = len(target.taken) < target.most
    elif isinstance(target, Event):
        free = target.is_set
    elif isinstance(target, Variable):
        free = target.value is not None
    elif isinstance(target, Queue):
        free = bool(target.items)
        putter = next(iter(target.lines[1]), None)
        room = putter is not None and not 0 < putter.arguments[0] <= len(target.items)
        assert not room, f"somebody waits to put into {target.name!r}, which has room"
    else:
        free = False
    assert not (free and target.lines[0]), f"somebody waits for {target.kind} {target.name!r}, and need not"


def _check_values(coordination: Coordination) -> None:
    users: Counter[int] = Counter()
    values: dict[int, KeptValue] = {}
    for value in _used(coordination):
        users[id(value)] += 1
        values[id(value)] = value
    rows: Counter[int] = Counter()
    nbytes = sum(OVERHEAD_BYTES + len(name) for _, name in coordination.objects)
    for identity, value in values.items():
        assert value.users == users[identity], f"a value counts {value.users} users, and has {users[identity]}"
        rows.update(value.rows)
        nbytes += value.nbytes
    kept = coordination.ledger.kept_rows
    assert kept == dict(rows), f"the ledger says that {kept} are kept, and {dict(rows)} are"
    counted = coordination.values.nbytes
    assert counted == nbytes, f"{counted} bytes are counted, and {nbytes} are kept"


def _used(coordination: Coordination) -> Iterator[KeptValue]:
    for target in coordination.objects.values():
        if isinstance(target, Queue):
            yield from target.items
        elif isinstance(target, Variable) and target.value is not None:
            yield target.value
    for party in coordination.parties.values():
        for request in party.requests.values():
            yield from _carried(request)


def _carried(request: Request) -> Iterator[KeptValue]:
    if request.brought is not None:
        yield request.brought
    yield from request.taken
