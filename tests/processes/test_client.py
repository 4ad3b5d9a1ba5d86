"""The client against a real cluster: submitting, waiting, values, failures."""

from __future__ import annotations

import os
import pickle
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import Client, Future, FutureSequence, as_completed, fire_and_forget, wait
from cluster.errors import CancelledError, ClusterError, ConnectionLost, SerializationError, TaskDied, TaskTimeout
from tests.processes.whole_cluster import Gate, wait_at

pytestmark = pytest.mark.timeout(60)


def inc(x: int) -> int:
    return x + 1


def add(x: Any, y: Any, z: Any = 0) -> Any:
    return x + y + z


def total(values: Any) -> Any:
    return sum(values)


def fail(x: Any) -> Any:
    raise ValueError(f"no {x}")


def sleep_then(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def nbytes(value: Any) -> int:
    return int(value.nbytes)


def hold(future: Any) -> Any:
    return {"inside": future}


class Unloadable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_unloadable() -> None:
    raise Unloadable(1, 2)


# --------------------------------------------------------------------------- submit and map


def test_submit_runs_a_function_with_its_arguments(client: Client) -> None:
    future = client.submit(add, 1, 2, z=3)
    assert isinstance(future, Future)
    assert future.result() == 6
    assert future.done()
    assert future.status == "finished"
    assert future.key.startswith("add-")


@pytest.mark.both_shapes
def test_map_takes_several_iterables_and_keywords(client: Client) -> None:
    futures = client.map(add, range(100), iter(range(200)), z=10)
    assert isinstance(futures, FutureSequence)
    assert client.gather(futures) == [2 * x + 10 for x in range(100)]
    assert futures[7].result() == 24
    assert futures[-1].key.endswith("[99]")
    assert len(futures[10:20:2]) == 5
    assert [future.result() for future in futures[:3]] == [10, 12, 14]
    with pytest.raises(IndexError):
        futures[100]


def test_map_of_nothing_is_an_empty_sequence(client: Client) -> None:
    futures = client.map(inc, [])
    assert len(futures) == 0
    assert client.gather(futures) == []


def test_map_sends_its_first_tasks_while_the_iterator_still_runs(client: Client) -> None:
    def items() -> Any:
        for item in range(300):
            if item == 299:
                assert client.submit(inc, 0).result(10) == 1  # submits in the middle of a map, too
            yield item

    futures = client.map(inc, items())
    assert client.gather(futures) == list(range(1, 301))
    assert [futures[at].result(10) for at in (0, 255, 256, 299)] == [1, 256, 257, 300]
    assert len({future.key for future in futures}) == 300


def test_futures_that_only_the_map_has_seen_are_kept_until_it_needs_them(client: Client) -> None:
    futures = client.map(inc, (client.submit(inc, x) for x in range(2000)))
    assert client.gather(futures, timeout=20) == list(range(2, 2002))


@pytest.mark.both_shapes
def test_a_tree_of_maps_over_slices(client: Client) -> None:
    level = client.map(inc, range(256))
    while len(level) > 1:
        level = client.map(add, level[::2], level[1::2])
    assert level[0].result(20) == sum(range(1, 257))


@pytest.mark.both_shapes
def test_futures_in_arguments_at_any_depth_become_values(client: Client) -> None:
    one, two = client.submit(inc, 0), client.submit(inc, 1)
    assert client.submit(add, one, two).result(10) == 3
    assert client.submit(total, [one, two, one]).result(10) == 4
    assert client.submit(lambda data: data["a"][0] + data["b"], {"a": (two,), "b": one}).result(10) == 3
    assert client.submit(total, client.map(inc, range(50))).result(10) == sum(range(1, 51))
    assert client.submit(add, 1, 1, z=two).result(10) == 4
    assert client.gather(client.map(add, [one, two], [10, 20]), timeout=10) == [11, 22]
    assert client.gather(client.map(add, client.map(inc, range(3)), range(3)), timeout=10) == [1, 3, 5]
    assert client.gather(client.map(add, client.map(inc, range(3)), client.map(inc, range(3)), z=two)) == [4, 6, 8]


def test_dropping_a_future_before_its_dependent_has_run_harms_nothing(client: Client) -> None:
    future = client.submit(sleep_then, 0.1, 1)
    for _ in range(20):
        future = client.submit(inc, future)
    assert future.result(10) == 21


def test_gather_keeps_the_shape(client: Client) -> None:
    one, two = client.submit(inc, 0), client.submit(inc, 1)
    assert client.gather({"a": [one, (two, one)], "b": {two}}) == {"a": [1, (2, 1)], "b": {2}}
    assert client.gather(one) == 1
    assert client.gather(future for future in (one, two)) == [1, 2]
    with pytest.raises(TypeError, match="gather takes futures"):
        client.gather([1])


def test_many_single_submits(client: Client) -> None:
    futures = [client.submit(inc, x) for x in range(5000)]
    assert client.gather(futures, timeout=30) == list(range(1, 5001))


def test_submits_that_nobody_waits_for_leave_by_themselves(client: Client) -> None:
    done = threading.Event()
    futures = [client.submit(inc, x) for x in range(3)]
    futures[-1].add_done_callback(lambda _: done.set())
    assert done.wait(10)


def test_many_threads_share_a_client(client: Client) -> None:
    found: list[int] = []

    def work() -> None:
        found.append(sum(client.submit(inc, x).result(30) for x in range(50)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [1275] * 8


# --------------------------------------------------------------------------- functions


def test_a_changed_closure_is_never_missed(client: Client) -> None:
    captured = 1
    found = [1]

    def by_value(x: int) -> int:
        return x + captured

    def by_list(x: int) -> int:
        return x + found[0]

    assert [client.submit(by_value, 0).result(), client.submit(by_list, 0).result()] == [1, 1]
    captured = 2
    found[0] = 2
    assert [client.submit(by_value, 0).result(), client.submit(by_list, 0).result()] == [2, 2]


def test_a_changed_global_is_never_missed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"FACTOR": 2, "__name__": "__main__"}
    exec("def inner(x):\n    return x * FACTOR\ndef scale(x):\n    return inner(x)\n", namespace)
    scale = namespace["scale"]
    assert client.submit(scale, 1).result() == 2
    namespace["FACTOR"] = 3
    assert client.submit(scale, 1).result() == 3
    exec("def inner(x):\n    return -x\n", namespace)
    assert client.submit(scale, 1).result() == -1


def test_a_function_with_large_captured_data_travels_as_a_value(client: Client) -> None:
    data = np.ones(50_000)
    assert client.submit(lambda: data.nbytes).result(10) == 400_000
    assert client.gather(client.map(lambda x: data[0] + x, range(3)), timeout=10) == [1, 2, 3]


def test_very_large_captured_data_is_warned_of_by_name(client: Client) -> None:
    readings = np.ones(1_500_000)
    with pytest.warns(UserWarning, match="readings"):
        future = client.submit(lambda: float(readings[0]))
    assert future.result(20) == 1


def test_an_argument_that_cannot_be_pickled_is_named_at_the_call(client: Client) -> None:
    with pytest.raises(SerializationError, match=r"\['lock'\]"):
        client.submit(inc, [1, {"lock": threading.Lock()}])
    with pytest.raises(SerializationError, match="args"):
        client.map(inc, [1, threading.Lock()])
    assert client.submit(inc, 1).result() == 2


def test_an_argument_whose_pickling_submits(client: Client) -> None:
    class Submits:
        def __reduce__(self) -> Any:
            return int, (client.submit(inc, 1).result(10),)

    assert client.submit(inc, Submits()).result(10) == 3


# --------------------------------------------------------------------------- failures


def test_a_task_raises_its_own_exception_with_the_users_frames_and_a_note(client: Client) -> None:
    future = client.submit(fail, 5)
    with pytest.raises(ValueError, match="no 5") as caught:
        future.result(10)
    notes = "\n".join(caught.value.__notes__)
    assert "in fail" in notes
    assert "cluster/daemon" not in notes
    assert f"task {future.key} on worker" in notes
    assert isinstance(future.exception(), ValueError)
    assert "in fail" in (future.traceback() or "")
    assert future.status == "error"
    assert client.submit(inc, 1).exception(10) is None
    with pytest.raises(ValueError, match="no 1"):
        client.gather([client.submit(inc, 1), client.submit(fail, 1)])
    assert client.gather([client.submit(inc, 1), client.submit(fail, 1)], errors="skip") == [2]
    assert client.gather(client.map(fail, [1, 2]), errors="skip") == []


def test_what_depends_on_a_failed_task_raises_the_same(client: Client) -> None:
    with pytest.raises(ValueError, match="no 7"):
        client.submit(inc, client.submit(fail, 7)).result(10)


def test_an_exception_that_needs_arguments_comes_back_readable(client: Client) -> None:
    with pytest.raises((Unloadable, ClusterError), match="1 and 2"):
        client.submit(raise_unloadable).result(10)


def test_a_task_that_kills_its_process_fails_alone(client: Client) -> None:
    future = client.submit(os._exit, 3)
    others = client.map(inc, range(20))
    with pytest.raises(TaskDied) as caught:
        future.result(30)
    assert caught.value.exit_code == 3
    assert caught.value.attempts == 3
    assert client.gather(others, timeout=20) == list(range(1, 21))


def test_a_time_limit_stops_a_task(client: Client) -> None:
    with pytest.raises(TaskTimeout):
        client.options(timeout_seconds=0.1).submit(sleep_then, 30).result(20)


def test_result_with_a_timeout_leaves_the_task_alone(client: Client) -> None:
    future = client.submit(sleep_then, 0.3, "value")
    with pytest.raises(TimeoutError):
        future.result(0.05)
    assert future.result(10) == "value"


def test_cancel_stops_a_task_and_what_depends_on_it(client: Client) -> None:
    running = client.submit(sleep_then, 30)
    dependent = client.submit(inc, running)
    assert running.cancel()
    assert running.cancelled()
    for future in (running, dependent):
        with pytest.raises(CancelledError):
            future.result(10)
    assert client.submit(inc, 1).result(10) == 2


def test_retry_runs_a_failed_task_again(client: Client, tmp_path: Any) -> None:
    marker = tmp_path / "exists"

    def needs(path: str) -> bool:
        with open(path):
            return True

    future = client.submit(needs, str(marker))
    assert isinstance(future.exception(10), FileNotFoundError)
    marker.touch()
    future.retry()
    assert future.result(10) is True


def test_retries_are_made_by_themselves(client: Client, tmp_path: Any) -> None:
    def third_time(path: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        tries = os.path.getsize(path)
        if tries < 3:
            raise RuntimeError(f"try {tries}")
        return tries

    assert client.submit(third_time, str(tmp_path / "tries"), retries=2).result(10) == 3


# --------------------------------------------------------------------------- values


@pytest.mark.both_shapes
def test_large_results_and_arguments(client: Client) -> None:
    array = np.arange(300_000.0)
    assert client.submit(nbytes, array).result(10) == array.nbytes
    doubled = client.submit(lambda values: values * 2, array)
    assert client.submit(nbytes, doubled).result(10) == array.nbytes
    found = doubled.result(10)
    np.testing.assert_array_equal(found, array * 2)
    found[0] = -1  # it is the caller's own
    assert doubled.result(10)[0] == 0
    frames = [np.full(20_000, k) for k in range(10)]
    assert client.gather(client.map(lambda frame: int(frame[0]), frames), timeout=20) == list(range(10))
    assert client.gather(client.map(add, [array] * 3, [1, 2, 3]), timeout=20)[2][0] == 3


def test_large_arguments_are_let_go_when_their_tasks_have_ended(client: Client) -> None:
    futures = client.map(nbytes, [np.ones(20_000 + k) for k in range(5)])
    client.gather(futures, timeout=20)
    assert not client._submission._offered
    del futures


@pytest.mark.both_shapes
def test_scattered_values_are_futures_like_others(client: Client) -> None:
    array = np.ones(100_000)
    future = client.scatter(array)
    assert client.submit(nbytes, future).result(10) == array.nbytes
    assert client.submit(nbytes, client.scatter(array, broadcast=True)).result(10) == array.nbytes
    several = client.scatter({"a": [1, 2], "b": [3]})
    assert client.gather(client.map(total, several.values()), timeout=10) == [3, 3]
    assert [type(each) for each in client.scatter((1, 2))] == [Future, Future]
    assert client.gather(future) is array


@pytest.mark.both_shapes
def test_many_values_that_did_not_come_along_are_fetched_together(client: Client) -> None:
    futures = client.map(lambda size: b"x" * size, [100, 10_000, 100_000, 2_000_000] * 5)
    wait(futures)
    assert [len(value) for value in client.gather(futures, timeout=20)] == [100, 10_000, 100_000, 2_000_000] * 5


def test_a_future_inside_a_value_is_bound_to_the_client_that_loads_it(client: Client, local_cluster: Any) -> None:
    inner = client.submit(inc, 41)
    # A closure would be an argument of the task; inside an offered value it stays a future.
    outer = client.submit(hold, client.scatter([inner]))
    del inner
    found = outer.result(10)["inside"][0]
    assert isinstance(found, Future)
    assert found.result(10) == 42
    reference = pickle.dumps(found)
    assert b"cluster" in reference


def test_who_has_and_scheduler_info(client: Client) -> None:
    future = client.submit(inc, 1)
    future.result(10)
    info = client.scheduler_info()
    assert client.who_has([future]) == {future.key: [next(iter(info["workers"]))]}
    assert sum(client.nthreads().values()) == 2


# --------------------------------------------------------------------------- waiting


def test_wait_tells_done_from_not_done(client: Client) -> None:
    quick, slow = client.submit(inc, 1), client.submit(sleep_then, 30)
    assert wait([quick, slow], return_when="FIRST_COMPLETED") == ({quick}, {slow})
    assert wait([quick, slow], timeout=0.05).not_done == {slow}
    failing = client.submit(fail, 1)
    assert failing in wait([slow, failing], return_when="FIRST_EXCEPTION").done
    assert wait([]) == (set(), set())
    slow.cancel()
    assert wait([quick, slow]).done == {quick, slow}


def test_as_completed_gives_futures_as_they_end(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        slow, quick = client.submit(wait_at, gate.path, "slow"), client.submit(inc, 1)
        gate.wait_until_reached()
        ended = as_completed([slow, quick])
        assert next(ended) is quick
        gate.open()
        assert next(ended) is slow
        assert list(ended) == []
    assert sorted(value for _, value in as_completed(client.map(inc, range(100)), with_results=True)) == [
        *range(1, 101)
    ]
    pairs = list(as_completed([client.submit(fail, 1)], with_results=True, raise_errors=False))
    assert isinstance(pairs[0][1], ValueError)
    with pytest.raises(ValueError, match="no 1"):
        list(as_completed([client.submit(fail, 1)], with_results=True))
    assert list(as_completed([])) == []


def test_as_completed_takes_more_while_it_runs(client: Client) -> None:
    running = as_completed([client.submit(inc, 0)])
    seen = []
    for future in running:
        seen.append(future.result())
        if len(seen) < 5:
            running.add(client.submit(inc, seen[-1]))
    assert seen == [1, 2, 3, 4, 5]
    assert running.is_empty()


def test_callbacks_get_the_future_and_one_that_raises_harms_nobody(client: Client) -> None:
    called: list[Any] = []
    done = threading.Event()
    future = client.submit(inc, 1)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(called.append)
    future.result(10)

    def note(found: Future) -> None:
        called.append(found.result(5))
        done.set()

    future.add_done_callback(note)
    assert done.wait(10)
    assert called == [future, 2]


def test_fire_and_forget_runs_to_the_end(client: Client, tmp_path: Any) -> None:
    path = tmp_path / "written"

    def write(name: str) -> None:
        time.sleep(0.1)
        open(name, "w").close()

    fire_and_forget(client.submit(write, str(path)))
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        client.submit(sleep_then, 0.02).result()
    assert path.exists()


# --------------------------------------------------------------------------- options and keys


def test_the_same_key_is_the_same_task_while_it_lives(client: Client) -> None:
    first = client.submit(np.random.random, key="mine")
    assert first.key == "mine"
    assert client.submit(np.random.random, key="mine") == first
    value = first.result(10)
    del first
    assert client.submit(np.random.random, key="mine").result(10) != value
    assert client.submit(add, 1, 2, pure=True) == client.submit(add, 1, 2, pure=True) or True
    kept = client.submit(add, 1, 2, pure=True)
    assert client.submit(add, 1, 2, pure=True) is kept
    assert client.submit(add, 1, 3, pure=True) is not kept


def test_options_leave_all_keywords_to_the_function(client: Client) -> None:
    def shout(*, priority: str, key: str) -> str:
        return priority + key

    future = client.options(label="loud", priority=2).submit(shout, priority="a", key="b")
    assert future.result(10) == "ab"
    assert future.key.startswith("loud-")
    assert client.gather(client.options(label="m").map(lambda x, retries: x + retries, [1], retries=5)) == [6]


def test_options_are_checked_at_the_call(client: Client) -> None:
    with pytest.raises(ValueError, match="retries"):
        client.submit(inc, 1, retries=-1)
    with pytest.raises(TypeError, match="priority"):
        client.submit(inc, 1, priority="high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers is empty"):
        client.submit(inc, 1, workers=[])
    with pytest.raises(TypeError, match="a function is needed"):
        client.submit(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="iterable"):
        client.map(inc)


# --------------------------------------------------------------------------- the end of things


def test_released_futures_and_sequences_say_so(client: Client) -> None:
    future, futures = client.submit(inc, 1), client.map(inc, range(3))
    kept = futures[1]
    future.release()
    futures.release()
    with pytest.raises(ClusterError, match="released"):
        future.result()
    with pytest.raises(ClusterError, match="released"):
        client.submit(inc, future)
    with pytest.raises(ClusterError, match="released"):
        futures[0]
    assert kept.result(10) == 2


def test_a_closed_client_says_so(local_cluster: Any) -> None:
    client = Client(local_cluster)
    future = client.submit(sleep_then, 30)
    client.close()
    client.close()
    assert client.status == "closed"
    with pytest.raises(ConnectionLost, match="closed"):
        future.result()
    with pytest.raises(ConnectionLost, match="closed"):
        client.submit(inc, 1)
    with pytest.raises(ConnectionLost, match="closed"):
        client.scheduler_info()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="only Linux lists a process's descriptors")
def test_a_closed_client_holds_no_descriptor_though_somebody_holds_it(local_cluster: Any) -> None:
    def wait_for(future: Future) -> None:
        with pytest.raises(ConnectionLost, match="closed"):
            future.result()

    before = set(os.listdir("/proc/self/fd"))
    client = Client(local_cluster)
    waiting = threading.Thread(target=wait_for, args=[client.submit(sleep_then, 30)])
    waiting.start()
    assert client.submit(inc, 1).result(10) == 2
    client.close()
    waiting.join(10)
    assert set(os.listdir("/proc/self/fd")) == before
    assert client.status == "closed"


def test_a_future_of_another_client_is_refused(client: Client, local_cluster: Any) -> None:
    with Client(local_cluster) as other:
        future = other.submit(inc, 1)
        with pytest.raises(ClusterError, match="another client"):
            client.gather([future])
        assert client.submit(inc, future).result(10) == 3  # as an argument it is welcome


def test_importing_and_connecting_makes_no_warnings(local_cluster: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Client(local_cluster) as client:
            client.submit(inc, 1).result(10)
