"""The client inside a simulated slot: the session's machine of real ones, for tasks that submit tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.session.in_slot import SessionInSlot
from cluster.session.parts import Call, Function
from cluster.simulation.gathering import Gather, begin_gather
from cluster.simulation.workloads import Reference, Spec

if TYPE_CHECKING:
    from cluster.simulation.slots import SlotProcess

__all__ = ["SlotClient"]


class SlotClient:
    """One slot process's client."""

    def __init__(self, slot: SlotProcess, name: str) -> None:
        self.world = slot.agent.world
        self.name = name
        self.client_id = name.encode().ljust(16, b".")
        self.session = SessionInSlot(self.client_id, name, {})
        self.session.parent_of = lambda: slot.name
        self.alive = True
        self.held: dict[int, int] = {}
        self.gathers: list[Gather] = []
        self._slot = slot
        self._calls: dict[str, Call] = {}
        self._settled: tuple[int, Callable[[], None]] | None = None  # a ping, and what follows its answer
        self.connection = self.world.scheduler.accept(self._hear, self.die)
        self.session.join()
        self.send()

    def send(self) -> None:
        """Carry out what the session wants done."""
        for message in self.session.take_messages(self.world.clock.now):
            if self.alive:
                self.world.note(self.name, message)
                self.world.send(self.connection.to_far, message)
        self._slot.look()

    def _hear(self, item: Any) -> None:
        if self.alive:
            self.session.receive(item[0])
            self.look()

    def look(self) -> None:
        """See whether something that is waited for has come."""
        for gather in list(self.gathers):
            gather.go_on()
        self.send()
        if self._settled is not None and self.session.answers.pop(self._settled[0], None) is not None:
            _, then = self._settled
            self._settled = None
            then()

    def submit(self, specs: list[Spec]) -> list[int]:
        """Submit tasks; their numbers."""
        numbers = []
        for spec in specs:
            name = spec.function
            call = self._calls.get(name)
            if call is None:
                function = Function(name.encode().ljust(16, b"."), name, name.encode())
                call = self._calls[name] = Call(function, name, {}, 0)
            number = self.session.submit(call, b"%d" % spec.index)
            numbers.append(number)
            self.held[number] = spec.index
            self.world.index_of[self.client_id, number] = spec.index
        self.session.flush()
        self.send()
        return numbers

    def gather(self, numbers: list[int]) -> Gather:
        """Wait for these, and compare their values."""
        return begin_gather(self, numbers)

    def judge(self, index: int, kind: str) -> str:
        """Why a child cannot have failed like that. Cancelled is what becomes of it when the scheduler has given up the
        run of its parent; if it has not, the parent fails, and is judged."""
        return "" if kind == "cancelled" else self.world.workload.judge(index, kind)

    def take(self, reference: Reference) -> None:
        """Unpickle a future; nobody here keeps it."""
        client_id, number = reference
        if client_id != self.client_id or not self.session.refer(number):
            number = self.session.alias([reference])
            self.world.index_of[self.client_id, number] = self.world.index_of[reference]
        self.session.dropped.append(number)

    @property
    def settles(self) -> bool:
        """Whether a task ends, and the scheduler has not got yet what it was told."""
        return self._settled is not None

    def let_go(self, numbers: list[int], then: Callable[[], None]) -> bool:
        """A task ends that has submitted these. True if `then` is called later, when the scheduler has got that."""
        for number in numbers:
            del self.held[number]
        self.session.dropped.extend(numbers)
        self.session.flush()
        if self.session.owes(self.session.parent_of()):
            self.session.settle(self.session.notes)
            self._settled = self.session.query("ping"), then
        self.send()
        return self._settled is not None

    def leave(self) -> None:
        """The end in peace."""
        if self.alive:
            self.session.leave()
            self.send()

    def die(self) -> None:
        """The process has ended."""
        if self.alive:
            self.alive = False
            self.connection.near_dies()
