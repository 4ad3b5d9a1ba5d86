"""Frames: what was encoded comes back whatever the pieces, and nothing that is wrong is let in."""

from __future__ import annotations

import struct
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ProtocolError
from cluster.wire import frames, messages


def _examples_of(annotation: Any) -> st.SearchStrategy[Any]:
    origin, items = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return st.one_of(st.none(), st.integers(0, 2**63), st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3))
    if origin is list:
        return st.lists(_examples_of(items[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(_examples_of(items[0]), _examples_of(items[1]), max_size=3)
    return {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=40),
    }[annotation]


def _messages() -> st.SearchStrategy[Any]:
    kinds = []
    for kind in messages.CLASSES:
        if kind not in (messages.ValueStream, messages.ValuePiece, messages.PutValue):
            hints = get_type_hints(kind)
            kinds.append(st.builds(kind, **{field: _examples_of(hints[field]) for field in kind._fields}))
    return st.one_of(kinds)


def _frame(*items: Any) -> bytes:
    body = msgpack.packb(items)
    return struct.pack("<I", len(body)) + body


RELEASE = messages.CLASSES.index(messages.Release)
DONE = messages.CLASSES.index(messages.Done)
CLIENT_JOIN = messages.CLASSES.index(messages.ClientJoin)
WORKER_JOIN = messages.CLASSES.index(messages.WorkerJoin)


@given(st.lists(_messages(), max_size=6), st.lists(st.integers(1, 30), max_size=30))
def test_messages_come_back_whatever_the_pieces_they_arrive_in(sent: list[Any], sizes: list[int]) -> None:
    data = b"".join(map(frames.encode, sent))
    decoder = frames.Decoder()
    came: list[Any] = []
    for size in sizes:
        came += decoder.feed(data[:size])
        data = data[size:]
    came += decoder.feed(data)
    assert came == sent
    assert [type(one) for one in came] == [type(one) for one in sent]
    assert decoder.pending_bytes == 0


@given(st.binary(max_size=200))
def test_whatever_arrives_is_decoded_or_refused_as_a_protocol_error(data: bytes) -> None:
    decoder = frames.Decoder()
    for piece in (data, struct.pack("<I", len(data)) + data if data else b"\1\0\0\0\xc0"):
        try:
            decoder.feed(piece)
        except ProtocolError:
            decoder = frames.Decoder()


def test_the_buffer_that_was_fed_may_be_overwritten_afterwards() -> None:
    data = bytearray(frames.encode(messages.Value(1, 2, 3, b"value" * 10)) * 2)
    decoder = frames.Decoder()
    view = memoryview(data)
    came = decoder.feed(view[: len(data) // 2 + 10])
    rest = bytes(view[len(data) // 2 + 10 :])
    data[:] = b"\xff" * len(data)
    came += decoder.feed(rest)
    assert came == [messages.Value(1, 2, 3, b"value" * 10)] * 2


@pytest.mark.parametrize("length", [0, frames.FRAME_LIMIT_BYTES + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_anything_behind_it_has_come(length: int) -> None:
    with pytest.raises(ProtocolError, match=str(length)):
        frames.Decoder().feed(struct.pack("<I", length))


def test_a_decoder_may_be_given_a_lower_limit() -> None:
    with pytest.raises(ProtocolError, match="1 to 100"):
        frames.Decoder(100).feed(frames.encode(messages.Value(1, 2, 3, bytes(200))))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<I", 3) + b"\xc1\xc1\xc1", "not msgpack"),
        (struct.pack("<I", 5) + b"\xdd\x7f\xff\xff\xff", "not msgpack"),
        (struct.pack("<I", 2000) + b"\x91" * 2000, "not msgpack"),
        (struct.pack("<I", 4) + b"\x92\x04\xa1\xff", "not msgpack"),
        (_frame(), "not an array"),
        (_frame("Release", [1]), "not an array"),
        (_frame(True, [1]), "not an array"),
        (struct.pack("<I", 1) + b"\x05", "not an array"),
        (_frame(len(messages.CLASSES)), "code"),
        (_frame(-1), "code"),
        (_frame(RELEASE), "Release has 1 field"),
        (_frame(RELEASE, [1], [2]), "Release has 1 field"),
        (_frame(RELEASE, {"runs": 1}), r"Release\.runs must be list, but dict came"),
        (_frame(RELEASE, None), r"Release\.runs"),
        (_frame(RELEASE, [1, "2"]), r"Release\.runs"),
        (_frame(RELEASE, [1, True]), r"Release\.runs"),
        (_frame(RELEASE, [1, [2]]), r"Release\.runs"),
        (_frame(CLIENT_JOIN, b"id", "name", {}, "2"), r"ClientJoin\.weight must be float"),
        (_frame(CLIENT_JOIN, b"id", b"name", {}, 1.0), r"ClientJoin\.name must be str, but bytes came"),
        (_frame(CLIENT_JOIN, b"id", "name", {"python": 3}, 1.0), r"ClientJoin\.versions"),
        (_frame(CLIENT_JOIN, b"id", "name", {b"python": "3"}, 1.0), r"ClientJoin\.versions"),
        (_frame(WORKER_JOIN, b"id", "w", "a", 1, 1, {"GPU": "1"}, {}, 1), r"WorkerJoin\.resources"),
        (_frame(DONE, 1, 2, [], b"", b"", b"", "0.1", 0.1, []), r"Done\.run_seconds must be float"),
    ],
)
def test_a_frame_that_is_no_message_is_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        frames.Decoder().feed(data)


def test_a_whole_number_is_good_for_a_float() -> None:
    came = frames.Decoder().feed(_frame(DONE, 1, 2, [], b"", b"", b"", 0, 1, []))
    assert came == [messages.Done(1, 2, [], b"", b"", b"", 0.0, 1.0, [])]
    assert type(came[0].run_seconds) is float


@pytest.mark.parametrize(
    "message",
    [
        messages.Query(1, "ping", object()),
        messages.Query(2**70, "ping", None),
        ("no", "message"),
        messages.Value(1, 2, 3, bytes(frames.FRAME_LIMIT_BYTES)),
    ],
)
def test_what_cannot_be_sent_is_an_error_of_the_sender(message: Any) -> None:
    with pytest.raises(ProtocolError):
        frames.encode(message)


RAW = bytes(range(256)) * 4
BEHIND = messages.PutDone(1, 2, "")


@pytest.mark.parametrize(
    "announcement", [messages.ValueStream(1, 2, 3, len(RAW)), messages.PutValue(2, 3, len(RAW), b"")]
)
@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_raw_bytes_are_kept_apart_from_the_messages_around_them(announcement: Any, size: int) -> None:
    data = frames.encode(BEHIND) + frames.encode(announcement) + RAW + frames.encode(BEHIND)
    decoder = frames.Decoder()
    came: list[Any] = []
    raw = b""
    for at in range(0, len(data), size):
        came += decoder.feed(data[at : at + size])
        while decoder.raw_bytes_expected and (taken := decoder.take_raw(50)):
            raw += taken
        if not decoder.raw_bytes_expected:
            came += decoder.feed(b"")
    assert came == [BEHIND, announcement, BEHIND]
    assert raw == RAW


def test_raw_bytes_that_went_straight_to_their_place_are_counted() -> None:
    decoder = frames.Decoder()
    decoder.feed(frames.encode(messages.ValueStream(1, 2, 3, 1000)) + b"x" * 10)
    assert decoder.take_raw(1000) == b"x" * 10
    decoder.raw_received(980)
    assert decoder.raw_bytes_expected == 10
    with pytest.raises(ProtocolError):
        decoder.raw_received(11)
    decoder.raw_received(10)
    assert decoder.feed(frames.encode(BEHIND)) == [BEHIND]


def test_a_put_value_that_carries_its_data_announces_nothing() -> None:
    decoder = frames.Decoder()
    message = messages.PutValue(1, 2, 3, b"abc")
    assert decoder.feed(frames.encode(message) + frames.encode(BEHIND)) == [message, BEHIND]
    assert decoder.raw_bytes_expected == 0


def test_a_negative_size_of_raw_bytes_is_refused() -> None:
    with pytest.raises(ProtocolError, match="negative"):
        frames.Decoder().feed(frames.encode(messages.ValueStream(1, 2, 3, -5)))
