"""The client's plain sockets: a caller waits, reads and writes by itself."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from cluster.errors import ConnectionLost, ProtocolError
from cluster.transport.blocking import BlockingConnection
from cluster.transport.tcp import Connection
from cluster.wire import frames, messages
from tests.processes.peers import (
    echo,
    run_blocking,
)

BYE = messages.PutDone(1, 2, "")

pytestmark = pytest.mark.usefixtures("plain_or_encrypted")


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


def test_a_blocking_client_reads_raw_bytes_to_their_place() -> None:
    data = os.urandom(5_000_000)

    def answer(connection: Connection, message: Any) -> None:
        for size in (3, len(data)):
            connection.send(messages.ValueStream(1, 2, 3, size))
            connection.send_encoded(data[:size])
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
        with pytest.raises(ConnectionLost, match=r"the worker at t(cp|ls)://127.0.0.1:.* ended the connection"):
            client.receive(10)
        with pytest.raises(ConnectionLost):
            while True:
                client.send(messages.Heartbeat())

    run_blocking(work, lambda connection, message: connection.abort())


def test_a_blocking_client_waits_for_the_one_message_that_is_due() -> None:
    def answer(connection: Connection, message: messages.Query) -> None:
        if message.detail:
            connection.send(messages.Heartbeat())
            asyncio.get_running_loop().call_later(0.05, connection.send, BYE)

    def work(client: BlockingConnection) -> None:
        client.send(messages.Query(0, "", True))
        assert client.receive_one(messages.PutDone, 10) == BYE
        client.send(messages.Query(1, "", True))
        with pytest.raises(ProtocolError, match="sent PutDone where HostProof was due"):
            client.receive_one(messages.HostProof, 10)
        client.send(messages.Query(2, "", False))
        with pytest.raises(ConnectionLost, match=r"the worker at .* did not answer with PutDone in 0.1 s"):
            client.receive_one(messages.PutDone, 0.1)

    run_blocking(work, answer)


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
