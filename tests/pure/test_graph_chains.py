"""Which tasks of a graph run as one, and what that makes."""

from __future__ import annotations

import pickle
from itertools import pairwise
from operator import sub
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.client.functions import label_of
from cluster.graph.chains import Chain, chains
from cluster.graph.order import depth_first


@given(st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=30), st.data())
def test_what_is_in_between_is_taken_by_its_follower_alone(wishes: list[list[int]], data: st.DataObject) -> None:
    graph = {task: [source for source in set(wished) if source < task] for task, wished in enumerate(wishes)}
    kept = data.draw(st.sets(st.sampled_from(sorted(graph)), min_size=1))
    order = depth_first(kept, graph.__getitem__)
    found = chains(order, graph.__getitem__, lambda task, source: source not in kept)
    assert sorted(task for chain in found for task in chain) == sorted(order)
    takers = {source: [task for task in order if source in graph[task]] for source in order}
    for chain in found:
        for source, task in pairwise(chain):
            assert graph[task] == [source]
            assert takers[source] == [task]
            assert source not in kept
    ends = {chain[-1]: place for place, chain in enumerate(found)}
    for place, chain in enumerate(found):
        assert all(ends[source] < place for source in graph[chain[0]])  # what a chain needs is made before it
    for chain in found:  # and none could be longer
        (source, *others) = graph[chain[0]] or [None]
        assert others or source is None or source in kept or len(takers[source]) > 1


def test_a_chain_is_cut_where_it_is_long() -> None:
    order = list(range(100))
    found = chains(order, lambda task: [task - 1] if task else [], lambda task, source: True)
    assert [task for chain in found for task in chain] == order
    assert {len(chain) for chain in found} == {32, 100 % 32}


def test_each_function_gets_its_own_arguments_and_the_value_so_far() -> None:
    chain: Any = Chain([(sub, 2, -1), (sub, 1, 1), (abs, 0, 0), (max, 2, 1)])
    assert chain(1, 5, 10, -3, 20) == max(-3, abs(10 - (1 - 5)), 20)
    assert pickle.loads(pickle.dumps(chain))(1, 5, 10, -3, 20) == 20
    assert label_of(chain) == "sub → sub → abs → max"


def test_a_coroutine_that_a_plain_function_returns_is_run_before_it_is_passed_on() -> None:
    async def double(number: int) -> int:
        return 2 * number

    assert Chain([(lambda number: double(number), 1, -1), (sub, 1, 0)])(4, 1) == 7
