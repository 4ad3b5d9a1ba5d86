"""`get_client` inside tasks: the client of a slot's process, and what it does instead of blocking the slot.

There is one a process, made when a task first asks for it and kept for all later ones. What a task submits through it
are the task's children (`cluster.scheduler.nesting_desk`). Whatever waits in it comes through `Driver.wait_until`; when
a task waits there, it gives its seat up and runs what the agent gives it inside itself (`cluster.daemon.slot_waiting`).
A thread of a task that waits just waits: others go on meanwhile.
"""

from __future__ import annotations

import select
import time
import weakref
from collections.abc import Callable
from functools import partial
from queue import Empty
from typing import Any

from cluster.client.client import Client
from cluster.client.driver import ENDLESS_SECONDS, Driver, Waiter
from cluster.client.future import Future
from cluster.client.interrupts import Shield
from cluster.daemon import in_slot
from cluster.session.in_slot import SessionInSlot
from cluster.wire.encoded import Reference

__all__ = ["SlotClient", "get_client"]


def get_client() -> Client:
    """The client to use here: in a task that of its process, elsewhere the open one that this process made last.

    What a task submits through it and does not return, keep (`fire_and_forget`) or share is cancelled when the task
    ends. A task that waits gives its slot up: its own children run in it first. Raises ClusterError if there is none.
    """
    return Client.current()


class DriverInSlot(Driver):
    """Moves messages for a slot's client; a task that waits in it gives its seat up."""

    _wait_in_slot: in_slot.Wait | None = None
    _readable: list[int]

    def __init__(self, around: in_slot.Surroundings, *arguments: Any, **keywords: Any) -> None:
        self.around = around
        super().__init__(*arguments, **keywords)

    def wait_until(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """As in a Driver; if a task asks, other tasks run inside it or in its place meanwhile."""
        if self.session.epoch is None or not self.around.may_wait():
            return super().wait_until(ready, timeout)
        self.flush()
        with self.lock:
            if self.session.lost is not None or ready():
                return True
        deadline = None if timeout is None or timeout > ENDLESS_SECONDS else time.monotonic() + timeout
        with self.around.wait() as wait:
            while True:
                remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                self._wait_in_slot, self._readable = wait, []
                try:
                    done = super().wait_until(ready, remaining)
                finally:
                    self._wait_in_slot = None
                if not self._readable:
                    return done
                wait.attend(self._readable)

    def _wait(self, waiter: Waiter, deadline: float | None, shield: Shield) -> bool:
        if self.around.runs_here():
            return super()._wait(waiter, deadline, shield)
        # Who leads must be able to run tasks, and threads are not: the background thread reads for them.
        while not waiter.done:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            try:
                shield.pause(waiter.signal.get, True, remaining)
            except Empty:
                return waiter.done
        return True

    def _lead(self, waiter: Waiter, deadline: float | None, shield: Shield) -> None:
        wait = self._wait_in_slot
        if wait is None:
            super()._lead(waiter, deadline, shield)
            return
        waiter.leads = True
        self._begin_leading()
        poll = select.poll()
        for descriptor in (self.connection.fileno(), self._wake_leader.fileno(), *wait.descriptors):
            poll.register(descriptor, select.POLLIN)
        while not waiter.done:
            timeout = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
            events = shield.pause(poll.poll, timeout)
            if not events:
                return
            readable = []
            for descriptor, _ in events:
                if descriptor == self._wake_leader.fileno():
                    self._wake_leader.clear()
                elif descriptor in wait.descriptors:
                    readable.append(descriptor)
                else:
                    self.receive()
            if readable and not waiter.done:
                self._readable = readable
                waiter.done = True


class SlotClient(Client):
    """The client of a slot's process."""

    _session_kind = SessionInSlot
    _session: SessionInSlot

    def __init__(self, around: in_slot.Surroundings) -> None:
        self._driver_kind = partial(DriverInSlot, around)
        self._bound: weakref.WeakValueDictionary[tuple[bytes, int], Future] = weakref.WeakValueDictionary()
        super().__init__(around.cluster, show_output=False)
        self._session.parent_of = around.task

    def bind(self, reference: Reference) -> Any:
        """A future that came inside a value."""
        future = self._bind_future(reference)
        self._bound[reference[:2]] = future
        return future

    def hand_over(self, task: tuple[int, int], contains: list[Any]) -> None:
        """Have these futures held until the scheduler knows the value in which they lie."""
        pairs = zip(contains[::2], contains[1::2], strict=True)
        numbers = sorted({self._number_of(pair) for pair in pairs} - {-1})
        with self._driver.guard():
            self._session.hand_over(*task, numbers)

    def _holding_task(self) -> tuple[int, int] | None:
        return self._session.parent_of()

    def _number_of(self, name: tuple[bytes, int]) -> int:
        future = self._bound.get(name)
        return future.number if future is not None else name[1] if name[0] == self.id else -1

    def settle(self, task: tuple[int, int]) -> None:
        """A task has ended: let what it dropped go, and see that the scheduler has got what it sent."""
        session = self._session
        if session.gathered or session.dropped or session.owes(task):
            self._driver.flush()
        if session.owes(task) and session.lost is None:
            notes = session.notes
            self._complete(self._ask("ping"))
            with self._driver.guard():
                session.settle(notes)

    def owes(self, task: tuple[int, int]) -> bool:
        """Whether `settle` has to ask the scheduler."""
        return self._session.owes(task)
