"""Values between agents, and between agents and clients: serving those who ask, asking those who have."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections import deque
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

from cluster.daemon.agent_hosts import PeerHosts
from cluster.daemon.agent_pieces import OutgoingPiece, PieceChecksums
from cluster.daemon.agent_store import Store
from cluster.daemon.agent_transfers import Transfers
from cluster.errors import ClusterError
from cluster.storage.openings import open_segment
from cluster.transport.tcp import Connection, connect
from cluster.wire import messages
from cluster.wire.checksums import NO_CHECKSUM, agree, checksum
from cluster.worker.events import (
    Event,
    FetchFrom,
    FileGone,
    FromPeer,
    GiveUpFetch,
    NoteSent,
    PeerSent,
    ServePiece,
    ServeSegment,
    ToPeer,
    ValueFetched,
    ValueNotFetched,
    ValuePut,
)
from cluster.worker.incoming import IncomingSegments
from cluster.worker.pieces import IN_MESSAGE_BYTES, PIECES_AHEAD

__all__ = ["PeerLinks", "PeerServer"]

# Of so many pieces a peer may wait on one connection; it asks for PIECES_AHEAD.
_PIECES_WAITING: Final = 4 * PIECES_AHEAD

# Somebody else may have the value, so an agent that is silent while it owes one is not waited for without end.
_STALLED_SECONDS: Final = 15.0

Feed = Callable[[Event], None]
_Answer: TypeAlias = ToPeer | ServeSegment | OutgoingPiece | NoteSent


class _Push:
    """A value over 1 MiB that a peer pushes; a connection has one at a time, as its context."""

    __slots__ = ("asked", "name", "path")

    def __init__(self, name: tuple[int, int, int]) -> None:
        self.name = name  # row, attempt, size
        self.asked = 0  # the number under which a segment was asked for
        self.path = ""


class PeerServer:
    """The connections that came in: peers that ask for values or push some."""

    def __init__(self, store: Store, segments: IncomingSegments, feed: Feed, *, fast_paths: bool = True) -> None:
        self._fast_paths = fast_paths
        self._store = store
        self._segments = segments
        self._hosts = PeerHosts(store, fast_paths)
        self._feed = feed
        self._connections: dict[int, Connection] = {}
        self._numbers: dict[Connection, int] = {}
        self._held_back: dict[int, deque[_Answer]] = {}
        self._last_number = 0
        self._checksums = PieceChecksums()

    def connected(self, connection: Connection) -> None:
        """A peer has proved itself."""
        self._last_number += 1
        number = self._last_number
        self._connections[number] = connection
        self._numbers[connection] = number
        connection.on_writable = lambda: self._go_on(number)

    def closed(self, connection: Connection, reason: str) -> None:
        """A peer has gone."""
        push: _Push | None = connection.context
        if push is not None:
            self._segments.withdraw(push.asked)
            if push.path:
                self._segments.give_back(push.path)
        number = self._numbers.pop(connection)
        del self._connections[number]
        for waiting in self._held_back.pop(number, ()):
            if isinstance(waiting, OutgoingPiece):
                waiting.close()
            elif isinstance(waiting, NoteSent):
                self._feed(PeerSent(number, gone=True))
        self._hosts.closed(number)

    def close(self) -> None:
        """End what was begun for peers."""
        for connection in list(self._connections.values()):
            connection.abort("this worker ends")
        self._checksums.close()

    def message(self, connection: Connection, message: Any) -> None:
        """A peer says something."""
        number = self._numbers[connection]
        if isinstance(message, messages.PutValue) and not message.data:
            self._receive_put(connection, number, message)
        elif isinstance(message, messages.PutRequest):
            ready = messages.PutReady(message.row, message.attempt)
            self._ask_room(connection, number, message, lambda: connection.send(ready), lambda: None)
        elif isinstance(message, messages.GetPiece) and len(self._held_back.get(number, ())) >= _PIECES_WAITING:
            connection.abort("a peer asks for more pieces of values at once than an agent keeps in mind")
        elif isinstance(message, (messages.GetValues, messages.GetPiece, messages.PutValue)):
            self._feed(FromPeer(number, message))
        elif isinstance(message, messages.PutSegment):
            self._take_over(connection, number, message)
        elif isinstance(message, (messages.HostProbe, messages.HostProof)):
            self._hosts.heard(connection, number, message)
        elif not isinstance(message, messages.Heartbeat):
            connection.abort(f"a peer sent a {type(message).__name__}, which is not for agents")

    def send(self, effect: ToPeer | ServeSegment | ServePiece) -> None:
        """Send an answer, when the peer has read enough of those before."""
        number = effect.peer
        connection = self._connections.get(number)
        if connection is None:
            return
        answer = self._begin_piece(connection, effect) if isinstance(effect, ServePiece) else effect
        if connection.paused or number in self._held_back or _is_being_counted(answer):
            self._held_back.setdefault(number, deque()).append(answer)
        else:
            self._send_now(connection, answer)

    def note_sent(self, effect: NoteSent) -> None:
        """Say when all that the peer was sent before has left."""
        number = effect.peer
        connection = self._connections.get(number)
        if connection is None:
            self._feed(PeerSent(number, gone=True))
        elif connection.paused or number in self._held_back:
            self._held_back.setdefault(number, deque()).append(effect)
        else:
            self._feed(PeerSent(number, gone=False))

    def _begin_piece(self, connection: Connection, effect: ServePiece) -> OutgoingPiece:
        piece = OutgoingPiece(effect)
        if piece.is_missing:
            self._feed(FileGone(effect.row, effect.attempt, effect.path))
        elif self._fast_paths and not connection.encrypted:
            self._store.mark_shown(effect.path)  # it goes by `sendfile`
        if connection.encrypted:
            piece.checksum = NO_CHECKSUM
        elif _is_being_counted(piece):
            self._checksums.count(piece, lambda: self._go_on(effect.peer))
        return piece

    def _go_on(self, number: int) -> None:
        waiting = self._held_back.get(number)
        connection = self._connections[number]
        while waiting and not connection.paused and not _is_being_counted(waiting[0]):
            self._send_now(connection, waiting.popleft())
        if not waiting:
            self._held_back.pop(number, None)

    def _send_now(self, connection: Connection, effect: _Answer) -> None:
        if isinstance(effect, OutgoingPiece):
            effect.send(connection, self._fast_paths)
            return
        if isinstance(effect, NoteSent):
            self._feed(PeerSent(effect.peer, gone=False))
            return
        if isinstance(effect, ToPeer):
            message = effect.message
            if isinstance(message, messages.Value):
                message = _with_checksum(connection, message)
            connection.send(message)
            return
        peer, request, row, attempt, nbytes, path = effect
        if (place := self._hosts.show(peer, path)) is not None and os.path.exists(path):
            connection.send(messages.ValueSegment(request, row, attempt, nbytes, *place))
            return
        try:
            if nbytes <= IN_MESSAGE_BYTES:
                data = Path(path).read_bytes()[:nbytes]
                connection.send(_with_checksum(connection, messages.Value(request, row, attempt, data)))
                return
            segment = open_segment(path)
        except FileNotFoundError:  # it was freed while the answer waited, or went to disk
            if (moved := self._store.moved(path)) != path:
                self._send_now(connection, effect._replace(path=moved))
            else:
                connection.send(messages.ValueMissing(request, row, attempt))
                self._feed(FileGone(row, attempt, path))
            return
        if self._fast_paths:
            self._store.mark_shown(path)
        connection.send(messages.ValueStream(request, row, attempt, nbytes))
        connection.send_descriptor(segment, 0, nbytes, by_system_call=self._fast_paths)

    def _take_over(self, connection: Connection, number: int, message: messages.PutSegment) -> None:
        path, reason = self._hosts.take_over(number, message)
        if path:
            self._feed(ValuePut(number, message.row, message.attempt, message.nbytes, path))
        else:
            connection.send(messages.PutDone(message.row, message.attempt, reason))

    def _ask_room(
        self,
        connection: Connection,
        number: int,
        message: messages.PutRequest | messages.PutValue,
        given: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        """Ask for a segment; why there is none, the machine tells the peer."""
        if connection.context is not None:
            connection.abort("a peer pushes a second value before it has pushed the first")
            return
        row, attempt, nbytes = message[:3]
        push = connection.context = _Push((row, attempt, nbytes))

        def answered(path: str, reason: str) -> None:
            push.path = path
            if path:
                given()
            else:
                connection.context = None
                refused()

        push.asked = self._segments.ask(number, row, attempt, nbytes, answered)

    def _receive_put(self, connection: Connection, number: int, message: messages.PutValue) -> None:
        push: _Push | None = connection.context
        if push is not None and push.path and push.name == message[:3]:
            self._receive(connection, number, push)
            return

        def receive() -> None:
            self._receive(connection, number, connection.context)

        self._ask_room(connection, number, message, receive, lambda: connection.receive_raw(None, lambda: None))

    def _receive(self, connection: Connection, number: int, push: _Push) -> None:
        row, attempt, nbytes = push.name
        segment = open_segment(push.path, os.O_RDWR)
        try:
            view = memoryview(mmap.mmap(segment, nbytes))
        finally:
            os.close(segment)

        def arrived() -> None:
            connection.context = None
            self._feed(ValuePut(number, row, attempt, nbytes, push.path))

        connection.receive_raw(view, arrived)


def _is_being_counted(answer: _Answer) -> bool:
    return isinstance(answer, OutgoingPiece) and answer.checksum is None


def _with_checksum(connection: Connection, message: messages.Value) -> messages.Value:
    return message if connection.encrypted else message._replace(checksum=checksum(message.data))


class _Link:
    """A connection to another agent, or the making of one, and the values asked of it that have not come."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.asked: deque[tuple[int, int]] = deque()  # (row, attempt), in the order of the answers to come
        self.unsent: list[int] = []  # … of these nothing has been sent yet
        self.requests = 0
        self.asked_at = 0.0


class PeerLinks:
    """The connections to other agents: one each, made when it is first needed, many values at once."""

    def __init__(
        self, secret: bytes, store: Store, segments: IncomingSegments, feed: Feed, *, fast_paths: bool = True
    ) -> None:
        self._secret = secret
        self._feed = feed
        self._links: dict[str, _Link] = {}
        self._transfers = Transfers(secret, store, segments, feed, links=fast_paths)
        self._tasks: set[asyncio.Task[None]] = set()

    def fetch(self, effect: FetchFrom) -> None:
        """Ask for values; each is answered by an event."""
        address, values, in_pieces = effect
        if in_pieces:
            for row, attempt, nbytes in zip(values[::3], values[1::3], values[2::3], strict=True):
                self._transfers.fetch(address, row, attempt, nbytes)
        else:
            self._ask(address, list(zip(values[::3], values[1::3], strict=True)))

    def _ask(self, address: str, names: list[tuple[int, int]]) -> None:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = _Link(address)
            task = asyncio.get_running_loop().create_task(self._connect(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        link.asked += names
        link.unsent += chain.from_iterable(names)
        self._send(link)

    def give_up(self, effect: GiveUpFetch) -> None:
        """Nobody needs a large value from others any more."""
        self._transfers.give_up(effect.row, effect.attempt)

    def end_stalled(self) -> None:
        """Give up connections on which values are due and nothing has come for long; called now and then."""
        self._transfers.close_idle()
        now = asyncio.get_running_loop().time()
        for link in list(self._links.values()):
            connection = link.connection
            if connection is None or not link.asked:
                continue
            if now - max(connection.last_received, link.asked_at) > _STALLED_SECONDS:
                connection.abort(f"the agent at {link.address} has sent nothing for {_STALLED_SECONDS:g} s")

    def close(self) -> None:
        """Give up everything under way."""
        self._transfers.close()
        for task in self._tasks:
            task.cancel()
        for link in list(self._links.values()):
            if link.connection is not None:
                link.connection.abort()

    async def ended(self) -> None:
        """Wait, after `close`, until the threads that transfer large values have noticed."""
        await asyncio.to_thread(self._transfers.join)

    async def _connect(self, link: _Link) -> None:
        try:
            connection = await connect(
                link.address,
                secret=self._secret,
                role="worker",
                peer_roles=("worker",),
                on_message=lambda _, message: self._message(link, message),
                on_closed=lambda connection, reason: self._closed(link, connection, reason),
            )
        except ClusterError as error:
            self._fail(link, str(error))
            return
        if not connection.closed:
            link.connection = connection
            self._send(link)

    def _send(self, link: _Link) -> None:
        if link.connection is not None and link.unsent:
            link.requests += 1
            link.connection.send(messages.GetValues(link.requests, link.unsent))
            link.unsent = []
            link.asked_at = asyncio.get_running_loop().time()

    def _message(self, link: _Link, message: Any) -> None:
        if isinstance(message, messages.Heartbeat):
            return
        if not isinstance(message, (messages.Value, messages.ValueMissing)) or (
            not link.asked or link.asked[0] != (message.row, message.attempt)
        ):
            assert link.connection is not None
            link.connection.abort(f"the agent at {link.address} answered what was not asked")
            return
        row, attempt = message.row, message.attempt
        link.asked.popleft()
        if isinstance(message, messages.ValueMissing):
            self._feed(ValueNotFetched(link.address, row, attempt, "it does not hold the value"))
        elif not agree(message.checksum, message.data):
            reason = f"{len(message.data)} bytes with another checksum than was said"
            self._feed(ValueNotFetched(link.address, row, attempt, reason, "damaged"))
        else:
            self._feed(ValueFetched(link.address, row, attempt, len(message.data), message.data, ""))

    def _closed(self, link: _Link, connection: Connection, reason: str) -> None:
        self._fail(link, reason or "the connection was closed")

    def _fail(self, link: _Link, reason: str) -> None:
        if self._links.get(link.address) is link:
            del self._links[link.address]
        asked, link.asked = link.asked, deque()
        for row, attempt in asked:
            self._feed(ValueNotFetched(link.address, row, attempt, reason))
