"""What the agent's machine counts of its memory, and says in its heartbeats."""

from __future__ import annotations

from typing import Any

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, grant

MIB = 1 << 20


def heartbeat(model: AgentModel) -> dict[str, Any]:
    """The figures of the next heartbeat."""
    model.sent.clear()
    model.wait(1.0)
    reports = [message for message in model.sent if isinstance(message, messages.AgentHeartbeat)]
    model.sent.clear()
    figures: dict[str, Any] = reports[-1].report
    return figures


def nonzero(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name.endswith("_bytes") and value}


def test_all_that_is_in_memory_is_counted_by_its_kind() -> None:
    model = AgentModel(slots=2)
    model.tell(grant(1, 2))
    model.slots[0].claim()
    model.feed(events.SegmentAsked(0, model.slots[0].claimed, 3 * MIB))
    assert nonzero(heartbeat(model)) == {"limit_bytes": 1 << 30, "promised_bytes": 3 * MIB}
    model.report(0, [0.1, "segment", 3 * MIB, []])
    model.finish(1, data=b"x" * 100)
    model.feed(events.Measured({"slot_bytes": 7 * MIB, "free_segment_bytes": 5}, {}))
    assert nonzero(heartbeat(model)) == {
        "limit_bytes": 1 << 30,
        "segment_bytes": 3 * MIB,
        "small_bytes": 100,
        "slot_bytes": 7 * MIB,
        "free_segment_bytes": 5,
    }
    model.tell(messages.Free([1, 0, 2]))
    assert nonzero(heartbeat(model)) == {"limit_bytes": 1 << 30, "slot_bytes": 7 * MIB, "free_segment_bytes": 5}


def test_a_value_on_disk_is_not_counted_as_memory() -> None:
    model = AgentModel(slots=1)
    model.on_disk = True
    model.tell(grant(1, 1))
    model.slots[0].claim()
    model.feed(events.SegmentAsked(0, model.slots[0].claimed, 3 * MIB))
    assert nonzero(heartbeat(model)) == {"limit_bytes": 1 << 30}
    model.report(0, [0.1, "segment", 3 * MIB, []])
    assert nonzero(heartbeat(model)) == {"limit_bytes": 1 << 30, "disk_bytes": 3 * MIB}


def test_a_promise_ends_with_the_slot_it_was_made_to() -> None:
    model = AgentModel(slots=1)
    for hold in (False, True):
        model.hold_segments = hold
        model.tell(grant(1 + hold, 1))
        model.slots[0].claim()
        model.feed(events.SegmentAsked(0, model.slots[0].claimed, 3 * MIB))
        model.die(0)
        if hold:
            assert heartbeat(model)["promised_bytes"] == 3 * MIB, "it is still being made"
            model.feed(events.SegmentCreated(model.held_segments[0].request, model.new_segment()))
        assert heartbeat(model)["promised_bytes"] == 0
        assert not model.segments
        model.start_slots()


def test_a_promise_ends_when_there_is_no_room_or_the_task_fails() -> None:
    model = AgentModel(slots=1)
    for full in (True, False):
        model.full = full
        model.tell(grant(1 + (not full), 1))
        model.slots[0].claim()
        model.feed(events.SegmentAsked(0, model.slots[0].claimed, 3 * MIB))
        model.report(0, [0.1, "exception", b"", {}])
        assert heartbeat(model)["promised_bytes"] == 0
        assert not model.segments
