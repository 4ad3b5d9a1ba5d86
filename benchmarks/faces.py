"""The asyncio face beside the blocking one, in turns within one run: only the ratio of the two says something."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.case import Case, Figure, Goal, Measurement, Meter, check_equal
from benchmarks.systems import System
from benchmarks.tasks import identity

if TYPE_CHECKING:
    from cluster import AsyncClient

TURNS = 5
WARM_UP_TASKS = 100


def measure_round_trips(system: System, size: int) -> Measurement:
    """`submit(f).result()` one after the other: a block of each face in turn."""
    return asyncio.run(_round_trips(system, size))


async def _round_trips(system: Any, size: int) -> Measurement:
    from cluster import AsyncClient

    blocking: list[float] = []
    awaited: list[float] = []
    async with AsyncClient(system.cluster) as client:
        await _awaited_trips(client, WARM_UP_TASKS)
        _blocking_trips(system, WARM_UP_TASKS)
        with Meter(system) as meter:
            for _ in range(TURNS):
                awaited += await _awaited_trips(client, size // TURNS)
                blocking += _blocking_trips(system, size // TURNS)
    figures = {
        "asyncio p50": statistics.median(awaited) * 1e3,
        "blocking p50": statistics.median(blocking) * 1e3,
        "ratio": statistics.median(awaited) / statistics.median(blocking),
    }
    return meter.measurement(size, 2 * size, figures)


async def _awaited_trips(client: AsyncClient, count: int) -> list[float]:
    trips = []
    for place in range(count):
        began = time.perf_counter()
        value = await client.submit(identity, place)
        trips.append(time.perf_counter() - began)
        check_equal(value, place, "the value")
    return trips


def _blocking_trips(system: System, count: int) -> list[float]:
    trips = []
    for place in range(count):
        began = time.perf_counter()
        value = system.result(system.submit(identity, place))
        trips.append(time.perf_counter() - began)
        check_equal(value, place, "the value")
    return trips


def measure_maps(system: System, size: int) -> Measurement:
    """`map` and `gather` of a no-op: once with each face in turn."""
    return asyncio.run(_maps(system, size))


async def _maps(system: Any, size: int) -> Measurement:
    from cluster import AsyncClient

    blocking: list[float] = []
    awaited: list[float] = []
    async with AsyncClient(system.cluster) as client:
        await client.gather(client.map(identity, range(size)))
        system.gather(system.map(identity, range(size)))
        with Meter(system) as meter:
            for _ in range(TURNS):
                began = time.perf_counter()
                check_equal(await client.gather(client.map(identity, range(size))), list(range(size)), "the values")
                awaited.append(time.perf_counter() - began)
                began = time.perf_counter()
                check_equal(system.gather(system.map(identity, range(size))), list(range(size)), "the values")
                blocking.append(time.perf_counter() - began)
    figures = {
        "asyncio rate": size / statistics.median(awaited),
        "blocking rate": size / statistics.median(blocking),
        "ratio": statistics.median(awaited) / statistics.median(blocking),
    }
    return meter.measurement(size, 2 * TURNS * size, figures)


CASES = (
    Case(
        name="asyncio-latency",
        title="`await client.submit(f, x)` beside `submit(f, x).result()`, warm",
        sizes=(1_000,),
        ladder=(100, 200, 500, 1_000),
        figures=(
            Figure("asyncio p50", "ms"),
            Figure("blocking p50", "ms"),
            Figure("ratio", "times the blocking face", at_least=Goal(1.2), aim=Goal(1.0)),
        ),
        measure=measure_round_trips,
        only=frozenset({"cluster"}),
    ),
    Case(
        name="asyncio-map",
        title="No-op `map` and `gather`, awaited and blocking",
        sizes=(100_000,),
        ladder=(1_000, 10_000, 100_000),
        figures=(
            Figure("asyncio rate", "tasks a second", True),
            Figure("blocking rate", "tasks a second", True),
            Figure("ratio", "times the blocking face", at_least=Goal(1.2), aim=Goal(1.0)),
        ),
        measure=measure_maps,
        only=frozenset({"cluster"}),
    ),
)
