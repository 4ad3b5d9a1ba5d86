"""The engine "threads": tasks run in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from cluster.adapters.engines.protocol import Outcome, Run
from cluster.adapters.engines.running import RunHere
from cluster.client.core import ClientCore

__all__ = ["ThreadsEngine"]


class ThreadsEngine:
    """See `cluster.adapters.engines.protocol.Engine`.

    A task that waits keeps its thread, and another runs in its slot: so there are more threads than slots then. Threads
    that have nothing to run are kept for the next.
    """

    name = "threads"
    in_caller = False
    without_effect = frozenset[str]()

    def __init__(self, client: ClientCore, slots: int) -> None:
        self.slots = slots
        self._here = RunHere(self.name, client)
        self._lock = threading.Lock()
        self._idle = 0
        self._closed = False
        self._begun: SimpleQueue[tuple[Run, Callable[[Run, Outcome], None]] | None] = SimpleQueue()

    def start(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        """Give it to a thread that is idle, or to a new one."""
        with self._lock:
            needed = not self._idle
            self._idle -= not needed
        self._begun.put((run, finish))
        if needed:
            threading.Thread(target=self._serve, name="cluster-task", daemon=True).start()

    def _serve(self) -> None:
        while (begun := self._begun.get()) is not None:
            run, finish = begun
            del begun
            outcome = self._here.outcome(run)
            with self._lock:
                if self._closed:
                    return
                self._idle += 1
            finish(run, outcome)
            del run, finish, outcome

    def cancel(self, run: Run) -> None:
        """Nothing: a thread cannot be stopped. The task may look at `cluster.current().cancelled`."""

    def put(self, data: bytes) -> Any:
        """The bytes themselves."""
        return data

    def fetch(self, values: Sequence[Any]) -> Sequence[bytes]:
        """The bytes themselves."""
        return values

    def close(self) -> None:
        """Let idle threads end; one that runs a task ends with it."""
        with self._lock:
            self._closed = True
            idle = self._idle
        for _ in range(idle):
            self._begun.put(None)
