"""The engine of `Client("ray://…")`: tasks run on a Ray cluster, where values stay too.

The desk keeps the graph and sends a task when its inputs are there; they are Ray's references, so data goes from node
to node. On those nodes this package has to be installed, in this version.

One thread speaks of runs to Ray. Ray tells of their ends in a thread of its own; over its client port that is the one
that takes all answers, so whoever submitted the next task there would wait for ever.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Final

from cluster.adapters.engines.nested import answer_elsewhere
from cluster.adapters.engines.protocol import Outcome, Run
from cluster.errors import ClusterError, ConnectionLost
from cluster.session.machine import Failure

__all__ = ["RayEngine"]

LOCAL: Final = "ray://local"
"""The Ray cluster that this process has joined, or else one of its own on this machine."""
UNDER_WAY: Final = 10_000
"""Runs that Ray is given at once: it has its own way to share them out."""
UNDER_WAY_INSIDE: Final = 1_000
"""The same for a task that submits others: while it waits, Ray is given all their references after each end."""


def run_on_node(
    engine_name: str, function: tuple[bytes, str, bytes], arguments: bytes, keywords: bool, *inputs: bytes
) -> tuple[tuple[Any, ...], bytes]:
    """What Ray's node runs: how it went, and the value's bytes."""
    open_engine = partial(RayEngine.inside, engine_name)
    answer = answer_elsewhere(engine_name, open_engine, function, arguments, keywords, inputs)
    if answer.kind:
        return (answer.kind, answer.data, answer.details), b""
    return (), answer.data


class RayEngine:
    """See `cluster.adapters.engines.protocol.Engine`, and `NestedEngine` for the one in a task."""

    in_caller = False
    without_effect = frozenset[str]()

    def __init__(self, name: str, *, began: bool = False, slots: int = UNDER_WAY) -> None:
        """`began`: this engine has made the connection to Ray, and ends it."""
        self.name = name
        self.slots = slots
        self._ray = import_module("ray")
        self._began = began
        self._remote = self._ray.remote(num_returns=2, max_retries=2)(run_on_node)
        self._references: dict[Run, Any] = {}
        self._changed = threading.Condition()
        self._submitting = 0
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._task_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._serve, name="cluster-ray", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, address: str | None) -> RayEngine:
        """The engine of a program, which joins the cluster unless it has."""
        if address is None:
            raise ValueError('the engine "ray" needs an address: Client("ray://local"), Client("ray://host:10001")')
        try:
            ray = import_module("ray")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{address} needs ray: install cluster-scheduler[ray]") from error
        if not ray.is_initialized():
            _join(ray, address)
            return cls(address, began=True)
        if address != LOCAL:
            raise ClusterError(
                f"{address}: this program has joined a Ray cluster already, and can join one at a time; "
                f'Client("{LOCAL}") uses that one, and ray.shutdown() leaves it'
            )
        return cls(address)

    @classmethod
    def inside(cls, name: str) -> RayEngine:
        """The engine of a task that submits others: its process has joined the cluster."""
        return cls(name, slots=UNDER_WAY_INSIDE)

    def _serve(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
            del order

    def start(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        """Submit it to Ray."""
        with self._changed:
            self._submitting += 1
        self._orders.put(lambda: self._submit(run, finish))

    def _submit(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        try:
            how, value = self._remote.remote(self.name, tuple(run.function), run.arguments, run.keywords, *run.inputs)
            ended = how.future()
        except Exception as error:  # whatever Ray raises of its own
            finish(run, Outcome(_died(error)))
            how = ended = None
        with self._changed:
            self._submitting -= 1
            if how is not None:
                self._references[run] = how
            self._changed.notify_all()
        if ended is None:
            return
        ended.add_done_callback(lambda done: self._orders.put(lambda: self._ended(run, done, value, finish)))

    def _ended(self, run: Run, done: Any, value: Any, finish: Callable[[Run, Outcome], None]) -> None:
        error = done.exception()
        if error is not None:
            finish(run, Outcome(_died(error)))
        elif done.result():
            finish(run, Outcome(Failure(*done.result())))
        else:
            finish(run, Outcome(None, value))
        # After what came of it is known: who waits for this looks then whether it was what it needs.
        with self._changed:
            self._references.pop(run, None)
            self._changed.notify_all()

    def wait_inside(self, wait: Callable[[float | None], bool], timeout: float | None) -> bool:
        """Wait in Ray's own `wait`, where alone a task gives its CPU to others; again after each run that ends."""
        if threading.get_ident() != self._task_thread:
            return wait(timeout)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not wait(0):
            with self._changed:
                while self._submitting:
                    self._changed.wait()
                references = list(self._references.values())
            left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            if not references:
                return wait(left)  # what it waits for is nothing that runs: another thread's doing, if anything's
            ended, _ = self._ray.wait(references, timeout=left, fetch_local=False)
            if not ended:
                return wait(0)
            with self._changed:
                while ended[0] in self._references.values():
                    self._changed.wait()
        return True

    def cancel(self, run: Run) -> None:
        """Have Ray stop it: one that has begun is interrupted."""
        self._orders.put(lambda: self._stop(run))

    def _stop(self, run: Run) -> None:
        reference = self._references.get(run)
        if reference is not None:
            # What Ray raises of its own is no reason to speak of no other run; this one's end is told all the same.
            with suppress(Exception):
                self._ray.cancel(reference)

    def put(self, data: bytes) -> Any:
        """A Ray reference of the bytes."""
        return self._ray.put(data)

    def fetch(self, values: Sequence[Any]) -> Sequence[bytes]:
        """The bytes, from where Ray has them."""
        try:
            found: Sequence[bytes] = self._ray.get(list(values))
        except Exception as error:  # whatever Ray raises of its own
            raise ClusterError(f"{self.name} cannot give values: {type(error).__name__}: {error}") from error
        return found

    def close(self) -> None:
        """End the connection, if it was made here; the cluster goes on."""
        self._orders.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._began:
            self._ray.shutdown()


def _join(ray: Any, address: str) -> None:
    if address == LOCAL:
        ray.init(log_to_driver=False, configure_logging=False)
        return
    try:
        ray.init(address, log_to_driver=False)
    except ConnectionError as error:
        raise ConnectionLost(
            f"no Ray cluster answers at {address}: {error} (one that asks for a token needs RAY_AUTH_MODE=token)"
        ) from error
    except (ImportError, ValueError) as error:  # it needs grpcio for its client port
        raise ClusterError(
            f"{address} cannot be joined: {error} (Ray's client port needs the extra ray[client])"
        ) from error


def _died(error: BaseException) -> Failure:
    kind = "cancelled" if type(error).__name__ == "TaskCancelledError" else "died"
    return Failure(kind, b"", {"type": type(error).__name__, "message": f"on the Ray cluster: {error}"})
