"""Modules that users uploaded: stored where slots find them, and slots that may know older ones renewed."""

from __future__ import annotations

from typing import Any

from cluster.worker.events import StoreModule
from cluster.worker.ledger import Ledger
from cluster.worker.orders import Orders
from cluster.worker.workforce import Workforce

__all__ = ["Uploads"]


class Uploads:
    """The order "upload": `{"name": file name, "data": bytes}`, answered when new slots find it."""

    def __init__(self, ledger: Ledger, orders: Orders, workforce: Workforce) -> None:
        self._ledger = ledger
        self._orders = orders
        self._workforce = workforce
        self._storing: set[int] = set()
        orders.register("upload", self._upload)

    def _upload(self, request: int, detail: Any) -> None:
        self._storing.add(request)
        self._workforce.paused = True  # tasks that come later may need it
        self._ledger.effects.append(StoreModule(request, str(detail["name"]), bytes(detail["data"])))

    def stored(self, request: int, error: str) -> None:
        """It is stored, or cannot be."""
        self._storing.discard(request)
        self._workforce.paused = bool(self._storing)
        if not error:
            # A slot that has imported an older version keeps it for its life.
            self._workforce.renew()
        self._orders.answer(request, error=error)
