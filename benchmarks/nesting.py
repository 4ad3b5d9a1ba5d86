"""Tasks that wait for tasks: a recursion a thousand deep on one slot."""

from __future__ import annotations

import os
import time

import psutil

from benchmarks.case import Case, Figure, Goal, Measurement, check_equal
from benchmarks.systems import System
from cluster import Client, LocalCluster, get_client

WARM_UP_DEPTH = 10


def descend(depth: int) -> tuple[int, int]:
    """Submit the next level and wait for it; at the bottom, how many processes the worker has for its one slot."""
    if not depth:
        return 0, len(psutil.Process(os.getppid()).children())
    below, processes = get_client().submit(descend, depth - 1).result()
    return below + 1, processes


def measure_recursion(system: System, depth: int) -> Measurement:
    """One chain of tasks, each of which waits for the next, on a cluster of one slot."""
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        client.submit(descend, WARM_UP_DEPTH).result()
        began = time.perf_counter()
        levels, processes = client.submit(descend, depth).result()
        seconds = time.perf_counter() - began
    check_equal(levels, depth, "the levels")
    return Measurement(depth, depth, seconds, {"seconds": seconds, "extra processes": processes - 1})


CASES = (
    Case(
        name="recursion",
        title="A recursion of tasks that wait for tasks, on one slot",
        sizes=(1_000,),
        ladder=(100, 200, 500, 1_000),
        figures=(
            Figure("seconds", "s", at_least=Goal(5.0), aim=Goal(1.0)),
            Figure("extra processes", "beside the slot's own", at_least=Goal(7.0)),
        ),
        measure=measure_recursion,
        only=frozenset({"cluster"}),
        opens_system=False,
    ),
)
