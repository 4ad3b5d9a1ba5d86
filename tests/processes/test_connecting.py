"""Whoever connects or listens is told at once, and clearly, why that cannot be."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from cluster.errors import AddressError, ConnectionLost, HandshakeFailed, WrongSecret
from cluster.transport import tcp
from cluster.transport.addresses import read_address
from cluster.transport.blocking import BlockingConnection
from cluster.transport.tcp import Connection, Listener, connect, listen, parse_address
from tests.processes.peers import (
    SECRET,
    Peer,
    connected_to,
    mail_server,
    run_pair,
)


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

    async def main() -> None:
        peer = Peer()
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
    with mail_server() as port, pytest.raises(HandshakeFailed, match="does not speak the cluster protocol"):
        BlockingConnection.connect(f"127.0.0.1:{port}", SECRET)


def test_a_silent_server_is_given_up_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(HandshakeFailed, match="did not prove itself in time"),
    ):
        BlockingConnection.connect(f"127.0.0.1:{server.getsockname()[1]}", SECRET, timeout_seconds=0.2)


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_a_silent_server_is_not_tried_again_and_again(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "HANDSHAKE_SECONDS", 0.2)
    monkeypatch.setattr("cluster.transport.connection.HANDSHAKE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = Peer()
        with pytest.raises(HandshakeFailed, match="did not prove itself within"):
            asyncio.run(
                connect(
                    f"{scheme}://127.0.0.1:{server.getsockname()[1]}",
                    secret=SECRET,
                    role="worker",
                    peer_roles=("scheduler",),
                    on_message=peer.on_message,
                    on_closed=peer.on_closed,
                )
            )
        server.accept()[0].close()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


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
def test_nobody_listens_beyond_this_machine_without_a_certificate(host: str) -> None:
    with pytest.raises(AddressError, match="nothing would be encrypted"):
        asyncio.run(_listen_at(host, 0))


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
        ("tls://node7.example.org:1", ("node7.example.org", 1)),
        ("insecure://10.0.0.7:1", ("10.0.0.7", 1)),
    ],
)
def test_an_address_is_read_as_people_write_it(address: str, found: tuple[str, int]) -> None:
    assert parse_address(address) == found
    assert parse_address(tcp.format_address(*found)) == found


@pytest.mark.parametrize(
    "address",
    ["", "8770", "localhost", "tcp://:8770", "host:port", "host:70000", "::1:8770", "http://h:1", "tls://h"],
)
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(AddressError, match="port"):
        parse_address(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("tcp://localhost:1", "tcp://localhost:1"),
        ("tls://localhost:1", "tls://localhost:1"),
        ("insecure://127.8.8.8:1", "tcp://127.8.8.8:1"),
        ("10.0.0.7:1", "tls://10.0.0.7:1"),
        ("TCP://10.0.0.7:1", "tls://10.0.0.7:1"),
        ("tcp://[2001:db8::7]:1", "tls://[2001:db8::7]:1"),
        ("tcp://localhost.example.org:1", "tls://localhost.example.org:1"),
        ("insecure://10.0.0.7:1", "insecure://10.0.0.7:1"),
    ],
)
def test_what_leaves_this_machine_is_encrypted_unless_the_address_says_otherwise(address: str, shown: str) -> None:
    assert str(read_address(address)) == shown
    assert str(read_address(shown)) == shown
