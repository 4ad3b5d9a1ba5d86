"""What tasks have written, asked for by their futures."""

from __future__ import annotations

from cluster.client.core import ClientCore
from cluster.client.future import Future
from cluster.client.log_lines import LogLine, lines_of_runs
from cluster.client.operations import Operation

__all__ = ["TaskOutputs"]


class TaskOutputs(ClientCore):
    """The part of `Client` that asks for what tasks wrote."""

    def _logs_of(self, future: Future) -> list[LogLine]:
        return self._complete(self._logs(future))

    def _logs(self, future: Future) -> Operation[list[LogLine]]:
        self._check_own(future)
        return lines_of_runs((yield from self._ask("task_output", future._wanted())))
