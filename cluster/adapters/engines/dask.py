"""The engine of `Client("dask://host:port")`: tasks run on the workers of a Dask cluster, where values stay too.

The desk keeps the graph and sends a task when its inputs are there; they are Dask futures, so data goes from worker to
worker. On those workers this package has to be installed, in this version.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from itertools import count
from typing import Any, Final

from cluster.adapters.engines.nested import answer_elsewhere
from cluster.adapters.engines.protocol import Outcome, Run
from cluster.errors import ClusterError, ConnectionLost
from cluster.ids import new_id
from cluster.session.machine import Failure

__all__ = ["DaskEngine"]

UNDER_WAY: Final = 10_000
"""Runs that Dask is given at once: it has its own way to share them out."""


class RunFailed(Exception):
    """How a run failed, as it comes from Dask's worker: the fields of a Failure."""

    def __str__(self) -> str:
        details: dict[str, Any] = self.args[2]
        return f"{details.get('type')}: {details.get('message')}"

    __repr__ = __str__  # Dask's worker logs this, and the pickled exception is nothing to read


def run_on_worker(
    engine_name: str, depth: int, function: tuple[bytes, str, bytes], arguments: bytes, keywords: bool, *inputs: bytes
) -> bytes:
    """What Dask's worker runs: the value's bytes, or RunFailed."""
    open_engine = partial(DaskEngine.inside, engine_name, depth)
    answer = answer_elsewhere(engine_name, open_engine, function, arguments, keywords, inputs)
    if answer.kind:
        raise RunFailed(answer.kind, answer.data, answer.details)
    return answer.data


class DaskEngine:
    """See `cluster.adapters.engines.protocol.Engine`, and `NestedEngine` for the one in a task."""

    slots = UNDER_WAY
    in_caller = False
    without_effect = frozenset[str]()

    def __init__(self, name: str, client: Any, depth: int) -> None:
        """`client` is Dask's own; `depth` is how many tasks stand above what runs here: 0 outside of tasks."""
        self.name = name
        self._client = client
        self._depth = depth
        self._distributed = import_module("distributed")
        self._thread = threading.get_ident()
        self._prefix = new_id().hex()[:8]
        self._numbers = count()  # a key that Dask has had, it answers with what came of that
        self._futures: dict[Run, Any] = {}

    @classmethod
    def connect(cls, address: str | None, timeout_seconds: float) -> DaskEngine:
        """The engine of a program: it has a connection of its own to Dask's scheduler."""
        if address is None:
            raise ValueError('the engine "dask" needs the scheduler\'s address: Client("dask://host:8786")')
        try:
            distributed = import_module("distributed")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{address} needs distributed: install cluster-scheduler[dask]") from error
        scheduler = "tcp://" + address.removeprefix("dask://")
        try:
            client = distributed.Client(scheduler, timeout=timeout_seconds, set_as_default=False)
        except OSError as error:
            raise ConnectionLost(f"no Dask scheduler answers at {scheduler}: {error}") from error
        return cls(address, client, 0)

    @classmethod
    def inside(cls, name: str, depth: int) -> DaskEngine:
        """The engine of a task that submits others: over the connection that its worker has."""
        return cls(name, import_module("distributed").get_client(), depth + 1)

    def start(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        """Submit it to Dask."""
        future = self._client.submit(
            run_on_worker,
            self.name,
            self._depth,
            tuple(run.function),
            run.arguments,
            run.keywords,
            *run.inputs,
            key=f"{run.key}-{self._prefix}-{next(self._numbers)}",
            pure=False,
            priority=self._depth,  # what a task waits for goes before others that would only come to wait, too
        )
        self._futures[run] = future
        future.add_done_callback(lambda done: self._ended(run, done, finish))

    def _ended(self, run: Run, future: Any, finish: Callable[[Run, Outcome], None]) -> None:
        self._futures.pop(run, None)
        if future.status == "finished":
            finish(run, Outcome(None, future))
            return
        error = future.exception() if future.status == "error" else None
        if isinstance(error, RunFailed):
            finish(run, Outcome(Failure(*error.args)))
        elif error is not None:
            details = {"type": type(error).__name__, "message": f"on the Dask cluster: {error}"}
            finish(run, Outcome(Failure("died", b"", details)))
        else:
            finish(run, Outcome(Failure("cancelled", b"", {"message": f"Dask has {future.status} {run.key}"})))

    def cancel(self, run: Run) -> None:
        """Have Dask forget it; one that runs goes on to its end."""
        future = self._futures.get(run)
        if future is not None:
            future.cancel()

    def put(self, data: bytes) -> Any:
        """A Dask future of the bytes, scattered to a worker."""
        return self._client.scatter(data, hash=False)

    def fetch(self, values: Sequence[Any]) -> Sequence[bytes]:
        """The bytes, gathered from Dask's workers."""
        try:
            found: Sequence[bytes] = self._client.gather(list(values))
        except Exception as error:  # whatever Dask raises of its own
            raise ClusterError(f"{self.name} cannot give values: {type(error).__name__}: {error}") from error
        return found

    def wait_inside(self, wait: Callable[[float | None], bool], timeout: float | None) -> bool:
        """Leave the worker's threads that run tasks, so that it begins another one, and come back to them."""
        if threading.get_ident() != self._thread:
            return wait(timeout)
        self._distributed.secede()
        try:
            return wait(timeout)
        finally:
            self._distributed.rejoin()

    def close(self) -> None:
        """End the connection, unless it is a worker's; the cluster goes on."""
        if not self._depth:
            self._client.close()
