"""Actors under random delays, deaths, cancels and releases: the scheduler's machine and agents' machines together.

Whatever happens, a client's calls of an actor are run in the order in which it made them, none twice, all by the one
process that made the actor, and every call is answered.
"""

from __future__ import annotations

from array import array
from collections import deque
from random import Random
from typing import Any

import pytest

from cluster.scheduler import invariants
from cluster.scheduler.machine import Disconnected, Received, Scheduler, Send, Tick
from cluster.wire import messages
from cluster.worker import events
from cluster.worker.actors import FIRST_ACTOR
from cluster.worker.machine import Agent, AgentIdentity
from tests.pure.agent_model import AgentModel
from tests.pure.dialogue import numbers_of

EPOCH = 1
STEPS = 600


class Worker(AgentModel):
    """An agent whose messages wait until the test delivers them."""

    def __init__(self, world: World, peer: int) -> None:
        super().__init__(start=False)
        self.world = world
        self.peer = peer
        self.address = f"tcp://w{peer}:1"
        identity = AgentIdentity(b"%016d" % peer, f"w{peer}", self.address, 2, 1 << 30, {}, {}, 1, 1.0, 5.0)
        self.agent = Agent(identity)
        self.incoming: deque[Any] = deque()
        self.made: dict[int, bytes] = {}  # actors' processes -> the argument of the creation
        self.feed(events.Started())

    def act(self) -> None:
        """Something happens in a process, or a value arrives."""
        random = self.world.random
        if self.starting and random.random() < 0.5:
            self.start_slots()
        elif self.fetches:
            fetch = self.fetches.pop()
            row, attempt, nbytes = fetch.values[:3]
            for position in range(3, len(fetch.values), 3):
                self.fetches.append(events.FetchFrom(fetch.address, fetch.values[position : position + 3]))
            holder = next((worker for worker in self.world.workers if worker.address == fetch.address), None)
            value = None if holder is None else holder.agent.supply.values.get(attempt << 32 | row)
            if value is None:
                self.feed(events.ValueNotFetched(fetch.address, row, attempt, "it is gone"))
            else:
                self.feed(events.ValueFetched(fetch.address, row, attempt, nbytes, bytes(value), ""))
        elif busy := [slot for slot, model in self.slots.items() if model.pipe or model.claimed]:
            self.run(random.choice(busy))
        for slot in self.killed:
            if slot in self.slots:
                self.end(slot, 9)
            elif slot in self.starting:
                self.starting.remove(slot)
                self.feed(events.SlotExited(slot, [], -1, 9, "", 0))
        self.killed.clear()

    def run(self, slot: int) -> None:
        model = self.slots[slot]
        if not model.claimed:
            self.world.began(self, slot, model.claim())
            return
        if model.interrupted[-1:] == [model.claimed] and self.world.random.random() < 0.7:
            self.report(slot, [0.001, "interrupted", b"", {}])
        elif self.world.random.random() < 0.1:
            self.report(slot, [0.001, "exception", b"", {}])
        else:
            if slot >= FIRST_ACTOR:
                self.made.setdefault(slot, model.argument())
            self.finish(slot)

    def end(self, slot: int, signal: int) -> None:
        self.made.pop(slot, None)
        self.die(slot, signal)


class World:
    """Clients, one scheduler, workers, and the messages between them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 100.0
        self.scheduler = Scheduler(EPOCH)
        self.workers: list[Worker] = []
        self.peers = 0
        self.numbers = [0, 0]  # of each client, the next
        self.wanted: list[list[int]] = [[], []]
        self.calls: dict[bytes, bytes] = {}  # a call's argument -> that of its actor's creation
        self.ended: list[dict[int, str]] = [{}, {}]
        self.home: dict[bytes, tuple[int, int]] = {}  # where an actor was made: worker, process
        self.runs: dict[bytes, int] = {}
        self.last: dict[tuple[bytes, int], int] = {}  # the call that ran last, of an actor and a client
        for client in (0, 1):
            self.tell(client, messages.ClientJoin(self.client_id(client), f"c{client}", {}))
            self.tell(client, messages.DefineFunction(b"f", "f", b"code"))
        for _ in range(2):
            self.add_worker()

    @staticmethod
    def client_id(client: int) -> bytes:
        return b"%016d" % client

    def handle(self, event: Any) -> None:
        for effect in self.scheduler.handle(self.now, event):
            if not isinstance(effect, Send):
                continue
            if effect.peer >= 10:
                self.worker(effect.peer).incoming.append(effect.message)
            elif isinstance(effect.message, messages.Finished | messages.Failed):
                kind = getattr(effect.message, "kind", "finished")
                self.ended[effect.peer].update(dict.fromkeys(numbers_of(effect.message.runs), kind))
        invariants.check(self.scheduler.ledger)

    def worker(self, peer: int) -> Worker:
        return next(worker for worker in self.workers if worker.peer == peer)

    def tell(self, client: int, message: Any) -> None:
        self.handle(Received(client, message))

    def add_worker(self) -> None:
        self.peers += 1
        self.workers.append(Worker(self, 9 + self.peers))

    # ------------------------------------------------------------------ what processes do

    def began(self, worker: Worker, slot: int, sequence: int) -> None:
        """A task was claimed."""
        argument = worker.slots[slot].argument()
        if argument in self.calls:
            actor = self.calls[argument]
            client, number = map(int, argument.split(b" "))
            self.runs[argument] = self.runs.get(argument, 0) + 1
            assert self.runs[argument] == 1, f"call {argument!r} ran twice"
            assert worker.made.get(slot) == actor, f"call {argument!r} runs where its actor is not"
            assert self.home.setdefault(actor, (worker.peer, slot)) == (worker.peer, slot), "an actor was made twice"
            assert self.last.get((actor, client), -1) < number, f"call {argument!r} was overtaken"
            self.last[actor, client] = number
        else:
            assert (slot >= FIRST_ACTOR) == argument.endswith(b"actor")

    # ------------------------------------------------------------------ what clients do

    def submit(self, client: int, inputs: list[int], suffix: bytes = b"", **options: Any) -> bytes:
        number = self.numbers[client]
        self.numbers[client] += 1
        argument = b"%d %d%s" % (client, number, suffix)
        starts = array("I", (0, len(inputs))).tobytes() if inputs else b""
        self.wanted[client].append(number)
        if options.get("actor_call"):
            self.calls[argument] = self.creation_of(client, inputs[-1])
        self.tell(
            client,
            messages.Submit(
                number, 1, -1, b"f", "f", options, 0, array("I", (0, len(argument))).tobytes(), argument, starts,
                array("q", inputs).tobytes(),
            ),
        )  # fmt: skip
        return argument

    def creation_of(self, client: int, number: int) -> bytes:
        ledger = self.scheduler.ledger
        row = ledger.clients[self.client_id(client)].row(number)
        run = ledger.run(row)
        return b"%d %dactor" % (int(run.client.identity), ledger.number(row))

    def actors_of(self, client: int) -> list[int]:
        record = self.scheduler.ledger.clients[self.client_id(client)]
        rows = [(number, record.row(number)) for number in self.wanted[client]]
        return [number for number, row in rows if row >= 0 and self.scheduler.ledger.run(row).makes_actor]

    def client_acts(self) -> None:
        random = self.random
        client = random.randrange(2)
        actors, chance = self.actors_of(client), random.random()
        if not actors or chance < 0.1:
            self.submit(client, [], b"actor", actor=True)
        elif chance < 0.2:
            number = self.numbers[1 - client]
            self.numbers[1 - client] += 1
            self.wanted[1 - client].append(number)
            self.tell(1 - client, messages.Alias(number, [[self.client_id(client), random.choice(actors)]]))
        elif chance < 0.3:
            self.submit(client, [])
        elif chance < 0.4:
            number = self.wanted[client].pop(random.randrange(len(self.wanted[client])))
            self.tell(client, messages.Release([number, 1]))
        elif chance < 0.5:
            self.tell(client, messages.Cancel([random.choice(self.wanted[client]), 1]))
        else:
            inputs = random.sample(self.wanted[client], 1) if random.random() < 0.3 else []
            self.submit(client, [*inputs, random.choice(actors)], actor_call=True, keep=True)

    # ------------------------------------------------------------------ the run

    def step(self, *, faults: bool) -> None:
        random = self.random
        chance = random.random()
        if faults and chance < 0.2:
            self.client_acts()
        elif faults and chance < 0.21:
            worker = random.choice(self.workers)
            if worker.slots:
                worker.end(random.choice(sorted(worker.slots)), 11)
        elif faults and chance < 0.214:
            worker = random.choice(self.workers)
            self.workers.remove(worker)
            self.handle(Disconnected(worker.peer))
            self.add_worker()
        elif chance < 0.3:
            self.now += 0.01
            self.handle(Tick())
            for worker in self.workers:
                worker.wait(self.now - worker.now)
        elif chance < 0.6:
            worker = random.choice(self.workers)
            if worker.incoming:
                worker.tell(worker.incoming.popleft())
        elif chance < 0.8:
            worker = random.choice(self.workers)
            if worker.sent:
                self.handle(Received(worker.peer, worker.sent.popleft()))
        else:
            random.choice(self.workers).act()

    def finish(self) -> None:
        for _ in range(40 * STEPS):
            self.step(faults=False)
            pending = [
                (client, number)
                for client in (0, 1)
                for number in self.wanted[client]
                if number not in self.ended[client]
            ]
            quiet = not any(worker.incoming or worker.sent or worker.agent.unanswered_count for worker in self.workers)
            if not pending and quiet:
                break
        assert not pending, f"never answered: {pending}\n{invariants.story(self.scheduler.ledger, 0)}"
        for client in (0, 1):
            self.tell(client, messages.Leave())
        for _ in range(STEPS):
            self.step(faults=False)
        invariants.check_empty(self.scheduler.ledger)
        assert not any(worker.agent.workforce.actors.slots for worker in self.workers), "an actor lives on"


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_calls_run_in_order_once_and_where_their_actor_is(first: int) -> None:
    ran = 0
    for seed in range(first, first + 10):
        world = World(seed)
        for _ in range(STEPS):
            world.step(faults=True)
        world.finish()
        ran += len(world.runs)
    assert ran > 100
