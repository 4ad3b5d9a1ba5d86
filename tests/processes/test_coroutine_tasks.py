"""Tasks that are `async def` functions: each runs to its end in its slot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster import CancelledError, Client
from tests.processes.whole_cluster import Gate


async def add_slowly(one: int, other: int) -> int:
    await asyncio.sleep(0)
    return one + other


async def raise_in_the_end() -> None:
    await asyncio.sleep(0)
    raise KeyError("as asked")


async def both(left: int, right: int) -> list[int]:
    return await asyncio.gather(add_slowly(left, 1), add_slowly(right, 1))


async def wait_for_ever(path: str) -> None:
    with open(path, "rb", buffering=0):
        pass
    await asyncio.Event().wait()


class Adder:
    """An actor with a coroutine method."""

    def __init__(self) -> None:
        self.total = 0

    async def add(self, number: int) -> int:
        before = self.total
        await asyncio.sleep(0)
        self.total = before + number
        return self.total


def test_a_coroutine_function_gives_what_it_returns(client: Client) -> None:
    assert client.submit(add_slowly, 1, 2).result() == 3
    assert client.gather(client.map(add_slowly, range(5), range(5))) == [0, 2, 4, 6, 8]
    assert client.submit(both, client.submit(abs, -1), 2).result() == [2, 3]


def test_a_coroutine_functions_exception_is_its_own(client: Client) -> None:
    with pytest.raises(KeyError, match="as asked"):
        client.submit(raise_in_the_end).result()


def test_a_coroutine_that_waits_is_stopped(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        future = client.submit(wait_for_ever, gate.path)
        gate.wait_until_reached()
        gate.open()
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result()
    assert client.submit(abs, -1).result() == 1


def test_an_actors_coroutine_methods_run_one_at_a_time(client: Client) -> None:
    adder = client.submit(Adder, actor=True).result()
    assert client.gather([adder.add(1) for _ in range(20)]) == list(range(1, 21))
