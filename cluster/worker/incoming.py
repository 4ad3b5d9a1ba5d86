"""A shell's side of `RoomAsked`: who waits for a segment into which a value over 1 MiB is to come."""

from __future__ import annotations

from collections.abc import Callable

from cluster.worker.events import AnswerRoom, Event, RoomAsked, RoomReturned

__all__ = ["IncomingSegments"]


class IncomingSegments:
    """Asks the machine, by `feed`, and hands each answer to who asked."""

    def __init__(self, feed: Callable[[Event], None]) -> None:
        self._feed = feed
        self._asked: dict[int, Callable[[str, str], None]] = {}
        self._last_number = 0

    def ask(self, peer: int, row: int, attempt: int, nbytes: int, then: Callable[[str, str], None]) -> int:
        """Ask for a segment; `then(path, "")` or `then("", reason)` is called, perhaps at once. Gives a number for
        `withdraw`. `peer` pushes the value; -1: it is fetched."""
        self._last_number += 1
        number = self._last_number
        self._asked[number] = then
        self._feed(RoomAsked(number, peer, row, attempt, nbytes))
        return number

    def answer(self, effect: AnswerRoom) -> None:
        """The machine has decided."""
        then = self._asked.pop(effect.incoming, None)
        if then is not None:
            then(effect.path, effect.reason)
        elif effect.path:
            self.give_back(effect.path)

    def withdraw(self, number: int) -> None:
        """The value will not come; nothing happens if the answer was given."""
        if self._asked.pop(number, None) is not None:
            self._feed(RoomReturned(number, ""))

    def give_back(self, path: str) -> None:
        """The segment that was given is not needed."""
        self._feed(RoomReturned(0, path))
