"""The starter: forks slots for an agent, tells it of their ends, and leaves nothing behind when the agent ends.

One process with one thread that runs no user code; it imports what slots need once, so that a slot is there after a
fork. Slots ask the kernel to die with it. It lives in a session of its own, where no Ctrl-C reaches it, and it is the
one that orphans of its slots are handed to. When the agent has gone, however it went, it ends all of them and removes
the agent's segments.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

import msgpack

from cluster.daemon import slot_protocol
from cluster.daemon.slot import SlotDescriptors, open_output, run_slot
from cluster.storage.segments import remove_if_dead

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
# If memory runs out, the kernel should end a slot and not the agent with everybody's values (-1000 … 1000).
_OOM_SCORE_ADJUSTMENT: Final = 500


class Starter:
    """The slots' processes of one agent."""

    def __init__(self, agent: socket.socket, worker_name: str) -> None:
        self._agent = agent
        self._worker_name = worker_name
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._processes: dict[int, int] = {}  # slot -> process id
        self._slots: dict[int, int] = {}  # process id -> slot
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._process_id = os.getpid()

    def run(self) -> None:
        """Serve the agent until it has gone; then end all slots."""
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
                    self._reap()
                if self._agent.fileno() in ready and not self._serve():
                    return
        finally:
            if os.getpid() == self._process_id:
                self._end_all()

    # ------------------------------------------------------------------ requests

    def _serve(self) -> bool:
        """Do one request; False if the agent has gone."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._agent, slot_protocol.PACKET_LIMIT_BYTES, 8)
        except ConnectionError:
            return False
        if not packet:
            return False
        code, slot = msgpack.unpackb(packet)
        if code == slot_protocol.STARTER_START:
            self._start(slot, SlotDescriptors(*descriptors))
        elif slot in self._processes:
            self._signal(self._processes[slot], code == slot_protocol.STARTER_KILL)
        return True

    def _signal(self, process_id: int, kill: bool) -> None:
        # Not reaped yet (only this thread reaps), so the number is still that process's.
        if kill:
            _kill_group(process_id)
        else:
            os.kill(process_id, signal.SIGUSR1)

    def _start(self, slot: int, descriptors: SlotDescriptors) -> None:
        process_id = os.fork()
        if process_id == 0:
            status = 1
            try:
                self._become_slot(descriptors)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        with contextlib.suppress(OSError):  # the child does the same; whoever comes first
            os.setpgid(process_id, process_id)
        for descriptor in descriptors:
            os.close(descriptor)
        self._processes[slot] = process_id
        self._slots[process_id] = slot
        self._tell([slot_protocol.STARTER_STARTED, slot, process_id])

    def _become_slot(self, descriptors: SlotDescriptors) -> None:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._process_id:
            return  # the starter died before it could be watched
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._agent.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJUSTMENT))
        os.dup2(descriptors.output, 1)
        os.dup2(descriptors.output, 2)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        sys.stdout, sys.stderr = open_output(1), open_output(2)
        run_slot(descriptors, self._worker_name)

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
            slot = self._slots.pop(process_id, None)
            if slot is not None:
                _kill_group(process_id)  # before it is reaped, while nobody else can have the number
            _, status, usage = os.wait4(process_id, 0)
            if slot is None:
                continue  # an orphan that was handed to this process
            del self._processes[slot]
            signaled = os.WIFSIGNALED(status)
            self._tell(
                [
                    slot_protocol.STARTER_EXITED,
                    slot,
                    -1 if signaled else os.WEXITSTATUS(status),
                    os.WTERMSIG(status) if signaled else -1,
                    usage.ru_maxrss * 1024,
                ]
            )

    def _tell(self, message: list[Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the agent has gone, which the next read says as well
            self._agent.send(msgpack.packb(message))

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
    """Entry of `python -m cluster.daemon.starter`; the agent starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--python-path", default="")
    parser.add_argument("--segments", action="append", default=[])
    options = parser.parse_args()
    sys.path[:0] = [entry for entry in options.python_path.split(os.pathsep) if entry]
    with socket.socket(fileno=options.socket) as agent:
        agent.set_inheritable(False)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        # What exists by now is never collected, and so its pages are not written to by the collector in every slot.
        gc.collect()
        gc.freeze()
        Starter(agent, options.name).run()
    for directory in options.segments:
        remove_if_dead(Path(directory))


if __name__ == "__main__":
    main()
