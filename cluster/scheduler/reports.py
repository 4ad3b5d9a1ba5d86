"""What the command line asks: how the cluster stands, its tasks, its workers, its events; and the peers that only ask.

An **observer** is a peer that asks and does nothing else. It is no client: it counts nowhere, and its coming and going
is no event. What takes a walk through the table is done in steps, between which the scheduler serves everybody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from cluster.errors import ProtocolError
from cluster.scheduler.census import LISTED_STATES, Census, named_counts
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.questions import Questions
from cluster.scheduler.table import FAILED, FINISHED, RELEASED, STATE_NAMES
from cluster.wire import messages

__all__ = ["Reports"]

TASKS_LISTED = 1000
LABELS_LISTED = 1000
FAILED_LABELS_LISTED = 20
WALKS_WAITING = 32

_UNFINISHED = tuple(code for code in LISTED_STATES if code not in (FINISHED, RELEASED))
_STATES_BY_NAME = {STATE_NAMES[code]: code for code in LISTED_STATES}


class Reports:
    """Answers the queries "status", "tasks", "workers" and "events"."""

    def __init__(self, ledger: Ledger, questions: Questions, process_id: int) -> None:
        self._ledger = ledger
        self._questions = questions
        self._process_id = process_id
        self._observers: dict[int, ClientRecord] = {}
        self._walks: deque[tuple[Census, Callable[[Census], None]]] = deque()
        self._followers: dict[bytes, tuple[ClientRecord, int, int]] = {}  # client -> (it, request, after)
        ledger.events.on_noted = self._tell_followers
        for what, answerer in (
            ("status", self._status),
            ("tasks", self._tasks),
            ("workers", self._workers),
            ("events", self._events),
        ):
            questions.register(what, answerer)

    # ------------------------------------------------------------------ observers

    def receive(self, now: float, peer: int, message: Any) -> bool:
        """Take a message of an observer, or of one that becomes one; false if it is neither."""
        observer = self._observers.get(peer)
        if observer is None:
            if not isinstance(message, messages.ObserverJoin):
                return False
            self._observers[peer] = ClientRecord(message.observer_id, message.name, peer, self._ledger.table.state)
            self._ledger.send(peer, messages.ClientWelcome(self._ledger.epoch, self._ledger.settings.versions))
        elif isinstance(message, messages.Query):
            self._questions.query(now, observer, message)
        elif not isinstance(message, messages.Heartbeat | messages.Leave | messages.ObserverJoin):
            raise ProtocolError(f"an observer sent {type(message).__name__}, which observers do not send")
        return True

    def disconnected(self, peer: int) -> None:
        """If that was an observer, forget it."""
        observer = self._observers.pop(peer, None)
        if observer is not None:
            observer.connected = False
            self._followers.pop(observer.identity, None)

    # ------------------------------------------------------------------ walks through the table

    @property
    def has_work(self) -> bool:
        """Whether `work` has something to do."""
        return bool(self._walks)

    def work(self) -> None:
        """Go a step further with what takes long."""
        census, then = self._walks[0]
        if census.work():
            self._walks.popleft()
            then(census)

    def _walk(self, client: ClientRecord, request: int, census: Census, answer: Callable[[Census], Any]) -> None:
        if len(self._walks) >= WALKS_WAITING:
            self._questions.answer(client, request, error="the scheduler is counting for others; ask again later")
            return
        self._walks.append((census, lambda done: self._questions.answer(client, request, answer(done))))

    # ------------------------------------------------------------------ answers

    def _status(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        def answer(census: Census) -> dict[str, Any]:
            ledger = self._ledger
            workers = list(ledger.workers.values())
            failed = sorted(((counts[FAILED], label) for label, counts in census.labels.items()), reverse=True)
            return {
                "process_id": self._process_id,
                "uptime_seconds": now - ledger.settings.started_at,
                "versions": ledger.settings.versions,
                "clients": sum(known.connected and not known.in_slot for known in ledger.clients.values()),
                "workers": len(workers),
                "workers_draining": sum(worker.draining for worker in workers),
                "slots": sum(worker.slots for worker in workers),
                "slots_busy": sum(min(worker.outstanding, worker.slots) for worker in workers),
                "tasks": census.counts,
                "failed_by_label": {label: count for count, label in failed[:FAILED_LABELS_LISTED] if count},
                "values": sum(worker.held_values for worker in workers),
                "values_bytes": sum(worker.held_bytes for worker in workers),
                "memory_limit_bytes": sum(worker.memory.limit_bytes for worker in workers),
            }

        self._walk(client, request, Census(self._ledger), answer)

    def _tasks(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        detail = detail if isinstance(detail, dict) else {}
        states, limit = detail.get("states") or [], detail.get("limit", 20)
        unknown = [state for state in states if state not in _STATES_BY_NAME]
        if unknown:
            error = f"{str(unknown[0])[:100]!r} is no state of a task; the states are {', '.join(_STATES_BY_NAME)}"
            self._questions.answer(client, request, error=error)
            return
        if not isinstance(limit, int) or not 0 <= limit <= TASKS_LISTED:
            self._questions.answer(client, request, error=f"limit must be 0 to {TASKS_LISTED}, not {limit!r:.100}")
            return
        listed = tuple(_STATES_BY_NAME[state] for state in dict.fromkeys(states)) or _UNFINISHED
        label, wanted_client = str(detail.get("label") or ""), str(detail.get("client") or "")

        def answer(census: Census) -> dict[str, Any]:
            labels = sorted(census.labels.items(), key=lambda item: (-sum(item[1]), item[0]))
            counts, tasks = census.counts, census.tasks
            return {
                "counts": counts,
                "labels": [
                    {"label": each, **named_counts(of), "bytes": census.label_bytes.get(each, 0)}
                    for each, of in labels[:LABELS_LISTED]
                ],
                "tasks": tasks,
                "not_listed": sum(counts[STATE_NAMES[state]] for state in listed) - len(tasks),
            }

        census = Census(self._ledger, listed=listed, label=label, client=wanted_client, limit=limit)
        self._walk(client, request, census, answer)

    def _workers(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        found = [
            {
                "name": worker.name,
                "address": worker.address,
                "process_id": worker.process_id,
                "state": "draining" if worker.draining else "running",
                "slots": worker.slots,
                "slots_busy": min(worker.outstanding, worker.slots),
                "tasks_granted": worker.outstanding,
                "values": worker.held_values,
                "values_bytes": worker.held_bytes,
                "memory_limit_bytes": worker.memory.limit_bytes,
                "resources": worker.declared_resources,
                "uptime_seconds": now - worker.joined_at,
                "silent_seconds": now - worker.last_seen,
                "versions": worker.versions,
                "report": worker.report,
            }
            for worker in self._ledger.workers.values()
        ]
        self._questions.answer(client, request, found)

    # ------------------------------------------------------------------ events

    def _events(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        """Detail: "after" (a number; 0 for all that are kept), "wait" (answer only when there is a newer one)."""
        detail = detail if isinstance(detail, dict) else {}
        after = detail.get("after", 0)
        if not isinstance(after, int):
            self._questions.answer(client, request, error=f"after must be an event's number, not {after!r:.100}")
            return
        if detail.get("wait") and after >= self._ledger.events.last_number:
            earlier = self._followers.pop(client.identity, None)
            if earlier is not None:
                self._answer_events(*earlier)
            self._followers[client.identity] = (client, request, after)
            return
        self._answer_events(client, request, after)

    def _tell_followers(self) -> None:
        followers, self._followers = self._followers, {}
        for follower in followers.values():
            self._answer_events(*follower)

    def _answer_events(self, client: ClientRecord, request: int, after: int) -> None:
        log = self._ledger.events
        found = [
            {
                "number": event.number,
                "age_seconds": log.now - event.time,
                "kind": event.kind,
                "subject": event.subject,
                "text": event.text,
                "count": event.times,
            }
            for event in log.after(after)
        ]
        self._questions.answer(client, request, {"events": found, "last": log.last_number})
