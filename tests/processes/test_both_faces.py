"""What holds of both faces of a client: each scenario runs on the blocking one and on the asyncio one."""

from __future__ import annotations

import asyncio
import inspect
import operator
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import AsyncClient, Client, LocalCluster, as_completed, fire_and_forget, wait
from cluster.errors import CancelledError, ClusterError, ConnectionLost, TaskDied
from tests.processes.whole_cluster import Gate, wait_at

pytestmark = pytest.mark.timeout(60)

Scenario = Callable[[Any], Awaitable[None]]
scenarios: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    scenarios.append(function)
    return function


async def done(outcome: Any) -> Any:
    """What a call gave, on either face."""
    return await outcome if inspect.isawaitable(outcome) else outcome


async def each(futures: Any, client: Any) -> list[Any]:
    return [future async for future in futures] if client.asynchronous else list(futures)


def fail(value: Any) -> Any:
    raise ValueError(f"no {value}")


def stop_iteration() -> None:
    raise StopIteration(5)


def die() -> None:
    import os

    os._exit(3)


@pytest.mark.parametrize("face", ["blocking", "asyncio"])
@pytest.mark.parametrize("each_scenario", scenarios, ids=lambda function: function.__name__)
def test_on_either_face(each_scenario: Scenario, face: str, local_cluster: LocalCluster) -> None:
    async def on_asyncio() -> None:
        async with AsyncClient(local_cluster) as client:
            await each_scenario(client)

    async def on_blocking() -> None:
        with Client(local_cluster) as client:
            await each_scenario(client)

    asyncio.run(on_asyncio() if face == "asyncio" else on_blocking(), debug=True)


@scenario
async def submit_gives_a_value(client: Any) -> None:
    future = client.submit(pow, 2, 10)
    assert await done(future.result()) == 1024
    assert (future.status, future.done()) == ("finished", True)
    assert await done(future.exception()) is None
    assert await done(future.traceback()) is None


@scenario
async def a_chain_and_nested_futures(client: Any) -> None:
    future: Any = client.submit(int, 0)
    for _ in range(20):
        future = client.submit(operator.add, future, 1)
    assert await done(future.result()) == 20
    assert await done(client.submit(sum, [future, [client.submit(int, 1)][0]]).result()) == 21


@scenario
async def a_map_over_a_map(client: Any) -> None:
    doubled = client.map(operator.mul, client.map(abs, range(-2000, 0)), [2] * 2000)
    assert await done(client.gather(doubled)) == [2 * x for x in range(2000, 0, -1)]
    assert await done(client.gather(doubled[10:20])) == [2 * x for x in range(1990, 1980, -1)]
    assert await done(client.gather({"a": doubled[0], "b": [doubled[1], doubled[2]]})) == {"a": 4000, "b": [3998, 3996]}


@scenario
async def failures_are_raised_or_skipped(client: Any) -> None:
    bad = client.submit(fail, 3)
    with pytest.raises(ValueError, match="no 3"):
        await done(bad.result())
    assert isinstance(await done(bad.exception()), ValueError)
    assert "no 3" in (await done(bad.traceback()) or "")
    good = client.submit(int, 1)
    with pytest.raises(ValueError, match="no 3"):
        await done(client.gather([good, bad]))
    assert await done(client.gather([good, bad], errors="skip")) == [1]


@scenario
async def a_task_that_raises_what_generators_may_not(client: Any) -> None:
    future = client.submit(stop_iteration)
    assert isinstance(await done(future.exception()), StopIteration)
    # In a coroutine Python itself makes a RuntimeError of it.
    with pytest.raises(RuntimeError if client.asynchronous else StopIteration):
        await done(future.result())


@scenario
async def a_task_that_dies(client: Any) -> None:
    with pytest.raises(TaskDied):
        await done(client.submit(die).result())


@scenario
async def values_that_are_fetched(client: Any) -> None:
    futures = client.map(bytes, [10_000, 100_000, 1_000_000])
    assert [len(value) for value in await done(client.gather(futures))] == [10_000, 100_000, 1_000_000]
    assert await done(client.submit(len, bytes(1_000_000)).result()) == 1_000_000


@scenario
async def scattered_values(client: Any) -> None:
    first, second = await done(client.scatter([[1, 2], bytes(200_000)]))
    assert await done(client.submit(sum, first).result()) == 3
    assert await done(client.submit(len, second).result()) == 200_000
    named = await done(client.scatter({"x": 5}))
    assert await done(client.gather(named)) == {"x": 5}
    assert await done(client.scatter([])) == []
    assert (await done(client.who_has(first)))[first.key]


@scenario
async def as_completed_gives_all(client: Any) -> None:
    futures = client.map(abs, range(50))
    assert {future.number for future in await each(as_completed(futures), client)} == set(futures.numbers())
    pairs = await each(as_completed(list(futures[:5]), with_results=True), client)
    assert sorted(value for _, value in pairs) == [0, 1, 2, 3, 4]
    failing = as_completed([client.submit(fail, 1)], with_results=True, raise_errors=False)
    [(_, error)] = await each(failing, client)
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match="no 1"):
        await each(as_completed([client.submit(fail, 1)], with_results=True), client)
    iterator = as_completed(list(futures[:3]))
    assert len(await done(iterator.next_batch())) + iterator.count() == 3


@scenario
async def waiting_for_the_first(client: Any) -> None:
    quick = client.submit(int, 1)
    await done(quick.result())
    outcome = await done(wait([quick, client.submit(fail, 1)], return_when="FIRST_COMPLETED"))
    assert quick in outcome.done
    outcome = await done(wait(client.map(abs, range(10))))
    assert (len(outcome.done), len(outcome.not_done)) == (10, 0)
    assert await done(wait([])) == (set(), set())


@scenario
async def timeouts_leave_the_task_alone(client: Any) -> None:
    path = Path(client._settings.directory) / f"gate-{client.id.hex()}"
    with Gate(path) as gate:
        future = client.submit(wait_at, gate.path, 7)
        gate.wait_until_reached()
        with pytest.raises(TimeoutError):
            await done(future.result(timeout=0.01))
        with pytest.raises(TimeoutError):
            await done(client.gather([future], timeout=0.01))
        with pytest.raises(TimeoutError):
            await each(as_completed([future], timeout=0.01), client)
        assert (await done(wait([future], timeout=0.01))).not_done == {future}
        assert future.status == "pending"
        gate.open()
        assert await done(future.result(timeout=30)) == 7


@scenario
async def cancelling_by_name(client: Any) -> None:
    path = Path(client._settings.directory) / f"gate-{client.id.hex()}"
    with Gate(path) as gate:
        future = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        assert future.cancel()
        with pytest.raises(CancelledError):
            await done(future.result())
        gate.open()


@scenario
async def questions_are_answered(client: Any) -> None:
    assert sum((await done(client.nthreads())).values()) == 2
    assert (await done(client.scheduler_info()))["clients"] >= 1
    fire_and_forget(client.submit(int))


@scenario
async def the_cluster_as_a_whole(client: Any) -> None:
    await done(client.wait_for_workers(1, timeout=30))
    assert list((await done(client.run(sum, [1, 2]))).values()) == [3]
    with pytest.raises(TimeoutError):
        await done(client.wait_for_workers(5, timeout=0.01))
    future = client.submit(int, 4)
    await done(client.replicate(future))
    assert future.key in str(await done(client.has_what()))
    assert "workers" in await done(client.get_versions())


@scenario
async def datasets_by_name(client: Any) -> None:
    await done(client.publish_dataset(prices=client.map(abs, [1, 2]), other=3))
    assert await done(client.list_datasets()) == ("other", "prices")
    assert await done(client.gather(await done(client.get_dataset("prices")))) == [1, 2]
    for name in ("prices", "other"):
        await done(client.unpublish_dataset(name))
    with pytest.raises(KeyError):
        await done(client.get_dataset("prices"))


@scenario
async def keys_and_options(client: Any) -> None:
    first = client.submit(int, 3, key="three")
    assert client.submit(int, 3, key="three") == first
    assert await done(client.options(label="named").submit(int, 4).result()) == 4
    assert "named" in client.options(label="named").map(int, [1])[0].key


@scenario
async def a_closed_client_says_so(client: Any) -> None:
    future = client.submit(int, 3)
    await done(client.close())
    assert client.status == "closed"
    with pytest.raises(ConnectionLost, match="closed"):
        client.submit(int, 4)
    assert future.status in ("lost", "finished")
    with pytest.raises(ConnectionLost, match="closed"):
        await done(client.scheduler_info())


@scenario
async def anothers_future_is_refused_or_bound(client: Any) -> None:
    with Client(client._cluster) as other:
        future = other.submit(int, 8)
        with pytest.raises(ClusterError, match="another client"):
            await done(client.gather([future]))
        assert await done(client.submit(operator.add, future, 1).result()) == 9
