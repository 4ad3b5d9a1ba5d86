"""Values survive their trip as bytes, whatever they are made of, and lie where they were mapped."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import gc
import mmap
import pickle
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import SerializationError
from cluster.wire import payload
from cluster.wire.arguments import ArgumentPacker
from cluster.wire.payload import FutureReference, Mark, dumps, loads


def there_and_back(value: Any) -> Any:
    return loads(dumps(value).to_bytes())


def mapped(value: Any) -> Any:
    """Load a value as a slot does: over a private map of a file."""
    encoded = dumps(value)
    with tempfile.TemporaryFile() as file:
        file.writelines(encoded.parts)
        file.flush()
        assert file.tell() == encoded.nbytes
        return loads(memoryview(mmap.mmap(file.fileno(), encoded.nbytes, access=mmap.ACCESS_COPY)))


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: float
    label: str = "p"


Pair = collections.namedtuple("Pair", "left right")


class Buffered:
    """A class of a user's own that hands out its buffer."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Buffered, (pickle.PickleBuffer(self.data),)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(max_size=9000)
    | st.binary().map(bytearray)
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.timedeltas()
    | st.just(Colour.RED)
    | st.builds(Point, st.floats(allow_nan=False), st.text())
)
HASHABLE = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner)
        | st.sets(HASHABLE)
        | st.frozensets(HASHABLE)
        | st.builds(Pair, inner, inner)
        | st.lists(inner).map(collections.deque)
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
    ),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_containers_of_plain_data_come_back_equal(value: Any) -> None:
    encoded = dumps(value)
    back = loads(encoded.to_bytes())
    assert back == value
    assert type(back) is type(value)
    assert encoded.nbytes == len(encoded.to_bytes())
    assert encoded.futures == []


DTYPES = ["u1", "<i4", "f8", "c16", "?", "datetime64[ns]", "timedelta64[s]", "S5", "U3", [("a", "i4"), ("b", "f8")]]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 40), min_size=0, max_size=3),
    st.sampled_from("CF"),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_arrays_come_back_equal_and_writable(dtype: Any, shape: list[int], order: Any, step: int, map_it: bool) -> None:
    items = int(np.prod(shape, dtype=int)) if shape else 1
    template = np.zeros(items, dtype)
    raw = np.arange(template.nbytes, dtype="u1") % 2 if dtype == "?" else np.arange(template.nbytes, dtype="u1") % 100
    array = np.frombuffer(raw.tobytes(), dtype, count=items).reshape(shape, order=order).copy(order=order)
    if shape:
        array = array[::step]
    back = mapped(array) if map_it and array.nbytes else there_and_back(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def test_fortran_order_is_kept() -> None:
    back = mapped(np.asfortranarray(np.arange(10000.0).reshape(100, 100)))
    assert back.flags.f_contiguous
    assert back[1, 0] == 100.0


def test_a_view_with_gaps_is_packed_once_and_mapped_without_a_copy() -> None:
    encoded = dumps(np.arange(40000.0).reshape(200, 200)[:, ::2])
    assert encoded.nbytes < 170_000
    target = bytearray(encoded.to_bytes())
    back = loads(memoryview(target))
    before = bytes(target)
    back[0, 0] = -1.0
    assert bytes(target) != before


@pytest.mark.parametrize(
    "array",
    [
        np.broadcast_to(np.float64(1), (2000, 3000)),
        np.broadcast_to(np.arange(1000.0), (4000, 1000)),
        np.broadcast_to(np.arange(10_000.0).reshape(100, 1, 100)[:, :, ::2], (100, 300, 50)),
        np.broadcast_to(np.array([{"a": 1}, None], dtype=object), (5000, 2)),
        np.broadcast_to(np.array([(1, 2.0)], dtype="i4,f8"), (5000,)),
        np.broadcast_to(np.arange(0.0), (5000, 0)),
    ],
)
def test_of_an_array_that_repeats_itself_only_what_it_repeats_is_pickled(array: Any) -> None:
    assert dumps(array).nbytes < 50_000
    back = mapped(array) if array.nbytes else there_and_back(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tolist() == array.tolist()
    assert not back.flags.writeable or not array.nbytes
    assert not array.nbytes or back.strides.count(0) == array.strides.count(0)
    packer = ArgumentPacker()
    assert list(packer.add((array,))) == []
    assert packer.nbytes < 50_000


def test_an_array_that_repeats_itself_and_can_be_written_to_is_copied() -> None:
    array = np.lib.stride_tricks.as_strided(np.arange(10.0), (1000, 10), (0, 8))
    back = there_and_back(array)
    back[0, 0] = 5.0
    assert back[1, 0] == 0.0
    alone = np.lib.stride_tricks.as_strided(np.arange(1000.0), (1, 1000), (0, 8), writeable=False)
    assert there_and_back(alone).tolist() == alone.tolist(), "an axis of one place repeats nothing"


def test_object_arrays_come_back() -> None:
    array = np.array([{"a": 1}, None, "text", 10**30] * 2000, dtype=object)
    assert there_and_back(array).tolist() == array.tolist()


def test_a_read_only_array_stays_read_only_and_others_are_writable() -> None:
    frozen = np.arange(5000)
    frozen.flags.writeable = False
    assert not there_and_back(frozen).flags.writeable
    assert there_and_back(np.arange(5000)).flags.writeable


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": np.arange(5000), "b": np.arange(5000) * 0.5, "c": ["x", None] * 2500}),
        pd.DataFrame({"a": np.arange(5000), "b": 1.0}).iloc[1000:4000],
        pd.DataFrame(
            {"k": pd.Categorical(["u", "v"] * 2500), "t": pd.date_range("2013-01-01", periods=5000, tz="UTC")}
        ),
        pd.DataFrame({"n": pd.array([1, None] * 2500, dtype="Int64")}, index=pd.RangeIndex(5000, name="row")),
        pd.DataFrame(),
    ],
    ids=["mixed", "slice", "extension types", "nullable", "empty"],
)
@pytest.mark.parametrize("load", [there_and_back, mapped], ids=["bytes", "map"])
def test_frames_come_back_equal_and_can_be_changed(frame: pd.DataFrame, load: Callable[[Any], Any]) -> None:
    back = load(frame)
    pd.testing.assert_frame_equal(back, frame)
    if len(frame):
        back[back.columns[0]] = 0
        back.loc[back.index[0], "new"] = 1.0


def test_large_buffers_are_not_copied_on_the_way_out_or_in() -> None:
    array = np.zeros(4_000_000, dtype="u1")
    loads(memoryview(bytearray(dumps(np.zeros(5000)).to_bytes())))
    tracemalloc.start()
    try:
        encoded = dumps({"array": array, "text": b"x" * 10})
        assert tracemalloc.get_traced_memory()[1] < 100_000
        target = bytearray(encoded.to_bytes())
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        back = loads(memoryview(target))
        assert tracemalloc.get_traced_memory()[1] - before < 100_000
    finally:
        tracemalloc.stop()
    assert back["array"].nbytes == array.nbytes


def test_large_bytes_are_written_from_where_they_lie() -> None:
    data = bytes(1_000_000)
    encoded = dumps([1, data])
    assert any(part is data for part in encoded.parts)
    assert loads(encoded.to_bytes()) == [1, data]


def test_every_buffer_begins_at_a_multiple_of_64_bytes() -> None:
    arrays = [np.arange(1000 + 13 * index, dtype="u8").view("u1")[: 4096 + index] for index in range(20)]
    target = np.zeros(1_000_000, "u1")
    start = -target.ctypes.data % 64
    data = dumps(arrays).to_bytes()
    target[start : start + len(data)] = np.frombuffer(data, "u1")
    for array in loads(memoryview(target)[start : start + len(data)]):
        assert array.ctypes.data % 64 == 0


def test_a_class_with_buffers_of_its_own_comes_back_over_its_map() -> None:
    target = bytearray(dumps(Buffered(bytearray(b"abc" * 5000))).to_bytes())
    back = loads(memoryview(target))
    assert bytes(back.data) == b"abc" * 5000
    assert isinstance(back.data, memoryview)


def test_many_buffers_in_one_value() -> None:
    value = {index: np.full(600, index, dtype="f8") for index in range(3000)}
    back = mapped(value)
    assert all((back[index] == index).all() for index in value)


def test_a_shared_object_stays_shared_and_a_cycle_stays_a_cycle() -> None:
    array = np.arange(5000)
    value: list[Any] = [array, array]
    value.append(value)
    back = there_and_back(value)
    assert back[0] is back[1]
    assert back[2] is back


def test_functions_and_classes_that_cannot_be_imported_travel_by_value() -> None:
    factor = 3

    class Local:
        def times(self, number: int) -> int:
            return number * factor

    assert there_and_back(Local)().times(5) == 15
    assert there_and_back(lambda number: number + factor)(1) == 4
    assert there_and_back(Point) is Point
    assert there_and_back(test_a_shared_object_stays_shared_and_a_cycle_stays_a_cycle).__name__.startswith("test_")


def test_what_others_register_to_pickle_a_class_is_honoured_at_once() -> None:
    class Odd:
        def __reduce__(self) -> Any:
            raise TypeError("never")

    dumps([1])
    copyreg.pickle(Odd, lambda odd: (int, ("7",)))
    try:
        assert there_and_back([Odd()]) == [7]
    finally:
        del copyreg.dispatch_table[Odd]


@pytest.mark.parametrize("cut", [0, 3, 20, 60, 4000])
def test_a_value_that_was_cut_off_is_an_error_and_not_a_wrong_value(cut: int) -> None:
    data = dumps(np.arange(5000)).to_bytes()
    with pytest.raises((SerializationError, pickle.UnpicklingError, EOFError)):
        loads(data[:cut])


def test_a_damaged_table_is_an_error() -> None:
    data = bytearray(dumps(np.arange(5000)).to_bytes())
    data[24:32] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(SerializationError, match="damaged"):
        loads(bytes(data))
    data[4:8] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(SerializationError, match="damaged"):
        loads(bytes(data))


# --------------------------------------------------------------------------- what stands for something else


def test_marks_become_the_inputs_of_the_load() -> None:
    data = dumps(([Mark(1), {"k": Mark(0)}], Mark(1))).to_bytes()
    assert loads(data, inputs=["zero", "one"]) == (["one", {"k": "zero"}], "one")


def test_a_mark_without_an_input_says_so() -> None:
    with pytest.raises(SerializationError, match="input 2, but the task was given 1"):
        loads(dumps((Mark(2),)).to_bytes(), inputs=["only"])


class LoadsWhileLoading:
    """Its own code loads another value, and fails at that, in the middle of a load."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_another, ()


def _load_another() -> Any:
    inner = loads(dumps((Mark(0),)).to_bytes(), inputs=["inner"])
    with pytest.raises(SerializationError):
        loads(dumps((Mark(0),)).to_bytes())
    return inner


def test_a_load_inside_a_load_has_its_own_inputs() -> None:
    data = dumps((Mark(0), LoadsWhileLoading(), Mark(0))).to_bytes()
    assert loads(data, inputs=["outer"]) == ("outer", ("inner",), "outer")


def test_threads_that_load_at_the_same_time_do_not_mix_their_inputs() -> None:
    data = dumps([Mark(0)] * 50).to_bytes()
    wrong: list[object] = []

    def load_often(mine: int) -> None:
        for _ in range(300):
            if loads(data, inputs=[mine]) != [mine] * 50:
                wrong.append(mine)

    threads = [threading.Thread(target=load_often, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_futures_in_a_value_are_listed_and_made_again_by_whoever_loads_it() -> None:
    one, two = FutureReference((b"client", 1, "k")), FutureReference((b"client", 2, "l"))
    encoded = dumps({"first": one, "others": [two, np.arange(5000)]})
    assert encoded.futures == [(b"client", 1, "k"), (b"client", 2, "l")]
    back = loads(encoded.to_bytes(), bind_future=lambda reference: ("bound", *reference))
    assert back["first"] == ("bound", b"client", 1, "k")
    assert loads(encoded.to_bytes())["others"][0] == two


def test_a_future_that_nobody_bound_keeps_its_identity_when_passed_on() -> None:
    there = loads(dumps([FutureReference((b"client", 7))]).to_bytes())
    assert dumps(there).futures == [(b"client", 7)]
    assert pickle.loads(pickle.dumps(there[0])) == there[0]


class FutureRow:
    """Stands for a sequence of futures."""

    def __init__(self, first: int, count: int) -> None:
        self.references = [(b"row", first + index) for index in range(count)]


payload.register_future_type(FutureRow, lambda row: row.references, sequence=True)


def test_a_sequence_of_futures_in_a_value_becomes_a_list_of_futures() -> None:
    encoded = dumps([FutureRow(5, 3)])
    assert encoded.futures == [(b"row", 5), (b"row", 6), (b"row", 7)]
    assert loads(encoded.to_bytes(), bind_future=lambda reference: reference[1]) == [[5, 6, 7]]


# --------------------------------------------------------------------------- what is kept between values


def test_a_value_that_fails_leaves_nothing_behind_for_the_next() -> None:
    for _ in range(20):
        with pytest.raises(SerializationError):
            dumps([1, "text", threading.Lock()])
        assert there_and_back(["text", "text"]) == ["text", "text"]


def test_no_value_is_kept_alive_by_having_been_pickled() -> None:
    class Watched(list[int]):
        pass

    import_free = Watched([1])
    counter = len([it for it in gc.get_objects() if type(it) is Watched])
    for _ in range(100):
        dumps([Watched([1, 2]), {"k": 1}])
    gc.collect()
    assert len([it for it in gc.get_objects() if type(it) is Watched]) == counter
    assert import_free == [1]


class Weak:
    def __init__(self, content: object) -> None:
        self.content = content


@pytest.mark.parametrize(
    "content",
    [1, bytes(10_000), np.zeros(10_000), FutureReference((b"client", 1, "f", -1, None)), lambda: None],
    ids=["small", "large", "buffers", "future", "function"],
)
def test_what_was_pickled_goes_when_its_owner_lets_it_go(content: object) -> None:
    gc.disable()  # a large value, or what a future holds, must not wait for the collector
    try:
        value = Weak(content)
        gone = weakref.ref(value)
        dumps([value])
        del value
        assert gone() is None
    finally:
        gc.enable()


class PicklesWhilePickling:
    def __reduce__(self) -> tuple[Any, ...]:
        return list, (dumps(["inner", [1, 2]]).to_bytes(),)


def test_a_value_whose_own_code_pickles_meanwhile() -> None:
    inner = dumps(["inner", [1, 2]]).to_bytes()
    assert there_and_back(["a", PicklesWhilePickling(), "b"]) == ["a", list(inner), "b"]


def test_pickling_from_many_threads() -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for step in range(500):
            value = [number, {"step": step}, "x" * (step % 50)]
            if there_and_back(value) != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_importing_it_imports_neither_numpy_nor_pandas() -> None:
    code = (
        "import sys, cluster.wire.payload, cluster.wire.arguments, cluster.wire.exceptions;"
        "sys.exit(bool({'numpy', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


def test_values_of_the_standard_library_come_back() -> None:
    value = [decimal.Decimal("1.5"), datetime.date(2013, 1, 1), Pair(1, 2), range(5), slice(1, 2), Ellipsis, 1j]
    assert there_and_back(value) == value
