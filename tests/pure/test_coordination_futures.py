"""Random clients pass futures on through queues, variables and datasets, while workers are lost and clients go.

Whoever takes a future gets it: there is no moment in which it was released on the way. At the end nothing is left.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.scheduler import invariants
from cluster.scheduler.machine import Settings
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue, WorkerSide

STEPS = 250


class Passer:
    """A client, the numbers that it wants, and what it has asked."""

    def __init__(self, play: Play, name: str) -> None:
        self.play = play
        self.client = ClientSide(play.dialogue, name)
        self.wanted: list[int] = []
        self.requests = 0
        self.asked: dict[int, str] = {}

    def ask(self, kind: str, action: str, *arguments: Any, seconds: float | None = 0) -> None:
        self.requests += 1
        floor = min(self.asked, default=-1)
        self.asked[self.requests] = action
        detail = [floor, kind, "shared", action, seconds, list(arguments)]
        self.client.say(messages.Query(self.requests, "coordinate", detail))

    def take_in(self, answer: messages.Answer) -> None:
        """Bind the futures that came, and say so only then."""
        assert not answer.error
        if self.asked[answer.request] not in ("get", "take") or not answer.result:
            del self.asked[answer.request]
            return
        found = answer.result
        if self.asked[answer.request] == "take":
            found = found[0]
        elif isinstance(found[0], bytes):
            found = [found]
        for data, futures, translations in found:
            assert futures == 1
            client_id, number = data.split(b"/")
            for known_id, known, owner_id, owner in translations:
                if (known_id, known) == (client_id, int(number)):
                    client_id, number = owner_id, b"%d" % owner
            self.wanted.append(self.client.next_number)
            self.client.next_number += 1
            self.client.say(messages.Alias(self.wanted[-1], [[client_id, int(number)]]))
        del self.asked[answer.request]
        self.requests += 1
        self.client.say(messages.Query(self.requests, "coordinate_settle", min(self.asked, default=-1)))


class Play:
    """Clients and workers, and one of each kind of object."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.dialogue = Dialogue(Settings(client_grace_seconds=5.0, worker_timeout_seconds=1e9))
        self.passers = [Passer(self, f"passer-{index}") for index in range(3)]
        self.workers = [self.dialogue.worker(f"worker-{index}", slots=2) for index in range(2)]
        self.grants: dict[WorkerSide, list[messages.Grant]] = {worker: [] for worker in self.workers}
        self.made = 0

    def step(self) -> None:
        """Something happens."""
        passer = self.random.choice(self.passers)
        choices = [self.submit, self.drop, self.put, self.put, self.get, self.get, self.work, self.work]
        self.random.choice([*choices, self.lose_worker, self.change_client])(passer)
        self.listen()

    def submit(self, passer: Passer) -> None:
        inputs = self.random.sample(passer.wanted, min(len(passer.wanted), self.random.randrange(3)))
        passer.wanted.append(passer.client.submit(inputs=[inputs] if inputs else ()))

    def drop(self, passer: Passer) -> None:
        if passer.wanted:
            passer.client.release(passer.wanted.pop(self.random.randrange(len(passer.wanted))))

    def put(self, passer: Passer) -> None:
        """Share a future, and mostly drop it at once."""
        if not passer.wanted:
            return
        number = self.random.choice(passer.wanted)
        data, references = passer.client.client_id + b"/%d" % number, [[passer.client.client_id, number]]
        how = self.random.randrange(3)
        if how == 0:
            passer.ask("queue", "put", 4, data, references, seconds=self.random.choice([0, None]))
        elif how == 1:
            passer.ask("variable", "set", data, references)
        else:
            passer.ask("dataset", "publish", data, references, True)
        if self.random.random() < 0.7:
            passer.wanted.remove(number)
            passer.client.release(number)

    def get(self, passer: Passer) -> None:
        how = self.random.randrange(4)
        if how == 0:
            passer.ask("queue", "take", 10_000)
        elif how == 1:
            kind = self.random.choice(["variable", "dataset"])
            passer.ask(kind, self.random.choice(["get", "delete"]))
        else:
            passer.ask("queue", "get", seconds=self.random.choice([0, None]))

    def work(self, passer: Passer) -> None:
        worker = self.random.choice(self.workers)
        if self.grants[worker]:
            worker.done(self.grants[worker].pop(0))

    def lose_worker(self, passer: Passer) -> None:
        index = self.random.randrange(len(self.workers))
        lost = self.workers[index]
        lost.say(messages.Draining(7))  # asked to end: a task that is often there when one dies would fail
        lost.disconnect()
        lost.inbox.clear()
        self.made += 1
        self.workers[index] = self.dialogue.worker(f"worker-{self.made}'", slots=2)
        self.grants[self.workers[index]] = []

    def change_client(self, passer: Passer) -> None:
        """One client goes, with or without a word, and another comes."""
        if self.random.random() < 0.5:
            passer.client.say(messages.Leave())
        else:
            passer.client.disconnect()
        passer.client.inbox.clear()
        self.made += 1
        self.passers[self.passers.index(passer)] = Passer(self, f"passer-{self.made}'")
        self.dialogue.wait(self.random.choice([0.1, 2.0, 7.0]))

    def listen(self) -> None:
        """Read until nobody is told anything any more; futures that were taken are never too late."""
        while any(peer.client.inbox for peer in self.passers) or any(worker.inbox for worker in self.workers):
            for passer in self.passers:
                while passer.client.inbox:
                    message = passer.client.inbox.popleft()
                    if isinstance(message, messages.Answer):
                        passer.take_in(message)
                    else:
                        assert isinstance(message, messages.Finished | messages.Reset), message
            for worker in self.workers:
                while worker.inbox:
                    message = worker.inbox.popleft()
                    if isinstance(message, messages.Grant):
                        self.grants[worker].append(message)
                    elif isinstance(message, messages.Recall):
                        self.give_back(worker, message)

    def give_back(self, worker: WorkerSide, message: messages.Recall) -> None:
        """Nothing is ever brought back: all of it has begun."""
        worker.recalled(message.request)

    def finish(self) -> None:
        """All that is shared is taken or deleted, every task ends, everybody leaves."""
        for passer in self.passers:
            passer.ask("queue", "take", 10_000)
            passer.ask("variable", "delete")
            passer.ask("dataset", "delete")
            self.listen()
        self.passers[0].ask("queue", "clear")
        self.listen()
        while any(self.grants[worker] for worker in self.workers):
            for worker in self.workers:
                if self.grants[worker]:
                    worker.done(self.grants[worker].pop(0))
            self.listen()
        for passer in self.passers:
            passer.client.say(messages.Leave())
            passer.client.inbox.clear()
        self.dialogue.wait(10.0)


@pytest.mark.parametrize("seed", range(20))
def test_no_future_is_lost_on_its_way_and_none_is_kept_for_nobody(seed: int) -> None:
    play = Play(seed)
    for _ in range(STEPS):
        play.step()
    play.finish()
    coordination = play.dialogue.scheduler.coordination
    assert (coordination.objects, coordination.parties, coordination.values.nbytes) == ({}, {}, 0)
    invariants.check_empty(play.dialogue.ledger)
