"""The pickler without a Python call for each object: what it may do alone, and what goes to the other one."""

from __future__ import annotations

import collections
import copyreg
import enum
import fractions
import json
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

from cluster.wire import payload
from cluster.wire.arguments import ArgumentPacker
from cluster.wire.payload import FutureReference, dumps, loads
from cluster.wire.pickling import FULL_AFTER_FAILURE, ValuePickler

PROGRAM = """
import collections, dataclasses, enum, functools

@dataclasses.dataclass
class Point:
    x: int
    def doubled(self):
        return Point(2 * self.x)

class Colour(enum.Enum):
    RED = 1

Pair = collections.namedtuple("Pair", "left right")

class Outer:
    class Inner:
        value = 7

def increment(number):
    return Point(number + 1).x
"""


@pytest.fixture
def program() -> Iterator[types.SimpleNamespace]:
    """What a script defines: found in `__main__` while it is pickled, and not by whoever loads it."""
    main = sys.modules["__main__"]
    before = dict(main.__dict__)
    exec(PROGRAM, main.__dict__)
    names = [name for name in main.__dict__ if name not in before]
    yield types.SimpleNamespace(**{name: main.__dict__[name] for name in names})
    for name in names:
        main.__dict__.pop(name, None)


@pytest.fixture(autouse=True)
def _plain_first() -> Iterator[None]:
    payload._Tries.full_left = 0
    payload._idle_picklers.clear()
    yield
    payload._Tries.full_left = 0


def elsewhere(pickled: bytes, inputs: list[Any] | None = None) -> Any:
    """Load it where `__main__` has none of it."""
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name) for name in ("Point", "Colour", "Pair", "Outer", "increment")}
    try:
        return loads(pickled, inputs=inputs or [])
    finally:
        main.__dict__.update(hidden)


def as_value(value: object) -> bytes:
    return dumps(value).to_bytes()


def as_argument(value: object) -> bytes:
    packer = ArgumentPacker()
    packer.add((1,))
    packer.add((value,))
    assert len(packer) == 2
    return as_value_of(packer, 1)


def as_value_of(packer: ArgumentPacker, index: int) -> bytes:
    return packer.blob()[packer.offsets[index] : packer.offsets[index + 1]]


@pytest.mark.parametrize("pack", [as_value, as_argument])
@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda program: program.Point(3), lambda back: back.doubled().x == 6),
        (lambda program: program.Point, lambda back: back(3).doubled().x == 6),
        (lambda program: [{"deep": (program.Point(3),)}], lambda back: back[0]["deep"][0].doubled().x == 6),
        (lambda program: program.Colour.RED, lambda back: back.value == 1),
        (lambda program: program.Pair(1, 2), lambda back: back.right == 2),
        (lambda program: program.Outer.Inner(), lambda back: back.value == 7),
        (lambda program: program.increment, lambda back: back(3) == 4),
        (lambda program: [program.increment, 1.5], lambda back: back[0](3) == 4),
        (lambda program: program.Point(3).doubled, lambda back: back().x == 6),
        (lambda program: np.array([program.Point(3)]), lambda back: back[0].doubled().x == 6),
        (lambda program: collections.OrderedDict(a=program.Point(3)), lambda back: back["a"].doubled().x == 6),
    ],
)
def test_what_a_script_defines_travels_by_value(
    program: types.SimpleNamespace,
    pack: Callable[[object], bytes],
    make: Callable[[Any], object],
    check: Callable[[Any], bool],
) -> None:
    back = elsewhere(pack(make(program)))
    assert check(back if pack is as_value else back[0])


def test_what_a_script_defines_is_found_beside_and_behind_large_data(program: types.SimpleNamespace) -> None:
    for before in (["x" * 70_000], [bytes(70_000)], [np.zeros(70_000)], [1] * 200_000, [bytes(70_000), "x" * 70_000]):
        assert elsewhere(as_value([*before, program.Point(3)]))[-1].doubled().x == 6
        payload._Tries.full_left = 0


def test_text_that_only_looks_so_does_no_harm() -> None:
    value = ["__main__", {"module": "__main__.Point"}]
    assert loads(as_value(value)) == value
    assert loads(as_argument(value)) == (value,)


def test_a_module_that_is_to_travel_by_value_does() -> None:
    module = types.ModuleType("a_module_of_this_test")
    exec("class Made:\n    answer = 42", module.__dict__)
    sys.modules[module.__name__] = module
    made = module.__dict__["Made"]()
    packer = ArgumentPacker()
    packer.add((made,))
    cloudpickle.register_pickle_by_value(module)
    try:
        packer.take()
        packer.add((made,))
        pickled, value = as_value_of(packer, 0), as_value(made)
        del sys.modules[module.__name__]
        assert loads(pickled)[0].answer == loads(value).answer == 42
    finally:
        sys.modules[module.__name__] = module
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[module.__name__]


class Odd:
    def __reduce__(self) -> Any:
        raise TypeError("never")


def test_what_others_register_is_honoured_by_packers_that_were_made_before() -> None:
    packer = ArgumentPacker()
    packer.add(([1, "text of some length"],))
    packer.take()
    copyreg.pickle(Odd, lambda odd: (int, ("7",)))
    try:
        packer.add(([Odd()],))
        assert loads(as_value_of(packer, 0)) == ([7],)
        copyreg.pickle(Odd, lambda odd: (int, ("8",)))
        packer.take()
        packer.add(([Odd()],))
        assert loads(as_value_of(packer, 0)) == ([8],)
    finally:
        del copyreg.dispatch_table[Odd]


class Colour(enum.Enum):
    GREEN = 2


def importable_values() -> list[Any]:
    return [fractions.Fraction(1, 3), Colour.GREEN, json.JSONDecodeError("text", "document", 1), np.zeros(3), len]


def test_what_can_be_imported_costs_no_call_of_the_other_pickler(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: ValuePickler, obj: object) -> Any:
        raise AssertionError(f"asked about {obj!r}")

    monkeypatch.setattr(ValuePickler, "reducer_override", never)
    back = loads(as_value(importable_values()))
    assert back[:2] == importable_values()[:2]
    assert back[2].msg == "text"
    assert loads(as_argument(importable_values()))[0][1] is Colour.GREEN


def test_futures_are_found_by_the_plain_pickler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValuePickler, "reducer_override", None)
    future = FutureReference((b"client", 5))
    value = [fractions.Fraction(1, 3), {"deep": (future, [future])}]
    assert dumps(value).futures == [(b"client", 5)]
    packer = ArgumentPacker()
    assert list(packer.add((value,))) == [(b"client", 5)]
    assert loads(as_value_of(packer, 0), inputs=["it"])[0][1] == {"deep": ("it", ["it"])}


def test_futures_beside_what_a_script_defines_are_noted_once(program: types.SimpleNamespace) -> None:
    future = FutureReference((b"client", 5))
    encoded = dumps([future, program.Point(3)])
    assert encoded.futures == [(b"client", 5)]
    packer = ArgumentPacker()
    assert list(packer.add((future, program.Point(3)))) == [(b"client", 5)]
    assert elsewhere(as_value_of(packer, 0), ["it"])[0] == "it"


def test_after_a_failure_the_plain_pickler_is_left_alone_for_a_while(
    program: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    class Counted:
        def __reduce__(self) -> Any:
            looks.append(1)
            return int, ("5",)

    packer = ArgumentPacker()
    packer.add((Counted(), program.Point(3)))
    assert len(looks) == 2, "both picklers"
    for _ in range(FULL_AFTER_FAILURE - 1):
        packer.add((Counted(), program.Point(3)))
    assert len(looks) == FULL_AFTER_FAILURE + 1
    packer.take()
    monkeypatch.setattr(ValuePickler, "reducer_override", None)
    packer.add(([fractions.Fraction(1, 3)],))
    assert loads(as_value_of(packer, 0)) == ([fractions.Fraction(1, 3)],)
