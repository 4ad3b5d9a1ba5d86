"""Spilled values that somebody needs: they are compared first, and who needs them waits for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from cluster.worker.fetching import Want
from cluster.worker.spilling import Spilling
from cluster.worker.values import value_name

__all__ = ["Returning"]

Answer: TypeAlias = tuple[int, Callable[[], None]]  # the value's key, and what answers the peer


class Returning:
    """Who waits for values that are being compared."""

    def __init__(self, spilling: Spilling, own_address: str) -> None:
        self._spilling = spilling
        self._own_address = own_address
        self._wants: dict[int, Want] = {}
        self._answers: dict[int, deque[Answer]] = {}  # by peer, in the order in which they were asked for

    def want(self, key: int, nbytes: int) -> Want:
        """A task needs that value."""
        want = self._wants.get(key)
        if want is None:
            want = self._wants[key] = Want(*value_name(key), nbytes)
            want.address = self._own_address
            self._spilling.check(key)
        return want

    def find(self, key: int) -> Want | None:
        """Who waits for that value."""
        return self._wants.get(key)

    def take(self, key: int) -> Want | None:
        """It was compared, or is no more: nobody waits for that any longer."""
        return self._wants.pop(key, None)

    def answer(self, peer: int, key: int, answer: Callable[[], None], now: float) -> None:
        """Answer a peer, in its turn, when that value may be used."""
        line = self._answers.get(peer)
        is_unchecked = self._spilling.is_unchecked(key, now)
        if line is None and not is_unchecked:
            answer()
            return
        if line is None:
            line = self._answers[peer] = deque()
        line.append((key, answer))
        if is_unchecked:
            self._spilling.check(key)

    def go_on(self, now: float) -> None:
        """A value was compared: answer those who waited for it."""
        for peer, line in list(self._answers.items()):
            while line and not self._spilling.is_unchecked(line[0][0], now):
                line.popleft()[1]()
            if not line:
                del self._answers[peer]
            else:
                self._spilling.check(line[0][0])
