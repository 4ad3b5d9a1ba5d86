"""The engine over Ray, with a Ray that fails when it likes."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.adapters.engines.protocol import Outcome, Run
from cluster.adapters.engines.ray import RayEngine
from cluster.session.parts import Function


class FailingRay:
    """What the engine calls of Ray; a stopped task cannot be stopped."""

    def __init__(self) -> None:
        self.ends: SimpleQueue[Future[Any]] = SimpleQueue()
        self.stopped: SimpleQueue[Any] = SimpleQueue()

    def is_initialized(self) -> bool:
        return True

    def remote(self, **options: Any) -> Any:
        return lambda function: SimpleNamespace(remote=self._submit)

    def _submit(self, *arguments: Any) -> Any:
        end: Future[Any] = Future()
        self.ends.put(end)
        return SimpleNamespace(future=lambda: end), "a reference"

    def cancel(self, reference: Any) -> None:
        self.stopped.put(reference)
        raise ConnectionError("the connection has failed")


def test_a_task_that_ray_cannot_stop_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FailingRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    engine = RayEngine("ray://local")
    finished: SimpleQueue[Outcome] = SimpleQueue()
    runs = [Run(f"task-{number}", Function(b"", "", b""), b"", False, [], 1, 0) for number in range(2)]
    engine.start(runs[0], lambda run, outcome: finished.put(outcome))
    first = ray.ends.get(timeout=10)
    engine.cancel(runs[0])
    ray.stopped.get(timeout=10)
    engine.start(runs[1], lambda run, outcome: finished.put(outcome))
    for end in (first, ray.ends.get(timeout=10)):
        end.set_result(None)
        assert finished.get(timeout=10) == Outcome(None, "a reference")
    engine.close()
