"""`client.debug`: a task run again here, under a scripted pdb."""

from __future__ import annotations

import asyncio
import io
import pdb
from typing import Any

import numpy as np
import pytest

from cluster import AsyncClient, Client, LocalCluster
from cluster.errors import ClusterError

pytestmark = pytest.mark.timeout(60)


def divide(numerator: int, by: Any, *, note: str = "") -> float:
    quotient = numerator / by
    return quotient


def scripted(*commands: str) -> tuple[pdb.Pdb, io.StringIO]:
    said = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("\n".join([*commands, "q"]) + "\n"), stdout=said, nosigint=True)
    debugger.use_rawinput = False
    return debugger, said


def test_it_stops_where_the_task_raised_with_its_inputs_at_hand(client: Client) -> None:
    future = client.submit(divide, client.submit(int, 6), client.submit(int, 0), note="x")
    debugger, said = scripted("p ('found', numerator, by, note)", "up", "up")
    with pytest.raises(ZeroDivisionError):
        client.debug(future, debugger=debugger)
    assert "('found', 6, 0, 'x')" in said.getvalue()
    assert "quotient = numerator / by" in said.getvalue()


def test_a_task_that_succeeded_is_run_again_here(client: Client) -> None:
    future = client.submit(divide, 6, 2)
    assert client.debug(future) == 3.0
    assert client.debug(client.map(divide, [8, 9], [2, 3])[1]) == 3.0


def test_inputs_that_are_gone_are_computed_again(client: Client) -> None:
    source = client.submit(int, 6)
    future = client.submit(divide, source, 3)
    assert future.result() == 2.0
    del source  # its value is freed, its recipe is kept for the one that came of it
    client.scheduler_info()
    assert client.recreate_error_locally(future) == 2.0


def test_large_scattered_and_shared_inputs(client: Client) -> None:
    large = client.submit(np.sum, np.ones(100_000))
    assert client.debug(large) == 100_000
    scattered = client.scatter(np.arange(10))
    assert client.debug(client.submit(np.sum, scattered)) == 45
    sums = client.map(sum, [list(client.map(int, range(6)))] * 3)
    assert client.debug(sums[2]) == 15


def test_an_input_that_failed_is_what_is_raised(client: Client) -> None:
    future = client.submit(abs, client.submit(divide, 1, 0))
    with pytest.raises(ZeroDivisionError):
        client.recreate_error_locally(future)


def test_what_has_no_recipe_says_so(client: Client) -> None:
    with pytest.raises(ClusterError, match="no function made it"):
        client.debug(client.scatter(5))
    future = client.submit(int, 5)
    future.release()
    with pytest.raises(ClusterError, match="released"):
        client.debug(future)


def test_another_clients_task(client: Client, local_cluster: LocalCluster) -> None:
    with Client(local_cluster) as other:
        future = other.submit(divide, 1, client.submit(int, 0))
        with pytest.raises(ZeroDivisionError):
            other.recreate_error_locally(future)
        with pytest.raises(ClusterError, match="another client"):
            client.debug(future)


def test_on_an_event_loop(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            debugger, said = scripted("p ('found', by)")
            with pytest.raises(ZeroDivisionError):
                await client.debug(client.submit(divide, 1, 0), debugger=debugger)
            assert "('found', 0)" in said.getvalue()
            assert await client.debug(client.submit(divide, 1, client.submit(int, 2))) == 0.5

    asyncio.run(main())
