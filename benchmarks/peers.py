"""The peers, each in the setting that suits it best among those its users commonly choose; `setting` states it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psutil

from benchmarks import tasks
from benchmarks.systems import ACTORS, COLLECTIONS, HANDLES, PARALLEL, SINGLE, SLOTS, Cluster, System


class Executor(System):
    """`concurrent.futures` without chunks: a level is computed at once, task by task."""

    module = "concurrent.futures"
    pool: concurrent.futures.Executor

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        values = [a.result() if isinstance(a, concurrent.futures.Future) else a for a in arguments]
        return self.pool.submit(function, *values)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        return list(self.pool.map(function, *columns))

    def gather(self, level: Any) -> list[Any]:
        return [v.result() if isinstance(v, concurrent.futures.Future) else v for v in level]

    def all_to_all(self, level: Any) -> Any:
        return self.map(tasks.total, [level] * len(level), range(len(level)))

    def first_value(self, function: Callable[..., Any], items: Sequence[Any]) -> Any:
        return next(self.pool.map(function, items))


class Threads(Executor):
    name = "threads"
    setting = f"ThreadPoolExecutor({SLOTS})"
    first_result_program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        f"pool = ThreadPoolExecutor({SLOTS}); assert pool.submit(abs, -1).result() == 1\n"
        "first_result()\n"
    )

    def open(self) -> None:
        self.pool = concurrent.futures.ThreadPoolExecutor(SLOTS)


class Processes(Executor):
    name = "processes"
    setting = f"ProcessPoolExecutor({SLOTS}), chunks of 1"
    first_result_program = (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "if __name__ == '__main__':\n"
        f"    pool = ProcessPoolExecutor({SLOTS}); assert pool.submit(abs, -1).result() == 1\n"
        "    first_result()\n"
    )

    def open(self) -> None:
        self.pool = concurrent.futures.ProcessPoolExecutor(SLOTS)


class ProcessesInChunks(Executor):
    name = "processes-64"
    setting = f"ProcessPoolExecutor({SLOTS}).map(chunksize=64), smaller chunks where a slot would get none"
    abilities = frozenset()

    def open(self) -> None:
        self.pool = concurrent.futures.ProcessPoolExecutor(SLOTS)

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        chunk = max(1, min(64, len(columns[0]) // SLOTS))
        return list(self.pool.map(function, *columns, chunksize=chunk))

    def first_value(self, function: Callable[..., Any], items: Sequence[Any]) -> Any:
        return next(self.pool.map(function, items, chunksize=64))


class Pool(System):
    name = "pool"
    setting = f"multiprocessing.Pool({SLOTS}).map (starmap), its own chunks; first value by imap(chunksize=64)"
    module = "multiprocessing"
    first_result_program = (
        "from multiprocessing import Pool\n"
        "if __name__ == '__main__':\n"
        f"    pool = Pool({SLOTS}); assert pool.apply_async(abs, (-1,)).get() == 1\n"
        "    first_result()\n"
    )

    def open(self) -> None:
        self.pool = multiprocessing.Pool(SLOTS)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        values = [a.get() if isinstance(a, multiprocessing.pool.AsyncResult) else a for a in arguments]
        return self.pool.apply_async(function, values)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        if len(columns) == 1:
            return self.pool.map(function, columns[0])
        return self.pool.starmap(function, zip(*columns, strict=True))

    def gather(self, level: Any) -> list[Any]:
        return [v.get() if isinstance(v, multiprocessing.pool.AsyncResult) else v for v in level]

    def all_to_all(self, level: Any) -> Any:
        return self.map(tasks.total, [level] * len(level), range(len(level)))

    def first_value(self, function: Callable[..., Any], items: Sequence[Any]) -> Any:
        return next(self.pool.imap(function, items, chunksize=64))


class Joblib(System):
    name = "joblib"
    setting = f"Parallel(n_jobs={SLOTS}), processes (loky), automatic batches"
    module = "joblib"
    distribution = "joblib"
    abilities = frozenset({PARALLEL})
    first_result_program = (
        "from joblib import Parallel, delayed\n"
        "if __name__ == '__main__':\n"
        f"    assert Parallel(n_jobs={SLOTS})([delayed(abs)(-1)]) == [1]\n"
        "    first_result()\n"
    )

    def open(self) -> None:
        import joblib

        self.joblib = joblib
        self.processes_of_joblib = joblib.Parallel(n_jobs=SLOTS)
        self.processes_of_joblib.__enter__()

    def close(self) -> None:
        self.processes_of_joblib.__exit__(None, None, None)

    def calls(self, function: Callable[..., Any], columns: Iterable[Iterable[Any]]) -> Iterable[Any]:
        delayed = self.joblib.delayed(function)
        return (delayed(*row) for row in zip(*columns, strict=True))

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        return self.processes_of_joblib(self.calls(function, columns))

    def gather(self, level: Any) -> list[Any]:
        return list(level)

    def all_to_all(self, level: Any) -> Any:
        return self.map(tasks.total, [level] * len(level), range(len(level)))

    def parallel(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.joblib.parallel_config("loky", n_jobs=SLOTS)
        return context

    def first_value(self, function: Callable[..., Any], items: Sequence[Any]) -> Any:
        return next(self.joblib.Parallel(n_jobs=SLOTS, return_as="generator")(self.calls(function, [items])))


class Dask(System):
    """`pure=False`, since hashing the arguments for keys would only cost time here."""

    name = "dask"
    setting = f"LocalCluster(n_workers={SLOTS}, threads_per_worker=1), no dashboard, pure=False"
    module = "distributed"
    distribution = "distributed"
    abilities = frozenset({SINGLE, HANDLES, ACTORS, COLLECTIONS})
    places_tasks = True
    workers, threads = SLOTS, 1

    @property
    def first_result_program(self) -> str:  # type: ignore[override]
        return (
            "from distributed import Client, LocalCluster\n"
            "if __name__ == '__main__':\n"
            f"    cluster = LocalCluster(n_workers={self.workers}, threads_per_worker={self.threads}, "
            "dashboard_address=None, silence_logs=50)\n"
            "    client = Client(cluster)\n"
            "    assert client.submit(abs, -1).result() == 1\n"
            "    first_result()\n"
            "    client.close(); cluster.close()\n"
        )

    def open(self) -> None:
        import distributed

        self.cluster = distributed.LocalCluster(
            n_workers=self.workers, threads_per_worker=self.threads, dashboard_address=None, silence_logs=50
        )
        self.client = distributed.Client(self.cluster)

    def close(self) -> None:
        self.client.close()
        self.cluster.close()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(function, *arguments, pure=False)

    def actor(self, kind: type[Any]) -> Any:
        return self.client.submit(kind, actor=True, pure=False).result()

    def result(self, handle: Any) -> Any:
        return handle.result()

    def wait(self, handle: Any) -> None:
        import distributed

        distributed.wait(handle)

    def submit_elsewhere(self, value: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        holders = {address for addresses in self.client.who_has([value]).values() for address in addresses}
        others = [address for address in self.client.scheduler_info()["workers"] if address not in holders]
        return self.client.submit(function, *arguments, pure=False, workers=others, allow_other_workers=False)

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        return self.client.map(function, *columns, pure=False)

    def gather(self, level: Any) -> list[Any]:
        return list(self.client.gather(level))

    def start_many(self, function: Callable[..., Any], items: Sequence[Any]) -> Sequence[Any]:
        return self.client.map(function, items, pure=False)  # type: ignore[no-any-return]

    def all_to_all(self, level: Any) -> Any:
        return self.client.map(tasks.total, [level] * len(level), range(len(level)), pure=False)


class DaskThreads(Dask):
    name = "dask-threads"
    setting = f"LocalCluster(n_workers=1, threads_per_worker={SLOTS}), no dashboard, pure=False"
    workers, threads = 1, SLOTS


class DaskApart(Dask):
    """Dask with its scheduler in a process of its own, so that the memory of each role can be told apart."""

    name = "dask-apart"
    setting = f"SubprocessCluster({SLOTS} workers of 1 thread): the scheduler in a process of its own"
    only_where_named = True

    def open(self) -> None:
        import distributed
        from distributed.deploy.subprocess import SubprocessCluster

        self.cluster = SubprocessCluster(
            n_workers=SLOTS, dashboard_address=None, silence_logs=50, worker_kwargs={"nthreads": 1}
        )
        self.client = distributed.Client(self.cluster)
        self.client.wait_for_workers(SLOTS)

    def processes(self) -> dict[str, list[int]]:
        return {
            "client": [os.getpid()],
            "scheduler": [self.client.run_on_scheduler(os.getpid)],
            "agent": sorted(self.client.run(os.getpid).values()),
        }


class Ray(System):
    name = "ray"
    setting = f"ray.init(num_cpus={SLOTS}, include_dashboard=False), object store of 4 GiB"
    module = "ray"
    distribution = "ray"
    abilities = frozenset({SINGLE, HANDLES, ACTORS})
    first_result_program = (
        "import ray\n"
        f"ray.init(num_cpus={SLOTS}, include_dashboard=False, log_to_driver=False, "
        "logging_level='ERROR', object_store_memory=2**30)\n"
        "assert ray.get(ray.remote(lambda: 1).remote()) == 1\n"
        "first_result()\n"
        "ray.shutdown()\n"
    )

    def open(self) -> None:
        import ray

        self.ray = ray
        # Its default is a third of the machine's memory; no more than four of the largest values are there at a time.
        ray.init(
            num_cpus=SLOTS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=4 * 2**30,
        )
        self.remotes: dict[Callable[..., Any], Any] = {}

    def close(self) -> None:
        self.ray.shutdown()

    def remote(self, function: Callable[..., Any]) -> Any:
        if function not in self.remotes:
            self.remotes[function] = self.ray.remote(function)
        return self.remotes[function]

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.remote(function).remote(*arguments)

    def result(self, handle: Any) -> Any:
        return self.ray.get(handle)

    def wait(self, handle: Any) -> None:
        self.ray.wait([handle], fetch_local=False)

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        call = self.remote(function).remote
        return [call(*row) for row in zip(*columns, strict=True)]

    def gather(self, level: Any) -> list[Any]:
        return list(self.ray.get(level))

    def actor(self, kind: type[Any]) -> Any:
        return self.ray.remote(kind).remote()

    def call(self, actor: Any, method: str, *arguments: Any) -> Any:
        return getattr(actor, method).remote(*arguments)

    def all_to_all(self, level: Any) -> Any:
        call = self.remote(tasks.total_of_references).remote
        return [call(place, *level) for place in range(len(level))]

    def processes(self) -> dict[str, list[int]]:
        roles: dict[str, list[int]] = {"client": [os.getpid()], "scheduler": [], "agent": [], "slots": []}
        for child in psutil.Process().children(recursive=True):
            name = child.name()
            role = "scheduler" if name.startswith("gcs_server") else "agent" if name.startswith("raylet") else "slots"
            roles[role].append(child.pid)
        return roles


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        Cluster(),
        Threads(),
        Processes(),
        ProcessesInChunks(),
        Pool(),
        Joblib(),
        Dask(),
        DaskThreads(),
        DaskApart(),
        Ray(),
    )
}
