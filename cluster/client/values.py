"""Values between this client and the agents: fetched by whoever needs them, pushed by threads of their own.

A fetch asks each agent for all that is wanted from it, and reads from all of them at once; connections are kept. An
agent on this host only says in which segment a large value lies, and it is mapped here. A push is written straight from
the object: one thread for each agent, so that a slow one holds up nobody else. Where an agent cannot be reached its
connections pass through the scheduler (`relay.py`); otherwise no value does.
"""

from __future__ import annotations

import logging
import mmap
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from cluster.client.own_segments import LOOK_SECONDS, OfferedBytes, OwnSegments
from cluster.client.relay import relay_to
from cluster.daemon.same_host import AgentHost, introduce, open_value, prove_own
from cluster.errors import (
    AddressError,
    ClusterError,
    ConnectionLost,
    HandshakeFailed,
    ProtocolError,
    StoreFull,
    ValueLost,
    VersionMismatch,
)
from cluster.session.machine import PushValue
from cluster.transport.blocking import BlockingConnection
from cluster.wire import frames, messages
from cluster.wire.arguments import ArgumentChanged
from cluster.wire.checksums import agree
from cluster.worker.values import SMALL_VALUE_BYTES

__all__ = ["AgentConnections", "Place", "Pusher"]

SILENCE_LIMIT_SECONDS = 30.0
"""An agent from which nothing comes for so long during a transfer is given up."""
VALUES_A_REQUEST = 4096
INLINE_PUT_BYTES = 1 << 20
ASKED_PUT_BYTES = 16 << 20
"""Before more is sent the agent is asked whether it has room; less costs hardly more than the question."""
IDLE_CONNECTIONS = 4

Buffer = bytes | memoryview

_log = logging.getLogger("cluster.client")

_ANSWERS = messages.Value, messages.ValueStream, messages.ValueMissing, messages.ValueSegment


class Place(NamedTuple):
    """Where a value lies, as Located says it."""

    number: int
    row: int
    attempt: int
    nbytes: int
    addresses: tuple[str, ...]


class AgentConnections:
    """Connections to agents, each used by one thread at a time, and kept for the next."""

    def __init__(self, secret: bytes, scheduler_address: str = "", shares_host: bool = True) -> None:
        self._secret = secret
        self._scheduler_address = scheduler_address
        self._shares_host = shares_host
        self._relayed: set[str] = set()  # addresses of workers that only the scheduler reaches
        self._lock = threading.Lock()
        self._idle: dict[str, list[BlockingConnection]] = {}
        self._closed = False

    def take(self, address: str) -> BlockingConnection:
        """Give a connection to that agent."""
        with self._lock:
            idle = self._idle.get(address)
            if idle:
                return idle.pop()
        connection = self._connect(address)
        try:
            connection.context = introduce(connection) if self._shares_host else AgentHost(())
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, address: str) -> BlockingConnection:
        if address in self._relayed:
            return self._connect_through_scheduler(address)
        try:
            return BlockingConnection.connect(address, self._secret, "client", ("worker",))
        except VersionMismatch:
            raise
        except (ConnectionLost, HandshakeFailed, AddressError) as error:
            # Whoever else may listen there, in this client's network: it is not that worker.
            reason = error
        try:
            connection = self._connect_through_scheduler(address)
        except ConnectionLost as error:
            raise ConnectionLost(f"{reason}; nor is there a way through the scheduler: {error}") from reason
        if address not in self._relayed:
            self._relayed.add(address)
            _log.warning(
                "the worker at %s cannot be reached, so its values pass through the scheduler, which is slower: %s",
                address,
                reason,
            )
        return connection

    def _connect_through_scheduler(self, address: str) -> BlockingConnection:
        def through() -> socket.socket:
            return relay_to(address, self._scheduler_address, self._secret)

        return BlockingConnection.connect(address, self._secret, "client", ("worker",), through=through)

    def give_back(self, address: str, connection: BlockingConnection) -> None:
        """Keep a connection on which nothing is under way."""
        with self._lock:
            idle = self._idle.setdefault(address, [])
            if len(idle) < IDLE_CONNECTIONS and not self._closed:
                idle.append(connection)
                return
        connection.close()

    def fetch(self, places: Sequence[Place], deadline: float | None) -> dict[int, Buffer]:
        """Get values from the agents that hold them; see `fetch` below."""
        return fetch(self, places, deadline)

    def close(self) -> None:
        """Close those that nobody uses, and from now on each that is given back."""
        with self._lock:
            self._closed = True
            for idle in self._idle.values():
                for connection in idle:
                    connection.close()
            self._idle.clear()


# --------------------------------------------------------------------------- fetching


class _Answers:
    """What one agent was asked, and what has come of it."""

    def __init__(self, address: str, connection: BlockingConnection, places: Sequence[Place]) -> None:
        self.address = address
        self.connection = connection
        self.heard_at = time.monotonic()
        self.waiting: dict[tuple[int, int], list[int]] = {}
        for place in places:
            self.waiting.setdefault((place.row, place.attempt), []).append(place.number)
        self._target: memoryview | None = None
        self._filled = 0
        self._streamed: list[int] = []
        names = list(self.waiting)
        for start in range(0, len(names), VALUES_A_REQUEST):
            flat = [part for name in names[start : start + VALUES_A_REQUEST] for part in name]
            connection.send(messages.GetValues(start, flat))

    def receive(self, found: dict[int, Buffer]) -> None:
        """Take in what has come."""
        self.heard_at = time.monotonic()
        if self._target is not None:
            self._receive_raw(found)
            return
        for message in self.connection.receive():
            if isinstance(message, messages.Heartbeat):
                continue
            if not isinstance(message, _ANSWERS):
                raise ProtocolError(f"the agent at {self.address} answered with {type(message).__name__}")
            numbers = self.waiting.pop((message.row, message.attempt), [])
            if isinstance(message, messages.Value):
                if not agree(message.checksum, message.data):
                    raise ConnectionLost(f"a value came damaged from the agent at {self.address}")
                found.update(dict.fromkeys(numbers, message.data))
            elif isinstance(message, messages.ValueSegment):
                found.update(self._mapped(message, numbers))
            elif isinstance(message, messages.ValueStream):
                # Anonymous memory: it is not written with zeros first, as a bytearray is. And private, as all else is
                # that a process has: a fork of it must not see what is changed here.
                private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                self._target = memoryview(mmap.mmap(-1, message.nbytes, private))
                self._filled = 0
                self._streamed = numbers
                self._receive_raw(found)

    def _mapped(self, message: messages.ValueSegment, numbers: list[int]) -> dict[int, Buffer]:
        host: AgentHost = self.connection.context
        path = host.segment(message.directory, message.name)
        try:
            # Apart for each, since its owner may change what it holds; maps share the memory.
            return {number: open_value(path, message.nbytes) for number in numbers}
        except ValueLost:  # freed since the agent answered
            return {}

    def _receive_raw(self, found: dict[int, Buffer]) -> None:
        assert self._target is not None
        while count := self.connection.receive_raw(self._target[self._filled :]):
            self._filled += count
            if self._filled == len(self._target):
                found.update(dict.fromkeys(self._streamed, self._target))
                self._target = None
                return

    @property
    def complete(self) -> bool:
        """Whether everything asked for was answered."""
        return not self.waiting and self._target is None


def fetch(connections: AgentConnections, places: Sequence[Place], deadline: float | None) -> dict[int, Buffer]:
    """Get values from the agents that hold them; return the bytes of those that came, by number.

    What is missing in the answer could not be had now: its agent is gone, or has it no longer. Raises TimeoutError.
    """
    by_address: dict[str, list[Place]] = {}
    for place in places:
        if place.addresses:
            by_address.setdefault(place.addresses[place.number % len(place.addresses)], []).append(place)
    found: dict[int, Buffer] = {}
    asked: dict[int, _Answers] = {}
    poll = select.poll()
    try:
        for address, wanted in by_address.items():
            try:
                connection = connections.take(address)
            except ConnectionLost:
                continue
            try:
                answers = _Answers(address, connection, wanted)
            except ConnectionLost:
                connection.close()
                continue
            asked[connection.fileno()] = answers
            poll.register(connection.fileno(), select.POLLIN)
        while asked:
            _fetch_some(connections, poll, asked, found, deadline)
    finally:
        for answers in asked.values():
            answers.connection.close()
    return found


def _fetch_some(
    connections: AgentConnections,
    poll: select.poll,
    asked: dict[int, _Answers],
    found: dict[int, Buffer],
    deadline: float | None,
) -> None:
    now = time.monotonic()
    if deadline is not None and now >= deadline:
        raise TimeoutError(f"{sum(len(answers.waiting) for answers in asked.values())} values had not come in time")
    timeout = SILENCE_LIMIT_SECONDS if deadline is None else min(SILENCE_LIMIT_SECONDS, deadline - now)
    ready = {descriptor for descriptor, _ in poll.poll(timeout * 1000)}
    now = time.monotonic()
    for descriptor in list(asked):
        answers = asked[descriptor]
        ended = False
        if descriptor in ready:
            try:
                answers.receive(found)
            except ConnectionLost:
                ended = True
        elif now - answers.heard_at >= SILENCE_LIMIT_SECONDS:
            ended = True
        if ended:
            poll.unregister(descriptor)
            asked.pop(descriptor).connection.close()
        elif answers.complete:
            poll.unregister(descriptor)
            del asked[descriptor]
            connections.give_back(answers.address, answers.connection)


# --------------------------------------------------------------------------- pushing


class Pusher:
    """Carries out push orders. `encode(number)` gives the value's bytes, or None if it is held no longer.

    `pushed` is told how each ended, `refused` of those that never will be carried out. Agents of this host take large
    values over from `segments`.
    """

    def __init__(
        self,
        connections: AgentConnections,
        segments: OwnSegments,
        encode: Callable[[int], OfferedBytes | None],
        pushed: Callable[[int, str, str, bool], None],
        refused: Callable[[int, str, str, str], None],
    ) -> None:
        self._connections = connections
        self._segments = segments
        self._encode = encode
        self._pushed = pushed
        self._refused = refused
        self._queues: dict[str, SimpleQueue[PushValue | None]] = {}

    def push(self, order: PushValue) -> None:
        """Take an order; returns at once."""
        queue = self._queues.get(order.address)
        if queue is None:
            queue = self._queues[order.address] = SimpleQueue()
            threading.Thread(
                target=self._serve, args=(order.address, queue), name=f"cluster-push-{order.address}", daemon=True
            ).start()
        queue.put(order)

    def close(self) -> None:
        """Let the threads end."""
        for queue in self._queues.values():
            queue.put(None)

    def _serve(self, address: str, queue: SimpleQueue[PushValue | None]) -> None:
        while (order := self._next(queue)) is not None:
            full = False
            try:
                error, full = self._put(address, order)
            except ArgumentChanged as changed:
                self._refused(order.number, address, str(changed), changed.remedy)
                continue
            except ClusterError as failure:
                error = str(failure)
            except Exception as failure:  # an object's own pickling code may raise anything
                error = f"{type(failure).__name__}: {failure}"
            self._pushed(order.number, address, error, full)

    def _next(self, queue: SimpleQueue[PushValue | None]) -> PushValue | None:
        while True:
            try:
                return queue.get(timeout=LOOK_SECONDS if self._segments.keeps_any else None)
            except Empty:
                self._segments.look()

    def _put(self, address: str, order: PushValue) -> tuple[str, bool]:
        """What went wrong, and whether it is that the worker has no room now."""
        offered = self._encode(order.number)
        if offered is None:
            return "the client no longer holds this value", False
        connection = self._connections.take(address)
        try:
            answer = self._put_segment(connection, order, offered) or self._put_bytes(connection, order, offered)
        except ArgumentChanged:
            if not connection.closed:
                self._connections.give_back(address, connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._connections.give_back(address, connection)
        return answer.error, answer.full

    def _put_segment(
        self, connection: BlockingConnection, order: PushValue, offered: OfferedBytes
    ) -> messages.PutDone | None:
        """Have the agent take the value over in a segment; None if it cannot."""
        host: AgentHost = connection.context
        nbytes = offered.encoded.nbytes
        if nbytes <= SMALL_VALUE_BYTES or not host.is_ours:
            return None
        if host.takes is None:
            probe = self._segments.probe()
            host.takes = probe is not None and prove_own(connection, probe)
        if not host.takes:
            return None
        try:
            with self._segments.holding(order.number, offered) as name:
                connection.send(messages.PutSegment(order.row, order.attempt, nbytes, name))
                answer = connection.receive_one(messages.PutDone, SILENCE_LIMIT_SECONDS)
        except StoreFull:
            return None
        return None if answer.error else answer

    def _put_bytes(self, connection: BlockingConnection, order: PushValue, offered: OfferedBytes) -> messages.PutDone:
        nbytes = offered.encoded.nbytes
        if nbytes <= INLINE_PUT_BYTES:
            data = offered.checked().to_bytes()
            connection.send(messages.PutValue(order.row, order.attempt, nbytes, data))
            return connection.receive_one(messages.PutDone, SILENCE_LIMIT_SECONDS)
        if nbytes > ASKED_PUT_BYTES:
            connection.send(messages.PutRequest(order.row, order.attempt, nbytes))
            answer = connection.receive_one((messages.PutReady, messages.PutDone), SILENCE_LIMIT_SECONDS)
            if isinstance(answer, messages.PutDone):
                return answer
        try:
            encoded = offered.checked()
        except ArgumentChanged:
            connection.close()  # the agent may wait for it there
            raise
        frame = frames.encode(messages.PutValue(order.row, order.attempt, nbytes, b""))
        connection.send_bytes(frame, *encoded.parts)
        return connection.receive_one(messages.PutDone, SILENCE_LIMIT_SECONDS)
