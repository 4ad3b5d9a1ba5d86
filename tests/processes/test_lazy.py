"""Delayed values and raw graphs computed on real processes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import pytest

from cluster import Client, ClusterError, Future, compute, current, delayed, persist
from tests.processes.whole_cluster import PackedWhenHeld

pytestmark = pytest.mark.both_shapes


@dataclass
class Box:
    content: Any


def increment(x: int) -> int:
    return x + 1


def fail(text: str) -> None:
    raise ValueError(text)


def test_what_is_shared_is_computed_once(client: Client) -> None:
    made = delayed(object)()
    left, right, rest = compute([made, made], delayed(id)(made) == delayed(id)(made), "text")
    assert type(left[0]) is object
    assert rest == "text"
    assert right in (True, False)
    # `id` runs in whichever process; that `made` is one task is seen from the tasks that were submitted.
    futures = client.compute([made, made])
    assert futures[0] == futures[1]


def test_a_graph_of_many_shapes(client: Client) -> None:
    one = delayed(increment)(0)
    boxed = delayed(lambda box, pair: box.content + pair["k"][0])(Box(one), {"k": (one + 1,)})
    assert compute(boxed, one, {"nested": [one, (boxed,)]}) == (3, 1, {"nested": [1, (3,)]})
    assert delayed("some text").upper().split().compute() == ["SOME", "TEXT"]
    quotient, rest = delayed(divmod, nout=2)(one + 6, 3)
    assert (quotient * 10 + rest).compute() == 21
    assert delayed([one, 2, [one]]).compute() == [1, 2, [1]]


def test_futures_inside_delayed_arguments_are_inputs(client: Client) -> None:
    future = client.submit(increment, 1)
    assert delayed(operator.add)(future, 1).compute() == 3
    assert delayed(sum)([future, delayed(future)]).compute() == 4


def test_persisted_values_stay_on_the_cluster(client: Client) -> None:
    base = delayed(increment)(1)
    kept, plain = persist(base, 7)
    assert plain == 7
    assert isinstance(kept._node.args[0], Future)
    assert (kept + 1).compute() == 3
    assert kept._node.args[0].result() == 2
    again = client.persist({"a": base * 2})["a"]
    assert again.compute() == 4


def test_options_reach_the_tasks(client: Client) -> None:
    name = next(iter(client.scheduler_info()["workers"].values()))["name"]
    assert client.compute(delayed(increment)(1), workers=name, retries=1, sync=True) == 2
    with pytest.raises(ValueError, match="retries"):
        client.compute(delayed(increment)(1), retries=-1)


def test_what_fails_raises_from_compute(client: Client) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        delayed(increment)(delayed(fail)("on purpose")).compute()


def test_a_long_chain(client: Client) -> None:
    value = delayed(0)
    for _ in range(2000):
        value = value + 1
    assert value.compute() == 2000


def test_a_raw_graph(client: Client) -> None:
    graph: dict[Any, Any] = {
        "x": 1,
        ("y", 0): (increment, "x"),
        ("y", 1): (increment, (increment, "x")),
        "sum": (sum, [("y", 0), ("y", 1), (increment, 10)]),
        "alias": "sum",
        "list": ["x", [("y", 0)], (increment, "x")],
        "calls": [(increment, 1), [5, (increment, 2)]],
        "last call": (operator.getitem, "calls", -1),
        "broken": (fail, "not asked for"),
        "constant": {"x": "not a key here"},
    }
    assert client.get(graph, "sum") == 16
    assert client.get(graph, [["alias", "x"], [("y", 1)], "list", "constant"]) == [
        [16, 1], [3], [1, [2], 2], {"x": "not a key here"},
    ]  # fmt: skip
    assert client.get(graph, ["calls", "last call"]) == [[2, [5, 3]], [5, 3]], "it names no key, and is run"
    future = client.get(graph, "sum", sync=False)
    assert future.result() == 16
    with pytest.raises(KeyError, match="nowhere"):
        client.get(graph, ["sum", "nowhere"])
    with pytest.raises(ValueError, match="need one another"):
        client.get({"a": (increment, "b"), "b": (increment, "a")}, "a")
    with pytest.raises(ValueError, match="not asked for"):
        client.get(graph, "broken")


def keys_so_far(before: list[str], *others: Any) -> list[str]:
    """What the task in which it runs is called, behind what those before it were called."""
    return [*before, current().key]


async def keys_awaited(before: list[str]) -> list[str]:
    return [*before, current().key]


def test_tasks_of_a_raw_graph_that_only_one_other_takes_run_with_it(client: Client) -> None:
    graph: dict[Any, Any] = {
        "a": (keys_so_far, []),
        "b": (keys_so_far, "a", "text", [1]),
        "c": (keys_so_far, "b"),
        "twice": (operator.add, "c", "c"),
        "inside": (keys_so_far, (keys_so_far, "c")),
        "awaited": (keys_awaited, "a"),
        "after": (keys_so_far, "awaited"),
        "d": (fail, "on purpose"),
        "e": (increment, "d"),
    }
    assert len(set(client.get(graph, "c"))) == 1
    first, second, third = client.get(graph, ["b", "c"])[1]
    assert first == second != third, "what is asked for is a task of its own end"
    names = client.get(graph, "twice")
    assert names == names[:3] * 2
    assert len(set(names)) == 1
    first, *_, fourth, fifth = client.get(graph, "inside")
    assert first != fourth == fifth, "what holds further tasks stays apart"
    assert len(set(client.get(graph, "after"))) == 3, "and so does what is awaited"
    assert len(set(client.get(graph, "c", retries=1))) == 3, "each is tried again for itself"
    assert len(set(client.get(graph, "c", timeout_seconds=60))) == 3
    with pytest.raises(ValueError, match="on purpose"):
        client.get(graph, "e")
    assert client.get(graph, "e", sync=False).exception().args == ("on purpose",)


def test_without_a_client_the_error_says_what_to_do() -> None:
    with pytest.raises(ClusterError, match=r"client = Client\(\)"):
        delayed(increment)(1).compute()


@pytest.mark.usefixtures("graphs_sent_in_fours")
def test_what_was_used_up_is_freed_while_the_rest_of_a_graph_is_sent(client: Client) -> None:
    graph: dict[Any, Any] = {}
    for place in range(8):
        graph["made", place] = (increment, place)
        graph["doubled", place] = (operator.add, ("made", place), ("made", place))
    graph["sum"] = (sum, [("doubled", place) for place in range(8)])
    graph["all"] = (operator.add, "sum", (operator.neg, PackedWhenHeld(client, 8)))
    assert client.get(graph, "all") == 72
