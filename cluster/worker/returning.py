"""Values on disk that somebody needs: compared, or read from their packs, first; who needs them waits for that.

A task waits for all that it takes. A peer gets its answers in the order in which it asked, so one that has to wait
holds up those behind it. Small values are read for a peer so many at once, and the next when it has taken these: what
it does not read must not fill the memory that they had left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from cluster.worker.events import NoteSent
from cluster.worker.fetching import Want
from cluster.worker.ledger import Ledger
from cluster.worker.packing import Packing
from cluster.worker.spilling import Spilling
from cluster.worker.values import Values, value_name

__all__ = ["Returning"]

Answer: TypeAlias = Callable[[int, bytes | None], None]
"""Answers a peer with the value of that key, or these bytes of it."""

# Read ahead for a peer, of so many values that it asks for: enough that a disk is not waited for with each, and little
# for an agent with many peers.
_AHEAD_BYTES: Final = 2 << 20
_AHEAD_VALUES: Final = 1024


# Answered in one step of the agent's loop, which takes 2 to 3 ms; more when they have left.
_ANSWERS_A_STEP: Final = 512


class _Question(NamedTuple):
    keys: list[int]
    answer: Answer


class _Line:
    """What a peer has asked for and was not given, oldest first."""

    __slots__ = ("brought", "position", "questions", "reading", "unsent")

    def __init__(self) -> None:
        self.questions: deque[_Question] = deque()
        self.position = 0  # in the first
        self.reading = 0  # answers of the disk that are due
        self.brought: dict[int, bytes] = {}  # what was read
        self.unsent = False  # something that was read was given to it, and may not have left


class Returning:
    """Who waits for values that are being compared, or read."""

    def __init__(self, ledger: Ledger, values: Values, spilling: Spilling, packing: Packing, own_address: str) -> None:
        self._ledger = ledger
        self._values = values
        self._spilling = spilling
        self._packing = packing
        self._own_address = own_address
        self._wants: dict[int, Want] = {}
        self._lines: dict[int, _Line] = {}  # by peer
        self._pausing: set[int] = set()  # peers that have to take what they were given first

    # ------------------------------------------------------------------ tasks

    def is_away(self, key: int, now: float) -> bool:
        """Whether a value that is held cannot be used as it is."""
        if self._values.is_packed(key):
            return True
        return self._spilling.any and self._spilling.is_unchecked(key, now)

    def want(self, key: int, nbytes: int) -> Want:
        """A task needs that value."""
        want = self._wants.get(key)
        if want is None:
            want = self._wants[key] = Want(*value_name(key), nbytes)
            want.address = self._own_address
            if self._values.is_packed(key):
                self._packing.want(key)
            else:
                self._spilling.check(key)
        return want

    def find(self, key: int) -> Want | None:
        """Who waits for that value."""
        return self._wants.get(key)

    def take(self, key: int) -> Want | None:
        """It may be used, or is no more: nobody waits for that any longer."""
        return self._wants.pop(key, None)

    @property
    def any_wanted(self) -> bool:
        """Whether tasks wait."""
        return bool(self._wants)

    # ------------------------------------------------------------------ peers

    def answer(self, peer: int, keys: list[int], answer: Answer, now: float) -> None:
        """Answer a peer that asks for values, in its turn, as soon as each may be used."""
        line = self._lines.get(peer)
        if line is None:
            if len(keys) <= _ANSWERS_A_STEP and not (self._spilling.any or self._packing.any):
                for key in keys:
                    answer(key, None)
                return
            line = self._lines[peer] = _Line()
        line.questions.append(_Question(keys, answer))
        self._go_on(peer, line, now)

    def brought(self, peer: int, found: dict[int, bytes], now: float) -> None:
        """Values were read for a peer."""
        line = self._lines.get(peer)
        if line is not None:
            line.reading -= 1
            line.brought.update(found)
            self._go_on(peer, line, now)

    def sent(self, peer: int, now: float, *, gone: bool) -> None:
        """A peer has taken all that it was given; or it has gone."""
        self._pausing.discard(peer)
        line = self._lines.get(peer)
        if line is None:
            return
        if gone:
            del self._lines[peer]
            return
        line.unsent = False
        self._go_on(peer, line, now)

    def go_on(self, now: float) -> None:
        """A value was compared: answer those who waited for it."""
        for peer, line in list(self._lines.items()):
            self._go_on(peer, line, now)

    def _go_on(self, peer: int, line: _Line, now: float) -> None:
        if peer in self._pausing:
            return
        answered = 0
        while line.questions:
            keys, answer = line.questions[0]
            while line.position < len(keys):
                key = keys[line.position]
                if answered == _ANSWERS_A_STEP:
                    self._pause(peer)
                    return
                value = line.brought.pop(key, None)
                if value is not None:
                    line.unsent = True
                elif self._values.is_packed(key):
                    if not line.reading:
                        self._read_ahead(peer, line)
                    return
                elif self._spilling.is_unchecked(key, now):
                    self._spilling.check(key)
                    return
                answered += 1
                line.position += 1
                answer(key, value)
            line.questions.popleft()
            line.position = 0
        line.brought.clear()  # what came into memory otherwise meanwhile
        if not line.reading:
            del self._lines[peer]

    def _pause(self, peer: int) -> None:
        """Go on when the peer has taken what it was given."""
        self._pausing.add(peer)
        self._ledger.effects.append(NoteSent(peer))

    def _read_ahead(self, peer: int, line: _Line) -> None:
        if line.unsent:
            self._pause(peer)
            return
        keys = islice(line.questions[0].keys, line.position, line.position + _AHEAD_VALUES)
        line.reading = self._packing.read(keys, peer, _AHEAD_BYTES)
