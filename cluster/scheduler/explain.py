"""Why a task is where it is, what it waits for, and what to do about it, for every state that a task can be in.

What is said of a ready task are the bars of `cluster.scheduler.startable`, and nothing else. Where a granted task is,
its agent knows; `inquiries.py` asks it and hands the answer in here.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any, NamedTuple

from cluster.scheduler.held_back import estimate, held_back, without_room
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.ready import Lane
from cluster.scheduler.reasons import Reason
from cluster.scheduler.startable import (
    Bar,
    bar,
    bytes_to_move,
    expected_wait_seconds,
    runs_inside_parent,
    shortfall,
)
from cluster.scheduler.suspects import AGENT_DEATHS_ALLOWED, Suspicion
from cluster.scheduler.table import (
    FAILED,
    FINISHED,
    FREE,
    GRANTED,
    NO_RECIPE,
    OWNER_WANTS,
    READY,
    RELEASED,
    WAITING,
    Run,
)
from cluster.scheduler.workers import WorkerRecord
from cluster.units import format_bytes, format_seconds

__all__ = ["Explanation", "Reason", "Whereabouts", "explain", "forgotten", "root_of"]

NAMES_SHOWN = 5
CALLS_LOOKED_AT = 10_000
INPUTS_LOOKED_AT = 5_000
LINKS_FOLLOWED = 1_000
BUCKETS_LOOKED_AT = 5_000
LINES_OF_THE_PAST = 3

REMEDIES = {
    "exception": "read the traceback (future.traceback()), mend the function, submit again; retries=n repeats it",
    "died": "see signal and last lines; a task that takes too much memory needs smaller pieces or another worker",
    "timeout": "give it a larger timeout_seconds, or smaller pieces of work",
    "cancelled": "somebody cancelled it; submit it again if it is needed",
    "lost": "submit it again",
    "full": "release futures that nobody needs, start workers, or give values more room on disk; then future.retry()",
    "unserializable": "return something that can be pickled",
    "unrunnable": "start a worker that can run it, then future.retry()",
    "import": "install on the workers what the function imports",
}


class Whereabouts(NamedTuple):
    """What an agent says of a run (`cluster.worker.whereabouts`); `found` is None when it did not answer."""

    row: int
    attempt: int
    found: dict[str, Any] | None


class Explanation(NamedTuple):
    """A task's state and what is to be said about it, the most important first."""

    key: str
    state: str
    reasons: list[Reason]

    def answer(self) -> dict[str, Any]:
        """As it goes to a client."""
        lines = [{"what": reason.what, "why": reason.why, "remedy": reason.remedy} for reason in self.reasons]
        return {"key": self.key, "state": self.state, "lines": lines}


def forgotten(key: str) -> Explanation:
    """What is to be said of a task that the scheduler does not know."""
    why = "the scheduler does not know this task: it was released by all who wanted it, or cancelled and forgotten"
    return Explanation(key, "forgotten", [Reason("forgotten", why, "keep the future as long as you need it")])


def root_of(ledger: Ledger, row: int) -> int:
    """The task that a waiting one waits for in the end: itself, or an input's input … that waits for no other."""
    current = row
    for _ in range(LINKS_FOLLOWED):
        if ledger.table.state[current] != WAITING:
            break
        missing, _ = _missing_inputs(ledger, current)
        if not missing:
            break
        current = missing[0]
    return current


def explain(ledger: Ledger, row: int, now: float, where: Whereabouts | None = None) -> Explanation:
    """Everything about a row in use. `where` is what an agent says of it or of its root, if one was asked."""
    table = ledger.table
    state = table.state[row]
    run = ledger.run(row)
    assert state != FREE
    past = _past(ledger, row, run, now)
    if state == WAITING:
        return Explanation(ledger.key(row), "waiting", _waiting(ledger, row, now, where) + past)
    if state == READY:
        return Explanation(ledger.key(row), "ready", _ready(ledger, row, run, now) + _memory(run) + past)
    if state == GRANTED:
        name, reasons = _granted(ledger, row, run, now, where)
        if table.holds[row] == 0:
            reasons.append(Reason("unneeded", "nobody wants its value any more; it runs out", "cancel it to stop it"))
        return Explanation(ledger.key(row), name, reasons + _memory(run) + past)
    if state == FINISHED:
        return Explanation(ledger.key(row), "finished", _finished(ledger, row, run))
    if state == FAILED:
        kind = ledger.failures[row].kind
        return Explanation(ledger.key(row), "cancelled" if kind == "cancelled" else "failed", _failed(ledger, row, now))
    return Explanation(ledger.key(row), "released", _released(ledger, row, run))


# --------------------------------------------------------------------------- waiting for inputs


def _missing_inputs(ledger: Ledger, row: int) -> tuple[list[int], int]:
    """Some inputs without a value, those that do not wait themselves first, and how many there are in all.

    Behind a join they are its inputs. Of very many inputs only the first are looked at.
    """
    table = ledger.table
    sources = table.inputs_of(row)
    count = table.waiting[row]
    if len(sources) == 1 and ledger.run(sources[0]).is_join:
        count = table.waiting[sources[0]]
        sources = table.inputs_of(sources[0])
    missing = [source for source in dict.fromkeys(sources[:INPUTS_LOOKED_AT]) if table.state[source] != FINISHED]
    if len(sources) <= INPUTS_LOOKED_AT:
        count = len(missing)
    missing.sort(key=lambda source: table.state[source] == WAITING)
    return missing, count


def _waiting(ledger: Ledger, row: int, now: float, where: Whereabouts | None) -> list[Reason]:
    missing, count = _missing_inputs(ledger, row)
    if not missing and ledger.run(row).calls_actor:
        return [_turn_at_actor(ledger, row)]
    if not missing:
        return [Reason("inputs", "its inputs have values since a moment ago, and it is about to be ready", "")]
    shown = [f"{ledger.key(source)} ({_state_in_a_word(ledger, source)})" for source in missing[:NAMES_SHOWN]]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    some = f"{count} of its inputs have" if count > 1 else "an input has"
    reasons = [Reason("inputs", f"{some} no value yet: {', '.join(shown)}{more}", "", tuple(missing))]
    root = where.row if where is not None and ledger.table.state[where.row] == GRANTED else root_of(ledger, row)
    if root != row and ledger.table.state[root] != WAITING:
        key = ledger.key(root)
        inner = explain(ledger, root, now, where)
        reasons += [
            Reason(f"{reason.what} of {key}", reason.why, reason.remedy, reason.rows) for reason in inner.reasons
        ]
    return reasons


def _turn_at_actor(ledger: Ledger, row: int) -> Reason:
    """Why a call whose inputs exist is not granted."""
    actor = ledger.table.inputs_of(row)[-1]
    line = ledger.actors[actor].lines[ledger.run(row).client.identity]
    before = len(line.granted)
    for queued, _ in islice(line.rows, CALLS_LOOKED_AT):
        if queued == row:
            break
        before += 1
    why = f"{_tasks(before)} that its client submitted before it for the actor {ledger.key(actor)} have not ended"
    return Reason("turn at the actor", why, "wait, or cancel the one that is stuck", tuple(line.granted)[:NAMES_SHOWN])


def _state_in_a_word(ledger: Ledger, row: int) -> str:
    state = ledger.table.state[row]
    if state == GRANTED:
        parent = ledger.parents.get(row)
        waits = "waits for tasks " if parent is not None and parent.suspended_at >= 0 else ""
        return f"{waits}at worker {ledger.workers[ledger.table.holder[row]].name}"
    words = {WAITING: "waits for inputs", READY: "ready", FAILED: "failed", RELEASED: "released", FINISHED: "finished"}
    return words[state]


# --------------------------------------------------------------------------- ready


def _ready(ledger: Ledger, row: int, run: Run, now: float) -> list[Reason]:
    lane = ledger.lane_of(row, run)
    bucket = lane.bucket_of(run)
    if not ledger.workers:
        why = "no worker is connected"
        return [Reason("no worker", why, "start one: cluster-worker ADDRESS, or LocalCluster.scale(n)")]
    owner = None if bucket is None else ledger.workers.get(bucket.owner_of(row))
    found: dict[Bar | None, list[WorkerRecord]] = {}
    for worker in ledger.workers.values():
        found.setdefault(bar(ledger, row, worker, _wait_elsewhere(owner, worker, lane, now)), []).append(worker)
    if None in found:
        why = f"a slot of {_names(found[None])} is free: it starts at the scheduler's next step"
        return [Reason("starting", why)]
    furthest = max(barred for barred in found if barred is not None)
    if furthest == Bar.UNNEEDED:
        return [Reason("unneeded", "nobody wants its value; it is being given up")]
    reasons = _barred(ledger, row, lane, furthest, found[furthest], owner, now)
    idle = [worker for worker in found.get(Bar.MOVING, ()) if worker.free_slots]
    if furthest == Bar.SLOT and idle and owner is not None:
        reasons.append(_moving(ledger, row, idle, owner))
    if furthest == Bar.SLOT and Bar.MEMORY in found:
        reasons.append(held_back(ledger, row, found[Bar.MEMORY]))
    if row in ledger.suspects:
        reasons.append(_suspect(ledger.suspects[row]))
    if any(runs_inside_parent(ledger, row, worker) for worker in ledger.workers.values()):
        reasons.append(_parent_waits(ledger, run.parent))
    elif furthest in (Bar.RESOURCES, Bar.MOVING, Bar.SUSPECT, Bar.MEMORY, Bar.SLOT):
        reasons += _turn(ledger, row, run, now)
    return reasons


def _memory(run: Run) -> list[Reason]:
    """What is known of the memory that it takes, if that is worth a line."""
    worth_it = run.memory_bytes or run.output_sizes.taken_bytes
    return [Reason("estimate", estimate(run))] if worth_it else []


def _wait_elsewhere(owner: WorkerRecord | None, worker: WorkerRecord, lane: Lane, now: float) -> float:
    """How long the row may be left to the worker that should run it, before any other may."""
    if owner is None or owner is worker or owner.draining or not owner.permits(lane.restriction):
        return math.inf
    return expected_wait_seconds(owner, now)


def _barred(
    ledger: Ledger,
    row: int,
    lane: Lane,
    furthest: Bar,
    workers: list[WorkerRecord],
    owner: WorkerRecord | None,
    now: float,
) -> list[Reason]:
    if furthest in (Bar.NAMED, Bar.LACKING, Bar.DRAINING):
        return [_unmet(ledger, lane, furthest, workers, now)]
    if furthest == Bar.RESOURCES:
        free = [_free_resources(worker, lane) for worker in workers[:NAMES_SHOWN]]
        asked = ", ".join(f"{amount:g} {name}" for name, amount in lane.restriction.resources)
        why = f"it takes {asked}, and other tasks have that now: {'; '.join(free)}"
        return [Reason("resources", why, "wait, start another worker that has it, or ask for less")]
    if furthest == Bar.MOVING:
        assert owner is not None
        return [_moving(ledger, row, workers, owner)]
    if furthest == Bar.SUSPECT:
        return [_kept_apart(workers)]
    if furthest == Bar.MEMORY:
        return [held_back(ledger, row, workers)]
    if furthest == Bar.PROCESS:
        return [_no_process(workers)]
    slots = sum(worker.slots for worker in workers)
    are = f"the {slots} slots of {_names(workers)} are" if slots > 1 else f"the slot of {_names(workers)} is"
    return [Reason("slot", f"{are} taken, and no other may run it now", "wait, or start more workers")]


def _moving(ledger: Ledger, row: int, workers: list[WorkerRecord], owner: WorkerRecord) -> Reason:
    nbytes = min(bytes_to_move(ledger, row, worker) for worker in workers)
    why = (
        f"its inputs lie at worker {owner.name}, whose slots are taken; moving {format_bytes(nbytes)} to "
        f"{_names(workers)} is expected to take longer than waiting"
    )
    return Reason("moving", why, "wait; it moves when the wait there gets longer")


def _kept_apart(workers: list[WorkerRecord]) -> Reason:
    charged = [
        start
        for worker in workers
        for grant in worker.grants.values()
        if grant.charged
        for start, _ in grant.spans  # one row: such a task is granted by itself
    ]
    why = (
        "it is charged with the end of a worker, and so is not granted together with another such task, as there is "
        f"one at {_names(workers)}"
    )
    return Reason("suspects", why, "wait until that one has ended, or start another worker", tuple(charged))


def _suspect(suspicion: Suspicion) -> Reason:
    if not suspicion.deaths:
        why = "it was at a worker when that ended, so it is granted by itself, and to a free slot only"
        return Reason("suspect", why, "wait; that ends when it ends")
    times = f"{suspicion.deaths} times" if suspicion.deaths > 1 else "once"
    why = (
        f"its worker ended {times} while it ran (worker {', '.join(suspicion.workers)}), so it is granted by itself, "
        f"and to a free slot only; at the end of {AGENT_DEATHS_ALLOWED} workers it fails"
    )
    return Reason("suspect", why, "see what it does to its host: its memory, and the processes that it ends")


def _no_process(workers: list[WorkerRecord]) -> Reason:
    waiting = sum(len(worker.suspended) for worker in workers)
    have = "has no process" if len(workers) == 1 else "have no processes"
    why = (
        f"a slot is free, and {_names(workers)} {have} for it: all that there may be hold tasks that wait for tasks "
        f"({waiting} tasks); only what those have submitted starts there"
    )
    remedy = "start more workers, or let tasks wait only for what they submitted themselves, which takes no process"
    return Reason("processes", why, remedy)


def _parent_waits(ledger: Ledger, parent: int) -> Reason:
    worker = ledger.workers[ledger.parents[parent].suspended_at]
    why = (
        f"{ledger.key(parent)}, which submitted it, waits for such at worker {worker.name}: there it goes before others"
    )
    return Reason("parent waits", why, "", (parent,))


def _unmet(ledger: Ledger, lane: Lane, barred: Bar, workers: list[WorkerRecord], now: float) -> Reason:
    patience = ledger.settings.unmet_request_seconds
    until = "it waits until one comes"
    if patience:
        waited = 0.0 if lane.unmet_since == math.inf else now - lane.unmet_since
        until = f"it fails in {format_seconds(max(0.0, patience - waited))} unless one comes"
    if barred == Bar.DRAINING:
        why = f"{_names(workers)} could run it, and will end; {until}"
        return Reason("draining", why, "start another worker that has what it asks for")
    what = "workers" if barred == Bar.NAMED else "resources nowhere"
    remedy = "start such a worker, or allow others: allow_other_workers=True"
    if barred == Bar.LACKING:
        remedy = "start a worker with --resources NAME=AMOUNT, or ask for less"
    return Reason(what, f"no connected worker can ever run it: {shortfall(ledger, lane.restriction)}; {until}", remedy)


def _free_resources(worker: WorkerRecord, lane: Lane) -> str:
    parts = [
        f"{max(0.0, worker.available[name]):g} of {worker.resources[name]:g} {name}"
        for name, _ in lane.restriction.resources
    ]
    return f"{worker.name} has {', '.join(parts)} free"


def _turn(ledger: Ledger, row: int, run: Run, now: float) -> list[Reason]:
    """Who goes before it."""
    client = run.client
    used = client.used_seconds(now)
    others = [
        other
        for other in ledger.clients.values()
        if other is not client and other.ready_rows and other.used_seconds(now) < used
    ]
    before, all_seen = _own_tasks_before(run)
    before += ledger.table.state.count(READY, run.start, row)
    parts = []
    remedy = ""
    if others:
        tasks = sum(other.ready_rows for other in others)
        remedy = "wait, or connect with a larger weight="
        parts.append(f"{_tasks(tasks)} of {len(others)} other clients, who had less slot time by weight")
    if before:
        at_least = "" if all_seen else "at least "
        remedy = "wait; submitted with a higher priority= it goes before them"
        parts.append(f"{at_least}{_tasks(before)} of the same client, by priority, depth or age")
    if not parts:
        return [Reason("turn", "it is the next to start")]
    return [Reason("turn", f"ready before it: {' and '.join(parts)}", remedy)]


def _own_tasks_before(run: Run) -> tuple[int, bool]:
    """How many ready tasks of its client go before those of a run, and whether all were counted."""
    own = (-run.priority, -run.depth, run.identity)
    before = looked_at = 0
    for lane in run.client.lanes.values():
        for priority, depth, identity, bucket in lane.heap:
            looked_at += 1
            if (priority, depth, identity) < own:
                before += max(0, bucket.size)
            if looked_at == BUCKETS_LOOKED_AT:
                return before, False
    return before, True


# --------------------------------------------------------------------------- granted


def _granted(ledger: Ledger, row: int, run: Run, now: float, told: Whereabouts | None) -> tuple[str, list[Reason]]:
    table = ledger.table
    worker = ledger.workers[table.holder[row]]
    grant = worker.grants[table.attempt[row]]
    since = format_seconds(max(0.0, now - grant.granted_at))
    there = f"worker {worker.name} at {worker.address} has had it for {since}"
    parent = ledger.parents.get(row)
    if told is None or (told.row, told.attempt) != (row, table.attempt[row]):
        if parent is not None and parent.suspended_at >= 0:
            return "running", _waits_for_tasks(ledger, row, now, there)
        return "granted", [Reason("granted", there)]
    where = told.found
    if where is None:
        silent = now - worker.last_seen
        given_up = max(0.0, ledger.settings.worker_timeout_seconds - silent)
        why = f"{there}, and did not answer; it was last heard of {format_seconds(silent)} ago"
        remedy = f"after {format_seconds(given_up)} more of silence it is given up, and the task runs elsewhere"
        return "granted", [Reason("silent worker", why, remedy)]
    place = where.get("where")
    if place == "fetching":
        inputs = [_fetch(ledger, *entry) for entry in where["inputs"]]
        more = f" and {where['lacking'] - len(inputs)} more" if where["lacking"] > len(inputs) else ""
        why = f"{there}; it waits for {', '.join(inputs)}{more}"
        why += f"; there is no room for that yet: {where['no_room']}" if where.get("no_room") else ""
        rows = tuple(entry[0] for entry in where["inputs"])
        return "fetching", [Reason("inputs on their way", why, "wait; see the network, or pass smaller values", rows)]
    if place == "slot" and where["ahead"] == 0:
        return "running", [_running(run, worker, where)]
    if place == "waits":
        there += f", and it runs in slot {where['slot']}"
        if where["woken"]:
            why = f"{there}; what it waited for has ended, and it goes on in the next slot that is free"
            return "running", [Reason("goes on", why, "wait, or start more workers: all slots of this one are taken")]
        return "running", _waits_for_tasks(ledger, row, now, there)
    if place == "slot":
        why = f"{there}; it is in the pipe of {_process(run, where)} behind {_tasks(where['ahead'])}"
        remedy = "wait; if a slot elsewhere is idle, or that one gets stuck, it is taken back"
        if run.calls_actor:
            remedy = "wait, or cancel the call that the actor runs"
        return "queued", [Reason("queued", why, remedy)]
    if place == "queued":
        return "queued", [_queued(there, where)]
    return "granted", [Reason("reporting", f"{there}, and has ended it: the report is on its way")]


def _waits_for_tasks(ledger: Ledger, row: int, now: float, there: str) -> list[Reason]:
    """A run that waits: for which of the tasks that it submitted, and what the first of these waits for in the end."""
    children, all_seen = _unfinished_children(ledger, row)
    if not children:
        why = f"{there}; it waits for tasks that it did not submit, for all that it did submit have ended"
        return [Reason("waits for tasks", why, "explain the futures that it was passed, or that it got by name")]
    shown = ", ".join(f"{ledger.key(child)} ({_state_in_a_word(ledger, child)})" for child in children[:NAMES_SHOWN])
    more = f" and {len(children) - NAMES_SHOWN} more" if len(children) > NAMES_SHOWN else ""
    at_least = "" if all_seen else "at least "
    why = f"{there}; it waits, and of what it submitted {at_least}{_tasks(len(children))} have not ended: {shown}{more}"
    if len(children) == 1:
        why = f"{there}; it waits, and of what it submitted one task has not ended: {shown}"
    remedy = f"see what they wait for: cluster explain {ledger.key(children[0])}"
    reasons = [Reason("waits for tasks", why, remedy, tuple(children))]
    last = _end_of_waits(ledger, children[0])
    if last >= 0:
        inner = explain(ledger, last, now)
        reasons += [
            Reason(f"{reason.what} of {inner.key}", reason.why, reason.remedy, reason.rows) for reason in inner.reasons
        ]
    return reasons


def _unfinished_children(ledger: Ledger, row: int) -> tuple[list[int], bool]:
    """What a run submitted and has not ended, what waits for no input first, and whether all was looked at."""
    parent, table = ledger.parents.get(row), ledger.table
    found: list[int] = []
    left = INPUTS_LOOKED_AT
    for run in () if parent is None else parent.children.values():
        for child in range(run.start, run.start + min(run.count, left)):
            if table.run_of[child] is run and table.state[child] in (WAITING, READY, GRANTED) and not run.is_join:
                found.append(child)
        left -= min(run.count, left)
    found.sort(key=lambda child: table.state[child] == WAITING)
    return found, left > 0


def _end_of_waits(ledger: Ledger, row: int) -> int:
    """Whom a task waits for in the end, by its inputs and by what it submitted: one that waits for none, or -1."""
    table = ledger.table
    for _ in range(LINKS_FOLLOWED):
        parent = ledger.parents.get(row)
        if table.state[row] == WAITING:
            behind, _ = _missing_inputs(ledger, row)
        elif table.state[row] == GRANTED and parent is not None and parent.suspended_at >= 0:
            behind, _ = _unfinished_children(ledger, row)
        else:
            return row
        if not behind:
            return row
        row = behind[0]
    return -1


def _running(run: Run, worker: WorkerRecord, where: dict[str, Any]) -> Reason:
    why = f"it has run for {format_seconds(where['seconds'])} in {_process(run, where)} of worker {worker.name}"
    limit = run.options.get("timeout_seconds")
    if limit:
        why += f", of at most {format_seconds(float(limit))}"
    if where["stopping"]:
        why += f"; it was asked to stop ({where['stopping']})"
        if where.get("is_thread"):
            why += "; if it does not within a second, its thread is left to itself"
    median = run.function.median_seconds if run.function is not None else None
    if median is not None:
        why += f"; {run.label} usually takes {format_seconds(median)}"
    return Reason("running", why, "wait, or cancel it")


def _process(run: Run, where: dict[str, Any]) -> str:
    if run.is_coroutine:
        return "a process of coroutines"
    if run.calls_actor or run.makes_actor:
        return "the actor's process"
    return f"{'a thread, ' if where.get('is_thread') else ''}slot {where['slot']}"


def _queued(there: str, where: dict[str, Any]) -> Reason:
    if not where["ready"]:
        why = f"{there}; none of its {where['slots']} slots is up yet, and {_tasks(where['ahead'])} are before it"
        return Reason("slots starting", why, "wait; if it does not end, see what the worker writes")
    busy = ", ".join(format_seconds(seconds) for seconds in where["busy"])
    why = f"{there}; it is queued there behind {_tasks(where['ahead'])}"
    if busy:
        why += f", and its slots have run their tasks for {busy}"
    return Reason("queued", why, "wait; if a slot elsewhere is idle, it is taken back")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _fetch(ledger: Ledger, row: int, attempt: int, nbytes: int, address: str) -> str:
    table = ledger.table
    known = row < len(table) and table.state[row] == FINISHED and table.attempt[row] == attempt
    name = ledger.key(row) if known else "an input"
    if address:
        return f"{name} ({format_bytes(nbytes)} from {address})"
    if known and row in ledger.spreads:
        return f"{name} ({format_bytes(nbytes)}, which few workers are given at a time)"
    client = f" {ledger.run(row).client.name}" if known else ""
    no_room = without_room(ledger, row) if known else ""
    return f"{name} ({format_bytes(nbytes)}, which its client{client} sends{no_room})"


# --------------------------------------------------------------------------- ended


def _finished(ledger: Ledger, row: int, run: Run) -> list[Reason]:
    table = ledger.table
    if run.is_join:
        return [Reason("finished", "all that it stands for has values")]
    names = [ledger.workers[index] for index in table.holders(row)]
    size = format_bytes(table.nbytes[row])
    if names:
        return [Reason("finished", f"its value of {size} is at {_names(names)}")]
    why = f"its value of {size} is in the memory of client {run.client.name}, who offered it"
    return [Reason("finished", why + without_room(ledger, row))]


def _failed(ledger: Ledger, row: int, now: float) -> list[Reason]:
    failure = ledger.failures[row]
    details = failure.details
    ago = format_seconds(max(0.0, now - failure.at))
    root = failure.row
    known = ledger.table.run_of[root] if root >= 0 else None
    is_own = root == row and known is not None and known.identity == failure.run_identity
    at = f" at worker {details['worker']}" if details.get("worker") else ""
    times = f" (run {details['attempts']})" if details.get("attempts", 1) > 1 else ""
    text = str(details.get("message", ""))[:500]
    kind = f"{details['type']}: " if details.get("type") and failure.kind == "exception" else ""
    told = f"{ago} ago{at}{times}, {failure.kind}: {kind}{text}"
    remedy = str(details.get("remedy") or REMEDIES.get(failure.kind, ""))
    if is_own:
        return [Reason(failure.kind, told, remedy, (row,))]
    first = str(details.get("key") or "a task that it needs")
    reasons = [Reason("failed input", f"{first} failed first, and this task needs its value", "", (root,))]
    return [*reasons, Reason(f"{failure.kind} of {first}", told, remedy, (root,))]


def _released(ledger: Ledger, row: int, run: Run) -> list[Reason]:
    table = ledger.table
    if table.flags[row] & OWNER_WANTS:
        why = f"its value was lost with its worker; client {run.client.name} has it, and nobody else needs it"
    else:
        why = f"nobody wants its value; {_tasks(table.heirs[row])} would need it, should they have to be run again"
    if table.flags[row] & NO_RECIPE:
        why += "; it cannot be computed again, since the recipe of an input was given up"
    return [Reason("released", why)]


def _past(ledger: Ledger, row: int, run: Run, now: float) -> list[Reason]:
    """Why it is not done yet, though it was begun before."""
    events = ledger.history.of(row, run.identity)[-LINES_OF_THE_PAST:]
    return [
        Reason(f"before: {event.what}", f"{format_seconds(max(0.0, now - event.at))} ago: {event.why}")
        for event in reversed(events)
    ]


def _names(workers: list[WorkerRecord]) -> str:
    names = ", ".join(worker.name for worker in workers[:NAMES_SHOWN])
    more = f" and {len(workers) - NAMES_SHOWN} more" if len(workers) > NAMES_SHOWN else ""
    return f"worker {names}" if len(workers) == 1 else f"workers {names}{more}"
