"""The handshake: those who share the secret find each other, nobody else learns or gets anything."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cluster.errors import ClusterError, HandshakeFailed, Intercepted, SettingError, VersionMismatch, WrongSecret
from cluster.wire import handshake as module
from cluster.wire.handshake import HANDSHAKE_LIMIT_BYTES, Handshake, PeerInfo

SECRET = bytes(range(32))
OTHER_SECRET = bytes(32)
HELLO_BYTES = 42


def _connecting(secret: bytes = SECRET, role: str = "client", **more: Any) -> Handshake:
    return Handshake(secret, role, False, ("scheduler",), **more)


def _listening(secret: bytes = SECRET, role: str = "scheduler", **more: Any) -> Handshake:
    return Handshake(secret, role, True, ("client", "worker"), **more)


def _let_them_talk(one: Handshake, two: Handshake, piece: int = 10_000) -> tuple[ClusterError | None, ...]:
    """Carry bytes to and fro until nobody has any; what each of them raised."""
    errors: list[ClusterError | None] = [None, None]
    sides = (one, two)
    while any(outgoing := [side.data_to_send() for side in sides]):
        for at, data in enumerate(outgoing):
            hearer = 1 - at
            for start in range(0, len(data), piece):
                if errors[hearer] is None:
                    try:
                        sides[hearer].feed(data[start : start + piece])
                    except ClusterError as error:
                        errors[hearer] = error
    return tuple(errors)


@pytest.mark.parametrize("piece", [1, 5, 10_000])
def test_two_who_share_the_secret_know_each_other_afterwards(piece: int) -> None:
    client, scheduler = _connecting(versions={"python": "3.11.1", "x": "1"}), _listening(versions={"python": "3.11.9"})
    assert _let_them_talk(client, scheduler, piece) == (None, None)
    assert client.complete
    assert scheduler.complete
    assert client.peer == PeerInfo("scheduler", {"python": "3.11.9"})
    assert scheduler.peer == PeerInfo("client", {"python": "3.11.1", "x": "1"})


def test_what_came_behind_the_handshake_is_handed_over() -> None:
    client, scheduler = _connecting(), _listening()
    scheduler.feed(client.data_to_send())
    client.feed(scheduler.data_to_send())
    scheduler.feed(client.data_to_send() + b"first frame")
    assert scheduler.rest() == b"first frame"
    client.feed(scheduler.data_to_send() + b"welcome")
    assert client.rest() == b"welcome"
    assert client.rest() == b""


def test_another_secret_is_refused_and_both_sides_say_so() -> None:
    client, scheduler = _connecting(OTHER_SECRET), _listening()
    errors = _let_them_talk(client, scheduler)
    assert [type(error) for error in errors] == [WrongSecret, WrongSecret]
    assert not client.complete
    assert not scheduler.complete
    assert scheduler.peer == PeerInfo("", {})
    assert client.peer == PeerInfo("", {})


def test_a_listener_that_does_not_know_the_secret_is_refused() -> None:
    # It pretends to have checked the client's proof, and sends one of its own making.
    client, pretender = _connecting(), _listening(OTHER_SECRET)
    pretender.feed(client.data_to_send())
    client.feed(pretender.data_to_send())
    client.data_to_send()
    with pytest.raises(WrongSecret):
        client.feed(struct.pack("<H", 60) + bytes(60))
    assert not client.complete


def test_a_listener_says_nothing_but_its_challenge_to_whoever_has_not_proved_itself() -> None:
    client, scheduler = _connecting(OTHER_SECRET), _listening()
    assert scheduler.data_to_send() == b""
    scheduler.feed(client.data_to_send())
    challenge = scheduler.data_to_send()
    assert len(challenge) == HELLO_BYTES
    client.feed(challenge)
    with pytest.raises(WrongSecret):
        scheduler.feed(client.data_to_send())
    assert scheduler.data_to_send() == b"\0\0"


def test_what_was_sent_cannot_be_sent_back() -> None:
    client = _connecting()
    with pytest.raises(HandshakeFailed, match="sent back"):
        client.feed(client.data_to_send())
    # Nor by way of a second connection, where the hellos differ but the proof is the first one's own.
    first, second = _connecting(), _listening()
    second.feed(first.data_to_send())
    first.feed(second.data_to_send())
    with pytest.raises(WrongSecret):
        first.feed(first.data_to_send())


def test_a_recorded_handshake_is_worth_nothing() -> None:
    client, scheduler = _connecting(), _listening()
    recorded = [client.data_to_send()]
    scheduler.feed(recorded[0])
    client.feed(scheduler.data_to_send())
    recorded.append(client.data_to_send())
    scheduler.feed(recorded[1])
    assert scheduler.complete
    again = _listening()
    again.feed(recorded[0])
    with pytest.raises(WrongSecret):
        again.feed(recorded[1])


@pytest.mark.parametrize("position", [0, 8, 10, HELLO_BYTES - 1, HELLO_BYTES, HELLO_BYTES + 2, HELLO_BYTES + 34, -1])
def test_a_byte_changed_on_the_way_to_the_listener_is_noticed(position: int) -> None:
    client, scheduler = _connecting(), _listening()
    with pytest.raises(HandshakeFailed):
        sent = bytearray(client.data_to_send())
        if 0 <= position < HELLO_BYTES:
            sent[position] ^= 1
        scheduler.feed(sent)
        client.feed(scheduler.data_to_send())
        sent += client.data_to_send()
        if not 0 <= position < HELLO_BYTES:
            sent[position] ^= 1
        scheduler.feed(sent[HELLO_BYTES:])
        # A size changed upwards leaves the listener waiting, until its time is over.
        assert not scheduler.complete
        scheduler.feed(bytes(HANDSHAKE_LIMIT_BYTES))
    assert not scheduler.complete


@pytest.mark.parametrize("position", [0, 8, 10, HELLO_BYTES - 1, HELLO_BYTES + 2, HELLO_BYTES + 34, -1])
def test_a_byte_changed_on_the_way_back_is_noticed(position: int) -> None:
    client, scheduler = _connecting(), _listening()
    scheduler.feed(client.data_to_send())
    with pytest.raises(HandshakeFailed):
        sent = bytearray(scheduler.data_to_send())
        if 0 <= position < HELLO_BYTES:
            sent[position] ^= 1
        client.feed(sent)
        scheduler.feed(client.data_to_send())
        sent += scheduler.data_to_send()
        sent[position] ^= 1
        client.feed(sent[HELLO_BYTES:])
    assert not client.complete


def test_the_claims_of_a_peer_cannot_be_changed_on_the_way() -> None:
    client, scheduler = _connecting(), _listening()
    scheduler.feed(client.data_to_send())
    client.feed(scheduler.data_to_send())
    proof = client.data_to_send()
    assert b"client" in proof
    with pytest.raises(WrongSecret):
        scheduler.feed(proof.replace(b"client", b"worker"))


def test_another_minor_version_of_python_is_refused_with_both_named() -> None:
    client, scheduler = _connecting(versions={"python": "3.12.4"}), _listening(versions={"python": "3.11.9"})
    for error in _let_them_talk(client, scheduler):
        assert type(error) is VersionMismatch
        assert "3.12.4" in str(error)
        assert "3.11.9" in str(error)


def test_another_protocol_is_refused_with_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROTOCOL", 7)
    newer = _connecting()
    hello = newer.data_to_send()
    monkeypatch.undo()
    older = _listening()
    with pytest.raises(VersionMismatch, match=r"version 7 .* version 1"):
        older.feed(hello)
    answer = older.data_to_send()
    monkeypatch.setattr(module, "PROTOCOL", 7)
    with pytest.raises(VersionMismatch, match=r"version 1 .* version 7"):
        newer.feed(answer)


def test_a_role_that_is_not_expected_there_is_refused_on_both_sides() -> None:
    worker = Handshake(SECRET, "worker", False, ("scheduler",))
    agent = Handshake(SECRET, "worker", True, ("client", "worker"))
    errors = _let_them_talk(worker, agent)
    assert type(errors[0]) is HandshakeFailed
    assert "expected a scheduler, but met a worker" in str(errors[0])
    scheduler = Handshake(SECRET, "scheduler", False, ("worker",))
    agent = Handshake(SECRET, "worker", True, ("client", "worker"))
    errors = _let_them_talk(scheduler, agent)
    assert "refused this scheduler" in str(errors[0])
    assert "expected a client or a worker, but met a scheduler" in str(errors[1])


def test_an_http_request_is_told_so_in_http() -> None:
    scheduler = _listening()
    with pytest.raises(HandshakeFailed, match="HTTP"):
        scheduler.feed(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = scheduler.data_to_send()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert len(answer) < 300


@pytest.mark.parametrize(
    "garbage", [b"\x17\x03\x03\x02\0\x01\0\x01", b"\xff" * 8, b"SSH-2.0-OpenSSH", b"X", struct.pack("<Q", 2**62)]
)
def test_garbage_is_refused_at_its_first_bytes_and_not_answered(garbage: bytes) -> None:
    scheduler = _listening()
    with pytest.raises(HandshakeFailed, match="does not speak"):
        scheduler.feed(garbage)
    assert scheduler.data_to_send() == b""


@pytest.mark.parametrize("size", [1, 32, HANDSHAKE_LIMIT_BYTES, 65535])
def test_a_proof_of_an_impossible_size_is_refused_when_it_is_announced(size: int) -> None:
    client, scheduler = _connecting(), _listening()
    scheduler.feed(client.data_to_send())
    with pytest.raises(HandshakeFailed, match=f"a proof of {size} bytes"):
        scheduler.feed(struct.pack("<H", size))


def test_a_peer_that_has_the_secret_but_talks_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for claims in (b"\xc1", b"\x90", b"\x81\xa4role\x01"):
        client, scheduler = _connecting(), _listening()
        monkeypatch.setattr("cluster.wire.handshake.msgpack.packb", lambda _, claims=claims: claims)
        errors = _let_them_talk(client, scheduler)
        monkeypatch.undo()
        assert type(errors[1]) is HandshakeFailed
        assert "has the secret" in str(errors[1])


def test_a_short_secret_is_no_secret() -> None:
    with pytest.raises(SettingError, match="32 bytes"):
        _connecting(b"secret")


def test_tls_where_nothing_is_encrypted_is_refused_in_its_own_words() -> None:
    scheduler = _listening()
    with pytest.raises(HandshakeFailed, match="a TLS hello, but nothing is encrypted on this port"):
        scheduler.feed(b"\x16\x03\x01\x02\0\x01\0\x01")
    alert = scheduler.data_to_send()
    client = _connecting()
    with pytest.raises(HandshakeFailed, match="it takes encrypted connections only; write tls://"):
        client.feed(alert)


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        ("a", "b", "see different certificates"),
        ("a", "", "at one of its ends only"),
        ("", "b", "at one of its ends only"),
    ],
)
def test_two_who_do_not_see_the_same_channel_have_somebody_between_them(here: str, there: str, said: str) -> None:
    client, scheduler = _connecting(), _listening()
    client.channel, scheduler.channel = here, there
    errors = _let_them_talk(client, scheduler)
    assert [type(error) for error in errors] == [Intercepted, Intercepted]
    assert all(said in str(error) for error in errors)
    assert not client.complete
    assert not scheduler.complete


def test_the_channel_in_the_claims_cannot_be_changed_on_the_way() -> None:
    client, scheduler = _connecting(), _listening()
    client.channel, scheduler.channel = "a" * 64, "b" * 64
    scheduler.feed(client.data_to_send())
    client.feed(scheduler.data_to_send())
    proof = client.data_to_send()
    with pytest.raises(WrongSecret):
        scheduler.feed(proof.replace(b"a" * 64, b"b" * 64))


def test_two_who_see_the_same_channel_know_each_other() -> None:
    client, scheduler = _connecting(), _listening()
    client.channel = scheduler.channel = "a" * 64
    assert _let_them_talk(client, scheduler) == (None, None)
    assert client.complete
    assert scheduler.complete
