"""Leader and follower: whoever waits drives the socket; a background thread does when nobody waits.

Waking a thread costs more than a whole round trip through the scheduler should, so a caller that waits becomes the
*leader*: it polls and reads the socket itself, hands what came to the session, and wakes the others that now have what
they wait for. Further callers that wait meanwhile are *followers*; one of them takes over when the leader goes. The
background thread reads when there is no leader, and parks for 20 ms after each, so that a loop of round trips never
meets it. It also sends what was gathered and not sent, and calls the users' callbacks.

An asyncio event loop (`on_loop.py`) leads in the same way: while something is awaited it holds the leadership, and its
selector watches the socket. It never waits for a lock that is held for long, nor for the system to take bytes: what is
left leaves when the socket can be written. Should the loop be kept busy, the background thread reads in its place.

Locks, in the order in which they may be taken together:
    in `sending`   who holds it writes to the socket, in the order in which frames were appended
    `_reading`      who holds it reads from the socket, and hands over what came in that order
    `lock`          the session and everything here; held for microseconds, never while waiting, never for user code
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from cluster.client.interrupts import Guard, Shield
from cluster.client.sending import UNSENT_LIMIT_BYTES, Sending
from cluster.client.wake import Wake
from cluster.errors import ClusterError, ConnectionLost
from cluster.session.machine import DropOffered, PushValue, Session
from cluster.transport.blocking import BlockingConnection
from cluster.units import format_bytes
from cluster.wire import frames, messages

__all__ = ["Driver", "Loop", "Waiter"]

PARKED_SECONDS = 0.020
LATE_FLUSH_SECONDS = 0.002
LOOP_LOOKED_AFTER_SECONDS = 0.1
"""How often the background thread sees whether an event loop that leads has left something unread, or has ended."""
LEAVING_SECONDS = 1.0
"""So long a leader may take to leave when the client is closed, before that goes on without."""
ENDLESS_SECONDS = 1_000_000.0
"""Nobody waits so long, and the system's calls for waiting take little more."""

_log = logging.getLogger("cluster.client")


class Waiter:
    """A thread that waits, and for what."""

    __slots__ = ("done", "leads", "ready", "signal", "thread")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.ready = ready
        self.done = False
        self.leads = False
        self.thread = threading.get_ident()
        self.signal: SimpleQueue[None] = SimpleQueue()


class Loop(Protocol):
    """What the driver needs to know of an event loop on which operations are awaited."""

    thread: int
    leads: bool

    @property
    def ended(self) -> bool:
        """Whether the loop was closed."""
        ...

    def wake_ready(self, lost: bool) -> None:
        """Wake what awaits and now has it; called under the lock."""
        ...

    def waiting(self) -> int:
        """How many await something; called under the lock."""
        ...

    def may_lead(self) -> None:
        """Nobody leads now; called under the lock."""
        ...

    def send_later(self) -> None:
        """The system does not take everything now."""
        ...

    def call_back(self, function: Callable[[Any], object], argument: object) -> None:
        """Have the loop call a user's function."""
        ...

    def abandon(self) -> None:
        """Close the client of a loop that has ended."""
        ...


class Driver:
    """Moves messages between one session and its connection."""

    def __init__(
        self,
        connection: BlockingConnection,
        session: Session,
        *,
        heartbeat_interval_seconds: float,
        push: Callable[[PushValue], None],
        unneeded: Callable[[Sequence[int]], None],
        forget: Callable[[Sequence[int]], None],
    ) -> None:
        """`push` carries an order out, `unneeded` is told of offered values that nobody needs, both at once and in the
        order in which that was said; `forget` is told of the same values when it may take its time."""
        self.lock = threading.RLock()
        self.session = session
        self.connection = connection
        self._push = push
        self._unneeded = unneeded
        self._forget = forget
        self._heartbeat_interval_seconds = heartbeat_interval_seconds
        self.sending = Sending(connection, self.lose)
        self._reading = threading.Lock()
        self._leading = threading.Lock()
        self._waiters: list[Waiter] = []
        self._forgotten: deque[Sequence[int]] = deque()
        self._callbacks: SimpleQueue[tuple[Callable[[Any], object], object]] = SimpleQueue()
        self._wake_leader = Wake()
        self._wake_background = Wake()
        self._leader_poll = select.poll()
        self._leader_poll.register(connection.fileno(), select.POLLIN)
        self._leader_poll.register(self._wake_leader.fileno(), select.POLLIN)
        self._led_at = -math.inf
        self._lead_began_at = float("-inf")
        self._background_rests = False  # so long that what is gathered must wake it
        self._background_gave_way = False  # to a leader, for so long that its end must wake it
        self._background_reads = False
        self._gathered_before = 0
        self._closing = False
        self.loop: Loop | None = None
        """The event loop of a client with the asyncio face."""
        self.on_change: Callable[[], None] = lambda: None
        """Called under the lock whenever messages were taken in."""
        self.on_output: Callable[[], None] = self.session.output.clear
        """Called without a lock when `session.output` has something, by the thread that received it."""
        self._thread = threading.Thread(target=self._background, name="cluster-client", daemon=True)
        _drivers.add(self)
        self._thread.start()

    def guard(self) -> Guard:
        """What to be in while the session is changed: it holds the lock, and Ctrl-C back."""
        return Guard(self.lock)

    # ------------------------------------------------------------------ sending

    def check(self) -> None:
        """Raise ConnectionLost if the connection has ended."""
        if self.session.lost is not None:
            raise ConnectionLost(self.session.lost)

    def check_room(self) -> None:
        """Raise ClusterError if more waits to be sent than should; on an event loop only, elsewhere callers wait."""
        if self.sending.overfull:
            raise ClusterError(
                f"over {format_bytes(UNSENT_LIMIT_BYTES)} wait to be sent, and the scheduler does not take them now; "
                "`await client.drain()` between large submits, or submit in a thread (`asyncio.to_thread`)"
            )

    def on_loop(self) -> bool:
        """Whether this is the thread of the client's event loop, which must not be kept waiting."""
        return self.loop is not None and self.loop.thread == threading.get_ident()

    def flush(self) -> None:
        """Send everything that was gathered; waits while the system's buffer is full, except on an event loop."""
        with Shield():
            self._flush()

    def send(self) -> None:
        """Send the messages that the session has made, in order."""
        with Shield():
            self._send()

    def _flush(self) -> None:
        with self.lock:
            self.session.flush()
        self._send()

    def _send(self) -> None:
        with self.lock:
            self._collect()
        on_loop = self.loop is not None and self.on_loop()
        if on_loop or (self.loop is not None and threading.current_thread() is self._thread):
            self._send_without_waiting()
        else:
            self._send_all()
        if on_loop and self._forgotten:
            self._wake_background.set()
            return
        while self._forgotten:
            # Not under the lock: letting a large object go takes long, and may run a finalizer of the user's.
            self._forget(self._forgotten.popleft())

    def _send_all(self) -> None:
        self.sending.write_all()
        if self.sending.overfull or self.loop is not None:
            self.note_room()

    def _send_without_waiting(self) -> None:
        loop = self.loop
        if not self.sending.write_some():
            if loop is not None:
                loop.send_later()
        elif self.sending.overfull:
            self.note_room()

    def sent(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self.sending

    def note_room(self) -> None:
        """What waited to be sent has left."""
        with self.lock:
            self.sending.overfull = False
            self.wake_ready()

    def arm(self) -> None:
        """Something was gathered and not sent: see to it that it leaves soon."""
        if self._background_rests:
            with self.lock:
                self._background_rests = False
                self._wake_background.set()

    def read_soon(self) -> None:
        """Orders are about to come while nobody waits for anything: the background thread does not rest now."""
        if self._led_at > -math.inf and not self._leading.locked():
            self._led_at = -math.inf
            self._wake_background.set()

    def _collect(self) -> None:
        session = self.session
        for message in session.take_messages(time.monotonic()):
            self.sending.append(frames.encode(message))
        for effect in session.take_effects():
            if isinstance(effect, PushValue):
                self._push(effect)
            elif isinstance(effect, DropOffered):
                self._unneeded(effect.numbers)
                self._forgotten.append(effect.numbers)

    # ------------------------------------------------------------------ receiving

    def receive(self) -> None:
        """Take in what has come, unless another thread is at it."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            found = self.connection.receive()
            if found:
                self._take_in(found)
        except ClusterError as error:
            self.lose(str(error))
        finally:
            self._reading.release()
        if self.sending or self._forgotten:
            self._send()
        if self.session.output:
            self.on_output()

    def _take_in(self, found: list[Any]) -> None:
        with self.lock:
            receive = self.session.receive
            for message in found:
                receive(message)
            self._collect()
            self.on_change()
            self.wake_ready()

    def wake_ready(self) -> None:
        """Wake the waiters that have what they wait for. Call it under the lock after a change."""
        lost = self.session.lost is not None
        for waiter in self._waiters:
            if not waiter.done and (lost or waiter.ready()):
                waiter.done = True
                waiter.signal.put(None)
                if waiter.leads and waiter.thread != threading.get_ident():
                    self._wake_leader.set()
        if self.loop is not None:
            self.loop.wake_ready(lost)

    def lose(self, reason: str) -> None:
        """The connection has ended; everybody who waits is told."""
        with self.lock:
            if self.session.lost is None:
                self.session.lose(reason)
                self.sending.lost = True
                self.connection.shutdown()
            self.on_change()
            self.wake_ready()
            self._wake_background.set()

    # ------------------------------------------------------------------ waiting

    def wait_until(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `ready()`, asked under the lock, is true, or the connection has ended; False after the timeout."""
        with Shield() as shield:
            self._flush()
            with self.lock:
                if self.session.lost is not None or ready():
                    return True
                waiter = Waiter(ready)
                self._waiters.append(waiter)
                self.count_waiting()
            try:
                deadline = None if timeout is None or timeout > ENDLESS_SECONDS else time.monotonic() + timeout
                return self._wait(waiter, deadline, shield)
            finally:
                with self.lock:
                    self._waiters.remove(waiter)
                    self.count_waiting()

    def count_waiting(self) -> None:
        """Tell the session how many wait; call it under the lock."""
        self.session.waiting = len(self._waiters) + (0 if self.loop is None else self.loop.waiting())

    def _wait(self, waiter: Waiter, deadline: float | None, shield: Shield) -> bool:
        while not waiter.done:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            if self.loop is not None and self.loop.leads and self.on_loop():
                # The loop waits for this very thread; what it has not sent yet is sent here.
                self._send_all()
                self._lead(waiter, deadline, shield)
            elif self._leading.acquire(blocking=False):
                try:
                    self._lead(waiter, deadline, shield)
                finally:
                    self.stop_leading(waiter)
            else:
                try:
                    shield.pause(waiter.signal.get, True, remaining)
                except Empty:
                    return waiter.done
        return True

    def lead_from_loop(self) -> bool:
        """Give the event loop the leadership, if nobody has it; it then calls `receive` when the socket is readable."""
        if not self._leading.acquire(blocking=False):
            return False
        self._begin_leading()
        return True

    def _begin_leading(self) -> None:
        self._lead_began_at = time.monotonic()
        if self._background_reads:
            self._wake_background.set()

    def _lead(self, waiter: Waiter, deadline: float | None, shield: Shield) -> None:
        waiter.leads = True
        self._begin_leading()
        poll = self._leader_poll.poll
        wake_descriptor = self._wake_leader.fileno()
        while not waiter.done:
            timeout = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
            events = shield.pause(poll, timeout)
            if not events:
                return
            for descriptor, _ in events:
                if descriptor == wake_descriptor:
                    self._wake_leader.clear()
                else:
                    self.receive()

    def stop_leading(self, waiter: Waiter | None = None) -> None:
        """Give the leadership up, to another that waits if there is one."""
        if waiter is not None:
            waiter.leads = False
        self._led_at = time.monotonic()
        self._leading.release()
        with self.lock:
            for other in self._waiters:
                if other is not waiter and not other.done:
                    other.signal.put(None)  # it tries to lead
                    return
            if waiter is not None and self.loop is not None and self.loop.waiting():
                self.loop.may_lead()
                return
        if self._background_gave_way:
            self._wake_background.set()

    # ------------------------------------------------------------------ the background thread

    def call_back(self, function: Callable[[Any], object], argument: object) -> None:
        """Have the background thread, or the client's event loop, call a user's function."""
        if self.loop is not None:
            self.loop.call_back(function, argument)
            return
        self._callbacks.put((function, argument))
        self._wake_background.set()

    def _background(self) -> None:
        reading = select.poll()
        reading.register(self.connection.fileno(), select.POLLIN)
        reading.register(self._wake_background.fileno(), select.POLLIN)
        parking = select.poll()
        parking.register(self._wake_background.fileno(), select.POLLIN)
        wake_descriptor = self._wake_background.fileno()
        while not self._closing:
            if self.loop is not None and self.loop.ended:
                self._let_go_of_loop()
                continue
            now = time.monotonic()
            led = self._leading.locked()
            parked = led or now - self._led_at < PARKED_SECONDS or self.session.lost is not None
            with self.lock:
                timeout = self._background_timeout(now, led, parked)
                self._background_reads = not parked
            for descriptor, _ in (parking if parked else reading).poll(timeout * 1000):
                if descriptor == wake_descriptor:
                    self._wake_background.clear()
                elif not self._leading.locked():
                    self.receive()
            if self.loop is not None and self.loop.leads and time.monotonic() - now >= LOOP_LOOKED_AFTER_SECONDS / 2:
                self._receive_for_loop(reading)
            self._background_rests = self._background_gave_way = self._background_reads = False
            self._run_callbacks()
            self._send_late()

    def _background_timeout(self, now: float, led: bool, parked: bool) -> float:
        """How long to rest at most; who has to end a longer rest is noted."""
        if self.session.gathered:
            return LATE_FLUSH_SECONDS
        self._background_rests = True
        self._background_gave_way = led and now - self._lead_began_at >= PARKED_SECONDS
        briefly = parked and not self._background_gave_way and self.session.lost is None
        if briefly:
            return PARKED_SECONDS
        led_by_loop = self.loop is not None and self.loop.leads
        return LOOP_LOOKED_AFTER_SECONDS if led_by_loop else self._heartbeat_interval_seconds

    def _receive_for_loop(self, reading: select.poll) -> None:
        """What lies unread now, after a rest, lies there because the loop is kept busy by something else."""
        if any(descriptor == self.connection.fileno() for descriptor, _ in reading.poll(0)):
            self.receive()

    def _let_go_of_loop(self) -> None:
        """The event loop was closed with this client open: nobody can await anything of it any more."""
        loop = self.loop
        assert loop is not None
        with self.lock:
            self.loop = None
        if loop.leads:
            loop.leads = False
            self._leading.release()
        loop.abandon()
        self.connection.close()

    def _send_late(self) -> None:
        session = self.session
        if session.lost is not None:
            return
        with self.lock:
            now = time.monotonic()
            # A caller that goes on submitting sends by itself, and better: this is for the last ones.
            gathered, self._gathered_before = self._gathered_before, session.gathered
            if now - session.sent_at >= LATE_FLUSH_SECONDS and gathered == session.gathered:
                session.flush()
            if now - session.sent_at >= self._heartbeat_interval_seconds:
                self.sending.append(frames.encode(messages.Heartbeat()))
                session.sent_at = now
        self.send()

    def _run_callbacks(self) -> None:
        while True:
            try:
                function, argument = self._callbacks.get_nowait()
            except Empty:
                return
            try:
                function(argument)
            except Exception:
                _log.exception("a callback of a future raised")

    # ------------------------------------------------------------------ the end

    def close(self, reason: str) -> None:
        """Say goodbye, end the connection and the background thread."""
        if self.session.lost is None:
            with self.lock:
                self.session.leave()
            self.send()
        self.lose(reason)
        self._closing = True
        self._wake_background.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            # Who leads was woken, and leaves: what it polls must stay open until then.
            left = self._leading.acquire(timeout=LEAVING_SECONDS)
            self.connection.close()
            self._wake_background.close()
            if left:
                self._wake_leader.close()
                self._leading.release()

    def forget_after_fork(self) -> None:
        """This process is a fork: the connection belongs to the parent, and the other threads are gone."""
        self.lock = threading.RLock()
        self._reading, self._leading = threading.Lock(), threading.Lock()
        self.sending = Sending(self.connection, self.lose)
        self.sending.lost = True
        self._wake_leader.forget_after_fork()
        self._wake_background.forget_after_fork()
        self._waiters = []
        self.loop = None
        self._closing = True
        self.session.lost = "this process was forked from the one that made the client; make a Client of its own here"


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for driver in _drivers:
        driver.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
