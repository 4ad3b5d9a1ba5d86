"""What clients share by name, over a real scheduler: locks, queues of futures, datasets that outlive publishers."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster import (
    AsyncClient,
    Client,
    ClusterError,
    Counter,
    Event,
    LocalCluster,
    Lock,
    Queue,
    Semaphore,
    Variable,
    get_client,
)
from tests.processes.whole_cluster import script, until, whole_cluster


@pytest.fixture
def other(local_cluster: LocalCluster) -> Iterator[Client]:
    """A second client."""
    with Client(local_cluster, name="the other") as connected:
        yield connected


def let_in_line(client: Client, operation: Any) -> Any:
    """Begin an operation that will have to wait, and see it arrive at the scheduler."""
    step = next(operation)
    client._complete(client._ask("ping"))
    assert not step.ready()
    return step


# --------------------------------------------------------------------------- locks


def test_a_lock_is_held_by_one_client_at_a_time(client: Client, other: Client) -> None:
    mine, theirs = Lock("door", client), Lock("door", other)
    assert mine.acquire()
    first = mine.fence
    assert first is not None
    assert theirs.locked()
    assert theirs.owner() == client.name
    assert not theirs.acquire(blocking=False)
    assert not theirs.acquire(timeout=0.01)
    assert theirs.fence is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(theirs.acquire)
        mine.release()
        assert waiting.result(10)
    assert theirs.fence is not None
    assert theirs.fence > first
    theirs.release()
    assert not mine.locked()
    assert mine.owner() is None


def test_threads_of_one_client_exclude_one_another(client: Client) -> None:
    lock, inside, most = Lock("door", client), 0, 0
    guard = threading.Lock()

    def enter() -> int:
        nonlocal inside, most
        fences = []
        for _ in range(20):
            with lock:
                with guard:
                    inside += 1
                    most = max(most, inside)
                assert lock.fence is not None
                fences.append(lock.fence)
                with guard:
                    inside -= 1
        return len(set(fences))

    with ThreadPoolExecutor(4) as pool:
        assert [each.result(30) for each in [pool.submit(enter) for _ in range(4)]] == [20] * 4
    assert most == 1


def test_a_semaphore_has_so_many_leases(client: Client, other: Client) -> None:
    mine, theirs = Semaphore(2, "pool", client), Semaphore(2, "pool", other)
    assert mine.acquire()
    assert mine.acquire()
    assert mine.get_value() == 2
    assert not theirs.acquire(timeout=0)
    mine.release()
    assert theirs.acquire()
    with pytest.raises(ClusterError, match="2 leases at most"):
        Semaphore(3, "pool", other).acquire()
    mine.release()
    theirs.release()
    with pytest.raises(RuntimeError, match="was not acquired"):
        mine.release()


def test_a_client_that_is_closed_lets_go_at_once(client: Client, local_cluster: LocalCluster) -> None:
    with Client(local_cluster) as short:
        assert Lock("door", short).acquire()
        assert not Lock("door", client).acquire(blocking=False)
    assert Lock("door", client).acquire(timeout=10)


HOLDER = """
    import sys, threading
    from cluster import Client, Lock
    with Client(sys.argv[1]) as client:
        lock = Lock("door", client, lease_seconds=float(sys.argv[2]))
        assert lock.acquire()
        print("fence", lock.fence, flush=True)
        threading.Event().wait()
"""


@pytest.mark.parametrize(("lease_seconds", "grace_seconds"), [(0.2, 60.0), (60.0, 0.2)])
def test_the_lock_of_a_killed_client_goes_to_the_next_with_a_larger_fence(
    lease_seconds: float, grace_seconds: float
) -> None:
    with whole_cluster(0, client_grace_seconds=grace_seconds) as cluster, cluster.new_client() as client:
        with script(HOLDER, cluster.address, str(lease_seconds)) as holder:
            fence = int(holder.wait_for(r"fence (\d+)"))
            lock = Lock("door", client)
            waiting = lock._acquire(None)
            step = let_in_line(client, waiting)
            holder.signal(signal.SIGKILL)
            assert client._driver.wait_until(step.ready, 10)
            with pytest.raises(StopIteration):
                waiting.send(True)
        assert lock.fence is not None
        assert lock.fence > fence


_OF_THE_PROCESS = Lock("door")  # in a slot, one object for all tasks that name it


def keep_the_door(how: str) -> int:
    """Acquire, do not release, and end."""
    lock = _OF_THE_PROCESS if how == "shared" else Lock("door")
    assert lock.acquire(timeout=60)
    if how == "die":
        os._exit(3)
    assert how != "raise"
    assert lock.fence is not None
    return lock.fence


def use_the_door() -> int | None:
    """Acquire and release by the object that a task before this one has left acquired."""
    before = _OF_THE_PROCESS.fence
    with _OF_THE_PROCESS:
        pass
    return before


def test_what_a_task_acquired_is_released_when_it_ends_and_not_when_its_process_does(client: Client) -> None:
    lock, fence = Lock("door", client), 0
    for how in ("return", "raise", "die", "shared"):
        ended = client.submit(keep_the_door, how)
        error = ended.exception(60)
        assert (error is None) == (how in ("return", "shared")), error
        assert lock.acquire(timeout=60), f"the task that was to {how} keeps it"
        assert lock.fence is not None
        assert lock.fence > fence
        fence = lock.fence
        lock.release()
    assert [client.submit(use_the_door).result(60) for _ in range(4)] == [None] * 4


def test_who_is_interrupted_while_it_waits_has_left_the_line(client: Client, other: Client) -> None:
    mine, theirs, third = Lock("door", client), Lock("door", other), Lock("door", client)
    mine.acquire()
    waiting = theirs._acquire(None)
    let_in_line(other, waiting)
    with pytest.raises(KeyboardInterrupt):
        waiting.throw(KeyboardInterrupt)
    other._complete(other._ask("ping"))
    mine.release()
    assert third.acquire(timeout=10)
    third.release()
    assert not theirs.locked()
    assert not other._open_requests
    assert not other._withdrawn
    assert not other._session.answers


def test_an_item_that_came_to_one_who_was_interrupted_goes_back(client: Client, other: Client) -> None:
    mine, theirs = Queue("items", client), Queue("items", other)
    waiting = theirs._get(None)
    step = let_in_line(other, waiting)
    mine.put("first")
    mine.put("second")
    assert other._driver.wait_until(step.ready, 10)
    waiting.close()
    assert theirs.get(timeout=10) == "first"
    assert mine.get(batch=True) == ["second"]


def test_a_copy_of_a_lock_holds_nothing(client: Client) -> None:
    lock = Lock("door", client, lease_seconds=5.0)
    with lock:
        copy = pickle.loads(pickle.dumps(lock))
        assert (copy.name, copy.lease_seconds, copy.fence) == ("door", 5.0, None)
        assert not copy.acquire(blocking=False)  # through this process's newest client
        with pytest.raises(RuntimeError, match="was not acquired"):
            copy.release()


# --------------------------------------------------------------------------- events, counters, queues, variables


def test_an_event_wakes_those_who_wait(client: Client, other: Client) -> None:
    mine, theirs = Event("go", client), Event("go", other)
    assert not mine.wait(timeout=0.01)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(each.wait) for each in (mine, theirs)]
        theirs.set()
        assert [each.result(10) for each in waiting] == [True, True]
    assert mine.is_set()
    mine.clear()
    assert not theirs.is_set()


def test_a_counter_gives_every_call_another_number(client: Client, other: Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        counters = [Counter("n", each) for each in (client, other, client, other)]
        numbers = list(pool.map(lambda counter: [counter.add() for _ in range(25)], counters))
    assert sorted(number for each in numbers for number in each) == list(range(1, 101))
    assert counters[0].add(-100) == 0
    assert counters[1].value == 0


def test_a_queue_holds_futures_whose_putter_has_gone(client: Client, local_cluster: LocalCluster) -> None:
    queue = Queue("work", client)
    with Client(local_cluster) as putter:
        theirs = Queue("work", putter)
        theirs.put(putter.submit(pow, 2, 10))
        theirs.put({"squares": putter.map(abs, [-1, -2]), "plain": 3})
    assert queue.qsize() == 2
    assert queue.get().result(10) == 1024
    found = queue.get(timeout=10)
    assert client.gather(found["squares"]) == [1, 2]
    assert found["plain"] == 3
    with pytest.raises(TimeoutError, match="nothing came"):
        queue.get(timeout=0)


def test_a_future_passed_on_by_one_that_did_not_make_it_is_kept(client: Client, other: Client) -> None:
    first, second = Queue("first", client), Queue("second", client)
    first.put(client.submit(pow, 3, 2))
    Queue("second", other).put(Queue("first", other).get())
    other._driver.flush()  # the future that was in between is dropped
    other._complete(other._ask("ping"))
    assert second.get(timeout=10).result(10) == 9


def test_what_nobody_holds_any_more_is_freed(client: Client) -> None:
    queue, variable = Queue("work", client), Variable("v", client)
    for _ in range(3):
        queue.put(client.submit(bytes, 100))
    variable.set([client.submit(bytes, 100)])
    assert variable.get()[0].result(10) == bytes(100)
    until(lambda: held(client) == 4, "four values are held")
    queue.get()
    queue.close()
    assert queue.qsize() == 0
    variable.set("another")
    assert variable.get() == "another"
    client._driver.flush()
    until(lambda: held(client) == 0, "everything was freed")
    variable.delete()
    with pytest.raises(TimeoutError, match="was not set"):
        variable.get(timeout=0)


def held(client: Client) -> int:
    return sum(worker["held_values"] for worker in client.scheduler_info()["workers"].values())


def test_a_full_queue_makes_its_putters_wait(client: Client, other: Client) -> None:
    queue, theirs = Queue("narrow", client, maxsize=2), Queue("narrow", other)
    queue.put(1)
    queue.put(2)
    with pytest.raises(TimeoutError, match="was full"):
        queue.put(3, timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.put, 3)
        assert theirs.get() == 1
        waiting.result(10)
    assert theirs.get(batch=True) == [2, 3]
    assert theirs.get(batch=True) == []


def test_a_large_batch_comes_whole_and_in_order(client: Client, other: Client) -> None:
    queue = Queue("many", client)
    for number in range(100):
        queue.put((number, bytes(30_000)))
    assert [number for number, _ in Queue("many", other).get(batch=True)] == list(range(100))


def look_at_the_lock() -> int | None:
    return _OF_THE_PROCESS.fence


def hold_it_while_a_child_looks() -> int | None:
    with _OF_THE_PROCESS:
        return get_client().submit(look_at_the_lock).result(10)


def test_a_child_does_not_take_the_lock_that_its_parent_holds_in_the_same_process(client: Client) -> None:
    assert client.submit(hold_it_while_a_child_looks).result(20) is None
    assert not Lock("door", client).locked()


# --------------------------------------------------------------------------- datasets


def test_a_dataset_outlives_its_publisher(client: Client, local_cluster: LocalCluster) -> None:
    with Client(local_cluster) as publisher:
        publisher.publish_dataset(squares=publisher.map(pow, range(100), [2] * 100))
        publisher.publish("any name at all", {"one": publisher.submit(int), "two": 2})
        with pytest.raises(KeyError, match="published already"):
            publisher.publish("squares", 1)
    assert client.list_datasets() == ("any name at all", "squares")
    assert client.gather(client.get_dataset("squares")) == [number**2 for number in range(100)]
    assert client.get_dataset("any name at all")["one"].result(10) == 0
    client.publish("squares", "replaced", override=True)
    assert client.datasets["squares"] == "replaced"
    client.unpublish("squares")
    with pytest.raises(KeyError, match="no dataset 'squares'"):
        client.get_dataset("squares")
    del client.datasets["any name at all"]
    assert not client.datasets
    client.datasets["nothing"] = None
    assert dict(client.datasets) == {"nothing": None}
    client.unpublish_dataset("nothing")
    with pytest.raises(KeyError):
        client.unpublish_dataset("nothing")


def test_a_large_object_is_published_and_outlives_its_publisher(client: Client, local_cluster: LocalCluster) -> None:
    with Client(local_cluster) as publisher:
        publisher.publish_dataset(bytes(3 << 20), name="large")
        publisher.publish("mixed", {"large": bytes(2 << 20), "future": publisher.submit(pow, 2, 5)})
        publisher.publish("many", list(publisher.map(abs, range(5000))))
    assert client.get_dataset("large") == bytes(3 << 20)
    mixed = client.get_dataset("mixed")
    assert (len(mixed["large"]), mixed["future"].result(10)) == (2 << 20, 32)
    assert client.gather(client.get_dataset("many")) == list(range(5000))
    del mixed
    for name in ("large", "mixed", "many"):
        client.unpublish(name)
    assert client.get_dataset("large", default=None) is None

    def is_gone() -> bool:
        return all(not worker["held_values"] for worker in client.scheduler_info()["workers"].values())

    until(is_gone, "nothing is kept of what is no longer published")


def test_a_large_object_is_published_from_an_event_loop(local_cluster: LocalCluster) -> None:
    async def publish() -> None:
        async with AsyncClient(local_cluster) as client:
            await client.publish("large", bytes(3 << 20))
            assert await client.get_dataset("large") == bytes(3 << 20)
            await client.unpublish("large")

    asyncio.run(publish())


# --------------------------------------------------------------------------- mistakes


def test_mistakes_are_named(client: Client) -> None:
    with pytest.raises(TypeError, match="write publish_dataset"):
        client.publish_dataset(1)
    with pytest.raises(ValueError, match="scatter it and put the future"):
        Queue("q", client).put(bytes(100_000))
    released = client.submit(int)
    released.release()
    with pytest.raises(ClusterError, match="was released"):
        Variable("v", client).set(released)
    with pytest.raises(TypeError, match="a name is a text"):
        Event(3, client).set()  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="1 to 1000 characters"):
        Event("", client).set()
    with pytest.raises(TypeError, match="number of seconds"):
        Event("e", client).wait(timeout="3s")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_leases"):
        Semaphore(0, "s", client)
    with pytest.raises(ValueError, match="lease_seconds"):
        Lock("l", client, lease_seconds=float("nan"))
    with pytest.raises(ValueError, match="does not block"):
        Lock("l", client).acquire(blocking=False, timeout=1)
    with pytest.raises(TypeError, match="must be a Client"):
        Lock("l", "me").locked()  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="63 bits"):
        Counter("n", client).add((1 << 63) - 1) and Counter("n", client).add(1)
    Counter("n", client).add(1 - (1 << 63))
    assert Queue(client=client).name != Queue(client=client).name
    client.close()
    with pytest.raises(ClusterError, match="closed"):
        Counter("n", client).add()
    with pytest.raises(ClusterError, match="needs a client"):
        Counter("n").add()
