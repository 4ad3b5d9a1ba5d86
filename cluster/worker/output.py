"""What the tasks of an agent write: kept for each run within bounds, and sent on to the clients that want to see it.

Of a run the beginning and the end are kept, half of `RUN_LIMIT_BYTES` each; of all runs `TOTAL_LIMIT_BYTES`, and who
wrote first is forgotten first. The beginning is sent on while it comes, gathered; once it is full nothing more until
the run ends, and then its end: so a task that floods costs the agent the reading, and nobody else anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from cluster.wire import messages
from cluster.wire.task_output import CUT, LOG, PROGRESS, RAW, STDERR, STDOUT, Piece
from cluster.worker.coroutines import FIRST_COROUTINES
from cluster.worker.ledger import Ledger
from cluster.worker.orders import Orders
from cluster.worker.values import value_key

__all__ = ["Outputs"]

RUN_LIMIT_BYTES: Final = 1 << 20
TOTAL_LIMIT_BYTES: Final = 64 << 20
GATHER_SECONDS: Final = 0.1
GATHER_BYTES: Final = 64 * 1024
LAST_LINES_BYTES: Final = 4096
_ENTRY_BYTES: Final = 128  # what an entry takes beside its bytes
_RUN_BYTES: Final = 1024
_FORGOTTEN_NAMES: Final = 10_000
_PROGRESS_EVERY_SECONDS: Final = 0.1

Entry = list[Any]


class RunOutput:
    """What one run wrote."""

    __slots__ = ("attempt", "beginning", "beginning_bytes", "cut_bytes", "end", "end_bytes", "row", "shown")

    def __init__(self, attempt: int, row: int, shown: bool) -> None:
        self.attempt = attempt
        self.row = row
        self.shown = shown
        self.beginning: list[Entry] = []
        self.beginning_bytes = 0
        self.end: deque[Entry] = deque()
        self.end_bytes = 0
        self.cut_bytes = 0

    @property
    def nbytes(self) -> int:
        """What it takes of the agent's memory."""
        return _RUN_BYTES + self.beginning_bytes + self.end_bytes

    def add(self, kind: int, seconds: float, data: bytes) -> list[Entry]:
        """Keep these bytes; the entries that are to be shown now."""
        half = RUN_LIMIT_BYTES // 2
        now: list[Entry] = []
        if not self.end:
            room = max(0, half - self.beginning_bytes - _ENTRY_BYTES)
            if room:
                fits = data if len(data) <= room else _whole_characters(data[:room]) if kind < LOG else b""
                if fits:
                    self._add_to_beginning(kind, seconds, fits, now)
                    data = data[len(fits) :]
        if data:
            self.end.append([kind, seconds, data])
            self.end_bytes += len(data) + _ENTRY_BYTES
            self._cut(self.end_bytes - half)
        return now

    def _add_to_beginning(self, kind: int, seconds: float, data: bytes, now: list[Entry]) -> None:
        now.append([kind, seconds, data])
        last = self.beginning[-1] if self.beginning else None
        # Lines that came one by one are kept as one entry, unless that would copy much or make their time wrong.
        if last is not None and last[0] == kind < LOG and seconds - last[1] < 0.01 and len(last[2]) < 4096:
            last[2] += data
            self.beginning_bytes += len(data)
        else:
            self.beginning.append([kind, seconds, data])
            self.beginning_bytes += len(data) + _ENTRY_BYTES

    def _cut(self, excess: int) -> None:
        while excess > 0:
            kind, seconds, data = self.end[0]
            if kind < LOG and len(data) > excess:
                kept = data[excess:]
                self.end[0] = [kind, seconds, kept]
                self.cut_bytes += excess
                self.end_bytes -= excess
                return
            self.end.popleft()
            self.cut_bytes += len(data)
            self.end_bytes -= len(data) + _ENTRY_BYTES
            excess -= len(data) + _ENTRY_BYTES

    def rest(self) -> list[Entry]:
        """What follows the beginning, led by how much was left out."""
        cut = [[CUT, self.end[0][1], str(self.cut_bytes).encode()]] if self.cut_bytes else []
        return [*cut, *self.end]

    def last_lines(self) -> str:
        """The end of its text."""
        found: list[bytes] = []
        size = 0
        for kind, _, data in [*reversed(self.end), *reversed(self.beginning)]:
            if kind in (RAW, STDOUT, STDERR):
                found.append(data)
                size += len(data)
                if size >= LAST_LINES_BYTES:
                    break
        return b"".join(reversed(found))[-LAST_LINES_BYTES:].decode("utf-8", "replace")


class Outputs:
    """Everything that was written here, and what of it is still to be sent."""

    def __init__(self, ledger: Ledger, orders: Orders) -> None:
        self._ledger = ledger
        self._orders = orders
        self._runs: dict[int, RunOutput] = {}
        self._nbytes = 0
        self._forgotten: dict[int, None] = {}
        # Slot (where many tasks run at once, slot and run) -> the run whose output came last, while it may go on.
        self._writing: dict[int | tuple[int, int], RunOutput] = {}
        self._unsent: dict[int, list[Entry]] = {}
        self._unsent_bytes = 0
        self._progress: dict[int, messages.Progress] = {}
        self.flush_at: float | None = None
        orders.register("logs", self._answer_logs)

    def writes(self, slot: int) -> bool:
        """Whether output of the slot's task is to be closed when that task ends."""
        return slot in self._writing

    # ------------------------------------------------------------------ what comes

    def take(
        self, slot: int, front: tuple[int, int] | None, pieces: Sequence[Piece], seconds: float, now: float
    ) -> None:
        """Output of a slot. `front` is the run that the slot has; bytes that nothing names are its."""
        for kind, attempt, row, data in pieces:
            if not attempt:
                if front is None:
                    continue  # a slot that has no task, and is about to say why it cannot start
                attempt, row = front
            if kind != PROGRESS:
                self._add(slot, kind, attempt, row, data, seconds)
        if self._unsent_bytes >= GATHER_BYTES:
            self.flush()
        elif self._unsent and self.flush_at is None:
            self.flush_at = now + GATHER_SECONDS

    def _add(self, slot: int, kind: int, attempt: int, row: int, data: bytes, seconds: float) -> None:
        name = value_key(attempt, row)
        run = self._runs.get(name)
        if run is None:
            assignment = self._ledger.find(attempt)
            run = self._runs[name] = RunOutput(attempt, row, assignment is not None and assignment.shown)
            self._nbytes += run.nbytes
            self._unsent[name] = []  # tells the scheduler where to ask
        writer = slot if slot < FIRST_COROUTINES else (slot, name)
        if self._writing.get(writer) is not run:
            self._close(writer)
            self._writing[writer] = run
        before = run.nbytes
        shown = run.add(kind, seconds, data)
        self._nbytes += run.nbytes - before
        if run.shown and shown:
            self._send_on(name, shown)
        while self._nbytes > TOTAL_LIMIT_BYTES and len(self._runs) > 1:
            self._forget_oldest()

    def _send_on(self, name: int, entries: list[Entry]) -> None:
        self._unsent.setdefault(name, []).extend(entries)
        self._unsent_bytes += sum(len(entry[2]) for entry in entries)

    def progress(self, attempt: int, row: int, fraction: float, message: str, now: float) -> None:
        """A task says how far it is; of what it says between two sendings the latest counts."""
        self._progress[value_key(attempt, row)] = messages.Progress(self._ledger.epoch, attempt, row, fraction, message)
        if self.flush_at is None:
            self.flush_at = now + _PROGRESS_EVERY_SECONDS

    # ------------------------------------------------------------------ what leaves

    def ended(self, slot: int, still_running: tuple[int, int] | None) -> None:
        """The slot reports tasks, or has died: what they wrote leaves first. It goes on with `still_running`."""
        if slot >= FIRST_COROUTINES:
            for writer in [writer for writer in self._writing if isinstance(writer, tuple) and writer[0] == slot]:
                self._close(writer)
        run = self._writing.get(slot)
        if run is not None and (run.attempt, run.row) != still_running:
            self._close(slot)
        self.flush()

    def ended_among_others(self, slot: int, runs: list[tuple[int, int] | None]) -> None:
        """These runs of a process that runs many have ended: what they wrote leaves first."""
        if self._writing:
            for run in runs:
                if run is not None:
                    self._close((slot, value_key(*run)))
            self.flush()

    def _close(self, writer: int | tuple[int, int]) -> None:
        run = self._writing.pop(writer, None)
        if run is not None and run.shown and run.end:
            self._send_on(value_key(run.attempt, run.row), run.rest())
            run.shown = False  # what a process that it left behind may still write is kept, and not shown

    def flush(self) -> None:
        """Send what was gathered."""
        self.flush_at = None
        if self._unsent:
            tasks = [[name >> 32, name & 0xFFFFFFFF, entries] for name, entries in self._unsent.items()]
            self._unsent = {}
            self._unsent_bytes = 0
            self._ledger.send(messages.Output(self._ledger.epoch, tasks))
        if self._progress:
            for message in self._progress.values():
                self._ledger.send(message)
            self._progress = {}

    # ------------------------------------------------------------------ what is kept

    def last_lines(self, attempt: int, row: int) -> str:
        """The last that a run wrote; empty if nothing."""
        run = self._runs.get(value_key(attempt, row))
        return "" if run is None else run.last_lines()

    def free(self, values: list[int]) -> None:
        """Nobody wants these values any more, nor what their runs wrote: flat `[attempt, first row, count, …]`."""
        if not self._runs:
            return
        for position in range(0, len(values), 3):
            attempt, first, count = values[position : position + 3]
            if count <= len(self._runs):
                for row in range(first, first + count):
                    self._drop(value_key(attempt, row))
            else:
                first_name = value_key(attempt, first)
                for name in [name for name in self._runs if first_name <= name < first_name + count]:
                    self._drop(name)

    def _drop(self, name: int) -> bool:
        run = self._runs.pop(name, None)
        if run is None:
            return False
        self._nbytes -= run.nbytes
        return True

    def _forget_oldest(self) -> None:
        name = next(iter(self._runs))
        self._drop(name)
        self._forgotten[name] = None
        if len(self._forgotten) > _FORGOTTEN_NAMES:
            del self._forgotten[next(iter(self._forgotten))]

    def _answer_logs(self, request: int, detail: Any) -> None:
        attempt, row = detail
        name = value_key(attempt, row)
        run = self._runs.get(name)
        entries = [] if run is None else [*run.beginning, *run.rest()]
        self._orders.answer(request, [entries, name in self._forgotten])


def _whole_characters(data: bytes) -> bytes:
    """Without the beginning of a character that is cut off at the end."""
    for length in range(1, min(4, len(data) + 1)):
        byte = data[-length]
        if byte >= 0xC0:
            return data[:-length]
        if byte < 0x80:
            break
    return data
