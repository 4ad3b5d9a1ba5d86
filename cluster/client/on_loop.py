"""Carrying a client's operations out on an asyncio event loop.

Whoever awaits is a coroutine on the loop, and the loop itself reads the socket for it: no thread is woken on the way.
While something is awaited, and 20 ms longer, the loop holds the leadership (`driver.py`).

Thousands may be awaited at once, so waits for one number lie in a dictionary and are woken through a watch; only the
few others (answers, sets of numbers) are asked one by one whether they are ready.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cluster.client.driver import ENDLESS_SECONDS, Driver
from cluster.client.operations import Aside, Operation, Until, carry_out, value_of
from cluster.errors import ClusterError

__all__ = ["OnLoop", "aside", "check_loop"]

LINGER_SECONDS = 0.020
"""So long the loop goes on leading when nothing is awaited: a loop of round trips never ceases to."""
TURN_SECONDS = 0.0002
"""Who waits sooner after a send than this is probably one of many in the same turn of the loop."""

T = TypeVar("T")


class _Awaited:
    __slots__ = ("future", "ready")

    def __init__(self, ready: Callable[[], bool], future: asyncio.Future[bool]) -> None:
        self.ready = ready
        self.future = future


class OnLoop:
    """One client's place on the running event loop; make it there."""

    def __init__(self, driver: Driver, abandon: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.leads = False
        self.abandon = abandon
        """Closes the client; called in the background thread when the loop was closed without that."""
        self._driver = driver
        self._session = driver.session
        self._watch = self._session.watch(set())
        self._numbered: dict[int, list[_Awaited]] = {}
        self._others: list[_Awaited] = []
        self._waiting = 0
        self._flush_planned = False
        self._rest_timer: asyncio.TimerHandle | None = None
        self._writes = False
        self._stopped = False
        driver.loop = self

    # ------------------------------------------------------------------ for the client

    async def carry_out(self, operation: Operation[T]) -> T:
        """Carry an operation out; raises what it raises."""
        return value_of(await carry_out(operation, self._wait_until, _call_aside))

    def stop(self) -> None:
        """Leave the socket alone from now on: it is going to be closed."""
        self._stopped = True
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        self._rest()
        if self._writes:
            self._writes = False
            self.loop.remove_writer(self._driver.connection.fileno())

    async def _wait_until(self, step: Until) -> bool:
        ready, deadline, number = step
        check_loop(self.loop)
        self._flush()
        driver = self._driver
        with driver.lock:
            if self._session.lost is not None or ready():
                return True
            awaited = _Awaited(ready, self.loop.create_future())
            self._enter(awaited, number)
        timer = None
        if deadline is not None:
            remaining = min(max(0.0, deadline - time.monotonic()), ENDLESS_SECONDS)
            timer = self.loop.call_later(remaining, _resolve, awaited.future, False)
        try:
            self._lead()
            return await awaited.future
        finally:
            if timer is not None:
                timer.cancel()
            with driver.lock:
                self._leave(awaited, number)
            if not self._waiting and self.leads and self._rest_timer is None and not self.loop.is_closed():
                self._rest_timer = self.loop.call_later(LINGER_SECONDS, self._rest_unless_awaited)

    def _enter(self, awaited: _Awaited, number: int) -> None:
        if number < 0:
            self._others.append(awaited)
        else:
            same = self._numbered.get(number)
            if same is None:
                self._numbered[number] = [awaited]
                self._session.watch_more(self._watch, number)
            else:
                same.append(awaited)
        self._waiting += 1
        self._driver.count_waiting()

    def _leave(self, awaited: _Awaited, number: int) -> None:
        if number < 0:
            if awaited in self._others:
                self._others.remove(awaited)
        else:
            same = self._numbered.get(number)
            if same is not None and awaited in same:
                same.remove(awaited)
                if not same:
                    del self._numbered[number]
                    self._watch.discard(number)
        self._waiting -= 1
        self._driver.count_waiting()

    def _flush(self) -> None:
        """Send; but where many coroutines submit and wait in one turn of the loop, what the first did not send leaves
        as one part at the end of the turn."""
        if self._flush_planned:
            return
        if time.monotonic() - self._session.sent_at >= TURN_SECONDS:
            self._driver.flush()
        elif self._session.has_unsent:
            self._flush_planned = True
            self.loop.call_soon(self._flush_others)

    def _flush_others(self) -> None:
        self._flush_planned = False
        self._driver.flush()

    # ------------------------------------------------------------------ reading and writing, on the loop

    def _lead(self) -> None:
        if not self.leads and self._waiting and not self._stopped and self._driver.lead_from_loop():
            self.leads = True
            self.loop.add_reader(self._driver.connection.fileno(), self._driver.receive)

    def _rest_unless_awaited(self) -> None:
        self._rest_timer = None
        if not self._waiting:
            self._rest()

    def _rest(self) -> None:
        if self.leads:
            self.leads = False
            self.loop.remove_reader(self._driver.connection.fileno())
            self._driver.stop_leading()

    def _write_when_writable(self) -> None:
        if not self._writes and not self._stopped:
            self._writes = True
            self.loop.add_writer(self._driver.connection.fileno(), self._write)

    def _write(self) -> None:
        self._driver.send()
        if self._driver.sent():
            self._writes = False
            self.loop.remove_writer(self._driver.connection.fileno())
            self._driver.note_room()

    # ------------------------------------------------------------------ for the driver, in any thread

    @property
    def ended(self) -> bool:
        """Whether the loop was closed."""
        return self.loop.is_closed()

    def waiting(self) -> int:
        """How many await something; called under the lock."""
        return self._waiting

    def wake_ready(self, lost: bool) -> None:
        """Wake what awaits and now has it; called under the lock."""
        woken: list[_Awaited] = []
        completed = self._watch.completed
        while completed:
            for number in completed.popleft():
                woken += self._numbered.pop(number, ())
        if self._others:
            ready = [awaited for awaited in self._others if lost or awaited.ready()]
            if ready:
                self._others = [awaited for awaited in self._others if awaited not in ready]
                woken += ready
        if woken:
            self._call(_resolve_all, woken)

    def may_lead(self) -> None:
        """Nobody leads now; called under the lock."""
        self._call(self._lead)

    def send_later(self) -> None:
        """The system does not take everything now."""
        self._call(self._write_when_writable)

    def call_back(self, function: Callable[[Any], object], argument: object) -> None:
        """Have the loop call a user's function."""
        self._call(self.loop.call_soon, function, argument)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call it on the loop: now, if this is its thread."""
        if threading.get_ident() == self.thread:
            function(*arguments)
            return
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            # Nobody is left to be told; the background thread will see that the loop has ended.


def _resolve(future: asyncio.Future[bool], outcome: bool) -> None:
    if not future.done():
        future.set_result(outcome)


def _resolve_all(woken: list[_Awaited]) -> None:
    for awaited in woken:
        _resolve(awaited.future, True)


def check_loop(own: asyncio.AbstractEventLoop) -> None:
    """Raise ClusterError unless that loop is the one that runs here."""
    if asyncio.get_running_loop() is not own:
        raise ClusterError(
            "this client belongs to another event loop, the one in which it was awaited first; make one in this loop"
        )


def _call_aside(step: Aside) -> Coroutine[Any, Any, Any]:
    return aside(step.function)


def aside(function: Callable[[], T]) -> Coroutine[Any, Any, T]:
    """Await what may block, in a thread."""
    return asyncio.to_thread(function)
