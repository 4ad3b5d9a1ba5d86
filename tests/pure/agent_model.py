"""A shell of the agent's machine for tests: slots, files and peers in memory, and a clock that the test turns.

`AgentModel` keeps to what `cluster.worker.events` asks of a shell. Slots do nothing by themselves: the test says when a
slot claims, ends or dies.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any, TypeVar

from cluster.wire import messages
from cluster.wire.task_output import RAW, Piece
from cluster.worker import events
from cluster.worker.machine import Agent, AgentIdentity

Kind = TypeVar("Kind")

EPOCH = 3
FUNCTION = b"f" * 16
OWN_ADDRESS = "tcp://127.0.0.1:9000"


def grant(
    attempt: int,
    rows: int | list[int] = 1,
    *,
    first_row: int = 0,
    function_id: bytes = FUNCTION,
    values: list[Any] | None = None,
    needs: list[list[int]] | None = None,
    inline: int = 4096,
    shown: bool = True,
    **options: Any,
) -> messages.Grant:
    """A grant of consecutive rows (or of the runs given), each with a piece of the blob that is its number as text."""
    runs = [first_row, rows] if isinstance(rows, int) else rows
    offsets, blob = array("I", [0]), b""
    for number in range(sum(runs[1::2])):
        blob += str(number).encode()
        offsets.append(len(blob))
    starts, inputs = array("I", [0]), array("I")
    for need in needs or []:
        inputs.extend(need)
        starts.append(len(inputs))
    return messages.Grant(
        attempt, runs, function_id, "f", 0, offsets.tobytes(), blob,
        starts.tobytes() if needs else b"", inputs.tobytes(), values or [], inline, options,
        [b"c" * 16, -1, 0, "", [], shown],
    )  # fmt: skip


class ModelSlot:
    """What a slot's process would have: its pipe, what it claimed, and the tasks it was told of."""

    def __init__(self) -> None:
        self.pipe: deque[int] = deque()
        self.claimed = 0
        self.tasks: dict[int, tuple[events.GiveTasks, int]] = {}
        self.functions: set[bytes] = set()
        self.segment = ""
        self.reference: list[Any] = []  # of the actor that it is to keep
        self.interrupted: list[int] = []
        self.runs_coroutines = False
        self.unread: list[Any] = []

    def claim(self) -> int:
        """Take the next record; the sequence."""
        assert not self.claimed, "a slot reports a task before it claims the next"
        self.claimed = self.pipe.popleft()
        return self.claimed

    def argument(self) -> bytes:
        """The piece of the blob that belongs to the claimed task."""
        give, index = self.tasks[self.claimed]
        offsets = array("I", give.offsets)
        return give.blob[offsets[index] - offsets[0] : offsets[index + 1] - offsets[0]]

    def inputs(self) -> list[Any]:
        """The inputs of the claimed task."""
        give, index = self.tasks[self.claimed]
        starts, inputs = array("I", give.input_starts), array("I", give.inputs)
        return [give.values[need] for need in inputs[starts[index] : starts[index + 1]]]


class AgentModel:
    """An agent's machine with everything around it."""

    def __init__(
        self,
        slots: int = 2,
        *,
        start: bool = True,
        drain_seconds: float = 30.0,
        one_task_at_a_time: bool = False,
        limit_bytes: int = 1 << 30,
        quota_bytes: int = 0,
        compression: str = "",
        threads: int = 1,
    ) -> None:
        self.seats = slots
        self.now = 100.0
        self.agent = Agent(
            AgentIdentity(
                b"w" * 16,
                "w",
                OWN_ADDRESS,
                slots,
                limit_bytes,
                {},
                {},
                1,
                1.0,
                drain_seconds,
                one_task_at_a_time,
                ("/disk/",),
                quota_bytes,
                compression,
                threads,
            )
        )
        self.one_task_at_a_time = one_task_at_a_time
        self.slots: dict[int, ModelSlot] = {}
        self.starting: list[int] = []
        self.killed: list[int] = []
        self.noted: list[tuple[int, int]] = []
        self.went_on: list[tuple[Any, ...]] = []
        self.sent: deque[Any] = deque()
        self.to_peers: list[Any] = []
        self.fetches: list[events.FetchFrom] = []
        self.given_up: list[events.GiveUpFetch] = []
        self.said: list[str] = []
        self.segments: set[str] = set()
        self.full = False
        self.on_disk = False  # memory is full, and segments are files on disk
        self.read_at_once = True
        self.hold_segments = False
        self.held_segments: list[events.CreateSegment] = []
        self.spills: list[events.SpillSegment] = []
        self.checks: list[events.CheckSpilled] = []
        self.packs: dict[int, bytes] = {}  # on disk
        self.pack_writes: list[events.WritePack | events.RewritePacks] = []
        self.pack_reads: list[events.ReadPack] = []
        self.asked_if_sent: list[int] = []  # peers
        self.answers: list[events.AnswerSegment] = []
        self.rooms: list[events.AnswerRoom] = []
        self.shrunk: list[int] = []
        self.trims: list[int] = []
        self.placed: list[bool] = []  # for each segment that was made: whether it had to be on disk
        self.closed: events.Close | None = None
        self._names = 0
        if start:
            self.feed(events.Started())
            assert isinstance(self.sent.popleft(), messages.WorkerJoin)
            self.tell(messages.WorkerWelcome(EPOCH, 0, {}))
            assert isinstance(self.sent.popleft(), messages.AgentHeartbeat)
            self.tell(messages.DefineFunction(FUNCTION, "f", b"function"))
            self.start_slots()

    # ------------------------------------------------------------------ driving

    def feed(self, event: events.Event) -> None:
        """One event, and whatever follows at once."""
        pending: deque[events.Event] = deque([event])
        handled = 0
        while pending:
            handled += 1
            assert handled < 1000, "it never comes to rest"
            for effect in self.agent.handle(self.now, pending.popleft()):
                self._perform(effect, pending)

    def tell(self, message: Any) -> None:
        """A message of the scheduler."""
        self.feed(events.FromScheduler(message))

    def start_slots(self) -> None:
        """All slots that are being started get ready."""
        starting, self.starting = self.starting, []
        for slot in starting:
            self.slots[slot] = ModelSlot()
            self.feed(events.SlotReady(slot))

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick whenever the machine wants one."""
        end = self.now + seconds
        ticks_without_progress = 0
        while (wakeup := self.agent.next_wakeup) is not None and wakeup <= end:
            ticks_without_progress = 0 if wakeup > self.now else ticks_without_progress + 1
            assert ticks_without_progress < 100, "it spins"
            self.now = max(self.now, wakeup)
            self.feed(events.Tick())
        self.now = end

    def finish(self, slot: int, seconds: float = 0.00001, data: bytes | None = None) -> bytes:
        """The slot claims its next task (if it has not) and succeeds; the argument."""
        model = self.slots[slot]
        if not model.claimed:
            model.claim()
        argument = model.argument()
        self.report(slot, [seconds, b"v" + argument if data is None else data])
        return argument

    def report(self, slot: int, rest: list[Any]) -> None:
        """The slot reports the task that it had claimed."""
        model = self.slots[slot]
        sequence, model.claimed = model.claimed, 0
        model.unread.append([sequence, *rest])
        if self.read_at_once:
            self.read(slot)

    def read(self, slot: int) -> None:
        """The agent reads what the slot has reported."""
        model = self.slots[slot]
        reports, model.unread = model.unread, []
        if reports:
            self.feed(events.SlotReports(slot, reports))

    def work(self, seconds: float = 0.00001) -> int:
        """All slots run all that they have, in turns, until nothing is left; how many tasks."""
        ended = 0
        while busy := [slot for slot, model in self.slots.items() if model.pipe or model.claimed]:
            for slot in busy:
                if self.slots[slot].pipe or self.slots[slot].claimed:
                    self.finish(slot, seconds)
                    ended += 1
        return ended

    def die(self, slot: int, signal: int = 11, exit_code: int = -1, lines: str = "") -> None:
        """The slot's process ends."""
        self.read(slot)
        model = self.slots.pop(slot)
        if lines:
            self.feed(events.SlotWrote(slot, [Piece(RAW, 0, 0, lines.encode())], 0.0))
        self.feed(events.SlotExited(slot, list(model.pipe), exit_code, signal, lines, 1000))

    # ------------------------------------------------------------------ looking

    def expect(self, kind: type[Kind]) -> Kind:
        """The next message to the scheduler, heartbeats left out; it must be of that class."""
        while isinstance(self.sent[0], messages.AgentHeartbeat):
            self.sent.popleft()
        message = self.sent.popleft()
        assert isinstance(message, kind), message
        return message

    @property
    def silent(self) -> bool:
        """Whether there is nothing more to the scheduler, heartbeats left out."""
        return all(isinstance(message, messages.AgentHeartbeat) for message in self.sent)

    # ------------------------------------------------------------------ effects

    def _perform(self, effect: events.Effect, pending: deque[events.Event]) -> None:
        match effect:
            case events.ToScheduler(message):
                self.sent.append(message)
            case events.ToPeer() | events.ServeSegment() | events.ServePiece():
                self.to_peers.append(effect)
            case events.StartSlot(slot, _):
                assert slot not in self.slots and slot not in self.starting
                self.starting.append(slot)
            case events.DefineInSlot(slot, function_id):
                self.slots[slot].functions.add(function_id)
            case events.GiveTasks():
                model = self.slots[effect.slot]
                assert effect.function_id in model.functions
                if self.one_task_at_a_time and not model.runs_coroutines:
                    assert effect.tasks == 1 and not model.pipe and not model.claimed
                for index in range(effect.tasks):
                    model.tasks[effect.sequence + index] = (effect, index)
                    model.pipe.append(effect.sequence + index)
            case events.TakeBack(slot):
                assert not self.one_task_at_a_time
                taken = list(self.slots[slot].pipe)
                self.slots[slot].pipe.clear()
                pending.append(events.TookBack(slot, taken))
            case events.Interrupt(slot, sequence) | events.StopCoroutine(slot, sequence):
                self.slots[slot].interrupted.append(sequence)
            case events.BecomeCoroutines(slot):
                assert not self.slots[slot].tasks
                self.slots[slot].runs_coroutines = True
            case events.BecomeActor(slot, reference):
                self.slots[slot].reference = reference
            case events.NoteWait(slot, sequence):
                assert self.one_task_at_a_time or not self.slots[slot].pipe
                self.noted.append((slot, sequence))
            case events.GoOn():
                self.went_on.append(tuple(effect))
            case events.TrimSlot(slot, idle):
                assert idle == (not self.slots[slot].claimed and not self.slots[slot].pipe)
                self.trims.append(slot)
            case events.KillSlot(slot):
                self.killed.append(slot)
            case events.AnswerSegment(slot, sequence, path):
                assert slot in self.slots
                assert self.slots[slot].claimed == sequence
                self.slots[slot].segment = path
                self.answers.append(effect)
            case events.AnswerRoom():
                self.rooms.append(effect)
            case events.ShrinkSegments(nbytes):
                self.shrunk.append(nbytes)
            case events.SpillSegment():
                assert effect.path in self.segments
                self.spills.append(effect)
            case events.CheckSpilled():
                assert effect.path in self.segments
                self.checks.append(effect)
            case events.WritePack() | events.RewritePacks() | events.ReadPack() | events.RemovePacks():
                self._perform_on_packs(effect)
            case events.NoteSent(peer):
                self.asked_if_sent.append(peer)
            case events.CreateSegment(request):
                self.placed.append(effect.on_disk)
                if self.hold_segments:
                    self.held_segments.append(effect)
                elif self.full:
                    pending.append(events.SegmentFailed(request, "full"))
                else:
                    pending.append(events.SegmentCreated(request, self.new_segment(on_disk=effect.on_disk)))
            case events.RemoveSegments(paths):
                assert self.segments.issuperset(paths)
                self.segments.difference_update(paths)
            case events.FetchFrom():
                self.fetches.append(effect)
            case events.GiveUpFetch():
                self.given_up.append(effect)
            case events.Say(text):
                self.said.append(text)
            case events.Close():
                self.closed = effect

    def _perform_on_packs(
        self, effect: events.WritePack | events.RewritePacks | events.ReadPack | events.RemovePacks
    ) -> None:
        match effect:
            case events.WritePack() | events.RewritePacks():
                self.pack_writes.append(effect)
            case events.ReadPack():
                assert effect.pack in self.packs
                assert effect.starts == sorted(effect.starts)
                self.pack_reads.append(effect)
            case events.RemovePacks(packs):
                for pack in packs:
                    del self.packs[pack]

    def spill(self) -> events.SpillSegment:
        """The shell has copied the first of the values that are to go to disk."""
        spill = self.spills.pop(0)
        new_path = self.new_segment(on_disk=True)
        self.feed(events.Spilled(spill.key, spill.path, new_path, spill.nbytes, 7, spill.compression))
        return spill

    def write_pack(self) -> events.WritePack | events.RewritePacks:
        """The shell has written the first of the packs that are to be."""
        write = self.pack_writes.pop(0)
        if isinstance(write, events.WritePack):
            data = b"".join(write.values)
        else:
            data = b"".join(self.packs[pack][start : start + size] for pack, start, size in write.pieces)
        self.packs[write.pack] = data
        self.feed(events.PackWritten(write.pack, len(data)))
        return write

    def read_pack(self, *, damaged: bool = False) -> events.ReadPack:
        """The shell has read the first of what is to be read from packs."""
        read = self.pack_reads.pop(0)
        pairs = zip(read.starts, read.sizes, strict=True)
        found = [None if damaged else self.packs[read.pack][start : start + size] for start, size in pairs]
        self.feed(events.PackRead(read.request, found, "its checksum differs"))
        return read

    def new_segment(self, *, on_disk: bool = False) -> str:
        """A segment that the shell made."""
        self._names += 1
        path = f"/{'disk/' if on_disk or self.on_disk else ''}segment-{self._names}"
        self.segments.add(path)
        return path


def names_of(message: messages.Done | messages.Recalled | messages.RunFailed) -> list[tuple[int, int]]:
    """The tasks that a message answers for: (attempt, row)."""
    if isinstance(message, messages.RunFailed):
        return [(message.attempt, message.row)]
    if isinstance(message, messages.Recalled):
        return list(zip(message.names[::2], message.names[1::2], strict=True))
    runs = zip(message.runs[::2], message.runs[1::2], strict=True)
    return [(message.attempt, row) for first, count in runs for row in range(first, first + count)]
