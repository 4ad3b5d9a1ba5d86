"""A simulated process of coroutines: each task is a process of its own to the simulator, but for what they share.

They share the pipe that the agent reads, the one segment that is made at a time, and their end.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from cluster.simulation.slots import LEARNING_OF_A_DEATH_SECONDS, SlotProcess
from cluster.simulation.workloads import Spec
from cluster.worker import events
from cluster.worker.values import SMALL_VALUE_BYTES

if TYPE_CHECKING:
    from cluster.simulation.agents import AgentProcess

__all__ = ["CoroutineProcess"]


class _Coroutine(SlotProcess):
    """One task."""

    def __init__(self, process: CoroutineProcess) -> None:
        super().__init__(process.agent, process.index)
        self.ready = True
        self.functions = process.functions
        self._process = process

    @property
    def has_begun(self) -> bool:
        """Whether its record was claimed."""
        return not self._pipe

    def begin(self, sequence: int, effect: events.GiveTasks, index: int) -> None:
        """Its record is in the pipe."""
        self.take(sequence, effect, index)
        self._plan_claim()

    def die(self, exit_code: int, signal: int) -> None:
        """It ends the process."""
        self._process.die(exit_code, signal)

    def end_with_process(self, signal: int) -> None:
        """The process has ended."""
        self.dead = True
        self._step += 1
        if self.running is not None:
            self.running.deaths += signal != 9
        self._vanish()

    def cancel(self, sequence: int) -> None:
        """Its loop takes note, unless it blocks that."""
        if self.running is None or not self.running.stubborn:
            self.report(events.CoroutineStopping(self.index, sequence))
            self.interrupt(sequence)

    def _succeed(self) -> None:
        assert self.running is not None
        if self.running.nbytes > SMALL_VALUE_BYTES:
            self.running.wants_room = True
            self._process.ask_for_segment(self)
        else:
            super()._succeed()

    def ask(self) -> None:
        """It is its turn to ask for a segment."""
        super()._succeed()

    def report(self, report: Any) -> None:
        self._process.report(report)

    def _end_at_last(self, report: list[Any]) -> None:
        sequence = self._sequence
        super()._end_at_last(report)
        self._process.ended(self, sequence)

    def _write_something(self, spec: Spec) -> None:
        """Nothing: what is named by nothing is nobody's here."""

    def _leave(self, spec: Spec) -> None:
        spec.active -= 1
        self.agent.world.progress_at = self._clock.now
        self.running = None  # it took no slot, so nobody's share


class CoroutineProcess(SlotProcess):
    """The process."""

    def __init__(self, agent: AgentProcess, index: int) -> None:
        super().__init__(agent, index)
        self._coroutines: dict[int, _Coroutine] = {}
        self._asking: deque[_Coroutine] = deque()  # for a segment, one at a time

    def give(self, effect: events.GiveTasks) -> None:
        """Tasks come, and all of them begin, unless the process has ended and the agent does not know it."""
        for index in range(effect.tasks):
            sequence = effect.sequence + index
            coroutine = self._coroutines[sequence] = _Coroutine(self)
            coroutine.dead = self.dead
            coroutine.begin(sequence, effect, index)

    def cancel(self, sequence: int) -> None:
        """A task is to stop."""
        if sequence in self._coroutines and not self.dead:
            self._coroutines[sequence].cancel(sequence)

    def ask_for_segment(self, coroutine: _Coroutine) -> None:
        """A task has a large value."""
        self._asking.append(coroutine)
        if len(self._asking) == 1:
            coroutine.ask()

    def answer_segment(self, sequence: int, path: str, reason: str) -> None:
        """It is for the task that asked."""
        if sequence in self._coroutines:
            self._coroutines[sequence].answer_segment(sequence, path, reason)

    def ended(self, coroutine: _Coroutine, sequence: int) -> None:
        """A task has reported."""
        del self._coroutines[sequence]
        if coroutine in self._asking:
            was_first = self._asking[0] is coroutine
            self._asking.remove(coroutine)
            if was_first and self._asking:
                self._asking[0].ask()

    def die(self, exit_code: int, signal: int) -> None:
        """The process ends, and every task in it."""
        if self.dead or not self.agent.alive:
            return
        self.dead = True
        self._step += 1
        for coroutine in self._coroutines.values():
            coroutine.end_with_process(signal)
        self._clock.after(LEARNING_OF_A_DEATH_SECONDS, self._is_missed, exit_code, signal)

    def forget(self) -> None:
        """Its agent has ended, and it with the agent."""
        if not self.dead:
            self.dead = True
            for coroutine in self._coroutines.values():
                coroutine.forget()

    def take_back(self) -> list[int]:
        """What nobody had begun when it died."""
        return [sequence for sequence, coroutine in self._coroutines.items() if not coroutine.has_begun]
