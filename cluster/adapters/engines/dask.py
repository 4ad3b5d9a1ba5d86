"""The engine of `Client("dask://host:port")`: tasks run on the workers of a Dask cluster, where values stay too.

The desk keeps the graph and sends a task when its inputs are there; they are Dask futures, so data goes from worker to
worker. On those workers this package has to be installed, in this version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import count
from typing import Any, Final

from cluster.adapters.engines.protocol import Outcome, Run
from cluster.adapters.engines.running import answer_elsewhere
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
    engine_name: str, function: tuple[bytes, str, bytes], arguments: bytes, keywords: bool, *inputs: bytes
) -> bytes:
    """What Dask's worker runs: the value's bytes, or RunFailed."""
    answer = answer_elsewhere(engine_name, function, arguments, keywords, inputs)
    if answer.kind:
        raise RunFailed(answer.kind, answer.data, answer.details)
    return answer.data


class DaskEngine:
    """See `cluster.adapters.engines.protocol.Engine`."""

    slots = UNDER_WAY
    in_caller = False
    without_effect = frozenset[str]()

    def __init__(self, address: str | None, timeout_seconds: float) -> None:
        if address is None:
            raise ValueError('the engine "dask" needs the scheduler\'s address: Client("dask://host:8786")')
        self.name = address
        try:
            self._distributed = import_module("distributed")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{address} needs distributed: install cluster-scheduler[dask]") from error
        scheduler = "tcp://" + address.removeprefix("dask://")
        try:
            self._client = self._distributed.Client(scheduler, timeout=timeout_seconds, set_as_default=False)
        except OSError as error:
            raise ConnectionLost(f"no Dask scheduler answers at {scheduler}: {error}") from error
        self._prefix = new_id().hex()[:8]
        self._numbers = count()  # a key that Dask has had, it answers with what came of that
        self._futures: dict[Run, Any] = {}

    def start(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        """Submit it to Dask."""
        future = self._client.submit(
            run_on_worker,
            self.name,
            tuple(run.function),
            run.arguments,
            run.keywords,
            *run.inputs,
            key=f"{run.key}-{self._prefix}-{next(self._numbers)}",
            pure=False,
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

    def close(self) -> None:
        """End the connection; the cluster goes on."""
        self._client.close()
