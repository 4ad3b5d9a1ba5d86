"""Which task a thread belongs to: that of the slot, of course, and any thread that a task starts, to that task.

What a thread submits, acquires and prints is its task's. A thread is started by `threading.Thread`, also by the
standard library's pools; others (of C code) belong to nobody. A pool that outlives its task keeps threads of a task
that has ended, and those belong to nobody any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["follow_threads", "owner_of_context"]

owner_of_context: Final[ContextVar[Any]] = ContextVar("owner_of_context", default=None)
"""What stands for the run of a task, compared by identity, that started the calling code; None for none.

It may have ended. The one thread of a slot that is a process is told otherwise (`slot.Slot.owner`)."""


def follow_threads(belong: Callable[[], Callable[[], object] | None]) -> None:
    """From now on, have a thread of this process begin with what `belong` gives in the thread that starts it."""
    start = threading.Thread.start

    def start_for_task(self: threading.Thread) -> None:
        begin = belong()
        if begin is not None:
            run = self.run

            def run_for_task() -> None:
                del self.__dict__["run"]
                begin()
                run()

            self.__dict__["run"] = run_for_task
        start(self)

    threading.Thread.start = start_for_task  # type: ignore[method-assign]
