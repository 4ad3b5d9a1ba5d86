"""The machine of a client that lives in a slot: it says whose children its tasks are, and knows what has arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cluster.session.machine import Session
from cluster.session.parts import Call
from cluster.session.table import runs_of
from cluster.wire import messages

__all__ = ["SessionInSlot"]

Parent = tuple[int, int] | None
"""The (attempt, row) of a task, None for code that is of none."""

_NO_PROOF = -1


class SessionInSlot(Session):
    """A session whose tasks are children of the task that submits them. Several may do so by turns."""

    def __init__(self, client_id: bytes, name: str, versions: dict[str, str], weight: float = 1.0) -> None:
        super().__init__(client_id, name, versions, weight)
        self.parent_of: Callable[[], Parent] = lambda: None
        """Gives the task that the calling code is of."""
        self._parent: Parent = None  # of the open part
        # Tasks of which something was sent that must not arrive after their end -> the number whose end proves that all
        # has arrived, and which of all these notes it is.
        self._unsettled: dict[Parent, tuple[int, int]] = {}
        self._proofs: dict[int, Parent] = {}  # such a number -> its task
        self.notes = 0
        """How often it was noted that something was sent which must not arrive late."""

    def owes(self, task: Parent) -> bool:
        """Whether this task sent something that must not arrive after its end, and that may not have arrived."""
        gathered = self._open is not None and self._parent == task
        return gathered or task in self._unsettled or None in self._unsettled

    def settle(self, notes: int) -> None:
        """What was sent when there were so many notes has arrived."""
        for task in [task for task, note in self._unsettled.items() if note[1] <= notes]:
            self._proofs.pop(self._unsettled.pop(task)[0], None)

    def _owe(self, task: Parent, proof: int) -> None:
        self.notes += 1
        if task in self._unsettled:
            self._proofs.pop(self._unsettled[task][0], None)
        self._unsettled[task] = proof, self.notes
        if proof != _NO_PROOF:
            self._proofs[proof] = task

    def join(self) -> None:
        """Say who we are, and where."""
        super().join()
        self._outbox.add(messages.LivesInSlot())

    def submit(self, call: Call, piece: bytes, dependencies: Sequence[int] = ()) -> int:
        """Add one task to the open part, unless that is another task's, and return its number."""
        self._submits(self.parent_of())
        return super().submit(call, piece, dependencies)

    def submit_to_open_part(self, call: Call, piece: bytes, dependencies: Sequence[int] = ()) -> int:
        """As `submit` if the open part takes it, else -1."""
        return -1 if self.parent_of() != self._parent else super().submit_to_open_part(call, piece, dependencies)

    def submit_part(self, call: Call, *arguments: Any, **keywords: Any) -> int:
        """Send consecutive tasks, a part of a map; return the first of their numbers."""
        self._submits(self.parent_of())
        return super().submit_part(call, *arguments, **keywords)

    def _submits(self, parent: Parent) -> None:
        if parent != self._parent:
            self._close_part()
            self._parent = parent

    def keep(self, numbers: Iterable[int]) -> None:
        """Run these to the end though nobody holds them, and though the task that submitted them has ended."""
        super().keep(numbers)
        self._owe(self.parent_of(), _NO_PROOF)

    def hand_over(self, attempt: int, row: int, numbers: Iterable[int]) -> None:
        """Futures of these lie in the value that this task is about to report."""
        self._close_part()
        self._outbox.add(messages.HandOver(attempt, row, runs_of(numbers)))
        self._owe((attempt, row), _NO_PROOF)

    def receive(self, message: Any) -> None:
        """Take a message from the scheduler in; the end of what was submitted last shows that all has arrived."""
        if self._proofs and isinstance(message, messages.Finished | messages.Failed):
            runs = message.runs
            for first, count in zip(runs[::2], runs[1::2], strict=True):
                few = range(first, first + count) if count <= len(self._proofs) else list(self._proofs)
                for number in few:
                    if number in self._proofs and first <= number < first + count:
                        del self._unsettled[self._proofs.pop(number)]
        super().receive(message)

    def _send_part(self, message: messages.Submit, call: Call) -> None:
        parent = self._parent
        if parent is not None:
            message = message._replace(options={**message.options, "parent": list(parent)})
            needs_more = parent in self._unsettled and self._unsettled[parent][0] == _NO_PROOF
            self._owe(parent, _NO_PROOF if needs_more else message.first + message.count - 1)
        super()._send_part(message, call)
