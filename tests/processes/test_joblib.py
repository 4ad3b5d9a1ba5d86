"""joblib's `Parallel`, and scikit-learn on it, on real clusters."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import BACKENDS

from cluster import Client, ClusterError, LocalCluster, SerializationError, current
from cluster.adapters.joblib import ClusterBackend
from tests.processes.whole_cluster import Gate, until, wait_at

LARGE_NUMBERS = 1_000_000


# ------------------------------------------------------------------ calls


def square(number: int) -> int:
    return number * number


def process_of(number: int) -> int:
    return os.getpid()


def sum_of_squares(count: int, depth: int = 1) -> int:
    inner = delayed(square) if depth == 1 else delayed(sum_of_squares)
    arguments = [(each,) if depth == 1 else (each, depth - 1) for each in range(count)]
    return sum(Parallel(n_jobs=-1, batch_size=1)(inner(*each) for each in arguments))


def processes_of_inner_calls(number: int) -> tuple[int, set[int]]:
    return os.getpid(), set(Parallel()(delayed(process_of)(each) for each in range(4)))


def raise_at(number: int, bad: int) -> int:
    if number == bad:
        raise ValueError(f"number {number}")
    return number


def interrupt(number: int) -> None:
    raise KeyboardInterrupt


def total(numbers: Any, plus: int) -> float:
    return float(numbers.sum()) + plus


def key_of(number: int) -> str:
    return current().key


# ------------------------------------------------------------------ values


@pytest.mark.both_shapes
def test_values_come_in_order(client: Client) -> None:
    with client.joblib():
        assert Parallel()(delayed(square)(number) for number in range(100)) == [number**2 for number in range(100)]


def test_calls_run_in_slots(client: Client) -> None:
    with client.joblib():
        assert os.getpid() not in Parallel()(delayed(process_of)(number) for number in range(10))


def test_the_backend_takes_the_open_client_by_its_name(client: Client) -> None:
    assert Parallel(n_jobs=2, backend="cluster")(delayed(square)(number) for number in range(10))[9] == 81


def test_tasks_have_the_name_of_the_function(client: Client) -> None:
    with client.joblib():
        assert all(key.startswith("key_of-") for key in Parallel()(delayed(key_of)(number) for number in range(4)))


def test_functions_of_one_batch_may_differ(client: Client) -> None:
    calls = [delayed(square)(3), delayed(abs)(-4), delayed(lambda text: text + "!")("five")]
    with client.joblib():
        assert Parallel(batch_size=3)(calls) == [9, 4, "five!"]


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_values_come_while_others_run(client: Client, tmp_path: Path, return_as: str) -> None:
    with Gate(tmp_path / "gate") as gate, client.joblib():
        calls = [delayed(square)(2), delayed(wait_at)(gate.path, "waited")]
        results = Parallel(return_as=return_as, batch_size=1)(calls)
        assert next(results) == 4
        gate.wait_until_reached()
        gate.open()
        assert list(results) == ["waited"]


def test_a_generator_goes_on_while_nobody_iterates(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, client.joblib():
        calls = [*(delayed(square)(number) for number in range(20)), delayed(wait_at)(gate.path, "last")]
        results = Parallel(return_as="generator", batch_size=1)(calls)
        gate.wait_until_reached()  # far beyond what was dispatched at the call
        gate.open()
        assert list(results)[-1] == "last"


def test_a_parallel_is_used_again(client: Client) -> None:
    with client.joblib(), Parallel() as parallel:
        for count in (3, 0, 50):
            assert parallel(delayed(square)(number) for number in range(count)) == [n * n for n in range(count)]


def test_parallels_in_threads_do_not_meet(client: Client) -> None:
    found: dict[int, list[int]] = {}

    def compute(start: int) -> None:
        with client.joblib():
            found[start] = Parallel(batch_size=2)(delayed(square)(number) for number in range(start, start + 30))

    threads = [threading.Thread(target=compute, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {start: [number**2 for number in range(start, start + 30)] for start in (0, 100, 200)}


# ------------------------------------------------------------------ nested


@pytest.mark.both_shapes
def test_parallel_inside_parallel(client: Client) -> None:
    with client.joblib():
        expected = [sum(number**2 for number in range(count)) for count in range(12)]
        assert Parallel(batch_size=1)(delayed(sum_of_squares)(count) for count in range(12)) == expected


def test_three_levels(client: Client) -> None:
    with client.joblib():
        assert Parallel(batch_size=1)(delayed(sum_of_squares)(4, 2) for _ in range(4)) == [0 + 0 + 1 + 5] * 4


def test_parallel_inside_a_task_goes_to_the_cluster_by_name(client: Client) -> None:
    def inside() -> list[int]:
        return list(Parallel(n_jobs=2, backend="cluster")(delayed(square)(number) for number in range(5)))

    assert client.submit(inside).result() == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_generator_inside_a_task(client: Client, return_as: str) -> None:
    def inside() -> list[int]:
        results = Parallel(n_jobs=2, backend="cluster", return_as=return_as)(delayed(square)(n) for n in range(30))
        return sorted(results)

    assert client.submit(inside).result() == [number**2 for number in range(30)]


def test_inner_calls_that_say_no_n_jobs_stay_in_their_process(client: Client) -> None:
    with client.joblib():
        for process_id, inner in Parallel()(delayed(processes_of_inner_calls)(number) for number in range(4)):
            assert inner == {process_id}


# ------------------------------------------------------------------ ends


def test_an_error_cancels_the_others(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, client.joblib():
        with pytest.raises(ValueError, match="number 3"):
            Parallel(batch_size=1)([delayed(wait_at)(gate.path), *(delayed(raise_at)(n, 3) for n in range(10))])
        until(lambda: not any(client.processing().values()), "the call that waits was stopped")
        assert Parallel()(delayed(square)(number) for number in range(5)) == [0, 1, 4, 9, 16]


def test_a_generator_that_is_dropped_cancels_its_calls(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, client.joblib():
        results = Parallel(return_as="generator", batch_size=1)([delayed(square)(1), delayed(wait_at)(gate.path)])
        assert next(results) == 1
        gate.wait_until_reached()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's, that a generator was not used up
            del results
            gc.collect()
        until(lambda: not any(client.processing().values()), "the call that waits was stopped")


def test_the_time_is_up(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, client.joblib(), pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.2)(delayed(wait_at)(gate.path) for _ in range(2))


def test_an_interrupt_inside_a_call_is_raised(client: Client) -> None:
    with client.joblib(), pytest.raises(KeyboardInterrupt):
        Parallel()(delayed(interrupt)(number) for number in range(2))


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_an_argument_that_cannot_be_sent_is_named(client: Client, return_as: str) -> None:
    with client.joblib(), pytest.raises(SerializationError, match="lock"):
        list(Parallel(return_as=return_as)(delayed(square)(threading.Lock()) for _ in range(10)))


def test_an_iterable_that_raises(client: Client) -> None:
    def calls() -> Any:
        for number in range(30):
            yield delayed(square)(raise_at(number, 25))

    with client.joblib(), pytest.raises(ValueError, match="number 25"):
        Parallel(batch_size=1)(calls())


def test_the_connection_ends(local_cluster: LocalCluster, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, Client(local_cluster) as client, client.joblib():
        results = Parallel(return_as="generator")([delayed(wait_at)(gate.path)] * 2)
        gate.wait_until_reached()
        client.close()
        with pytest.raises(ClusterError, match="closed"):
            next(results)


# ------------------------------------------------------------------ how many, and how much


def test_n_jobs_bounds_how_many_run_at_once(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, slots=3) as cluster,
        Client(cluster) as client,
        Gate(tmp_path / "gate") as gate,
        client.joblib(),
    ):
        calls = [delayed(wait_at)(gate.path, 7)] * 6
        results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(calls)
        gate.wait_until_reached()
        until(lambda: sum(map(len, client.processing().values())) == 2, "two run")
        gate.open()
        assert list(results) == [7] * 6


def size_after(backend: ClusterBackend, batches: int, ran_seconds: float) -> int:
    backend.parallel = Parallel(n_jobs=1)
    for _ in range(batches):
        size = backend.compute_batch_size()
        ended: concurrent.futures.Future[Any] = concurrent.futures.Future()
        ended.set_result(([None] * size, ran_seconds))
        assert backend.retrieve_result_callback(ended) == [None] * size
        backend.batch_completed(size, 100.0)  # so long it also waited for a slot
    return backend.compute_batch_size()


def test_small_calls_are_gathered() -> None:
    assert size_after(ClusterBackend(), 5, 0.0001) == 32
    assert size_after(ClusterBackend(), 5, 0.05) == 1


def test_calls_that_take_long_to_pack_are_gathered_into_longer_batches(client: Client) -> None:
    backend = ClusterBackend(client=client)
    backend.configure(n_jobs=-1, parallel=Parallel(n_jobs=1))
    assert backend._workers is not None
    backend._workers.packing_seconds = 0.003
    assert size_after(backend, 5, 0.05) == 32
    backend.terminate()


def test_a_large_argument_of_many_calls_is_sent_once_and_let_go(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = client._submission.offered_bytes
    sent: list[int] = []

    def counted(number: int) -> Any:
        sent.append(number)
        return encode(number)

    monkeypatch.setattr(client._submission, "offered_bytes", counted)
    numbers = numpy.ones(LARGE_NUMBERS)
    with client.joblib():
        values = Parallel(batch_size=1)(delayed(total)(numbers, plus=plus) for plus in range(30))
    assert values == [LARGE_NUMBERS + plus for plus in range(30)]
    assert len(sent) == 1
    until(lambda: not client._submission._offered, "the array was let go", seconds=10)


def test_large_arguments_that_are_used_once_are_not_kept(client: Client) -> None:
    alive: list[int] = []

    def calls() -> Any:
        for plus in range(40):
            alive.append(len(client._submission._offered))
            yield delayed(total)(numpy.ones(LARGE_NUMBERS // 10), plus)

    with client.joblib():
        assert len(Parallel(batch_size=1)(calls())) == 40
    assert max(alive) < 20


# ------------------------------------------------------------------ settings


def test_a_client_registers_the_backend_if_joblib_is_loaded(
    local_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(BACKENDS, "cluster")
    monkeypatch.delitem(sys.modules, "cluster.adapters.joblib")
    with Client(local_cluster):
        assert "cluster" in BACKENDS


def test_options_of_the_tasks(client: Client) -> None:
    with client.joblib(label="mine"):
        assert Parallel()([delayed(key_of)(1)] * 2)[0].startswith("mine-")


def test_unknown_settings_are_named(client: Client) -> None:
    with client.joblib(colour="red"), pytest.raises(TypeError, match="colour"):
        Parallel()([delayed(square)(1)])
    with pytest.raises(TypeError, match="knows no initializer"):
        Parallel(n_jobs=2, backend="cluster", initializer=print)([delayed(square)(1)])


def test_without_a_client() -> None:
    with parallel_config(backend="cluster"), pytest.raises(ClusterError, match="no open Client"):
        Parallel()([delayed(square)(1)])


def test_no_jobs_at_all() -> None:
    with pytest.raises(ValueError, match="n_jobs == 0"):
        ClusterBackend().effective_n_jobs(0)


# ------------------------------------------------------------------ scikit-learn


@pytest.mark.slow
def test_scikit_learn_gives_the_same(client: Client) -> None:
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_validate
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, classes = make_classification(100, 6, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0]}, cv=2)
    forest = RandomForestClassifier(n_estimators=4, n_jobs=2, random_state=0)
    of_forests = GridSearchCV(forest, {"max_depth": [2, 3]}, cv=2)

    def results() -> list[Any]:
        return [
            search.fit(features, classes).cv_results_["mean_test_score"].tolist(),
            cross_validate(pipeline, features, classes, cv=2)["test_score"].tolist(),
            forest.fit(features, classes).predict_proba(features).tolist(),
            of_forests.fit(features, classes).cv_results_["mean_test_score"].tolist(),
        ]

    expected = results()
    with client.joblib():
        assert results() == expected
