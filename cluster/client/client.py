"""The client: submits work, gets results. Blocking, and usable from many threads at once."""

from __future__ import annotations

import platform
import socket
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import config
from cluster.client.driver import Driver
from cluster.client.future import Future, FutureSequence, Holding, Origin, check_reference, numbers_of
from cluster.client.inputs import Inputs
from cluster.client.options import checked_options, worker_names
from cluster.client.providers import LocalClusterLike, open_local_cluster
from cluster.client.results import SKIPPED, Results
from cluster.client.submission import Submission
from cluster.client.values import AgentConnections, Pusher
from cluster.errors import ClusterError, ConnectionLost
from cluster.ids import new_id, task_key
from cluster.secret import load_or_create_secret
from cluster.session import table as states
from cluster.session.machine import Session
from cluster.session.table import Numbers
from cluster.transport.blocking import BlockingConnection
from cluster.version import __version__
from cluster.wire import messages
from cluster.wire.encoded import Reference
from cluster.wire.payload import dumps

__all__ = ["Client"]

_NO_OPTIONS: dict[str, Any] = {}
_STATUS = {
    states.PENDING: "pending",
    states.HERE: "finished",
    states.ELSEWHERE: "finished",
    states.OFFERED: "finished",
    states.FAILED: "error",
}


class Client:
    """Runs functions on a cluster.

    `address` is a scheduler's ("tcp://host:port"), or a `LocalCluster`; without one it is the address in the settings,
    or a local cluster that ends with the client. `name` is shown to people. `timeout` is how long, in seconds, to wait
    for the connection. `directory` is where the secret is, if not in the usual place.

    >>> from cluster import Client, LocalCluster
    >>> with LocalCluster(n_workers=1, slots=2) as cluster, Client(cluster) as client:
    ...     print(client.submit(pow, 2, 10).result(), client.gather(client.map(abs, [-1, -2])))
    1024 [1, 2]
    """

    def __init__(
        self,
        address: str | LocalClusterLike | None = None,
        *,
        name: str | None = None,
        timeout: float = 10.0,
        directory: str | Path | None = None,
    ) -> None:
        settings = config.load(directory=Path(directory) if directory is not None else None)
        address = settings.address if address is None else address
        self._own_cluster: LocalClusterLike | None = None
        if address is None:
            address = self._own_cluster = open_local_cluster()
        self.id = new_id()
        self.name = name or f"client-{socket.gethostname()}-{self.id.hex()[:8]}"
        try:
            if isinstance(address, str):
                secret = load_or_create_secret(settings.directory)
                self.scheduler_address = address
                connection = _connect(address, secret, timeout, None)
            else:
                secret = address.secret
                self.scheduler_address = address.scheduler_address
                connection = _connect(self.scheduler_address, secret, timeout, address)
        except BaseException:
            if self._own_cluster is not None:
                self._own_cluster.close()
            raise
        self._session = Session(self.id, self.name, {"python": platform.python_version(), "cluster": __version__})
        self._connections = AgentConnections(secret)
        self._pusher = Pusher(self._connections, self._encode_offered, self._pushed)
        self._driver = Driver(
            connection,
            self._session,
            heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
            push=self._pusher.push,
            forget=self._forget_offered,
        )
        self._submission = Submission(self.id, self._driver, _settle)
        self._results = Results(self._driver, self._submission, self._connections, self._bind_future)
        self._drop = self._session.dropped.append
        self._origins: dict[str, Origin] = {}
        self._keyed: dict[str, weakref.ref[Future]] = {}
        self._callbacks: dict[int, list[tuple[Future, Callable[[Future], object]]]] = {}
        self._callback_watch: Any = None
        self._join(timeout)
        _clients[self.id] = self

    # ------------------------------------------------------------------ work

    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: str | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        allow_other_workers: bool = False,
        actor: bool = False,
        pure: bool = False,
        **kwargs: Any,
    ) -> Future:
        """Run `function(*args, **kwargs)` on the cluster and return its future at once.

        Futures in the arguments, at any depth, make the task wait for them, and it receives their values. Small
        arguments are taken at the call; one over 64 KiB must not be changed before the task has ended. `workers` are
        the names or addresses of those that may run it (with `allow_other_workers`: that are preferred), `resources`
        what it takes of a worker's, `retries` how often it is run again when it raises, and higher `priority` goes
        first. With a `key`, or with `pure=True`, which makes one from the content of function and arguments, a future
        of the same task is returned while there is one that has not failed. Keywords that a function shares with this
        method can be given to it through `options()`.

        Raises SerializationError, which names the member to blame, if an argument cannot be pickled.
        """
        if actor:
            raise NotImplementedError("actors are not supported; keep state in files or in values that tasks pass on")
        if workers is key is None and not (resources or retries or priority or allow_other_workers or pure):
            number, call = self._submission.submit(function, args, kwargs, None, _NO_OPTIONS)
            return Future(self, number, self._origin(call.label), self._drop)
        options = checked_options(
            workers=workers,
            resources=resources,
            retries=retries,
            priority=priority,
            allow_other_workers=allow_other_workers,
            key=key,
        )
        return self._submit(function, args, kwargs, options, None, key, pure)

    def map(
        self,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        key: str | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        allow_other_workers: bool = False,
        **kwargs: Any,
    ) -> FutureSequence:
        """Run the function on each item; of several iterables, on each tuple of items, up to the shortest's end.

        Returns a sequence of futures when all arguments are packed; the first tasks run by then. An iterable may be
        such a sequence itself, or a slice of one: `client.map(add, level[::2], level[1::2])`. Further keywords go to
        every call; `key` is what the tasks' keys begin with, instead of the function's name.
        """
        options = checked_options(
            workers=workers,
            resources=resources,
            retries=retries,
            priority=priority,
            allow_other_workers=allow_other_workers,
            key=key,
        )
        return self._map(function, iterables, kwargs, options, key)

    def options(
        self,
        *,
        label: str | None = None,
        key: str | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        allow_other_workers: bool = False,
        timeout_seconds: float | None = None,
    ) -> WithOptions:
        """Give `submit` and `map` with these options, where all keywords go to the function.

        Besides the options of `submit`: `timeout_seconds`, after which a task that runs is stopped and fails with
        TaskTimeout, and `label`, the name of the tasks for people.
        """
        options = checked_options(
            workers=workers,
            resources=resources,
            retries=retries,
            priority=priority,
            allow_other_workers=allow_other_workers,
            timeout_seconds=timeout_seconds,
            key=key,
            label=label,
        )
        return WithOptions(self, options, label, key)

    def scatter(self, data: Any, *, workers: str | Iterable[str] | None = None, broadcast: bool = False) -> Any:
        """Send values to workers before tasks need them; return their futures, a list's as a list, a dict's as a dict.

        Anything else is one value. They are spread over the workers, or with `broadcast` sent to each. The client keeps
        them as long as their futures, and they must not be changed in that time.
        """
        if isinstance(data, dict):
            return dict(zip(data, self._scatter(list(data.values()), workers, broadcast), strict=True))
        if isinstance(data, list | tuple | set | frozenset):
            futures = self._scatter(list(data), workers, broadcast)
            return type(data)(futures)
        return self._scatter([data], workers, broadcast)[0]

    # ------------------------------------------------------------------ results

    def gather(self, futures: Any, *, errors: str = "raise", timeout: float | None = None) -> Any:
        """Wait for futures and return their values in the same shape: one, or nested in lists, tuples, sets and dicts.

        The first failure is raised; with errors="skip" failed ones are left out of their list, tuple, set or dict.
        After `timeout` seconds TimeoutError is raised.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f'errors must be "raise" or "skip", not {errors!r}')
        deadline = None if timeout is None else time.monotonic() + timeout
        if isinstance(futures, FutureSequence):
            values = self._results.values(self._own_numbers(futures), deadline, errors)
            return _without_skipped(values, errors)
        if type(futures) is list and set(map(type, futures)) == {Future}:
            flat = numbers_of(futures, self.id)
            if flat is not None:
                return _without_skipped(self._results.values(_as_range(flat), deadline, errors), errors)
        numbers: list[int] = []
        plan = self._plan(futures, numbers)
        return _fill(plan, iter(self._results.values(numbers, deadline, errors)))

    def cancel(self, futures: Any) -> None:
        """Stop tasks, queued or running, and all that depends on them; a task that another client wants goes on."""
        self._change(futures, self._session.cancel)

    def retry(self, futures: Any) -> None:
        """Run failed tasks again, and what failed only because of them."""
        self._change(futures, self._session.retry)

    def who_has(self, futures: Any) -> dict[str, list[str]]:
        """Which workers hold the values of futures: addresses by key."""
        wanted = list(_each(futures))
        for future in wanted:
            self._check_own(future)
        holders = self._query("who_has", [future._wanted() for future in wanted])
        return {future.key: addresses for future, addresses in zip(wanted, holders, strict=True)}

    def scheduler_info(self) -> dict[str, Any]:
        """A snapshot of the scheduler and its workers, as plain values."""
        answer = self._query("scheduler_info", None)
        return dict(answer)

    def nthreads(self) -> dict[str, int]:
        """How many slots each worker has, by its address."""
        return {address: worker["slots"] for address, worker in self.scheduler_info()["workers"].items()}

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """End the connection: all that this client wants is released, and its futures are of no use any more."""
        self._driver.close("this client was closed")
        self._pusher.close()
        self._connections.close()
        if self._own_cluster is not None:
            self._own_cluster.close()
            self._own_cluster = None

    @property
    def status(self) -> str:
        """ "running", or "closed" when the connection has ended, by `close` or otherwise."""
        return "running" if self._session.lost is None else "closed"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.name} of {self.scheduler_address}, {self.status}>"

    # ------------------------------------------------------------------ inside

    def _join(self, timeout: float) -> None:
        self._session.join()
        welcomed = self._driver.wait_until(lambda: self._session.epoch is not None, timeout)
        if not welcomed or self._session.lost is not None:
            reason = (
                self._session.lost or f"the scheduler at {self.scheduler_address} did not answer in {timeout} seconds"
            )
            self.close()
            raise ConnectionLost(reason)

    def _origin(self, label: str) -> Origin:
        origin = self._origins.get(label)
        if origin is None:
            origin = self._origins[label] = Origin(label, -1)
        return origin

    def _submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        label: str | None,
        key: str | None,
        pure: bool,
    ) -> Future:
        if key is None and pure:
            key = self._submission.pure_key(function, args, kwargs, options)
        if key is not None:
            known = self._keyed.get(key)
            future = known() if known is not None else None
            if future is not None and future.number >= 0 and future.status in ("pending", "finished"):
                return future
            options = {**options, "key": key}
        number, call = self._submission.submit(function, args, kwargs, label, options)
        if key is None:
            return Future(self, number, self._origin(call.label), self._drop)
        future = Future(self, number, Origin(call.label, -1, key), self._drop)
        self._keyed[key] = weakref.ref(future, lambda reference: self._forget_key(key, reference))
        return future

    def _forget_key(self, key: str, reference: weakref.ref[Future]) -> None:
        if self._keyed.get(key) is reference:
            self._keyed.pop(key, None)

    def _map(
        self,
        function: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        label: str | None,
    ) -> FutureSequence:
        if not iterables:
            raise TypeError("map needs at least one iterable beside the function")
        runs, call = self._submission.map(function, iterables, kwargs, label, options)
        numbers: Numbers = range(0)
        if len(runs) == 1:
            numbers = runs[0]
        elif runs:
            numbers = array("q", (number for run in runs for number in run))
        return FutureSequence(self, numbers, call.label, Holding(runs, call.label, self._drop))

    def _scatter(self, values: list[Any], workers: str | Iterable[str] | None, broadcast: bool) -> list[Future]:
        names = worker_names(workers)
        self._driver.check()
        if not values:
            return []
        sizes, contains = [], []
        for value in values:
            encoded = dumps(value, name="data")
            sizes.append(encoded.nbytes)
            contains.append([[reference[0], check_reference(reference[1])] for reference in encoded.futures])
            Inputs(self._submission).settle(encoded.futures)
        with self._driver.guard():
            first = self._submission.offer(values, sizes, contains, "broadcast" if broadcast else "spread", names)
        self._driver.send()
        origin = self._origin("scatter")
        return [Future(self, number, origin, self._drop) for number in range(first, first + len(values))]

    def _future(self, number: int, origin: Origin) -> Future:
        """One more Future of a number that a sequence holds."""
        with self._driver.guard():
            self._session.refer(number)
        return Future(self, number, origin, self._drop)

    def _bind_future(self, reference: Reference) -> Future:
        """A future that came inside a value."""
        client_id, number = reference[0], reference[1]
        label, batch, key = reference[2:] if len(reference) == 5 else ("future", -1, None)
        key = key or task_key(label, client_id, batch, number)
        with self._driver.guard():
            if client_id != self.id or not self._session.refer(number):
                number = self._session.alias([(client_id, number)])
        self._driver.send()
        return Future(self, number, Origin(label, batch, key), self._drop)

    def _status(self, number: int) -> str:
        session = self._session
        state = session.state(number)
        if state == states.FAILED:
            with self._driver.guard():
                failure = session.failures.get(number)
            return "cancelled" if failure is not None and failure.kind == "cancelled" else "error"
        if state == states.PENDING and session.lost is not None:
            return "lost"
        return _STATUS.get(state, "released")

    def _result(self, number: int, timeout: float | None) -> Any:
        return self._results.value(number, timeout)

    def _exception(self, number: int, timeout: float | None) -> BaseException | None:
        return self._results.exception(number, timeout)

    def _traceback(self, number: int, timeout: float | None) -> str | None:
        return self._results.traceback(number, timeout)

    def _add_done_callback(self, future: Future, function: Callable[[Future], object]) -> None:
        if not callable(function):
            raise TypeError(f"a function is needed, and {type(function).__name__} was given: {function!r:.100}")
        with self._driver.guard():
            if self._callback_watch is None:
                self._callback_watch = self._session.watch(set())
                self._driver.on_change = self._run_callbacks
            self._callbacks.setdefault(future.number, []).append((future, function))
            self._session.flush()
            self._session.watch_more(self._callback_watch, future.number)
            self._run_callbacks()
        self._driver.send()

    def _run_callbacks(self) -> None:
        completed = self._callback_watch.completed
        while completed:
            for number in completed.popleft():
                for future, function in self._callbacks.pop(number, ()):
                    self._driver.call_back(function, future)

    def _change(self, futures: Any, change: Callable[[list[int]], None]) -> None:
        wanted = list(_each(futures))
        for future in wanted:
            self._check_own(future)
        with self._driver.guard():
            change(sorted({future._wanted() for future in wanted}))
            self._driver.on_change()
            self._driver.wake_ready()
        self._driver.send()

    def _query(self, what: str, detail: Any) -> Any:
        session = self._session
        self._driver.check()
        with self._driver.guard():
            request = session.query(what, detail)
        self._driver.wait_until(lambda: request in session.answers)
        with self._driver.guard():
            answer = session.answers.pop(request, None)
        if not isinstance(answer, messages.Answer):
            raise ConnectionLost(session.lost or "the connection has ended")
        if answer.error:
            raise ClusterError(answer.error)
        return answer.result

    def _check_own(self, future: Any) -> None:
        if not isinstance(future, Future):
            raise TypeError(f"a Future is needed, and {type(future).__name__} was given: {future!r:.100}")
        if future._client is not self:
            raise ClusterError(f"{future.key} is a future of another client; use that client for it")
        future._wanted()

    def _plan(self, shape: Any, numbers: list[int]) -> Any:
        """The shape of nested futures: None for one, else (container, members); their numbers are gathered in order."""
        if type(shape) is Future:
            self._check_own(shape)
            numbers.append(shape.number)
            return None
        if isinstance(shape, dict):
            return dict, {key: self._plan(member, numbers) for key, member in shape.items()}
        if isinstance(shape, FutureSequence):
            own = self._own_numbers(shape)
            numbers.extend(own)
            return list, [None] * len(own)
        if isinstance(shape, Iterable) and not isinstance(shape, str | bytes):
            kind = next((kind for kind in (tuple, set, frozenset) if isinstance(shape, kind)), list)
            return kind, [self._plan(member, numbers) for member in shape]
        raise TypeError(f"gather takes futures, alone or in lists, tuples, sets and dicts, not {type(shape).__name__}")

    def _own_numbers(self, sequence: FutureSequence) -> Numbers:
        if sequence._client is not self:
            raise ClusterError("these are futures of another client; use that client for them")
        return sequence.numbers()

    def _encode_offered(self, number: int) -> Any:
        return self._submission.encode_offered(number)

    def _forget_offered(self, numbers: Any) -> None:
        self._submission.forget(numbers)

    def _pushed(self, number: int, address: str, error: str) -> None:
        with self._driver.guard():
            self._session.pushed(number, address, error)
        self._driver.send()


_clients: weakref.WeakValueDictionary[bytes, Client] = weakref.WeakValueDictionary()


def _settle(client_id: bytes) -> None:
    """If this process has that client, wait until the scheduler has got all that it sent: a future of it is named to
    the scheduler by another client, on another connection."""
    client = _clients.get(client_id)
    if client is not None and client.status == "running":
        client._query("ping", None)


class WithOptions:
    """`submit` and `map` with options chosen before; `Client.options` makes it. All keywords go to the function."""

    def __init__(self, client: Client, options: dict[str, Any], label: str | None, key: str | None) -> None:
        self._client = client
        self._options = options
        self._label = label
        self._key = key

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """As `Client.submit`."""
        return self._client._submit(function, args, kwargs, self._options, self._label, self._key, False)

    def map(self, function: Callable[..., Any], /, *iterables: Iterable[Any], **kwargs: Any) -> FutureSequence:
        """As `Client.map`."""
        return self._client._map(function, iterables, kwargs, self._options, self._label or self._key)


def _connect(address: str, secret: bytes, timeout: float, cluster: LocalClusterLike | None) -> BlockingConnection:
    try:
        return BlockingConnection.connect(address, secret, "client", ("scheduler",), timeout_seconds=timeout)
    except ClusterError as error:
        explanation = cluster.explain_failure() if cluster is not None else ""
        if explanation:
            raise ConnectionLost(explanation) from error
        raise


# --------------------------------------------------------------------------- futures in containers


def _each(futures: Any) -> Iterator[Any]:
    """Every future in a container, or the one that was given."""
    if isinstance(futures, dict):
        futures = list(futures.values())
    if isinstance(futures, list | tuple | set | frozenset):
        for each in futures:
            yield from _each(each)
    elif isinstance(futures, FutureSequence) or (not isinstance(futures, Future) and isinstance(futures, Iterable)):
        yield from futures
    else:
        yield futures


def _as_range(numbers: list[int]) -> Sequence[int]:
    """Numbers that follow one another as a range, which is faster to look up."""
    together = range(numbers[0], numbers[0] + len(numbers))
    return together if numbers[-1] == together[-1] and numbers == list(together) else numbers


def _without_skipped(values: list[Any], errors: str) -> list[Any]:
    return values if errors == "raise" else [value for value in values if value is not SKIPPED]


def _fill(plan: Any, values: Iterator[Any]) -> Any:
    """Put values where their futures were; what was skipped is left out of its container."""
    if plan is None:
        return next(values)
    kind, members = plan
    if kind is dict:
        filled = ((key, _fill(member, values)) for key, member in members.items())
        return {key: value for key, value in filled if value is not SKIPPED}
    gathered = [_fill(member, values) for member in members]
    return kind(value for value in gathered if value is not SKIPPED)
