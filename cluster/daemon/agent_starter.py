"""The agent's side of its starter: starts it, passes slots' descriptors to it, hears of slots' ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgpack

from cluster.daemon import slot_protocol

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

SlotEnd = Callable[[int, int, int, int], None]  # slot, exit code or -1, signal or -1, peak memory in bytes


class StarterOptions:
    """What a starter is started with."""

    def __init__(self, worker_name: str, slots: int, segment_directories: list[Path], python_path: str) -> None:
        self.command = [sys.executable, "-m", "cluster.daemon.starter", "--name", worker_name]
        self.command += [f"--segments={directory}" for directory in segment_directories]
        if python_path:
            self.command.append(f"--python-path={python_path}")
        threads = str(max(1, (os.cpu_count() or 1) // max(1, slots)))
        self.environment = {**dict.fromkeys(_THREAD_VARIABLES, threads), **os.environ, **_ALLOCATOR}


class StarterLink:
    """A starter that runs. If it dies, `on_lost` is called, once all its slots are surely dead."""

    def __init__(self, options: StarterOptions) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._slots: dict[int, int] = {}  # slot -> process id
        self._loop: asyncio.AbstractEventLoop | None = None
        with theirs:
            self._process = subprocess.Popen(
                [*options.command, "--socket", str(theirs.fileno())],
                env=options.environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

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
        loop.add_reader(self._socket, self._read, on_exited, on_lost)

    def start(self, slot: int, descriptors: tuple[int, ...]) -> None:
        """Have a slot forked with these descriptors (in the order of `SlotDescriptors`)."""
        with contextlib.suppress(ConnectionError):  # it has died; the next read says so
            packet = msgpack.packb((slot_protocol.STARTER_START, slot))
            socket.send_fds(self._socket, [packet], list(descriptors))

    def kill(self, slot: int) -> None:
        """End a slot and its process group."""
        self._request(slot_protocol.STARTER_KILL, slot)

    def interrupt(self, slot: int) -> None:
        """Send a slot the signal that makes it look at its page."""
        self._request(slot_protocol.STARTER_INTERRUPT, slot)

    def close(self) -> None:
        """End all slots and the starter, and wait for that."""
        self._stop_watching()
        self._socket.close()  # that is what tells it
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._end_slots()

    def _request(self, code: int, slot: int) -> None:
        with contextlib.suppress(ConnectionError):
            self._socket.send(msgpack.packb((code, slot)))

    def _stop_watching(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None

    def _read(self, on_exited: SlotEnd, on_lost: Callable[[], None]) -> None:
        try:
            packet = self._socket.recv(slot_protocol.PACKET_LIMIT_BYTES)
        except ConnectionError:
            packet = b""
        if not packet:
            self._stop_watching()
            self._socket.close()
            self._process.wait()
            self._end_slots()
            on_lost()
            return
        code, slot, *rest = msgpack.unpackb(packet)
        if code == slot_protocol.STARTER_STARTED:
            self._slots[slot] = rest[0]
        else:
            self._slots.pop(slot, None)
            on_exited(slot, *rest)

    def _end_slots(self) -> None:
        """The starter has died, and the kernel ends its slots; wait until it has, and end what they had started."""
        for process_id in self._slots.values():
            try:
                watch = os.pidfd_open(process_id)
            except ProcessLookupError:
                continue
            try:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process_id, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(watch, signal.SIGKILL)
                select.select([watch], [], [], _EXIT_SECONDS)
            finally:
                os.close(watch)
        self._slots.clear()
