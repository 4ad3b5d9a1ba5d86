"""Connections over real sockets: messages and raw bytes arrive, and what goes wrong ends one connection alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ProtocolError
from cluster.transport import outgoing
from cluster.transport.blocking import BlockingConnection
from cluster.transport.tcp import Connection, Listener
from cluster.wire import frames, messages
from tests.processes.peers import (
    SECRET,
    Peer,
    connected_to,
    echo,
    listening,
    run_pair,
)

pytestmark = pytest.mark.usefixtures("plain_or_encrypted")


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
        for _ in range(2):
            connection.send(messages.PutValue(1, 2, nbytes, b""))
            connection.send_encoded(data)
            connection.send(messages.Heartbeat())
        await there.until(lambda: len(there.messages) == 4)
        assert [type(message) for message in there.messages] == [messages.PutValue, messages.Heartbeat] * 2
        assert len(targets) == 2
        assert way == "thrown away" or targets == [data, data]

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


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@pytest.mark.parametrize("way", ["sendfile", "no sendfile here", "not wanted"])
def test_a_file_is_sent_although_it_is_removed_meanwhile(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "no sendfile here":
        monkeypatch.delattr(os, "sendfile")
    elif way == "not wanted":
        monkeypatch.setattr(os, "sendfile", lambda *_: pytest.fail("it was not to be used"))
    data = os.urandom(12_345_678)
    (tmp_path / "value").write_bytes(data + b"beyond what was announced")

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        target = bytearray(len(data))
        there.answer = lambda receiver, message: (
            receiver.receive_raw(memoryview(target), lambda: None)
            if isinstance(message, messages.ValueStream)
            else None
        )
        connection.send(messages.ValueStream(1, 2, 3, len(data)))
        wanted = way != "not wanted"
        connection.send_descriptor(opened(tmp_path / "value"), 0, len(data), by_system_call=wanted)
        connection.send(messages.Heartbeat())
        (tmp_path / "value").unlink()
        await there.until(lambda: len(there.messages) == 2)
        assert target == data

    run_pair(scenario)


def test_a_file_shorter_than_announced_ends_the_connection(tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"short")

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = lambda receiver, message: receiver.receive_raw(None, lambda: None)
        connection.send(messages.ValueStream(1, 2, 3, 1000))
        connection.send_descriptor(opened(tmp_path / "value"), 0, 1000)
        await here.until(lambda: bool(here.closed))
        assert "shorter than announced" in here.closed[0][1]

    run_pair(scenario)


def test_both_sides_may_send_much_at_the_same_time(tmp_path: Path) -> None:
    data = os.urandom(30_000_000)
    (tmp_path / "value").write_bytes(data)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        targets = [bytearray(len(data)), bytearray(len(data))]
        arrived: list[bytearray] = []
        both_arrived = asyncio.Event()

        def receive_into(target: bytearray) -> Callable[[Connection, Any], None]:
            def done() -> None:
                arrived.append(target)
                if len(arrived) == 2:
                    both_arrived.set()

            return lambda receiver, message: receiver.receive_raw(memoryview(target), done)

        here.answer, there.answer = receive_into(targets[0]), receive_into(targets[1])
        for end in (connection, there.connections[0]):
            end.send(messages.ValueStream(1, 2, 3, len(data)))
            end.send_descriptor(opened(tmp_path / "value"), 0, len(data))
        await asyncio.wait_for(both_arrived.wait(), 20)
        digest = hashlib.sha256(data).digest()
        assert [hashlib.sha256(target).digest() for target in targets] == [digest, digest]

    run_pair(scenario)


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


def test_a_failure_of_the_handler_is_not_taken_for_one_of_the_socket() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        def fail(receiver: Connection, message: Any) -> None:
            raise FileNotFoundError(2, "No such file", "s5")

        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        there.answer = fail
        connection.send(messages.Heartbeat())
        await there.until(lambda: bool(there.closed))
        assert "sent failed here" in there.closed[0][1]
        (context,) = reported
        assert isinstance(context["exception"], FileNotFoundError)

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
    monkeypatch.setattr(outgoing, "UNSENT_LIMIT_BYTES", 4 * 1024 * 1024)
    monkeypatch.setattr(outgoing, "UNSENT_LIMIT_SECONDS", 0.2)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        stalled = await asyncio.to_thread(BlockingConnection.connect, listener.address, SECRET, "client", ("worker",))
        await there.until(lambda: len(there.connections) == 2)
        for _ in range(200):
            there.connections[1].send(messages.Value(1, 0, 0, bytes(100_000)))
        await there.until(lambda: bool(there.closed))
        assert "left more than 4 MiB of messages unread" in there.closed[0][1]
        connection.send(messages.Query(1, "ping", None))
        await here.until(lambda: bool(here.messages))
        stalled.close()

    run_pair(scenario)


def test_a_peer_that_goes_while_more_is_written_is_lost_once() -> None:
    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        faults: list[str] = []
        loop.set_exception_handler(lambda _, context: faults.append(context["message"]))
        here, there = socket.socketpair()
        there.setblocking(False)
        lost = loop.create_future()

        class Sender(asyncio.Protocol):
            def pause_writing(self) -> None:
                sending.transport_is_full(True)

            def resume_writing(self) -> None:
                there.close()  # just after the last of what was unsent has gone
                sending.transport_is_full(False)

            def connection_lost(self, error: Exception | None) -> None:
                sending.end()
                lost.set_result(error)

        transport, _ = await loop.create_connection(Sender, sock=here)
        sending = outgoing.Outgoing(transport, fail=faults.append, relieved=lambda: None, emptied=lambda: None)
        for _ in range(4):
            sending.put(bytes(1 << 20))
        while there.fileno() >= 0:
            with contextlib.suppress(BlockingIOError):
                there.recv(1 << 20)
            await asyncio.sleep(0)
        await asyncio.wait_for(lost, 10)
        await asyncio.sleep(0)
        return faults

    assert asyncio.run(scenario()) == []
