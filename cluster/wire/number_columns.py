"""Pickles the arguments of many calls at once where they are numbers, column by column.

Calls of which the first argument is always, say, an int of 32 bits have pickles that differ in four bytes only. So the
pickles of all calls are laid down as one pattern, and each byte of a column is written over all of them in one strided
assignment: 0.05 µs a call, where one pickler call each takes 0.4. A pickle made here is an ordinary one, of opcodes
documented in the standard library's `pickletools`.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

__all__ = ["pack_number_calls"]

_PROTOCOL: Final = b"\x80\x05"
_NONE: Final = b"N"
_FALSE: Final = 0x89  # NEWFALSE; NEWTRUE is the code before it
_INT_32: Final = b"J" + bytes(4)  # BININT
_INT_64: Final = b"\x8a\x08" + bytes(8)  # LONG1 of eight bytes
_FLOAT: Final = b"G" + bytes(8)  # BINFLOAT, big-endian
_MARK: Final = b"("
_TUPLES: Final = {1: b"\x85", 2: b"\x86", 3: b"\x87"}  # TUPLE1 …; TUPLE, to the mark, for more
_TUPLE: Final = b"t"
_STOP: Final = b"."


def pack_number_calls(columns: Sequence[Sequence[Any]]) -> tuple[bytes, bytes] | None:
    """Pack calls whose positional arguments are the columns' items, as (offsets, blob) of `Submit`.

    All columns have the same length. None if a column has anything but ints of 64 bits, floats, bools or Nones, or not
    all of one type.

    >>> import pickle
    >>> offsets, blob = pack_number_calls([range(3), [0.5, 1.5, 2.5]])
    >>> pickle.loads(blob[:len(blob) // 3])
    (0, 0.5)
    """
    count = len(columns[0])
    encoded = []
    for column in columns:
        one = _encode(column)
        if one is None:
            return None
        encoded.append(one)
    width = len(columns)
    opening, closing = (b"", _TUPLES[width]) if width in _TUPLES else (_MARK, _TUPLE)
    call = _PROTOCOL + opening + b"".join(pattern for pattern, _ in encoded) + closing + _STOP
    blob = bytearray(call * count)
    at = len(_PROTOCOL) + len(opening)
    for pattern, data in encoded:
        at += len(pattern)
        if data:
            size = len(data) // count
            for byte in range(size):
                blob[at - size + byte :: len(call)] = data[byte::size]
    return _even_offsets(count, len(call)), bytes(blob)


def _encode(column: Sequence[Any]) -> tuple[bytes, bytes] | None:
    """How one item of the column is written, and what differs between the items, one after the other."""
    kinds = {int} if type(column) is range else set(map(type, column))
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    if kind is type(None):
        return _NONE, b""
    if kind is bool:
        return b"\x00", bytes([_FALSE - item for item in column])
    if kind is float:
        return _FLOAT, _bytes_of(array("d", column), "big")
    if kind is not int:
        return None
    try:
        return _INT_32, _bytes_of(array("i", column), "little")
    except OverflowError:
        pass
    try:
        return _INT_64, _bytes_of(array("q", column), "little")
    except OverflowError:
        return None


def _bytes_of(numbers: array[Any], order: str) -> bytes:
    if sys.byteorder != order:
        numbers.byteswap()
    return numbers.tobytes()


@lru_cache(maxsize=16)
def _even_offsets(count: int, size: int) -> bytes:
    return array("I", range(0, size * count + 1, size)).tobytes()
