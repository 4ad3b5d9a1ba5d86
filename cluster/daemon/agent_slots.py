"""The agent's side of one slot's process: its pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgpack

from cluster.daemon import slot_ends, slot_protocol
from cluster.daemon.agent_output import SlotOutputReader, is_readable
from cluster.daemon.agent_store import BY_PATH, Handed
from cluster.daemon.slot_segments import send_descriptor
from cluster.wire.task_output import Piece
from cluster.worker.events import DefineInSlot, GiveTasks, ProgressMade

__all__ = ["SlotPipes"]

_READ_BYTES: Final = 256 * 1024


class SlotPipes:
    """What the agent shares with one slot's process, made before the process and closed after it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        slot: int,
        on_reports: Callable[[int, list[Any]], None],
        on_output: Callable[[int, list[Piece]], None],
        on_progress: Callable[[ProgressMade], None],
        path_prefix: str = "",
        shares: SlotPipes | None = None,
    ) -> None:
        """`path_prefix`: make them as files whose paths begin so, for systems where descriptors cannot be passed on.
        `shares`: the first slot of the same process, whose output pipe serves all of its slots."""
        self._loop = loop
        self._slot = slot
        self._on_reports = on_reports
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)
        self._unwritten: deque[memoryview] = deque()
        own = shares is None
        if path_prefix:
            ends = slot_ends.make_named(path_prefix, with_output=own)
        else:
            ends = slot_ends.make_unnamed(with_output=own)
        self._claim_read, self._claim_write, self._tasks, self._reports, read_output, self._page = ends[:6]
        self._segments = ends.segments
        self._kept = ends.kept
        self.slot_descriptors = ends.for_slot
        self.path_prefix = path_prefix
        loop.add_reader(self._reports, self._read_reports)
        self._owns_output = own
        self.output: SlotOutputReader = (
            SlotOutputReader(loop, read_output, self._page, lambda pieces: on_output(slot, pieces), on_progress)
            if shares is None
            else shares.output
        )

    def handed_over(self) -> None:
        """The slot's ends have been passed on: close them here."""
        for descriptor in self.slot_descriptors:
            os.close(descriptor)
        self.slot_descriptors = ()

    # ------------------------------------------------------------------ to the slot

    def define(self, effect: DefineInSlot) -> None:
        """Hand over a function."""
        self._send((slot_protocol.TASKS_DEFINE, *effect[1:]))

    def give(self, effect: GiveTasks) -> None:
        """Hand over tasks, then put their records into the claim pipe."""
        self._send((slot_protocol.TASKS_GIVE, *effect[1:]))
        with contextlib.suppress(BrokenPipeError):
            os.write(self._claim_write, slot_protocol.claim_records(effect.sequence, effect.tasks))

    def answer_segment(self, sequence: int, path: str, reason: str, handed: Handed = BY_PATH) -> bool:
        """Tell the slot where to write its large result; whether it could be told to do so as `handed` says."""
        number, descriptor = handed
        goes = descriptor < 0 or (self._segments is not None and send_descriptor(self._segments, descriptor))
        told = (number, int(descriptor >= 0)) if goes else (0, 0)
        self._send((slot_protocol.TASKS_SEGMENT, sequence, path, reason, *told))
        return goes

    def forget_segment(self, number: int) -> None:
        """Tell the slot to let go of a map that it keeps."""
        self._send((slot_protocol.TASKS_FORGET_SEGMENT, number))

    def become_actor(self, reference: list[Any]) -> None:
        """Tell the process that what its first task makes is an actor."""
        self._send((slot_protocol.TASKS_ACTOR, reference))

    def become_coroutines(self) -> None:
        """Tell the process that it runs coroutines."""
        self._send((slot_protocol.TASKS_COROUTINES,))

    def stop_coroutine(self, sequence: int) -> None:
        """Tell the process to cancel one."""
        self._send((slot_protocol.TASKS_STOP, sequence))

    def note_wait(self, sequence: int) -> None:
        """Tell the slot that what comes from now on is to be run inside the task that waits."""
        self._send((slot_protocol.TASKS_WAIT_NOTED, sequence))

    def go_on(self, sequence: int, interrupted: bool) -> None:
        """Tell the slot that the task that waited goes on."""
        self._send((slot_protocol.TASKS_GO_ON, sequence, interrupted))

    def take_back(self) -> list[int]:
        """Take all records out of the claim pipe."""
        taken: list[int] = []
        while True:
            try:
                data = os.read(self._claim_read, 4096)
            except BlockingIOError:
                return taken
            if not data:
                return taken
            taken += (sequence for sequence, _ in slot_protocol.claim_record.iter_unpack(data))

    def aim_interrupt(self, sequence: int) -> None:
        """Say which task the coming signal is meant for."""
        self._page[:8] = sequence.to_bytes(8, "little")

    def ask_to_trim(self) -> None:
        """Say that the coming signal is meant for the memory that the slot keeps."""
        self._page[slot_protocol.TRIM_OFFSET] = 1

    def aim_leave(self, sequence: int) -> None:
        """Say whose thread is left, at the coming signal."""
        start = slot_protocol.LEAVE_OFFSET
        self._page[start : start + 8] = sequence.to_bytes(8, "little")

    def _send(self, message: tuple[Any, ...]) -> None:
        data = msgpack.packb(message)
        if self._unwritten:
            self._unwritten.append(memoryview(data))
            return
        self._unwritten.append(memoryview(data))
        if not self._write():
            self._loop.add_writer(self._tasks, self._writable)

    def _write(self) -> bool:
        """Write what the pipe takes; whether that was all."""
        unwritten = self._unwritten
        try:
            while unwritten:
                written = os.write(self._tasks, unwritten[0])
                if written == len(unwritten[0]):
                    unwritten.popleft()
                else:
                    unwritten[0] = unwritten[0][written:]
        except BlockingIOError:
            return False
        except BrokenPipeError:  # the process has ended; that is told otherwise
            unwritten.clear()
        return True

    def _writable(self) -> None:
        if self._write():
            self._loop.remove_writer(self._tasks)

    # ------------------------------------------------------------------ from the slot

    def _read_reports(self) -> None:
        try:
            data = os.read(self._reports, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._reports)
            return
        self.output.before_reports()
        self._unpacker.feed(data)
        reports = list(self._unpacker)
        if reports:
            self._on_reports(self._slot, reports)

    # ------------------------------------------------------------------ the end

    def drain(self) -> str:
        """The process has ended: read what it left in its pipes; the last lines that it wrote."""
        while is_readable(self._reports):
            self._read_reports()
        return self.output.drain() if self._owns_output else ""

    def close(self) -> None:
        """Give everything back."""
        self._loop.remove_reader(self._reports)
        if self._owns_output:
            self.output.close()
        self._loop.remove_writer(self._tasks)
        self._page.close()
        if self._segments is not None:
            self._segments.close()
        for descriptor in (
            *self.slot_descriptors, *self._kept, self._claim_read, self._claim_write, self._tasks, self._reports
        ):  # fmt: skip
            os.close(descriptor)
        if self.path_prefix:
            slot_ends.remove_named(self.path_prefix)
