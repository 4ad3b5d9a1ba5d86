"""Short conversations with the scheduler's machine: a test plays clients and workers, and reads what they are told.

Whatever a peer is told must be read by the test: an extra message fails it at the end. After every event the whole
ledger is checked.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from cluster.scheduler import invariants
from cluster.scheduler.coordination_invariants import check_coordination
from cluster.scheduler.machine import Close, Congested, Disconnected, Received, Scheduler, Settings, Tick
from cluster.wire import messages

EPOCH = 7
M = TypeVar("M")


def numbers_of(runs: list[int]) -> list[int]:
    """The numbers that flat runs stand for."""
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return [number for first, count in pairs for number in range(first, first + count)]


def runs_of(numbers: Iterable[int]) -> list[int]:
    """Numbers as flat runs."""
    runs: list[int] = []
    for number in numbers:
        if runs and runs[-2] + runs[-1] == number:
            runs[-1] += 1
        else:
            runs += (number, 1)
    return runs


class Peer:
    """One end of a connection to the scheduler."""

    def __init__(self, dialogue: Dialogue, name: str) -> None:
        self.dialogue = dialogue
        self.name = name
        self.peer = dialogue.new_peer(self)
        self.inbox: deque[Any] = deque()
        self.closed = False

    def say(self, message: Any) -> None:
        self.dialogue.handle(Received(self.peer, message))

    def hear(self, kind: type[M]) -> M:
        """The next message, which must be of that kind."""
        assert self.inbox, f"{self.name} was told nothing, and a {kind.__name__} was expected"
        message = self.inbox.popleft()
        assert type(message) is kind, f"{self.name} was told {message}, and a {kind.__name__} was expected"
        return message

    def hears_nothing(self) -> None:
        assert not self.inbox, f"{self.name} was told {list(self.inbox)}"

    def disconnect(self) -> None:
        self.dialogue.handle(Disconnected(self.peer))


class ClientSide(Peer):
    """A client; it numbers its tasks as a real one does."""

    def __init__(self, dialogue: Dialogue, name: str, weight: float = 1.0) -> None:
        super().__init__(dialogue, name)
        self.client_id = name.encode().ljust(16, b".")
        self.next_number = 0
        self.say(messages.ClientJoin(self.client_id, name, {}, weight))
        assert self.hear(messages.ClientWelcome).epoch == EPOCH

    def submit(
        self,
        count: int = 1,
        *,
        function: str = "f",
        inputs: Sequence[Sequence[int]] = (),
        shared: Sequence[int] = (),
        batch: int | None = None,
        argument: bytes = b"",
        pieces: Sequence[bytes] = (),
        mode: int = 0,
        label: str = "",
        **options: Any,
    ) -> int:
        """Submit tasks, all of one function; the first one's number. `inputs`: each task's, as numbers; `shared`: what
        every task takes; `pieces`: each task's arguments, instead of one for all."""
        first = self.next_number
        self.next_number += count
        self.say(messages.DefineFunction(function.encode(), function, b"code of " + function.encode()))
        starts = array("I", accumulate(map(len, inputs), initial=0)).tobytes() if inputs else b""
        dependencies = array("q", shared or [number for each in inputs for number in each]).tobytes()
        batch = (first if count > 1 else -1) if batch is None else batch
        offsets = array("I", accumulate(map(len, pieces), initial=0)).tobytes() if pieces else b""
        blob = b"".join(pieces) or argument
        message = messages.Submit(
            first,
            count,
            batch,
            function.encode(),
            label or function,
            options,
            mode,
            offsets,
            blob,
            starts,
            dependencies,
        )
        self.say(message)
        return first

    def offer(self, sizes: Sequence[int], placement: str = "demand", contains: Sequence[Any] = ()) -> int:
        first = self.next_number
        self.next_number += len(sizes)
        self.say(messages.Offer(first, len(sizes), array("Q", sizes).tobytes(), list(contains), placement, []))
        return first

    def alias(self, other: ClientSide, *numbers: int) -> int:
        first = self.next_number
        self.next_number += len(numbers)
        self.say(messages.Alias(first, [[other.client_id, number] for number in numbers]))
        return first

    def release(self, first: int, count: int = 1) -> None:
        self.say(messages.Release([first, count]))

    def cancel(self, first: int, count: int = 1) -> None:
        self.say(messages.Cancel([first, count]))

    def finished(self) -> list[int]:
        """The numbers of the next message, which says that they finished."""
        return numbers_of(self.hear(messages.Finished).runs)

    def failed(self, number: int) -> messages.Failed:
        """The next message, which says that this number failed."""
        message = self.hear(messages.Failed)
        assert numbers_of(message.runs) == [number]
        return message

    def reset(self, number: int) -> None:
        assert numbers_of(self.hear(messages.Reset).runs) == [number]


class WorkerSide(Peer):
    """An agent. `granted` are the runs that it was given and did not answer."""

    def __init__(
        self, dialogue: Dialogue, name: str, slots: int, resources: dict[str, float], identity: bytes = b""
    ) -> None:
        super().__init__(dialogue, name)
        self.address = f"tcp://{name}:1"
        self.functions: list[bytes] = []
        self.say(
            messages.WorkerJoin(
                identity or name.encode().ljust(16, b"."), name, self.address, slots, 1 << 30, resources, {}, 1
            )
        )

    def welcomed(self) -> WorkerSide:
        assert self.hear(messages.WorkerWelcome).epoch == EPOCH
        return self

    def grant(self) -> messages.Grant:
        """The next message, which grants rows; functions may come before it."""
        while self.inbox and type(self.inbox[0]) is messages.DefineFunction:
            self.functions.append(self.inbox.popleft().function_id)
        grant = self.hear(messages.Grant)
        assert grant.function_id in self.functions
        return grant

    def done(
        self,
        grant: messages.Grant,
        rows: Iterable[int] | None = None,
        *,
        nbytes: int = 8,
        pieces: Sequence[bytes] = (),
        seconds: float = 0.001,
        contains: Sequence[Any] = (),
        attempt: int | None = None,
    ) -> None:
        """Report rows of a grant (all of them, if none are named) as done."""
        rows = numbers_of(grant.runs) if rows is None else list(rows)
        runs = runs_of(rows)
        sizes = [len(piece) or nbytes for piece in pieces] if pieces else [nbytes] * len(rows)
        offsets = array("I", accumulate(map(len, pieces), initial=0)).tobytes() if pieces else b""
        self.say(
            messages.Done(
                EPOCH,
                grant.attempt if attempt is None else attempt,
                runs,
                array("Q", sizes).tobytes(),
                offsets,
                b"".join(pieces),
                seconds * len(rows),
                seconds,
                list(contains),
            )
        )

    def run_failed(self, grant: messages.Grant, kind: str = "exception", row: int = -1, **details: Any) -> None:
        """Report a run of a grant (the first row's, unless named) as ended without a value."""
        row = grant.runs[0] if row < 0 else row
        self.say(messages.RunFailed(EPOCH, row, grant.attempt, kind, b"error", details, 0.001))

    def recalled(self, request: int, *names: int) -> None:
        self.say(messages.Recalled(EPOCH, request, list(names)))

    def freed(self) -> list[tuple[int, int]]:
        """The values that the next message orders to free, as (attempt, row)."""
        values = self.hear(messages.Free).values
        return [
            (attempt, row)
            for attempt, first, count in zip(values[::3], values[1::3], values[2::3], strict=True)
            for row in range(first, first + count)
        ]


class Dialogue:
    """A scheduler, its peers and the time."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.scheduler = Scheduler(EPOCH, settings)
        self.ledger = self.scheduler.ledger
        self.now = 100.0
        self.peers: list[Peer] = []

    def new_peer(self, peer: Peer) -> int:
        self.peers.append(peer)
        return len(self.peers) - 1

    def client(self, name: str = "client", weight: float = 1.0) -> ClientSide:
        return ClientSide(self, name, weight)

    def worker(self, name: str = "worker", slots: int = 1, **resources: float) -> WorkerSide:
        return WorkerSide(self, name, slots, resources).welcomed()

    def handle(self, event: Received | Disconnected | Congested | Tick) -> None:
        for effect in self.scheduler.handle(self.now, event):
            if isinstance(effect, Close):
                self.peers[effect.peer].closed = True
            else:
                self.peers[effect.peer].inbox.append(effect.message)
        invariants.check(self.ledger)
        invariants.check_placement(self.scheduler.placement)
        check_coordination(self.scheduler.coordination)
        invariants.check_census(self.ledger)

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick whenever the machine wants one."""
        until = self.now + seconds
        while self.scheduler.next_wakeup <= until:
            assert self.scheduler.next_wakeup != self.now or self.scheduler.ledger.deferred, "it wakes in vain"
            self.now = max(self.now, self.scheduler.next_wakeup)
            self.handle(Tick())
        self.now = until
        self.handle(Tick())

    def everybody_heard_everything(self) -> None:
        for peer in self.peers:
            peer.hears_nothing()
