"""The run of a task as its slot knows it: what `cluster.current()` is made of, worked out when it is asked for."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Sequence
from typing import Any

from cluster.daemon.slot_output import SlotOutput
from cluster.ids import task_key
from cluster.wire.task_output import row_of

__all__ = ["SlotRun"]


class SlotRun:
    """One run, from what came with its piece (`cluster.worker.events.GiveTasks`, `context`)."""

    def __init__(
        self,
        context: Sequence[Any],
        label: str,
        index: int,
        sequence: int,
        started: float,
        worker: str,
        page: mmap.mmap,
        output: SlotOutput,
        running_sequence: Callable[[], int],
    ) -> None:
        attempt, rows, origin, timeout_seconds = context
        client_id, batch, shift, own_key, before = origin[:5]
        row = row_of(rows, index)
        self.key: str = own_key or task_key(label, client_id, batch, row + shift)
        self.worker = worker
        self.attempt: int = 1 + dict(zip(before[::2], before[1::2], strict=True)).get(row, 0)
        self.deadline: float | None = started + timeout_seconds if timeout_seconds else None
        self._name = (attempt, row)
        self._sequence = sequence
        self._page = page
        self._output = output
        self._running_sequence = running_sequence

    def is_running(self) -> bool:
        """Whether the slot has not gone on to another task."""
        return self._running_sequence() == self._sequence

    def is_cancelled(self) -> bool:
        """Whether the agent asked it to stop."""
        return int.from_bytes(self._page[:8], "little") == self._sequence

    def report_progress(self, fraction: float, message: str) -> bool:
        """Tell how far it is."""
        return self._output.progress(self._name, fraction, message)

    def report_log(self, record: logging.LogRecord) -> None:
        """Hand a record to the client, which shows it in any case."""
        self._output.log(record, logging.Formatter(), asked_for=True)
