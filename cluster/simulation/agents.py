"""A simulated worker: the agent's machine with slots, files and peers in memory."""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from cluster.simulation.coroutines import CoroutineProcess
from cluster.simulation.disk import DISK_PREFIX, Disk, check_memory
from cluster.simulation.heaps import NEW_SLOT_BYTES
from cluster.simulation.network import Connection
from cluster.simulation.slots import SlotProcess
from cluster.simulation.threads import ThreadSlot
from cluster.simulation.timer import Timer
from cluster.simulation.transfers import Transfers, damaged
from cluster.wire import messages
from cluster.wire.checksums import agree, checksum
from cluster.worker import events
from cluster.worker.coroutines import FIRST_COROUTINES
from cluster.worker.incoming import IncomingSegments
from cluster.worker.machine import Agent, AgentIdentity
from cluster.worker.pieces import IN_MESSAGE_BYTES

if TYPE_CHECKING:
    from cluster.simulation.world import World

__all__ = ["AgentProcess"]

MEASURED_SECONDS = 0.25


class PeerLink:
    """A connection to another agent, and what was asked on it and not answered."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.asked: deque[tuple[int, int]] = deque()
        self.requests = 0


class AgentProcess:
    """One life of one worker."""

    def __init__(self, world: World, name: str, life: int, slots: int, resources: dict[str, float]) -> None:
        self.world = world
        self.name = name
        host = sum(name.encode()) // 2  # of two workers whose names are next to each other
        self.address = f"tcp://host{host}:{name}.{life}"
        self.alive = True
        self.draining = False
        self.files: dict[str, bytes] = {}
        self.slots: dict[int, SlotProcess] = {}
        self.coroutines: dict[int, CoroutineProcess] = {}
        self.seats = slots
        self.seats_changed_at = 0.0
        self._free_seats = slots
        self.clients_seen = 0
        identity = f"{name}.{life}".encode().ljust(16, b".")
        self.machine = Agent(
            AgentIdentity(
                identity,
                name,
                self.address,
                slots,
                world.plan.memory_limit_bytes,
                resources,
                {},
                1,
                1.0,
                world.plan.drain_seconds,
                world.plan.one_task_at_a_time,
                (DISK_PREFIX,),
                world.plan.spill_quota_bytes,
                threads=world.plan.threads,
            )
        )
        self._random = world.random_of("agents")
        self.disk = Disk(self, world.random_of("disks"))
        self._counts_memory = world.plan.memory_limit_bytes < 1 << 32
        self._timer = Timer(world.clock, self._wake)
        self._pending: deque[events.Event] = deque()
        self._handling = False
        self._paths = 0
        self._links: dict[str, PeerLink] = {}
        self.incoming = IncomingSegments(self.feed)
        self._transfers = Transfers(self)
        self._pushes: dict[tuple[int, int, int], int] = {}  # by caller, row and attempt: what was asked for, …
        self._places: dict[tuple[int, int, int], str] = {}  # … and the segments that were given
        self._callers: dict[int, Connection] = {}
        self._callers_seen = 0
        self.connection = world.scheduler.accept(self._hear, self._scheduler_gone)
        if world.plan.greed:
            world.clock.after(MEASURED_SECONDS, self._measure)
        self.feed(events.Started())

    # ------------------------------------------------------------------ the machine

    def feed(self, event: events.Event) -> None:
        """Hand an event to the machine and do what it asks for; events that arise meanwhile come next."""
        if not self.alive:
            return
        self._pending.append(event)
        if self._handling:
            return
        self._handling = True
        while self._pending and self.alive:
            if self._counts_memory:
                check_memory(self.machine)
            for effect in self.machine.handle(self.world.clock.now, self._pending.popleft()):
                self.world.note(self.name, effect)
                self._perform(effect)
        self._handling = False
        if self.alive:
            self._timer.follow(self.machine.next_wakeup)

    def _wake(self) -> None:
        self.feed(events.Tick())

    def _hear(self, item: Any) -> None:
        self.feed(events.FromScheduler(item[0]))

    def _scheduler_gone(self) -> None:
        self.die()

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.ToScheduler(message):
                self.world.send(self.connection.to_far, message)
            case events.GiveTasks():
                self._process(effect.slot).give(effect)
            case events.DefineInSlot(slot, function_id, _, blob):
                self._process(slot).functions[function_id] = blob
            case events.StopCoroutine(slot, sequence):
                self.coroutines[slot].cancel(sequence)
            case events.TakeBack(slot):
                assert not self.world.plan.one_task_at_a_time, "a task was asked back where there is no way back"
                self._pending.append(events.TookBack(slot, self.slots[slot].take_back()))
            case events.StartSlot(first, threads) if threads > 1:
                members: list[ThreadSlot] = []
                for slot in range(first, first + threads):
                    assert slot not in self.slots, "a slot was started that is there"
                    self.slots[slot] = ThreadSlot(self, slot, members)
                    self.slots[slot].start()
            case events.StartSlot(slot) if slot >= FIRST_COROUTINES:
                self.coroutines[slot] = CoroutineProcess(self, slot)
                self.coroutines[slot].start()
            case events.StartSlot(slot):
                assert slot not in self.slots, "a slot was started that is there"
                self.slots[slot] = SlotProcess(self, slot)
                self.slots[slot].start()
            case events.NoteWait(slot, sequence):
                self.slots[slot].note_wait(sequence)
            case events.GoOn(slot, sequence, interrupted):
                self.slots[slot].go_on(sequence, interrupted)
            case events.Interrupt(slot, sequence):
                self.slots[slot].interrupt(sequence)
            case events.TrimSlot(slot, idle):
                self.slots[slot].heap.ask_to_trim(idle=idle)
            case events.LeaveThread(slot, sequence):
                thread = self.slots[slot]
                assert isinstance(thread, ThreadSlot), "a slot that is no thread was told to leave it"
                thread.leave(sequence)
            case events.KillSlot(slot):
                self._process(slot).die(-1, 9)
            case events.AnswerSegment(slot, sequence, path, reason):
                self._process(slot).answer_segment(sequence, path, reason)
            case events.CreateSegment():
                self._create_segment(effect)
            case events.AnswerRoom():
                self.incoming.answer(effect)
            case events.SpillSegment() | events.CheckSpilled():
                self.disk.perform(effect)
            case events.WritePack() | events.RewritePacks() | events.ReadPack() | events.RemovePacks():
                self.disk.perform(effect)
            case events.NoteSent(peer):
                delay = self.world.network.delay()
                self.world.clock.after(delay, lambda: self.feed(events.PeerSent(peer, peer not in self._callers)))
            case events.RemoveSegments(paths):
                for path in paths:
                    del self.files[path]
            case events.FetchFrom():
                self._fetch(effect)
            case events.ToPeer(peer, message):
                if isinstance(message, messages.Value):
                    message = message._replace(checksum=checksum(message.data))
                if peer in self._callers:
                    self.world.send(self._callers[peer].to_near, message)
            case events.ServeSegment():
                self._serve(effect)
            case events.ServePiece():
                self._serve_piece(effect)
            case events.GiveUpFetch(row, attempt):
                self._transfers.give_up(row, attempt)
            case events.Close():
                self.connection.near_closes()
                self._end()
            case events.Say() | events.ShrinkSegments():
                pass

    def _measure(self) -> None:
        if self.alive:
            held: dict[int, int] = {}
            for index, slot in self.slots.items():
                process = slot.members[0].index if isinstance(slot, ThreadSlot) else index
                held[process] = held.get(process, 0) + slot.heap.nbytes
            self.feed(events.Measured({"slot_bytes": sum(held.values()), "starter_bytes": NEW_SLOT_BYTES}, held))
            self.world.clock.after(MEASURED_SECONDS, self._measure)

    def _process(self, index: int) -> SlotProcess:
        return self.slots[index] if index < FIRST_COROUTINES else self.coroutines[index]

    # ------------------------------------------------------------------ seats

    @property
    def nests(self) -> bool:
        """Whether tasks wait for others here, or did a moment ago."""
        return any(slot.stack for slot in self.slots.values()) or len(self.slots) > self.seats

    @property
    def free_seats(self) -> int:
        """How many tasks more could run."""
        return self.seats - sum(slot.busy for slot in self.slots.values())

    def note_seats(self) -> None:
        """A task begins, ends, waits or goes on: since when are so many seats free?"""
        free = self.free_seats
        if free != self._free_seats:
            self._free_seats = free
            self.seats_changed_at = self.world.clock.now

    # ------------------------------------------------------------------ the end

    def end_clients(self) -> None:
        """The clients in the slots leave."""
        for slot in self.slots.values():
            if slot.client is not None:
                slot.client.leave()

    def die(self) -> None:
        """The process and its slots are killed; what it had sent may or may not arrive."""
        if self.alive:
            self.connection.near_dies()
            self._end()

    def _end(self) -> None:
        self.alive = False
        self._timer.ended = True
        for slot in (*self.slots.values(), *self.coroutines.values()):
            slot.forget()
        for link in self._links.values():
            if link.connection is not None:
                link.connection.near_dies()
        self._transfers.end()
        for caller in self._callers.values():
            caller.far_dies()
        self.world.agent_ended(self)

    def drain(self) -> None:
        """Somebody asked it to end in peace."""
        self.draining = True
        self.feed(events.DrainAsked())

    def slot_ended(self, index: int, unclaimed: list[int], exit_code: int, signal: int) -> None:
        """A slot's process has ended, and all that it reported was read."""
        if index < FIRST_COROUTINES:
            del self.slots[index]
        else:
            del self.coroutines[index]
        self.feed(events.SlotExited(index, unclaimed, exit_code, signal, "its last words", 1 << 20))

    def thread_process_ended(self, end: events.SlotExited) -> None:
        """The same of a process that had several slots."""
        for index in range(end.slot, end.slot + 1 + len(end.unclaimed_beside)):
            del self.slots[index]
        self.feed(end)

    # ------------------------------------------------------------------ files

    def read(self, path: str) -> bytes:
        """A file's content."""
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def write(self, path: str, data: bytes) -> None:
        """Fill a segment, if it is still there."""
        if path in self.files:
            self.files[path] = data

    def new_file(self, data: bytes, *, on_disk: bool = False) -> str:
        """Make a file; its path."""
        self._paths += 1
        path = f"{DISK_PREFIX if on_disk else ''}{self.address}/{self._paths}"
        self.files[path] = data
        return path

    def _create_segment(self, effect: events.CreateSegment) -> None:
        full = self._random.random() < self.world.plan.full_stores
        seconds = 0.0 if self._random.random() < 0.5 else 0.002 * self._random.random()
        if seconds:
            self.world.clock.after(seconds, self._segment_created, effect, full)
        else:
            self._segment_created(effect, full)

    def _segment_created(self, effect: events.CreateSegment, full: bool) -> None:
        if not self.alive:
            return
        if full:
            self.feed(events.SegmentFailed(effect.request, "the store is full"))
        else:
            self.feed(events.SegmentCreated(effect.request, self.new_file(effect.data, on_disk=effect.on_disk)))

    # ------------------------------------------------------------------ those who ask

    def accept(self, connection: Connection) -> int:
        """A peer has connected; its number."""
        self._callers_seen += 1
        self._callers[self._callers_seen] = connection
        return self._callers_seen

    def called(self, number: int, item: Any) -> None:
        """A peer says something."""
        message, content = item
        if isinstance(message, messages.PutRequest):
            self._ask_room(number, message)
        elif isinstance(message, messages.PutValue) and message.nbytes and not message.data:
            path = self._places.pop((number, message.row, message.attempt))
            self.write(path, content)
            self.feed(events.ValuePut(number, message.row, message.attempt, message.nbytes, path))
        else:
            self.feed(events.FromPeer(number, message))

    def hung_up(self, number: int) -> None:
        """A peer has gone."""
        self._callers.pop(number, None)
        for name in [name for name in self._pushes if name[0] == number]:
            self.incoming.withdraw(self._pushes.pop(name))
        for name in [name for name in self._places if name[0] == number]:
            self.incoming.give_back(self._places.pop(name))

    def _ask_room(self, number: int, message: messages.PutRequest) -> None:
        row, attempt, nbytes = message
        name = number, row, attempt

        def answered(path: str, reason: str) -> None:
            if path:
                self._places[name] = path
                self.world.send(self._callers[number].to_near, messages.PutReady(row, attempt))

        self._pushes[name] = self.incoming.ask(number, row, attempt, nbytes, answered)

    def _serve(self, effect: events.ServeSegment) -> None:
        connection = self._callers.get(effect.peer)
        if connection is None:
            return
        _, request, row, attempt, nbytes, path = effect
        content = self.files[path]
        if nbytes <= IN_MESSAGE_BYTES:
            data = content + bytes(max(0, nbytes - len(content)))
            value = messages.Value(request, row, attempt, data, checksum(data))
            self.world.send(connection.to_near, value, nbytes=nbytes)
        else:
            stream = messages.ValueStream(request, row, attempt, nbytes)
            self.world.send(connection.to_near, stream, content, nbytes)

    def _serve_piece(self, effect: events.ServePiece) -> None:
        connection = self._callers.get(effect.peer)
        if connection is None:
            return
        _, row, attempt, offset, nbytes, path = effect
        content = self.files[path][offset : offset + nbytes]
        piece = messages.ValuePiece(row, attempt, offset, nbytes, checksum(content))
        self.world.send(connection.to_near, piece, content, nbytes)

    # ------------------------------------------------------------------ those who are asked

    def _fetch(self, effect: events.FetchFrom) -> None:
        address, values, in_pieces = effect
        if in_pieces:
            for row, attempt, nbytes in zip(values[::3], values[1::3], values[2::3], strict=True):
                self._transfers.fetch(address, row, attempt, nbytes)
        else:
            self._ask(address, list(zip(values[::3], values[1::3], strict=True)))

    def _ask(self, address: str, names: list[tuple[int, int]]) -> None:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = PeerLink(address)
            if self._random.random() < self.world.plan.refused_peers:
                self.world.clock.after(self.world.network.delay(), self._link_lost, link)
            else:
                link.connection = self.world.connect_to_agent(
                    address, lambda item: self._answered(link, item), lambda: self._link_lost(link)
                )
        link.asked += names
        link.requests += 1
        if link.connection is not None:
            self.world.send(link.connection.to_far, messages.GetValues(link.requests, list(chain.from_iterable(names))))

    def _answered(self, link: PeerLink, item: Any) -> None:
        message, _ = item
        row, attempt = link.asked.popleft()
        assert (message.row, message.attempt) == (row, attempt), "an agent answered what was not asked"
        if isinstance(message, messages.Value):
            data = damaged(self, message.data)
            if agree(message.checksum, data):
                self.feed(events.ValueFetched(link.address, row, attempt, len(data), data, ""))
            else:
                reason = "another checksum than was said"
                self.feed(events.ValueNotFetched(link.address, row, attempt, reason, "damaged"))
        else:
            self.feed(events.ValueNotFetched(link.address, row, attempt, "it does not hold the value"))

    def _link_lost(self, link: PeerLink) -> None:
        if self._links.get(link.address) is link:
            del self._links[link.address]
        asked, link.asked = link.asked, deque()
        for row, attempt in asked:
            self.feed(events.ValueNotFetched(link.address, row, attempt, "the connection has ended"))

    def lose_a_link(self) -> None:
        """A connection to another agent breaks."""
        links = [link for link in self._links.values() if link.connection is not None]
        if self._random.random() < 0.5 and self._transfers.lose_one(self._random):
            return
        if links:
            link = self._random.choice(links)
            assert link.connection is not None
            link.connection.to_far.cut()
            link.connection.to_near.forget()
            self._link_lost(link)
