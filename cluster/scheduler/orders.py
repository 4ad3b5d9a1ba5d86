"""Orders to workers that are no tasks, each answered once: by the worker, or by its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.workers import WorkerRecord
from cluster.wire import messages

__all__ = ["Orders"]

Answered: TypeAlias = Callable[[str, Any], None]
"""Called with the error (empty: none) and the result."""


class Orders:
    """The orders that are under way."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._under_way: dict[int, tuple[int, Answered]] = {}  # request -> worker index, whom to tell
        self._requests = 0

    def give(self, worker: WorkerRecord, what: str, detail: Any, answered: Answered) -> None:
        """Order something of a worker; `answered` is called once, when it has answered or is lost."""
        self._requests += 1
        self._under_way[self._requests] = (worker.index, answered)
        if not worker.lost:  # else `worker_gone` follows
            self.ledger.send(worker.peer, messages.Order(self._requests, what, detail))

    def ordered(self, worker: WorkerRecord, message: messages.Ordered) -> None:
        """A worker has answered; what nobody asked that worker is passed over."""
        index, answered = self._under_way.get(message.request, (-1, None))
        if answered is not None and index == worker.index:
            del self._under_way[message.request]
            answered(message.error, message.result)

    def worker_gone(self, worker: WorkerRecord) -> None:
        """A worker is lost, and what it was ordered to do with it."""
        lost = [request for request, (index, _) in self._under_way.items() if index == worker.index]
        for request in lost:
            _, answered = self._under_way.pop(request)
            answered(f"worker {worker.name} was lost before it answered", None)
