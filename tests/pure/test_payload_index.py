"""The labels of pandas' frames come back as they were."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.wire.pandas_index import index_from
from cluster.wire.payload import dumps, loads

KINDS: dict[str, pd.Index[Any]] = {
    "strings": pd.Index(["a", "b", None, "a"], name=("two", 2)),
    "objects": pd.Index(["a", 1, None, (1, 2)], dtype=object),
    "numbers": pd.Index(np.array([3, 1, 2], dtype=np.int16), name="n"),
    "floats": pd.Index([np.nan, 0.5]),
    "truths": pd.Index([True, False]),
    "nullable": pd.Index(pd.array([1, None], dtype="Int64")),
    "nothing": pd.Index([], dtype=object),
    "range": pd.RangeIndex(5, name="r"),
    "times": pd.date_range("2026-01-01", periods=3, name="t"),
    "categories": pd.CategoricalIndex(["x", "y", "x"]),
    "levels": pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["one", "two"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_comes_back_as_it_was(kind: str) -> None:
    index = KINDS[kind]
    plainly = dumps(index)
    assert (b"index_from" in plainly.to_bytes()) == (kind not in ("range", "times"))  # others have plain ones inside
    in_full = dumps([index, lambda: None])  # a function of no name that can be imported needs the other pickler
    for found in (loads(bytearray(plainly.to_bytes())), loads(bytearray(in_full.to_bytes()))[0]):
        pd.testing.assert_index_equal(found, index, exact=True)
        assert (type(found), found.name, found.names) == (type(index), index.name, index.names)


def test_one_index_of_two_frames_is_one_and_what_is_made_of_it_is_right() -> None:
    index = KINDS["strings"]
    frames = {"one": pd.DataFrame({"x": range(4)}, index=index), "two": pd.DataFrame({"y": range(4)}, index=index)}
    found = loads(bytearray(dumps(frames).to_bytes()))
    assert found["one"].index is found["two"].index
    joined = found["one"].join(found["two"].groupby(level=0).sum())
    pd.testing.assert_frame_equal(joined, frames["one"].join(frames["two"].groupby(level=0).sum()))
    found["one"].loc["c"] = 5
    assert (found["one"].index[-1], len(found["two"])) == ("c", 4)


def test_where_pandas_has_no_such_way_an_index_is_made_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    index, made = KINDS["numbers"], pd.Index
    without_it = SimpleNamespace(Index=lambda data, **options: made(data, **options))
    monkeypatch.setitem(sys.modules, "pandas", without_it)
    found = index_from(index._data, index.name)
    pd.testing.assert_index_equal(found, index, exact=True)
