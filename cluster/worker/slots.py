"""One slot as the agent sees it: which tasks are in its pipe, which one it runs, how long that is going on.

The slot's pipe is first in, first out, and only its tail is ever taken back, so the tasks that a slot has are a queue
of pieces: the front one of the first piece is running (or about to be claimed), the others wait in the pipe.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, NamedTuple

from cluster.worker.queue import Assignment, Stretch

__all__ = ["STOP_PATIENCE_SECONDS", "Frame", "MemoryEnd", "RunTimes", "Slot", "SlotState"]

STOP_PATIENCE_SECONDS: Final = 1.0
"""Between asking a task to stop and killing its slot."""

# As many reports as the median looks back on: one long task does not change it, a change of habit soon does.
_REMEMBERED_RUNS: Final = 31


class RunTimes:
    """How long a function runs here: the median of its latest runs."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_REMEMBERED_RUNS)
        self._median = -1.0

    def add(self, run_seconds: tuple[float, ...]) -> None:
        """Note the times of some runs."""
        self._latest.extend(run_seconds)
        self._median = -1.0

    @property
    def median_seconds(self) -> float:
        """The usual time of one run."""
        if self._median < 0.0:
            latest = sorted(self._latest)
            self._median = latest[len(latest) // 2]
        return self._median


class Piece:
    """Consecutive sequences that are consecutive tasks of one assignment."""

    __slots__ = ("assignment", "count", "index", "sequence")

    def __init__(self, sequence: int, assignment: Assignment, index: int, count: int) -> None:
        self.sequence = sequence
        self.assignment = assignment
        self.index = index
        self.count = count


class Frame:
    """A task that waits for others, inside its process."""

    __slots__ = ("assignment", "index", "noted", "sequence", "since", "timeout_at")

    def __init__(self, sequence: int, assignment: Assignment, index: int, since: float) -> None:
        self.sequence = sequence
        self.assignment = assignment
        self.index = index
        self.since = since  # about when it was claimed
        self.timeout_at: float | None = None  # when the first of this task and those below it has taken too long
        self.noted = False  # its process knows that what comes into the pipe is to be run inside it

    @property
    def name(self) -> tuple[int, int]:
        """What its children call it: (attempt, row)."""
        return self.assignment.attempt, self.assignment.rows[self.index]


class MemoryEnd(NamedTuple):
    """A task is ended because the worker has passed its memory limit."""

    sequence: int
    nbytes: int
    """What its process held."""
    used_bytes: int
    """… and the whole worker, of `limit_bytes`."""
    limit_bytes: int


class SlotState(Enum):
    """Where a slot's process is in its life."""

    ABSENT = "absent"  # none; perhaps to be started at `start_at`
    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"  # killed by us, its exit not told yet


class Slot:
    """A slot's process and the tasks that it has."""

    def __init__(self, index: int, *, given_singly: bool = False) -> None:
        self.index = index
        self.given_singly = given_singly  # nothing can be taken back: what it is given counts as claimed
        self.state = SlotState.ABSENT
        self.start_at: float | None = None
        self.failed_starts = 0
        self.next_sequence = 1
        self.pieces: deque[Piece] = deque()
        self.outstanding = 0  # tasks in the pieces
        self.front_since = 0.0  # since when the front task has been the front one, so about when it was claimed
        self.functions: set[bytes] = set()  # handed to this process
        self.taking_back = False
        self.renew = False  # its process is to be replaced as soon as it has no task
        # Nothing was given since all was taken out: what the slot still has, it has claimed (and perhaps reported).
        self.pipe_is_empty = True
        self.stack: list[Frame] = []  # tasks that wait, the innermost last; what the pieces are runs inside that one
        self.woken = False  # the last of these wants to go on
        self.stops: dict[int, str] = {}  # sequence -> "cancelled" or "timeout": to be ended, why
        self.kill_at: float | None = None  # an interrupt was sent; when patience ends
        self.end_for_memory: MemoryEnd | None = None  # its process is ended for the task that is named there
        self.segment = ""  # path of the segment that the running task was given
        self.segment_for = 0  # the sequence of the task for which one was asked last
        self.segment_request = 0  # … or the request for one that is under way

    def give(self, assignment: Assignment, index: int, count: int, now: float) -> int:
        """Note tasks as put into the pipe; the first one's sequence."""
        sequence = self.next_sequence
        if not self.outstanding:
            self.front_since = now
        self.next_sequence += count
        self.outstanding += count
        self.pipe_is_empty = self.given_singly
        self.pieces.append(Piece(sequence, assignment, index, count))
        return sequence

    def end_front(self, count: int, now: float) -> tuple[Assignment, int]:
        """So many tasks of the front piece have ended; the assignment and the first one's index."""
        piece = self.pieces[0]
        assignment, index = piece.assignment, piece.index
        piece.sequence += count
        piece.index += count
        piece.count -= count
        if not piece.count:
            self.pieces.popleft()
        self.outstanding -= count
        self.front_since = now
        return assignment, index

    @property
    def runs(self) -> bool:
        """Whether a task runs in it, or is about to: not one that only waits."""
        return self.outstanding > 0 and not self.woken

    def suspend(self, now: float) -> Frame:
        """The front task waits for others."""
        piece, since = self.pieces[0], self.front_since
        frame = Frame(piece.sequence, piece.assignment, piece.index, since)
        limits = [self.stack[-1].timeout_at] if self.stack else []
        if piece.assignment.timeout_seconds:
            limits.append(since + piece.assignment.timeout_seconds)
        frame.timeout_at = min((limit for limit in limits if limit is not None), default=None)
        self.end_front(1, now)
        self.stack.append(frame)
        return frame

    def resume(self) -> Frame:
        """The innermost task that waits goes on."""
        frame = self.stack.pop()
        self.pieces.appendleft(Piece(frame.sequence, frame.assignment, frame.index, 1))
        self.outstanding += 1
        self.front_since = frame.since
        self.woken = False
        return frame

    def cut(self, first_sequence: int) -> list[tuple[int, Stretch]]:
        """Take out all tasks from that sequence on, as (sequence, stretch), oldest first."""
        taken: list[tuple[int, Stretch]] = []
        while self.pieces and self.pieces[-1].sequence + self.pieces[-1].count > first_sequence:
            piece = self.pieces[-1]
            kept = max(0, first_sequence - piece.sequence)
            taken.append((piece.sequence + kept, (piece.assignment, piece.index + kept, piece.count - kept)))
            self.outstanding -= piece.count - kept
            piece.count = kept
            if not kept:
                self.pieces.pop()
        taken.reverse()
        return taken

    def find(self, assignment: Assignment, index: int) -> int:
        """The sequence of a task that this slot has, 0 if it has it not."""
        for piece in self.pieces:
            if piece.assignment is assignment and piece.index <= index < piece.index + piece.count:
                return piece.sequence + index - piece.index
        for frame in self.stack:
            if frame.assignment is assignment and frame.index == index:
                return frame.sequence
        return 0

    def ahead_of(self, sequence: int) -> int:
        """How many of its tasks come before that one; sequences have gaps where tasks were taken out."""
        before = 0
        for piece in self.pieces:
            if sequence < piece.sequence + piece.count:
                return before + sequence - piece.sequence
            before += piece.count
        return before

    def front(self) -> tuple[int, int] | None:
        """Attempt and row of the task that runs, or is about to be claimed."""
        return self.run_at(self.pieces[0].sequence) if self.pieces else None

    def run_at(self, sequence: int) -> tuple[int, int] | None:
        """Attempt and row of a task that this slot has, None if it has not."""
        for piece in self.pieces:
            if piece.sequence <= sequence < piece.sequence + piece.count:
                return piece.assignment.attempt, piece.assignment.rows[piece.index + sequence - piece.sequence]
        return None
