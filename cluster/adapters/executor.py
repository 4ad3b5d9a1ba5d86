"""`concurrent.futures.Executor` over a client: programs written for thread and process pools run on the cluster.

Threads: the *collector* waits for tasks that end and settles their futures. Users' callbacks run in a thread of their
own, so that a callback may block, or wait for another future, and nothing else stands still. Both threads begin when
there is something to do and end soon after there is nothing. They are no daemon threads: a program whose main thread
has ended goes on until its futures have, as with the standard library's executors.

Locks, in the order in which they may be taken together: the executor's `_lock`, a future's condition, the client's.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pickle import PicklingError
from typing import Any, TypeVar

from cluster.client.client import Client
from cluster.client.future import Future as Task
from cluster.daemon import in_slot
from cluster.errors import OutOfMemory, SerializationError, TaskDied
from cluster.session.watch import Watch

__all__ = ["ClusterExecutor", "ClusterFuture"]

T = TypeVar("T")

LINGER_SECONDS = 0.05
"""So long a thread without work stays for more; the end of a program waits no longer for it."""


class ClusterFuture(Future[T]):
    """A future of the standard library whose task runs on the cluster; `ClusterExecutor.submit` makes it.

    It is pending until its task has ended, so `cancel` works on a task that runs, too: that is stopped.
    """

    def __init__(self, executor: ClusterExecutor) -> None:
        super().__init__()
        self._executor = executor
        self._task: Task | None = None
        if executor.in_slot:
            self._waiters: list[Any] = _WaitersInSlot(executor)

    def cancel(self) -> bool:
        """Stop the task, queued or running; False if it has ended already. Callbacks run before this returns."""
        if not super().cancel():
            return False
        self._executor._cancelled(self)
        return True

    def running(self) -> bool:
        """Whether a process runs the task now. The cluster is asked: this takes a round trip to its worker."""
        task = self._task
        if task is None or self.done() or self._executor._session.lost is not None:
            return super().running()
        state: str = self._executor._client.explain(task).state
        return state == "running" and not self.done()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the value and return it, each time the same object; raise what the task raised if it failed.

        After `timeout` seconds TimeoutError is raised, and the task goes on. Raises CancelledError.
        """
        try:
            return Future.result(self, self._executor._wait_for(self, timeout))
        finally:
            del self  # an exception holds this frame, which must not hold the future that holds the exception

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end of the task and return what it raised, or None; raises TimeoutError and CancelledError."""
        try:
            return Future.exception(self, self._executor._wait_for(self, timeout))
        finally:
            del self

    def _begin_to_settle(self) -> bool:
        """From now on it cannot be cancelled; False if it was, which `wait` and `as_completed` then see."""
        return self.set_running_or_notify_cancel()

    def _cancel_here(self) -> None:
        """Its task was cancelled, by whomever."""
        super().cancel()
        self.set_running_or_notify_cancel()

    def _invoke_callbacks(self) -> None:
        """The standard library calls this where the future is settled: in the collector, users' code must not run."""
        if self._executor._collector is not threading.current_thread():
            super()._invoke_callbacks()  # type: ignore[misc]  # it has been there since Python 3.2
        elif self._done_callbacks:  # type: ignore[attr-defined]
            self._executor._callbacks.put(super()._invoke_callbacks)  # type: ignore[misc]


class ClusterExecutor(Executor):
    """Runs calls on the cluster, with the interface of `concurrent.futures`; `Client.as_executor` makes it.

    `max_workers` bounds how many of its tasks are on the cluster at once: the rest waits here. Without it the scheduler
    gets everything at once, which is faster; in a task it cannot be given. The other options are those of
    `Client.options`, except `key`.

    >>> from cluster import Client
    >>> with Client() as client, client.as_executor() as executor:
    ...     print(executor.submit(pow, 2, 10).result(), list(executor.map(abs, [-1, -2])))
    1024 [1, 2]
    """

    def __init__(self, client: Client, *, max_workers: int | None = None, **options: Any) -> None:
        if client.asynchronous:
            raise TypeError(
                "an executor waits in threads, and this is an AsyncClient: await its own submit and map, or make the "
                "executor of a Client and give it to loop.run_in_executor"
            )
        if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
            raise TypeError(f"max_workers must be a whole number or None, not {max_workers!r:.100}")
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        if max_workers is not None and in_slot.surroundings() is not None:
            # The collector would submit what waits, and its calls would be children of whatever runs by then.
            raise ValueError("in a task an executor takes no max_workers: leave it out, the scheduler bounds what runs")
        if options.get("key") is not None:
            raise TypeError("an executor takes no key: its calls would all be one task; `label` names them for people")
        self.in_slot = in_slot.surroundings() is not None
        """Whether this is a task's executor: who waits for its futures gives the slot up meanwhile."""
        self._client = client
        self._driver, self._session = client._driver, client._session
        self._submit = client.options(**options).submit
        self._limit = max_workers
        self._lock = threading.Lock()
        self._shut = False
        self._unsettled = 0
        self._handed_over = 0
        self._queue: OrderedDict[ClusterFuture[Any], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]
        self._queue = OrderedDict()
        self._tasks: dict[int, ClusterFuture[Any]] = {}
        self._watch = Watch(set())
        self._collector: threading.Thread | None = None
        self._callbacks = _CallbackThread()

    @property
    def _max_workers(self) -> int:
        """How many calls can run at once: asks the scheduler unless `max_workers` was given. Libraries read this."""
        return self._limit or max(1, sum(self._client.nthreads().values()))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> ClusterFuture[T]:
        """Run `fn(*args, **kwargs)` on the cluster and return its future at once.

        What cannot be pickled fails the future, with a SerializationError that is a PicklingError too; so does a call
        that ends its process, with a TaskDied that is a BrokenProcessPool too, though the executor goes on. Futures of
        the client among the arguments are awaited and replaced by their values. Raises RuntimeError after `shutdown`,
        ConnectionLost when the client has lost its connection or was closed.
        """
        future: ClusterFuture[T] = ClusterFuture(self)
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._driver.check()
            self._start_collector()
            self._unsettled += 1
            if self._limit is not None and self._handed_over >= self._limit:
                self._queue[future] = (fn, args, kwargs)
                return future
            self._handed_over += 1
        handed_over = False
        try:
            handed_over = self._hand_over(future, fn, args, kwargs)
        finally:
            if not handed_over:
                self._settled(1)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call the function on each item; the results come in the order of the items, as they are asked for.

        `timeout` seconds after this call, who asks for a result that is not there gets TimeoutError. `chunksize` items
        make one task: use it where a call takes much less than a millisecond. All items are read and submitted at
        once, or with `buffersize` only so many tasks ahead of the results that were taken. When the iteration ends
        early, by an exception or otherwise, the tasks that are left are cancelled.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize}")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be a whole number or None, not {buffersize!r:.100}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be at least 1, or None, not {buffersize}")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        if chunksize == 1:
            futures: Iterator[Any] = (self.submit(fn, *call) for call in calls)
        else:
            chunks = iter(lambda: list(islice(calls, chunksize)), [])
            futures = (self.submit(_call_each, fn, chunk) for chunk in chunks)
        ahead = deque(islice(futures, buffersize))
        results = _results_in_order(ahead, futures, deadline)
        return results if chunksize == 1 else (result for chunk in results for result in _emptied(chunk))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait` return when all futures and their callbacks are done.

        With `cancel_futures` what has not begun is cancelled. A worker is granted a few tasks ahead; these count as
        begun, as do with `max_workers` all that are on the cluster. The client stays open.
        """
        with self._lock:
            self._shut = True
            queued = list(self._queue) if cancel_futures else []
            collector = self._collector
        for future in queued:
            future.cancel()
        if cancel_futures and self._limit is None:
            self._cancel_what_has_not_begun()
        self._wake_waiters()
        if not wait:
            return
        if self.in_slot:
            self._driver.wait_until(lambda: not self._unsettled)
        if collector is not None:
            collector.join()
        self._callbacks.join()

    # ------------------------------------------------------------------ handing over and cancelling

    def _hand_over(
        self, future: ClusterFuture[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Submit it; False if that failed, and with it the future, as in the standard library's pool of processes."""
        try:
            task = self._submit(fn, *args, **kwargs)
        except BaseException as error:  # pickling runs users' code, and the collector must not end by it
            if future._begin_to_settle():
                future.set_exception(_familiar(error))
            if isinstance(error, Exception) or self._collector is threading.current_thread():
                return False
            raise
        with self._driver.guard():
            future._task = task
            self._tasks[task.number] = future
            self._session.watch_more(self._watch, task.number)
            if self._watch.completed:
                self._driver.wake_ready()
        if future.cancelled():
            self._client.cancel(task)
        return True

    def _cancelled(self, future: ClusterFuture[Any]) -> None:
        """A user has cancelled it: no task must run for it."""
        task = future._task
        if task is not None and self._session.lost is None:
            self._client.cancel(task)  # and the collector hears of it as of any other end
        with self._lock:
            if self._queue.pop(future, None) is None:
                return
            self._unsettled -= 1
        future._cancel_here()
        self._wake_waiters()

    def _cancel_what_has_not_begun(self) -> None:
        if self._session.lost is not None:
            return
        begun = {key for keys in self._client.processing().values() for key in keys}
        with self._driver.guard():
            handed_over = list(self._tasks.values())
        for future in handed_over:
            task = future._task
            if task is not None and task.key not in begun:
                future.cancel()

    def _settled(self, count: int) -> None:
        """So many that were handed over have ended: others may follow."""
        ended = count
        while True:
            with self._lock:
                self._handed_over -= count
                if not self._queue or self._limit is None or self._handed_over >= self._limit:
                    self._unsettled -= ended
                    break
                future, call = self._queue.popitem(last=False)
                self._handed_over += 1
            count = 0 if self._hand_over(future, *call) else 1
            ended += count
        self._wake_waiters()

    # ------------------------------------------------------------------ waiting

    def _wait_for(self, future: ClusterFuture[Any], timeout: float | None) -> float | None:
        """Somebody waits for it: send what was gathered. A task gives its slot up, and waits here. What is left of the
        timeout."""
        if future.done():
            return timeout
        if not self.in_slot:
            self._driver.flush()
            return timeout
        began = time.monotonic()
        self._driver.wait_until(lambda: future._state not in ("PENDING", "RUNNING"), timeout)
        return None if timeout is None else max(0.0, began + timeout - time.monotonic())

    def _wake_waiters(self) -> None:
        """Have those look again who wait by the client: the collector, and tasks that wait for futures."""
        with self._driver.guard():
            self._driver.wake_ready()

    # ------------------------------------------------------------------ collecting

    def _start_collector(self) -> None:
        if self._collector is None:
            with self._driver.guard():
                self._watch = self._session.watch(set())
            collector = threading.Thread(target=self._collect, name="cluster-executor")
            collector.start()  # it raises at the end of the interpreter, and then there is none
            self._collector = collector

    def _collect(self) -> None:
        """Settle futures as their tasks end, until there is none."""
        watch = self._watch
        while True:
            if self._unsettled:
                self._driver.wait_until(lambda: bool(watch.completed) or not self._unsettled)
            else:
                self._driver.wait_until(lambda: bool(watch.completed) or self._shut, LINGER_SECONDS)
            ended: list[ClusterFuture[Any]] = []
            with self._driver.guard():
                while watch.completed:
                    ended += [self._tasks.pop(number) for number in watch.completed.popleft() if number in self._tasks]
            if ended:
                self._settle(ended)
                continue
            with self._lock:
                if not self._unsettled:
                    with self._driver.guard():
                        self._session.unwatch(watch)
                    self._collector = None
                    return

    def _settle(self, futures: list[ClusterFuture[Any]]) -> None:
        """Give these their results. Afterwards nothing here refers to them, nor to what they hold."""
        count = len(futures)
        pairs = []
        while futures:
            future = futures.pop()
            task, future._task = future._task, None
            assert task is not None
            if task.cancelled():
                future._cancel_here()
            elif future._begin_to_settle():
                pairs.append((future, task))
            del future
        values = self._values([task for _, task in pairs])
        while pairs:
            future, task = pairs.pop()
            if values is not None:
                future.set_result(values.pop())
            else:
                _settle_one(future, task)
            del future, task
        self._settled(count)

    def _values(self, tasks: list[Task]) -> list[Any] | None:
        """The values of all, many at a time, or None if one of them has none."""
        if any(task.status != "finished" for task in tasks):
            return None
        try:
            values: list[Any] = self._client.gather(tasks)
        except BaseException:  # a value that cannot be loaded may raise anything: each is then looked at alone
            return None
        return values


def _settle_one(future: ClusterFuture[Any], task: Task) -> None:
    try:
        error = task.exception()
        value = task.result() if error is None else None
    except BaseException as failure:  # loading a value may raise anything, and whoever waits is to hear of it
        error, value = failure, None
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(_familiar(error))


class CallDied(TaskDied, BrokenProcessPool):
    """The process that ran the call died each time it was tried. The executor goes on."""


class CallNotPickled(SerializationError, PicklingError):
    """The call, or its value, cannot be pickled; the message names the member that is to blame."""


_FAMILIAR: dict[type[BaseException], type[BaseException]] = {
    TaskDied: CallDied,
    OutOfMemory: CallDied,
    SerializationError: CallNotPickled,
}


def _familiar(error: BaseException) -> BaseException:
    """The same, so that it is caught too by the name that the standard library has for it."""
    kind = _FAMILIAR.get(type(error))
    if kind is None:
        return error
    familiar = kind.__new__(kind, *error.args)
    familiar.__dict__.update(error.__dict__)
    return familiar.with_traceback(error.__traceback__)


# --------------------------------------------------------------------------- map


def _call_each(fn: Callable[..., T], calls: list[tuple[Any, ...]]) -> list[T]:
    return [fn(*call) for call in calls]


def _results_in_order(ahead: deque[Future[T]], further: Iterator[Future[T]], deadline: float | None) -> Iterator[T]:
    try:
        while ahead:
            yield _result_or_cancel(ahead.popleft(), deadline)
            ahead.extend(islice(further, 1))
    finally:
        for future in ahead:
            future.cancel()


def _result_or_cancel(future: Future[T], deadline: float | None) -> T:
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        del future  # whoever takes the result is the only one that holds it


def _emptied(chunk: list[T]) -> Iterator[T]:
    """The items, of which this keeps none that was given out."""
    chunk.reverse()
    while chunk:
        yield chunk.pop()


# --------------------------------------------------------------------------- threads and slots


class _CallbackThread:
    """Calls users' callbacks one after the other; the thread begins with the first and ends when it has rested."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None
        self._joined = False

    def put(self, call: Callable[[], object]) -> None:
        """Call this soon. It raises nothing: the standard library logs what callbacks raise."""
        with self._condition:
            self._waiting.append(call)
            self._condition.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cluster-executor-callbacks")
                self._thread.start()

    def join(self) -> None:
        """Wait until all have been called, unless a callback asks."""
        with self._condition:
            self._joined = True
            thread = self._thread
            self._condition.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._waiting and not self._joined:
                    self._condition.wait(LINGER_SECONDS)
                if not self._waiting:
                    self._thread = None
                    return
                call = self._waiting.popleft()
            call()
            del call


class _WaitersInSlot(list[Any]):
    """Who waits for a future by `concurrent.futures.wait` or `as_completed`, in a task: waits as the client does."""

    def __init__(self, executor: ClusterExecutor) -> None:
        super().__init__()
        self._executor = executor

    def append(self, waiter: Any) -> None:
        """The standard library installs a waiter: it shall give the slot up."""
        if not isinstance(waiter.event, _EventInSlot):
            waiter.event = _EventInSlot(self._executor)
        super().append(waiter)


class _EventInSlot(threading.Event):
    """An event for which a task can wait without keeping its slot."""

    def __init__(self, executor: ClusterExecutor) -> None:
        super().__init__()
        self._executor = executor

    def set(self) -> None:
        """Set it, and wake who waits by the client."""
        super().set()
        self._executor._wake_waiters()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; False after `timeout` seconds."""
        began = time.monotonic()
        self._executor._driver.wait_until(self.is_set, timeout)
        return super().wait(None if timeout is None else max(0.0, began + timeout - time.monotonic()))
