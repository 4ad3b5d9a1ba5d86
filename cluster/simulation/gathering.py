"""Looking at results as a client does: wait, ask where the values are, fetch them, compare them with the oracle."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from cluster.scheduler.placement import INLINE_AWAITED_BYTES
from cluster.session import table as states
from cluster.session.machine import Failure
from cluster.simulation.network import Connection
from cluster.simulation.workloads import Reference, decode_value
from cluster.wire import messages

if TYPE_CHECKING:
    from cluster.session.machine import Session
    from cluster.simulation.world import World

__all__ = ["Gather", "begin_gather"]

PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


def kind_of(failure: Failure, workers_ended: bool) -> str:
    """The kind of a failure; what was let go of although somebody counted on it is told from what cannot be made.

    A value that was sent and released may be needed once more when a worker was lost; else it is not.
    """
    message = str(failure.details.get("message", ""))
    let_go = (
        "released before" in message
        or "forgotten before" in message
        or ("no longer holds this value" in message and not workers_ended)
    )
    return "let go of" if failure.kind == "lost" and let_go else failure.kind


class Looks(Protocol):
    """A client as its gathers know it."""

    world: World
    alive: bool
    held: dict[int, int]
    gathers: list[Gather]

    @property
    def session(self) -> Session:
        """Its machine."""
        ...

    def judge(self, index: int, kind: str) -> str:
        """Why a task cannot have failed like that; empty if it can."""
        ...

    def take(self, reference: Reference) -> None:
        """Unpickle a future."""
        ...

    def look(self) -> None:
        """See whether something that is waited for has come."""
        ...

    def send(self) -> None:
        """Carry out what the session wants done."""
        ...


def begin_gather(client: Looks, numbers: list[int]) -> Gather:
    """Wait for these, fetch their values and compare them with the oracle."""
    gather = Gather(client, numbers)
    client.gathers.append(gather)
    client.session.waiting = len(client.gathers)
    client.session.want(numbers)
    gather.go_on()
    client.send()
    return gather


class Gather:
    """One caller that waits for some numbers and wants their values."""

    def __init__(self, client: Looks, numbers: list[int]) -> None:
        self.client = client
        self.numbers = numbers
        self.done = False
        self._missing = list(numbers)
        self._request: int | None = None
        self._fetching = 0  # values asked of agents and not answered
        self._pausing = False
        self._pause_seconds = PAUSE_SECONDS
        self._random = client.world.random_of("gathers")

    def waits_for(self) -> list[int]:
        """What has not been had yet."""
        return self._missing

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        if not self.done:
            self.done = True
            self.client.gathers.remove(self)
            self.client.session.waiting = len(self.client.gathers)

    @property
    def failed(self) -> bool:
        """Whether some task of it has no value."""
        return any(self.client.session.state(number) == states.FAILED for number in self.numbers)

    def go_on(self) -> None:
        """Something has happened: do the next step if it can be done."""
        if self.done or self._pausing or self._fetching:
            return
        session = self.client.session
        if self._request is not None:
            answer = session.answers.pop(self._request, None)
            if answer is None:
                return
            self._request = None
            assert isinstance(answer, messages.Located)
            self._fetch(answer.entries)
            return
        if any(session.state(number) == states.PENDING for number in self._missing):
            return
        elsewhere = [number for number in self._missing if not self._is_here(number)]
        if elsewhere:
            self._missing = elsewhere
            self._request = session.locate(elsewhere)
        else:
            self._missing = []
            self.done = True
            self.client.gathers.remove(self)
            session.waiting = len(self.client.gathers)

    def _is_here(self, number: int) -> bool:
        client = self.client
        session = client.session
        state = session.state(number)
        if state == states.FAILED:
            kind = kind_of(session.failures[number], client.world.workers_ended)
            if kind == "let go of" and self._was_of_a_lost_run(number):
                return True
            fault = client.judge(client.held[number], kind)
            assert not fault, f"{fault}: {session.failures[number]}"
            return True
        if state == states.HERE:
            data = session.table.value(number)
            assert data is not None
            self._compare(number, data)
            return True
        return state == states.OFFERED

    def _was_of_a_lost_run(self, number: int) -> bool:
        """Whether its parent's value may have been fetched just before its worker was lost.

        Another run makes other children. The scheduler, which did not carry the value, cannot know that it has come.
        """
        world = self.client.world
        parent = world.workload.specs[self.client.held[number]].returned_by
        carried = parent >= 0 and world.workload.specs[parent].nbytes <= INLINE_AWAITED_BYTES
        return parent >= 0 and not carried and world.workers_ended

    def _compare(self, number: int, data: bytes) -> None:
        world = self.client.world
        index = self.client.held[number]
        digest, references = decode_value(data)
        assert digest == world.workload.digest(index), f"task {index} has the value of another"
        fault = world.workload.judge(index, None)
        assert not fault, fault
        world.report.values_compared += 1
        world.progress_at = world.clock.now
        for reference in references:
            if self._random.random() < 0.5:
                self.client.take(reference)

    # ------------------------------------------------------------------ values that lie with agents

    def _fetch(self, entries: list[Any]) -> None:
        asked: dict[str, list[Any]] = {}
        for entry in entries:
            if entry[4]:
                asked.setdefault(self._random.choice(entry[4]), []).append(entry)
        if not asked:
            self._pause()
        for address, mine in asked.items():
            Answers(self, address, mine)

    def had(self, number: int, data: bytes) -> None:
        """A value has come."""
        if self.done:  # it was given up meanwhile
            return
        self._missing.remove(number)
        self._compare(number, data)
        self._pause_seconds = PAUSE_SECONDS

    def asked(self, count: int) -> None:
        """So many values were asked of an agent; negative: so many were answered."""
        self._fetching += count
        if count < 0 and not self._fetching and self.client.alive:
            if self._missing:
                self._pause()
            else:
                self.go_on()
                self.client.send()

    def _pause(self) -> None:
        self._pausing = True
        self.client.world.clock.after(self._pause_seconds, self._go_on_again)
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * self._pause_seconds)

    def _go_on_again(self) -> None:
        self._pausing = False
        if self.client.alive:
            self.client.look()


class Answers:
    """Values asked of one agent over a connection of their own."""

    def __init__(self, gather: Gather, address: str, entries: list[Any]) -> None:
        self._gather = gather
        self._left = deque(entries)
        gather.asked(len(entries))
        world = gather.client.world
        self._connection: Connection = world.connect_to_agent(address, self._hear, self._lost)
        names = [part for entry in entries for part in entry[1:3]]
        world.send(self._connection.to_far, messages.GetValues(1, names))

    def _hear(self, item: Any) -> None:
        message, content = item
        entry = self._left.popleft()
        if not self._gather.client.alive:
            return
        if isinstance(message, messages.Value):
            self._gather.had(entry[0], message.data)
        elif isinstance(message, messages.ValueStream):
            self._gather.had(entry[0], content)
        if not self._left:
            self._connection.near_closes()
        self._gather.asked(-1)

    def _lost(self) -> None:
        while self._left and self._gather.client.alive:
            self._left.popleft()
            self._gather.asked(-1)
