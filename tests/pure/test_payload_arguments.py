"""Arguments of many calls in one blob: what depends on futures, what travels apart, what fails alone."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import threading
import tracemalloc
from array import array
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import SerializationError
from cluster.wire import arguments
from cluster.wire.arguments import LARGE_BYTES, ArgumentPacker, LargeArgument
from cluster.wire.payload import FutureReference, Mark, loads, register_future_type


def future(number: int) -> FutureReference:
    return FutureReference((b"client", number))


class FutureRow:
    def __init__(self, *numbers: int) -> None:
        self.references = [(b"client", number) for number in numbers]


register_future_type(FutureRow, lambda row: row.references, sequence=True)


class Packed:
    """What a slot would see of a packer's calls."""

    def __init__(self, packer: ArgumentPacker) -> None:
        offsets, self.blob = packer.take()
        self.offsets = array("I", offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def call(self, index: int, inputs: Any = ()) -> Any:
        return loads(memoryview(self.blob)[self.offsets[index] : self.offsets[index + 1]], inputs=inputs)


def inputs_of(noted: Any) -> list[Any]:
    """Stand-ins for the inputs that a call's marks name: the number of a future, the object itself if it was large."""
    return [it.value if isinstance(it, LargeArgument) else f"value of {it[1]}" for it in noted]


@given(st.lists(st.tuples(st.integers(), st.text(max_size=30), st.lists(st.floats(allow_nan=False), max_size=5))))
@settings(max_examples=60, deadline=None)
def test_calls_of_plain_data_come_back_one_by_one(calls: list[tuple[Any, ...]]) -> None:
    packer = ArgumentPacker()
    for call in calls:
        assert list(packer.add(call)) == []
    assert len(packer) == len(calls)
    packed = Packed(packer)
    assert [packed.call(index) for index in range(len(packed))] == calls


def test_keywords_travel_as_a_pair() -> None:
    packer = ArgumentPacker()
    noted = packer.add((1, future(3)), {"scale": future(4), "name": "x"})
    packed = Packed(packer)
    assert packed.call(0, inputs_of(noted)) == ((1, "value of 3"), {"scale": "value of 4", "name": "x"})


def test_a_future_at_any_depth_is_a_dependency_and_each_future_only_once() -> None:
    class Holder:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

    packer = ArgumentPacker()
    noted = packer.add((future(1), [{"deep": (future(2), future(1))}], Holder(future(9))))
    assert list(noted) == [(b"client", 1), (b"client", 2), (b"client", 9)]
    positional = Packed(packer).call(0, inputs_of(noted))
    assert positional[:2] == ("value of 1", [{"deep": ("value of 2", "value of 1")}])
    assert positional[2].inner == "value of 9"


def test_each_call_counts_its_own_dependencies() -> None:
    packer = ArgumentPacker()
    assert list(packer.add((future(1), future(2)))) == [(b"client", 1), (b"client", 2)]
    assert list(packer.add((5,))) == []
    assert list(packer.add((future(2),))) == [(b"client", 2)]
    packed = Packed(packer)
    assert packed.call(2, ["only"]) == ("only",)


def test_a_sequence_of_futures_becomes_a_list_of_values() -> None:
    packer = ArgumentPacker()
    noted = packer.add((FutureRow(4, 5, 6), future(5)))
    assert list(noted) == [(b"client", 4), (b"client", 5), (b"client", 6)]
    assert Packed(packer).call(0, inputs_of(noted)) == (["value of 4", "value of 5", "value of 6"], "value of 5")


def test_a_mark_that_the_caller_made_is_kept() -> None:
    packer = ArgumentPacker()
    packer.add((Mark(0), "x"))
    assert Packed(packer).call(0, ["input"]) == ("input", "x")


LARGE_OBJECTS: list[Any] = [
    np.zeros(20_000),
    np.asfortranarray(np.ones((200, 200))),
    np.zeros((400, 400))[::2, ::2],
    bytes(100_000),
    bytearray(100_000),
    "x" * 100_000,
    pd.DataFrame({"a": range(20_000)}),
    list(range(50_000)),
    {"inside": [np.zeros(20_000)]},
    {str(index): index for index in range(20_000)},
]


@pytest.mark.parametrize("large", LARGE_OBJECTS, ids=lambda it: type(it).__name__)
def test_a_large_argument_travels_apart(large: Any) -> None:
    packer = ArgumentPacker()
    noted = packer.add((1, large, future(3)))
    assert packer.nbytes < 500
    (apart,) = [it for it in noted if isinstance(it, LargeArgument)]
    assert apart.value is large
    assert apart.nbytes > LARGE_BYTES
    back = Packed(packer).call(0, inputs_of(noted))
    assert back[0] == 1
    assert back[1] is large
    assert back[2] == "value of 3"


def test_a_large_keyword_argument_travels_apart_and_the_same_object_twice_only_once() -> None:
    large = np.zeros(20_000)
    packer = ArgumentPacker()
    noted = packer.add((large,), {"again": large, "small": 1})
    assert len(noted) == 1
    positional, keywords = Packed(packer).call(0, inputs_of(noted))
    assert positional[0] is large
    assert keywords["again"] is large
    assert keywords["small"] == 1


def test_what_is_large_beside_futures_is_taken_apart_so_that_the_futures_become_values() -> None:
    large = np.zeros(20_000)
    packer = ArgumentPacker()
    noted = packer.add(({"data": large, "more": [future(1), (future(2), large)]},))
    assert packer.nbytes < 500
    (argument,) = Packed(packer).call(0, inputs_of(noted))
    assert argument["data"] is large
    assert argument["more"][0] == "value of 1"
    assert argument["more"][1][0] == "value of 2"
    assert argument["more"][1][1] is large


def test_a_large_object_that_holds_futures_and_cannot_be_taken_apart_says_what_to_do() -> None:
    class Mixed:
        def __init__(self) -> None:
            self.data = bytes(10_000_000)
            self.future = future(1)

    packer = ArgumentPacker()
    with pytest.raises(SerializationError, match="Pass the futures as arguments of their own"):
        packer.add((Mixed(),))
    packer.add((1,))
    assert Packed(packer).call(0) == (1,)


@dataclasses.dataclass
class Model:
    """What the packer does not know how to take apart."""

    data: Any
    weights: Any


def test_the_large_arrays_of_an_object_that_holds_futures_travel_apart() -> None:
    array = np.arange(2_000_000)
    frame = pd.DataFrame({"a": np.arange(20_000), "b": "text"})
    weights = np.array([None, *range(20_000)], dtype=object)
    weights[0] = future(2)
    packer = ArgumentPacker()
    noted = packer.add((Model([array, array[::2]], future(1)), Model(frame, weights)))
    assert len(noted) > 4
    assert packer.nbytes < 400_000, "text, and the array that holds a future, stay"
    one, other = Packed(packer).call(0, inputs_of(noted))
    assert one.data[0] is array
    assert (one.data[1] == array[::2]).all()
    assert one.weights == "value of 1"
    pd.testing.assert_frame_equal(other.data, frame)
    assert other.weights[0] == "value of 2"
    assert other.weights[-1] == 19_999


def test_a_large_buffer_stays_in_the_call_where_it_lies_in_an_object_that_holds_futures() -> None:
    class Holder:
        def __init__(self, data: Any) -> None:
            self.data = data

        def __reduce_ex__(self, protocol: Any) -> Any:
            return Holder, (pickle.PickleBuffer(self.data),)

    packer = ArgumentPacker()
    noted = packer.add((Model(Holder(bytearray(b"x" * 100_000)), future(1)),))
    assert noted == [(b"client", 1)]
    (model,) = Packed(packer).call(0, inputs_of(noted))
    assert bytes(model.data.data) == b"x" * 100_000
    assert model.weights == "value of 1"
    with pytest.raises(SerializationError, match="Pass the futures as arguments of their own"):
        packer.add((Model(Holder(bytearray(9_000_000)), future(1)),))


def test_too_many_futures_for_one_call_are_said_to_be_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "CALL_LIMIT_BYTES", 200_000)
    packer = ArgumentPacker()
    with pytest.raises(SerializationError, match=r"60,000 futures in them: pass the sequence that .* 50,000 fit"):
        packer.add((FutureRow(*range(60_000)),))
    with pytest.raises(SerializationError, match=r"40,000 futures in them"):
        packer.add(([future(number) for number in range(40_000)],))
    packer.add((1,))
    assert Packed(packer).call(0) == (1,)


def test_many_middling_arguments_stay_with_the_call() -> None:
    packer = ArgumentPacker()
    arguments = tuple(np.full(5_000, index, dtype="f8") for index in range(10))
    assert list(packer.add(arguments)) == []
    back = Packed(packer).call(0)
    assert all((one == other).all() for one, other in zip(back, arguments, strict=True))
    assert back[3].flags.writeable


def test_a_large_array_is_neither_copied_nor_pickled_by_packing_it() -> None:
    packer = ArgumentPacker()
    packer.add((np.zeros(20_000),))
    large = np.zeros(8_000_000, dtype="u1")
    tracemalloc.start()
    try:
        packer.add((large, {"k": large}))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_what_many_calls_share_is_measured_once() -> None:
    class Shared:
        measured = 0

        def __reduce__(self) -> tuple[Any, ...]:
            Shared.measured += 1
            return bytes, (bytes(200_000),)

    shared = Shared()
    packer = ArgumentPacker()
    first = packer.add((shared, 0))
    once = Shared.measured
    second = packer.add((shared, 1))
    assert first[0] is second[0]
    assert Shared.measured == once + 1, "a try for each call, and a measure for the first"


def test_what_many_small_arguments_of_a_large_call_have_in_common_is_looked_at_a_few_times() -> None:
    class Common:
        looks = 0

        def __reduce__(self) -> tuple[Any, ...]:
            Common.looks += 1
            return bytes, (b"common" * 5_000,)

    common = Common()
    packer = ArgumentPacker()
    assert list(packer.add(tuple((common, str(index) * 3_000) for index in range(50)))) == []
    assert Common.looks == 3, "a try, a measure, and the pickle"
    assert {member[0] for member in Packed(packer).call(0)} == {b"common" * 5_000}


def test_what_a_large_argument_shares_with_others_counts_for_each() -> None:
    packer = ArgumentPacker()
    array_of_both = np.zeros(20_000)
    noted = packer.add(({"first": array_of_both}, {"second": array_of_both}))
    assert [isinstance(each, LargeArgument) for each in noted] == [True, True]


def test_a_call_that_cannot_be_pickled_is_named_and_leaves_the_packer_as_it_was() -> None:
    packer = ArgumentPacker()
    packer.add((1, "before"))
    packer.add((future(1),))
    size = packer.nbytes
    with pytest.raises(SerializationError, match=r"args\[1\]\['lock'\]"):
        packer.add((future(8), {"lock": threading.Lock()}))
    with pytest.raises(SerializationError, match=r"handle\[0\]"):
        packer.add((1,), {"handle": [threading.Lock()]})
    with pytest.raises(SerializationError, match=r"args\[1\]"):
        packer.add((np.zeros(20_000), threading.Lock()))
    assert packer.nbytes == size
    assert list(packer.add((future(2), "after"))) == [(b"client", 2)]
    packed = Packed(packer)
    assert len(packed) == 3
    assert packed.call(0) == (1, "before")
    assert packed.call(2, ["two"]) == ("two", "after")


class Interrupts:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_an_interrupt_while_packing_leaves_the_packer_as_it_was() -> None:
    packer = ArgumentPacker()
    packer.add((1, "text"))
    for interrupted in ((Interrupts(),), (np.zeros(20_000), Interrupts()), ("x" * 60_000, [1] * 40_000, Interrupts())):
        with pytest.raises(KeyboardInterrupt):
            packer.add(interrupted)
    packer.add((2, "text"))
    packed = Packed(packer)
    assert [packed.call(index) for index in range(len(packed))] == [(1, "text"), (2, "text")]


def test_a_value_nested_too_deeply_says_so() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    packer = ArgumentPacker()
    with pytest.raises(SerializationError, match="nested too deeply"):
        packer.add((nested,))
    while nested:
        nested = nested.pop()
    packer.add((1,))
    assert Packed(packer).call(0) == (1,)


def test_taking_begins_anew() -> None:
    packer = ArgumentPacker()
    packer.add((1,))
    Packed(packer)
    assert len(packer) == 0
    assert packer.nbytes == 0
    packer.add((2,))
    assert Packed(packer).call(0) == (2,)


def test_a_function_as_argument_is_packed_anew_for_each_call() -> None:
    packer = ArgumentPacker()
    for number in range(3):
        packer.add((lambda number=number: number,))
    packed = Packed(packer)
    assert [packed.call(index)[0]() for index in range(3)] == [0, 1, 2]


def test_an_object_changed_between_calls_is_packed_as_it_is_then() -> None:
    packer = ArgumentPacker()
    state = {"n": 0}
    for number in range(3):
        state["n"] = number
        packer.add((state,))
    packed = Packed(packer)
    assert [packed.call(index)[0]["n"] for index in range(3)] == [0, 1, 2]


def test_packing_keeps_no_argument_alive_and_does_not_grow() -> None:
    class Watched:
        def __init__(self) -> None:
            self.payload = lambda: 1

    packer = ArgumentPacker()

    def pack() -> None:
        for number in range(200):
            packer.add((Watched(), future(number), lambda number=number: number, "text" * number))
            packer.add((np.zeros(10_000), "x" * 5_000))
        packer.take()

    pack()
    gc.collect()
    tracemalloc.start()
    try:
        pack()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            pack()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()
    assert not [it for it in gc.get_objects() if type(it).__name__ == "Watched"]
