"""Large values from other agents: a few threads, each reading one value at a time, straight into its segment.

Not on the loop, since a thread that reads, counts the checksum and writes spends its time in calls during which other
threads run; a megabyte goes through a buffer that stays in the processor's cache, and no page of a new segment has to
be mapped. Small values keep a connection of their own, so none of them ever waits behind a large one.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from cluster.daemon.agent_store import Store
from cluster.daemon.same_host import AgentHost, introduce
from cluster.errors import ClusterError, ConnectionLost, ProtocolError
from cluster.storage.openings import open_segment
from cluster.transport.blocking import BlockingConnection
from cluster.wire import frames, messages
from cluster.wire.checksums import NO_CHECKSUM, Checksum
from cluster.worker.events import Event, ValueFetched, ValueNotFetched
from cluster.worker.incoming import IncomingSegments
from cluster.worker.pieces import IncomingValue

__all__ = ["Transfers"]

# An agent that owes something and sends nothing for so long is given up, since somebody else may have the value. The
# time begins anew with every byte, so a slow way is never given up.
SILENCE_SECONDS: Final = 15.0
_AT_ONCE: Final = 16
_AT_ONCE_FROM_ONE: Final = 2
_BUFFER_BYTES: Final = 1024 * 1024
_IDLE_SECONDS: Final = 30.0


class _Outcome(NamedTuple):
    """How the work of a thread ended: `kind` is empty when all has come, else as in `ValueNotFetched`."""

    kind: str
    reason: str


class _Damaged(ClusterError):
    """A piece has another checksum than was said."""


class _NotFromThere(ClusterError):
    """The agent does not hold the value, or has sent nothing for long; others are asked before it is tried again."""


class _Transfer:
    """One value: what has come of it, where that lies, and who is asked."""

    def __init__(self, address: str, row: int, attempt: int, nbytes: int) -> None:
        self.address = address
        self.incoming = IncomingValue(row, attempt, nbytes)
        self.path = ""
        self.asked = 0  # the number under which a segment was asked for
        self.is_link = False
        self.given_up = False
        self.connection: BlockingConnection | None = None
        self.lock = threading.Lock()  # over the two above

    def give_up(self) -> None:
        """Wake the thread that works for it: its connection ends."""
        with self.lock:
            self.given_up = True
            if self.connection is not None:
                self.connection.shutdown()

    def use(self, connection: BlockingConnection | None) -> None:
        """Note the connection that is waited at."""
        with self.lock:
            self.connection = connection
            if self.given_up and connection is not None:
                raise ConnectionLost("nobody needs the value any more")


class Transfers:
    """All large values on their way here. With `links`, those that an agent of this host has come as links to its
    segments."""

    def __init__(
        self,
        secret: bytes,
        store: Store,
        segments: IncomingSegments,
        feed: Callable[[Event], None],
        *,
        links: bool = False,
    ) -> None:
        self._store = store
        self._segments = segments
        self._feed = feed
        self._links = links
        self._connections = _Connections(secret)
        self._under_way: dict[tuple[int, int], _Transfer] = {}
        self._kept: dict[tuple[int, int], _Transfer] = {}  # broke off; what has come is kept for the next holder
        self._waiting: dict[str, deque[_Transfer]] = {}
        self._running: dict[str, int] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def fetch(self, address: str, row: int, attempt: int, nbytes: int) -> None:
        """Get a value from that agent, or the rest of one; ValueFetched or ValueNotFetched follows."""
        name = (row, attempt)
        transfer = self._kept.pop(name, None)
        if transfer is not None:
            transfer.address = address
            self._under_way[name] = transfer
            self._enqueue(transfer)
            return
        transfer = self._under_way[name] = _Transfer(address, row, attempt, nbytes)
        if self._links:
            self._enqueue(transfer)
        else:
            self._ask_room(transfer)

    def _found(self, transfer: _Transfer, source: str) -> None:
        """An agent on this host has the value in that segment, which needs no copy; or it has to come, without one."""
        if source and not transfer.given_up:
            transfer.path, _ = self._store.take_over(source, transfer.incoming.nbytes)
            transfer.is_link = bool(transfer.path)
        if transfer.path or transfer.given_up:
            self._ended(transfer, _Outcome("", ""))
        else:
            self._ask_room(transfer)

    def _ask_room(self, transfer: _Transfer) -> None:
        def answered(path: str, reason: str) -> None:
            transfer.path = path
            if self._closed:
                return  # the store's directory goes with all that is in it
            if path:
                self._enqueue(transfer)
            else:
                self._ended(transfer, _Outcome("full", reason))

        incoming = transfer.incoming
        transfer.asked = self._segments.ask(-1, incoming.row, incoming.attempt, incoming.nbytes, answered)

    def give_up(self, row: int, attempt: int) -> None:
        """End a transfer, and forget what has come of it."""
        transfer = self._kept.pop((row, attempt), None)
        if transfer is not None:
            self._segments.give_back(transfer.path)
            return
        transfer = self._under_way.get((row, attempt))
        if transfer is None:
            return
        transfer.give_up()
        if transfer.asked and not transfer.path:
            self._segments.withdraw(transfer.asked)
            self._ended(transfer, _Outcome("lost", ""))
            return
        waiting = self._waiting.get(transfer.address)
        if waiting and transfer in waiting:
            waiting.remove(transfer)
            self._ended(transfer, _Outcome("lost", ""))

    def close_idle(self) -> None:
        """Close connections that nobody has needed for a while; called now and then."""
        self._connections.close_idle(time.monotonic() - _IDLE_SECONDS)

    def close(self) -> None:
        """Give up everything under way. The threads notice soon."""
        self._closed = True
        self._waiting.clear()
        for transfer in self._under_way.values():
            transfer.give_up()
        self._connections.close()

    def join(self) -> None:
        """Wait, after `close`, until the threads have ended."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------------ who has a thread

    def _enqueue(self, transfer: _Transfer) -> None:
        self._waiting.setdefault(transfer.address, deque()).append(transfer)
        self._start_some()

    def _start_some(self) -> None:
        for address, waiting in list(self._waiting.items()):
            while waiting and self._running.get(address, 0) < _AT_ONCE_FROM_ONE:
                if sum(self._running.values()) >= _AT_ONCE:
                    return
                self._start(address, waiting.popleft())
            if not waiting:
                del self._waiting[address]

    def _start(self, address: str, transfer: _Transfer) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_AT_ONCE, "transfer")
        self._running[address] = self._running.get(address, 0) + 1
        loop = asyncio.get_running_loop()

        def done(future: asyncio.Future[Any]) -> None:
            self._running[address] -= 1
            if not self._running[address]:
                del self._running[address]
            if not self._closed:
                then(transfer, future.result())
                self._start_some()

        work, then = (_bring, self._ended) if transfer.path else (_find_on_this_host, self._found)
        loop.run_in_executor(self._threads, work, transfer, self._connections).add_done_callback(done)

    def _ended(self, transfer: _Transfer, outcome: _Outcome) -> None:
        incoming, address = transfer.incoming, transfer.address
        row, attempt = incoming.row, incoming.attempt
        if self._under_way.get((row, attempt)) is transfer:
            del self._under_way[row, attempt]
        if not outcome.kind and not transfer.given_up:
            self._feed(ValueFetched(address, row, attempt, incoming.nbytes, b"", transfer.path, transfer.is_link))
            return
        if transfer.path:
            if transfer.given_up or outcome.kind == "full":
                self._segments.give_back(transfer.path)
            else:
                self._kept[row, attempt] = transfer
        reason = "nobody needs it any more" if transfer.given_up else outcome.reason
        self._feed(ValueNotFetched(address, row, attempt, reason, outcome.kind or "lost"))


# --------------------------------------------------------------------------- in a thread


def _bring(transfer: _Transfer, connections: _Connections) -> _Outcome:
    """Get the rest of a value. A connection that breaks is made again, as long as that brings the value further."""
    try:
        segment = open_segment(transfer.path, os.O_WRONLY)
    except OSError as error:
        return _Outcome("full", f"{transfer.path} cannot be opened: {error.strerror}")
    failures = 0
    try:
        while True:
            before = transfer.incoming.arrived_bytes
            try:
                with connections.lent(transfer, fresh=failures > 0) as connection:
                    _receive_pieces(transfer.incoming, connection, segment)
                return _Outcome("", "")
            except _Damaged as error:
                return _Outcome("damaged", str(error))
            except (_NotFromThere, ProtocolError) as error:
                return _Outcome("lost", str(error))
            except ClusterError as error:
                failures = 1 if transfer.incoming.arrived_bytes > before else failures + 1
                if transfer.given_up or failures > 1:
                    return _Outcome("lost", str(error))
    except OSError as error:  # of writing: those of the connection are told as ConnectionLost
        return _Outcome("full", f"{transfer.path} cannot be written: {error.strerror}")
    finally:
        os.close(segment)


def _find_on_this_host(transfer: _Transfer, connections: _Connections) -> str:
    """The segment of an agent on this host that holds the value; nothing if there is none that can be linked.

    Whatever fails here fails again, and is told, when the value is asked for in the ordinary way.
    """
    try:
        with connections.lent(transfer) as connection:
            if connection.context is None:
                connection.context = introduce(connection)
            return _segment_at(connection, transfer.incoming) if connection.context.is_ours else ""
    except ClusterError:
        return ""


def _segment_at(connection: BlockingConnection, incoming: IncomingValue) -> str:
    name = incoming.row, incoming.attempt
    connection.send(messages.GetValues(0, list(name)))
    message, *more = _receive_messages(connection)
    if not more and message[1:3] == name:
        if isinstance(message, messages.ValueMissing):
            return ""
        if isinstance(message, messages.ValueSegment) and message.nbytes == incoming.nbytes:
            host: AgentHost = connection.context
            return host.segment(message.directory, message.name)
    raise ProtocolError(f"the agent at {connection.peer_address} answered what was not asked, or does not share it")


def _receive_pieces(incoming: IncomingValue, connection: BlockingConnection, segment: int) -> None:
    buffer = _buffer_of_thread()
    incoming.begin()
    came: deque[Any] = deque()
    while not incoming.complete:
        requests = incoming.requests()
        if requests:
            connection.send_bytes(b"".join(map(frames.encode, requests)))
        if not came:
            came += _receive_messages(connection)
        message = came.popleft()
        if isinstance(message, messages.ValueMissing) and (message.row, message.attempt) == (
            incoming.row,
            incoming.attempt,
        ):
            raise _NotFromThere("it does not hold the value")
        if not incoming.is_next(message):
            raise ProtocolError(f"the agent at {connection.peer_address} answered what was not asked")
        counted = _write_piece(connection, message, segment, buffer)
        if not incoming.came(message, counted):
            raise _Damaged(f"{message.nbytes} bytes from {message.offset} on have another checksum than was said")


def _receive_messages(connection: BlockingConnection) -> list[Any]:
    deadline = time.monotonic() + SILENCE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        found = [message for message in connection.receive(left) if not isinstance(message, messages.Heartbeat)]
        if found:
            return found
    raise _silent(connection)


def _write_piece(connection: BlockingConnection, piece: messages.ValuePiece, segment: int, buffer: memoryview) -> int:
    offset, left = piece.offset, piece.nbytes
    counted = Checksum()
    while left:
        count = connection.receive_raw(buffer[: min(left, len(buffer))], SILENCE_SECONDS)
        if not count:
            raise _silent(connection)
        if piece.checksum != NO_CHECKSUM:
            counted.update(buffer[:count])
        written = 0
        while written < count:
            written += os.pwrite(segment, buffer[written:count], offset + written)
        offset += count
        left -= count
    return int(counted.intdigest())


def _silent(connection: BlockingConnection) -> _NotFromThere:
    return _NotFromThere(f"the agent at {connection.peer_address} has sent nothing for {SILENCE_SECONDS:g} s")


_of_thread = threading.local()


def _buffer_of_thread() -> memoryview:
    buffer: memoryview | None = getattr(_of_thread, "buffer", None)
    if buffer is None:
        buffer = _of_thread.buffer = memoryview(bytearray(_BUFFER_BYTES))
    return buffer


class _Connections:
    """The connections for large values: kept for the next value from the same agent, and closed when that stays out."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._lock = threading.Lock()
        self._idle: dict[str, list[tuple[float, BlockingConnection]]] = {}

    @contextmanager
    def lent(self, transfer: _Transfer, *, fresh: bool = False) -> Iterator[BlockingConnection]:
        """One to the agent that is asked; a fresh one if those that are kept may be broken.

        It is kept if all went well; else what was asked for may still come on it.
        """
        connection = self._take(transfer.address, fresh)
        try:
            transfer.use(connection)
            yield connection
        except BaseException:
            transfer.use(None)
            connection.close()
            raise
        transfer.use(None)
        with self._lock:
            self._idle.setdefault(transfer.address, []).append((time.monotonic(), connection))

    def _take(self, address: str, fresh: bool) -> BlockingConnection:
        with self._lock:
            idle = self._idle.pop(address, []) if fresh else self._idle.get(address, [])
            if idle and not fresh:
                return idle.pop()[1]
        for _, connection in idle:
            connection.close()
        return BlockingConnection.connect(address, self._secret, "worker", ("worker",))

    def close_idle(self, before: float) -> None:
        """Close those that were given back before that time."""
        unused: list[BlockingConnection] = []
        with self._lock:
            for address, idle in list(self._idle.items()):
                unused += [connection for since, connection in idle if since < before]
                idle[:] = [entry for entry in idle if entry[0] >= before]
                if not idle:
                    del self._idle[address]
        for connection in unused:
            connection.close()

    def close(self) -> None:
        """Close all that are kept."""
        self.close_idle(float("inf"))
