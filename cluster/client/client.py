"""The client: submits work, gets results. This face blocks, and many threads may use it at once."""

from __future__ import annotations

import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from cluster.client.actor import Actor
from cluster.client.administration import Administration
from cluster.client.collections import Collections
from cluster.client.coordination import Coordination
from cluster.client.core import current_client
from cluster.client.debugging import Debugging
from cluster.client.explanation import Explanations
from cluster.client.future import Future, FutureSequence, Holding, Origin, check_reference, numbers_of
from cluster.client.html import card
from cluster.client.inputs import Inputs
from cluster.client.interfaces import Interfaces
from cluster.client.operations import Aside, Operation, Raised
from cluster.client.options import checked_options, worker_names
from cluster.client.output import TaskOutputs
from cluster.client.progress import ProgressDisplays
from cluster.client.providers import LocalClusterLike, client_type_for
from cluster.client.results import SKIPPED
from cluster.errors import ClusterError, StoreFull
from cluster.ids import task_key
from cluster.session import table as states
from cluster.session.table import Numbers
from cluster.wire.encoded import Encoded, Reference
from cluster.wire.payload import dumps

if TYPE_CHECKING:
    from cluster.client.asynchronous import AsyncClient

__all__ = ["Actor", "Client", "WithOptions"]

_NO_OPTIONS: dict[str, Any] = {}
BYTES_KEPT_LIMIT = 256 << 20
"""Of so much data that is scattered the bytes are made once, of more twice: they may be a second copy of it."""
_IN_A_LIST = object()
"""The plan of what is gathered into a plain list."""
_STATUS = {
    states.PENDING: "pending",
    states.HERE: "finished",
    states.ELSEWHERE: "finished",
    states.OFFERED: "finished",
    states.FAILED: "error",
}


class Client(
    Administration, Collections, Coordination, Debugging, Explanations, Interfaces, TaskOutputs, ProgressDisplays
):
    """Runs functions on a cluster.

    `address` is a scheduler's ("tcp://host:port"), or a `LocalCluster`; without one it is the address in the settings,
    or a local cluster that ends with the client (at a prompt or in a notebook a later `Client()` takes it over).
    `name` is shown to people. `timeout` is how long, in seconds, to wait for the connection. `directory` is where the
    secret is, if not in the usual place. `asynchronous=True` gives an `AsyncClient`, for an asyncio event loop. Clients
    that all have work share the slots' time by `weight`: one of 2.0 gets twice as much as one of 1.0. With
    `show_output` what tasks print appears here while they run, their warnings are warnings here, and the loggers of
    this process handle what they log; of each task 1 MB at most. `Future.logs()` has it in any case.

    `engine` runs the tasks elsewhere than on a cluster: "inline" in the calling thread, one after the other, where a
    debugger stops in them; "threads" in threads of this process, "processes" in processes that end with the client,
    `slots` at a time (as many as there are cores). The addresses "dask://host:port" and "ray://host:port" are of other
    clusters. What an engine cannot do raises ClusterError.

    >>> from cluster import Client, LocalCluster
    >>> with LocalCluster(n_workers=1, slots=2) as cluster, Client(cluster) as client:
    ...     print(client.submit(pow, 2, 10).result(), client.gather(client.map(abs, [-1, -2])))
    1024 [1, 2]
    """

    _future_type: type[Future] = Future
    _sequence_type: type[FutureSequence] = FutureSequence

    @overload
    def __new__(
        cls,
        address: str | LocalClusterLike | None = ...,
        *,
        name: str | None = ...,
        timeout: float = ...,
        directory: str | Path | None = ...,
        weight: float = ...,
        show_output: bool = ...,
        asynchronous: Literal[False] = ...,
        engine: str = ...,
        slots: int | None = ...,
    ) -> Self: ...
    @overload
    def __new__(
        cls,
        address: str | LocalClusterLike | None = ...,
        *,
        name: str | None = ...,
        timeout: float = ...,
        directory: str | Path | None = ...,
        weight: float = ...,
        show_output: bool = ...,
        asynchronous: Literal[True],
    ) -> AsyncClient: ...
    def __new__(cls, *arguments: Any, asynchronous: bool = False, engine: str = "cluster", **keywords: Any) -> Any:
        """Make the face that was asked for, on the engine that was asked for."""
        address = arguments[0] if arguments else keywords.get("address")
        kind = client_type_for(engine, address, asynchronous) if cls is Client else None
        return super().__new__(kind or cls)

    @classmethod
    def current(cls) -> Self:
        """The open client of this class that this process made last; raises ClusterError if there is none."""
        client = current_client(cls.asynchronous)
        if not isinstance(client, cls):
            raise ClusterError(f"there is no open {cls.__name__} in this process; make one: {cls.__name__}()")
        return client

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
        first. What no connected worker can meet fails with Unrunnable after a minute (`unmet_request_seconds`); what
        the scheduler does not take for now (see `map`) waits in this process. With `actor`, what the function (mostly a
        class) makes stays on its worker, and the value is a handle, an `Actor`. With a `key`, or with `pure=True`,
        which makes one from the content of function and arguments, a future of the same task is returned while there is
        one that has not failed. Keywords that a function shares with this method can be given to it through
        `options()`.

        Raises SerializationError, which names the member to blame, if an argument cannot be pickled.
        """
        if workers is key is None and not (resources or retries or priority or allow_other_workers or pure or actor):
            number, call = self._submission.submit(function, args, kwargs, None, _NO_OPTIONS)
            return self._future_type(self, number, self._origin(call.label), self._drop)
        options = checked_options(
            workers=workers,
            resources=resources,
            retries=retries,
            priority=priority,
            allow_other_workers=allow_other_workers,
            key=key,
        )
        if actor:
            if pure:
                raise ValueError("an actor has a state of its own, and cannot be pure: submit it without pure=True")
            options["actor"] = True
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

        The scheduler holds 64 MiB of packed arguments for tasks that have not begun. While it does, an iterable that
        makes its items as it goes, a generator say, is not asked for more: `map` waits then for tasks to begin, and
        needs no more memory than that. What comes from lists, tuples and ranges is packed at once, and what is more
        than the scheduler takes waits in this process.
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
        memory: str | int | None = None,
        copy: bool = False,
    ) -> WithOptions:
        """Give `submit` and `map` with these options, where all keywords go to the function.

        Besides the options of `submit`: `timeout_seconds`, after which a task that runs is stopped and fails with
        TaskTimeout, `label`, the name of the tasks for people, and `copy`: take a snapshot of arguments over 64 KiB at
        the call, kept here until their tasks have ended. Without it they must not be changed so long; a task whose
        argument was changed fails.

        `memory` is what one task needs while it runs, its result included, in bytes or as text ("2GB"); so many start
        on a worker as its memory has room for, and a single one always. Left out, it is learned from the results.
        """
        if not isinstance(copy, bool):
            raise TypeError(f"copy must be True or False, not {copy!r:.100}")
        options = checked_options(
            workers=workers,
            resources=resources,
            retries=retries,
            priority=priority,
            allow_other_workers=allow_other_workers,
            timeout_seconds=timeout_seconds,
            memory=memory,
            key=key,
            label=label,
        )
        return WithOptions(self, options, label, key, copy)

    def scatter(self, data: Any, *, workers: str | Iterable[str] | None = None, broadcast: bool = False) -> Any:
        """Send values to workers before tasks need them; return their futures, a list's as a list, a dict's as a dict.

        Anything else is one value. They are spread over the workers, or with `broadcast` sent to each, and are there
        when this returns; while no worker is connected, they are sent when a task needs them. The client keeps them as
        long as their futures, and they must not be changed in that time.

        Raises ClusterError if a value cannot be sent to a worker, or `workers` names one that is not connected.
        """
        return self._complete(self._scattering(data, worker_names(workers), broadcast))

    # ------------------------------------------------------------------ results

    def gather(self, futures: Any, *, errors: str = "raise", timeout: float | None = None) -> Any:
        """Wait for futures and return their values in the same shape: one, or nested in lists, tuples, sets and dicts.

        The first failure is raised; with errors="skip" failed ones are left out of their list, tuple, set or dict.
        After `timeout` seconds TimeoutError is raised.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f'errors must be "raise" or "skip", not {errors!r}')
        deadline = None if timeout is None else time.monotonic() + timeout
        numbers: Sequence[int] | None = None
        plan: Any = _IN_A_LIST
        if isinstance(futures, FutureSequence):
            numbers = self._own_numbers(futures)
        elif type(futures) is list and set(map(type, futures)) == {self._future_type}:
            flat = numbers_of(futures, self.id)
            numbers = None if flat is None else _as_range(flat)
        if numbers is None:
            numbers = []
            plan = self._plan(futures, numbers)
        return self._complete_for(numbers, self._gathering(futures, plan, numbers, deadline, errors))

    def cancel(self, futures: Any) -> None:
        """Stop tasks, queued or running, and all that depends on them; a task that another client wants goes on."""
        self._change(futures, self._session.cancel)

    def retry(self, futures: Any) -> None:
        """Run failed tasks again, and what failed only because of them."""
        self._change(futures, self._session.retry)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} of {self.scheduler_address}, {self.status}>"

    def _repr_html_(self) -> str:
        facts = [("name", self.name), ("scheduler", self.scheduler_address), ("status", self.status)]
        if self._own_cluster is not None:
            facts.append(("cluster", "on this machine, ends with this client"))
        return card(type(self).__name__, facts)

    # ------------------------------------------------------------------ inside

    def _possible(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of tasks that mean something where these run."""
        return options

    def _submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        label: str | None,
        key: str | None,
        pure: bool,
        copies: bool = False,
    ) -> Future:
        options = self._possible(options)
        if key is None and pure:
            key = self._submission.pure_key(function, args, kwargs, options)
        if key is not None:
            known = self._keyed.get(key)
            future = known() if known is not None else None
            if future is not None and future.number >= 0 and future.status in ("pending", "finished"):
                return future
            options = {**options, "key": key}
        number, call = self._submission.submit(function, args, kwargs, label, options, copies)
        if key is None:
            return self._future_type(self, number, self._origin(call.label), self._drop)
        future = self._future_type(self, number, Origin(call.label, -1, key), self._drop)
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
        copies: bool = False,
    ) -> FutureSequence:
        if not iterables:
            raise TypeError("map needs at least one iterable beside the function")
        mapping = self._submission.map(function, iterables, kwargs, label, self._possible(options), copies)
        runs, call = self._complete_at_once(mapping)
        numbers: Numbers = range(0)
        if len(runs) == 1:
            numbers = runs[0]
        elif runs:
            numbers = array("q", (number for run in runs for number in run))
        return self._sequence_type(self, numbers, call.label, Holding(runs, call.label, self._drop))

    def _gathering(
        self, futures: Any, plan: Any, numbers: Sequence[int], deadline: float | None, errors: str
    ) -> Operation[Any]:
        """`futures` are kept meanwhile, and with them what they stand for."""
        values = yield from self._results.values(numbers, deadline, errors)
        if isinstance(values, Raised):
            return values
        if plan is not _IN_A_LIST:
            return _fill(plan, iter(values))
        return values if errors == "raise" else [value for value in values if value is not SKIPPED]

    def _scattering(self, data: Any, names: Sequence[str], broadcast: bool) -> Operation[Any]:
        if isinstance(data, dict):
            futures = yield from self._offering(list(data.values()), names, broadcast)
            return dict(zip(data, futures, strict=True))
        if isinstance(data, list | tuple | set | frozenset):
            futures = yield from self._offering(list(data), names, broadcast)
            return type(data)(futures)
        futures = yield from self._offering([data], names, broadcast)
        return futures[0]

    def _offering(self, values: list[Any], names: Sequence[str], broadcast: bool) -> Operation[list[Future]]:
        self._driver.check()
        if not values:
            return []
        encoded, sizes, contains = yield Aside(partial(self._encode, values))
        with self._driver.guard():
            first = self._submission.offer(values, sizes, contains, "broadcast" if broadcast else "spread", names)
            self._submission.keep_bytes(first, encoded)
        origin = self._origin("scatter")
        numbers = range(first, first + len(values))
        futures = [self._future_type(self, number, origin, self._drop) for number in numbers]
        try:
            no_room = yield from self._ask("scattered", [first, len(values), list(names)])
        finally:
            self._submission.drop_bytes(numbers)
        if no_room:
            raise StoreFull(no_room)
        return futures

    def _encode(self, values: list[Any]) -> tuple[list[Encoded | None], list[int], list[list[Any]]]:
        """The values' bytes, as far as they may be kept, how large they are, and which futures lie inside each."""
        kept: list[Encoded | None] = []
        sizes, contains = [], []
        total = 0
        for value in values:
            encoded = dumps(value, name="data")
            sizes.append(encoded.nbytes)
            total += encoded.nbytes
            contains.append([[reference[0], check_reference(reference[1])] for reference in encoded.futures])
            Inputs(self._submission).settle(encoded.futures)
            kept.append(encoded if total <= BYTES_KEPT_LIMIT else None)
        return kept, sizes, contains

    def _future(self, number: int, origin: Origin) -> Future:
        """One more Future of a number that a sequence holds."""
        with self._driver.guard():
            self._session.refer(number)
        return self._future_type(self, number, origin, self._drop)

    def _bind_future(self, reference: Reference) -> Future:
        """A future that came inside a value."""
        client_id, number = reference[0], reference[1]
        label, batch, key = reference[2:] if len(reference) == 5 else ("future", -1, None)
        key = key or task_key(label, client_id, batch, number)
        submitted = None if client_id == self.id else (client_id, number)
        with self._driver.guard():
            if client_id != self.id or not self._session.refer(number):
                number = self._session.alias([(client_id, number)])
        self._driver.send()
        return self._future_type(self, number, Origin(label, batch, key, submitted), self._drop)

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
        return self._complete_for((number,), self._results.value(number, timeout))

    def _exception(self, number: int, timeout: float | None) -> BaseException | None:
        return self._complete(self._results.exception(number, timeout))

    def _traceback(self, number: int, timeout: float | None) -> str | None:
        return self._complete(self._results.traceback(number, timeout))

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

    def _plan(self, shape: Any, numbers: list[int]) -> Any:
        """The shape of nested futures: None for one, else (container, members); their numbers are gathered in order."""
        if isinstance(shape, Future):
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


class WithOptions:
    """`submit` and `map` with options chosen before; `Client.options` makes it. All keywords go to the function."""

    def __init__(
        self, client: Client, options: dict[str, Any], label: str | None, key: str | None, copies: bool
    ) -> None:
        self._client = client
        self._options = options
        self._label = label
        self._key = key
        self._copies = copies

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """As `Client.submit`."""
        return self._client._submit(function, args, kwargs, self._options, self._label, self._key, False, self._copies)

    def map(self, function: Callable[..., Any], /, *iterables: Iterable[Any], **kwargs: Any) -> FutureSequence:
        """As `Client.map`."""
        label = self._label or self._key
        return self._client._map(function, iterables, kwargs, self._options, label, self._copies)


# --------------------------------------------------------------------------- futures in containers


def _as_range(numbers: list[int]) -> Sequence[int]:
    """Numbers that follow one another as a range, which is faster to look up."""
    together = range(numbers[0], numbers[0] + len(numbers))
    return together if numbers[-1] == together[-1] and numbers == list(together) else numbers


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
