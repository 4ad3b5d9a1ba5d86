"""What crosses a network: encrypted, with nobody in between, and costing nothing for those who prove nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.certificate import CERTIFICATE_FILE, load_or_create_certificate, read_expiry
from cluster.errors import HandshakeFailed, Intercepted, SettingError
from cluster.transport import encryption
from cluster.transport.blocking import BlockingConnection
from cluster.transport.tcp import Connection, Listener
from cluster.wire import messages
from tests.processes.peers import (
    HELLO_BYTES,
    SECRET,
    Peer,
    connected_to,
    echo,
    encrypting,
    mail_server,
    raw_stranger,
    read_to_end,
    run_pair,
)


@pytest.fixture(autouse=True)
def certificate_directory(tmp_path: Path) -> Iterator[Path]:
    encrypting.append(tmp_path / "certificate")
    yield encrypting[0]
    encrypting.clear()


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="cluster"):
        yield lambda: [record.getMessage() for record in caplog.records]


def any_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class InTheMiddle:
    """Between two ends: ends TLS on both sides with a certificate of its own, and passes on what is said.

    `towards` is plain instead if `plain_here`: a program on the victim's machine that offers what looks like an
    unencrypted scheduler.
    """

    def __init__(self, listener: Listener, directory: Path, *, plain_here: bool) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._own = load_or_create_certificate(directory).context
        self._there = listener.port
        self._plain_here = plain_here
        self.seen = b""
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        scheme = "tcp" if plain_here else "tls"
        self.address = f"{scheme}://127.0.0.1:{self._server.getsockname()[1]}"

    def _work(self) -> None:
        came, _ = self._server.accept()
        with (
            came,
            came if self._plain_here else self._own.wrap_socket(came, server_side=True) as here,
            any_tls().wrap_socket(socket.create_connection(("127.0.0.1", self._there))) as there,
        ):
            for receiver, sender in ((here, there), (there, here), (here, there), (there, here)):
                data = receiver.recv(65536)
                self.seen += data
                sender.sendall(data)

    def close(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._server.close()


@pytest.mark.parametrize("plain_here", [False, True])
@pytest.mark.parametrize("face", ["blocking", "asyncio"])
def test_somebody_in_the_middle_is_found_out_by_both_sides(
    face: str, plain_here: bool, tmp_path: Path, refusals: Callable[[], list[str]]
) -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        middle = InTheMiddle(listener, tmp_path / "theirs", plain_here=plain_here)
        listener_of_middle = type("Listener", (), {"address": middle.address})()
        with pytest.raises(Intercepted, match="one of its ends only" if plain_here else "different certificates"):
            if face == "asyncio":
                await connected_to(listener_of_middle, here)
            else:
                await asyncio.to_thread(BlockingConnection.connect, middle.address, SECRET, "client", ("worker",))
        await asyncio.to_thread(middle.close)
        assert SECRET not in middle.seen
        assert len(there.connections) == 1
        assert [line.startswith("refused a connection from 127.0.0.1: ") for line in refusals()] == [True]

    run_pair(scenario)


def test_nothing_that_is_said_can_be_read_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        written: list[bytes] = []
        for end in (connection, there.connections[0]):
            assert end._transport is not None
            socket_transport = end._transport._socket_transport  # type: ignore[attr-defined]
            write = socket_transport.write

            def noted(data: bytes, write: Callable[[bytes], None] = write) -> None:
                written.append(bytes(data))
                write(data)

            monkeypatch.setattr(socket_transport, "write", noted)
        connection.send(messages.Query(1, "a secret word" * 1000, "another"))
        await here.until(lambda: bool(here.messages))
        assert sum(map(len, written)) > 13_000
        assert b"secret" not in b"".join(written)
        assert b"another" not in b"".join(written)

    run_pair(scenario)


def test_only_tls_1_3_is_spoken(refusals: Callable[[], list[str]]) -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        context = any_tls()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with raw_stranger(listener) as stranger, pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await asyncio.to_thread(context.wrap_socket, stranger)
        assert len(refusals()) == 1
        transport = connection._transport
        assert transport is not None
        assert transport.get_extra_info("ssl_object").version() == "TLSv1.3"

    run_pair(scenario)


def after_tls(listener: Listener, data: bytes) -> bytes:
    """Encrypt, say that, and return what came back before the end."""
    with raw_stranger(listener) as stranger, any_tls().wrap_socket(stranger) as encrypted:
        try:
            encrypted.sendall(data)
            return read_to_end(encrypted)
        except (ConnectionError, ssl.SSLError):
            return b""  # it was hung up on while it still spoke


@pytest.mark.parametrize("kind", ["garbage", "much garbage", "http", "half a hello, then nothing"])
def test_a_stranger_that_encrypts_gets_no_further_than_one_that_does_not(
    kind: str, refusals: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.transport.connection.HANDSHAKE_SECONDS", 0.5)
    said = {
        "garbage": b"\xff" * 100,
        "much garbage": b"CLUSTER\0\0\1" + b"\xff" * 10_000_000,
        "http": b"GET / HTTP/1.1\r\n\r\n",
        "half a hello, then nothing": b"CLUST",
    }[kind]

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        came = await asyncio.to_thread(after_tls, listener, said)
        assert len(came) <= HELLO_BYTES or (kind == "http" and came.startswith(b"HTTP/1.1 400 "))
        connection.send(messages.Query(1, "ping", None))
        await here.until(lambda: bool(here.messages))
        assert len(refusals()) == 1
        assert not listener._strangers

    run_pair(scenario)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x16\x03\x01\x40\x00" + bytes(100_000), "more than 12288 bytes|no encrypted connection"),
        (b"\x16\x03\x01", "prove itself within"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), "prove itself within"),
    ],
)
def test_tls_itself_is_no_way_to_hold_more_or_longer(
    start: bytes, said: str, refusals: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.transport.connection.HANDSHAKE_SECONDS", 0.3)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        with raw_stranger(listener) as stranger:
            stranger.sendall(start)
            assert len(await asyncio.to_thread(read_to_end, stranger)) < 100
        (line,) = refusals()
        assert any(part in line for part in said.split("|"))

    run_pair(scenario)


def test_who_does_not_encrypt_is_refused_from_another_machine(
    refusals: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encryption, "is_loopback", lambda host: False)

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        plain = f"tcp://127.0.0.1:{listener.port}"
        began = time.monotonic()
        with pytest.raises(HandshakeFailed, match="takes encrypted connections only; write tls://"):
            await asyncio.to_thread(BlockingConnection.connect, plain, SECRET, "client", ("worker",))
        assert time.monotonic() - began < 2, "it was tried again and again"
        assert refusals() == [
            "refused a connection from 127.0.0.1: it does not encrypt, and only processes of this machine need not; "
            "write tls:// there"
        ]

    run_pair(scenario)


def test_a_process_of_this_machine_need_not_encrypt() -> None:
    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        there.answer = echo
        plain = type("Listener", (), {"address": f"tcp://127.0.0.1:{listener.port}"})()
        second = await connected_to(plain, here)
        second.send(messages.Query(1, "ping", b"x" * 1_000_000))
        await here.until(lambda: bool(here.messages))
        assert there.connections[1].peer_address.startswith("tcp://")
        assert there.connections[0].peer_address.startswith("tls://")
        second.abort()

    run_pair(scenario)


@pytest.mark.parametrize("face", ["blocking", "asyncio"])
def test_whoever_encrypts_is_told_that_nobody_does_there(face: str, refusals: Callable[[], list[str]]) -> None:
    encrypting.clear()

    async def scenario(listener: Listener, there: Peer, connection: Connection, here: Peer) -> None:
        address = f"tls://127.0.0.1:{listener.port}"
        with pytest.raises(HandshakeFailed, match="it refuses encrypted connections; on its own machine write tcp://"):
            if face == "asyncio":
                await connected_to(type("Listener", (), {"address": address})(), here)
            else:
                await asyncio.to_thread(BlockingConnection.connect, address, SECRET, "client", ("worker",))
        assert len(refusals()) == 1

    run_pair(scenario)


def test_a_server_of_another_kind_is_told_apart() -> None:
    with mail_server() as port, pytest.raises(HandshakeFailed, match="what it sends is not TLS"):
        BlockingConnection.connect(f"tls://127.0.0.1:{port}", SECRET)


# --------------------------------------------------------------------------- the certificate


def test_a_certificate_is_made_once_and_is_this_users_alone(tmp_path: Path) -> None:
    first = load_or_create_certificate(tmp_path / "settings")
    file = tmp_path / "settings" / CERTIFICATE_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == [CERTIFICATE_FILE]
    assert load_or_create_certificate(tmp_path / "settings").fingerprint == first.fingerprint
    assert load_or_create_certificate(tmp_path / "others").fingerprint != first.fingerprint


def test_those_who_start_at_once_end_with_one_certificate(tmp_path: Path) -> None:
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_or_create_certificate(tmp_path / "settings").fingerprint))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8


def test_a_certificate_near_its_end_is_made_anew(tmp_path: Path) -> None:
    first = load_or_create_certificate(tmp_path / "settings")
    file = tmp_path / "settings" / CERTIFICATE_FILE
    text = file.read_text()
    until = read_expiry(text)
    assert until is not None
    file.write_text(text.replace(str(until), "2020-01-01"))
    assert load_or_create_certificate(tmp_path / "settings").fingerprint != first.fingerprint
    assert read_expiry(file.read_text()) == until
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_certificate_of_the_users_own_is_taken_and_never_replaced(tmp_path: Path) -> None:
    first = load_or_create_certificate(tmp_path / "settings")
    file = tmp_path / "settings" / CERTIFICATE_FILE
    file.write_text(file.read_text().partition("\n")[2])
    assert read_expiry(file.read_text()) is None
    assert load_or_create_certificate(tmp_path / "settings").fingerprint == first.fingerprint


@pytest.mark.parametrize("wrong", ["empty", "garbage", "without a key", "open to others", "a link"])
def test_a_certificate_that_cannot_be_used_is_named(wrong: str, tmp_path: Path) -> None:
    load_or_create_certificate(tmp_path)
    file = tmp_path / CERTIFICATE_FILE
    text = file.read_text()
    if wrong == "empty":
        file.write_text("")
    elif wrong == "garbage":
        file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif wrong == "without a key":
        file.write_text(text[: text.index("-----BEGIN PRIVATE")])
    elif wrong == "open to others":
        file.chmod(0o644)
    else:
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingError, match=str(file)):
        load_or_create_certificate(tmp_path)
