"""What the agent's machine does where slots have no pipe that tasks can be taken back from."""

from __future__ import annotations

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, grant, names_of


def measured_and_granted(slots: int, tasks: int) -> AgentModel:
    """A function that is known as short, and that many tasks of it."""
    model = AgentModel(slots, one_task_at_a_time=True)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, tasks))
    return model


def test_a_slot_has_one_task_however_short_they_are() -> None:
    model = measured_and_granted(2, 100)
    assert [len(model.slots[slot].pipe) for slot in (0, 1)] == [1, 1]
    assert model.work() == 100


def test_a_recall_takes_from_the_queue_and_waits_for_nobody() -> None:
    model = measured_and_granted(1, 5)
    model.tell(messages.Recall(1, 100))
    assert model.expect(messages.Recalled).names == [2, 4, 2, 3, 2, 2, 2, 1]
    assert model.work() == 1


def test_a_given_task_is_stopped_like_one_that_runs() -> None:
    model = measured_and_granted(1, 2)
    [sequence] = model.slots[0].pipe
    model.tell(messages.Stop([2, 0]))
    assert model.slots[0].interrupted == [sequence]
    model.slots[0].claim()
    model.report(0, [0.0, "interrupted", b"", {}])
    assert model.expect(messages.RunFailed).kind == "cancelled"
    assert model.work() == 1


def test_a_drain_keeps_what_was_given() -> None:
    model = measured_and_granted(2, 9)
    model.feed(events.DrainAsked())
    model.expect(messages.Draining)
    assert len(names_of(model.expect(messages.Recalled))) == 7
    assert model.work() == 2
    assert model.closed is not None


def test_a_death_before_the_task_was_read_charges_nobody() -> None:
    model = measured_and_granted(1, 1)
    model.die(0)
    assert model.silent
    model.start_slots()
    assert model.work() == 1
