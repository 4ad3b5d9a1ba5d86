"""Connections over real sockets: messages and raw bytes arrive, strangers get nothing and disturb nobody."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import (
    AddressError,
    ConnectionLost,
    HandshakeFailed,
    ProtocolError,
    WrongSecret,
)
from cluster.transport import connection as connection_module
from cluster.transport import tcp
from cluster.transport.blocking import BlockingConnection
from cluster.transport.tcp import Connection, Listener, RefusalLog, connect, listen, parse_address
from cluster.wire import frames, messages
from cluster.wire.handshake import Handshake

SECRET = bytes(range(32))
HELLO_BYTES = 42


class Peer:
    """One side: what it was told, and a way to wait until something has happened."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.connections: list[Connection] = []
        self.closed: list[tuple[Connection, str]] = []
        self.answer: Callable[[Connection, Any], None] = lambda connection, message: None
        self.changed = asyncio.Event()

    def on_connected(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.changed.set()

    def on_message(self, connection: Connection, message: Any) -> None:
        self.messages.append(message)
        self.answer(connection, message)
        self.changed.set()

    def on_closed(self, connection: Connection, reason: str) -> None:
        self.closed.append((connection, reason))
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def listening(peer: Peer, role: str = "worker") -> AsyncIterator[Listener]:
    listener = await listen(
        "127.0.0.1",
        0,
        secret=SECRET,
        role=role,
        peer_roles=("client", "worker"),
        on_connected=peer.on_connected,
        on_message=peer.on_message,
        on_closed=peer.on_closed,
    )
    try:
        yield listener
    finally:
        listener.close()
        for connection in peer.connections:
            connection.abort()
        await peer.until(lambda: len(peer.closed) == len(peer.connections))


async def connected_to(listener: Listener, peer: Peer, secret: bytes = SECRET) -> Connection:
    connection = await connect(
        listener.address,
        secret=secret,
        role="worker",
        peer_roles=("worker",),
        on_message=peer.on_message,
        on_closed=peer.on_closed,
    )
    peer.connections.append(connection)
    return connection


def run_pair(scenario: Callable[[Listener, Peer, Connection, Peer], Awaitable[None]]) -> None:
    """Run the scenario with a listener and one connection to it."""

    async def main() -> None:
        here, there = Peer(), Peer()
        async with listening(there) as listener:
            connection = await connected_to(listener, here)
            await scenario(listener, there, connection, here)
            connection.abort()
            await here.until(lambda: bool(here.closed))

    asyncio.run(main())


def echo(connection: Connection, message: Any) -> None:
    if isinstance(message, messages.Query):
        connection.send(messages.Answer(message.request, "", message.detail))


def raw_stranger(listener: Listener, source: str = "127.0.0.1") -> socket.socket:
    stranger = socket.create_connection((listener.host, listener.port), 10, (source, 0))
    stranger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stranger


def read_to_end(stranger: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    came = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := stranger.recv(65536):
            came += piece
    return came


# ---------------------------------------------------------------------- messages


def test_messages_arrive_in_order_and_answers_come_back() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        for number in range(5000):
            connection.send(messages.Query(number, "ping", [number]))
        await here.until(lambda: len(here.messages) == 5000)
        assert here.messages == [messages.Answer(number, "", [number]) for number in range(5000)]
        assert connection.peer.role == "worker"
        assert there.connections[0].peer.role == "worker"
        assert connection.peer_address == listener.address

    run_pair(scenario)


def test_a_message_larger_than_any_buffer_arrives_whole() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        data = os.urandom(15 * 1024 * 1024)
        connection.send(messages.Query(1, "ping", data))
        await here.until(lambda: bool(here.messages))
        assert here.messages == [messages.Answer(1, "", data)]

    run_pair(scenario)


def test_messages_of_one_step_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        transport = connection._transport
        assert transport is not None
        written: list[bytes] = []
        write = transport.write
        monkeypatch.setattr(transport, "write", lambda data: (written.append(bytes(data)), write(data)))
        for number in range(100):
            connection.send(messages.Release([number, 1]))
        await there.until(lambda: len(there.messages) == 100)
        assert len(written) == 1

    run_pair(scenario)


def test_when_something_was_last_received_is_known() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        before = asyncio.get_running_loop().time()
        connection.send(messages.Heartbeat())
        await there.until(lambda: bool(there.messages))
        assert there.connections[0].last_received >= before

    run_pair(scenario)


def test_small_frames_are_sent_at_once_and_a_vanished_host_is_found() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        for end in (connection, there.connections[0]):
            assert end._transport is not None
            opened = end._transport.get_extra_info("socket")
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000

    run_pair(scenario)


def test_a_stopped_client_is_not_given_up_for_a_full_window() -> None:
    async def main() -> None:
        there = Peer()
        async with listening(there) as listener:
            client = await asyncio.to_thread(
                BlockingConnection.connect, listener.address, SECRET, "client", ("worker",)
            )
            await there.until(lambda: bool(there.connections))
            transport = there.connections[0]._transport
            assert transport is not None
            opened = transport.get_extra_info("socket")
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
            client.close()

    asyncio.run(main())


# ---------------------------------------------------------------------- raw bytes


@pytest.mark.parametrize("nbytes", [1, 1000, 300_000, 20_000_000])
@pytest.mark.parametrize("way", ["at once", "later", "thrown away"])
def test_raw_bytes_go_to_their_place_and_the_messages_behind_them_follow(nbytes: int, way: str) -> None:
    data = os.urandom(nbytes)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        targets: list[bytearray] = []
        loop = asyncio.get_running_loop()

        def receive(receiver: Connection, message: Any) -> None:
            if isinstance(message, messages.PutValue):
                target = bytearray(message.nbytes)
                view = None if way == "thrown away" else memoryview(target)
                done = lambda: targets.append(target)  # noqa: E731
                if way == "later":
                    loop.call_later(0.01, receiver.receive_raw, view, done)
                else:
                    receiver.receive_raw(view, done)

        there.answer = receive
        sent: list[bool] = []
        for _ in range(2):
            connection.send(messages.PutValue(1, 2, nbytes, b""))
            connection.send_raw([data[:7], memoryview(data)[7:]], lambda: sent.append(True))
            connection.send(messages.Heartbeat())
        await there.until(lambda: len(there.messages) == 4)
        assert [type(message) for message in there.messages] == [messages.PutValue, messages.Heartbeat] * 2
        assert len(targets) == 2
        assert way == "thrown away" or targets == [data, data]
        assert sent == [True, True]

    run_pair(scenario)


def test_many_small_raw_values_in_one_piece_are_no_deep_recursion() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        done: list[bytes] = []

        def receive(receiver: Connection, message: Any) -> None:
            target = bytearray(message.nbytes)
            receiver.receive_raw(memoryview(target), lambda: done.append(bytes(target)))

        there.answer = receive
        frame = frames.encode(messages.ValueStream(1, 2, 3, 1))
        connection.send_encoded(b"".join(frame + b"x" for _ in range(5000)))
        await there.until(lambda: len(there.messages) == 5000)
        assert done == [b"x"] * 5000

    run_pair(scenario)


def test_a_place_of_the_wrong_size_is_refused() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = lambda receiver, message: receiver.receive_raw(memoryview(bytearray(5)), lambda: None)
        connection.send(messages.ValueStream(1, 2, 3, 6))
        await there.until(lambda: bool(there.closed))
        assert "6 raw bytes were announced" in there.closed[0][1]

    run_pair(scenario)


@pytest.mark.parametrize("fast_path", [True, False])
def test_a_file_is_sent_although_it_is_removed_meanwhile(
    fast_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast_path:
        monkeypatch.delattr(os, "sendfile")
    data = os.urandom(12_345_678)
    (tmp_path / "value").write_bytes(data + b"beyond what was announced")

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        target = bytearray(len(data))
        done = asyncio.Event()
        there.answer = lambda receiver, message: (
            receiver.receive_raw(memoryview(target), lambda: None)
            if isinstance(message, messages.ValueStream)
            else None
        )
        connection.send(messages.ValueStream(1, 2, 3, len(data)))
        connection.send_file(str(tmp_path / "value"), len(data), done.set)
        connection.send(messages.Heartbeat())
        (tmp_path / "value").unlink()
        await there.until(lambda: len(there.messages) == 2)
        await asyncio.wait_for(done.wait(), 10)
        assert target == data

    run_pair(scenario)


def test_a_file_shorter_than_announced_ends_the_connection(tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"short")

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = lambda receiver, message: receiver.receive_raw(None, lambda: None)
        connection.send(messages.ValueStream(1, 2, 3, 1000))
        connection.send_file(str(tmp_path / "value"), 1000)
        await here.until(lambda: bool(here.closed))
        assert "shorter than announced" in here.closed[0][1]

    run_pair(scenario)


def test_both_sides_may_send_much_at_the_same_time(tmp_path: Path) -> None:
    data = os.urandom(30_000_000)
    (tmp_path / "value").write_bytes(data)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        targets = [bytearray(len(data)), bytearray(len(data))]
        arrived = []
        for peer, target in zip((here, there), targets, strict=True):
            peer.answer = lambda receiver, message, target=target: receiver.receive_raw(
                memoryview(target), lambda: arrived.append(True)
            )
        for end in (connection, there.connections[0]):
            end.send(messages.ValueStream(1, 2, 3, len(data)))
            end.send_file(str(tmp_path / "value"), len(data))
        async with asyncio.timeout(20):
            while len(arrived) < 2:
                await asyncio.sleep(0.005)
        digest = hashlib.sha256(data).digest()
        assert [hashlib.sha256(target).digest() for target in targets] == [digest, digest]

    run_pair(scenario)


# ---------------------------------------------------------------------- ends and limits


def test_close_sends_what_is_queued_and_both_sides_are_told() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        for number in range(300):
            connection.send(messages.Value(number, 0, 0, bytes(10_000)))
        connection.close()
        assert connection.closed
        connection.send(messages.Heartbeat())
        await there.until(lambda: bool(there.closed))
        assert len(there.messages) == 300
        assert "ended the connection" in there.closed[0][1]
        await here.until(lambda: bool(here.closed))
        assert here.closed == [(connection, "")]

    run_pair(scenario)


def test_a_bad_frame_ends_its_own_connection_and_no_other() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        other = await connected_to(listener, here)
        other.send_encoded(struct.pack("<I", 2**31))
        await there.until(lambda: bool(there.closed))
        assert "broke the protocol" in there.closed[0][1]
        assert str(2**31) in there.closed[0][1]
        connection.send(messages.Query(1, "ping", None))
        await here.until(lambda: bool(here.messages))
        assert not connection.closed

    run_pair(scenario)


def test_a_protocol_error_of_the_handler_ends_the_connection_with_its_reason() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        def refuse(receiver: Connection, message: Any) -> None:
            raise ProtocolError("Heartbeat is not for schedulers")

        there.answer = refuse
        connection.send_encoded(frames.encode(messages.Heartbeat()) * 3)
        await there.until(lambda: bool(there.closed))
        assert "not for schedulers" in there.closed[0][1]
        assert len(there.messages) == 1

    run_pair(scenario)


def test_a_sender_is_paused_by_a_slow_reader_and_told_when_it_may_go_on() -> None:
    async def main() -> None:
        there = Peer()
        async with listening(there) as listener:
            reader = await asyncio.to_thread(
                BlockingConnection.connect, listener.address, SECRET, "client", ("worker",)
            )
            await there.until(lambda: bool(there.connections))
            sender = there.connections[0]
            writable = asyncio.Event()
            sender.on_writable = writable.set
            sent = 0
            while not sender.paused:
                sender.send(messages.Value(sent, 0, 0, bytes(100_000)))
                sent += 1
                await asyncio.sleep(0)
            assert sender.unsent_bytes > 1024 * 1024

            def read_all() -> list[Any]:
                came: list[Any] = []
                while len(came) < sent:
                    came += reader.receive(10)
                return came

            came = await asyncio.to_thread(read_all)
            await asyncio.wait_for(writable.wait(), 10)
            assert not sender.paused
            assert [message.request for message in came] == list(range(sent))
            reader.close()

    asyncio.run(main())


def test_a_peer_that_leaves_too_much_unread_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "UNSENT_LIMIT_BYTES", 4 * 1024 * 1024)
    monkeypatch.setattr(connection_module, "UNSENT_LIMIT_SECONDS", 0.2)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        stalled = await asyncio.to_thread(BlockingConnection.connect, listener.address, SECRET, "client", ("worker",))
        await there.until(lambda: len(there.connections) == 2)
        for _ in range(200):
            there.connections[1].send(messages.Value(1, 0, 0, bytes(100_000)))
        await there.until(lambda: bool(there.closed))
        assert "left more than 4 MiB unread" in there.closed[0][1]
        connection.send(messages.Query(1, "ping", None))
        await here.until(lambda: bool(here.messages))
        stalled.close()

    run_pair(scenario)


# ---------------------------------------------------------------------- strangers


def _hello_then(rest: bytes) -> bytes:
    return Handshake(SECRET, "client", False, ("worker",)).data_to_send() + rest


STRANGERS = {
    "garbage": os.urandom(4).replace(b"C", b"x") + b"\xff" * 5000,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "huge length": struct.pack("<Q", 2**62) + bytes(100),
    "huge proof": _hello_then(struct.pack("<H", 65535) + bytes(5000)),
    "another protocol": b"CLUSTER\0" + struct.pack("<H", 99) + bytes(32),
    "wrong secret": _hello_then(struct.pack("<H", 60) + bytes(60)),
}


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="cluster"):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kind", list(STRANGERS))
def test_a_stranger_is_hung_up_on_with_one_log_line_and_nobody_else_notices(
    kind: str, refusals: Callable[[], list[str]]
) -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        for number in range(3):
            stranger = raw_stranger(listener)
            stranger.sendall(STRANGERS[kind])
            came = await asyncio.to_thread(read_to_end, stranger)
            stranger.close()
            if kind == "http":
                assert came.startswith(b"HTTP/1.1 400 ")
                assert b"not HTTP" in came
            elif kind == "wrong secret":
                assert len(came) == HELLO_BYTES + 2
            else:
                assert len(came) in (0, HELLO_BYTES)
            connection.send(messages.Query(number, "ping", None))
            await here.until(lambda number=number: len(here.messages) == number + 1)
        lines = refusals()
        assert len(lines) == 1
        assert lines[0].startswith("refused a connection from 127.0.0.1: ")
        assert len(there.connections) == 1
        assert not listener._strangers

    run_pair(scenario)


@pytest.mark.parametrize("start", [b"", b"CLU", _hello_then(b""), _hello_then(struct.pack("<H", 60) + bytes(10))])
def test_a_handshake_that_is_not_finished_in_time_is_hung_up_on(
    start: bytes, refusals: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HANDSHAKE_SECONDS", 0.1)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        stranger = raw_stranger(listener)
        stranger.sendall(start)
        waiting = asyncio.create_task(asyncio.to_thread(read_to_end, stranger))
        connection.send(messages.Query(1, "ping", None))
        await here.until(lambda: bool(here.messages))
        assert len(await asyncio.wait_for(waiting, 10)) in (0, HELLO_BYTES)
        stranger.close()
        assert ["prove itself within" in line for line in refusals()] == [True]

    run_pair(scenario)


def test_strangers_that_only_wait_are_limited_and_members_still_get_in(
    refusals: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        with contextlib.ExitStack() as opened:
            # Sixteen a host and sixty-four in all; those beyond are hung up on at once, without a word.
            strangers = [
                (host, opened.enter_context(raw_stranger(listener, f"127.0.0.{host}")))
                for host in (2, 3, 4, 5, 6)
                for _ in range(17)
            ]
            ended = await asyncio.to_thread(_hosts_of_ended, strangers, 21)
            assert sorted(ended) == [2, 3, 4, 5] + [6] * 17
            assert len(listener._strangers) == 64
            connection.send(messages.Query(1, "ping", None))
            await here.until(lambda: bool(here.messages))
            # A member gets in, since the others have had their time.
            monkeypatch.setattr(tcp, "_PLACE_SECONDS", 0.0)
            await asyncio.wait_for(connected_to(listener, here), 10)
            assert len(listener._strangers) == 63
        assert len(refusals()) == 6

    run_pair(scenario)


def _hosts_of_ended(strangers: list[tuple[int, socket.socket]], count: int) -> list[int]:
    """The hosts of those that were hung up on, as soon as there are so many (or after ten seconds)."""
    hosts = {stranger: host for host, stranger in strangers}
    ended: list[int] = []
    while len(ended) < count and (readable := select.select(list(hosts), [], [], 10)[0]):
        for stranger in readable:
            assert read_to_end(stranger) == b""
            ended.append(hosts.pop(stranger))
    return ended


def test_a_hundred_members_may_come_at_once() -> None:
    async def main() -> None:
        here, there = Peer(), Peer()
        async with listening(there) as listener:
            connections = await asyncio.gather(*(connected_to(listener, here) for _ in range(100)))
            await there.until(lambda: len(there.connections) == 100)
            for connection in connections:
                connection.abort()
            await here.until(lambda: len(here.closed) == 100)

    asyncio.run(main())


def test_a_refused_stranger_leaves_nothing_open(refusals: Callable[[], list[str]]) -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        await asyncio.to_thread(lambda: None)
        before = len(os.listdir("/proc/self/fd"))
        for data in STRANGERS.values():
            with raw_stranger(listener) as stranger:
                stranger.sendall(data)
                await asyncio.to_thread(read_to_end, stranger)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the open descriptors are counted in /proc")
    run_pair(scenario)


def test_refusals_are_logged_once_a_minute_for_each_host(refusals: Callable[[], list[str]]) -> None:
    now = 0.0
    log = RefusalLog(lambda: now)
    for _ in range(10):
        log.refused("10.0.0.1", "garbage")
        log.refused("10.0.0.2", "garbage")
    assert refusals() == [f"refused a connection from 10.0.0.{host}: garbage" for host in (1, 2)]
    now = 59.0
    log.refused("10.0.0.1", "garbage")
    assert len(refusals()) == 2
    now = 61.0
    log.refused("10.0.0.1", "other garbage")
    assert refusals()[2] == "refused a connection from 10.0.0.1: other garbage (10 more since the last such line)"


def test_refusals_of_very_many_hosts_take_little_memory(refusals: Callable[[], list[str]]) -> None:
    now = 0.0
    log = RefusalLog(lambda: now)
    for host in range(5000):
        log.refused(f"host-{host}", "garbage")
    assert len(log._hosts) == len(refusals()) == 1024
    now = 100.0
    log.refused("host-4999", "garbage")
    assert len(log._hosts) == 1


# ---------------------------------------------------------------------- connecting


def test_a_wrong_secret_is_told_to_whoever_connects() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        with pytest.raises(WrongSecret, match="copy the file `secret`"):
            await connected_to(listener, here, bytes(32))
        with pytest.raises(WrongSecret, match="copy the file `secret`"):
            await asyncio.to_thread(BlockingConnection.connect, listener.address, bytes(32), "client", ("worker",))
        with pytest.raises(HandshakeFailed, match="expected a scheduler, but met a worker"):
            await asyncio.to_thread(BlockingConnection.connect, listener.address, SECRET)

    run_pair(scenario)


def test_nobody_there_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    start = time.monotonic()
    nobody = Peer

    async def main() -> None:
        peer = nobody()
        with pytest.raises(ConnectionLost, match=f"cannot connect to tcp://127.0.0.1:{port}: "):
            await connect(
                f"127.0.0.1:{port}",
                secret=SECRET,
                role="worker",
                peer_roles=("scheduler",),
                on_message=peer.on_message,
                on_closed=peer.on_closed,
            )

    asyncio.run(main())
    with pytest.raises(ConnectionLost, match=f"cannot connect to tcp://127.0.0.1:{port}: "):
        BlockingConnection.connect(f"127.0.0.1:{port}", SECRET)
    assert time.monotonic() - start < 2


def test_a_server_of_another_kind_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            stranger, _ = server.accept()
            stranger.sendall(b"220 mail.example.org ESMTP\r\n")
            stranger.close()

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(HandshakeFailed, match="does not speak the cluster protocol"):
            BlockingConnection.connect(f"127.0.0.1:{server.getsockname()[1]}", SECRET)
        thread.join()


def test_a_silent_server_is_given_up_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(HandshakeFailed, match="did not prove itself in time"),
    ):
        BlockingConnection.connect(f"127.0.0.1:{server.getsockname()[1]}", SECRET, timeout_seconds=0.2)


def test_a_port_in_use_is_a_clear_error() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        with pytest.raises(AddressError, match=f"port {listener.port} on 127.0.0.1 is in use"):
            await _listen_at(listener.host, listener.port)

    run_pair(scenario)


async def _listen_at(host: str, port: int) -> Listener:
    peer = Peer()
    return await listen(
        host,
        port,
        secret=SECRET,
        role="scheduler",
        peer_roles=("client",),
        on_connected=peer.on_connected,
        on_message=peer.on_message,
        on_closed=peer.on_closed,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "localhost.example.org"])
def test_an_address_beyond_this_machine_is_refused_until_there_is_tls(host: str) -> None:
    with pytest.raises(AddressError, match="TLS"):
        asyncio.run(_listen_at(host, 0))
    with pytest.raises(AddressError, match="TLS"):
        BlockingConnection.connect(f"[{host}]:1" if ":" in host else f"{host}:1", SECRET)


def test_localhost_is_one_port_that_can_be_connected_to() -> None:
    async def main() -> None:
        listener = await _listen_at("localhost", 0)
        assert listener.address == f"tcp://127.0.0.1:{listener.port}"
        listener.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("tcp://127.0.0.1:8770", ("127.0.0.1", 8770)),
        ("127.0.0.1:8770", ("127.0.0.1", 8770)),
        (" TCP://localhost:1/ ", ("localhost", 1)),
        ("tcp://[::1]:8770", ("::1", 8770)),
    ],
)
def test_an_address_is_read_as_people_write_it(address: str, found: tuple[str, int]) -> None:
    assert parse_address(address) == found
    assert parse_address(tcp.format_address(*found)) == found


@pytest.mark.parametrize(
    "address",
    ["", "8770", "localhost", "tcp://:8770", "host:port", "host:70000", "::1:8770", "http://h:1", "tls://h:1"],
)
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(AddressError, match="port"):
        parse_address(address)


# ---------------------------------------------------------------------- the client's blocking side


def run_blocking(work: Callable[[BlockingConnection], None], answer: Callable[[Connection, Any], None]) -> Peer:
    """Run `work` in a thread, connected to a listener that answers so."""

    async def main() -> Peer:
        there = Peer()
        there.answer = answer
        async with listening(there) as listener:
            client = await asyncio.to_thread(
                BlockingConnection.connect, listener.address, SECRET, "client", ("worker",)
            )
            try:
                await asyncio.to_thread(work, client)
            finally:
                client.close()
        return there

    return asyncio.run(main())


def test_a_blocking_client_asks_and_gets_answers() -> None:
    def work(client: BlockingConnection) -> None:
        assert client.receive() == []
        assert client.receive(0.01) == []
        for number in range(50):
            client.send(messages.Query(number, "ping", None))
            assert client.receive(10) == [messages.Answer(number, "", None)]

    run_blocking(work, echo)


def test_a_blocking_client_sends_buffers_larger_than_the_socket_takes() -> None:
    data = os.urandom(30_000_000)
    target = bytearray(len(data))

    def answer(connection: Connection, message: Any) -> None:
        receive_later = lambda: connection.receive_raw(memoryview(target), lambda: connection.send(BYE))  # noqa: E731
        asyncio.get_running_loop().call_later(0.05, receive_later)

    def work(client: BlockingConnection) -> None:
        pieces = [memoryview(data)[at : at + 10_007] for at in range(0, len(data), 10_007)]
        client.send_bytes(frames.encode(messages.PutValue(1, 2, len(data), b"")), b"", *pieces)
        assert client.receive(10) == [BYE]

    run_blocking(work, answer)
    assert target == data


BYE = messages.PutDone(1, 2, "")


def test_a_blocking_client_reads_raw_bytes_to_their_place() -> None:
    data = os.urandom(5_000_000)

    def answer(connection: Connection, message: Any) -> None:
        for size in (3, len(data)):
            connection.send(messages.ValueStream(1, 2, 3, size))
            connection.send_raw([data[:size]])
        connection.send(BYE)

    def work(client: BlockingConnection) -> None:
        client.send(messages.GetValues(1, [2, 3]))
        came: list[Any] = []
        while BYE not in came:
            came += client.receive(10)
            if client.raw_bytes_expected:
                target = memoryview(bytearray(came[-1].nbytes))
                filled = 0
                while client.raw_bytes_expected:
                    filled += client.receive_raw(target[filled:], 10)
                assert target == data[: came[-1].nbytes]
        assert [type(message) for message in came] == [messages.ValueStream, messages.ValueStream, messages.PutDone]

    run_blocking(work, answer)


def test_a_blocking_client_learns_of_the_end_when_it_reads_or_writes() -> None:
    def work(client: BlockingConnection) -> None:
        client.send(messages.Heartbeat())
        with pytest.raises(ConnectionLost, match=r"the worker at tcp://127.0.0.1:.* ended the connection"):
            client.receive(10)
        with pytest.raises(ConnectionLost):
            while True:
                client.send(messages.Heartbeat())

    run_blocking(work, lambda connection, message: connection.abort())


def test_a_thread_that_waits_is_woken_by_shutdown() -> None:
    def work(client: BlockingConnection) -> None:
        caught: list[BaseException] = []
        waiting = threading.Event()

        def wait() -> None:
            waiting.set()
            try:
                client.receive(None)
            except ConnectionLost as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait(10)
        client.shutdown()
        thread.join(10)
        assert not thread.is_alive()
        assert "was closed by this process" in str(caught[0])
        assert client.closed

    run_blocking(work, lambda connection, message: None)


def test_one_thread_may_send_while_another_receives() -> None:
    def work(client: BlockingConnection) -> None:
        came: list[Any] = []

        def read() -> None:
            while len(came) < 2000:
                came.extend(client.receive(10))

        thread = threading.Thread(target=read)
        thread.start()
        for number in range(2000):
            client.send(messages.Query(number, "ping", bytes(2000)))
        thread.join(20)
        assert [message.request for message in came] == list(range(2000))

    run_blocking(work, echo)
