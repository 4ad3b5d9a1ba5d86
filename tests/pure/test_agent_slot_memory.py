"""What the agent's machine does about the memory that slots hold: trim, recycle, end, in this order."""

from __future__ import annotations

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, grant
from tests.pure.test_agent_spilling import make

MIB = 1 << 20
LIMIT = 1000 * MIB


def measure(model: AgentModel, *slots: int) -> None:
    """The slots hold so many MiB."""
    by_slot = {slot: nbytes * MIB for slot, nbytes in enumerate(slots)}
    model.feed(events.Measured({"slot_bytes": sum(by_slot.values()), "starter_bytes": 20 * MIB}, by_slot))


def new_model(slots: int = 2) -> AgentModel:
    model = AgentModel(slots=slots, limit_bytes=LIMIT)
    measure(model, *[20] * slots)
    return model


def test_a_slot_that_holds_memory_without_a_task_is_trimmed_after_a_while_once() -> None:
    model = new_model()
    model.tell(grant(1, 1))
    model.finish(0)
    measure(model, 100, 20)
    assert not model.trims, "it may soon need it again"
    model.wait(6.0)
    measure(model, 100, 20)
    assert model.trims == [0]
    model.feed(events.SlotTrimmed(0, 60 * MIB))
    model.wait(20.0)
    measure(model, 60, 20)
    assert model.trims == [0], "what is left is in use"
    assert not model.killed


def test_all_slots_are_trimmed_when_memory_is_short() -> None:
    model = new_model()
    model.tell(grant(1, 1))
    model.slots[0].claim()
    measure(model, 500, 380)
    assert model.trims == [0, 1]
    model.wait(0.3)
    measure(model, 500, 380)
    assert model.trims == [0, 1], "they are at it"


def test_a_slot_that_has_grown_is_replaced_between_tasks_and_nobody_is_charged() -> None:
    model = new_model()
    model.tell(grant(1, 1))
    model.finish(0)
    model.tell(grant(2, 1))
    model.slots[0].claim()
    model.sent.clear()
    measure(model, 400, 20)
    model.feed(events.SlotTrimmed(0, 400 * MIB))
    assert not model.killed, "it runs a task"
    model.finish(0)
    assert model.killed == [0]
    assert "slot 0 is replaced" in model.said[0]
    model.tell(grant(3, 2))
    model.die(0, signal=9)
    model.start_slots()
    model.work()
    model.wait(0.1)
    ended = [message for message in model.sent if isinstance(message, messages.Done | messages.RunFailed)]
    assert sum(sum(message.runs[1::2]) for message in ended if isinstance(message, messages.Done)) == 3
    assert not [message for message in ended if isinstance(message, messages.RunFailed)]


def test_a_slot_that_holds_little_more_than_another_is_left_alone() -> None:
    model = new_model()
    measure(model, 120, 20)
    model.feed(events.SlotTrimmed(0, 120 * MIB))
    assert not model.killed


def test_a_task_that_needs_more_than_there_is_is_ended_alone_with_the_figures() -> None:
    model = new_model()
    model.tell(grant(1, 2))
    model.slots[0].claim()
    model.slots[1].claim()
    model.sent.clear()
    measure(model, 900, 200)
    assert not model.killed, "it may be over in a moment"
    model.wait(0.6)
    measure(model, 900, 200)
    assert model.killed == [0]
    model.die(0, signal=9)
    failed = model.expect(messages.RunFailed)
    assert (failed.kind, failed.details["out_of_memory_by"]) == ("died", "worker")
    assert failed.details["memory_limit_bytes"] == LIMIT
    assert failed.details["used_bytes"] == 1100 * MIB
    assert failed.details["peak_memory_bytes"] == 900 * MIB
    assert "900 MiB" in failed.details["message"] and "1000 MiB" in failed.details["message"]
    model.finish(1)
    model.expect(messages.Done)


def test_nobody_is_ended_while_values_can_make_room() -> None:
    model = new_model()
    make(model, 1, 300 * MIB)
    model.tell(grant(2, 1))
    model.slots[0].claim()
    for _ in range(5):
        measure(model, 900, 20)
        model.wait(0.6)
    assert not model.killed
    assert model.spills
    model.spill()
    measure(model, 900, 20)
    model.wait(0.6)
    measure(model, 900, 20)
    assert not model.killed, "it fits now"


def test_a_task_that_ends_by_itself_before_it_is_ended_charges_nobody() -> None:
    model = new_model(slots=1)
    model.tell(grant(1, 2))
    model.slots[0].claim()
    model.sent.clear()
    measure(model, 1100)
    model.wait(0.6)
    measure(model, 1100)
    assert model.killed == [0]
    model.finish(0)
    model.tell(grant(5, 1))
    model.die(0, signal=9)
    model.start_slots()
    model.work()
    model.wait(0.1)
    assert not [message for message in model.sent if isinstance(message, messages.RunFailed)]


def test_a_worker_whose_own_process_has_grown_drains_and_starts_again() -> None:
    model = new_model(slots=1)
    model.tell(grant(1, 1))
    model.slots[0].claim()
    figures = {"slot_bytes": 20 * MIB, "starter_bytes": 20 * MIB, "agent_bytes": 100 * MIB}
    model.feed(events.Measured(figures, {0: 20 * MIB}))
    figures["agent_bytes"] = 990 * MIB
    for _ in range(40):
        model.feed(events.Measured(figures, {0: 20 * MIB}))
        model.wait(1.0)
    assert not model.killed, "no slot is to blame"
    assert "drains and restarts: its own process holds 990 MiB" in model.said[-1]
    assert any(isinstance(message, messages.Draining) for message in model.sent)
    assert model.closed is None, "the running task ends first"
    model.finish(0)
    assert model.closed is not None
    assert model.closed.exit_status == events.RESTART_STATUS


def test_a_limit_below_what_a_worker_needs_from_the_start_is_no_reason_to_start_again() -> None:
    model = AgentModel(slots=1, limit_bytes=50 * MIB)
    for _ in range(60):
        model.feed(events.Measured({"slot_bytes": 30 * MIB, "agent_bytes": 60 * MIB}, {0: 30 * MIB}))
        model.wait(1.0)
    assert model.closed is None and not model.said and not model.killed


def test_many_small_values_are_no_reason_to_start_again() -> None:
    model = AgentModel(slots=1, limit_bytes=10 * MIB)
    for attempt in range(1, 200):
        model.tell(grant(attempt, 1))
        model.finish(0, data=b"v" * 60_000)
    for _ in range(40):
        model.feed(events.Measured({"agent_bytes": 12 * MIB}, {}))
        model.wait(1.0)
    assert model.closed is None and not model.said
