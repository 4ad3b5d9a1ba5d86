"""Simulated slots that are threads of one process: each as any slot, but for their end, which they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.simulation.slots import SlotProcess
from cluster.worker import events

if TYPE_CHECKING:
    from cluster.simulation.agents import AgentProcess

__all__ = ["ThreadSlot"]

_HOLDS_THE_LOCK = 0.3  # of the tasks that do not stop: nobody else in their process gets to do anything


class ThreadSlot(SlotProcess):
    """One slot of a process that has several."""

    def __init__(self, agent: AgentProcess, index: int, members: list[ThreadSlot]) -> None:
        super().__init__(agent, index)
        self.members = members
        members.append(self)
        self._stubbornness = agent.world.random_of("threads")

    def die(self, exit_code: int, signal: int) -> None:
        """The process ends; a thread that only waits is not the one that did it while others run."""
        if self.dead or not self.agent.alive:
            return
        if any(one.running is not None for one in self.members):
            for one in self.members:
                if one.running is None and one.stack:
                    one.stack[-1].spec.deaths -= signal != 9
        for one in self.members:
            SlotProcess.die(one, exit_code, signal)

    def _claim(self) -> None:
        super()._claim()
        assignment = self.agent.machine.assignment_of(self._run[0])
        if self.running is not None and assignment is not None and len(self.agent.slots) <= self.agent.seats:
            died = assignment.deaths_of(assignment.index_of(self._run[1]))
            assert not died, f"task {self.running.index} runs beside others, and {died} processes died with it"

    def leave(self, sequence: int) -> None:
        """Give the task up, which goes on in a thread that is no slot any more."""
        ending = self.client is not None and self.client.settles
        runs = sequence == self._sequence and self.running is not None and not ending and not self.dead
        if runs and self._stubbornness.random() >= _HOLDS_THE_LOCK:
            self._plan(0.0001, self._interrupted)

    def _is_missed(self, exit_code: int, signal: int) -> None:
        if not self.agent.alive or self is not self.members[0]:
            return
        for one in self.members:
            one._is_read()
        unclaimed, *beside = (one.take_back() for one in self.members)
        self.agent.thread_process_ended(
            events.SlotExited(self.index, unclaimed, exit_code, signal, "its last words", 1 << 20, False, tuple(beside))
        )
