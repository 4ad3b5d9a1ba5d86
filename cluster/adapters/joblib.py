"""joblib's `Parallel` on a cluster: the backend "cluster", and what `client.joblib()` gives.

joblib cuts an iterable of calls into batches, and asks for the next batch when one has ended. Here each batch is a
task. Who iterates over the results hands in what has ended, in between: so no thread is woken in vain, and in a task
the waiting gives its slot up. Only a generator of results, over which a program iterates when it likes, has a thread
for that.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from joblib import parallel_config
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    register_parallel_backend,
)

from cluster.client.client import Client, WithOptions
from cluster.client.functions import label_of
from cluster.client.future import Future
from cluster.client.in_slot import get_client
from cluster.daemon import in_slot
from cluster.errors import ClusterError
from cluster.wire.arguments import LARGE_BYTES, LargeArgument
from cluster.wire.payload import dumps

__all__ = ["ClusterBackend", "parallel_on"]

OWN_SETTINGS = frozenset({"context", "max_nbytes", "mmap_mode", "prefer", "require", "temp_folder", "verbose"})
"""What every `Parallel` gives its backend, wanted or not."""
WORKERS_WAIT_SECONDS = 10.0
"""How long a cluster without workers is waited for."""
SLOTS_KNOWN_SECONDS = 1.0
SMALLEST_BATCH_SECONDS = 0.02
"""A task costs some 0.2 ms, a twentieth of what joblib's own processes take, so batches this short do."""
RUN_FOR_PACKING = 50
"""A batch is to run for so many times as long as its arguments took to pack: a slot unpacks them, too, and both take
processor time from what runs on the same host."""
LONGEST_FOR_PACKING_SECONDS = 0.2
PACKING_WEIGHT = 0.25
"""What the last batch counts in the mean of how long packing takes."""
ELEMENT_BYTES = 8
KEPT_ONCE = 4
"""Large objects that are kept though only one call has had them until now."""


def parallel_on(client: Client, **options: Any) -> parallel_config:
    """What `Client.joblib` returns."""
    return parallel_config(backend="cluster", client=client, **options)


class ClusterBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Runs the batches of a `joblib.Parallel` as tasks.

    `client` is the one to use, without it the one that `get_client()` gives; `task_options` are those of
    `Client.options`, for every batch. `n_jobs` bounds how many batches run at once; -1, the default, is all slots.
    """

    MIN_IDEAL_BATCH_DURATION = SMALLEST_BATCH_SECONDS
    MAX_IDEAL_BATCH_DURATION = 0.5
    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, nesting_level: int | None = None, client: Client | None = None, **task_options: Any) -> None:
        super().__init__(nesting_level=nesting_level)
        self._client = client
        self._task_options = task_options
        self._workers: _Batches | None = None
        self._ran_seconds = 0.0
        self.parallel: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ClusterBackend, (self.nesting_level,)

    def get_nested_backend(self) -> tuple[ClusterBackend, int]:
        """The same; but what runs inside a task goes to the cluster only if it says an `n_jobs`."""
        return ClusterBackend(nesting_level=(self.nesting_level or 0) + 1), 1

    # ------------------------------------------------------------------ one Parallel

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many run at once: `n_jobs`, or if that is negative all slots but `-n_jobs - 1`; None is the default."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        if n_jobs == 1:
            return 1
        try:
            client = self._client or get_client()
        except ClusterError:
            if multiprocessing.parent_process() is None:
                raise
            warnings.warn(
                "Cluster-backed parallel loops cannot be nested below a process that has no Client, setting n_jobs=1",
                stacklevel=3,
            )
            return 1
        if n_jobs > 0:
            return n_jobs
        slots = _slots(client)
        # joblib would run a single one in the calling process, which need not be where the worker is.
        return max(slots + 1 + n_jobs, 1 if slots > 1 else 2)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **settings: Any) -> int:
        """Make ready for the calls of one `Parallel`."""
        unknown = settings.keys() - OWN_SETTINGS
        if unknown:
            raise TypeError(
                f'Parallel(backend="cluster") knows no {", ".join(sorted(unknown))}; options of the tasks are given to '
                "client.joblib(), or to parallel_config"
            )
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        client = self._client or get_client()
        client.options(**self._task_options)  # which says what is wrong with them
        # With work for all slots there is nothing to bound, and more than one batch for each keeps them busy.
        limit = count if count < _slots(client) else None
        with _claiming:
            if self._workers is None or self.parallel is parallel:
                self.parallel = parallel
                self._workers = _Batches(client, self._task_options, self.get_nested_backend(), limit)
                return count
        # parallel_config has one backend for all inside, and another Parallel is using it.
        raise FallbackToBackend(ClusterBackend(self.nesting_level, self._client, **self._task_options))

    def start_call(self) -> None:
        """A call begins."""
        assert self._workers is not None
        if self.parallel.return_generator and in_slot.surroundings() is None:
            self._workers.follow()

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Run a batch; `callback` hears of its end."""
        assert self._workers is not None
        if not self._workers.followed:
            callback.get_status = partial(self._workers.status_of, callback, callback.get_status)
        self._workers.submit(func, callback)

    def apply_async(self, func: Any, callback: Any = None) -> Any:
        """What joblib before 1.5 calls `submit`."""
        self.submit(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """The values of a batch that has ended; raises what it raised."""
        values, self._ran_seconds = out.result()
        if isinstance(values, KeyboardInterrupt):
            raise values
        return values

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """A batch has ended: joblib judges its size by how long it ran, not by how long it also waited for a slot.

        joblib calls this just after `retrieve_result_callback`, in the same thread, with what ran in that batch.
        """
        if self._workers is not None:
            wanted_seconds = RUN_FOR_PACKING * self._workers.packing_seconds
            self.MIN_IDEAL_BATCH_DURATION = min(
                max(SMALLEST_BATCH_SECONDS, wanted_seconds), LONGEST_FOR_PACKING_SECONDS
            )
        super().batch_completed(batch_size, self._ran_seconds)

    def stop_call(self) -> None:
        """A call has ended: let go of what its batches had in common."""
        if self._workers is not None:
            self._workers.shared.clear()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what has not ended."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def terminate(self) -> None:
        """The `Parallel` has ended."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        self.reset_batch_stats()


_claiming = threading.Lock()
"""Held while a `Parallel` takes a backend."""
_slots_by_client: weakref.WeakKeyDictionary[Client, tuple[float, int]] = weakref.WeakKeyDictionary()


def _slots(client: Client) -> int:
    """The slots of the cluster, asked for at most once a second: in a task, asking gives the slot up."""
    asked_at, slots = _slots_by_client.get(client, (0.0, 0))
    if not slots or time.monotonic() - asked_at > SLOTS_KNOWN_SECONDS:
        slots = sum(client.nthreads().values())
        if not slots:
            client.wait_for_workers(1, timeout=WORKERS_WAIT_SECONDS)
            slots = sum(client.nthreads().values())
        _slots_by_client[client] = time.monotonic(), slots
    return slots


# --------------------------------------------------------------------------- batches as tasks


class _Calls:
    """Calls a function, or each call's own if it is None, for one batch; tells how long. Runs in a task."""

    def __init__(self, function: Callable[..., Any] | None, nested: tuple[ClusterBackend, int]) -> None:
        self.function = function
        self._nested = nested

    def __call__(self, *calls: tuple[Any, ...]) -> tuple[list[Any] | KeyboardInterrupt, float]:
        began = time.perf_counter()
        try:
            values: list[Any] | KeyboardInterrupt = self._values(calls)
        except KeyboardInterrupt as error:
            # joblib raises it to the caller; as a failure it would come there as a RemoteError, which is none.
            values = error
        return values, time.perf_counter() - began

    def _values(self, calls: tuple[tuple[Any, ...], ...]) -> list[Any]:
        backend, n_jobs = self._nested
        with parallel_config(backend=backend, n_jobs=n_jobs):
            if self.function is None:
                return [function(*args, **kwargs) for args, kwargs, function in calls]
            return [self.function(*args, **kwargs) for args, kwargs in calls]


class _Batches:
    """The batches of one `Parallel` that have not ended."""

    def __init__(
        self, client: Client, options: Mapping[str, Any], nested: tuple[ClusterBackend, int], limit: int | None
    ) -> None:
        self.shared = _Shared(client)
        self.followed = False
        self.packing_seconds = 0.0
        self._client = client
        self._options = options
        self._nested = nested
        self._limit = limit
        self._running: dict[int, tuple[Future, Callable[[Any], None]]] = {}
        self._held_back: deque[tuple[Any, Callable[[Any], None]]] = deque()
        self._refused: deque[tuple[concurrent.futures.Future[Any], Callable[[Any], None]]] = deque()
        self._closed = False
        self._calls = _Calls(None, nested)
        self._label = ""
        self._tasks = client.options()
        with client._driver.guard():
            self._watch = client._session.watch(set())

    def submit(self, batch: Any, callback: Callable[[Any], None]) -> None:
        """Run a batch, now or when fewer than the limit run."""
        with self._client._driver.guard():
            if self._limit is not None and len(self._running) >= self._limit:
                self._held_back.append((batch, callback))
                return
        began = time.perf_counter()
        try:
            future = self._submit(batch)
        except Exception as error:
            # joblib dispatches from where it could not raise; like a batch that failed it is raised to who iterates.
            refused: concurrent.futures.Future[Any] = concurrent.futures.Future()
            refused.set_exception(error)
            with self._client._driver.guard():
                self._refused.append((refused, callback))
                self._client._driver.wake_ready()
            return
        took_seconds = time.perf_counter() - began
        self.packing_seconds += PACKING_WEIGHT * (took_seconds - self.packing_seconds)
        session = self._client._session
        with self._client._driver.guard():
            self._running[future.number] = future, callback
            session.flush()
            session.want([future.number])
            session.watch_more(self._watch, future.number)
            self._client._driver.wake_ready()
        self._client._driver.send()

    def _submit(self, batch: Any) -> Future:
        items = batch.items
        function = items[0][0]
        share = self.shared.replace
        tasks = self._labelled(label_of(function))
        if all(each is function for each, _, _ in items):
            if self._calls.function is not function:
                self._calls = _Calls(function, self._nested)
            packed = [(tuple(map(share, args)), _share_in(kwargs, share)) for _, args, kwargs in items]
            return tasks.submit(self._calls, *packed)
        each_own = [(tuple(map(share, args)), _share_in(kwargs, share), each) for each, args, kwargs in items]
        return tasks.submit(_Calls(None, self._nested), *each_own)

    def _labelled(self, label: str) -> WithOptions:
        """What submits the tasks; people see them under the name of the function that is called in them."""
        if label != self._label:
            self._label = label
            self._tasks = self._client.options(**{"label": label, **self._options})
        return self._tasks

    def status_of(self, callback: Any, get_status: Callable[..., Any], timeout: float | None) -> Any:
        """What joblib asks again and again until it is not pending: waits, and hands in what has ended."""
        status = get_status(timeout)
        if callback.status == "Pending":
            remaining = None
            if timeout is not None:
                remaining = max(0.0, callback._completion_timeout_counter + timeout - time.time())
            self.hand_in(remaining)
            status = get_status(timeout)
        return status

    def hand_in(self, timeout: float | None = None) -> None:
        """Wait until a batch has ended; tell joblib of all that have."""
        driver, completed = self._client._driver, self._watch.completed
        driver.wait_until(lambda: bool(completed or self._refused or self._closed), timeout)
        ended: list[tuple[Any, Callable[[Any], None]]] = []
        with driver.guard():
            while completed:
                ended.extend(self._running.pop(number) for number in completed.popleft() if number in self._running)
            if self._client._session.lost is not None:
                ended.extend(self._running.values())
                self._running.clear()
            ended.extend(self._refused)
            self._refused.clear()
            room = (self._limit or 0) - len(self._running)
            next_ones = [self._held_back.popleft() for _ in range(min(room, len(self._held_back)))]
        for batch, callback in next_ones:
            self.submit(batch, callback)
        for job, callback in ended:
            callback(job)

    def follow(self) -> None:
        """Hand in what has ended in a thread, while nobody iterates over the results."""
        if not self.followed:
            self.followed = True
            threading.Thread(target=self._follow, name="cluster-joblib", daemon=True).start()

    def _follow(self) -> None:
        while not self._closed and self._client._session.lost is None:
            self.hand_in()

    def close(self) -> None:
        """Cancel what has not ended; nothing more is handed in."""
        driver = self._client._driver
        with driver.guard():
            if self._closed:
                return
            self._closed = True
            self._held_back.clear()
            self._refused.clear()
            left = [future for future, _ in self._running.values()]
            self._running.clear()
            self._client._session.unwatch(self._watch)
            driver.wake_ready()
        if left and self._client.status == "running":
            self._client.cancel(left)
        self.shared.clear()


# --------------------------------------------------------------------------- large arguments


def _share_in(keywords: Mapping[str, Any], share: Callable[[Any], Any]) -> dict[str, Any]:
    """The keywords of a call with what is shared replaced."""
    return {name: share(value) for name, value in keywords.items()} if keywords else {}


class _Shared:
    """Large objects that are arguments of several calls: each is offered to the cluster once, under a future.

    What was met only once is let go when a few others have followed it, so an iterable of many large arrays needs no
    memory for all of them.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._offered: dict[int, tuple[Any, Future]] = {}
        self._met_once: dict[int, None] = {}

    def replace(self, value: Any) -> Any:
        """The future of a large object, else the object itself."""
        identity = id(value)
        offered = self._offered.get(identity)
        if offered is not None:
            self._met_once.pop(identity, None)
            return offered[1]
        if _estimated_bytes(value) <= LARGE_BYTES:
            return value
        encoded = dumps(value, name=type(value).__name__)
        if encoded.futures or encoded.nbytes <= LARGE_BYTES:
            return value
        client = self._client
        large = LargeArgument(value, encoded, False)
        with client._driver.guard():
            number = client._submission.offer_large(large)
            client._submission.share(number)
        future = Future(client, number, client._origin("joblib"), client._drop)
        self._offered[identity] = value, future  # the value too, so that its identity stays its own
        self._met_once[identity] = None
        if len(self._met_once) > KEPT_ONCE:
            oldest = next(iter(self._met_once))
            del self._met_once[oldest], self._offered[oldest]
        return future

    def clear(self) -> None:
        """Let go of all."""
        self._offered.clear()
        self._met_once.clear()


def _estimated_bytes(value: Any) -> int:
    """About what an array, a table or a sparse matrix takes; 0 for what is no such thing."""
    kind = type(value)
    if not kind.__module__.startswith(("numpy", "pandas", "scipy.sparse", "polars")):
        return 0
    if hasattr(kind, "nbytes"):
        return int(value.nbytes)
    size = getattr(value, "size", 0)
    return int(size) * ELEMENT_BYTES if isinstance(size, int) else 0


register_parallel_backend("cluster", ClusterBackend)
