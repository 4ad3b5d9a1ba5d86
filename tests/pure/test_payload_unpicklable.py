"""What cannot be pickled is named by its path; what makes a function large is named by its variable."""

from __future__ import annotations

import functools
import io
import socket
import threading
from typing import Any

import numpy as np
import pytest

from cluster.errors import SerializationError
from cluster.wire.payload import closure_sizes, dumps, name_unpicklable


class Holder:
    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("handle", "other")

    def __init__(self, handle: Any) -> None:
        self.handle = handle


class StateOfItsOwn:
    """What it holds is not what it pickles."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def capturing(captured: Any) -> Any:
    def function() -> Any:
        return captured

    return function


def with_default(handle: Any = threading.Lock()) -> Any:  # noqa: B008
    return handle


with_default.__module__ = "__main__"
LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ((1, {"lock": Holder(handle=LOCK)}), "value[1]['lock'].handle"),
        (LOCK, "value"),
        ([[[LOCK]]], "value[0][0][0]"),
        ({LOCK: 1}, "value.<key <unlocked _thread.lock"),
        (capturing(LOCK), "value.<closure>.captured"),
        (capturing({"inner": [LOCK]}), "value.<closure>.captured['inner'][0]"),
        (with_default, "value.__defaults__[0]"),
        (functools.partial(print, 1, end=LOCK), "value.keywords['end']"),
        (functools.partial(print, LOCK), "value.args[0]"),
        (Holder(lock=LOCK).method, "value.__self__.lock"),
        (Slotted(LOCK), "value.handle"),
        ([StateOfItsOwn(), LOCK], "value[1]"),
        (np.array([1, LOCK], dtype=object), "value"),
        ((number for number in range(3)), "value"),
    ],
)
def test_the_member_to_blame_is_named(value: Any, path: str) -> None:
    assert name_unpicklable(value).startswith(path)


def test_a_global_that_a_function_by_value_takes_along_is_named() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "CONNECTION": LOCK}
    exec("def use():\n    return [CONNECTION for _ in range(3)]\n", namespace)
    assert name_unpicklable(namespace["use"]) == "value.<globals>.CONNECTION"


def test_the_search_ends_in_a_cycle() -> None:
    value: list[Any] = [1]
    value.append(value)
    holder = Holder(around=value)
    value += (holder, Holder(back=holder, lock=LOCK))
    assert name_unpicklable(value).endswith(".lock")


def test_the_search_ends_in_something_very_deep() -> None:
    value: Any = LOCK
    for _ in range(80):
        value = [value]
    assert name_unpicklable(value).startswith("value[0][0]")


def test_a_class_whose_attributes_fail_does_not_hide_the_culprit() -> None:
    class Nasty:
        def __repr__(self) -> str:
            raise ValueError("no repr")

        def __hash__(self) -> int:
            return 1

    assert name_unpicklable({Nasty(): LOCK}) == "value[<Nasty>]"


def test_the_error_says_what_where_why_and_what_to_do() -> None:
    with pytest.raises(SerializationError) as caught:
        dumps({"deep": [LOCK]}, name="args[0]")
    text = str(caught.value)
    assert "args[0]['deep'][0] is a _thread.lock" in text
    assert "cannot pickle '_thread.lock' object" in text
    assert "inside the task" in text
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: (number for number in range(3)), "Turn it into a list first"),
        (lambda: io.FileIO(0, closefd=False), "open it inside the task"),
    ],
)
def test_the_remedy_fits_what_it_is(make: Any, remedy: str) -> None:
    with pytest.raises(SerializationError, match=remedy):
        dumps([make()])


def test_a_socket_is_named_with_a_remedy() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(SerializationError, match=r"value\['s'\].*inside the task"):
        dumps({"s": one})


def test_what_a_function_captures_is_measured_and_the_largest_comes_first() -> None:
    small, large, larger = [1, 2], np.zeros(100_000), bytes(2_000_000)

    def function() -> Any:
        return small, large, larger

    sizes = closure_sizes(function)
    assert [name for name, _ in sizes] == ["larger", "large"]
    assert sizes[0][1] >= 2_000_000
    assert 800_000 <= sizes[1][1] < 810_000


def test_globals_and_defaults_of_a_function_by_value_are_measured() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "TABLE": bytes(200_000)}
    exec("def use(x, extra=bytes(300_000)):\n    return TABLE, x\n", namespace)
    assert [name for name, _ in closure_sizes(namespace["use"])] == ["default 0", "TABLE"]


def test_a_bound_method_and_a_partial_are_measured() -> None:
    big = bytes(200_000)
    assert closure_sizes(Holder(big=big).method)[0][0] == "self"
    assert closure_sizes(functools.partial(print, big))[0][0] == "args[0]"
    assert closure_sizes(print) == []
    assert closure_sizes(test_a_bound_method_and_a_partial_are_measured) == [], "it travels by its name"


def test_what_cannot_be_pickled_does_not_stop_the_measuring() -> None:
    lock, big = LOCK, bytes(200_000)

    def function() -> Any:
        return lock, big

    assert [name for name, _ in closure_sizes(function)] == ["big"]
