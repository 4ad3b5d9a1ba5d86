"""The desk of an engine, alone: random work, and every reason to keep a task counted again after each step."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from typing import Any

import pytest

from cluster.adapters.engines.desk import FAILED, FINISHED, READY, RUNNING, WAITING, Desk, Task
from cluster.adapters.engines.protocol import Outcome, Run
from cluster.errors import ProtocolError
from cluster.session.machine import Failure
from cluster.wire import messages

CLIENT = bytes(16)
FUNCTION = b"f" * 16


def new_desk(slots: int = 2) -> Desk:
    desk = Desk(CLIENT, "tested", slots)
    desk.receive(messages.DefineFunction(FUNCTION, "work", b"function"))
    return desk


def submit(desk: Desk, number: int, *inputs: int, parent: Run | None = None, **options: Any) -> None:
    starts, needed = array("I", (0, len(inputs))).tobytes(), array("q", inputs).tobytes()
    if not inputs:
        starts = needed = b""
    desk.receive(
        messages.Submit(number, 1, -1, FUNCTION, "work", options, 0, b"", b"arguments", starts, needed), parent
    )


def told(desk: Desk) -> list[tuple[str, int]]:
    """How tasks ended, as the client is told it."""
    found = []
    for message in desk.take_messages():
        if isinstance(message, messages.Finished | messages.Failed | messages.Reset):
            found.append((type(message).__name__, message.runs[0]))
    return found


def failed(kind: str = "exception") -> Outcome:
    return Outcome(Failure(kind, b"", {"message": "on purpose"}))


def run_next(desk: Desk, outcome: Outcome | None = None) -> str:
    run = desk.next_run()
    assert run is not None
    desk.ended(run, outcome or Outcome(None, b"value", b"value", 5))
    return run.key


def tasks_of(desk: Desk) -> set[Task]:
    return set(desk._tasks.values())


def check_invariants(desk: Desk) -> None:
    tasks = tasks_of(desk)
    counted: Counter[Task] = Counter()
    for task in tasks:
        counted[task] += len(task.numbers)
        counted.update(task.inputs)
        counted.update(task.contains)
    for task in tasks:
        assert task.holds == counted[task] > 0
        assert all(source in tasks for source in (*task.inputs, *task.contains))
        assert all(task in source.dependents for source in task.inputs)
        assert (task.run is not None) == (task.state == RUNNING)
        assert (task.failure is not None) == (task.state == FAILED)
        if task.state == WAITING:
            assert task.missing == sum(source.state != FINISHED for source in set(task.inputs)) > 0
        if task.state in (READY, RUNNING, FINISHED):
            assert all(source.state == FINISHED for source in task.inputs)
        if task.state == FINISHED:
            assert not task.inputs
    assert desk.free >= 0


# ------------------------------------------------------------------ dialogues


def test_a_task_runs_after_its_inputs_and_keeps_their_values_until_then() -> None:
    desk = new_desk()
    submit(desk, 0)
    submit(desk, 1, 0)
    desk.receive(messages.Release([0, 1]))
    first = desk.next_run()
    assert first is not None
    assert desk.next_run() is None
    desk.ended(first, Outcome(None, b"zero", b"zero", 4))
    second = desk.next_run()
    assert second is not None
    assert second.inputs == [b"zero"]
    desk.ended(second, Outcome(None, b"one", b"one", 3))
    assert told(desk) == [("Finished", 1)]
    assert len(tasks_of(desk)) == 1
    desk.receive(messages.Release([1, 1]))
    assert not tasks_of(desk)


def test_a_failure_goes_up_and_a_retry_runs_all_that_failed_with_it() -> None:
    desk = new_desk()
    submit(desk, 0, retries=1)
    submit(desk, 1, 0)
    submit(desk, 2, 1)
    run_next(desk, failed())
    assert told(desk) == []
    run_next(desk, failed())
    assert sorted(told(desk)) == [("Failed", 0), ("Failed", 1), ("Failed", 2)]
    submit(desk, 3, 2)
    assert told(desk) == [("Failed", 3)]
    desk.receive(messages.Retry([1, 1]))
    assert sorted(told(desk)) == [("Reset", 0), ("Reset", 1), ("Reset", 2), ("Reset", 3)]
    for _ in range(4):
        run_next(desk)
    assert told(desk) == [("Finished", number) for number in range(4)]


def test_what_comes_of_a_cancelled_run_is_thrown_away() -> None:
    desk = new_desk(slots=1)
    submit(desk, 0)
    run = desk.next_run()
    assert run is not None
    desk.receive(messages.Cancel([0, 1]))
    assert (run.cancelled, desk.stopping, told(desk)) == (True, [run], [("Failed", 0)])
    desk.receive(messages.Retry([0, 1]))
    assert desk.next_run() is None  # the slot is not free before the run has ended
    desk.ended(run, Outcome(None, b"late", b"late", 4))
    again = desk.next_run()
    assert again is not None
    assert told(desk) == [("Reset", 0)]
    desk.ended(again, Outcome(None, b"value", b"value", 5))
    assert told(desk) == [("Finished", 0)]


def test_a_value_keeps_the_tasks_whose_futures_lie_in_it() -> None:
    desk = new_desk()
    submit(desk, 0)
    parent = desk.next_run()
    assert parent is not None
    submit(desk, 1, parent=parent)
    desk.ended(parent, Outcome(None, b"box", b"box", 3, [(CLIENT, 1)]))
    desk.receive(messages.Release([1, 1]))
    run_next(desk)
    desk.receive(messages.Alias(2, [[CLIENT, 1]]))
    assert ("Finished", 2) in told(desk)
    desk.receive(messages.Release([0, 1]))
    assert desk.value(2) == b"value"
    desk.receive(messages.Release([2, 1]))
    assert not tasks_of(desk)


def test_children_come_first_and_a_waiting_run_lends_its_slot() -> None:
    desk = new_desk(slots=1)
    submit(desk, 0)
    submit(desk, 1)
    parent = desk.next_run()
    assert parent is not None
    submit(desk, 2, parent=parent)
    assert not desk.has_next()
    desk.leave_slot(parent)
    child = desk.next_run()
    assert child is not None
    assert (child.depth, desk.take_slot(parent)) == (1, False)
    desk.going_on = 1
    desk.ended(child, Outcome())
    assert desk.next_run() is None  # who goes on is before who begins
    assert desk.take_slot(parent)
    desk.going_on = 0
    inside = desk.next_run(inside=parent)
    assert inside is not None
    assert desk.free == 0
    desk.ended(inside, Outcome())
    assert desk.free == 0


def test_arguments_are_said_to_be_taken_when_a_task_begins_or_never_will() -> None:
    desk = new_desk(slots=1)
    for number in range(3):
        submit(desk, number)
    assert not [each for each in desk.take_messages() if isinstance(each, messages.ArgumentsTaken)]
    run_next(desk)
    desk.receive(messages.Cancel([1, 1]))
    desk.receive(messages.Release([2, 1]))
    taken = [each.total_bytes for each in desk.take_messages() if isinstance(each, messages.ArgumentsTaken)]
    assert taken == [3 * len(b"arguments")]


def test_what_a_desk_does_not_know_is_said() -> None:
    desk = new_desk()
    with pytest.raises(ProtocolError, match="Pushed means nothing to the engine"):
        desk.receive(messages.Pushed(0, "", ""))
    desk.receive(messages.Query(1, "who_has", [0]))
    (answer,) = desk.take_messages()
    assert answer.error.startswith("the engine 'tested' has no scheduler")


def test_a_long_chain_is_let_go_and_fails_without_recursion() -> None:
    desk = new_desk()
    submit(desk, 0)
    for number in range(1, 20_000):
        submit(desk, number, number - 1)
    run_next(desk, failed())
    desk.receive(messages.Release([0, 20_000]))
    assert not tasks_of(desk)


# ------------------------------------------------------------------ anything in any order


class Chaos:
    """A client that does anything, and an engine that ends runs in any order."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.slots = self.random.randint(1, 3)
        self.desk = new_desk(self.slots)
        self.next_number = 0
        self.wanted: list[int] = []
        self.runs: list[Run] = []
        self.away: list[Run] = []

    def submit(self) -> None:
        inputs = self.random.sample(self.wanted, min(len(self.wanted), self.random.choice((0, 0, 1, 2, 3))))
        parent = self.random.choice([None, *self.runs])
        submit(self.desk, self.next_number, *inputs, parent=parent, retries=self.random.choice((0, 0, 2)))
        self._want_next()

    def alias(self) -> None:
        source = self.random.randint(0, self.next_number)
        self.desk.receive(messages.Alias(self.next_number, [[self.random.choice((CLIENT, CLIENT, b"x" * 16)), source]]))
        self._want_next()

    def _want_next(self) -> None:
        self.wanted.append(self.next_number)
        self.next_number += 1

    def begin(self) -> None:
        parent = self.random.choice([None, None, *self.runs])
        run = self.desk.next_run(parent)
        if run is not None:
            self.runs.append(run)

    def end(self) -> None:
        if self.runs:
            run = self.runs.pop(self.random.randrange(len(self.runs)))
            if run in self.away:
                self.away.remove(run)
            tasks = self.desk._tasks
            # Older ones only: values that hold one another are kept until the client ends.
            older = [each for each in self.wanted if tasks[each].number < self.desk._running[run].number]
            contains = [(CLIENT, number) for number in self.random.sample(older, min(len(older), 1))]
            value = Outcome(None, b"value", b"value", 5, contains)
            self.desk.ended(run, self.random.choice((value, value, failed(), failed("unserializable"))))

    def wait(self) -> None:
        if self.runs:
            run = self.random.choice(self.runs)
            if run in self.away:
                if self.desk.take_slot(run):
                    self.away.remove(run)
            elif run.has_slot:
                self.desk.leave_slot(run)
                self.away.append(run)

    def release(self) -> None:
        if self.wanted:
            number = self.wanted.pop(self.random.randrange(len(self.wanted)))
            self.desk.receive(messages.Release([number, 1]))

    def change(self) -> None:
        if self.wanted:
            kind = self.random.choice((messages.Cancel, messages.Retry, messages.Retry, messages.Keep))
            self.desk.receive(kind([self.random.choice(self.wanted), 1]))

    def step(self) -> None:
        often = (self.submit, self.submit, self.begin, self.begin, self.end)
        self.random.choice((*often, self.alias, self.wait, self.release, self.change))()
        check_invariants(self.desk)
        seated = sum(run.has_slot for run in self.runs)
        assert self.desk.free + seated == self.slots


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_or_kept_whatever_happens(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(200):
        chaos.step()
    chaos.desk.receive(messages.Release([0, chaos.next_number]))
    for run in chaos.runs:
        chaos.desk.ended(run, Outcome())
    while (left := chaos.desk.next_run()) is not None:
        chaos.desk.ended(left, Outcome())  # what was to be kept until its end
    check_invariants(chaos.desk)
    assert not tasks_of(chaos.desk)
    assert not chaos.desk._running
    assert not chaos.desk._ready_of
