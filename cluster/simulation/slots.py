"""A simulated slot: it obeys the claim rule, runs what the workload says, and can die at any moment."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Any

from cluster.simulation.workloads import Reference, Spec, Workload, decode_value, encode_value
from cluster.worker import events

if TYPE_CHECKING:
    from cluster.simulation.agents import AgentProcess

__all__ = ["SMALL_VALUE_BYTES", "SlotProcess"]

SMALL_VALUE_BYTES = 64 * 1024
LEARNING_OF_A_DEATH_SECONDS = 0.002


class SlotProcess:
    """One slot's process, from its start to its end."""

    def __init__(self, agent: AgentProcess, index: int) -> None:
        self.agent = agent
        self.index = index
        self.ready = False
        self.dead = False
        self.running: Spec | None = None
        self.idle_since = 0.0
        self.functions: dict[bytes, bytes] = {}
        self._pipe: deque[int] = deque()
        self._tasks: dict[int, tuple[events.GiveTasks, int]] = {}
        self._reports: deque[Any] = deque()  # written, not yet read by the agent
        self._sequence = 0
        self._step = 0  # what was planned for an earlier step does not happen
        self._started = 0.0
        self._value: tuple[bytes, tuple[Reference, ...]] = (b"", ())
        self._random = agent.world.random_of("slots")
        self._clock = agent.world.clock

    @property
    def idle(self) -> bool:
        """Whether it waits for a task, and none is in its pipe."""
        return self.ready and not self.dead and not self._sequence and not self._pipe

    # ------------------------------------------------------------------ the agent's side

    def start(self) -> None:
        """The process is being started."""
        plan = self.agent.world.plan
        seconds = plan.slot_start_seconds * (0.5 + self._random.random())
        if self._random.random() < plan.slot_start_failures:
            self._clock.after(seconds, self.die, 1, -1)
        else:
            self._clock.after(seconds, self._get_ready)

    def give(self, effect: events.GiveTasks) -> None:
        """Records come into the pipe."""
        assert effect.function_id in self.functions, "a slot was given a task of a function that it does not have"
        for index in range(effect.tasks):
            self._tasks[effect.sequence + index] = (effect, index)
            self._pipe.append(effect.sequence + index)
        self._plan_claim()

    def take_back(self) -> list[int]:
        """Take out what is unclaimed, whatever the slot is doing."""
        taken = list(self._pipe)
        self._pipe.clear()
        for sequence in taken:
            del self._tasks[sequence]
        self._note_idle()
        return taken

    def interrupt(self, sequence: int) -> None:
        """Raise in the task, if it is that one."""
        if sequence == self._sequence and self.running is not None and not self.running.stubborn:
            self._plan(0.0001 * self._random.random(), self._interrupted)

    def answer_segment(self, sequence: int, path: str, reason: str) -> None:
        """The agent made a segment for the value, or could not."""
        if sequence == self._sequence and not self.dead:
            self._plan(0.00001, self._write, path, reason)

    def die(self, exit_code: int, signal: int) -> None:
        """The process ends, whatever it is doing; the agent learns of it a little later."""
        if self.dead or not self.agent.alive:
            return
        self.dead = True
        self._step += 1
        if self.running is not None:
            self.running.deaths += signal != 9
            self._leave(self.running)
        self._clock.after(LEARNING_OF_A_DEATH_SECONDS, self._is_missed, exit_code, signal)

    # ------------------------------------------------------------------ its own life

    def _get_ready(self) -> None:
        if self.dead or not self.agent.alive:
            return
        self.ready = True
        self._note_idle()
        self._report(events.SlotReady(self.index))

    def _note_idle(self) -> None:
        if self.idle:
            self.idle_since = self._clock.now

    def _plan(self, seconds: float, action: Any, *arguments: Any) -> None:
        self._step += 1
        self._clock.after(seconds, self._act, self._step, action, arguments)

    def _act(self, step: int, action: Any, arguments: tuple[Any, ...]) -> None:
        if step == self._step and not self.dead and self.agent.alive:
            action(*arguments)

    def _plan_claim(self) -> None:
        if self.ready and not self._sequence and self._pipe:
            self._plan(0.00002 * self._random.random(), self._claim)

    def _claim(self) -> None:
        if not self._pipe:
            return
        self._sequence = self._pipe.popleft()
        self._started = self._clock.now
        effect, index = self._tasks.pop(self._sequence)
        spec = self.running = self._spec(effect, index)
        spec.runs += 1
        spec.active += 1
        try:
            inputs = self._inputs(effect, index)
        except FileNotFoundError as error:
            self._fail("missing", f"an input's file was removed: {error}")
            return
        workload = self.agent.world.workload
        digest = Workload.combine(spec.index, [digest for digest, _ in inputs])
        assert digest == workload.digest(spec.index), f"task {spec.index} runs with wrong inputs"
        references: tuple[Reference, ...] = ()
        if spec.passes_on:
            references = tuple(dict.fromkeys(reference for _, inside in inputs for reference in inside))
        self._value = (digest, references)
        if spec.runs <= spec.dies_first:
            self._plan(spec.seconds * self._random.random(), self.die, -1, 11)
        elif spec.runs <= spec.raises_first:
            self._plan(spec.seconds, self._fail, "exception", "as planned")
        else:
            self._plan(spec.seconds, self._succeed)

    def _spec(self, effect: events.GiveTasks, index: int) -> Spec:
        blob = effect.blob
        if effect.offsets:
            offsets = array("I", effect.offsets)
            blob = blob[offsets[index] - offsets[0] : offsets[index + 1] - offsets[0]]
        spec = self.agent.world.workload.specs[int(blob)]
        assert self.functions[effect.function_id] == spec.function.encode(), "a task runs with another's function"
        return spec

    def _inputs(self, effect: events.GiveTasks, index: int) -> list[tuple[bytes, tuple[Reference, ...]]]:
        needs = array("I", effect.inputs)
        if effect.input_starts:
            starts = array("I", effect.input_starts)
            needs = needs[starts[index] : starts[index + 1]]
        found = []
        for need in needs:
            value = effect.values[need]
            found.append(decode_value(value if isinstance(value, bytes) else self.agent.read(value[0])))
        return found

    # ------------------------------------------------------------------ how a task ends

    def _succeed(self) -> None:
        assert self.running is not None
        digest, references = self._value
        nbytes = self.running.nbytes
        if nbytes > SMALL_VALUE_BYTES:
            self._report(events.SegmentAsked(self.index, self._sequence, nbytes))
            return
        data = encode_value(digest, references, nbytes)
        report: list[Any] = [self._sequence, self._seconds(), data]
        if references:
            report.append([part for reference in references for part in reference])
        self._end(report)

    def _write(self, path: str, reason: str) -> None:
        assert self.running is not None
        if not path:
            self._fail("exception", reason)
            return
        digest, references = self._value
        self.agent.write(path, encode_value(digest, references, 0))
        contains = [part for reference in references for part in reference]
        self._end([self._sequence, self._seconds(), "segment", self.running.nbytes, contains])

    def _fail(self, kind: str, text: str) -> None:
        self._end([self._sequence, self._seconds(), kind, b"error", {"message": text}])

    def _interrupted(self) -> None:
        self._end([self._sequence, self._seconds(), "interrupted", b"", {"message": "it was stopped"}])

    def _seconds(self) -> float:
        return self._clock.now - self._started

    def _end(self, report: list[Any]) -> None:
        self._sequence = 0
        if self.running is not None:
            self._leave(self.running)
        self._report(report)
        self._note_idle()
        self._plan_claim()

    def forget(self) -> None:
        """Its agent has ended, and it with the agent."""
        self.dead = True
        if self.running is not None:
            self._leave(self.running)

    def _leave(self, spec: Spec) -> None:
        spec.active -= 1
        self.agent.world.progress_at = self._clock.now
        self.agent.world.fairness.note(spec.client, self._seconds())
        spec.left_a_slot_at = self._clock.now
        self.running = None

    # ------------------------------------------------------------------ what the agent reads

    def _report(self, report: Any) -> None:
        self._reports.append(report)
        self._clock.after(0.0001 * self._random.random(), self._is_read)

    def _is_read(self) -> None:
        """The agent reads all that was written by now."""
        if not self.agent.alive or not self._reports:
            return
        read = list(self._reports)
        self._reports.clear()
        ended: list[Any] = []
        for report in read:
            if isinstance(report, list):
                ended.append(report)
                continue
            if ended:
                self.agent.feed(events.SlotReports(self.index, ended))
                ended = []
            self.agent.feed(report)
        if ended:
            self.agent.feed(events.SlotReports(self.index, ended))

    def _is_missed(self, exit_code: int, signal: int) -> None:
        if not self.agent.alive:
            return
        self._is_read()
        self.agent.slot_ended(self.index, self.take_back(), exit_code, signal)
