"""Dask's collections computed by a client."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import Alias, Task, TaskRef
from dask.utils import SerializableLock

from cluster import Client, Future, LocalCluster, SerializationError, current, get_client
from tests.conformance.run import explain, load
from tests.processes.whole_cluster import ROOT, PackedWhenHeld

NUMBERS = np.arange(90_000.0).reshape(300, 300)
FRAME = pd.DataFrame({"group": np.arange(1000) % 7, "value": np.arange(1000.0)})


@pytest.fixture
def scheduler(client: Client) -> Iterator[Client]:
    """A client that Dask computes with."""
    with dask.config.set(scheduler=client):
        yield client


def fail(value: Any) -> Any:
    raise ZeroDivisionError(f"on purpose with {value}")


def whereabouts(*_: Any) -> str:
    return current().worker


def test_arrays(scheduler: Client) -> None:
    x = da.from_array(NUMBERS, chunks=70)
    assert np.allclose((x @ x.T + 1)[::3].mean(axis=0).compute(), (NUMBERS @ NUMBERS.T + 1)[::3].mean(axis=0))
    assert np.array_equal(
        np.sort(x.rechunk((300, 50)).map_blocks(np.sin)[:, 5].compute()), np.sort(np.sin(NUMBERS[:, 5]))
    )
    ours, theirs = dask.compute(x.sum(), {"largest": [x.max()]})
    assert (ours, theirs) == (NUMBERS.sum(), {"largest": [NUMBERS.max()]})


def test_dataframes(scheduler: Client) -> None:
    frame = dd.from_pandas(FRAME, npartitions=6)
    expected = FRAME.groupby("group").value.agg(["sum", "mean", "std"])
    found = frame.groupby("group").value.agg(["sum", "mean", "std"]).compute()
    pd.testing.assert_frame_equal(found.sort_index(), expected, check_dtype=False)
    joined = frame.merge(frame.groupby("group").value.max().reset_index(), on="group", suffixes=("", "_max"))
    assert joined.value_max.sum().compute() == FRAME.groupby("group").value.transform("max").sum()
    assert frame.set_index("value", shuffle_method="tasks").loc[10:20].group.sum().compute() == FRAME[10:21].group.sum()


def test_bags_and_delayed(scheduler: Client) -> None:
    assert dict(db.from_sequence(range(100), npartitions=7).map(lambda v: v % 3).frequencies().compute()) == {
        0: 34, 1: 33, 2: 33,
    }  # fmt: skip
    total = dask.delayed(sum)([dask.delayed(operator.mul)(n, n) for n in range(10)])
    records = db.from_delayed([dask.delayed(lambda n: (n for _ in range(n)))(n) for n in range(4)])
    assert records.sum().compute() == 14
    assert dask.delayed(lambda *, x, y: (x, y))(x={"k": total}, y=[total]).compute() == ({"k": 285}, [285])


class Exclusive:
    """What only one task may touch at a time, in whatever process: it says so when two do."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "touched"

    def __setitem__(self, index: Any, block: Any) -> None:
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL)
        os.close(descriptor)
        time.sleep(0.01)  # so long another one would find it touched
        self.path.unlink()


@pytest.mark.both_shapes
def test_locks_in_a_graph_exclude_tasks_of_all_processes(scheduler: Client, tmp_path: Path) -> None:
    da.store(da.ones((8, 100), chunks=(1, 100)), Exclusive(tmp_path), lock=True)
    with pytest.raises(FileExistsError):
        for _ in range(20):
            da.store(da.ones((8, 100), chunks=(1, 100)), Exclusive(tmp_path), lock=False)


def test_a_lock_in_a_graph_is_the_same_wherever_it_goes(scheduler: Client) -> None:
    lock = SerializableLock()

    def hold(lock: Any) -> tuple[list[bool], Any]:
        found = [lock.locked()]
        with lock:
            found += [lock.locked(), lock.acquire(blocking=False), lock.acquire(timeout=0.01)]
        return [*found, lock.locked()], lock

    found, back = dask.delayed(hold)(lock).compute()
    assert found == [False, True, False, False, False]
    assert type(back) is SerializableLock
    assert back.lock is lock.lock
    with Client(engine="threads", slots=2) as threads:
        assert dask.delayed(lambda lock: type(lock).__name__)(lock).compute(scheduler=threads) == "SerializableLock"


def test_what_is_read_from_an_hdf5_file_is_opened_where_it_is_used(scheduler: Client, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("/group/x", data=np.arange(100.0).reshape(10, 10))
        writing = da.from_array(file["/group/x"], chunks=5)
        with pytest.raises(SerializationError, match="is open for writing"):
            writing.sum().compute()
    with h5py.File(path, "r") as file:
        assert da.from_array(file["/group/x"], chunks=5)[:, None, :].sum().compute() == 4950
        for inside in (file, file["/group"]):
            named = inside.name
            assert dask.delayed(lambda it, name=named: (it.name == name, len(it)))(inside).compute() == (True, 1)


def test_only_what_was_asked_for_comes_back(client: Client) -> None:
    x = da.ones((400, 400), chunks=100) + 1
    future = client.compute(x.sum())
    assert isinstance(future, Future)
    assert future.result() == 320_000
    assert client.compute({"a": [x.sum()]}, sync=True) == {"a": [320_000]}
    assert client.get(x.dask, [[(x.name, 0, 0)]], sync=False)[0][0].result().sum() == 20_000


def test_persisted_collections_stand_on_futures(scheduler: Client) -> None:
    x = da.from_array(NUMBERS, chunks=150)
    frame = dd.from_pandas(FRAME, npartitions=3)
    bag = db.from_sequence(range(10), npartitions=2)
    kept_x, kept_bag = dask.persist(x + 1, bag)
    kept_frame = frame.persist()
    assert all(isinstance(each, Future) for each in dict(kept_x.dask).values())
    assert kept_x.sum().compute() == (NUMBERS + 1).sum()
    assert kept_frame.value.sum().compute() == FRAME.value.sum()
    assert kept_bag.sum().compute() == 45
    assert (scheduler.persist(kept_x * 2).max() - kept_x.max()).compute() == 90_000
    (single,) = scheduler.persist([dask.delayed(abs)(-4)])
    assert single.compute() == 4


def test_errors_are_those_of_the_tasks(scheduler: Client) -> None:
    with pytest.raises(ZeroDivisionError, match="on purpose with 3"):
        dask.delayed(fail)(3).compute()
    with pytest.raises(KeyError, match="'nowhere' is not in the graph"):
        scheduler.get({"x": Task("x", abs, TaskRef("nowhere"))}, "x")
    with pytest.raises(ValueError, match="need one another"):
        scheduler.get({"x": Task("x", abs, TaskRef("y")), "y": Task("y", abs, TaskRef("x"))}, "x")
    with pytest.raises(Exception, match="lock"):
        dask.delayed(id)(threading.Lock()).compute()


def test_retries_and_workers_of_annotations_are_respected() -> None:
    with LocalCluster(n_workers=2, slots=1) as cluster, Client(cluster) as client:
        names = sorted(worker["name"] for worker in client.scheduler_info()["workers"].values())
        for name in names:
            with dask.annotate(workers=name):
                x = da.ones(4, chunks=1).map_blocks(lambda block: np.array([whereabouts()]), dtype="U60")
            assert set(x.compute(scheduler=client, optimize_graph=False)) == {name}
            assert set(dask.compute([dask.delayed(whereabouts)(n, pure=True) for n in range(4)],
                                    scheduler=client, workers=name)[0]) == {name}  # fmt: skip
        with dask.annotate(retries=2):
            tried = dask.delayed(lambda: current().attempt if current().attempt > 2 else fail("less"))()
        assert tried.compute(scheduler=client, optimize_graph=False) == 3
        with dask.annotate(priority=1.5), pytest.raises(TypeError, match="priority must be a whole number"):
            dask.delayed(abs)(-1).compute(scheduler=client)
        with dask.annotate(queue="of another scheduler"):
            assert dask.delayed(abs)(-1).compute(scheduler=client, num_workers=4) == 1


def test_a_task_computes_a_collection(client: Client) -> None:
    def total() -> float:
        return float(da.ones(100, chunks=10).sum().compute(scheduler=get_client()))

    assert client.submit(total).result() == 100


def test_a_graph_of_many_tasks(client: Client) -> None:
    graph: dict[Any, Any] = {("leaf", n): Task(("leaf", n), operator.neg, n) for n in range(4096)}
    level = [("leaf", n) for n in range(4096)]
    while len(level) > 1:
        above = [("sum", len(level), n) for n in range(0, len(level), 2)]
        pairs = zip(above, level[::2], level[1::2], strict=True)
        graph.update({key: Task(key, operator.add, TaskRef(a), TaskRef(b)) for key, a, b in pairs})
        level = above
    assert client.get(graph, level[0]) == -4096 * 4095 // 2
    info = client.get(graph, [level[0], [("leaf", 3)]], priority=2)
    assert info == (-4096 * 4095 // 2, (-3,))


def test_large_data_in_a_graph_travels_once(client: Client) -> None:
    data = NUMBERS.copy()
    x = da.from_array(data, chunks=30, inline_array=False)
    with pytest.MonkeyPatch.context() as patch:
        offered: list[Any] = []
        offer = client._submission.offer
        patch.setattr(client._submission, "offer", lambda *args: offered.append(args) or offer(*args))
        assert x.sum().compute(scheduler=client) == data.sum()
    assert len(offered) <= 1


@pytest.mark.timeout(300)
def test_dasks_own_tests_of_delayed(tmp_path: Path) -> None:
    # A file of the examination that takes seconds; the rest is run by `make conformance`.
    file, kept = "tests/test_delayed.py", tmp_path / "outcome.json"
    command = [sys.executable, "-m", "tests.conformance.run", "--one", "dask", file, str(kept)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    outcome = load(kept)
    assert [test for test in outcome.failed if explain("dask", file, test) is None] == []
    assert outcome.passed > 50
    assert outcome.reached > outcome.passed / 2


@pytest.mark.usefixtures("graphs_sent_in_fours")
def test_what_was_used_up_is_freed_while_the_rest_of_a_graph_is_sent(client: Client) -> None:
    graph: dict[Any, Any] = {}
    for place in range(8):
        made, again, doubled = f"made-{place}", f"again-{place}", f"doubled-{place}"
        graph[made] = Task(made, operator.add, place, 1)
        graph[again] = Alias(again, made)
        graph[doubled] = Task(doubled, operator.add, TaskRef(made), TaskRef(again))
    graph["sum"] = Task("sum", lambda *values: sum(values), *(TaskRef(f"doubled-{place}") for place in range(8)))
    graph["all"] = Task("all", operator.add, TaskRef("sum"), PackedWhenHeld(client, 8))
    assert client.get(graph, "all") == 72
