"""What the agent owes the scheduler: every granted task is answered for once, successes gathered into columns."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from cluster.wire import messages
from cluster.worker.events import Effect, ToScheduler
from cluster.worker.queue import Assignment

__all__ = ["Ledger", "runs_of"]

_INLINE_BYTES_A_FRAME: Final = 64 * 1024
_ROWS_A_FRAME: Final = 16_384
# How long the first success of a gathering may wait for company.
_GATHER_SECONDS: Final = 0.002


def runs_of(numbers: Sequence[int]) -> list[int]:
    """Consecutive numbers as runs.

    >>> runs_of([4, 5, 9])
    [4, 2, 9, 1]
    """
    runs: list[int] = []
    following = -1
    for number in numbers:
        if number == following:
            runs[-1] += 1
        else:
            runs += (number, 1)
        following = number + 1
    return runs


class Ledger:
    """The assignments that are not answered for in full, and the messages about them.

    `effects` is the list that the handling of the present event fills; all parts of the machine append to it.
    """

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.epoch = 0
        self.flush_at: float | None = None
        self._assignments: dict[int, Assignment] = {}
        self._unsent: dict[int, Assignment] = {}
        self._newest_attempt = -1

    def __len__(self) -> int:
        return sum(assignment.remaining for assignment in self._assignments.values())

    def send(self, message: Any) -> None:
        """Send a message to the scheduler."""
        self.effects.append(ToScheduler(message))

    def open(self, grant: messages.Grant) -> Assignment | None:
        """Note a grant; None if it had come before."""
        # The scheduler draws attempts upwards, and its messages come in order: one not above all others was seen.
        if grant.attempt <= self._newest_attempt:
            return None
        self._newest_attempt = grant.attempt
        assignment = Assignment(grant)
        if not assignment.remaining:
            return None
        self._assignments[grant.attempt] = assignment
        return assignment

    def find(self, attempt: int) -> Assignment | None:
        """The assignment of that attempt, as long as a task of it is not answered for."""
        return self._assignments.get(attempt)

    def needed_values(self) -> set[int]:
        """The keys of all values that tasks take which are not answered for."""
        return {entry[1] << 32 | entry[0] for each in self._assignments.values() for entry in each.values}

    def succeeded(
        self,
        assignment: Assignment,
        rows: Sequence[int],
        sizes: list[int],
        values: tuple[bytes, ...],
        seconds: tuple[float, ...],
        now: float,
    ) -> None:
        """Tasks of one assignment have their values; `values` are their bytes, empty for those in segments."""
        limit = assignment.inline_limit_bytes
        if max(sizes) > limit:
            values = tuple(value if len(value) <= limit else b"" for value in values)
        if not assignment.unsent:
            self._unsent[assignment.attempt] = assignment
            if self.flush_at is None:
                self.flush_at = now + _GATHER_SECONDS
        assignment.unsent.extend(zip(rows, sizes, values, seconds, strict=True))
        self._answered(assignment, len(sizes))

    def note_contained(self, assignment: Assignment, row: int, references: list[Any]) -> None:
        """The value of that row, noted just before, has futures inside: flat `[client_id, number, …]`."""
        if references:
            assignment.unsent_contains.append([row, references])

    def failed(
        self, assignment: Assignment, index: int, kind: str, error: bytes, details: dict[str, Any], seconds: float = 0.0
    ) -> None:
        """A task ended without a value."""
        row = assignment.rows[index]
        self.send(messages.RunFailed(self.epoch, row, assignment.attempt, kind, error, details, seconds))
        self._answered(assignment, 1)

    def brought_back(self, assignment: Assignment, index: int) -> tuple[int, int]:
        """A task goes back to the scheduler; its name for the `Recalled` that the caller sends."""
        self._answered(assignment, 1)
        return assignment.attempt, assignment.rows[index]

    def flush(self) -> None:
        """Send all successes that were gathered."""
        self.flush_at = None
        if self._unsent:
            for assignment in self._unsent.values():
                self._send_unsent(assignment)
            self._unsent.clear()

    def _answered(self, assignment: Assignment, tasks: int) -> None:
        assignment.remaining -= tasks
        if not assignment.remaining:
            del self._assignments[assignment.attempt]

    def _send_unsent(self, assignment: Assignment) -> None:
        unsent = sorted(assignment.unsent)  # by row: two slots took turns, and runs want neighbours together
        contains = assignment.unsent_contains
        assignment.unsent = []
        assignment.unsent_contains = []
        start = 0
        while start < len(unsent):
            stop = _frame_end(unsent, start)
            self._send_done(assignment.attempt, unsent[start:stop], contains)
            start = stop

    def _send_done(self, attempt: int, ended: list[tuple[int, int, bytes, float]], contains: list[Any]) -> None:
        rows, sizes, pieces, seconds = zip(*ended, strict=True)
        blob = b"".join(pieces)
        offsets = array("I", accumulate(map(len, pieces), initial=0)).tobytes() if blob else b""
        if contains:
            present = set(rows)
            contains = [entry for entry in contains if entry[0] in present]
        self.send(
            messages.Done(
                self.epoch,
                attempt,
                runs_of(rows),
                array("Q", sizes).tobytes(),
                offsets,
                blob,
                float(sum(seconds)),
                float(sorted(seconds)[len(seconds) // 2]),
                contains,
            )
        )


def _frame_end(unsent: list[tuple[int, int, bytes, float]], start: int) -> int:
    """Where the frame that begins there has to end, at the latest."""
    stop = min(len(unsent), start + _ROWS_A_FRAME)
    if sum(len(entry[2]) for entry in unsent[start:stop]) <= _INLINE_BYTES_A_FRAME:
        return stop
    inline_bytes = 0
    for position in range(start, stop):
        inline_bytes += len(unsent[position][2])
        if inline_bytes > _INLINE_BYTES_A_FRAME:
            return max(position, start + 1)
    return stop
