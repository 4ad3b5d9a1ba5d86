"""A task in a worker of another cluster, and the client that it has there.

The task cannot reach the client that submitted it. When it asks for one, it gets a client of its own: over the same
cluster, with a desk of its own in the worker's process. That client ends with the task, and with it what the task
submitted and did not wait for; for what it has fired and forgotten the task waits at its end.

So no future passes between a task and whoever submitted it: they are of different clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn, Protocol

from cluster.adapters.engines.client import EngineClient
from cluster.adapters.engines.driver import EngineDriver
from cluster.adapters.engines.protocol import Engine, Outcome, Run
from cluster.adapters.engines.running import Answer, LoadedFunctions, answer_call
from cluster.client.core import ClientCore, client_of_task
from cluster.errors import ClusterError
from cluster.session.parts import Function
from cluster.wire.encoded import Reference
from cluster.wire.exceptions import dump_exception

__all__ = ["NestedEngine", "answer_elsewhere"]


class NestedEngine(Engine, Protocol):
    """An engine in the process, and the thread, of a task of its own."""

    def wait_inside(self, wait: Callable[[float | None], bool], timeout: float | None) -> bool:
        """Wait by `wait(timeout)`, which gives whether what was waited for has come; others have the task's slot
        meanwhile. Called in any thread: only in the task's own the slot is the task's to give."""
        ...


class NestedDriver(EngineDriver):
    """Moves what a task's own client wants."""

    _engine: NestedEngine

    def wait_until(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """As in a Driver, while others have the slot of the task that waits."""
        self.flush()
        with self.lock:
            if self.session.lost is not None or ready():
                return True
        return self._engine.wait_inside(partial(super().wait_until, ready), timeout)

    def _finish(self, run: Run, outcome: Outcome) -> None:
        super()._finish(run, outcome)
        with self.lock:
            self.wake_ready()  # the session is told nothing of the end of what was forgotten

    def finish_forgotten(self) -> None:
        """Wait for what was fired and forgotten."""
        self.wait_until(lambda: not self._desk.keeps_any())


class NestedClient(EngineClient):
    """The client of one task."""

    _is_of_a_task = True
    _driver_kind = NestedDriver
    _driver: NestedDriver

    def __init__(self, engine: NestedEngine) -> None:
        self._given_engine = engine
        super().__init__()

    def _make_engine(self) -> Engine:
        return self._given_engine

    def end(self) -> None:
        """The task has ended, and what it submitted ends with it."""
        try:
            self._driver.finish_forgotten()
        finally:
            self.close()


_functions = LoadedFunctions()


def answer_elsewhere(
    engine_name: str,
    open_engine: Callable[[], NestedEngine],
    function: tuple[bytes, str, bytes],
    arguments: bytes,
    keywords: bool,
    inputs: Sequence[bytes],
) -> Answer:
    """Make a call in a process that is not its client's; `open_engine` opens the engine there if the task submits."""
    clients: list[NestedClient] = []

    def own_client() -> ClientCore:
        if not clients:
            clients.append(NestedClient(open_engine()))
        return clients[0]

    def refuse(reference: Reference) -> NoReturn:
        raise ClusterError(
            f"a task on {engine_name} has a client of its own, and cannot use a future that lies in a value: pass the "
            "future itself as an argument"
        )

    token = client_of_task.set(own_client)
    try:
        answer = answer_call(_functions, Function(*function), arguments, keywords, inputs, refuse)
    finally:
        client_of_task.reset(token)
        for client in clients:
            client.end()
    if answer.contains:
        error = ClusterError(
            f"a task on {engine_name} has a client of its own, and cannot return its futures: return what they give"
        )
        return Answer("exception", *dump_exception(error), [])
    return answer
