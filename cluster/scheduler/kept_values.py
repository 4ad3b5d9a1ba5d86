"""Small values that the scheduler keeps under names: what lies in queues, variables and published datasets.

A kept value is bytes, opaque here, and the tasks whose futures lie inside it. While it has a user it holds those tasks'
values, as a stored value holds what it contains; `Ledger.kept_rows` counts these holds. Its users are the object that
it lies in, and every answer that carried it to a client which has not said yet that it has bound the futures: so there
is no moment in which a future on its way from one client to another is held by nobody.

All of it together takes at most `KEPT_LIMIT_BYTES`, names and overheads included.
"""

from __future__ import annotations

from typing import Any

from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle

__all__ = [
    "FUTURES_LIMIT",
    "KEPT_LIMIT_BYTES",
    "OVERHEAD_BYTES",
    "VALUE_LIMIT_BYTES",
    "KeptValue",
    "KeptValues",
    "Refusal",
]

KEPT_LIMIT_BYTES = 64 << 20
VALUE_LIMIT_BYTES = 1 << 20
"""What one value may take here; for items of queues and variables clients allow less."""
FUTURES_LIMIT = 4096
"""So many futures may lie in one value: they are held in one step of the scheduler's loop."""
OVERHEAD_BYTES = 256
"""What an entry takes beside its bytes, about."""
REFERENCE_BYTES = 64


class Refusal(Exception):
    """A request that cannot be met; its text is for the client."""


class KeptValue:
    """Bytes, the rows whose futures lie in them, and how many users there are."""

    __slots__ = ("data", "nbytes", "rows", "translations", "users")

    def __init__(self, data: bytes, rows: list[int], translations: list[Any], nbytes: int) -> None:
        self.data = data
        self.rows = rows
        self.translations = translations
        """`[client_id, number, owner's client_id, owner's number]` of the futures that the putting client knew under
        another number than the task's own (an alias): that one is forgotten when the client drops its future."""
        self.nbytes = nbytes
        self.users = 1

    @property
    def answer(self) -> list[Any]:
        """What a client is told of it."""
        return [self.data, len(self.rows), self.translations]


class KeptValues:
    """Takes values in, counts their users and their bytes."""

    def __init__(self, ledger: Ledger, lifecycle: Lifecycle) -> None:
        self.ledger = ledger
        self.lifecycle = lifecycle
        self.nbytes = 0

    def charge(self, nbytes: int) -> None:
        """Count bytes that are kept from now on (fewer, if negative); raises Refusal when that would be too much."""
        if nbytes > 0 and self.nbytes + nbytes > KEPT_LIMIT_BYTES:
            raise Refusal(
                f"queues, variables and published datasets hold {self.nbytes} bytes in the scheduler, and "
                f"{KEPT_LIMIT_BYTES} is the most that it keeps: give queues a maxsize, delete what nobody needs, and "
                "put futures (of scattered data) instead of data"
            )
        self.nbytes += nbytes

    def take_in(self, data: bytes, references: list[Any]) -> KeptValue:
        """Keep a value for its first user; raises Refusal."""
        if len(data) > VALUE_LIMIT_BYTES:
            raise Refusal(f"a value of {len(data)} bytes is too large to be kept by the scheduler: put a future of it")
        if len(references) > FUTURES_LIMIT:
            raise Refusal(
                f"a value with {len(references)} futures inside is too large to be kept by the scheduler, which takes "
                f"{FUTURES_LIMIT}: share it in parts"
            )
        table = self.ledger.table
        rows: dict[int, None] = {}
        translations = []
        client = None
        for client_id, number in references:
            if client is None or client.identity != client_id:
                client = self.ledger.clients.get(client_id)
            row = -1 if client is None else client.row(number)
            if row < 0:
                raise Refusal("a future in this value was released: keep it until the value has been put")
            rows[row] = None
            owner, owners_number = self.ledger.run(row).client.identity, self.ledger.number(row)
            if (owner, owners_number) != (client_id, number):
                translations.append([client_id, number, owner, owners_number])
        nbytes = OVERHEAD_BYTES + len(data) + REFERENCE_BYTES * len(references)
        self.charge(nbytes)
        kept = self.ledger.kept_rows
        for row in rows:
            table.holds[row] += 1
            kept[row] = kept.get(row, 0) + 1
        return KeptValue(data, list(rows), translations, nbytes)

    def share(self, value: KeptValue) -> None:
        """One more user."""
        value.users += 1

    def let_go(self, value: KeptValue) -> None:
        """One user less; with the last one the tasks inside are no longer held."""
        value.users -= 1
        if value.users:
            return
        self.charge(-value.nbytes)
        kept = self.ledger.kept_rows
        for row in value.rows:
            kept[row] -= 1
            if not kept[row]:
                del kept[row]
            self.lifecycle.unhold(row)
