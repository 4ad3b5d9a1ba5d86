"""Leader and follower: whoever waits drives the socket; a background thread does when nobody waits.

Waking a thread costs more than a whole round trip through the scheduler should, so a caller that waits becomes the
*leader*: it polls and reads the socket itself, hands what came to the session, and wakes the others that now have what
they wait for. Further callers that wait meanwhile are *followers*; one of them takes over when the leader goes. The
background thread reads when there is no leader, and parks for 20 ms after each, so that a loop of round trips never
meets it. It also sends what was gathered and not sent, and calls the users' callbacks.

Locks, in the order in which they may be taken together:
    `_sending`      who holds it writes to the socket, in the order of `_unsent`
    `_reading`      who holds it reads from the socket, and hands over what came in that order
    `lock`          the session and everything here; held for microseconds, never while waiting, never for user code
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from cluster.client.interrupts import Guard, Shield
from cluster.errors import ClusterError, ConnectionLost
from cluster.session.machine import DropOffered, PushValue, Session
from cluster.transport.blocking import BlockingConnection
from cluster.wire import frames, messages

__all__ = ["Driver"]

PARKED_SECONDS = 0.020
LATE_FLUSH_SECONDS = 0.002
JOINED_WRITE_BYTES = 64 * 1024
ENDLESS_SECONDS = 1_000_000.0
"""Nobody waits so long, and the system's calls for waiting take little more."""

_log = logging.getLogger("cluster.client")


class _Waiter:
    __slots__ = ("done", "leads", "ready", "signal", "thread")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.ready = ready
        self.done = False
        self.leads = False
        self.thread = threading.get_ident()
        self.signal: SimpleQueue[None] = SimpleQueue()


class Driver:
    """Moves messages between one session and its connection."""

    def __init__(
        self,
        connection: BlockingConnection,
        session: Session,
        *,
        heartbeat_interval_seconds: float,
        push: Callable[[PushValue], None],
        forget: Callable[[Sequence[int]], None],
    ) -> None:
        self.lock = threading.RLock()
        self.session = session
        self.connection = connection
        self._push = push
        self._forget = forget
        self._heartbeat_interval_seconds = heartbeat_interval_seconds
        self._sending = threading.Lock()
        self._reading = threading.Lock()
        self._leading = threading.Lock()
        self._waiters: list[_Waiter] = []
        self._unsent: deque[bytes] = deque()
        self._forgotten: deque[Sequence[int]] = deque()
        self._callbacks: SimpleQueue[tuple[Callable[[Any], object], object]] = SimpleQueue()
        self._wake_leader = _Wake()
        self._wake_background = _Wake()
        self._leader_poll = select.poll()
        self._leader_poll.register(connection.fileno(), select.POLLIN)
        self._leader_poll.register(self._wake_leader.fileno(), select.POLLIN)
        self._led_at = float("-inf")
        self._lead_began_at = float("-inf")
        self._background_rests = False  # so long that what is gathered must wake it
        self._background_gave_way = False  # to a leader, for so long that its end must wake it
        self._background_reads = False
        self._gathered_before = 0
        self._closing = False
        self.on_change: Callable[[], None] = lambda: None
        """Called under the lock whenever messages were taken in."""
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

    def flush(self) -> None:
        """Send everything that was gathered; waits while the system's buffer is full."""
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
        while self._unsent:
            with self._sending:
                self._write()
        while self._forgotten:
            # Not under the lock: letting a large object go takes long, and may run a finalizer of the user's.
            self._forget(self._forgotten.popleft())

    def arm(self) -> None:
        """Something was gathered and not sent: see to it that it leaves soon."""
        if self._background_rests:
            with self.lock:
                self._background_rests = False
                self._wake_background.set()

    def _collect(self) -> None:
        session = self.session
        for message in session.take_messages(time.monotonic()):
            self._unsent.append(frames.encode(message))
        for effect in session.take_effects():
            if isinstance(effect, PushValue):
                self._push(effect)
            elif isinstance(effect, DropOffered):
                self._forgotten.append(effect.numbers)

    def _write(self) -> None:
        unsent = self._unsent
        while unsent:
            data = unsent.popleft()
            if len(data) < JOINED_WRITE_BYTES and unsent:
                parts, size = [data], len(data)
                while unsent and size < JOINED_WRITE_BYTES:
                    parts.append(unsent.popleft())
                    size += len(parts[-1])
                data = b"".join(parts)
            if self.session.lost is None:
                try:
                    self.connection.send_bytes(data)
                except ClusterError as error:
                    self.lose(str(error))
                except BaseException:
                    self.lose("the client was interrupted in the middle of a message")
                    raise

    # ------------------------------------------------------------------ receiving

    def _receive(self) -> None:
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
        if self._unsent or self._forgotten:
            self._send()

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

    def lose(self, reason: str) -> None:
        """The connection has ended; everybody who waits is told."""
        with self.lock:
            if self.session.lost is None:
                self.session.lose(reason)
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
                waiter = _Waiter(ready)
                self._waiters.append(waiter)
                self.session.waiting = len(self._waiters)
            try:
                deadline = None if timeout is None or timeout > ENDLESS_SECONDS else time.monotonic() + timeout
                return self._wait(waiter, deadline, shield)
            finally:
                with self.lock:
                    self._waiters.remove(waiter)
                    self.session.waiting = len(self._waiters)

    def _wait(self, waiter: _Waiter, deadline: float | None, shield: Shield) -> bool:
        while not waiter.done:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            if self._leading.acquire(blocking=False):
                try:
                    self._lead(waiter, deadline, shield)
                finally:
                    self._stop_leading(waiter)
            else:
                try:
                    shield.pause(waiter.signal.get, True, remaining)
                except Empty:
                    return waiter.done
        return True

    def _lead(self, waiter: _Waiter, deadline: float | None, shield: Shield) -> None:
        waiter.leads = True
        self._lead_began_at = time.monotonic()
        if self._background_reads:
            self._wake_background.set()
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
                    self._receive()

    def _stop_leading(self, waiter: _Waiter) -> None:
        waiter.leads = False
        self._led_at = time.monotonic()
        self._leading.release()
        with self.lock:
            for other in self._waiters:
                if other is not waiter and not other.done:
                    other.signal.put(None)  # it tries to lead
                    return
        if self._background_gave_way:
            self._wake_background.set()

    # ------------------------------------------------------------------ the background thread

    def call_back(self, function: Callable[[Any], object], argument: object) -> None:
        """Have the background thread call a user's function."""
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
                    self._receive()
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
        return PARKED_SECONDS if briefly else self._heartbeat_interval_seconds

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
                self._unsent.append(frames.encode(messages.Heartbeat()))
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
            self.connection.close()

    def forget_after_fork(self) -> None:
        """This process is a fork: the connection belongs to the parent, and the other threads are gone."""
        self.lock = threading.RLock()
        self._sending, self._reading, self._leading = threading.Lock(), threading.Lock(), threading.Lock()
        self._waiters = []
        self._closing = True
        self.session.lost = "this process was forked from the one that made the client; make a Client of its own here"


class _Wake:
    """Wakes one thread out of a poll."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """What to poll."""
        return self._reader

    def set(self) -> None:
        """Wake it; not lost if it does not sleep yet."""
        try:
            os.write(self._writer, b"\x00")
        except BlockingIOError:
            return  # full, so it will wake

    def clear(self) -> None:
        """Called by the woken thread."""
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            return  # somebody else was faster

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for driver in _drivers:
        driver.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
