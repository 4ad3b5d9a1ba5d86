"""A connection that asks the scheduler and does nothing else, for commands: no thread, no futures, little to import."""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Any, Self

from cluster.config import Settings
from cluster.errors import ClusterError, ConnectionLost
from cluster.ids import new_id
from cluster.secret import load_or_create_secret
from cluster.transport.blocking import BlockingConnection
from cluster.wire import messages

__all__ = ["Inquiry"]

ANSWER_SECONDS = 30.0


class Inquiry:
    """Asks the scheduler at an address; in the scheduler it is an observer, and counts as no client.

    Raises AddressError, ConnectionLost, HandshakeFailed or SettingError when the scheduler cannot be reached.
    """

    def __init__(self, address: str, settings: Settings) -> None:
        self.address = address
        self._requests = 0
        self._arrived: list[Any] = []
        self._connection = BlockingConnection.connect(address, load_or_create_secret(settings.directory))
        try:
            self._connection.send(messages.ObserverJoin(new_id(), f"command on {socket.gethostname()}"))
            welcome = self._next(time.monotonic() + ANSWER_SECONDS)
            if not isinstance(welcome, messages.ClientWelcome):
                raise ClusterError(f"the scheduler at {address} sent {type(welcome).__name__} instead of a welcome")
        except BaseException:
            self._connection.close()
            raise

    def ask(self, what: str, detail: Any = None, *, timeout_seconds: float | None = ANSWER_SECONDS) -> Any:
        """The scheduler's answer to a query; ClusterError with what it says if it cannot tell, or does not answer."""
        self._requests += 1
        self._connection.send(messages.Query(self._requests, what, detail))
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            answer = self._next(deadline)
            if isinstance(answer, messages.Answer) and answer.request == self._requests:
                if answer.error:
                    raise ClusterError(answer.error)
                return answer.result

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _next(self, deadline: float | None) -> Any:
        while not self._arrived:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise ConnectionLost(f"the scheduler at {self.address} did not answer; is it stopped, or very busy?")
            self._arrived.extend(self._connection.receive(remaining))
        return self._arrived.pop(0)
