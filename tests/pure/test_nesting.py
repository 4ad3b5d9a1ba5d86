"""Tasks that submit tasks and wait for them: what the scheduler and the agent decide, message by message."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import ProtocolError
from cluster.scheduler.table import GRANTED
from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, grant
from tests.pure.dialogue import EPOCH, Dialogue


class Family:
    """A worker of one slot that runs a parent, and the client in its slot."""

    def __init__(self, slots: int = 1) -> None:
        self.dialogue = Dialogue()
        self.outer = self.dialogue.client("outer")
        self.worker = self.dialogue.worker("w", slots)
        self.outer.submit(function="parent")
        self.parent = self.worker.grant()
        self.inner = self.dialogue.client("inner")
        self.inner.say(messages.LivesInSlot())
        self.changes = 0

    @property
    def name(self) -> list[int]:
        return [self.parent.attempt, self.parent.runs[0]]

    def child(self, count: int = 1, **options: Any) -> int:
        return self.inner.submit(count, function="child", parent=self.name, **options)

    def hands_over_a_child(self) -> tuple[int, messages.Grant]:
        """A child has run, and lies in the value that the parent is about to report; its client has let go of it."""
        number = self.child()
        child = self.worker.grant()
        self.inner.say(messages.HandOver(*self.name, [number, 1]))
        self.inner.say(messages.Release([number, 1]))
        self.worker.done(child)
        return number, child

    def waits(self, kind: Any = messages.Suspended, change: int = 0) -> None:
        self.changes += 1
        self.worker.say(kind(EPOCH, change or self.changes, self.parent.runs[0], self.parent.attempt))

    def room(self, tasks: int) -> None:
        self.changes += 1
        self.worker.say(messages.Room(EPOCH, self.changes, tasks))

    @property
    def outstanding(self) -> int:
        return self.dialogue.ledger.workers[0].outstanding


# ------------------------------------------------------------------ the scheduler


def test_a_task_that_waits_takes_no_slot_and_its_child_comes_first() -> None:
    family = Family()
    others = family.outer.submit(3, function="other")
    assert others and family.outstanding == 1
    family.child()
    family.worker.hears_nothing()
    family.waits()
    child = family.worker.grant()
    assert child.options == {"parent": family.name}
    assert family.outstanding == 1
    family.worker.done(child)
    family.inner.hear(messages.Finished)
    assert family.worker.grant().label == "other"  # no child is left: the slot is anybody's


def test_a_child_whose_worker_ended_runs_inside_its_parent_where_no_process_is_left() -> None:
    family = Family()
    helper = family.dialogue.worker("helper")
    family.waits()
    family.room(0)
    family.child()
    helper.grant()
    helper.disconnect()
    assert family.worker.grant().options == {"parent": family.name}


def test_a_task_that_goes_on_takes_its_slot_again() -> None:
    family = Family()
    family.waits()
    assert family.outstanding == 0
    family.waits(messages.Resumed)
    assert family.outstanding == 1
    family.outer.submit(function="other")
    family.worker.hears_nothing()
    family.worker.done(family.parent)
    assert family.outstanding == 1  # the other one


def test_what_comes_twice_or_late_of_a_wait_is_harmless() -> None:
    family = Family()
    family.waits()
    family.waits(change=1)
    assert family.outstanding == 0
    family.waits(messages.Resumed)
    family.waits(change=1)
    family.waits(messages.Resumed, change=2)
    assert family.outstanding == 1
    family.worker.done(family.parent)
    family.waits()
    assert family.outstanding == 0


def test_resources_stay_taken_while_a_task_waits() -> None:
    dialogue = Dialogue()
    outer, worker = dialogue.client("outer"), dialogue.worker("w", 2, gpu=1.0)
    outer.submit(2, resources={"gpu": 1.0})
    parent = worker.grant()
    worker.say(messages.Suspended(EPOCH, 1, parent.runs[0], parent.attempt))
    worker.hears_nothing()  # two slots are free, and no gpu


def test_where_few_processes_are_left_only_children_are_granted() -> None:
    family = Family()
    family.room(0)
    family.waits()
    family.outer.submit(3, function="other")
    family.worker.hears_nothing()
    family.child()
    assert family.worker.grant().options["parent"] == family.name
    family.room(1)
    family.worker.hears_nothing()  # its slot is taken


@pytest.mark.parametrize("end", ["done", "failed", "lost", "cancelled"])
def test_unfinished_children_end_with_their_parent(end: str) -> None:
    family = Family(slots=2)
    family.child()
    running = family.worker.grant()
    family.child(2)
    if end == "done":
        family.worker.done(family.parent)
        family.outer.hear(messages.Finished)
    elif end == "failed":
        family.worker.run_failed(family.parent)
        family.outer.hear(messages.Failed)
    elif end == "lost":
        family.worker.run_failed(family.parent, "died")
    else:
        family.outer.say(messages.Cancel([0, 1]))
        family.outer.hear(messages.Failed)
    family.dialogue.wait(0.0)
    told = [message for message in family.inner.inbox if isinstance(message, messages.Failed)]
    assert [message.runs[0] for message in told] == [0, 1, 2] and {message.kind for message in told} == {"cancelled"}
    stops = [message.names for message in family.worker.inbox if isinstance(message, messages.Stop)]
    assert [running.attempt, running.runs[0]] in stops
    assert not any(isinstance(message, messages.Grant) and message.label == "child" for message in family.worker.inbox)


def test_a_kept_child_outlives_its_parent() -> None:
    family = Family()
    number = family.child()
    family.inner.say(messages.Keep([number, 1]))
    family.worker.done(family.parent)
    assert family.worker.grant().label == "child"
    family.inner.disconnect()
    family.dialogue.wait(0.0)
    assert not any(isinstance(message, messages.Stop) for message in family.worker.inbox)


def test_children_submitted_after_their_parent_has_ended_are_not_run() -> None:
    family = Family()
    family.worker.done(family.parent)
    family.child()
    family.dialogue.wait(0.0)
    assert family.inner.hear(messages.Failed).kind == "cancelled"
    assert not any(isinstance(message, messages.Grant) for message in family.worker.inbox)


def test_who_asks_where_a_child_is_that_went_with_its_parent_is_told_that_it_is_nowhere() -> None:
    family = Family(slots=2)
    first = family.child(2)
    done = family.worker.grant()
    family.worker.done(done)  # which keeps the numbers of both known
    family.worker.done(family.parent)
    family.outer.hear(messages.Finished)
    while not isinstance(family.inner.inbox[0], messages.Failed):
        family.inner.inbox.popleft()
    gone = family.inner.hear(messages.Failed).runs[0]
    assert gone in (first, first + 1)
    family.inner.say(messages.Locate(7, [gone, 1]))
    assert family.inner.hear(messages.Located) == messages.Located(7, [])


def test_what_is_handed_over_outlives_its_release_until_the_value_holds_it() -> None:
    family = Family(slots=2)
    number, child = family.hands_over_a_child()
    family.worker.hears_nothing()  # not freed
    family.worker.done(family.parent, contains=[[family.parent.runs[0], [family.inner.client_id, number]]])
    family.worker.hears_nothing()
    family.outer.hear(messages.Finished)
    family.outer.say(messages.Release([0, 1]))
    assert sorted(family.worker.freed()) == sorted([(child.attempt, child.runs[0]), tuple(family.name)])


def test_what_is_handed_over_goes_with_a_parent_that_failed() -> None:
    family = Family(slots=2)
    _, child = family.hands_over_a_child()
    family.worker.run_failed(family.parent)
    assert family.worker.freed() == [(child.attempt, child.runs[0])]


def test_a_slots_client_has_no_grace() -> None:
    family = Family(slots=2)
    family.child()
    child = family.worker.grant()
    family.inner.disconnect()
    family.dialogue.wait(0.0)
    assert family.worker.hear(messages.Stop).names == [child.attempt, child.runs[0]]
    assert len(family.dialogue.ledger.clients) == 1


def test_a_parent_that_makes_no_sense_is_refused() -> None:
    family = Family()
    with pytest.raises(ProtocolError, match="a parent is"):
        family.inner.submit(function="child", parent="me")


def test_a_task_that_dies_while_it_waits_is_not_charged_as_if_it_ran() -> None:
    family = Family()
    for _ in range(9):
        family.worker.run_failed(family.parent, "died", waiting=True)
        family.parent = family.worker.grant()
    family.worker.run_failed(family.parent, "died", waiting=True)
    assert family.outer.hear(messages.Failed).kind == "died"


def test_a_worker_that_goes_while_its_tasks_wait_leaves_nothing() -> None:
    family = Family()
    family.child()
    family.waits()
    family.worker.grant()
    family.worker.disconnect()
    other = family.dialogue.worker("other")
    assert other.grant().label == "parent"
    row = family.parent.runs[0]
    assert family.dialogue.ledger.table.state[row] == GRANTED


# ------------------------------------------------------------------ the agent


def waits(agent: AgentModel, slot: int) -> int:
    """The task that the slot has claimed waits; its sequence."""
    sequence = agent.slots[slot].claimed
    agent.slots[slot].claimed = 0
    agent.feed(events.SlotWaits(slot, sequence))
    return sequence


def test_a_child_runs_inside_its_parent_and_the_parent_goes_on_after_it() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    parent = waits(agent, 0)
    assert agent.expect(messages.Suspended)[2:] == (0, 1)
    assert agent.noted == [(0, parent)]
    agent.tell(grant(2, 1, first_row=5, parent=[1, 0]))
    agent.finish(0)
    assert agent.expect(messages.Done).runs == [5, 1]
    agent.feed(events.SlotWoken(0, parent))
    assert agent.expect(messages.Resumed)[2:] == (0, 1)
    assert agent.went_on == [(0, parent, False)]
    agent.slots[0].claimed = parent
    agent.finish(0)
    agent.wait(0.01)
    assert agent.expect(messages.Done).runs == [0, 1]
    assert not agent.starting


def test_what_is_no_child_gets_a_process_of_its_own() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    parent = waits(agent, 0)
    agent.tell(grant(2, 1, first_row=5))
    assert agent.starting == [1]
    agent.start_slots()
    agent.slots[1].claim()
    agent.feed(events.SlotWoken(0, parent))
    assert not agent.went_on  # the one seat is taken
    agent.tell(grant(3, 1, first_row=6))
    agent.finish(1)
    assert agent.went_on == [(0, parent, False)]
    assert not agent.slots[1].pipe  # who has waited went first


def test_what_was_granted_ahead_goes_back_when_a_task_waits() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 50))
    for _ in range(3):
        agent.finish(0)  # it is known to be short, so the pipe is filled
    agent.wait(0.01)
    agent.slots[0].claim()
    assert agent.slots[0].pipe
    agent.sent.clear()
    waits(agent, 0)
    agent.expect(messages.Suspended)
    back = agent.expect(messages.Recalled)
    assert back.request == -1 and len(back.names) == 2 * 46
    assert not agent.slots[0].pipe


def test_children_whose_parent_has_one_inside_already_get_a_free_seat() -> None:
    agent = AgentModel(2)
    for attempt in (1, 2):
        agent.tell(grant(attempt, 1, first_row=attempt))
        agent.slots[attempt - 1].claim()
    waits(agent, 0)
    for attempt in (3, 4):
        agent.tell(grant(attempt, 1, first_row=attempt, parent=[1, 1]))
    agent.slots[0].claim()
    assert not agent.starting
    waits(agent, 1)
    assert agent.starting == [2]  # the scheduler has granted all that it may, so nothing else would come


def test_a_child_that_was_given_as_its_parent_went_on_runs_inside_its_next_wait() -> None:
    agent = AgentModel(1, one_task_at_a_time=True)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    parent = waits(agent, 0)
    agent.tell(grant(2, 2, first_row=5, parent=[1, 0]))
    agent.finish(0)  # and the second child is put into the pipe, from which nothing can be taken back
    agent.feed(events.SlotWoken(0, parent))
    assert agent.went_on == [(0, parent, False)]
    agent.slots[0].claimed = parent
    waits(agent, 0)
    assert agent.noted == [(0, parent)] * 2
    agent.finish(0)
    agent.feed(events.SlotWoken(0, parent))
    agent.slots[0].claimed = parent
    agent.finish(0)
    agent.wait(0.01)
    done = [message for message in agent.sent if isinstance(message, messages.Done)]
    assert sum(sum(message.runs[1::2]) for message in done) == 3


def test_at_most_eight_further_processes_a_slot() -> None:
    agent = AgentModel(1)
    for attempt in range(1, 10):
        agent.tell(grant(attempt, 1, first_row=attempt))
        agent.start_slots()
        agent.slots[attempt - 1].claim()
        waits(agent, attempt - 1)
        agent.expect(messages.Suspended)
    assert agent.expect(messages.Room).tasks == 0
    agent.tell(grant(10, 1, first_row=100))
    assert agent.expect(messages.Recalled).names == [10, 100]
    assert not agent.starting
    agent.tell(grant(11, 1, first_row=101, parent=[4, 4]))
    assert agent.finish(3)  # a child of the fourth runs inside it


def test_stopping_a_task_that_waits_stops_what_runs_inside_first() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    parent = waits(agent, 0)
    agent.tell(grant(2, 1, first_row=5, parent=[1, 0]))
    child = agent.slots[0].claim()
    agent.tell(messages.Stop([1, 0]))
    assert agent.slots[0].interrupted == [child] and not agent.went_on
    agent.sent.clear()
    agent.report(0, [0.1, "interrupted", b"", {}])
    failed = agent.expect(messages.RunFailed)
    assert (failed.row, failed.kind) == (5, "cancelled")
    assert agent.went_on == [(0, parent, True)]
    agent.slots[0].claimed = parent
    agent.report(0, [0.1, "interrupted", b"", {}])
    agent.expect(messages.Resumed)
    assert agent.expect(messages.RunFailed).kind == "cancelled"


def test_a_task_that_waits_too_long_is_made_to_go_on() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1, timeout_seconds=2.0))
    agent.slots[0].claim()
    parent = waits(agent, 0)
    agent.wait(1.9)
    assert not agent.went_on
    agent.wait(0.2)
    assert agent.went_on == [(0, parent, True)]
    agent.sent.clear()
    agent.slots[0].claimed = parent
    agent.report(0, [0.1, "interrupted", b"", {}])
    assert agent.expect(messages.RunFailed).kind == "timeout"


def test_a_death_charges_who_ran_and_tells_of_those_who_waited() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    waits(agent, 0)
    agent.tell(grant(2, 1, first_row=5, parent=[1, 0]))
    agent.slots[0].claim()
    waits(agent, 0)
    agent.tell(grant(3, 1, first_row=6, parent=[2, 5]))
    agent.slots[0].claim()
    agent.sent.clear()
    agent.die(0)
    ends = [agent.expect(messages.RunFailed) for _ in range(3)]
    assert [(end.row, end.kind, end.details.get("waiting", False)) for end in ends] == [
        (6, "died", False), (5, "died", True), (0, "died", True),
    ]  # fmt: skip
    assert agent.starting == [0]


def test_a_death_while_all_wait_charges_the_innermost() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    waits(agent, 0)
    agent.sent.clear()
    agent.die(0)
    assert "waiting" not in agent.expect(messages.RunFailed).details


def test_children_left_in_the_pipe_are_not_run_inside_their_grandparent() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    waits(agent, 0)
    agent.tell(grant(2, 1, first_row=5, parent=[1, 0]))
    agent.slots[0].claim()
    middle = waits(agent, 0)
    agent.tell(grant(3, 1, first_row=6, parent=[2, 5]))
    assert agent.slots[0].pipe
    agent.feed(events.SlotWoken(0, middle))
    assert agent.went_on == [(0, middle, False)]
    assert not agent.slots[0].pipe


def test_a_worker_that_drains_lets_those_who_wait_go_on() -> None:
    agent = AgentModel(1)
    agent.tell(grant(1, 1))
    agent.slots[0].claim()
    parent = waits(agent, 0)
    agent.feed(events.DrainAsked())
    assert agent.closed is None
    agent.feed(events.SlotWoken(0, parent))
    assert agent.went_on == [(0, parent, False)]
    agent.slots[0].claimed = parent
    agent.finish(0)
    assert agent.closed is not None


def test_idle_further_processes_are_ended_but_for_one_a_slot() -> None:
    agent = AgentModel(1)
    parents = []
    for attempt in range(1, 5):
        agent.tell(grant(attempt, 1, first_row=attempt))
        agent.start_slots()
        agent.slots[attempt - 1].claim()
        parents.append(waits(agent, attempt - 1))
    for slot, parent in enumerate(parents):
        agent.feed(events.SlotWoken(slot, parent))
        agent.slots[slot].claimed = parent
        agent.finish(slot)
    assert len(agent.killed) == 2
    for slot in list(agent.killed):
        agent.die(slot, signal=9)
    assert not agent.starting and len(agent.slots) == 2
