"""Graphs of much more data than the memory limit: what the processes hold, what is moved between workers, how long.

Two workers of one slot each, with the same memory limit in both systems. After a warm-up each graph runs twice. The
first time it is timed, the second time its memory is sampled, since the samples take processor time; so what workers
keep of the first run counts in the peak. The memory is what all processes of the system hold, client and interpreters
included, shared pages counted once, and what lies in shared memory, mapped or not. Bytes moved are what the workers
copied from one another while the graph was timed, by their own count; ours are on one host and share large values by
links to the same memory, which are no copies and do not count.

With each graph it is said how much of its values must exist at once in whatever order one task after the other is run
(for a tree: Sethi and Ullman, "The Generation of Optimal Code for Arithmetic Expressions", 1970), and what a system's
processes hold before the first task. Nobody's peak can be below the sum of the first and of some interpreters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.peak_memory import PeakMemory, held_bytes
from benchmarks.peers import Dask
from benchmarks.systems import COLLECTIONS, Cluster, System

MEMORY_LIMIT_BYTES = 500_000_000  # of each worker
CHUNK_BYTES = 25_000_000
IN_ALL_BYTES = 10_000_000_000  # so more than 400 chunks are smaller ones
SUMMED_AT_ONCE = 8
HEARTBEAT_SECONDS = 1.5  # and a little more


class Graph(NamedTuple):
    """A raw graph, the key of its value and what that is, and how many chunks must exist at once to compute it."""

    tasks: dict[Any, Any]
    key: Any
    expected: float
    least_chunks: int


def load(number: int, nbytes: int) -> Any:
    """One chunk of numbers."""
    import numpy as np

    return np.full(nbytes // 8, float(number))


def step(chunk: Any) -> Any:
    return chunk + 1.0


def add(left: Any, right: Any) -> Any:
    return left + right


def mix(*chunks: Any) -> Any:
    """As large as one of them, a part of each."""
    import numpy as np

    part = len(chunks[0]) // len(chunks)
    return np.concatenate([chunk[:part] for chunk in chunks])


def piece(chunk: Any, part: int, parts: int) -> Any:
    length = len(chunk) // parts
    return chunk[part * length : (part + 1) * length].copy()


def merge(*pieces: Any) -> Any:
    import numpy as np

    return np.concatenate(pieces)


def add_all(*numbers: float) -> float:
    return sum(numbers)


def total(*chunks: Any) -> float:
    return float(sum(chunk[0] + chunk[-1] for chunk in chunks))


def loads_and_steps(chunks: int, nbytes: int) -> dict[Any, Any]:
    """So many chunks, and two steps on each; what comes of it is ("second", place)."""
    graph: dict[Any, Any] = {}
    for place in range(chunks):
        graph["load", place] = (load, place, nbytes)
        graph["first", place] = (step, ("load", place))
        graph["second", place] = (step, ("first", place))
    return graph


def least_chunks_of_tree(graph: dict[Any, Any], key: Any) -> int:
    """How many chunks must exist at once, whatever the order, where each value has one use; totals count as nothing."""

    def chunks_of(key: Any) -> int:
        return 0 if graph[key][0] in (total, add_all) else 1

    inputs = [argument for argument in graph[key][1:] if argument in graph]
    needs = [(least_chunks_of_tree(graph, each), chunks_of(each)) for each in inputs]
    # Best is to begin with the input that needs most, while nothing else is held yet.
    needs.sort(key=lambda need: need[0] - need[1], reverse=True)
    least, held = 0, 0
    for most, chunks in needs:
        least = max(least, held + most)
        held += chunks
    return max(least, held + chunks_of(key))


def tree(leaves: int, nbytes: int) -> Graph:
    """Loads, two steps on each, sums of pairs."""
    graph = loads_and_steps(leaves, nbytes)
    keys: list[Any] = [("second", place) for place in range(leaves)]
    while len(keys) > 1:
        above = []
        for place in range(0, len(keys) - 1, 2):
            above.append((f"sum-of-{len(keys)}", place))
            graph[above[-1]] = (add, keys[place], keys[place + 1])
        keys = above + (keys[-1:] if len(keys) % 2 else [])
    graph["total"] = (total, keys[0])
    return Graph(graph, "total", leaves * (leaves - 1.0) + 4.0 * leaves, least_chunks_of_tree(graph, "total"))


def reduction(chunks: int, nbytes: int) -> Graph:
    """Loads, two steps on each, one number of each, and sums of eight; as collections reduce."""
    graph = loads_and_steps(chunks, nbytes)
    keys: list[Any] = [("reduced", place) for place in range(chunks)]
    graph.update((key, (total, ("second", place))) for place, key in enumerate(keys))
    while len(keys) > 1:
        above = []
        for place in range(0, len(keys), SUMMED_AT_ONCE):
            above.append((f"sum-of-{len(keys)}", place))
            graph[above[-1]] = (add_all, *keys[place : place + SUMMED_AT_ONCE])
        keys = above
    return Graph(graph, keys[0], chunks * (chunks - 1.0) + 4.0 * chunks, least_chunks_of_tree(graph, keys[0]))


def shuffle(width: int, nbytes: int) -> Graph:
    """Chunks, each of which is split into as many pieces; of each chunk one piece, merged.

    All pieces exist before the first merge, and the last chunk with its last piece.
    """
    graph: dict[Any, Any] = {}
    for place in range(width):
        graph["load", place] = (load, place, nbytes)
        for part in range(width):
            graph["piece", place, part] = (piece, ("load", place), part, width)
    for part in range(width):
        graph["merge", part] = (merge, *(("piece", place, part) for place in range(width)))
    graph["total"] = (total, *(("merge", part) for part in range(width)))
    return Graph(graph, "total", width * (width - 1.0), width + 1)


def all_to_all(width: int, nbytes: int) -> Graph:
    """Chunks, of all of which each of as many tasks takes a part: all of both exist when the last of these has run."""
    graph: dict[Any, Any] = {("load", place): (load, place, nbytes) for place in range(width)}
    loads = list(graph)
    for place in range(width):
        graph["mix", place] = (mix, *loads)
    graph["total"] = (total, *(("mix", place) for place in range(width)))
    return Graph(graph, "total", width * (width - 1.0), 2 * width)


def held_by_all() -> int:
    """What this process and its descendants hold."""
    root = psutil.Process()
    return held_bytes(process.pid for process in (root, *root.children(recursive=True)))


def moved_bytes(system: System) -> int:
    """What the workers have copied from one another so far."""
    time.sleep(HEARTBEAT_SECONDS)  # ours say it with their heartbeats; and both let go of what was computed
    if isinstance(system, Dask):
        return int(sum(system.client.run(fetched_by).values()))
    workers = system.client.scheduler_info()["workers"].values()
    return sum(int(worker["report"]["fetched_bytes"]) for worker in workers)


def fetched_by(dask_worker: Any) -> int:
    """Runs in Dask's worker."""
    return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)


def measure(make: Callable[[int, int], Graph], system: System, size: int) -> Measurement:
    system.close()
    if isinstance(system, Dask):
        import distributed

        system.cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=MEMORY_LIMIT_BYTES, dashboard_address=None, silence_logs=50
        )
        system.client = distributed.Client(system.cluster)
    else:
        from cluster import Client, LocalCluster

        assert isinstance(system, Cluster)
        system.cluster = LocalCluster(n_workers=2, slots=1, memory_limit=MEMORY_LIMIT_BYTES)
        system.client = Client(system.cluster)
    system.client.wait_for_workers(2)
    chunk_bytes = min(CHUNK_BYTES, IN_ALL_BYTES // size)
    at_rest_bytes = held_by_all()
    graph, warm_up = make(size, chunk_bytes), make(2, chunk_bytes)
    system.client.get(warm_up.tasks, warm_up.key)
    moved_before = moved_bytes(system)
    with Meter(system) as meter:
        found = system.client.get(graph.tasks, graph.key)
    check_equal(found, graph.expected, "the value of the graph")
    moved = moved_bytes(system) - moved_before
    with PeakMemory(held_by_all) as memory:
        found = system.client.get(graph.tasks, graph.key)
    check_equal(found, graph.expected, "the value of the graph")
    figures = {"time": meter.seconds, "peak": memory.peak_bytes / 1e6, "moved": moved / 1e6}
    least = f"values of {graph.least_chunks * chunk_bytes / 1e6:,.0f} MB must exist at once"
    at_rest = f"at rest the processes hold {at_rest_bytes / 1e6:,.0f} MB"
    return meter.measurement(size, len(graph.tasks), figures, least, at_rest)


def measure_tree(system: System, leaves: int) -> Measurement:
    return measure(tree, system, leaves)


def measure_reduction(system: System, chunks: int) -> Measurement:
    return measure(reduction, system, chunks)


def measure_shuffle(system: System, width: int) -> Measurement:
    return measure(shuffle, system, width)


def measure_all_to_all(system: System, width: int) -> Measurement:
    return measure(all_to_all, system, width)


def case(
    name: str, title: str, sizes: tuple[int, ...], ladder: tuple[int, ...], run: Any, *, moves: bool = True
) -> Case:
    """`moves`: whether there is something to move that could be left where it is."""
    half, fifth = Goal(times_dask=2), Goal(times_dask=5)
    return Case(
        name=name,
        title=title,
        sizes=sizes,
        ladder=ladder,
        figures=(
            Figure("time", "s", at_least=half, aim=Goal(times_dask=3)),
            Figure("peak", "MB", at_least=half, aim=fifth),
            Figure("moved", "MB", at_least=half if moves else None),
        ),
        measure=run,
        needs=frozenset({COLLECTIONS}),
        only=frozenset({"cluster", "dask"}),
    )


CASES = (
    case(
        "memory-tree",
        "Two workers of 0.5 GB: 10 GB in chunks, two steps on each, sums of pairs",
        (400, 4000),
        (40, 400, 4000),
        measure_tree,
    ),
    case(
        "memory-reduction",
        "Two workers of 0.5 GB: 10 GB in chunks, two steps on each, a number of each, sums of eight",
        (400, 4000),
        (40, 400, 4000),
        measure_reduction,
        moves=False,
    ),
    case(
        "memory-shuffle",
        "Two workers of 0.5 GB: chunks of 25 MB, each split into as many pieces, and the pieces merged",
        (8, 16),
        (4, 8, 16),
        measure_shuffle,
    ),
    case(
        "memory-all-to-all",
        "Two workers of 0.5 GB: chunks of 25 MB, of all of which each of as many tasks takes a part",
        (8, 16),
        (4, 8, 16),
        measure_all_to_all,
    ),
)
