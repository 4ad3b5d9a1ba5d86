"""Virtual time: a heap of what is to happen. Whatever falls on one instant comes in an order drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

__all__ = ["BusyLoop", "Clock"]

EVENTS_AT_ONE_INSTANT = 20_000


class BusyLoop(AssertionError):
    """More happened at one instant than work can explain: something wakes itself for ever."""


class Clock:
    """Virtual time and the events to come."""

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        self.events = 0
        self._draw = random.random
        self._heap: list[tuple[float, float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0
        self._at_this_instant = 0

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action(*arguments)` at that time (now, if it has passed)."""
        self._scheduled += 1
        # The count makes the order total, so that actions are never compared.
        heappush(self._heap, (max(when, self.now), self._draw(), self._scheduled, action, arguments))

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action(*arguments)` so many seconds from now."""
        self.at(self.now + seconds, action, *arguments)

    def step(self) -> bool:
        """Let the next event happen; False when nothing is left to happen."""
        if not self._heap:
            return False
        when, _, _, action, arguments = heappop(self._heap)
        if when > self.now:
            self.now = when
            self._at_this_instant = 0
        self._at_this_instant += 1
        if self._at_this_instant > EVENTS_AT_ONE_INSTANT:
            raise BusyLoop(f"{self._at_this_instant} events at the instant {self.now}; the last is {action}{arguments}")
        self.events += 1
        action(*arguments)
        return True
