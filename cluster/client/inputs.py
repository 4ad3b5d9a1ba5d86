"""The numbers of what the marks in packed arguments stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from cluster.client.future import check_reference
from cluster.wire.arguments import LargeArgument, Noted

__all__ = ["Inputs", "Source"]


class Source(Protocol):
    """Where numbers come from; all but `settle` is called under the client's lock."""

    client_id: bytes

    def settle(self, client_id: bytes, /) -> None:
        """Wait until the scheduler knows that client's tasks."""
        ...

    def offer_large(self, argument: LargeArgument) -> int:
        """Hold a large argument."""
        ...

    def share(self, number: int) -> None:
        """A large argument that is held is one of a further task."""
        ...

    def alias(self, reference: Sequence[Any]) -> int:
        """Take a number for another client's task."""
        ...

    def drop(self, numbers: Iterable[int]) -> None:
        """Give numbers up."""
        ...


class Inputs:
    """Finds or makes numbers for one call, or one map. What is made is held until `let_go`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._held: dict[object, int] = {}
        self.nbytes = 0
        """Bytes of the large arguments that are held."""

    @property
    def client_id(self) -> bytes:
        """Whose numbers they are."""
        return self._source.client_id

    def settle(self, noted: Sequence[Noted]) -> None:
        """See to it that the scheduler knows other clients' tasks that are named here; may wait."""
        for each in noted:
            if not isinstance(each, LargeArgument) and each[0] != self._source.client_id:
                self._source.settle(each[0])

    def numbers(self, noted: Sequence[Noted]) -> list[int]:
        """Give the numbers; call it under the lock."""
        return [self._number(each) for each in noted]

    def _number(self, noted: Noted) -> int:
        if isinstance(noted, LargeArgument):
            identity: object = noted.identity
            number = self._held.get(identity)
            if number is None:
                number = self._held[identity] = self._source.offer_large(noted)
                self.nbytes += noted.nbytes
            else:
                self._source.share(number)
            return number
        if noted[0] == self._source.client_id:
            return check_reference(noted[1])
        number = self._held.get(noted)
        if number is None:
            number = self._held[noted] = self._source.alias(noted)
        return number

    def let_go(self) -> None:
        """The tasks are submitted: nothing is held here any more."""
        if self._held:
            self._source.drop(self._held.values())
            self._held = {}
            self.nbytes = 0
