"""The agent's daemon: sockets, pipes and files around the machine of `cluster.worker.machine`.

It never unpickles anything and never runs a user's code; values are bytes and files to it. One asyncio loop, no step of
which takes long: what does (reserving and removing large segments) is the store's thread's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from cluster.config import Settings
from cluster.daemon import fast_paths, slot_protocol
from cluster.daemon.agent_errands import ERRANDS_FROM, ErrandProcesses
from cluster.daemon.agent_peers import PeerLinks, PeerServer
from cluster.daemon.agent_slots import SlotPipes
from cluster.daemon.agent_spill import Spiller
from cluster.daemon.agent_starter import StarterLink, StarterOptions
from cluster.daemon.agent_store import BY_PATH, Store
from cluster.daemon.descriptor_limit import raise_descriptor_limit
from cluster.daemon.memory_kills import MemoryKills
from cluster.daemon.process_memory import own_bytes
from cluster.daemon.slot_memory import give_back_free_memory
from cluster.ids import new_id
from cluster.installed import installed_versions
from cluster.storage.segments import lies_in_memory
from cluster.storage.spill import check_compression, default_spill_parent
from cluster.transport.addresses import is_loopback, is_wildcard, local_host_towards, read_address
from cluster.transport.steps import SendingStep
from cluster.transport.tcp import Connection, Listener, connect, listen
from cluster.wire.task_output import Piece
from cluster.worker import events
from cluster.worker.events import Event
from cluster.worker.incoming import IncomingSegments
from cluster.worker.machine import Agent, AgentIdentity

__all__ = ["AgentDaemon", "AgentOptions"]

logger = logging.getLogger(__name__)

_MEASURE_SECONDS: Final = 2.0
# A worker that has used this part of its memory is looked at more often: a task may take a gigabyte in a second.
_TIGHT: Final = 0.6
_MEASURE_TIGHT_SECONDS: Final = 0.25


class AgentOptions(NamedTuple):
    """What a worker is started with."""

    scheduler_address: str
    host: str
    """Where to listen for other agents and clients; empty: this machine's address on the way to the scheduler."""
    port: int
    announced_host: str
    """What others are told to connect to; empty: where it listens."""
    slots: int
    memory_limit_bytes: int
    resources: dict[str, float]
    name: str
    python_path: str
    parent: socket.socket | None
    """Gets a byte when the worker has joined; the worker ends when it closes."""
    threads: int = 1
    """How many tasks each slot's process runs at once, in threads."""


class AgentDaemon:
    """One worker. Make it before the loop runs (its starter then starts meanwhile); `run` ends with the exit status."""

    def __init__(self, options: AgentOptions, settings: Settings, secret: bytes) -> None:
        self._options = options
        self._settings = settings
        self._secret = secret
        self._fast_paths = fast_paths.choose(settings.fast_paths)
        if self._fast_paths.missing:
            logger.info("there is no %s here; a slower way is taken instead", ", ".join(self._fast_paths.missing))
        descriptor_limit = raise_descriptor_limit() if settings.fast_paths else None
        memory_limit_bytes, wanted = options.memory_limit_bytes, settings.fast_paths
        self._store = Store(
            settings.shared_memory_directory,
            "agent",
            memory_limit_bytes,
            fast_paths=wanted,
            on_forget=self._forget_segment,
        )
        self._spill_quota_bytes = settings.spill_quota_bytes
        try:
            self._spiller = self._make_spiller()
        except BaseException:
            self._store.close()
            raise
        # Uploaded modules come first: who uploads one means it to be used.
        python_path = os.pathsep.join(filter(None, (str(self._store.modules_path), options.python_path)))
        self._starter_options = StarterOptions(
            options.name,
            options.slots,
            [*self._store.paths, self._spiller.path],
            python_path,
            self._fast_paths.slots,
            (options.scheduler_address, secret),
            descriptor_limit,
        )
        self._starter = StarterLink(self._starter_options)
        self._slots: dict[int, SlotPipes] = {}
        self._process_of: dict[int, int] = {}  # slot -> the first slot of its process
        self._errands = ErrandProcesses(
            self.feed, self._make_pipes, self._start_process, lambda number: self._starter.kill(number)
        )
        self._events: deque[Event] = deque()
        self._handling = False
        self._timer: asyncio.TimerHandle | None = None
        incoming = IncomingSegments(self.feed)
        self._server = PeerServer(self._store, incoming, self.feed, fast_paths=wanted)
        self._links = PeerLinks(secret, self._store, incoming, self.feed, fast_paths=wanted)
        self._memory_kills, self._joined = MemoryKills(), False
        self._perform: dict[type[Any], Callable[[Any], object]] = {
            events.ToScheduler: self._to_scheduler,
            events.GiveTasks: lambda effect: self._slots[effect.slot].give(effect),
            events.DefineInSlot: lambda effect: self._slots[effect.slot].define(effect),
            events.BecomeActor: lambda effect: self._slots[effect.slot].become_actor(effect.reference),
            events.BecomeCoroutines: lambda effect: self._slots[effect.slot].become_coroutines(),
            events.StopCoroutine: lambda effect: self._slots[effect.slot].stop_coroutine(effect.sequence),
            events.NoteWait: lambda effect: self._slots[effect.slot].note_wait(effect.sequence),
            events.GoOn: lambda effect: self._slots[effect.slot].go_on(effect.sequence, effect.interrupted),
            events.TakeBack: self._take_back,
            events.ToPeer: self._server.send,
            events.ServeSegment: self._server.send,
            events.ServePiece: self._server.send,
            events.NoteSent: self._server.note_sent,
            events.FetchFrom: self._links.fetch,
            events.GiveUpFetch: self._links.give_up,
            events.AnswerRoom: incoming.answer,
            events.CreateSegment: self._create_segment,
            events.ShrinkSegments: lambda effect: self._store.shrink(effect.nbytes),
            **self._spiller.performers,
            events.RemoveSegments: self._remove_segments,
            events.AnswerSegment: self._answer_segment,
            events.Interrupt: self._interrupt,
            events.TrimSlot: self._trim_slot,
            events.LeaveThread: self._leave_thread,
            events.KillSlot: lambda effect: self._starter.kill(effect.slot),
            events.StartSlot: self._start_slot,
            events.StartErrand: self._errands.start,
            events.EndErrand: lambda effect: self._errands.end(effect.request),
            events.StoreModule: self._store_module,
            events.Say: lambda effect: logger.warning("%s", effect.text),
            events.Close: self._close,
        }

    def _make_spiller(self) -> Spiller:
        settings = self._settings
        parent = settings.spill_directory or default_spill_parent(Path(tempfile.gettempdir()))
        if settings.spill_directory is None and lies_in_memory(parent):
            self._spill_quota_bytes = -1
            logger.warning("values cannot go to disk, since %s lies in memory: set spill_directory", parent)
        check_compression(settings.spill_compression or "")
        return Spiller(parent, self.feed, self._store.note_moved, fast_paths=settings.fast_paths)

    # ------------------------------------------------------------------ life

    async def run(self) -> int:
        """Join the scheduler and work for it; returns the exit status. Raises ClusterError if it cannot join."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.set_exception_handler(self._broken)
        try:
            self._listener = await self._listen()
            self._agent = Agent(self._identity(self._listener.address))
            self._scheduler = await connect(
                self._options.scheduler_address,
                secret=self._secret,
                role="worker",
                peer_roles=("scheduler",),
                on_message=self._scheduler_message,
                on_closed=self._scheduler_closed,
            )
            self._starter.watch(self._loop, self._slot_exited, self._starter_lost)
            self._watch_signals()
            self.feed(events.Started())
            self._measure()
            self._look_around()
            return await self._ended
        finally:
            await self._shut_down()

    async def _listen(self) -> Listener:
        scheduler = read_address(self._options.scheduler_address)
        towards = await asyncio.to_thread(local_host_towards, scheduler.host, scheduler.port)
        host = self._options.host or towards
        if scheduler.insecure and not is_loopback(host):
            logger.warning(
                "nothing is encrypted: who listens on the network can read and change all that this worker does"
            )
        return await listen(
            host,
            self._options.port,
            secret=self._secret,
            role="worker",
            peer_roles=("worker", "client"),
            on_connected=self._server.connected,
            on_message=self._server.message,
            on_closed=self._server.closed,
            certificate_directory=self._settings.directory,
            insecure=scheduler.insecure,
            announced_host=self._options.announced_host or (towards if is_wildcard(host) else ""),
        )

    def _identity(self, address: str) -> AgentIdentity:
        return AgentIdentity(
            worker_id=new_id(),
            name=self._options.name,
            address=address,
            slots=self._options.slots * self._options.threads,
            memory_limit_bytes=self._options.memory_limit_bytes,
            resources=self._options.resources,
            versions=installed_versions(),
            process_id=os.getpid(),
            heartbeat_interval_seconds=self._settings.heartbeat_interval_seconds,
            drain_seconds=self._settings.drain_seconds,
            one_task_at_a_time=not self._fast_paths.slots,
            disk_prefixes=tuple(
                [f"{path}/" for path in self._store.paths[1:] if not lies_in_memory(path)] + [f"{self._spiller.path}/"]
            ),
            spill_quota_bytes=self._spill_quota_bytes,
            spill_compression=self._settings.spill_compression or "",
            threads=self._options.threads,
        )

    def _watch_signals(self) -> None:
        self._signals = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signaled)
        if self._options.parent is not None:
            self._loop.add_reader(self._options.parent, self._parent_gone, self._options.parent)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # An agent that has lost track of its tasks is worse than none: its tasks run again elsewhere.
        error = context.get("exception")
        logger.critical("the worker ends, by a fault of its own: %s", context["message"], exc_info=error)
        if not self._ended.done():
            self._ended.set_result(1)

    def _signaled(self) -> None:
        self._signals += 1
        self.feed(events.DrainAsked() if self._signals == 1 else events.EndAsked())

    def _parent_gone(self, parent: socket.socket) -> None:
        self._loop.remove_reader(parent)
        self.feed(events.EndAsked())

    async def _shut_down(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._links.close()
        self._server.close()
        await asyncio.to_thread(self._starter.close)
        await self._links.ended()
        for pipes in self._slots.values():
            pipes.close()
        self._errands.close()
        self._store.close()
        self._spiller.close()

    # ------------------------------------------------------------------ the machine

    def feed(self, event: Event) -> None:
        """Hand an event to the machine and do what it asks for; events that arise meanwhile come next."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:  # what leaves at the end of a step may be what an event was waiting for
                with SendingStep.of(self._loop):
                    while self._events:
                        for effect in self._agent.handle(self._loop.time(), self._events.popleft()):
                            self._perform[type(effect)](effect)
        finally:
            self._handling = False
        self._set_timer()

    def _set_timer(self) -> None:
        wakeup = self._agent.next_wakeup
        timer = self._timer
        if wakeup is None:
            return
        if timer is not None:
            if timer.when() <= wakeup:
                return  # it comes early enough, and is set anew then
            timer.cancel()
        self._timer = self._loop.call_at(wakeup, self._tick)

    def _tick(self) -> None:
        self._timer = None
        wakeup = self._agent.next_wakeup
        if wakeup is not None and wakeup <= self._loop.time():
            self.feed(events.Tick())
        else:
            self._set_timer()

    # ------------------------------------------------------------------ the scheduler

    def _to_scheduler(self, effect: events.ToScheduler) -> None:
        self._scheduler.send(effect.message)

    def _scheduler_message(self, connection: Connection, message: Any) -> None:
        self._scheduler = connection  # a scheduler that is ending says so before `connect` has returned
        self.feed(events.FromScheduler(message))
        if not self._joined and self._agent.welcomed:
            self._joined = True
            options = self._options
            print(
                f"cluster-worker {options.name} at {self._listener.address} joined {options.scheduler_address} "
                f"with {options.slots} slot{'' if options.slots == 1 else 's'}"
                f"{f' of {options.threads} threads' if options.threads > 1 else ''}",
                flush=True,
            )
            if options.parent is not None:
                with contextlib.suppress(OSError):  # a parent that is gone is noticed by the reader
                    options.parent.send(b"\n")

    def _scheduler_closed(self, connection: Connection, reason: str) -> None:
        if not self._ended.done():
            logger.error("the scheduler at %s is gone: %s", self._options.scheduler_address, reason or "it hung up")
            self._ended.set_result(1)

    def _close(self, effect: events.Close) -> None:
        logger.log(logging.ERROR if effect.exit_status else logging.INFO, "the worker ends: %s", effect.reason)
        self._listener.close()
        if not self._ended.done():
            self._ended.set_result(effect.exit_status)
        self._scheduler.close()

    # ------------------------------------------------------------------ slots

    def _start_slot(self, effect: events.StartSlot) -> None:
        first = self._make_pipes(effect.slot, self._slot_reports, self._slot_wrote)
        pipes = [first]
        for number in range(effect.slot + 1, effect.slot + effect.threads):
            pipes.append(self._make_pipes(number, self._slot_reports, self._slot_wrote, shares=first))
        for offset, each in enumerate(pipes):
            self._slots[effect.slot + offset] = each
            self._process_of[effect.slot + offset] = effect.slot
        self._start_process(effect.slot, *pipes)

    def _make_pipes(
        self,
        number: int,
        on_reports: Callable[[int, list[Any]], None],
        on_output: Callable[[int, list[Piece]], None],
        shares: SlotPipes | None = None,
    ) -> SlotPipes:
        prefix = "" if self._fast_paths.slots else f"{self._store.paths[-1]}/pipe-{number}"
        return SlotPipes(self._loop, number, on_reports, on_output, self.feed, prefix, shares)

    def _start_process(self, number: int, *pipes: SlotPipes) -> None:
        self._starter.start(number, pipes)
        for each in pipes:
            each.handed_over()

    def _slot_reports(self, slot: int, reports: list[Any]) -> None:
        ended: list[Any] = []
        for report in reports:
            if len(report) > 2:
                ended.append(report)
                continue
            if ended:
                self.feed(events.SlotReports(slot, ended))
                ended = []
            self.feed(_event_of(slot, report))
        if ended:
            self.feed(events.SlotReports(slot, ended))

    def _slot_wrote(self, slot: int, pieces: list[Piece]) -> None:
        self.feed(events.SlotWrote(slot, pieces, time.time()))

    def _take_back(self, effect: events.TakeBack) -> None:
        self._events.append(events.TookBack(effect.slot, self._slots[effect.slot].take_back()))

    def _interrupt(self, effect: events.Interrupt) -> None:
        self._slots[effect.slot].aim_interrupt(effect.sequence)
        self._starter.interrupt(self._process_of[effect.slot])

    def _leave_thread(self, effect: events.LeaveThread) -> None:
        self._slots[effect.slot].aim_leave(effect.sequence)
        self._starter.interrupt(self._process_of[effect.slot])

    def _trim_slot(self, effect: events.TrimSlot) -> None:
        self._slots[effect.slot].ask_to_trim()
        if effect.idle:
            self._starter.interrupt(self._process_of[effect.slot])

    def _slot_exited(self, slot: int, exit_code: int, signal_number: int, peak_memory_bytes: int) -> None:
        if slot >= ERRANDS_FROM:
            self._errands.exited(slot, f"signal {signal_number}" if signal_number >= 0 else f"exit status {exit_code}")
            return
        numbers = [number for number, process in self._process_of.items() if process == slot]
        # What the threads reported, before what the output says of a process that runs nothing.
        last_lines = "".join([self._slots[number].drain() for number in reversed(numbers)])
        unclaimed, *beside = [self._slots[number].take_back() for number in numbers]
        for number in reversed(numbers):
            del self._process_of[number]
            self._slots.pop(number).close()
            self._store.writer_ended(number)
        out_of_memory = signal_number == signal.SIGKILL and self._memory_kills.one_more()
        end = (exit_code, signal_number, last_lines, peak_memory_bytes, out_of_memory)
        self.feed(events.SlotExited(slot, unclaimed, *end, tuple(beside)))

    def _starter_lost(self) -> None:
        logger.error("the process that starts this worker's slots has died, and the slots with it; they start anew")
        self._starter = StarterLink(self._starter_options)
        self._starter.watch(self._loop, self._slot_exited, self._starter_lost)
        self._errands.lost()
        for slot in dict.fromkeys(self._process_of.values()):
            self._slot_exited(slot, -1, signal.SIGKILL, 0)

    # ------------------------------------------------------------------ segments

    def _create_segment(self, effect: events.CreateSegment) -> None:
        def created(path: str, reason: str) -> None:
            if not path:
                self.feed(events.SegmentFailed(effect.request, reason))
                return
            if effect.data:
                with open(path, "r+b", buffering=0) as segment:  # not "wb": that would give its pages back first
                    segment.write(effect.data)
            self.feed(events.SegmentCreated(effect.request, path))

        if effect.on_disk:
            self._spiller.create(effect.nbytes, created)
        else:
            self._store.create(effect.nbytes, created, writer=effect.slot)

    def _remove_segments(self, effect: events.RemoveSegments) -> None:
        on_disk = [path for path in effect.paths if self._spiller.owns(path)]
        for path in on_disk:
            self._spiller.remove(path)
        if len(on_disk) < len(effect.paths):
            self._store.remove_all([path for path in effect.paths if not self._spiller.owns(path)])

    def _store_module(self, effect: events.StoreModule) -> None:
        def stored(future: asyncio.Future[str]) -> None:
            self.feed(events.ModuleStored(effect.request, future.result()))

        # Loaded here, since few workers are sent any.
        store_module = import_module("cluster.daemon.agent_modules").store_module
        folder = self._store.modules_path
        storing = self._loop.run_in_executor(None, store_module, folder, effect.name, effect.data)
        storing.add_done_callback(stored)

    def _answer_segment(self, effect: events.AnswerSegment) -> None:
        slot, sequence, path, reason = effect
        handed = self._store.hand_over(path, slot) if path else BY_PATH
        if not self._slots[slot].answer_segment(sequence, path, reason, handed):
            self._store.not_handed(path)

    def _forget_segment(self, slot: int, number: int) -> None:
        self._slots[slot].forget_segment(number)

    # ------------------------------------------------------------------ figures

    def _measure(self) -> None:
        if self._ended.done():
            return  # the store's thread, and the loop's, take no more work
        # The kernel may take milliseconds for large processes.
        processes, tight = self._starter.slot_process_ids, self._agent.memory.fullness > _TIGHT
        measuring = self._loop.run_in_executor(None, self._figures, processes, tight)
        measuring.add_done_callback(self._measured)

    def _figures(self, processes: dict[int, int], tight: bool) -> events.Measured:
        if tight:
            give_back_free_memory()  # of small values that went to disk, for one; it takes a millisecond
        slots = {slot: own_bytes(process_id) for slot, process_id in processes.items()}
        starter_bytes = own_bytes(self._starter.process_id)
        figures = {
            "slot_bytes": sum(slots.values()),
            "agent_bytes": own_bytes(os.getpid()) + starter_bytes,
            "starter_bytes": starter_bytes,  # a new slot holds as much
        }
        return events.Measured(figures, slots)

    def _measured(self, measured: asyncio.Future[events.Measured]) -> None:
        if not self._ended.done():
            figures, slots = measured.result()
            segments = {"free_segment_bytes": self._store.free_bytes, "open_segment_bytes": self._store.open_bytes}
            segments["store_bytes"] = self._store.used_bytes
            self.feed(events.Measured({**figures, **segments}, slots))
            tight = self._agent.memory.fullness > _TIGHT
            self._loop.call_later(_MEASURE_TIGHT_SECONDS if tight else _MEASURE_SECONDS, self._measure)

    def _look_around(self) -> None:
        if self._ended.done():
            return
        self._links.end_stalled()
        self._store.look()
        self._spiller.look()
        self._memory_kills.look()
        self._loop.call_later(_MEASURE_SECONDS, self._look_around)


def _event_of(slot: int, report: list[Any]) -> Event:
    """What a slot says between its tasks' reports."""
    if len(report) == 1:
        return events.SlotReady(slot)
    sequence, what = report
    if what == slot_protocol.REPORT_WAITS:
        return events.SlotWaits(slot, sequence)
    if what == slot_protocol.REPORT_WOKEN:
        return events.SlotWoken(slot, sequence)
    if what == slot_protocol.REPORT_TRIMMED:
        return events.SlotTrimmed(slot, sequence)
    if what == slot_protocol.REPORT_STOPPING:
        return events.CoroutineStopping(slot, sequence)
    return events.SegmentAsked(slot, sequence, what)
