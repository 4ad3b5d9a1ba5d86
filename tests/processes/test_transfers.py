"""Large values between agents when something goes wrong on the way: the receiving side for real, the holder played."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.daemon import agent_transfers
from cluster.daemon.agent_pieces import OutgoingPiece, PieceChecksums
from cluster.daemon.agent_store import Store
from cluster.daemon.agent_transfers import Transfers
from cluster.secret import load_or_create_secret
from cluster.storage.probes import make_probe
from cluster.transport.tcp import Connection, Listener, listen
from cluster.wire import frames, messages
from cluster.wire.checksums import checksum
from cluster.worker.events import (
    AnswerRoom,
    Event,
    RoomAsked,
    RoomReturned,
    ServePiece,
    ValueFetched,
    ValueNotFetched,
)
from cluster.worker.incoming import IncomingSegments
from cluster.worker.pieces import PIECE_BYTES, PIECE_LIMIT_BYTES, IncomingValue
from tests.processes.agent_harness import PlayedScheduler, Worker, done_rows, function_message, grant, until
from tests.processes.peers import SECRET

VALUE = os.urandom(1 << 20) * 18 + b"the end"  # five pieces
ROW, ATTEMPT = 3, 7
Behaviour = Callable[["Holder", Connection, messages.GetPiece], None]


class Holder:
    """An agent that holds VALUE and gives it as the test likes."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.asked: list[int] = []  # offsets
        self.shares: list[str] = []  # paths of probes
        self.names: list[list[Any]] = []  # what it answers who asks for a segment, at once and later
        self.connections: list[Connection] = []
        self.address = ""

    def message(self, connection: Connection, message: Any) -> None:
        if isinstance(message, messages.HostProbe):
            connection.send(messages.HostProbe(self.shares))
            return
        if isinstance(message, messages.HostProof):
            return
        if isinstance(message, messages.GetValues):
            for number, answers in enumerate(self.names):
                asyncio.get_running_loop().call_later(0.1 * number, self._say, connection, answers)
            return
        assert isinstance(message, messages.GetPiece)
        self.asked.append(message.offset)
        self.behave(self, connection, message)

    def _say(self, connection: Connection, answers: list[Any]) -> None:
        for answer in answers:
            connection.send(answer)

    def give(self, connection: Connection, piece: messages.GetPiece) -> None:
        data = VALUE[piece.offset : piece.offset + piece.nbytes]
        connection.send(messages.ValuePiece(*piece, checksum(data)))
        connection.send_encoded(bytes(data))


def well(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
    holder.give(connection, piece)


class Receiver:
    """The transfers of an agent, and the events that come of them."""

    def __init__(self, store: Store, secret: bytes = SECRET) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._store = store
        self._segments = IncomingSegments(self._feed)
        self.transfers = Transfers(secret, store, self._segments, self._feed)

    def _feed(self, event: Event) -> None:
        """What an agent's machine does that has room for whatever the store has room for."""
        if isinstance(event, RoomAsked):
            number = event.incoming
            self._store.create(
                event.nbytes, lambda path, reason: self._segments.answer(AnswerRoom(number, path, reason))
            )
        elif isinstance(event, RoomReturned):
            if event.path:
                self._store.remove(event.path)
        else:
            self.events.put_nowait(event)

    def fetch(self, holder: Holder, nbytes: int = len(VALUE)) -> None:
        self.transfers.fetch(holder.address, ROW, ATTEMPT, nbytes)

    async def fetched(self) -> bytes:
        event = await asyncio.wait_for(self.events.get(), 20)
        assert isinstance(event, ValueFetched), event
        return Path(event.path).read_bytes()[: event.nbytes]  # the file has whole pages

    async def failed(self) -> ValueNotFetched:
        event = await asyncio.wait_for(self.events.get(), 20)
        assert isinstance(event, ValueNotFetched), event
        return event


@asynccontextmanager
async def serving(*behaviours: Behaviour) -> AsyncIterator[list[Holder]]:
    holders: list[Holder] = []
    listeners: list[Listener] = []
    for behave in behaviours:
        holder = Holder(behave)
        listener = await listen(
            "127.0.0.1",
            0,
            secret=SECRET,
            role="worker",
            peer_roles=("worker",),
            on_connected=holder.connections.append,
            on_message=holder.message,
            on_closed=lambda connection, reason: None,
        )
        holder.address = listener.address
        holders.append(holder)
        listeners.append(listener)
    try:
        yield holders
    finally:
        for listener, holder in zip(listeners, holders, strict=True):
            listener.close()
            for connection in holder.connections:
                connection.abort()


def run(tmp_path: Path, scenario: Callable[[Receiver, list[Holder]], Awaitable[None]], *behaviours: Behaviour) -> None:
    async def main() -> None:
        store = Store(tmp_path, "agent", 1 << 30)
        receiver = Receiver(store)
        try:
            async with serving(*behaviours) as holders:
                await scenario(receiver, holders)
                receiver.transfers.close()
                await asyncio.to_thread(receiver.transfers.join)
            assert len(segments(tmp_path)) <= 1
        finally:
            store.close()

    asyncio.run(main())


def segments(directory: Path) -> list[Path]:
    return [path for path in directory.glob("cluster-*/*/s*")]


async def none_left(directory: Path) -> None:
    """A thread removes what is large."""
    async with asyncio.timeout(20):
        while segments(directory):
            await asyncio.sleep(0.005)


# --------------------------------------------------------------------------- as it should be


def test_a_value_comes_whole_and_in_order(tmp_path: Path) -> None:
    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        assert await receiver.fetched() == VALUE
        assert holders[0].asked == list(range(0, len(VALUE), PIECE_BYTES))
        receiver.fetch(holders[0])
        assert await receiver.fetched() == VALUE
        assert len(holders[0].connections) == 1, "the connection is kept for the next value"
        receiver.transfers._store.remove(str(segments(tmp_path)[0]))

    run(tmp_path, scenario, well)


def test_a_value_that_comes_slowly_is_waited_for_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_transfers, "SILENCE_SECONDS", 1.5)
    share = PIECE_BYTES // 8
    behind: list[messages.GetPiece] = []

    def first_slowly(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        if piece.offset:
            behind.append(piece)
            return
        connection.send(messages.ValuePiece(*piece, checksum(VALUE[:PIECE_BYTES])))

        def send(start: int) -> None:
            connection.send_encoded(VALUE[start : start + share])
            if start + share < PIECE_BYTES:
                asyncio.get_running_loop().call_later(0.3, send, start + share)
            else:
                for waiting in behind:
                    holder.give(connection, waiting)

        send(0)

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        assert await receiver.fetched() == VALUE
        assert len(holders[0].connections) == 1

    run(tmp_path, scenario, first_slowly)


# --------------------------------------------------------------------------- what goes wrong


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def cut_once(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        if piece.offset == 2 * PIECE_BYTES and len(holder.connections) == 1:
            connection.close()
        elif not connection.closed:
            holder.give(connection, piece)

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        assert await receiver.fetched() == VALUE
        again = holders[0].asked[holders[0].asked.index(2 * PIECE_BYTES) + 1 :]
        assert again.count(0) == 0, "the first piece had come"
        assert len(holders[0].connections) == 2

    run(tmp_path, scenario, cut_once)


def test_the_rest_comes_from_another_holder(tmp_path: Path) -> None:
    def gone(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        if piece.offset < 2 * PIECE_BYTES:
            holder.give(connection, piece)
        else:
            connection.send(messages.ValueMissing(0, piece.row, piece.attempt))

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        failed = await receiver.failed()
        assert failed.kind == "lost" and "does not hold" in failed.reason
        receiver.fetch(holders[1])
        assert await receiver.fetched() == VALUE
        assert holders[1].asked[0] == 2 * PIECE_BYTES

    run(tmp_path, scenario, gone, well)


def test_a_piece_that_comes_damaged_is_thrown_away_and_said(tmp_path: Path) -> None:
    def damage_one(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        data = bytearray(VALUE[piece.offset : piece.offset + piece.nbytes])
        said = checksum(data)
        if piece.offset == PIECE_BYTES and holder.asked.count(PIECE_BYTES) == 1:
            data[12345] ^= 1
        connection.send(messages.ValuePiece(*piece, said))
        connection.send_encoded(bytes(data))

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        failed = await receiver.failed()
        assert failed.kind == "damaged" and str(PIECE_BYTES) in failed.reason
        receiver.fetch(holders[0])
        assert await receiver.fetched() == VALUE
        assert holders[0].asked.count(0) == 1

    run(tmp_path, scenario, damage_one)


@pytest.mark.parametrize(
    "change", [{"nbytes": 1 << 40}, {"nbytes": 1}, {"offset": 4096}, {"row": 4}, {"attempt": 8}], ids=str
)
def test_an_agent_that_sends_something_else_is_given_up(tmp_path: Path, change: dict[str, int]) -> None:
    def other(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        connection.send(messages.ValuePiece(*piece, 0)._replace(**change))
        connection.send_encoded(bytes(1000))

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        failed = await receiver.failed()
        assert failed.kind == "lost" and "what was not asked" in failed.reason
        receiver.fetch(holders[1])
        assert await receiver.fetched() == VALUE

    run(tmp_path, scenario, other, well)


@pytest.mark.parametrize(
    "answers",
    [
        [[messages.ValueMissing(0, ROW, ATTEMPT)] * 2],
        [[messages.ValueSegment(0, ROW, ATTEMPT, 1, 0, "s1")]],
        [[messages.ValueSegment(0, ROW, ATTEMPT, len(VALUE), 0, "../secret")]],
        [[messages.PutDone(ROW, ATTEMPT, "")]],
        [[messages.Heartbeat()], [messages.ValueMissing(0, ROW, ATTEMPT)]],
    ],
    ids=str,
)
def test_whatever_an_agent_of_this_host_says_in_the_place_of_a_segment_the_value_comes(
    tmp_path: Path, answers: list[list[Any]]
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.transfers._links = True
        holders[0].shares = [make_probe(str(shared)).path]
        holders[0].names = answers
        receiver.fetch(holders[0])
        assert await receiver.fetched() == VALUE

    run(tmp_path, scenario, well)


def test_an_agent_that_sends_garbage_is_given_up(tmp_path: Path) -> None:
    def garbage(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        connection.send_encoded(b"\xff" * 100)

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        assert "a frame says" in (await receiver.failed()).reason

    run(tmp_path, scenario, garbage)


def test_an_agent_that_falls_silent_half_way_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_transfers, "SILENCE_SECONDS", 0.2)

    def half(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        if not piece.offset:
            connection.send(messages.ValuePiece(*piece, 0))
            connection.send_encoded(bytes(1000))

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        assert "sent nothing" in (await receiver.failed()).reason

    run(tmp_path, scenario, half)


def test_a_transfer_that_nobody_needs_any_more_ends_at_once(tmp_path: Path) -> None:
    def first_only(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        if not piece.offset:
            holder.give(connection, piece)

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        while not holders[0].asked:
            await asyncio.sleep(0.001)
        receiver.transfers.give_up(ROW, ATTEMPT)
        assert "nobody needs it" in (await receiver.failed()).reason
        await none_left(tmp_path)

    run(tmp_path, scenario, first_only)


def test_what_has_come_is_forgotten_when_the_value_is_given_up(tmp_path: Path) -> None:
    def cut(holder: Holder, connection: Connection, piece: messages.GetPiece) -> None:
        connection.abort()

    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0])
        await receiver.failed()
        assert len(segments(tmp_path)) == 1
        receiver.transfers.give_up(ROW, ATTEMPT)
        await none_left(tmp_path)

    run(tmp_path, scenario, cut)


def test_nobody_there(tmp_path: Path) -> None:
    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.transfers.fetch("tcp://127.0.0.1:1", ROW, ATTEMPT, len(VALUE))
        assert "cannot connect" in (await receiver.failed()).reason

    run(tmp_path, scenario)


def test_no_room_is_no_fault_of_the_holder(tmp_path: Path) -> None:
    async def scenario(receiver: Receiver, holders: list[Holder]) -> None:
        receiver.fetch(holders[0], 1 << 50)
        assert (await receiver.failed()).kind == "full"

    run(tmp_path, scenario, well)


# --------------------------------------------------------------------------- real holders


LARGE_BYTES = 100_000_000


class RealHolder:
    """A worker that holds the value of row 0, attempt 1; `at_first_piece` is called when the first piece has come."""

    def __init__(self, scheduler: PlayedScheduler, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.process = worker.process
        self.address = scheduler.expect(messages.WorkerJoin).address
        scheduler.send(function_message(os.urandom), grant(1, [(LARGE_BYTES,)]))
        [[*_, self.nbytes, _]] = list(done_rows(scheduler.expect(messages.Done)))
        self.at_first_piece: Callable[[], None] = lambda: None
        original = IncomingValue.came

        def came(incoming: IncomingValue, piece: messages.ValuePiece, counted: int) -> bool:
            if not piece.offset:
                self.at_first_piece()
            return original(incoming, piece, counted)

        monkeypatch.setattr(IncomingValue, "came", came)

    def run(self, tmp_path: Path, scenario: Callable[[Receiver], Awaitable[None]]) -> None:
        async def main() -> None:
            store = Store(tmp_path, "agent", 1 << 30)
            receiver = Receiver(store, load_or_create_secret(Path(os.environ["CLUSTER__DIRECTORY"])))
            try:
                await scenario(receiver)
                receiver.transfers.close()
                await asyncio.to_thread(receiver.transfers.join)
            finally:
                store.close()

        asyncio.run(main())

    def fetch(self, receiver: Receiver) -> None:
        receiver.transfers.fetch(self.address, 0, 1, self.nbytes)


@pytest.fixture
def holder(scheduler: PlayedScheduler, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> RealHolder:
    return RealHolder(scheduler, worker, monkeypatch)


def test_a_value_comes_from_a_worker_as_it_is_there(holder: RealHolder, tmp_path: Path) -> None:
    async def scenario(receiver: Receiver) -> None:
        holder.fetch(receiver)
        value = await receiver.fetched()
        [there] = [path for path in segments(Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"]))]
        assert value == there.read_bytes()[: holder.nbytes]

    holder.run(tmp_path, scenario)


def test_pages_that_were_sent_are_not_used_for_another_value(
    holder: RealHolder, scheduler: PlayedScheduler, tmp_path: Path
) -> None:
    """Pages that `sendfile` has put into a socket's queue change with their file until the peer has read them."""
    directory = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])

    async def scenario(receiver: Receiver) -> None:
        holder.fetch(receiver)
        await receiver.fetched()

    with segments(directory)[0].open("rb") as before:
        holder.run(tmp_path, scenario)
        scheduler.send(messages.Free([1, 0, 1]), grant(2, [(LARGE_BYTES,)]))
        scheduler.expect(messages.Done)
        assert os.stat(before.fileno()).st_nlink == 0


@pytest.mark.kills_processes
def test_a_holder_that_is_killed_half_way_is_noticed_at_once(holder: RealHolder, tmp_path: Path) -> None:
    holder.at_first_piece = holder.process.kill

    async def scenario(receiver: Receiver) -> None:
        holder.fetch(receiver)
        assert (await receiver.failed()).kind == "lost"

    holder.run(tmp_path, scenario)


def test_a_holder_that_stands_still_is_given_up_and_gives_the_rest_later(
    holder: RealHolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_transfers, "SILENCE_SECONDS", 0.5)
    holder.at_first_piece = lambda: os.kill(holder.process.pid, signal.SIGSTOP)

    async def scenario(receiver: Receiver) -> None:
        holder.fetch(receiver)
        event = await asyncio.wait_for(receiver.events.get(), 20)
        monkeypatch.setattr(agent_transfers, "SILENCE_SECONDS", 15.0)
        os.kill(holder.process.pid, signal.SIGCONT)
        assert isinstance(event, ValueNotFetched) and "sent nothing" in event.reason
        kept = receiver.transfers._kept[0, 1].incoming.arrived_bytes
        assert 0 < kept < holder.nbytes
        holder.at_first_piece = lambda: pytest.fail("the first piece comes twice")
        holder.fetch(receiver)
        assert len(await receiver.fetched()) >= holder.nbytes

    holder.run(tmp_path, scenario)


def test_a_value_that_is_freed_half_way_is_not_there_or_whole(
    holder: RealHolder, scheduler: PlayedScheduler, tmp_path: Path
) -> None:
    holder.at_first_piece = lambda: scheduler.send(messages.Free([1, 0, 1]))

    async def scenario(receiver: Receiver) -> None:
        holder.fetch(receiver)
        event = await asyncio.wait_for(receiver.events.get(), 20)
        if isinstance(event, ValueNotFetched):
            assert "does not hold" in event.reason
        holder.fetch(receiver)
        assert "does not hold" in (await receiver.failed()).reason

    holder.run(tmp_path, scenario)


def test_who_asks_for_too_much_at_once_is_hung_up_on(holder: RealHolder, scheduler: PlayedScheduler) -> None:
    peer = scheduler.peer(holder.address)
    request = frames.encode(messages.GetPiece(0, 1, 0, PIECE_LIMIT_BYTES))
    scheduler._loop.call_soon_threadsafe(peer.connection.send_encoded, request * 200)
    until(lambda: peer.connection.closed, "the worker hangs up")


def test_an_agent_that_ends_while_pieces_wait_for_their_checksums_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "value"
    path.write_bytes(VALUE)
    may_count = threading.Event()
    count = OutgoingPiece.count

    def count_later(piece: OutgoingPiece) -> int:
        may_count.wait(10)
        return count(piece)

    monkeypatch.setattr(OutgoingPiece, "count", count_later)

    async def scenario() -> None:
        faults: list[Any] = []
        counted: list[OutgoingPiece] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        checksums = PieceChecksums()
        pieces = [OutgoingPiece(ServePiece(1, ROW, ATTEMPT, 0, len(VALUE), str(path))) for _ in range(6)]
        for piece in pieces:
            checksums.count(piece, partial(counted.append, piece))
        threading.Timer(0.1, may_count.set).start()
        checksums.close()
        for piece in pieces:
            piece.close()
        await asyncio.sleep(0.1)
        assert (faults, counted) == ([], [])
        assert [piece._descriptor for piece in pieces] == [-1] * len(pieces)

    asyncio.run(scenario())
