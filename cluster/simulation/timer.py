"""The one timer of a process: it follows what its machine says about when it wants to be woken."""

from __future__ import annotations

from collections.abc import Callable

from cluster.simulation.clock import Clock

__all__ = ["Timer"]


class Timer:
    """Calls `wake` when the time that was last asked for has come, unless the process has ended."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._at = float("inf")
        self.ended = False

    def follow(self, when: float | None) -> None:
        """The machine wants to be woken at that time, or never."""
        if when is None or when == float("inf"):
            self._at = float("inf")
        elif when < self._at or self._at < self._clock.now:
            self._at = max(when, self._clock.now)
            self._clock.at(self._at, self._come, self._at)

    def _come(self, when: float) -> None:
        if when == self._at and not self.ended:
            self._at = float("inf")
            self._wake()
