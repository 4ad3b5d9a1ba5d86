"""The engine "inline": each task runs in the thread that submits it, in order, so that a debugger stops in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from cluster.adapters.engines.protocol import Outcome, Run
from cluster.adapters.engines.running import RunHere
from cluster.client.core import ClientCore
from cluster.session.machine import Failure
from cluster.wire.exceptions import dump_exception

__all__ = ["InlineEngine"]

FRAMES_NEEDED: Final = 250
"""A task that began with fewer could be stopped by the recursion limit inside our own code."""


class InlineEngine:
    """See `cluster.adapters.engines.protocol.Engine`."""

    name = "inline"
    slots = 1
    in_caller = True
    # One task at a time, all in one place: resources are never short. And nobody waits while one looks at a breakpoint.
    without_effect = frozenset(("allow_other_workers", "memory_bytes", "resources", "timeout_seconds", "workers"))

    def __init__(self, client: ClientCore, slots: int | None) -> None:
        if slots not in (None, 1):
            raise ValueError(f'the engine "inline" runs one task at a time, not {slots}; engine="threads" runs several')
        self.here = RunHere(self.name, client)

    def start(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        """Run it now, and here."""
        if run.depth and _frames_left() < FRAMES_NEEDED:
            message = (
                f"{run.key} is {run.depth} tasks deep, each inside the one that submitted it, and Python's stack has "
                'no room for more: sys.setrecursionlimit gives it more, and engine="threads" needs none'
            )
            data, details = dump_exception(RecursionError(message))
            finish(run, Outcome(Failure("exception", data, details)))
            return
        finish(run, self.here.outcome(run, in_caller=True))

    def cancel(self, run: Run) -> None:
        """Nothing: what runs is below whoever cancels it."""

    def put(self, data: bytes) -> Any:
        """The bytes themselves."""
        return data

    def fetch(self, values: Sequence[Any]) -> Sequence[bytes]:
        """The bytes themselves."""
        return values

    def close(self) -> None:
        """Let go of the last failure's frames."""
        self.here.last_failure = "", None


def _frames_left() -> int:
    """How many frames Python's recursion limit still allows here."""
    frame, used = sys._getframe(), 0
    while frame.f_back is not None:
        frame, used = frame.f_back, used + 1
    return sys.getrecursionlimit() - used
