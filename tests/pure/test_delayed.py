"""What is written down when calls are delayed, and what it looks like; nothing is computed here."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from cluster import Delayed, delayed, visualize
from cluster.errors import ClusterError
from cluster.lazy.expression import find_nodes, replace_lazy


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Box:
    content: Any
    note: str = "plain"
    size: Any = field(default=0, init=False)


def inputs_of(lazy: Delayed) -> set[str]:
    return {node.key for node in lazy._node.inputs}


def test_delayed_values_are_found_at_any_depth() -> None:
    one, two, three = delayed(abs)(1), delayed(abs)(2), delayed(abs)(3)
    call = delayed(print)([one, {"k": (two,)}], Box(three), Pair(one, 5), sep={"x": two})
    assert inputs_of(call) == {one.key, two.key, three.key}


def test_replacing_keeps_types_and_leaves_alone_what_holds_nothing_lazy() -> None:
    one = delayed(abs)(1)
    plain = [1, (2, 3), {"a": Box(4)}]
    given = (plain, Pair(one, 2), Box(one), {one: one}, frozenset({one}))
    replaced = replace_lazy(given, lambda lazy: "one")
    assert replaced == (plain, Pair("one", 2), Box("one"), {"one": "one"}, frozenset({"one"}))
    assert replaced[0] is plain
    assert type(replaced[1]) is Pair
    assert find_nodes([replaced]) == []


def test_a_field_that_cannot_be_given_is_named() -> None:
    box = Box(1)
    box.size = delayed(abs)(1)
    with pytest.raises(ClusterError, match=r"Box\.size"):
        replace_lazy(box, lambda lazy: 1)


def test_pure_calls_of_the_same_content_are_the_same() -> None:
    add = delayed(max, pure=True)
    base = delayed(abs)(1)
    assert add(base, 2).key == add(base, 2).key != add(base, 3).key
    assert delayed(max)(1, 2).key != delayed(max)(1, 2).key


def test_what_a_delayed_refuses() -> None:
    value = delayed(abs)(1)
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(value)
    with pytest.raises(TypeError, match="nout"):
        iter(value)
    with pytest.raises(TypeError, match="nout"):
        len(value)
    with pytest.raises(TypeError, match="cannot be changed"):
        value.size = 3
    with pytest.raises(TypeError, match="cannot be changed"):
        value[0] = 3
    with pytest.raises(ValueError, match="nout"):
        delayed(abs, nout=-1)
    assert not hasattr(value, "_repr_html_")


def test_nout_gives_as_many() -> None:
    left, right = delayed(divmod, nout=2)(7, 2)
    assert [left._node.label, right._node.args[1]] == ["getitem", 1]
    assert len(delayed(divmod, nout=2)(7, 2)) == 2


def test_attributes_and_methods_are_one_task() -> None:
    text = delayed("abc")
    upper = text.upper()
    assert inputs_of(upper) == {text.key}
    assert inputs_of(text.real) == {text.key}
    assert upper._node.label == "upper"


def test_operators_in_both_directions() -> None:
    value = delayed(2)
    for lazy, args in [(value + 1, (value, 1)), (1 - value, (1, value)), (-value, (value,)), (value == 2, (value, 2))]:
        assert all(given is wanted for given, wanted in zip(lazy._node.args, args, strict=True))


def test_a_decorated_function_keeps_its_text_and_works_as_a_method() -> None:
    @delayed
    def documented(x: int) -> int:
        """Says what it does."""
        return x

    @delayed(pure=True, name="renamed")
    def other(x: int) -> int:
        return x

    class Owner:
        method = documented

    assert documented.__doc__ == "Says what it does."
    assert other(1)._node.label == "renamed"
    owner = Owner()
    assert owner.method()._node.args == (owner,)  # type: ignore[call-arg, attr-defined]


def test_a_delayed_survives_pickling() -> None:
    value = delayed(max)(delayed(abs)(-1), 2)
    copy = pickle.loads(pickle.dumps(value))
    assert copy.key == value.key
    assert inputs_of(copy) == inputs_of(value)


def test_a_drawing_has_every_task_and_every_edge() -> None:
    leaves = [delayed(abs)(n) for n in range(3)]
    total = delayed(sum, name='a "sum" <of> many')(leaves)
    for rankdir in ("TB", "LR"):
        drawing = visualize(total, rankdir=rankdir)
        root = ElementTree.fromstring(drawing.svg)
        assert len(root.findall(".//{*}rect")) == 4
        assert len(root.findall(".//{*}path")) == 3
        assert total.key in {title.text for title in root.iter("{http://www.w3.org/2000/svg}title")}
    assert drawing.dot.count("->") == 3
    assert '\\"sum\\"' in drawing.dot


def test_a_drawing_is_saved_as_its_name_says(tmp_path: Any) -> None:
    value = delayed(abs)(1)
    value.visualize(tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text().startswith("<svg")
    with pytest.raises(ValueError, match="dot -Tpng"):
        value.visualize(str(tmp_path / "graph.png"))
    with pytest.raises(ValueError, match="nothing to draw"):
        visualize(3)
    with pytest.raises(ValueError, match="5001 tasks"):
        visualize([delayed(abs)(n) for n in range(5001)])
