"""Which tasks of a graph are sent together."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cluster.graph.batches import TURNS, by_turns


@given(st.lists(st.integers(0, 3), max_size=50))
def test_few_tasks_stay_in_their_order(kinds: list[int]) -> None:
    found = list(by_turns(range(len(kinds)), kinds.__getitem__))
    assert [task for batch in found for task in batch] == list(range(len(kinds)))
    assert all(len({kinds[task] for task in batch}) == 1 for batch in found)
    assert all(kinds[first[0]] != kinds[second[0]] for first, second in pairwise(found))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(TURNS, 5 * TURNS))
def test_many_tasks_take_long_turns(pattern: list[int], count: int) -> None:
    kinds = [pattern[task % len(pattern)] for task in range(count)]
    found = list(by_turns(range(count), kinds.__getitem__))
    assert sorted(task for batch in found for task in batch) == list(range(count))
    assert all(len({kinds[task] for task in batch}) == 1 for batch in found)
    assert all(batch == sorted(batch) for batch in found)
    assert len(found) <= TURNS * len(set(kinds))
    ends = -1
    for batch in found:  # and nobody is moved further than a turn is long
        assert batch[0] > ends - -(-count // TURNS)
        ends = batch[-1]


def test_tasks_of_one_kind_are_one_batch() -> None:
    assert list(by_turns(range(3 * TURNS), lambda task: "load")) == [list(range(3 * TURNS))]
