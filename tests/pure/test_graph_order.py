"""The order in which a graph's tasks are submitted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.graph.order import CycleError, depth_first
from cluster.graph.raw import inputs_in


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=30), st.data())
def test_everything_needed_comes_once_and_after_its_inputs(wishes: list[list[int]], data: st.DataObject) -> None:
    graph = {task: [source for source in wished if source < task] for task, wished in enumerate(wishes)}
    roots = data.draw(st.lists(st.sampled_from(sorted(graph)), min_size=1))
    ordered = depth_first(roots, graph.__getitem__)
    needed, pending = set(roots), list(roots)
    while pending:
        for source in graph[pending.pop()]:
            if source not in needed:
                needed.add(source)
                pending.append(source)
    assert sorted(ordered) == sorted(needed)
    place = {task: position for position, task in enumerate(ordered)}
    assert all(place[source] < place[task] for task in ordered for source in graph[task])


def test_what_was_made_is_used_up_before_more_is_made() -> None:
    graph: dict[str, list[str]] = {"sum": [f"half{n}" for n in range(8)]}
    for n in range(8):
        graph[f"half{n}"] = [f"load{n}"]
        graph[f"load{n}"] = []
    ordered = depth_first(["sum"], graph.__getitem__)
    assert all(ordered.index(f"half{n}") == ordered.index(f"load{n}") + 1 for n in range(8))


def test_the_input_with_most_behind_it_comes_first() -> None:
    graph: dict[str, list[str]] = {"top": ["small", "large"], "small": [], "large": ["a", "b"], "a": [], "b": []}
    assert depth_first(["top"], graph.__getitem__)[-2:] == ["small", "top"]


def test_no_chain_is_too_long() -> None:
    count = 50_000
    assert depth_first([count - 1], lambda n: [n - 1] if n else []) == list(range(count))


def test_shared_inputs_level_by_level_are_no_explosion() -> None:
    assert len(depth_first([2000], lambda n: [n - 1, n - 1] if n else [])) == 2001


def test_a_cycle_is_named() -> None:
    graph = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": []}
    with pytest.raises(CycleError, match="'a' → 'b' → 'c' → 'a'"):
        depth_first(["a"], graph.__getitem__)


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=10, max_size=10))
def test_a_cycle_is_found_if_there_is_one_and_is_one(wishes: list[list[int]]) -> None:
    graph = dict(enumerate(wishes))
    try:
        ordered = depth_first(range(10), graph.__getitem__)
    except CycleError as error:
        cycle = error.cycle
        assert cycle[0] == cycle[-1]
        assert all(after in graph[before] for before, after in pairwise(cycle))  # type: ignore[index]
    else:
        place = {task: position for position, task in enumerate(ordered)}
        assert all(place[source] < place[task] for task in ordered for source in graph[task])


def test_what_a_raw_task_names() -> None:
    graph = {"a": 1, ("b", 0): 2, 3: "three"}
    assert inputs_in((max, ["a", [("b", 0)]], (abs, 3), {"a": 0}, "text"), graph) == ["a", ("b", 0), 3]
