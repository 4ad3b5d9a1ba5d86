"""The engine "inline": each task runs in the thread that submits it, in order, so that a debugger stops in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.adapters.engines.protocol import Outcome, Run
from cluster.adapters.engines.running import RunHere
from cluster.client.core import ClientCore

__all__ = ["InlineEngine"]


class InlineEngine:
    """See `cluster.adapters.engines.protocol.Engine`."""

    name = "inline"
    slots = 1
    in_caller = True
    # One task at a time, all in one place: resources are never short. And nobody waits while one looks at a breakpoint.
    without_effect = frozenset(("allow_other_workers", "resources", "timeout_seconds", "workers"))

    def __init__(self, client: ClientCore, slots: int | None) -> None:
        if slots not in (None, 1):
            raise ValueError(f'the engine "inline" runs one task at a time, not {slots}; engine="threads" runs several')
        self.here = RunHere(self.name, client)

    def start(self, run: Run, finish: Callable[[Run, Outcome], None]) -> None:
        """Run it now, and here."""
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
