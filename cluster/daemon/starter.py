"""The starter: starts slots for an agent, tells it of their ends, and leaves nothing behind when the agent ends.

One process with one thread that runs no user code; it imports what slots need once, so that a slot is there after a
fork. Slots ask the kernel to die with it. It lives in a session of its own, where no Ctrl-C reaches it, and it is the
one that orphans of its slots are handed to. When the agent has gone, however it went, it ends all of them and removes
the agent's segments.

Without the fast paths a slot is a fresh interpreter, nobody but the starter ends slots, and a process that a task
started and that left its slot's process group is nobody's any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

from cluster.daemon import slot_ends, slot_protocol
from cluster.daemon.in_slot import ClusterOfSlot
from cluster.daemon.slot import SlotDescriptors
from cluster.daemon.slot_process import add_python_path, be_slot, command_of_slot, environment_of_slot
from cluster.daemon.starter_channel import Channel, PacketChannel, PipeChannel
from cluster.storage.segments import sweep

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_KIBIBYTE: Final = 1024


class Starter:
    """The slots' processes of one agent. `forks`: with the fast paths."""

    def __init__(self, agent: Channel, worker_name: str, python_path: str, forks: bool) -> None:
        self._agent = agent
        self._worker_name = worker_name
        self._python_path = python_path
        self._forks = forks
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._cluster = ClusterOfSlot("", b"")
        self._processes: dict[int, int] = {}  # slot -> process id
        self._slots: dict[int, int] = {}  # process id -> slot
        self._wakeup_read, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup_read, False)
        os.set_blocking(self._wakeup_write, False)
        self._process_id = os.getpid()

    def run(self) -> None:
        """Serve the agent until it has gone; then end all slots."""
        if self._forks:
            # Orphans of a slot come here, so that they can be ended too.
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        poll = select.poll()
        poll.register(self._agent, select.POLLIN)
        poll.register(self._wakeup_read, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if self._wakeup_read in ready:
                    os.read(self._wakeup_read, 4096)
                    if self._forks:
                        self._reap()
                    else:
                        self._reap_slots()
                if self._agent.fileno() in ready and not self._serve():
                    return
        finally:
            if os.getpid() == self._process_id:
                self._end_all()

    # ------------------------------------------------------------------ requests

    def _serve(self) -> bool:
        """Do what is asked; False if the agent has gone."""
        try:
            received = self._agent.receive()
        except EOFError:
            return False
        for (code, slot, *rest), descriptors in received:
            if code == slot_protocol.STARTER_CLUSTER:
                self._cluster = ClusterOfSlot(slot, *rest)
            elif code == slot_protocol.STARTER_START:
                self._start(slot, rest[0], rest[1], descriptors)
            elif slot in self._processes:
                self._signal(self._processes[slot], code == slot_protocol.STARTER_KILL)
        return True

    def _signal(self, process_id: int, kill: bool) -> None:
        # Not reaped yet (only this thread reaps), so the number is still that process's.
        if kill:
            _kill_group(process_id)
        else:
            os.kill(process_id, signal.SIGUSR1)

    def _start(self, slot: int, path_prefixes: list[str], threads: int, passed: list[int]) -> None:
        if self._forks:
            process_id = self._fork(SlotDescriptors.of_threads(passed, threads))
        else:
            try:
                process_id = self._spawn(path_prefixes)
            except OSError as error:
                sys.stderr.write(f"slot {slot} cannot be started: {error}\n")
                self._tell([slot_protocol.STARTER_EXITED, slot, 1, -1, 0])
                return
        self._processes[slot] = process_id
        self._slots[process_id] = slot
        self._tell([slot_protocol.STARTER_STARTED, slot, process_id])

    def _fork(self, threads: list[SlotDescriptors]) -> int:
        process_id = os.fork()
        if process_id == 0:
            be_slot(threads, self._worker_name, self._cluster, self._leave_starter)
        with contextlib.suppress(OSError):  # the child does the same; whoever comes first
            os.setpgid(process_id, process_id)
        for descriptor in SlotDescriptors.all_opened(threads):
            os.close(descriptor)
        return process_id

    def _spawn(self, path_prefixes: list[str]) -> int:
        opened: list[int] = []
        try:
            for prefix in path_prefixes:
                opened += slot_ends.open_named(prefix, with_output=not opened)
            threads = SlotDescriptors.of_threads(opened, len(path_prefixes))
            for descriptor in opened:
                os.set_inheritable(descriptor, True)
            # From the first moment on: what an interpreter that cannot start says is what the slot has last written.
            outputs = [(os.POSIX_SPAWN_DUP2, threads[0].output, number) for number in (1, 2)]
            command = command_of_slot(threads, self._worker_name, self._python_path)
            environment = environment_of_slot(self._cluster)
            return os.posix_spawn(command[0], command, environment, file_actions=outputs, setpgroup=0)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _leave_starter(self) -> None:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._process_id:
            os._exit(0)  # the starter died before it could be watched
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._agent.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)

    # ------------------------------------------------------------------ ends

    def _reap(self) -> None:
        """Take note of every child that has ended, and end what it left in its process group."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            process_id = ended.si_pid
            if process_id in self._slots:
                _kill_group(process_id)  # before it is reaped, while nobody else can have the number
            _, status, usage = os.wait4(process_id, 0)
            if process_id in self._slots:  # else it is an orphan that was handed to this process
                self._slot_ended(process_id, status, usage)

    def _reap_slots(self) -> None:
        """The same without `waitid`, which alone tells who has ended and does not reap it; there are only slots."""
        for process_id in list(self._slots):
            ended, status, usage = os.wait4(process_id, os.WNOHANG)
            if ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process_id, signal.SIGKILL)  # its number stays a group's while somebody is in the group
                self._slot_ended(process_id, status, usage)

    def _slot_ended(self, process_id: int, status: int, usage: resource.struct_rusage) -> None:
        slot = self._slots.pop(process_id)
        del self._processes[slot]
        signaled = os.WIFSIGNALED(status)
        self._tell(
            [
                slot_protocol.STARTER_EXITED,
                slot,
                -1 if signaled else os.WEXITSTATUS(status),
                os.WTERMSIG(status) if signaled else -1,
                usage.ru_maxrss * (1 if sys.platform == "darwin" else _KIBIBYTE),
            ]
        )

    def _tell(self, message: list[Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the agent has gone, which the next read says as well
            self._agent.send(message)

    def _end_all(self) -> None:
        """End all slots and all that they started."""
        for process_id in self._slots:
            _kill_group(process_id)
        while True:
            for process_id in _children():
                if process_id not in self._slots:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process_id, signal.SIGKILL)
            try:
                process_id, _ = os.wait()
            except ChildProcessError:
                return
            self._slots.pop(process_id, None)


def _children() -> list[int]:
    """Every child process, also those that were handed to this one when their parent ended."""
    try:
        return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:  # a kernel without that file
        return []


def _kill_group(process_id: int) -> None:
    try:
        os.killpg(process_id, signal.SIGKILL)
    except ProcessLookupError:
        # It has not made its group yet, or the group's last process has ended.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def _ignore(number: int, frame: object) -> None:
    """A handler, so that the wake-up descriptor is written to."""


def main() -> None:
    """Entry of `python -m cluster.daemon.starter`; the agent starts it (`StarterOptions.command`).

    The last argument is the channel: a Unix socket, or two pipes, to read from and to write to. argparse is not loaded
    for that: it would stay in every slot.
    """
    worker_name, python_path, *segment_directories, channel = sys.argv[1:]
    add_python_path(python_path)
    descriptors = list(map(int, channel.split(",")))
    forks = len(descriptors) == 1
    agent = PacketChannel(socket.socket(fileno=descriptors[0])) if forks else PipeChannel(*descriptors)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    # What exists by now is never collected, and so its pages are not written to by the collector in every slot.
    gc.collect()
    gc.freeze()
    Starter(agent, worker_name, python_path, forks).run()
    for directory in segment_directories:  # and what clients in the slots had beside it
        sweep(Path(directory).parents[1])


if __name__ == "__main__":
    main()
