"""Orders of the scheduler that are no tasks: each is answered once, by the part of the agent that registered for it.

"run" (`errands`), "upload" (`uploads`), "restart" (`machine`; no detail), "whereabouts" (`whereabouts`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from cluster.wire import messages
from cluster.worker.ledger import Ledger

__all__ = ["Orders"]

Performer: TypeAlias = Callable[[int, Any], None]
"""Called with the order's number and detail; it has `answer` called with that number, at once or later."""


class Orders:
    """Who carries out what."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._performers: dict[str, Performer] = {}
        self._newest = 0

    def register(self, what: str, performer: Performer) -> None:
        """Have orders of this name carried out by that."""
        self._performers[what] = performer

    def take(self, order: messages.Order) -> None:
        """Carry an order out, once however often it comes."""
        if order.request <= self._newest:  # numbers go upwards, and messages come in order
            return
        self._newest = order.request
        performer = self._performers.get(order.what)
        if performer is None:
            self.answer(order.request, error=f"this worker does not know the order {order.what!r}")
        else:
            performer(order.request, order.detail)

    def answer(self, request: int, result: Any = None, error: str = "") -> None:
        """Answer an order."""
        self._ledger.send(messages.Ordered(self._ledger.epoch, request, error, result))
