"""What tasks write is cut into pieces by task, however the reads fall, and foreign bytes harm nobody."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.wire import task_output
from cluster.wire.task_output import (
    END,
    LOG,
    PROGRESS,
    RAW,
    STDERR,
    STDOUT,
    OutputParser,
    Piece,
    pack_mark,
    pack_record,
    unpack_record,
)

TOKEN = b"\x00" + bytes(range(1, 16))


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one source as one."""
    found: list[Piece] = []
    for piece in pieces:
        if found and piece.kind in (RAW, STDOUT, STDERR) and found[-1][:3] == piece[:3]:
            found[-1] = piece._replace(data=found[-1].data + piece.data)
        else:
            found.append(piece)
    return found


def stream() -> bytes:
    """Two tasks, and bytes of nobody between."""
    return b"".join(
        [
            b"nobody's\n",
            pack_mark(TOKEN, STDOUT, 7, 3),
            "grüße\n".encode(),
            *pack_record(TOKEN, LOG, 7, 3, {"message": "x" * 10_000}),
            b"and on\n",
            pack_mark(TOKEN, STDERR, 7, 3),
            b"\x00\x00binary\x00",
            pack_mark(TOKEN, END, 7, 3),
            b"raw \xf0\x9f\x98\x80",
            *pack_record(TOKEN, PROGRESS, 8, 4, {}),
        ]
    )


EXPECTED = [
    Piece(RAW, 0, 0, b"nobody's\n"),
    Piece(STDOUT, 7, 3, "grüße\n".encode()),
    Piece(LOG, 7, 3, b""),
    Piece(STDOUT, 7, 3, b"and on\n"),
    Piece(STDERR, 7, 3, b"\x00\x00binary\x00"),
    Piece(RAW, 0, 0, b"raw \xf0\x9f\x98\x80"),
    Piece(PROGRESS, 8, 4, b""),
]


def check(pieces: list[Piece]) -> None:
    found = joined(pieces)
    assert [piece._replace(data=b"") if piece.kind == LOG else piece for piece in found] == EXPECTED
    assert unpack_record(found[2].data) == {"message": "x" * 10_000}


@given(st.lists(st.integers(1, 200)))
def test_pieces_do_not_depend_on_how_the_reads_fall(sizes: list[int]) -> None:
    parser, data, pieces = OutputParser(TOKEN), stream(), []
    for size in sizes:
        pieces += parser.feed(data[:size])
        data = data[size:]
    check(pieces + parser.feed(data) + parser.finish())


def test_one_byte_at_a_time_no_character_is_cut() -> None:
    parser, pieces = OutputParser(TOKEN), []
    for byte in stream():
        pieces += parser.feed(bytes([byte]))
    check(pieces + parser.finish())
    for piece in pieces:
        if piece.kind in (RAW, STDOUT):
            piece.data.decode()


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_random_bytes_come_out_as_they_went_in(size: int) -> None:
    parser, data = OutputParser(TOKEN), os.urandom(size)
    pieces = parser.feed(data) + parser.finish()
    assert b"".join(piece.data for piece in pieces) == data
    assert {piece.kind for piece in pieces} == {RAW}


def test_a_record_is_cut_in_its_middle_and_each_part_fits_a_pipe() -> None:
    parts = pack_record(TOKEN, LOG, 1, 2, {"message": "a" * 500_000 + "z"})
    assert max(map(len, parts)) <= 4096
    [piece] = OutputParser(TOKEN).feed(b"".join(parts))
    message = unpack_record(piece.data)["message"]
    assert message.startswith("aaa")
    assert message.endswith("z")
    assert "bytes not shown" in message
    assert len(piece.data) < task_output.RECORD_LIMIT_BYTES


def test_what_is_no_record_is_none() -> None:
    assert unpack_record(b"\xc1") == {}
    assert unpack_record(b"\x01") == {}
    assert unpack_record(b"\x81\xa1") == {}


def test_a_broken_mark_is_passed_over() -> None:
    mark = bytearray(pack_mark(TOKEN, LOG, 1, 1))
    mark[-4:] = b"\xff\xff\xff\xff"
    assert OutputParser(TOKEN).feed(bytes(mark) + b"text") == [Piece(RAW, 0, 0, b"text")]
