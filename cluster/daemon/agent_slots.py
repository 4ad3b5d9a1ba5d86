"""The agent's side of one slot's process: its pipes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import select
import sys
import termios
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgpack

from cluster.daemon import slot_protocol
from cluster.worker.events import DefineInSlot, GiveTasks

__all__ = ["SlotPipes"]

_READ_BYTES: Final = 256 * 1024
_LAST_OUTPUT_BYTES: Final = 4096
# Larger than the kernel's 64 KiB, so that a slot seldom waits for its agent to read, nor the agent for the slot.
_PIPE_BYTES: Final = 256 * 1024
_SET_PIPE_SIZE: Final = getattr(fcntl, "F_SETPIPE_SZ", None)


class SlotPipes:
    """What the agent shares with one slot's process, made before the process and closed after it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, slot: int, on_reports: Callable[[int, list[Any]], None]
    ) -> None:
        self._loop = loop
        self._slot = slot
        self._on_reports = on_reports
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)
        self._unwritten: deque[memoryview] = deque()
        self._last_output = b""
        claim, self._claim_write = _pipe()
        tasks, self._tasks = _pipe(_PIPE_BYTES)
        self._reports, reports = _pipe(_PIPE_BYTES)
        self._output, output = _pipe()
        page = os.memfd_create("slot-page")
        os.ftruncate(page, slot_protocol.PAGE_BYTES)
        self._page = mmap.mmap(page, slot_protocol.PAGE_BYTES)
        # The same pipe opened a second time: whether reading blocks belongs to the opening, and the slot's must.
        self._claim_read = os.open(f"/proc/self/fd/{claim}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        for descriptor in (self._claim_write, self._tasks, self._reports, self._output):
            os.set_blocking(descriptor, False)
        self.slot_descriptors: tuple[int, ...] = (claim, tasks, reports, output, page)
        loop.add_reader(self._reports, self._read_reports)
        loop.add_reader(self._output, self._read_output)

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

    def answer_segment(self, sequence: int, path: str, reason: str) -> None:
        """Tell the slot where to write its large result."""
        self._send((slot_protocol.TASKS_SEGMENT, sequence, path, reason))

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
        self._unpacker.feed(data)
        reports = list(self._unpacker)
        if reports:
            self._on_reports(self._slot, reports)

    def _read_output(self) -> None:
        try:
            data = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._output)
            return
        self._last_output = (self._last_output + data)[-_LAST_OUTPUT_BYTES:]
        _pass_on(data)

    # ------------------------------------------------------------------ the end

    def drain(self) -> str:
        """The process has ended: read what it left in its pipes; the last lines that it wrote."""
        for descriptor, read in ((self._reports, self._read_reports), (self._output, self._read_output)):
            while _is_readable(descriptor):
                read()
        return self._last_output.decode("utf-8", "replace")

    def close(self) -> None:
        """Give everything back."""
        for descriptor in (self._reports, self._output):
            self._loop.remove_reader(descriptor)
        self._loop.remove_writer(self._tasks)
        self._page.close()
        for descriptor in (
            *self.slot_descriptors, self._claim_read, self._claim_write, self._tasks, self._reports, self._output
        ):  # fmt: skip
            os.close(descriptor)


def _pass_on(data: bytes) -> None:
    """Write what tasks print to this process's own output, and never wait for whoever should be reading that."""
    output = sys.stderr.fileno()
    for start in range(0, len(data), select.PIPE_BUF):
        _, writable, _ = select.select([], [output], [], 0)
        if not writable:
            return  # a pipe that nobody reads is full; the last lines are kept in any case
        try:
            os.write(output, data[start : start + select.PIPE_BUF])  # so much fits if anything does
        except OSError:  # nobody is there to read any more
            return


def _pipe(size_bytes: int = 0) -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    if size_bytes and _SET_PIPE_SIZE is not None:
        with contextlib.suppress(OSError):  # the user's share of pipe memory is used up: smaller ones do as well
            fcntl.fcntl(write, _SET_PIPE_SIZE, size_bytes)
    return read, write


def _is_readable(descriptor: int) -> bool:
    """Whether bytes lie in the pipe now; what a grandchild may still write does not count."""
    return bool(int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder))
