"""Serializers that users register for their classes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import register_serializer
from cluster.errors import SerializationError
from cluster.wire import serializers
from cluster.wire.arguments import ArgumentPacker, LargeArgument
from cluster.wire.payload import dumps, loads


class Sealed:
    """What pickle cannot take apart."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        raise TypeError("sealed")


class Labelled(Sealed):
    """A subclass."""

    label = "none"


class Apart(Sealed):
    """A subclass with a serializer of its own."""


def open_up(sealed: Sealed) -> tuple[Any, ...]:
    return type(sealed), sealed.content, sealed.__dict__.get("label")


def seal(parts: tuple[Any, ...]) -> Sealed:
    kind, content, label = parts
    sealed: Sealed = kind(content)
    if label:
        sealed.label = label  # type: ignore[attr-defined]
    return sealed


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a test registers ends with it."""
    before = dict(serializers.registered)
    register_serializer(Sealed, open_up, seal)
    yield
    serializers.registered.clear()
    serializers.registered.update(before)
    serializers._found.clear()


def there_and_back(value: Any) -> Any:
    return loads(bytearray(dumps(value).to_bytes()))


def test_a_class_travels_as_its_serializer_says_inside_containers_too() -> None:
    found = there_and_back({"x": [Sealed(1), (Sealed("two"),)]})
    assert type(found["x"][0]) is Sealed and found["x"][0].content == 1
    assert found["x"][1][0].content == "two"
    same = Sealed(3)
    first, second = there_and_back([same, same])
    assert first is second


def test_subclasses_travel_so_too_and_their_own_registration_comes_first() -> None:
    labelled = Labelled(1)
    labelled.label = "mine"
    found = there_and_back(labelled)
    assert type(found) is Labelled and (found.content, found.label) == (1, "mine")
    register_serializer(Apart, lambda apart: apart.content, lambda content: Apart(content + 1))
    assert there_and_back(Apart(1)).content == 2
    register_serializer(Apart, lambda apart: apart.content, lambda content: Apart(content + 10))
    assert there_and_back(Apart(1)).content == 11, "the second registration replaces the first"


@pytest.mark.parametrize("wrap", [pickle.PickleBuffer, memoryview, lambda content: content])
def test_buffers_are_not_copied_and_arrive_in_the_receivers_memory(wrap: Any) -> None:
    register_serializer(Sealed, lambda sealed: wrap(sealed.content), Sealed)
    content = bytearray(100_000)
    encoded = dumps(Sealed(content))
    content[5] = 7
    assert any(len(part) == 100_000 and part[5] == 7 for part in encoded.parts), "it still lies where it was"
    data = bytearray(encoded.to_bytes())
    found = loads(data)
    found.content[6] = 8
    assert data.count(8) and found.content[5] == 7


def test_arrays_that_it_gives_are_not_copied_either() -> None:
    array = np.zeros(100_000)
    encoded = dumps(Sealed(array))
    array[3] = 5.0
    assert loads(bytearray(encoded.to_bytes())).content[3] == 5.0


def test_it_works_for_arguments_small_and_large() -> None:
    packer = ArgumentPacker()
    assert not packer.add((Sealed(1), [Labelled(2)]))
    found = loads(packer.blob())
    assert (found[0].content, found[1][0].content) == (1, 2)
    (large,) = ArgumentPacker().add((Sealed(np.zeros(100_000)),))
    assert isinstance(large, LargeArgument)
    assert loads(bytearray(large.encode().to_bytes())).content.shape == (100_000,)


def test_the_registration_goes_along_with_the_value() -> None:
    data = bytearray(dumps(Labelled(1)).to_bytes())
    del serializers.registered[Sealed]
    serializers._found.clear()
    with pytest.raises(SerializationError, match="sealed"):
        dumps(Sealed(1))
    assert loads(data).content == 1
    assert there_and_back(Sealed(2)).content == 2


def test_the_registration_goes_along_with_a_class_that_cannot_be_imported(tmp_path: Path) -> None:
    """As what a script defines: a task may make an instance though it was given none."""
    program = """
        import pathlib, threading
        from cluster import register_serializer
        from cluster.wire.payload import dumps, loads

        class Base:
            def __init__(self, content):
                self.content, self.lock = content, threading.Lock()

        class Derived(Base):
            made = Base("a class may hold its own instances")

        register_serializer(Base, lambda base: (type(base), base.content), lambda parts: parts[0](parts[1]))

        def task(content):
            return Derived(content)

        pathlib.Path("task").write_bytes(dumps(task).to_bytes())
    """
    reader = """
        import pathlib
        from cluster.wire.payload import dumps, loads

        task = loads(pathlib.Path("task").read_bytes())
        back = loads(dumps([task(5), task(6)]).to_bytes())
        assert [type(each) for each in back] == [type(task(1))] * 2
        print([each.content for each in back], back[0].made.content)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for text in (program, reader):
        (tmp_path / "program.py").write_text(textwrap.dedent(text))
        run = [sys.executable, "program.py"]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stderr
    assert done.stdout == "[5, 6] a class may hold its own instances\n"


def test_what_a_serializer_raises_names_the_value() -> None:
    def fail(sealed: Sealed) -> Any:
        raise RuntimeError("no way")

    register_serializer(Sealed, fail, seal)
    with pytest.raises(SerializationError, match=r"value\['x'\]\[1\].*no way"):
        dumps({"x": [1, Sealed(1)]})


def test_wrong_registrations_say_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="for a class, and 'Sealed' is none"):
        register_serializer("Sealed", open_up, seal)  # type: ignore[arg-type]
    for kind in (dict, int, str, object):
        with pytest.raises(TypeError, match=f"{kind.__name__} is pickled by Python itself"):
            register_serializer(kind, lambda value: value, lambda value: value)
    with pytest.raises(TypeError, match="loads must be a function, not None"):
        register_serializer(Sealed, open_up, None)  # type: ignore[arg-type]


def test_subclasses_of_built_in_classes_can_have_one() -> None:
    class Names(dict[str, int]):
        pass

    register_serializer(Names, lambda names: list(names), lambda names: Names.fromkeys(names, 1))
    assert there_and_back(Names(a=5)) == {"a": 1}
