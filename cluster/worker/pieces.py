"""A large value on its way here, piece by piece: what to ask for next, and whether what came is that.

Pieces are asked for by whoever fetches, so a transfer that broke goes on with the first piece that is missing, at the
same agent or at another that holds the value, and a piece that came damaged costs no more than itself. Several are
asked for ahead, so that the holder never waits for the next request.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from cluster.wire import messages
from cluster.wire.checksums import NO_CHECKSUM

__all__ = ["IN_MESSAGE_BYTES", "PIECES_AHEAD", "PIECE_BYTES", "PIECE_LIMIT_BYTES", "IncomingValue"]

IN_MESSAGE_BYTES: Final = 1024 * 1024
"""Up to here a value travels inside its message, above in pieces."""
PIECE_BYTES: Final = 4 * 1024 * 1024
"""What is sent and checked as one: a checksum of it takes a fraction of a millisecond."""
PIECES_AHEAD: Final = 8
"""Asked for and not come yet: 32 MiB hide 25 ms of round trip at 10 Gbit/s."""
PIECE_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""What an agent sends as one piece at most."""


class IncomingValue:
    """The pieces of one value. Those before `arrived_bytes` have come and were found good."""

    __slots__ = ("_asked", "_asked_bytes", "_piece_bytes", "arrived_bytes", "attempt", "nbytes", "row")

    def __init__(self, row: int, attempt: int, nbytes: int, piece_bytes: int = PIECE_BYTES) -> None:
        self.row = row
        self.attempt = attempt
        self.nbytes = nbytes
        self.arrived_bytes = 0
        self._piece_bytes = piece_bytes
        self._asked: deque[messages.GetPiece] = deque()
        self._asked_bytes = 0

    @property
    def complete(self) -> bool:
        """Whether all has come."""
        return self.arrived_bytes == self.nbytes

    def begin(self) -> None:
        """On a new connection: nothing is asked for on it, and what was asked on another does not come any more."""
        self._asked.clear()
        self._asked_bytes = self.arrived_bytes

    def requests(self) -> list[messages.GetPiece]:
        """What to ask for now."""
        found = []
        while self._asked_bytes < self.nbytes and len(self._asked) < PIECES_AHEAD:
            count = min(self._piece_bytes, self.nbytes - self._asked_bytes)
            found.append(messages.GetPiece(self.row, self.attempt, self._asked_bytes, count))
            self._asked.append(found[-1])
            self._asked_bytes += count
        return found

    def is_next(self, message: Any) -> bool:
        """Whether a message announces the piece that is due. Else only that the value is missing may come."""
        return (
            isinstance(message, messages.ValuePiece)
            and bool(self._asked)
            and tuple(message[:4]) == tuple(self._asked[0])
        )

    def came(self, piece: messages.ValuePiece, counted: int) -> bool:
        """All bytes of the piece that was due have come, with this checksum. False: they are not what was sent."""
        if piece.checksum not in (counted, NO_CHECKSUM):
            return False
        self._asked.popleft()
        self.arrived_bytes += piece.nbytes
        return True
