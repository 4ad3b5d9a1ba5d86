"""The asyncio face: cancelling, loops and threads, and that nothing holds the loop up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import (
    AsyncClient,
    AsyncCounter,
    AsyncEvent,
    AsyncFuture,
    AsyncLock,
    AsyncQueue,
    AsyncSemaphore,
    AsyncVariable,
    Client,
    LocalCluster,
    Lock,
    as_completed,
    delayed,
    get_client,
    wait,
)
from cluster.client import driver as driver_module
from cluster.client import sending
from cluster.errors import CancelledError, ClusterError, ConnectionLost
from tests.processes.whole_cluster import Gate, script, until, wait_at, whole_cluster

pytestmark = pytest.mark.timeout(60)


def slow(value: int) -> int:
    time.sleep(0.05)
    return value


class LongestStep:
    """The longest time for which the running loop did nothing else."""

    async def __aenter__(self) -> LongestStep:
        self.seconds = 0.0
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def _watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            self.seconds = max(self.seconds, time.perf_counter() - before)

    async def __aexit__(self, *exception: object) -> None:
        self._task.cancel()


# --------------------------------------------------------------------------- making one


def test_every_way_to_make_one(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        first = await AsyncClient(local_cluster)
        second = await Client(local_cluster, asynchronous=True)
        async with Client(local_cluster, asynchronous=True) as third:
            for client in (first, second, third):
                assert type(client) is AsyncClient
                assert await client is client
                future = client.submit(int, 3)
                assert type(future) is AsyncFuture
                assert await future == await future.result() == 3
            assert AsyncClient.current() is third
        assert AsyncClient.current() is second
        await first.close()
        await second.close()
        await second.close()
        with pytest.raises(ClusterError, match="no open AsyncClient"):
            AsyncClient.current()

    asyncio.run(main(), debug=True)


def test_it_says_what_it_lacks_before_it_is_connected(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        client = AsyncClient(local_cluster)
        assert client.status == "connecting"
        with pytest.raises(ClusterError, match="not connected yet"):
            client.submit(int)
        with pytest.raises(ClusterError, match="not connected yet"):
            await client.gather([])
        with pytest.raises(TypeError, match="async with"), client:
            pass
        await client.close()
        with pytest.raises(ConnectionLost):
            await AsyncClient("tcp://127.0.0.1:1", directory=local_cluster.directory, timeout=0.2)

    asyncio.run(main())


def test_giving_up_while_it_connects_leaves_nothing() -> None:
    async def main() -> None:
        client = AsyncClient()
        connecting = asyncio.ensure_future(client._connected())
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        until(lambda: not any(each.name.startswith("cluster-connect") for each in threading.enumerate()), "the end")
        assert client._own_cluster is None

    asyncio.run(main())


# --------------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("how", ["result", "await", "gather", "sequence"])
def test_cancelling_who_awaits_cancels_the_task(how: str, local_cluster: LocalCluster, tmp_path: Path) -> None:
    async def main(gate: Gate) -> None:
        async with AsyncClient(local_cluster) as client:
            futures = client.map(wait_at, [gate.path])
            future = futures[0]
            gate.wait_until_reached()
            awaited: Any = {
                "result": lambda: future.result(),
                "await": lambda: future,
                "gather": lambda: client.gather({"x": [future]}),
                "sequence": lambda: client.gather(futures),
            }[how]()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(awaited, 0.05)
            assert future.status == "cancelled"
            with pytest.raises(CancelledError):
                await future
            gate.open()
            assert await client.submit(int, 1) == 1

    with Gate(tmp_path / "gate") as gate:
        asyncio.run(main(gate), debug=True)


def test_shielded_it_goes_on_and_so_does_what_another_client_wants(
    local_cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    async def main(gate: Gate) -> None:
        async with AsyncClient(local_cluster) as own:
            future = own.submit(wait_at, gate.path, 5)
            gate.wait_until_reached()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(future.result()), 0.05)
            assert future.status == "pending"
            others = client.submit(abs, future)  # takes its value
            kept = client.submit(list, [future])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait([future]), 0.05)
            assert future.status == "pending"
            gate.open()
            assert (await future, others.result(), kept.result()) == (5, 5, [5])

    with Gate(tmp_path / "gate") as gate:
        asyncio.run(main(gate))


def test_an_answer_that_nobody_awaits_any_more_is_thrown_away(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            asking = asyncio.ensure_future(client.scheduler_info())
            await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # the answer may have been faster
                await asking
            await client.scheduler_info()
            assert not client._session.answers

    asyncio.run(main(), debug=True)


# --------------------------------------------------------------------------- callbacks, loops, threads


def test_callbacks_run_on_the_loop(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            called: asyncio.Queue[tuple[int, AsyncFuture]] = asyncio.Queue()

            def note(future: AsyncFuture) -> None:
                called.put_nowait((threading.get_ident(), future))

            future = client.submit(slow, 3)
            future.add_done_callback(note)
            assert await called.get() == (threading.get_ident(), future)
            future.add_done_callback(note)
            assert await called.get() == (threading.get_ident(), future)

    asyncio.run(main(), debug=True)


def test_several_loops_in_several_threads(local_cluster: LocalCluster) -> None:
    sums: list[int] = []

    async def main(start: int) -> None:
        async with AsyncClient(local_cluster) as client:
            for _ in range(5):
                sums.append(sum(await asyncio.gather(*(client.submit(abs, start + step) for step in range(50)))))

    threads = [threading.Thread(target=lambda start=start: asyncio.run(main(start))) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == sorted([sum(range(start, start + 50)) for start in (0, 100, 200)] * 5)


def test_a_second_loop_is_told_so(local_cluster: LocalCluster) -> None:
    async def use(client: AsyncClient, future: AsyncFuture) -> None:
        for waiting in (client.scheduler_info(), future.result(), client.close()):
            with pytest.raises(ClusterError, match="another event loop"):
                await waiting

    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            future = client.submit(slow, 1)
            await asyncio.to_thread(lambda: asyncio.run(use(client, future)))
            assert await future == 1

    asyncio.run(main())


def test_the_wrong_loop_over_what_completes_is_told_so(local_cluster: LocalCluster, client: Client) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as own:
            with pytest.raises(TypeError, match="async for"):
                list(as_completed(own.map(abs, [1])))
            with pytest.raises(TypeError, match="blocking Client"):
                async for _ in as_completed(client.map(abs, [1])):
                    pass

    asyncio.run(main())


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="only Linux lists a process's descriptors")
def test_a_closed_client_holds_no_descriptor_though_somebody_holds_it(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        await asyncio.to_thread(abs, 1)  # the loop's own threads are there from now on
        before = set(os.listdir("/proc/self/fd"))
        client = await AsyncClient(local_cluster)
        assert await client.submit(slow, 1).result() == 1
        await client.close()
        assert set(os.listdir("/proc/self/fd")) == before
        assert client.status == "closed"

    asyncio.run(main())


def test_a_loop_closed_with_work_under_way_leaves_nothing_hanging(
    local_cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    before = client.scheduler_info()["clients"]
    with Gate(tmp_path / "gate") as gate:
        loop = asyncio.new_event_loop()
        own = loop.run_until_complete(AsyncClient(local_cluster)._connected())
        future = own.submit(wait_at, gate.path)
        task = loop.create_task(future.result())
        loop.run_until_complete(asyncio.sleep(0))
        gate.wait_until_reached()
        loop.close()
        until(lambda: own.status == "closed", "the client to see that its loop has ended")
        until(lambda: client.scheduler_info()["clients"] == before, "the scheduler to hear of it")
        assert "event loop of this client was closed" in str(own._session.lost)
        gate.open()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task, future
        gc.collect()


def test_ctrl_c_ends_a_program_that_awaits(local_cluster: LocalCluster) -> None:
    program = script(
        """
        import asyncio, sys, time
        from cluster import AsyncClient

        async def main():
            async with AsyncClient(sys.argv[1], directory=sys.argv[2]) as client:
                print("ready", await client.submit(int, 1), flush=True)
                await client.submit(time.sleep, 60)

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        local_cluster.scheduler_address,
        str(local_cluster.directory),
    )
    with program:
        program.wait_for("ready 1")
        program.signal(signal.SIGINT)
        program.wait_for("interrupted")
        assert program.end() == 0


def test_what_cannot_be_awaited_says_so(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            with pytest.raises(TypeError, match="entered with `async with`"), Lock("x", client=client):
                pass
            with pytest.raises(TypeError, match="AsyncClient"):
                client.datasets  # noqa: B018
            assert await client.gather(client.compute([delayed(abs)(-1)])) == [1]

    asyncio.run(main())


def test_graphs_are_computed_and_awaited(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            lazy = delayed(abs)(-1)
            assert await client.compute({"one": lazy, "more": [lazy + 1, "text"]}, sync=True) == {
                "one": 1,
                "more": [2, "text"],
            }
            assert await client.compute("nothing", sync=True) == "nothing"
            assert await client.get({"x": 1, "y": (abs, -2), "z": (sum, ["x", "y"])}, ["x", ["y", "z"]]) == [1, [2, 3]]
            with pytest.raises(ValueError, match="invalid literal"):
                await client.compute(delayed(int)("x"), sync=True)

    asyncio.run(main())


# --------------------------------------------------------------------------- what is shared by name


def test_locks_exclude_and_are_released(local_cluster: LocalCluster, client: Client) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as own:
            mine = AsyncLock("door")
            async with mine, AsyncSemaphore(2, "seats") as seat:
                assert await mine.locked()
                assert await mine.owner() == own.name
                assert await seat.get_value() == 1
                assert not Lock("door", client).acquire(blocking=False)
                assert not await Lock("door", own).acquire(timeout=0.01)
            assert Lock("door", client).acquire(blocking=False)
            with pytest.raises(TypeError, match="entered with `with`"):
                async with Lock("other", client):
                    pass
            with pytest.raises(TypeError, match="needs an AsyncClient"):
                await AsyncLock("other", client).locked()

    asyncio.run(main())


def test_who_is_cancelled_while_it_waits_leaves_the_line(local_cluster: LocalCluster, client: Client) -> None:
    held = Lock("door", client)
    assert held.acquire()

    async def main() -> None:
        async with AsyncClient(local_cluster) as own:
            waiting = asyncio.ensure_future(Lock("door", own).acquire())
            await asyncio.sleep(0)  # it asks
            await own.scheduler_info()  # so that has been heard
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            third = Lock("door", own)
            held.release()
            assert await third.acquire(timeout=60)
            await third.release()
            assert not await third.locked()

    asyncio.run(main())


def test_what_is_shared_by_name_is_awaited(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            queue, ready, value, counter = AsyncQueue("q"), AsyncEvent("e"), AsyncVariable("v"), AsyncCounter("c")
            future = client.submit(abs, -5)
            getting = asyncio.ensure_future(queue.get())
            await queue.put([future, "text"])
            found, text = await getting
            assert (await found, text) == (5, "text")
            await queue.put(1)
            await queue.put(2)
            assert (await queue.qsize(), await queue.get(batch=True)) == (2, [1, 2])
            with pytest.raises(TimeoutError):
                await queue.get(timeout=0.01)
            await queue.close()
            waiting = asyncio.ensure_future(ready.wait())
            assert not await ready.is_set()
            await ready.set()
            assert await waiting
            await ready.clear()
            assert not await ready.wait(timeout=0.01)
            await value.set({"future": future})
            assert await (await value.get())["future"] == 5
            await value.delete()
            assert [await counter.add(), await counter.add(2), await counter.value] == [1, 3, 3]

    asyncio.run(main())


# --------------------------------------------------------------------------- the loop goes on


def test_the_loop_turns_while_the_scheduler_takes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sending, "UNSENT_LIMIT_BYTES", 4 << 20)
    monkeypatch.setattr(driver_module, "UNSENT_LIMIT_BYTES", 4 << 20)

    async def main(address: str, stop: Any, go_on: Any) -> None:
        async with AsyncClient(address) as client:
            assert await client.submit(int, 1) == 1
            stop()
            try:
                async with LongestStep() as longest:
                    futures = []
                    with pytest.raises(ClusterError, match="drain"):
                        for count in range(10_000):
                            futures.append(client.submit(len, bytes(50_000 + count)))
                            await asyncio.sleep(0)
                    with pytest.raises(ClusterError, match="drain"):
                        client.map(abs, range(10))
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(client.drain(), 0.05)
                assert longest.seconds < 1.0
            finally:
                go_on()
            await client.drain()
            values = await client.gather(futures)
            assert values == [50_000 + count for count in range(len(values))]
            assert await client.submit(int, 2) == 2

    with whole_cluster() as cluster:
        scheduler = cluster.scheduler
        asyncio.run(
            main(cluster.address, lambda: scheduler.signal(signal.SIGSTOP), lambda: scheduler.signal(signal.SIGCONT))
        )


def test_large_values_and_long_maps_are_loaded_aside(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            futures = await asyncio.to_thread(client.map, bytes, [2_000_000] * 10)
            loop_thread = threading.get_ident()
            loaders: set[int] = set()
            load = client._results._load
            client._results._load = lambda data: (loaders.add(threading.get_ident()), load(data))[1]  # type: ignore
            assert [len(value) for value in await client.gather(futures)] == [2_000_000] * 10
            await client.gather(client.map(abs, range(5000)))
            assert loop_thread not in loaders

    asyncio.run(main())


def test_a_loop_kept_busy_does_not_keep_the_client_from_reading(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            task = asyncio.ensure_future(client.submit(slow, 1).result())
            large = client.submit(len, bytes(1_000_000))  # has to be pushed by this client
            await asyncio.sleep(0.01)
            # The loop does not turn, and the futures are done all the same.
            until(lambda: large.status == "finished", "the value to be pushed, and the notice to be read")
            assert await large == 1_000_000
            assert await task == 1

    asyncio.run(main())


def test_a_blocking_client_takes_the_future_of_one_on_this_very_loop(
    local_cluster: LocalCluster, client: Client
) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as own:
            waiting = asyncio.ensure_future(own.submit(slow, 1).result())
            await asyncio.sleep(0)
            assert client.submit(abs, own.submit(int, -7)).result() == 7
            assert await waiting == 1

    asyncio.run(main())


def test_thousands_are_awaited_at_once(local_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(local_cluster) as client:
            values = await asyncio.gather(*(client.submit(abs, -step).result() for step in range(3000)))
            assert values == list(range(3000))
            assert not client._on_loop._numbered
            assert not client._on_loop._watch._set

    asyncio.run(main())


def test_a_lost_scheduler_is_told_to_all_who_await() -> None:
    async def main(cluster: Any) -> None:
        client = await AsyncClient(cluster.address)
        awaiting = [asyncio.ensure_future(client.submit(time.sleep, 60).result()) for _ in range(3)]
        awaiting.append(asyncio.ensure_future(client.gather(client.map(time.sleep, [60, 60]))))
        await client.scheduler_info()
        cluster.scheduler.signal(signal.SIGTERM)
        for each in await asyncio.gather(*awaiting, return_exceptions=True):
            assert isinstance(each, ConnectionLost)
        await client.close()

    with whole_cluster() as cluster:
        asyncio.run(main(cluster))


# --------------------------------------------------------------------------- the current client, and notebooks


def test_the_newest_open_client_is_the_current_one(local_cluster: LocalCluster) -> None:
    with Client(local_cluster) as first:
        with Client(local_cluster) as second:
            assert Client.current() is get_client() is second
        assert Client.current() is first
    with pytest.raises(ClusterError, match="make one"):
        get_client()


def test_at_a_prompt_a_second_client_takes_the_cluster_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    with Client() as first:
        assert capsys.readouterr().out == ""
        with Client() as second:
            assert second.scheduler_address == first.scheduler_address
            assert capsys.readouterr().out.count("\n") == 1
            first.close()
            assert second.submit(int, 3).result() == 3
        assert second.status == "closed"


def test_in_a_program_each_client_has_its_own_cluster() -> None:
    with Client() as first, Client() as second:
        assert first.scheduler_address != second.scheduler_address
