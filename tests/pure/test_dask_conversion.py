"""Dask's nodes said as calls give what the nodes give by themselves."""

from __future__ import annotations

from typing import Any

from dask._task_spec import Alias, DataNode, Dict, List, Set, Task, TaskRef, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.adapters.dask_tasks import Conversion
from cluster.client.graphs import GraphTask, input_of
from cluster.wire.payload import FutureReference, loads

VALUES = {"a": 1, ("b", 0): "text", ("b", 1): 2.5, 7: (1, 2)}
IN_PLACE = {"data": 10}
"""What is no task of its own: it stands itself in the arguments."""


def show(*args: Any, **kwargs: Any) -> str:
    return f"{args!r} {sorted(kwargs.items())!r}"


def stands_for(key: Any) -> Any:
    return IN_PLACE[key] if key in IN_PLACE else input_of(key)


def resolve(value: Any) -> Any:
    """What loading would make of arguments, for those that no pattern fits."""
    if isinstance(value, FutureReference):
        return VALUES[value.reference[1]]
    if type(value) in (list, tuple, set):
        return type(value)(resolve(each) for each in value)
    if type(value) is dict:
        return {resolve(key): resolve(each) for key, each in value.items()}
    if hasattr(value, "function"):
        value.args = [resolve(each) for each in value.args]
        value.kwargs = {name: resolve(each) for name, each in (value.kwargs or {}).items()}
    return value


def carried_out(task: GraphTask) -> Any:
    if task.packed is not None:
        return task.function(*loads(task.packed, inputs=[VALUES[each] for each in task.inputs]))
    return task.function(*map(resolve, task.args), **{name: resolve(each) for name, each in task.kwargs.items()})


keys = st.sampled_from([*VALUES, *IN_PLACE])
plain = st.one_of(
    st.integers(-3, 3), st.booleans(), st.none(), st.floats(allow_nan=False), st.text(max_size=3),
    st.builds(slice, st.none() | st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(0, 2), st.booleans(), st.just(slice(None))),
    st.lists(st.integers(0, 3), max_size=2), st.just("long" * 1000),
)  # fmt: skip
arguments = st.recursive(
    plain | st.builds(TaskRef, keys),
    lambda inner: st.one_of(
        st.builds(lambda members: List(*members), st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda members: Tuple(*members), st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda member: Dict({"k": member, "l": 1}), inner),
        st.builds(lambda members: Task(None, show, *members), st.lists(inner, max_size=3)),
    ),
    max_leaves=6,
)
tasks = st.builds(
    lambda args, kwargs: Task("key", show, *args, **kwargs),
    st.lists(arguments, max_size=4),
    st.dictionaries(st.sampled_from(["x", "y"]), arguments, max_size=1),
)


@settings(max_examples=60)
@given(st.lists(tasks, min_size=1, max_size=4))
def test_a_task_gives_what_the_node_gives(nodes: list[Task]) -> None:
    conversion = Conversion(stands_for)
    for node in nodes:
        assert carried_out(conversion.task_of(node)) == node(
            {key: {**VALUES, **IN_PLACE}[key] for key in node.dependencies}
        )


def test_tasks_that_differ_in_their_inputs_only_are_packed_once() -> None:
    conversion = Conversion(input_of)
    first, second, other, flag = (
        conversion.task_of(Task("key", show, TaskRef(key), 1, List(TaskRef(key), TaskRef("z")), flag))
        for key, flag in (("x", 1), ("y", 1), ("x", 2), ("x", True))
    )
    assert first.packed is second.packed
    assert first.inputs == ["x", "x", "z"]
    assert other.packed != first.packed
    assert flag.packed != first.packed, "True equals 1, and is something else"


def test_nodes_of_every_kind_inside_a_task() -> None:
    conversion = Conversion(stands_for)
    node = Task("key", show, Set(TaskRef("a"), 2), DataNode("own", [3]), Alias("own", "a"), Dict({"k": TaskRef("a")}))
    assert carried_out(conversion.task_of(node)) == "({1, 2}, [3], 1, {'k': 1}) []"
    assert carried_out(conversion.task_of(List(TaskRef("a"), Task(None, show, TaskRef("a"))))) == [1, "(1,) []"]


class OwnNode(Task):
    """A kind of node that somebody else has thought of."""

    def __call__(self, values: Any = ()) -> Any:
        return "own", values["a"]


def test_an_unknown_kind_of_node_computes_itself() -> None:
    node = OwnNode("key", show, TaskRef("a"))
    assert carried_out(Conversion(stands_for).task_of(node)) == ("own", 1)


def test_a_generator_is_run_to_its_end() -> None:
    conversion = Conversion(stands_for)

    def pairs(*args: Any) -> Any:
        return ((each, each) for each in args)

    assert carried_out(conversion.task_of(Task("key", pairs, TaskRef("a"), 2))) == [(1, 1), (2, 2)]
    assert carried_out(conversion.task_of(Task("key", pairs, [3]))) == [([3], [3])]
    first, second = (conversion.task_of(Task(key, pairs, TaskRef("a"))) for key in "xy")
    assert first.function is second.function
    assert conversion.task_of(Task("key", max, 1, 2)).function is max
