"""Arrays of Python strings: packed as text where they can be made again exactly, pickled where not."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.wire import object_arrays
from cluster.wire.arguments import ArgumentPacker, LargeArgument
from cluster.wire.payload import Encoded, dumps, loads

pytest.importorskip("pyarrow")

NUMBER = 5000


def texts(number: int = NUMBER) -> list[str]:
    return [f"text {at} \u00e4\u20ac\U0001f600" for at in range(number)]


def as_array(objects: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(objects), dtype=object)
    array[:] = objects
    return array


def packed(encoded: Encoded) -> bool:
    return b"object_arrays" in encoded.to_bytes()


def there_and_back(value: Any) -> tuple[Any, bool]:
    encoded = dumps(value)
    return loads(bytearray(encoded.to_bytes())), packed(encoded)


def check_same(found: Any, array: np.ndarray[Any, Any]) -> None:
    assert type(found) is np.ndarray and found.dtype == array.dtype and found.shape == array.shape
    assert found.flags.writeable and found.flags.c_contiguous == array.flags.c_contiguous
    for one, other in zip(found.ravel().tolist(), array.ravel().tolist(), strict=True):
        assert type(one) is type(other)
        assert one == other or one is other


@pytest.mark.parametrize("missing", [[], [None], [np.nan], [None, np.nan, None]], ids=str)
def test_strings_and_what_is_missing_come_back_as_they_were(missing: list[Any]) -> None:
    array = as_array([*missing, *texts(), *missing, "", "\0"])
    found, is_packed = there_and_back(array)
    assert is_packed
    check_same(found, array)
    assert [one is np.nan for one in found] == [one is np.nan for one in array]


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_shape_and_the_order_in_memory_are_kept(order: Any) -> None:
    array = np.array(as_array(texts()).reshape(10, NUMBER // 10), order=order)
    found, is_packed = there_and_back(array)
    assert is_packed
    check_same(found, array)


class Text(str):
    """A string that is more than one."""


@pytest.mark.parametrize(
    "objects",
    [
        [*texts(), 1],
        [*texts(), 1.5],
        [*texts(), float("nan")],
        [*texts(), np.float64("nan")],
        [*texts(), b"bytes"],
        [*texts(), Text("subclass")],
        [*texts(), np.str_("numpy's")],
        [*texts(), pd.NA],
        [*texts(), pd.NaT],
        [*texts(), True],
        [*texts(), "half of a pair \ud800"],
        texts(10),
        list(range(NUMBER)),
        [None] * NUMBER,
        ["the same", "few objects"] * NUMBER,
    ],
    ids=lambda objects: f"{objects[-1]!r:.20}",
)
def test_anything_else_is_left_to_pickle(objects: list[Any]) -> None:
    array = as_array(objects)
    found, is_packed = there_and_back(array)
    assert not is_packed
    expected = pickle.loads(pickle.dumps(array, 5))
    assert list(map(type, found)) == list(map(type, expected))
    assert list(map(repr, found)) == list(map(repr, expected))


def test_views_subclasses_and_records_are_left_to_pickle() -> None:
    array = as_array(texts())
    for other in (
        array[::2],
        array.view(np.ma.MaskedArray),
        np.array([("a", 1)] * NUMBER, dtype=[("x", object), ("y", int)]),
    ):
        found, is_packed = there_and_back(other)
        assert not is_packed
        assert (found == other).all()


@pytest.mark.parametrize("missing", [[], [None], [None, np.nan]], ids=str)
def test_what_was_packed_is_unpacked_without_pyarrow(missing: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    array = as_array([*texts(), *missing])
    data = bytearray(dumps(array).to_bytes())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_same(loads(data), array)
    assert not packed(dumps(array)), "and nothing is packed there"


def test_frames_of_objects_and_of_strings_come_back_equal_and_their_text_lies_outside_the_pickle() -> None:
    columns = {
        "object": pd.Series(as_array([None, *texts()]), dtype=object),
        "second": pd.Series(as_array([*texts(), np.nan]), dtype=object),
        "string": pd.Series([*texts(), None], dtype="str"),
        "category": pd.Series([*texts(), None], dtype="category"),
        "number": np.arange(NUMBER + 1),
    }
    frame = pd.DataFrame(columns)
    frame.index = pd.Index([*texts(), "last"], dtype=object)
    encoded = dumps(frame)
    found = loads(bytearray(encoded.to_bytes()))
    pd.testing.assert_frame_equal(found, frame, check_exact=True)
    assert (found.dtypes == frame.dtypes).all()
    assert found["object"].iloc[0] is None and found["second"].iloc[-1] is np.nan
    pickled = max((bytes(part) for part in encoded.parts if bytes(part[:1]) == b"\x80"), key=len)
    assert b"text 4321" not in pickled


def test_an_array_of_strings_is_a_large_argument_like_any_other() -> None:
    (large,) = ArgumentPacker().add((as_array(texts()),))
    assert isinstance(large, LargeArgument)
    assert packed(large.encode())


def test_identical_strings_many_times_in_the_sample_are_not_worth_it() -> None:
    assert object_arrays.reduce_strings(as_array(["x"] * NUMBER)) is NotImplemented


def addresses(frame: pd.DataFrame) -> list[int]:
    return [buffer.address for buffer in frame["text"].array._pa_array.chunk(0).buffers() if buffer is not None]


def lie_at(encoded: Encoded) -> set[int]:
    return {np.frombuffer(part, dtype=np.uint8).__array_interface__["data"][0] for part in encoded.parts if len(part)}


@pytest.mark.parametrize("dtype", ["str", "string[pyarrow]", "int64[pyarrow]"])
def test_columns_in_arrows_memory_are_copied_neither_way(dtype: str) -> None:
    values: list[Any] = list(range(NUMBER)) if "int" in dtype else texts()
    frame = pd.DataFrame({"text": pd.Series(values, dtype=dtype)})
    encoded = dumps(frame)
    assert set(addresses(frame)) <= lie_at(encoded)
    data = bytearray(encoded.to_bytes())
    start = np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0]
    found = loads(data)
    assert all(start <= address < start + len(data) for address in addresses(found))
    pd.testing.assert_frame_equal(found, frame)
    assert found["text"].dtype == frame["text"].dtype and found["text"].iloc[3] == values[3]


def test_of_a_slice_in_arrows_memory_only_the_slice_is_pickled() -> None:
    frame = pd.DataFrame({"text": pd.Series(texts(), dtype="str")})
    encoded = dumps(frame.iloc[10:1500])
    assert encoded.nbytes < dumps(frame).nbytes / 2
    pd.testing.assert_frame_equal(loads(bytearray(encoded.to_bytes())), frame.iloc[10:1500])
    joined = pd.concat([frame, frame])
    pd.testing.assert_frame_equal(loads(bytearray(dumps(joined).to_bytes())), joined)
