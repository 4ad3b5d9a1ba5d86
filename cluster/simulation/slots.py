"""A simulated slot: it obeys the claim rule, runs what the workload says, and can die at any moment."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Any

from cluster.simulation.gathering import Gather
from cluster.simulation.heaps import Heap
from cluster.simulation.slot_clients import SlotClient
from cluster.simulation.workloads import Reference, Spec, Workload, decode_value, encode_value
from cluster.wire.task_output import RAW, STDOUT, Piece, row_of
from cluster.worker import events
from cluster.worker.values import SMALL_VALUE_BYTES

if TYPE_CHECKING:
    from cluster.simulation.agents import AgentProcess

__all__ = ["SlotProcess"]

WRITES = 0.1  # of the tasks
LEARNING_OF_A_DEATH_SECONDS = 0.002


class Frame:
    """A task that waits for its children inside its process."""

    def __init__(
        self, spec: Spec, name: tuple[int, int], sequence: int, started: float, value: Any, gather: Gather
    ) -> None:
        self.spec = spec
        self.name = name
        self.sequence = sequence
        self.started = started
        self.value = value
        self.gather = gather
        self.noted = False
        self.woken = False


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
        self.stack: list[Frame] = []
        self.client: SlotClient | None = None
        self.name: tuple[int, int] | None = None  # of the task that runs
        self._children: list[int] = []  # numbers that the running task has submitted
        self._reports: deque[Any] = deque()  # written, not yet read by the agent
        self._sequence = 0
        self._interrupted_early = 0  # the sequence whose interrupt came before it was claimed
        self._step = 0  # what was planned for an earlier step does not happen
        self._started = 0.0
        self._run = (0, 0)  # attempt and row of the running task
        self._value: tuple[bytes, tuple[Reference, ...]] = (b"", ())
        self._random = agent.world.random_of("slots")
        self._writing = agent.world.random_of("output")  # apart, so that writing changes nothing else
        self._clock = agent.world.clock
        self.heap = Heap(self)

    @property
    def idle(self) -> bool:
        """Whether it waits for a task, and none is in its pipe."""
        return self.ready and not self.dead and not self._sequence and not self._pipe and not self.stack

    @property
    def busy(self) -> bool:
        """Whether it takes a seat, or soon will: a task runs, or may be claimed, or wants to go on, or it starts."""
        if self.dead or self._sequence or self._pipe:
            return True
        return self.stack[-1].woken if self.stack else not self.ready

    @property
    def unread(self) -> bool:
        """Whether the agent has not read all that it reported."""
        return bool(self._reports)

    @property
    def unclaimed(self) -> list[Spec]:
        """The tasks in its pipe, in order."""
        return [self._spec(*self._tasks[sequence]) for sequence in self._pipe]

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
        if self.agent.world.plan.one_task_at_a_time:
            alone = effect.tasks == 1 and not self._pipe and not self._sequence
            assert alone, "a slot that takes one task at a time was given more"
        for index in range(effect.tasks):
            self.take(effect.sequence + index, effect, index)
        self._plan_claim()

    def take(self, sequence: int, effect: events.GiveTasks, index: int) -> None:
        """One task's record comes into the pipe."""
        self._tasks[sequence] = (effect, index)
        self._pipe.append(sequence)

    def take_back(self) -> list[int]:
        """Take out what is unclaimed, whatever the slot is doing."""
        taken = list(self._pipe)
        self._pipe.clear()
        for sequence in taken:
            del self._tasks[sequence]
        self._note_idle()
        return taken

    def note_wait(self, sequence: int) -> None:
        """What comes from now on is to be run inside that task."""
        if self.dead:
            return
        frame = self.stack[-1]
        assert frame.sequence == sequence and not self._pipe, "a wait was noted at the wrong time"
        frame.noted = True

    def go_on(self, sequence: int, interrupted: bool) -> None:
        """The task that waited goes on."""
        if self.dead:
            return
        if not self.stack or self.stack[-1].sequence != sequence:
            assert sequence == self._sequence and interrupted, f"task {sequence} is to go on, and does not wait"
            self.interrupt(sequence)
            return
        assert not self._sequence, "a task is to go on below one that runs"
        frame = self.stack.pop()
        assert frame.woken or interrupted, "a task is to go on, and what it waits for has not come"
        self.running, self.name, self._started = frame.spec, frame.name, frame.started
        self._sequence, self._value, self._children = sequence, frame.value, frame.gather.numbers
        self.agent.note_seats()
        if interrupted:
            frame.gather.give_up()
            self._plan(0.0, self._interrupted)
        elif frame.gather.failed:
            self._plan(0.0, self._fail, "exception", "a child has failed")
        else:
            self._plan(0.0, self._succeed)

    def interrupt(self, sequence: int) -> None:
        """Raise in the task, if it is that one, or before it begins."""
        ending = self.client is not None and self.client.settles
        if sequence in self._pipe:
            self._interrupted_early = sequence
        elif sequence == self._sequence and self.running is not None and not self.running.stubborn and not ending:
            self._plan(0.0001 * self._random.random(), self._interrupted)

    def answer_segment(self, sequence: int, path: str, reason: str) -> None:
        """The agent made a segment for the value, or could not."""
        if sequence == self._sequence and not self.dead:
            if self.running is not None:
                self.running.wants_room = False
            self._plan(0.00001, self._write, path, reason)

    def die(self, exit_code: int, signal: int) -> None:
        """The process ends, whatever it is doing; the agent learns of it a little later."""
        if self.dead or not self.agent.alive:
            return
        self.dead = True
        self._step += 1
        if self.running is not None:
            self.running.deaths += signal != 9
        elif self.stack:
            self.stack[-1].spec.deaths += signal != 9
        for frame in self.stack:
            frame.spec.waiting_deaths += signal != 9
        self._vanish()
        self._clock.after(LEARNING_OF_A_DEATH_SECONDS, self._is_missed, exit_code, signal)

    # ------------------------------------------------------------------ its own life

    def _get_ready(self) -> None:
        if self.dead or not self.agent.alive:
            return
        self.ready = True
        self._note_idle()
        self.report(events.SlotReady(self.index))

    def _note_idle(self) -> None:
        self.agent.note_seats()
        if self.idle:
            self.idle_since = self._clock.now

    def _plan(self, seconds: float, action: Any, *arguments: Any) -> None:
        self._step += 1
        self._clock.after(seconds, self._act, self._step, action, arguments)

    def _act(self, step: int, action: Any, arguments: tuple[Any, ...]) -> None:
        if step == self._step and not self.dead and self.agent.alive:
            action(*arguments)

    def _plan_claim(self) -> None:
        if self.stack and (self.stack[-1].woken or not self.stack[-1].noted):
            return
        if self.ready and not self._sequence and self._pipe:
            self._plan(0.00002 * self._random.random(), self._claim)

    def _claim(self) -> None:
        if not self._pipe:
            return
        self._sequence = self._pipe.popleft()
        self._started = self._clock.now
        effect, index = self._tasks.pop(self._sequence)
        spec = self.running = self._spec(effect, index)
        self.name = self._run = (effect.context[0], row_of(effect.context[1], index))
        self._children = []
        self.agent.note_seats()
        if self.stack:
            inside = self.stack[-1].spec
            assert spec.index in inside.children, f"task {spec.index} runs inside {inside.index}, not its parent"
        spec.runs += 1
        spec.active += 1
        self.heap.task_begins()
        if self._sequence == self._interrupted_early:
            self._interrupted()
            return
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
        elif spec.ends_workers:
            self._plan(spec.seconds * self._random.random(), self.agent.die)
        elif spec.runs <= spec.raises_first:
            self._plan(spec.seconds, self._fail, "exception", "as planned")
        elif spec.children:
            self._plan(spec.seconds * self._random.random(), self._submit_children)
        else:
            self._plan(spec.seconds, self._succeed)

    # ------------------------------------------------------------------ tasks that submit tasks

    def _submit_children(self) -> None:
        assert self.running is not None and self.name is not None
        spec = self.running
        if self.client is None:
            self.agent.clients_seen += 1
            self.client = SlotClient(self, f"{self.agent.address} {self.agent.clients_seen}")
        specs = self.agent.world.workload.specs
        numbers = self._children = self.client.submit([specs[child] for child in spec.children])
        if spec.returns_children:
            digest, references = self._value
            self._value = digest, (*references, *((self.client.client_id, number) for number in numbers))
            self._plan(spec.seconds * self._random.random(), self._succeed)
            return
        gather = self.client.gather(numbers)
        if gather.done:
            self._plan(0.0, self._fail, "exception", "a child") if gather.failed else self._plan(0.0, self._succeed)
            return
        self.stack.append(Frame(spec, self.name, self._sequence, self._started, self._value, gather))
        self.report(events.SlotWaits(self.index, self._sequence))
        self._sequence, self.running, self.name = 0, None, None
        self.agent.note_seats()

    def look(self) -> None:
        """Perhaps what the innermost task waits for has come."""
        if self.stack and not self._sequence and not self.dead:
            frame = self.stack[-1]
            if frame.gather.done and not frame.woken:
                frame.woken = True
                self._step += 1  # nothing is claimed any more
                self.report(events.SlotWoken(self.index, frame.sequence))
                self.agent.note_seats()

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
            self.running.wants_room = True
            self.report(events.SegmentAsked(self.index, self._sequence, nbytes))
            return
        self._hand_over(references)
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
        self._hand_over(references)
        self.agent.write(path, encode_value(digest, references, 0))
        contains = [part for reference in references for part in reference]
        self._end([self._sequence, self._seconds(), "segment", self.running.nbytes, contains])

    def _fail(self, kind: str, text: str) -> None:
        self._end([self._sequence, self._seconds(), kind, b"error", {"message": text}])

    def _interrupted(self) -> None:
        self._end([self._sequence, self._seconds(), "interrupted", b"", {"message": "it was stopped"}])

    def _seconds(self) -> float:
        return self._clock.now - self._started

    def _write_something(self, spec: Spec) -> None:
        """Now and then a task writes its index, and says how far it is."""
        if self._writing.random() < WRITES:
            text = b"%d" % spec.index
            # Named by a mark, or by nothing: then it is the running task's.
            name = self._run if self._writing.random() < 0.7 else (0, 0)
            piece = Piece(STDOUT if name[0] else RAW, *name, text)
            self.report(events.SlotWrote(self.index, [piece], self._clock.now))
            self.report(events.ProgressMade(*self._run, 0.5, "half"))

    def _hand_over(self, references: tuple[Reference, ...]) -> None:
        if self.client is not None and self.name is not None:
            own = sorted({number for client_id, number in references if client_id == self.client.client_id})
            if own:
                self.client.session.hand_over(*self.name, own)

    def _end(self, report: list[Any]) -> None:
        if self.client is not None and self.client.let_go(self._children, lambda: self._end_at_last(report)):
            self._step += 1  # until the scheduler has got what it was told, no interrupt
        else:
            self._end_at_last(report)

    def _end_at_last(self, report: list[Any]) -> None:
        if self.dead or not self.agent.alive:
            return
        self._sequence = 0
        self.name = None
        self._children = []
        if self.running is not None:
            self._write_something(self.running)
            self._leave(self.running)
        self.report(report)
        self.heap.task_ended()
        self._note_idle()
        self._plan_claim()
        self.look()

    def forget(self) -> None:
        """Its agent has ended, and it with the agent."""
        if not self.dead:
            self.dead = True
            self._vanish()

    def _vanish(self) -> None:
        if self.running is not None:
            self._leave(self.running)
        for frame in self.stack:
            frame.gather.give_up()
            self._leave(frame.spec)
        self.stack.clear()
        if self.client is not None:
            self.client.die()

    def _leave(self, spec: Spec) -> None:
        spec.active -= 1
        self.agent.world.progress_at = self._clock.now
        self.agent.world.fairness.note(spec.client, self._seconds())
        spec.left_a_slot_at = self._clock.now
        self.running = None

    # ------------------------------------------------------------------ what the agent reads

    def report(self, report: Any) -> None:
        """Tell the agent something."""
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


def _row(rows: list[int], index: int) -> int:
    runs = zip(rows[::2], rows[1::2], strict=True)
    return [row for first, count in runs for row in range(first, first + count)][index]
