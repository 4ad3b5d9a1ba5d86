"""A walk through the whole table that counts tasks by label and state, and lists some of them.

The table may have millions of rows, so the walk is made in steps of bounded length. Rows that change between two steps
are seen as they were when the walk came by.
"""

from __future__ import annotations

from typing import Any

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import FAILED, FINISHED, FREE, GRANTED, READY, RELEASED, STATE_NAMES, WAITING, Run

__all__ = ["LISTED_STATES", "OTHER_LABELS", "Census"]

SPAN_EFFORT = 1000  # what looking at a run costs, in rows counted
STEP_EFFORT = 500_000  # about a millisecond: five hundred runs, or half a million rows of large ones
SUMMED_EFFORT, CHOSEN_EFFORT = 5, 40  # what it costs more, a row, to sum the sizes of all or of some values
DESCRIBED_PER_STEP = 200
LABELS_COUNTED = 1000
OTHER_LABELS = "(other labels)"
TEXT_CHARACTERS = 300

_STATES = (WAITING, READY, GRANTED, FINISHED, RELEASED, FAILED)
LISTED_STATES = (GRANTED, FAILED, READY, WAITING, FINISHED, RELEASED)
"""The order in which tasks are listed: what runs and what went wrong first."""


class Census:
    """One walk: counts of the tasks that match, and the first `limit` of each listed state."""

    def __init__(
        self, ledger: Ledger, *, listed: tuple[int, ...] = (), label: str = "", client: str = "", limit: int = 0
    ) -> None:
        self.labels: dict[str, list[int]] = {}  # label -> counts by state
        self.label_bytes: dict[str, int] = {}  # label -> bytes of the values that its tasks have now, each counted once
        self._ledger = ledger
        self._listed = listed
        self._label = label
        self._client = client
        self._limit = limit
        self._found: dict[int, list[int]] = {state: [] for state in listed}
        self._to_describe: list[tuple[int, int]] | None = None  # (row, state), the last first; None: still walking
        self._row = 0
        self.tasks: list[dict[str, Any]] = []  # those that were listed, as plain values

    @property
    def counts(self) -> dict[str, int]:
        """How many tasks are in each state, all labels together."""
        return named_counts([sum(column) for column in zip(*self.labels.values(), strict=True)])

    def work(self) -> bool:
        """Go a step further; true at the end."""
        if self._to_describe is None:
            if self._walk():
                found = [(row, state) for state in LISTED_STATES for row in self._found.get(state, ())]
                self._to_describe = found[: self._limit][::-1]
            return False
        for _ in range(min(DESCRIBED_PER_STEP, len(self._to_describe))):
            row, state = self._to_describe.pop()
            if self._ledger.table.state[row] == state:  # else it has gone on meanwhile
                self.tasks.append(self._describe(row, self._ledger.run(row)))
        return not self._to_describe

    def _walk(self) -> bool:
        table = self._ledger.table
        effort = STEP_EFFORT
        while effort > 0:
            if self._row >= len(table):
                return True
            run, stop = table.span_at(self._row)
            if run is not None and not run.is_join and not run.offered and self._matches(run):
                effort -= self._count(run, self._row, stop)
            effort -= SPAN_EFFORT + stop - self._row if run is not None else SPAN_EFFORT
            self._row = stop
        return False

    def _matches(self, run: Run) -> bool:
        client = run.client
        return (not self._label or run.label == self._label) and (
            not self._client or client.name == self._client or client.identity.hex().startswith(self._client)
        )

    def _count(self, run: Run, start: int, stop: int) -> int:
        """Count some rows of a run; what that cost beyond a look at each."""
        state = self._ledger.table.state
        label = run.label
        counts = self.labels.get(label)
        if counts is None:
            label = label if len(self.labels) < LABELS_COUNTED else OTHER_LABELS
            counts = self.labels.setdefault(label, [0] * len(STATE_NAMES))
        first = state[start]
        alike = state.count(first, start, stop)
        for code in _STATES if alike < stop - start or first == FREE else (first,):
            counts[code] += alike if code == first else state.count(code, start, stop)
        for code, found in self._found.items():
            room = self._limit - len(found)
            position = state.find(code, start, stop) if room > 0 else -1
            while position >= 0 and room:
                found.append(position)
                room -= 1
                position = state.find(code, position + 1, stop)
        if first == FINISHED and alike == stop - start:
            self._count_bytes(label, sum(self._ledger.table.nbytes[start:stop]))
            return SUMMED_EFFORT * (stop - start)
        if state.find(FINISHED, start, stop) < 0:
            return 0
        nbytes = self._ledger.table.nbytes
        self._count_bytes(label, sum(nbytes[row] for row in range(start, stop) if state[row] == FINISHED))
        return CHOSEN_EFFORT * (stop - start)

    def _count_bytes(self, label: str, nbytes: int) -> None:
        self.label_bytes[label] = self.label_bytes.get(label, 0) + nbytes

    def _describe(self, row: int, run: Run) -> dict[str, Any]:
        ledger, table = self._ledger, self._ledger.table
        worker = ledger.workers.get(table.holder[row])
        failure = ledger.failures.get(row)
        error = "" if failure is None else f"{failure.kind}: {failure.details.get('message', '')}"
        return {
            "key": ledger.key(row),
            "label": run.label,
            "state": STATE_NAMES[table.state[row]],
            "client": run.client.name,
            "worker": "" if worker is None else worker.name,
            "bytes": table.nbytes[row],
            "inputs_missing": table.waiting[row] if table.state[row] == WAITING else 0,
            "error": error[:TEXT_CHARACTERS],
        }


def named_counts(counts: list[int]) -> dict[str, int]:
    """Counts by code as counts by name."""
    return {name: counts[code] if counts else 0 for code, name in enumerate(STATE_NAMES) if code != FREE}
