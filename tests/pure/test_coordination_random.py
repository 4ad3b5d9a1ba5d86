"""Random clients that lock, put, get, withdraw, vanish and come back, in virtual time, against a simple oracle.

After every event the invariants are counted anew (`Dialogue`); the oracle knows who may hold what, in which order items
were put, and that nobody who waits is forgotten: at the end everything is released and everybody has been answered.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.scheduler.machine import Settings
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue

LEASE_SECONDS = 3.0
GRACE_SECONDS = 5.0
MOST = {"lock": 1, "pool": 3}
STEPS = 300


class Player:
    """A client with what it asked, and what it was told."""

    def __init__(self, dialogue: Dialogue, name: str) -> None:
        self.dialogue = dialogue
        self.client = ClientSide(dialogue, name)
        self.requests = 0
        self.open: dict[int, list[Any]] = {}  # request -> the query's detail
        self.settled: dict[int, list[Any]] = {}
        self.largest_seen: dict[int, int] = {}  # request -> the largest fence that anybody knew when it was made
        self.held: dict[int, str] = {}  # fence -> name
        self.gone_at: float | None = None

    def ask(self, kind: str, name: str, action: str, *arguments: Any, seconds: float | None) -> None:
        self.requests += 1
        detail = [min(self.open, default=-1), kind, name, action, seconds, list(arguments)]
        self.open[self.requests] = detail
        self.say(self.requests, detail)

    def say(self, request: int, detail: list[Any]) -> None:
        self.client.say(messages.Query(request, "coordinate", detail))


class Oracle:
    """Plays the clients, and knows what must be so."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.dialogue = Dialogue(Settings(client_grace_seconds=GRACE_SECONDS))
        self.players = [Player(self.dialogue, f"player-{index}") for index in range(4)]
        self.largest_fence = 0
        self.put: list[bytes] = []  # in the order in which puts were answered
        self.got: list[bytes] = []
        self.lost = 0  # items that may be in the hands of a client that vanished
        self.items = 0
        self.added = 0

    def step(self) -> None:
        """Something happens, and everybody reads what it is told."""
        player = self.random.choice(self.players)
        if player.gone_at is not None:
            self.come_back(player)
        else:
            choices = [self.acquire, self.acquire, self.release, self.release, self.use_queue, self.use_queue]
            choices += [self.repeat, self.repeat_late, self.withdraw, self.vanish, self.add, self.wait]
            self.random.choice(choices)(player)
        self.listen(0.6)

    def acquire(self, player: Player) -> None:
        name = self.random.choice(list(MOST))
        seconds = self.random.choice([0, 0.5, 2.0, None])
        player.largest_seen[player.requests + 1] = self.largest_fence
        player.ask("lease", name, "acquire", MOST[name], LEASE_SECONDS, -1, -1, seconds=seconds)

    def release(self, player: Player) -> None:
        if player.held:
            fence = self.random.choice(list(player.held))
            player.ask("lease", player.held.pop(fence), "release", fence, seconds=0)

    def use_queue(self, player: Player) -> None:
        seconds = self.random.choice([0, 0.5, None])
        if self.random.random() < 0.5:
            self.items += 1
            player.ask("queue", "q", "put", 3, b"%d" % self.items, [], seconds=seconds)
        else:
            player.ask("queue", "q", "get", seconds=seconds)

    def add(self, player: Player) -> None:
        self.added += 1
        player.ask("counter", "n", "add", 1, seconds=0)

    def repeat(self, player: Player) -> None:
        """A message comes twice."""
        if player.open:
            player.say(*self.random.choice(list(player.open.items())))

    def repeat_late(self, player: Player) -> None:
        """A message comes again after its answer was taken in."""
        if player.settled:
            player.say(*self.random.choice(list(player.settled.items())))

    def withdraw(self, player: Player) -> None:
        waiting = [number for number, detail in player.open.items() if detail[3] in ("acquire", "get", "put")]
        if waiting:
            number = self.random.choice(waiting)
            player.requests += 1
            player.client.say(messages.Query(player.requests, "coordinate_withdraw", [min(player.open), number]))
            del player.open[number]

    def vanish(self, player: Player) -> None:
        player.client.disconnect()
        player.gone_at = self.dialogue.now
        player.client.inbox.clear()  # on its way, and lost

    def come_back(self, player: Player) -> None:
        """In time with all it had, and it asks again; too late as a new one."""
        assert player.gone_at is not None
        away = self.dialogue.now - player.gone_at
        player.gone_at = None
        if away >= LEASE_SECONDS:
            player.held.clear()
        if away < GRACE_SECONDS:
            player.client = ClientSide(self.dialogue, player.client.name)
            for number, detail in list(player.open.items()):
                player.say(number, detail)
        else:
            index = self.players.index(player)
            self.lost += sum(detail[3] in ("put", "get") for detail in player.open.values())
            self.players[index] = Player(self.dialogue, f"{player.client.name}'")

    def wait(self, player: Player) -> None:
        self.dialogue.wait(self.random.choice([0.1, 1.0, 4.0, 7.0]))

    def listen(self, attention: float) -> None:
        """Each player reads what it was told, if it is attentive."""
        for player in self.players:
            if self.random.random() < attention:
                self.read(player)
        now = self.dialogue.now
        for name, most in MOST.items():
            sure = sum(
                held == name
                for player in self.players
                if player.gone_at is None or now - player.gone_at < LEASE_SECONDS
                for held in player.held.values()
            )
            assert sure <= most, f"{sure} hold {name}"

    def read(self, player: Player) -> None:
        while player.client.inbox:
            answer = player.client.hear(messages.Answer)
            detail = player.open.pop(answer.request, None)
            if detail is None:
                continue  # withdrawn, or the second answer to what came twice
            player.settled[answer.request] = detail
            assert not answer.error or "not held" in answer.error or "ended while" in answer.error
            _, _, name, action, _, arguments = detail
            if action == "acquire" and answer.result is not None:
                assert answer.result > player.largest_seen[answer.request], "fences rise"
                self.largest_fence = max(self.largest_fence, answer.result)
                player.held[answer.result] = name
            elif action == "put" and answer.result:
                self.put.append(arguments[1])
            elif action == "get" and answer.result is not None:
                self.got.append(answer.result[0][0])

    def finish(self) -> None:
        """Everybody comes back and lets everything go: every wait ends."""
        for player in [player for player in self.players if player.gone_at is not None]:
            self.come_back(player)
        for _ in range(10_000):
            self.listen(1.0)
            holding = [player for player in self.players if player.held]
            waiting = {detail[3] for player in self.players for detail in player.open.values()}
            if holding:
                self.release(holding[0])
            elif "get" in waiting:
                self.items += 1
                self.players[0].ask("queue", "q", "put", 0, b"%d" % self.items, [], seconds=0)
            elif self.dialogue.scheduler.coordination.objects.get(("queue", "q")) is not None:
                self.players[0].ask("queue", "q", "get", seconds=0)
            else:
                assert not waiting, f"nobody answers {waiting}"
                return
        raise AssertionError("it never ends")


@pytest.mark.parametrize("seed", range(30))
def test_nobody_is_forgotten_and_nothing_is_held_twice(seed: int) -> None:
    oracle = Oracle(seed)
    for _ in range(STEPS):
        oracle.step()
    oracle.finish()
    assert len(set(oracle.got)) == len(oracle.got), "an item was got twice"
    assert set(oracle.got) <= {b"%d" % item for item in range(1, oracle.items + 1)}
    missing = set(oracle.put) - set(oracle.got)
    assert len(missing) <= oracle.lost, f"{missing} were put and never got"
    counted = oracle.players[0]
    counted.ask("counter", "n", "add", 0, seconds=0)
    assert counted.client.hear(messages.Answer).result == oracle.added
    for player in oracle.players:
        player.client.say(messages.Leave())
    assert not oracle.dialogue.scheduler.coordination.parties
    remaining = {kind for kind, _ in oracle.dialogue.scheduler.coordination.objects}
    assert remaining <= {"counter"}
