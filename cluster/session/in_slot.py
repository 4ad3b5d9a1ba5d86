"""The machine of a client that lives in a slot: it says whose children its tasks are, and knows what has arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cluster.session.machine import Session
from cluster.session.parts import Call
from cluster.session.table import runs_of
from cluster.wire import messages

__all__ = ["SessionInSlot"]


class SessionInSlot(Session):
    """A session whose tasks are children of the task that runs when they leave."""

    def __init__(self, client_id: bytes, name: str, versions: dict[str, str], weight: float = 1.0) -> None:
        super().__init__(client_id, name, versions, weight)
        self.parent_of: Callable[[], tuple[int, int] | None] = lambda: None
        """Gives the (attempt, row) of the task that runs."""
        self.unsettled = False
        """Whether something was sent that must not arrive after the end of the task which sent it."""
        self._proof = -1  # when this number ends, all that was sent has arrived

    def join(self) -> None:
        """Say who we are, and where."""
        super().join()
        self._outbox.add(messages.LivesInSlot())

    def keep(self, numbers: Iterable[int]) -> None:
        """Run these to the end though nobody holds them, and though the task that submitted them has ended."""
        super().keep(numbers)
        self.unsettled = True
        self._proof = -1

    def hand_over(self, attempt: int, row: int, numbers: Iterable[int]) -> None:
        """Futures of these lie in the value that this task is about to report."""
        self._close_part()
        self._outbox.add(messages.HandOver(attempt, row, runs_of(numbers)))
        self.unsettled = True
        self._proof = -1

    def receive(self, message: Any) -> None:
        """Take a message from the scheduler in; the end of what was submitted last shows that all has arrived."""
        if self.unsettled and self._proof >= 0 and isinstance(message, messages.Finished | messages.Failed):
            runs = message.runs
            if any(first <= self._proof < first + count for first, count in zip(runs[::2], runs[1::2], strict=True)):
                self.unsettled = False
        super().receive(message)

    def _send_part(self, message: messages.Submit, call: Call) -> None:
        parent = self.parent_of()
        if parent is not None:
            message = message._replace(options={**message.options, "parent": list(parent)})
            if not self.unsettled or self._proof >= 0:
                self._proof = message.first + message.count - 1
            self.unsettled = True
        super()._send_part(message, call)
