"""What a client is about to send, in order, and what it keeps back while the scheduler has enough of its arguments.

The scheduler holds at most `limit_bytes` of a client's arguments for tasks that were never granted. What would go
beyond stays here, and so does everything after it that must not overtake it; the scheduler tells by ArgumentsTaken how
much has left it.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from cluster.session.table import runs_of
from cluster.wire import messages

__all__ = ["ARGUMENTS_LIMIT_BYTES", "Outbox"]

ARGUMENTS_LIMIT_BYTES = 64 << 20
RUNS_PER_MESSAGE = 4096
"""One message names no more runs of numbers: the scheduler notes all of them in one step of its loop."""

_OF_RUNS: Final = frozenset(
    (messages.Release, messages.Await, messages.Keep, messages.Cancel, messages.Retry)
)  # what names numbers and is answered by no message of its own
# What may name any number that has left: its release must not overtake that.
_NAMING: Final = frozenset((messages.Query, messages.Offer, messages.Retry))


class Outbox:
    """Messages to the scheduler. `cancelled(first, count)` gives the runs of those numbers that were cancelled."""

    def __init__(self, limit_bytes: int, cancelled: Callable[[int, int], list[int]]) -> None:
        self._limit_bytes = limit_bytes
        self._cancelled = cancelled
        self._ready: list[Any] = []
        self._kept: deque[Any] = deque()  # the first one is a Submit
        self._needed: Counter[int] = Counter()  # inputs of tasks that are kept back
        self._questions = 0  # kept back, which may name any number
        self._releases: list[messages.Release] = []  # kept back, not looked at yet for what may go ahead
        self._last_messages: list[Any] | None = None  # from the Leave on: what was to be sent until then
        self._sent_bytes = 0
        self._taken_bytes = 0

    @property
    def keeps_back(self) -> bool:
        """Whether something is kept back."""
        return bool(self._kept)

    @property
    def has_ready(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._ready)

    @property
    def has_room(self) -> bool:
        """Whether a further part would leave at once."""
        return not self._kept and self._sent_bytes - self._taken_bytes < self._limit_bytes

    @property
    def first_kept(self) -> int:
        """The number of the first task that is kept back, if something is."""
        number: int = self._kept[0].first
        return number

    @property
    def last(self) -> Any:
        """The last message that was added in order; None when it may have left."""
        if self._kept:
            last = self._kept[-1]
            if type(last) is messages.Release and not (self._releases and self._releases[-1] is last):
                self._releases.append(last)  # somebody is about to add to it
            return last
        return self._ready[-1] if self._ready else None

    def drop_last(self) -> None:
        """Take that message out again."""
        (self._kept or self._ready).pop()

    def add(self, message: Any) -> None:
        """Send a message after all that was added before it."""
        if self._kept or (type(message) is messages.Submit and not self._fits(message)):
            self._keep_back(message)
        elif type(message) is messages.Submit:
            self._send_part(message)
        else:
            self._ready.append(message)

    def add_ahead(self, message: Any) -> None:
        """Send a message before what is kept back."""
        self._ready.append(message)

    def add_twice(self, message: Any) -> None:
        """Send what does no harm when it comes twice: at once for what has left, and after what is kept back."""
        if self._kept:
            self._keep_back(message)
        self._ready.append(message)

    def taken(self, total_bytes: int) -> None:
        """The scheduler has granted tasks with so many bytes of arguments, all in all, or needs them no more."""
        self._taken_bytes = max(self._taken_bytes, total_bytes)
        kept = self._kept
        while kept and (type(kept[0]) is not messages.Submit or self._fits(kept[0])):
            message = kept.popleft()
            self._no_longer_needed(message)
            if type(message) is not messages.Submit:
                self._ready.append(message)
                continue
            self._send_part(message)
            # Its own cancel may stand far behind: nobody wants it to run until then.
            runs = self._cancelled(message.first, message.count)
            if runs:
                self._ready.append(messages.Cancel(runs))
        self._releases = [message for message in kept if type(message) is messages.Release]

    def forget_kept(self) -> None:
        """Nothing of what is kept back will ever leave."""
        self._kept.clear()
        self._needed.clear()
        self._releases.clear()
        self._questions = 0

    def leave(self) -> None:
        """Send a Leave after what is not kept back, and nothing more: to the scheduler the peer is a stranger then."""
        self.forget_kept()
        self._last_messages = [*self._ready, messages.Leave()]

    def take(self) -> list[Any]:
        """Give what is to be sent now, in order."""
        if self._releases:
            self._let_releases_ahead()
        ready = self._ready if self._last_messages is None else self._last_messages
        if not ready:
            return ready
        self._ready = []
        if self._last_messages is not None:
            self._last_messages = []
        if any(type(message) in _OF_RUNS and len(message.runs) > 2 * RUNS_PER_MESSAGE for message in ready):
            return [piece for message in ready for piece in _pieces(message)]
        return ready

    def _keep_back(self, message: Any) -> None:
        self._kept.append(message)
        if type(message) is messages.Submit:
            self._needed.update(array("q", message.dependencies))
        elif type(message) in _NAMING:
            self._questions += 1
        elif type(message) is messages.Release:
            self._releases.append(message)

    def _no_longer_needed(self, message: Any) -> None:
        if type(message) is messages.Submit and message.dependencies:
            needed, inputs = self._needed, array("q", message.dependencies)
            needed.subtract(inputs)
            for number in inputs:
                if number in needed and not needed[number]:
                    del needed[number]
        elif type(message) in _NAMING:
            self._questions -= 1

    def _let_releases_ahead(self) -> None:
        """What has left and nothing kept back takes as input is released at once: it may be what takes the room."""
        if self._questions:
            return
        releases, self._releases = self._releases, []
        if not self._kept:
            return
        needed, first_kept = self._needed, self.first_kept
        for release in releases:
            going: list[int] = []
            staying: list[int] = []
            for position in range(0, len(release.runs), 2):
                for number in range(release.runs[position], release.runs[position] + release.runs[position + 1]):
                    (staying if number >= first_kept or needed[number] > 0 else going).append(number)
            if going:
                release.runs[:] = runs_of(staying)
                self._ready.append(messages.Release(runs_of(going)))

    def _fits(self, message: messages.Submit) -> bool:
        waiting = self._sent_bytes - self._taken_bytes
        return not waiting or waiting + len(message.blob) <= self._limit_bytes

    def _send_part(self, message: messages.Submit) -> None:
        self._sent_bytes += len(message.blob)
        self._ready.append(message)


def _pieces(message: Any) -> Iterator[Any]:
    if type(message) not in _OF_RUNS:
        yield message
        return
    for start in range(0, len(message.runs), 2 * RUNS_PER_MESSAGE):
        yield type(message)(message.runs[start : start + 2 * RUNS_PER_MESSAGE])
