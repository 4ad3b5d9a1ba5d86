"""Dask's collections: an array and its transpose, a groupby of a dataframe, and a graph of very many small tasks."""

from __future__ import annotations

from typing import Any

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, WrongResult, check_equal
from benchmarks.systems import COLLECTIONS, System
from benchmarks.tasks import add, identity

CHUNK = 1_000
PARTITIONS = 20
GROUPS = 100
WARM_UP_LEAVES = 64


def measure_array(system: System, side: int) -> Measurement:
    """`(x + x.T).sum()` of random numbers, which are made by the tasks."""
    import dask.array as da

    def total(side: int, chunk: int) -> Any:
        x = da.random.default_rng(1).random((side, side), chunks=chunk)
        return (x + x.T).sum()

    total(40, 20).compute(scheduler=system.client)
    graph = total(side, CHUNK)
    with Meter(system) as meter:
        value = float(graph.compute(scheduler=system.client))
    if not 0.99 < value / side**2 < 1.01:
        raise WrongResult(f"the sum is {value} instead of about {side**2}")
    tasks = len(dict(graph.dask))
    return meter.measurement(side, tasks, {"time": meter.seconds})


def measure_groupby(system: System, rows: int) -> Measurement:
    """`frame.groupby("group").value.agg(["sum", "mean"])` of numbers that the tasks make."""
    import dask.dataframe as dd

    def grouped(rows: int) -> Any:
        size = rows // PARTITIONS
        frame = dd.from_map(numbers, range(0, size * PARTITIONS, size), size=size, meta=numbers(0, 1))
        return frame.groupby("group").value.agg(["sum", "mean"])

    grouped(20 * PARTITIONS).compute(scheduler=system.client)
    frame = grouped(rows)
    with Meter(system) as meter:
        found = frame.compute(scheduler=system.client)
    check_equal(int(found["sum"].sum()), rows * (rows - 1) // 2, "the sum over all groups")
    return meter.measurement(rows, PARTITIONS, {"time": meter.seconds})


def numbers(first: int, size: int) -> Any:
    """One partition: consecutive numbers in groups."""
    import numpy as np
    import pandas as pd

    value = np.arange(first, first + size)
    return pd.DataFrame({"group": value % GROUPS, "value": value})


def measure_graph(system: System, leaves: int) -> Measurement:
    """A tree of sums of no-ops, as a graph that is there: its conversion, its scheduling and its run."""
    warm_up, root = tree(WARM_UP_LEAVES)
    system.client.get(warm_up, root)
    graph, root = tree(leaves)
    with Meter(system) as meter:
        value = system.client.get(graph, root)
    check_equal(value, leaves * (leaves - 1) // 2, "the root")
    tasks = len(graph)
    return meter.measurement(leaves, tasks, {"time": meter.seconds, "task": meter.seconds / tasks * 1e6})


def tree(leaves: int) -> tuple[dict[Any, Any], Any]:
    """The graph and the key of its root; the leaves are a power of 2."""
    from dask._task_spec import Task, TaskRef

    keys: list[Any] = [("leaf", place) for place in range(leaves)]
    graph: dict[Any, Any] = {key: Task(key, identity, place) for place, key in enumerate(keys)}
    while len(keys) > 1:
        above = [(f"sum-of-{len(keys)}", place) for place in range(len(keys) // 2)]
        for key, left, right in zip(above, keys[::2], keys[1::2], strict=True):
            graph[key] = Task(key, add, TaskRef(left), TaskRef(right))
        keys = above
    return graph, keys[0]


CASES = (
    Case(
        name="dask-array",
        title="Dask: `(x + x.T).sum()` of 10,000 x 10,000 random numbers in chunks of 1,000 x 1,000",
        sizes=(10_000,),
        ladder=(2_000, 5_000, 10_000),
        figures=(Figure("time", "s", at_least=Goal(times_dask=1.5), aim=Goal(times_dask=2.5)),),
        measure=measure_array,
        needs=frozenset({COLLECTIONS}),
        cost=lambda side: float(side * side),
    ),
    Case(
        name="dask-groupby",
        title="Dask: a groupby of a dataframe of 20 partitions, sum and mean of 100 groups",
        sizes=(20_000_000,),
        ladder=(200_000, 2_000_000, 20_000_000),
        figures=(Figure("time", "s", at_least=Goal(times_dask=1.5), aim=Goal(times_dask=2.5)),),
        measure=measure_groupby,
        needs=frozenset({COLLECTIONS}),
    ),
    Case(
        name="dask-graph",
        title="Dask: a graph of 131,071 small tasks, from the graph to the value",
        sizes=(65_536,),
        ladder=(256, 1_024, 4_096, 16_384, 65_536),
        figures=(
            Figure("time", "s"),
            # Judged a task, which can be compared where a peer was measured at a smaller size.
            Figure("task", "µs a task", at_least=Goal(times_dask=10), aim=Goal(times_dask=30)),
        ),
        measure=measure_graph,
        needs=frozenset({COLLECTIONS}),
    ),
)
