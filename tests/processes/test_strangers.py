"""A listener gives strangers nothing, keeps nothing for them, and nobody else notices them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from cluster.transport import connection as connection_module
from cluster.transport import tcp
from cluster.transport.tcp import Connection, Listener, RefusalLog
from cluster.wire import messages
from cluster.wire.handshake import Handshake
from tests.processes.peers import (
    HELLO_BYTES,
    SECRET,
    Peer,
    connected_to,
    echo,
    listening,
    raw_stranger,
    read_to_end,
    run_pair,
)

pytestmark = pytest.mark.usefixtures("plain_or_encrypted")


def _hello_then(rest: bytes) -> bytes:
    return Handshake(SECRET, "client", False, ("worker",)).data_to_send() + rest


STRANGERS = {
    "garbage": os.urandom(4).replace(b"C", b"x") + b"\xff" * 5000,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(194),
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
            elif kind == "tls":
                assert came[:1] == b"\x15"  # an alert, so that its side can say why
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
        assert len(refusals()) == 5

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
