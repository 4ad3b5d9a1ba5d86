"""What is sent while one thing is being handled leaves when it has been handled, without another turn of the loop.

A loop's `call_soon` would do the same one turn later, and a turn costs two system calls and some 30 µs, which a round
trip through three processes pays six times. So whoever handles something (bytes that came, a timer, a slot's reports)
opens a step; what is put into connections meanwhile is flushed when the outermost step ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

__all__ = ["SendingStep"]


class SendingStep:
    """The steps of one loop; `of` gives it. Use it with `with`; steps may be nested."""

    __slots__ = ("_depth", "_due")

    def __init__(self) -> None:
        self._depth = 0
        self._due: list[Callable[[], None]] = []

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> SendingStep:
        """The loop's one object."""
        step = _steps.get(loop)
        if step is None:
            step = _steps[loop] = SendingStep()
        return step

    def at_its_end(self, flush: Callable[[], None]) -> bool:
        """Have `flush` called when the step ends; False when none is open."""
        if not self._depth:
            return False
        self._due.append(flush)
        return True

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            while self._due:
                self._due.pop(0)()


_steps: WeakKeyDictionary[asyncio.AbstractEventLoop, SendingStep] = WeakKeyDictionary()
