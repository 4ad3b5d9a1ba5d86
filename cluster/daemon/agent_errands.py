"""The processes of errands: one like a slot's for each, given one call, ended when that has been reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cluster.daemon.agent_slots import SlotPipes
from cluster.wire.task_output import Piece
from cluster.worker import events
from cluster.worker.events import DefineInSlot, Event, GiveTasks, StartErrand

__all__ = ["ERRANDS_FROM", "ErrandProcesses"]

ERRANDS_FROM: Final = 1 << 32
"""The starter knows these processes by numbers from here on; slots have small ones."""
_FUNCTION_ID: Final = b"errand"
_SEQUENCE: Final = 1
_NO_SEGMENT: Final = (
    "what run() returns passes through the scheduler and may take at most 64 KiB; submit a task for more than that"
)


def _pass_over(number: int, pieces: list[Piece]) -> None:
    """An errand is no task: what it prints belongs to nobody. Its last lines are kept, should it die."""


class ErrandProcesses:
    """The errands of an agent. `start` and `kill` are the starter's, by the numbers that this class gives."""

    def __init__(
        self,
        feed: Callable[[Event], None],
        make_pipes: Callable[[int, Callable[[int, list[Any]], None], Callable[[int, list[Piece]], None]], SlotPipes],
        start: Callable[[int, SlotPipes], None],
        kill: Callable[[int], None],
    ) -> None:
        self._feed = feed
        self._make_pipes = make_pipes
        self._start = start
        self._kill = kill
        self._pipes: dict[int, SlotPipes] = {}

    def start(self, errand: StartErrand) -> None:
        """Start the process, and hand it its call."""
        number = ERRANDS_FROM + errand.request
        pipes = self._pipes[number] = self._make_pipes(number, self._reported, _pass_over)
        self._start(number, pipes)
        pipes.define(DefineInSlot(number, _FUNCTION_ID, errand.name, errand.function))
        call = GiveTasks(
            number, _SEQUENCE, 1, _FUNCTION_ID, errand.name, 1, b"", errand.arguments, b"", b"", [], []
        )  # fmt: skip
        pipes.give(call)

    def end(self, request: int) -> None:
        """End the process of an errand that has reported."""
        if ERRANDS_FROM + request in self._pipes:
            self._kill(ERRANDS_FROM + request)

    def exited(self, number: int, cause: str) -> None:
        """The process has ended."""
        pipes = self._pipes[number]
        last_lines = pipes.drain()
        del self._pipes[number]
        pipes.close()
        self._feed(events.ErrandEnded(number - ERRANDS_FROM, cause, last_lines))

    def lost(self) -> None:
        """All processes have ended with the one that started them."""
        for number in list(self._pipes):
            self.exited(number, "the process that starts this worker's processes")

    def close(self) -> None:
        """Give everything back."""
        for pipes in self._pipes.values():
            pipes.close()

    def _reported(self, number: int, reports: list[Any]) -> None:
        for report in reports:
            if len(report) == 2:
                self._pipes[number].answer_segment(_SEQUENCE, "", _NO_SEGMENT)
            elif len(report) > 2:
                self._feed(events.ErrandReported(number - ERRANDS_FROM, report))
