"""The agent's side of its starter: starts it, passes slots' descriptors to it, hears of slots' ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cluster.daemon import slot_protocol
from cluster.daemon.agent_slots import SlotPipes
from cluster.daemon.descriptor_limit import DescriptorLimit
from cluster.daemon.starter_channel import Channel, PacketChannel, PipeChannel
from cluster.storage.host_limits import host_limits

__all__ = ["SlotEnd", "StarterLink", "StarterOptions"]

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# glibc reads these when a process starts, so they cannot be set later. Freed memory stays with the process, which
# touches it again at twenty times the speed of fresh memory; the pad is address space until it is used.
_ALLOCATOR: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
_EXIT_SECONDS: Final = 5.0
# A killed process that is no child of ours is looked for so often, and for so long.
_LOOK_SECONDS: Final = 0.005
_KILLED_SECONDS: Final = 1.0

SlotEnd = Callable[[int, int, int, int], None]  # slot, exit code or -1, signal or -1, peak memory in bytes


class StarterOptions:
    """What a starter is started with."""

    def __init__(
        self,
        worker_name: str,
        slots: int,
        segment_directories: list[Path],
        python_path: str,
        fast_paths: bool,
        cluster: tuple[str, bytes],
        descriptor_limit: DescriptorLimit | None,
    ) -> None:
        """`descriptor_limit`: what slots are to have, if this process has another."""
        self.fast_paths = fast_paths
        self.descriptor_limit = descriptor_limit
        self.cluster = cluster
        self.command = [sys.executable, "-P", "-m", "cluster.daemon.starter", worker_name, python_path]
        self.command += map(str, segment_directories)
        threads = str(max(1, int(host_limits().cores / max(1, slots))))
        self.environment = {**dict.fromkeys(_THREAD_VARIABLES, threads), **os.environ}
        if fast_paths:
            self.environment |= _ALLOCATOR


class StarterLink:
    """A starter that runs. If it dies, `on_lost` is called, once all its slots are surely dead."""

    def __init__(self, options: StarterOptions) -> None:
        self._slots: dict[int, int] = {}  # slot -> process id
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_pidfds = options.fast_paths
        self._channel, theirs = _packets() if options.fast_paths else _pipes()
        try:
            self._process = subprocess.Popen(
                [*options.command, ",".join(map(str, theirs))],
                env=options.environment,
                pass_fds=theirs,
                start_new_session=True,
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        if options.descriptor_limit is not None:
            options.descriptor_limit.give_to(self._process.pid)  # no slot has been started yet
        self._channel.send((slot_protocol.STARTER_CLUSTER, *options.cluster))

    @property
    def process_id(self) -> int:
        """The starter's process."""
        return self._process.pid

    @property
    def slot_process_ids(self) -> dict[int, int]:
        """The processes of the slots that run."""
        return dict(self._slots)

    def watch(self, loop: asyncio.AbstractEventLoop, on_exited: SlotEnd, on_lost: Callable[[], None]) -> None:
        """Call `on_exited` for each slot that ends, from that loop."""
        self._loop = loop
        loop.add_reader(self._channel, self._read, on_exited, on_lost)

    def start(self, slot: int, pipes: Sequence[SlotPipes]) -> None:
        """Have a process started with the other ends of these pipes: a set for each of its slots, from that one on."""
        with contextlib.suppress(ConnectionError):  # it has died; the next read says so
            prefixes = [each.path_prefix for each in pipes if each.path_prefix]
            message = (slot_protocol.STARTER_START, slot, prefixes, len(pipes))
            self._channel.send(message, [descriptor for each in pipes for descriptor in each.slot_descriptors])

    def kill(self, slot: int) -> None:
        """End a slot and its process group."""
        self._request(slot_protocol.STARTER_KILL, slot)

    def interrupt(self, slot: int) -> None:
        """Send a slot the signal that makes it look at its page."""
        self._request(slot_protocol.STARTER_INTERRUPT, slot)

    def close(self) -> None:
        """End all slots and the starter, and wait for that."""
        self._stop_watching()
        self._channel.close()  # that is what tells it
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._end_slots()

    def _request(self, code: int, slot: int) -> None:
        with contextlib.suppress(ConnectionError):
            self._channel.send((code, slot))

    def _stop_watching(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._channel)
            self._loop = None

    def _read(self, on_exited: SlotEnd, on_lost: Callable[[], None]) -> None:
        try:
            received = self._channel.receive()
        except EOFError:
            self._stop_watching()
            self._channel.close()
            self._process.wait()
            self._end_slots()
            on_lost()
            return
        for (code, slot, *rest), _ in received:
            if code == slot_protocol.STARTER_STARTED:
                self._slots[slot] = rest[0]
            else:
                self._slots.pop(slot, None)
                on_exited(slot, *rest)

    def _end_slots(self) -> None:
        """The starter has died: end its slots and what they had started, and wait until they have ended."""
        for process_id in self._slots.values():
            (_end_by_pidfd if self._has_pidfds else _end_by_number)(process_id)
        self._slots.clear()


def _packets() -> tuple[Channel, tuple[int, ...]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return PacketChannel(ours), (theirs.detach(),)


def _pipes() -> tuple[Channel, tuple[int, ...]]:
    requests_read, requests = os.pipe()
    answers, answers_write = os.pipe()
    return PipeChannel(answers, requests), (requests_read, answers_write)


def _end_by_pidfd(process_id: int) -> None:
    try:
        watch = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process_id, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(watch, signal.SIGKILL)
        select.select([watch], [], [], _EXIT_SECONDS)
    finally:
        os.close(watch)


def _end_by_number(process_id: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)
    # Nothing tells of the end of a process that is no child. One that nobody reaps stays visible for ever.
    deadline = time.monotonic() + _KILLED_SECONDS
    while _exists(process_id) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True
