"""Errands: functions that a user runs on a worker outside of all tasks, each in a process of its own.

So they answer while every slot is busy. The process is one like a slot's, for one call; its report is the answer.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from cluster.worker.events import EndErrand, ErrandEnded, StartErrand
from cluster.worker.ledger import Ledger
from cluster.worker.orders import Orders

__all__ = ["Errands"]

_AT_ONCE: Final = 8
"""Processes for errands at one time; further ones wait."""
_WAITING_LIMIT: Final = 1000
_NAME, _FUNCTION, _ARGUMENTS = "name", "function", "arguments"


class Errands:
    """The order "run": `{"name": text, "function": its pickle, "arguments": pickle of (positional, keywords)}`.

    The answer is `{"data": the value's bytes}`, or `{"kind": …, "error": …, "details": …}` as in `RunFailed`.
    """

    def __init__(self, ledger: Ledger, orders: Orders) -> None:
        self._ledger = ledger
        self._orders = orders
        self._running: set[int] = set()
        self._waiting: deque[StartErrand] = deque()
        orders.register("run", self._run)

    def _run(self, request: int, detail: Any) -> None:
        errand = StartErrand(request, str(detail[_NAME]), bytes(detail[_FUNCTION]), bytes(detail[_ARGUMENTS]))
        if len(self._waiting) >= _WAITING_LIMIT:
            self._orders.answer(request, error=f"{_WAITING_LIMIT} functions wait to be run on this worker already")
            return
        self._waiting.append(errand)
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._running) < _AT_ONCE:
            errand = self._waiting.popleft()
            self._running.add(errand.request)
            self._ledger.effects.append(errand)

    def reported(self, request: int, report: list[Any]) -> None:
        """The function has ended, and its process is no longer needed."""
        if request not in self._running:
            return
        outcome = report[2]
        if type(outcome) is bytes:
            self._orders.answer(request, {"data": outcome})
        else:
            self._orders.answer(request, {"kind": outcome, "error": report[3], "details": report[4]})
        self._running.discard(request)
        self._ledger.effects.append(EndErrand(request))
        self._start()

    def ended(self, end: ErrandEnded) -> None:
        """The process has ended; if the function had not, that is the answer."""
        if end.request not in self._running:
            return
        self._running.discard(end.request)
        details = {
            "message": f"the process that ran the function ended with {end.cause}",
            "lines": end.last_lines,
        }
        self._orders.answer(end.request, {"kind": "died", "error": b"", "details": details})
        self._start()
