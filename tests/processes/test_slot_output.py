"""The two ends of a slot's output pipe, with a real pipe and page and no other process."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.daemon import slot_protocol
from cluster.daemon.agent_output import SlotOutputReader
from cluster.daemon.slot_output import SlotOutput
from cluster.wire.task_output import STDOUT, Piece
from cluster.worker.events import ProgressMade


class Ends:
    """A slot's end and its agent's, and what the agent's end has handed on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        descriptor, self.descriptor = os.pipe()
        os.set_blocking(descriptor, False)
        self.page = mmap.mmap(-1, slot_protocol.PAGE_BYTES)
        self.pieces: list[Piece] = []
        self.progress: list[ProgressMade] = []
        self.name = (7, 3)
        self.reader = SlotOutputReader(loop, descriptor, self.page, self.pieces.extend, self.progress.append)
        self.output = SlotOutput(self.descriptor, self.page, self)

    def run_name(self) -> tuple[int, int]:
        return self.name

    def write(self, data: bytes) -> None:
        self.output.write(STDOUT, self.descriptor, memoryview(data))


@contextmanager
def ends() -> Iterator[tuple[Ends, Callable[[Any], None]]]:
    """Both ends, and what runs their loop."""
    loop = asyncio.new_event_loop()
    both = Ends(loop)
    try:
        yield both, loop.run_until_complete
    finally:
        both.reader.close()
        os.close(both.descriptor)
        loop.close()


def test_what_a_task_wrote_is_read_before_its_report_without_a_turn_of_the_loop() -> None:
    with ends() as (both, _):
        both.write(b"line\n")
        both.reader.before_reports()
        assert both.pieces == []  # the task has not ended: no reason to look
        both.output.end_task()
        both.reader.before_reports()
        assert both.pieces == [Piece(STDOUT, 7, 3, b"line\n")]


def test_a_task_that_wrote_nothing_sets_nothing() -> None:
    with ends() as (both, _):
        assert not both.output.touched
        assert not both.page[slot_protocol.PRINTED_OFFSET]


def test_bytes_past_python_have_every_task_marked_for_a_while() -> None:
    with ends() as (both, run):
        os.write(both.descriptor, b"raw")
        run(asyncio.sleep(0.05))
        assert both.pieces == [Piece(0, 0, 0, b"raw")]
        assert both.page[slot_protocol.MARK_ALL_OFFSET]
        both.output.mark_task()
        os.write(both.descriptor, b"named now")
        both.output.end_task()
        both.reader.before_reports()
        assert both.pieces[1:] == [Piece(0, 7, 3, b"named now")]


def test_a_flood_is_read_a_pipe_at_a_time() -> None:
    async def flood(both: Ends) -> int:
        os.set_blocking(both.descriptor, False)
        loop = asyncio.get_running_loop()
        ends_at, written = loop.time() + 0.2, 0
        while loop.time() < ends_at:
            try:
                written += os.write(both.descriptor, bytes(4096))
            except BlockingIOError:
                await asyncio.sleep(0)
        return written

    with ends() as (both, run):
        loop_turns_with_a_read = 0

        def count(pieces: list[Piece]) -> None:
            nonlocal loop_turns_with_a_read
            loop_turns_with_a_read += 1

        both.reader._on_pieces = count  # type: ignore[method-assign]
        run(flood(both))
        assert 0 < loop_turns_with_a_read <= 0.25 / 0.001


def test_the_last_progress_arrives_and_the_first_at_once() -> None:
    with ends() as (both, run):
        both.output.progress(both.name, 0.1, "first")
        run(asyncio.sleep(0.02))
        assert both.progress == [ProgressMade(7, 3, 0.1, "first")]
        for step in range(2, 10):
            both.output.progress(both.name, step / 10, f"step {step} ü" + "x" * 2000)
        assert len(both.progress) == 1
        both.output.end_task()
        both.reader.before_reports()
        assert len(both.progress) == 2
        assert both.progress[-1].fraction == 0.9
        assert len(both.progress[-1].message) == slot_protocol.PROGRESS_TEXT_BYTES - 1
