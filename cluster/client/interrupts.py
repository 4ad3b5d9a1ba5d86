"""Holding Ctrl-C back while bytes and tables are between two states."""

from __future__ import annotations

import signal
import threading
from _signal import signal as _set_handler  # type: ignore[import-not-found]  # its wrapper costs 3 µs
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

__all__ = ["Guard", "Shield"]

_SIGINT = int(signal.SIGINT)

Result = TypeVar("Result")


class Shield:
    """Inside, Ctrl-C waits for the end of the block, or for a pause in it; a second one is let through at once.

    Only the main thread runs signal handlers, so elsewhere it does nothing. It is made for short blocks; it costs 1 µs.
    """

    __slots__ = ("_paused", "_previous", "_signalled")

    def __enter__(self) -> Shield:
        self._signalled = 0
        self._paused = False
        self._previous: Any = None
        if threading.get_ident() == threading.main_thread().ident:
            previous = _set_handler(_SIGINT, self._note)
            if callable(previous):
                self._previous = previous
            elif previous is not None:
                _set_handler(_SIGINT, previous)  # ignored, or the system's own way: nothing to hold back
        return self

    def pause(self, wait: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that waits, and that Ctrl-C may interrupt."""
        self._paused = True
        try:
            if self._signalled:
                self._previous(signal.SIGINT, None)
            return wait(*arguments)
        finally:
            self._paused = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._paused or self._signalled:
            self._signalled = 0
            self._previous(number, frame)
        else:
            self._signalled = 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is None:
            return
        _set_handler(_SIGINT, self._previous)
        if self._signalled:
            self._previous(signal.SIGINT, None)


class Guard(Shield):
    """A lock that is held, and Ctrl-C held back meanwhile: for changes that must not be left half done."""

    __slots__ = ("_lock",)

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock

    def __enter__(self) -> Guard:
        super().__enter__()
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
        super().__exit__(kind, error, traceback)
