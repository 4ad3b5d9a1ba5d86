"""Connections: what is sent on one arrives in order and late; nothing is said about the order across connections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from cluster.simulation.clock import Clock
from cluster.wire import frames

__all__ = ["Connection", "Link", "Network"]

Receive = Callable[[Any], None]

BYTES_PER_SECOND = 1e9


class Network:
    """Delays, and whether messages are taken through their frames."""

    def __init__(
        self, clock: Clock, random: Random, shortest: float, longest: float, framed: bool, repeats: float
    ) -> None:
        self.clock = clock
        self.random = random
        self.longest = longest
        self._shortest = shortest
        self._framed = framed
        self._repeats = repeats

    def delay(self) -> float:
        """How long the next message takes, mostly short and sometimes long."""
        share = self.random.random()
        return self._shortest + (self.longest - self._shortest) * share * share * share

    def copies(self) -> int:
        """How often the next message arrives where it may come twice."""
        return 1 + (self._repeats > 0.0 and self.random.random() < self._repeats)

    def carry(self, message: Any) -> Any:
        """The message as the other side reads it."""
        if not self._framed:
            return message
        (arrived,) = frames.Decoder().feed(frames.encode(message))
        return arrived


class Link:
    """One direction of a connection."""

    def __init__(self, network: Network, receive: Receive, ended: Callable[[], None]) -> None:
        self._network = network
        self._receive = receive
        self._ended = ended
        self._in_flight: deque[tuple[bool, Any]] = deque()
        self._last_arrival = 0.0
        self._closed = False
        self._held_until = 0.0

    def send(self, item: Any, nbytes: int = 0, copies: int = 1) -> None:
        """Send something, perhaps more than once; lost without a word if the link has ended."""
        for _ in range(0 if self._closed else copies):
            self._put(False, item, nbytes)

    def stall(self, until: float) -> None:
        """Let nothing that is sent from now on arrive before that time."""
        self._held_until = max(self._held_until, until)

    def close(self) -> None:
        """Let what is in flight arrive, then the end."""
        if not self._closed:
            self._closed = True
            self._put(True, None, 0)

    def cut(self) -> None:
        """The sender died: any part of what is in flight may still arrive, then the end."""
        if not self._closed:
            self._held_until = 0.0
            for _ in range(self._network.random.randint(0, len(self._in_flight))):
                self._in_flight.pop()
            self.close()

    def forget(self) -> None:
        """The receiver died: nothing arrives any more."""
        self._closed = True
        self._in_flight.clear()

    def _put(self, is_end: bool, item: Any, nbytes: int) -> None:
        clock = self._network.clock
        arrival = clock.now + self._network.delay() + nbytes / BYTES_PER_SECOND
        self._last_arrival = max(self._last_arrival, arrival, self._held_until)
        self._in_flight.append((is_end, item))
        clock.at(self._last_arrival, self._arrive)

    def _arrive(self) -> None:
        if self._in_flight:  # else it was cut or forgotten meanwhile
            is_end, item = self._in_flight.popleft()
            if is_end:
                self._ended()
            else:
                self._receive(item)


class Connection:
    """Two links, seen from one of the two ends by `near` and `far`: the one who connects is near."""

    def __init__(
        self,
        network: Network,
        near_receives: Receive,
        near_ended: Callable[[], None],
        far_receives: Receive,
        far_ended: Callable[[], None],
    ) -> None:
        self.to_far = Link(network, far_receives, far_ended)
        self.to_near = Link(network, near_receives, near_ended)

    def near_dies(self) -> None:
        """The process at the near end has died."""
        self.to_far.cut()
        self.to_near.forget()

    def far_dies(self) -> None:
        """The process at the far end has died."""
        self.to_near.cut()
        self.to_far.forget()

    def near_closes(self) -> None:
        """The near end hangs up in peace: what it sent arrives."""
        self.to_far.close()
        self.to_near.forget()

    def far_closes(self) -> None:
        """The far end hangs up in peace."""
        self.to_near.close()
        self.to_far.forget()
