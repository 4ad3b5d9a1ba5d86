"""The pickles that are made column by column are what the pickler would have made sense of."""

from __future__ import annotations

import math
import pickle
from array import array
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.wire.number_columns import pack_number_calls

INTS_64 = st.integers(-(2**63), 2**63 - 1)
COLUMN_ITEMS = st.sampled_from([INTS_64, st.integers(-(2**31), 2**31 - 1), st.floats(), st.booleans(), st.none()])


def unpacked(packed: tuple[bytes, bytes]) -> list[tuple[Any, ...]]:
    offsets, blob = array("I", packed[0]), packed[1]
    return [pickle.loads(blob[start:stop]) for start, stop in pairwise(offsets)]


@st.composite
def columns_of_numbers(draw: st.DrawFn) -> list[list[Any]]:
    count = draw(st.integers(1, 20))
    width = draw(st.integers(1, 5))
    return [draw(st.lists(draw(COLUMN_ITEMS), min_size=count, max_size=count)) for _ in range(width)]


@given(columns_of_numbers())
def test_each_call_comes_back(columns: list[list[Any]]) -> None:
    packed = pack_number_calls(columns)
    assert packed is not None
    found = unpacked(packed)
    # repr tells True from 1, 1.0 from 1, -0.0 from 0.0, and one NaN is like another.
    assert list(map(repr, found)) == list(map(repr, zip(*columns, strict=True)))


def test_a_range_is_taken_without_looking_at_its_items() -> None:
    packed = pack_number_calls([range(10, 0, -3)])
    assert packed is not None
    assert unpacked(packed) == [(10,), (7,), (4,), (1,)]


@pytest.mark.parametrize("column", [[1, 2.0], [1, True], [2**63], ["a"], [1j], [math], [None, 0]])
def test_a_column_of_anything_else_is_left_to_the_pickler(column: list[Any]) -> None:
    assert pack_number_calls([column]) is None


def test_a_subclass_of_a_number_is_left_to_the_pickler() -> None:
    class Celsius(float):
        pass

    assert pack_number_calls([[Celsius(1.0)]]) is None
