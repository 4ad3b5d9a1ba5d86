"""Whatever happens and in whatever order: every granted task is answered for exactly once, and nothing is kept."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, grant, names_of

ADDRESSES = ["tcp://127.0.0.1:1001", "tcp://127.0.0.1:1002"]
OTHER_FUNCTION = b"g" * 16


class Story:
    """One agent through a random sequence of events."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.model = AgentModel(slots=self.random.choice((1, 2, 3)), one_task_at_a_time=seed % 4 == 3)
        self.model.tell(messages.DefineFunction(OTHER_FUNCTION, "g", b"function"))
        self.granted: set[tuple[int, int]] = set()
        self.claims: Counter[tuple[str, bytes]] = Counter()
        self.model.read_at_once = False
        self.attempt = 0
        self.request = 0
        self.asked: list[tuple[str, int, int, int]] = []

    def step(self) -> None:
        """Something happens."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (10, self.grant), (40, self.run_a_task), (10, self.wait), (4, self.recall), (3, self.stop), (2, self.die),
            (8, self.start), (8, self.fetch), (2, self.again), (2, self.report_segment), (20, self.read),
        ]  # fmt: skip
        self.random.choices([action for _, action in actions], [weight for weight, _ in actions])[0]()
        self.look()

    def grant(self) -> None:
        self.attempt += 1
        count = self.random.choice((1, 1, 3, 20, 300))
        values = [
            [row, 900_000 + self.random.randrange(3), 8, self.random.sample(ADDRESSES, self.random.choice((1, 2)))]
            for row in range(self.random.choice((0, 0, 3)))
        ]
        needs = [self.random.sample(range(len(values)), self.random.randint(0, len(values))) for _ in range(count)]
        message = grant(
            self.attempt, count, first_row=self.random.randrange(1000), values=values, needs=needs if values else None,
            function_id=self.random.choice((b"f" * 16, OTHER_FUNCTION)), inline=self.random.choice((0, 4096)),
            timeout_seconds=self.random.choice((0.0, 0.0, 0.5)),
        )  # fmt: skip
        message = message._replace(label=f"batch-{self.attempt}")
        self.granted |= {(self.attempt, message.runs[0] + index) for index in range(count)}
        self.model.tell(message)
        if self.random.random() < 0.2:
            self.model.tell(message)

    def busy_slot(self) -> int:
        busy = [slot for slot, model in self.model.slots.items() if model.pipe or model.claimed]
        return self.random.choice(busy) if busy else -1

    def claim(self, slot: int) -> None:
        model = self.model.slots[slot]
        if not model.claimed:
            model.claim()
            give, _ = model.tasks[model.claimed]
            self.claims[give.label, model.argument()] += 1

    def run_a_task(self) -> None:
        for _ in range(self.random.choice((1, 1, 30))):
            slot = self.busy_slot()
            if slot < 0:
                return
            self.claim(slot)
            if self.random.random() < 0.1:
                self.model.report(slot, [0.01, "exception", b"", {}])
            elif self.model.slots[slot].claimed in self.model.slots[slot].interrupted and self.random.random() < 0.7:
                self.model.report(slot, [0.01, "interrupted", b"", {}])
            else:
                self.model.finish(slot, self.random.choice((1e-6, 1e-5, 1e-3, 0.1)))

    def read(self) -> None:
        for slot in sorted(self.model.slots):
            self.model.read(slot)

    def report_segment(self) -> None:
        slot = self.busy_slot()
        if slot < 0:
            return
        self.claim(slot)
        self.model.read(slot)  # in the same pipe
        self.model.feed(events.SegmentAsked(slot, self.model.slots[slot].claimed, 100_000))
        if self.random.random() < 0.7:
            self.model.report(slot, [0.01, "segment", 100_000, []])
        else:
            self.model.die(slot)

    def wait(self) -> None:
        seconds = self.random.choice((0.0001, 0.001, 0.01, 0.5, 2.0))
        self.model.wait(seconds)
        if seconds >= 0.01:
            self.read()
            self.model.wait(0.01)
            self.check_no_slot_idles()

    def check_no_slot_idles(self) -> None:
        """A slot may be idle only while no other has a task in its pipe behind the one that it runs."""
        slots = [slot for index, slot in self.model.slots.items() if index not in self.model.killed]
        if any(not slot.pipe and not slot.claimed for slot in slots):
            assert not any(len(slot.pipe) + bool(slot.claimed) > 1 for slot in slots)

    def recall(self) -> None:
        self.request += 1
        self.model.tell(messages.Recall(self.request, self.random.choice((1, 5, 1000))))

    def stop(self) -> None:
        if self.granted:
            attempt, row = self.random.choice(sorted(self.granted))
            self.model.tell(messages.Stop([attempt, row]))
            if self.random.random() < 0.3:
                self.model.tell(messages.Stop([attempt, row]))

    def die(self) -> None:
        if self.model.slots:
            slot = self.random.choice(sorted(self.model.slots))
            if self.model.slots[slot].pipe and self.random.random() < 0.5:
                self.claim(slot)
            self.model.die(slot)

    def start(self) -> None:
        self.model.start_slots()

    def fetch(self) -> None:
        if not self.asked:
            return
        address, row, attempt, nbytes = self.asked.pop(self.random.randrange(len(self.asked)))
        if self.random.random() < 0.6:
            self.model.feed(events.ValueFetched(address, row, attempt, nbytes, b"x" * nbytes, ""))
        else:
            self.model.feed(events.ValueNotFetched(address, row, attempt, "gone"))

    def again(self) -> None:
        self.model.tell(messages.Free([900_000 + self.random.randrange(3), 0, 3]))

    def look(self) -> None:
        """Take in what the agent did and said, and check it."""
        model = self.model
        for fetch in model.fetches:
            values = fetch.values
            self.asked += [(fetch.address, *values[at : at + 3]) for at in range(0, len(values), 3)]
        model.fetches.clear()
        for slot in model.killed:
            if slot in model.slots:
                model.die(slot, signal=9)
        model.killed.clear()
        while model.sent:
            message = model.sent.popleft()
            if isinstance(message, (messages.Done, messages.RunFailed, messages.Recalled)):
                for name in names_of(message):
                    self.granted.remove(name)  # a KeyError: it was answered for before, or never granted
        assert model.agent.unanswered_count <= len(self.granted)  # some wait two milliseconds to be sent

    def end(self) -> None:
        """Let everything come to its end."""
        for _ in range(10_000):
            if not self.granted:
                return
            self.model.start_slots()
            self.fetch()
            self.run_a_task()
            self.read()
            self.model.wait(0.01)
            self.look()
        raise AssertionError(f"never answered for: {sorted(self.granted)[:10]}")


@pytest.mark.parametrize("seed", range(60))
def test_every_granted_task_is_answered_for_exactly_once(seed: int) -> None:
    story = Story(seed)
    for _ in range(200):
        story.step()
    story.end()
    twice = [task for task, claims in story.claims.items() if claims > 1]
    assert not twice


@pytest.mark.parametrize("seed", range(20))
def test_a_drain_answers_for_everything_and_ends(seed: int) -> None:
    story = Story(seed)
    for _ in range(60):
        story.step()
    story.model.feed(events.DrainAsked())
    for _ in range(5_000):
        story.look()
        if story.model.closed is not None:
            break
        story.run_a_task()
        story.read()
        story.model.wait(0.01)
    assert story.model.closed is not None
    assert not story.granted
