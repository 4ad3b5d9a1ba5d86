"""Who waits for room at an agent whose memory and disk are full: for how long, beside whom, and at whose expense."""

from __future__ import annotations

from cluster.wire import messages
from cluster.worker import events
from cluster.worker.pieces import IN_MESSAGE_BYTES
from tests.pure.agent_model import EPOCH, AgentModel, grant
from tests.pure.test_agent_memory import heartbeat
from tests.pure.test_agent_spilling import ask, make

MIB = 1 << 20
LIMIT = 100 * MIB
A, B = "tcp://a:1", "tcp://b:1"


def full_model(slots: int = 1, quota_bytes: int = MIB) -> AgentModel:
    """A worker with three values, 90 of 100 MiB, and a disk without room for any of them."""
    model = AgentModel(slots=slots, limit_bytes=LIMIT, quota_bytes=quota_bytes)
    for attempt in (1, 2, 3):
        make(model, attempt)
    assert not model.spills
    model.sent.clear()
    return model


def need(model: AgentModel, attempt: int, row: int, nbytes: int = 20 * MIB, holder: str = A) -> None:
    """A task is granted that takes a value from elsewhere; of a large one the shell asks for room, under its row."""
    model.tell(grant(attempt, 1, first_row=1000, values=[[row, 1, nbytes, [holder] if holder else []]], needs=[[0]]))
    if holder and nbytes > IN_MESSAGE_BYTES:
        assert model.fetches[-1].values == [row, 1, nbytes]
        model.feed(events.RoomAsked(row, -1, row, 1, nbytes))


def run_long(model: AgentModel, attempt: int, slot: int = 0) -> None:
    """A task begins that will run for long."""
    model.tell(grant(attempt, 1, first_row=2000))
    model.slots[slot].claim()


def has_result(model: AgentModel, nbytes: int, slot: int = 0) -> None:
    """The task in a slot has ended, and needs room for its value."""
    model.slots[slot].segment = ""
    model.feed(events.SegmentAsked(slot, model.slots[slot].claimed, nbytes))


def free(model: AgentModel, attempt: int) -> None:
    """The value that was made under an attempt is freed."""
    model.tell(messages.Free([attempt, 0, 1]))


def came(model: AgentModel, row: int, nbytes: int = 20 * MIB) -> None:
    """There was room, and the value has come."""
    (room,) = model.rooms
    assert room.incoming == row and room.path
    model.rooms.clear()
    model.feed(events.ValueFetched(A, row, 1, nbytes, b"", room.path))


def no_room(model: AgentModel) -> None:
    """There was none, so the shell does not fetch what it asked room for."""
    (room,) = model.rooms
    assert not room.path
    model.rooms.clear()
    model.feed(events.ValueNotFetched(A, room.incoming, 1, room.reason, "full"))


def refusals(model: AgentModel) -> list[str]:
    """What was said of tasks that went back because there was no room for an input."""
    failed = [message for message in model.sent if isinstance(message, messages.RunFailed)]
    assert all(message.kind == "full" for message in failed)
    return [message.details["message"] for message in failed]


# --------------------------------------------------------------------------- large values from elsewhere


def test_values_are_spilled_for_a_large_input() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    make(model, 1)
    make(model, 2)
    need(model, 5, 7, 50 * MIB)
    assert not model.rooms
    model.spill()
    assert heartbeat(model)["promised_bytes"] == 50 * MIB
    came(model, 7, 50 * MIB)
    figures = heartbeat(model)
    assert (figures["promised_bytes"], figures["segment_bytes"]) == (0, 80 * MIB)
    assert model.work() == 1


def test_a_large_input_for_which_nothing_can_be_spilled_is_a_file_on_disk() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    need(model, 5, 7, 2 * LIMIT)
    came(model, 7, 2 * LIMIT)
    assert model.placed == [True]
    assert heartbeat(model)["disk_bytes"] == 2 * LIMIT


def test_a_large_input_waits_for_what_a_running_task_will_leave() -> None:
    model = full_model()
    run_long(model, 4)
    need(model, 5, 7)
    model.wait(14.0)
    assert not model.rooms and not refusals(model)
    told = model.agent.whereabouts.find(5, 1000)
    assert told["where"] == "fetching" and "quota" in told["no_room"]
    free(model, 1)
    assert not model.agent.whereabouts.find(5, 1000)["no_room"]
    came(model, 7)
    assert model.work() == 2
    assert not refusals(model)


def test_a_transfer_that_is_not_to_be_takes_no_room_whenever_that_is_said() -> None:
    model = full_model()
    run_long(model, 4)
    need(model, 5, 7)
    model.feed(events.RoomReturned(7, ""))  # it waits
    free(model, 1)
    assert not model.rooms and len(model.placed) == 3
    model.hold_segments = True
    model.feed(events.RoomAsked(8, -1, 7, 1, 20 * MIB))
    model.feed(events.RoomReturned(8, ""))  # it is being made
    (created,) = model.held_segments
    model.feed(events.SegmentCreated(created.request, model.new_segment()))
    assert not model.rooms and len(model.segments) == 2
    model.hold_segments = False
    model.feed(events.RoomAsked(9, -1, 7, 1, 20 * MIB))
    (room,) = model.rooms
    model.feed(events.RoomReturned(9, room.path))  # it was given
    assert len(model.segments) == 2
    assert heartbeat(model)["promised_bytes"] == 0


def test_a_segment_that_could_not_be_made_for_a_transfer_that_has_ended_is_no_answer_to_anybody() -> None:
    model = full_model()
    free(model, 1)
    model.hold_segments = True
    need(model, 5, 7)
    model.feed(events.RoomReturned(7, ""))
    model.feed(events.SegmentFailed(model.held_segments[0].request, "full"))
    model.wait(20.0)
    assert not model.rooms and not refusals(model)


# --------------------------------------------------------------------------- for how long


def test_it_is_waited_for_as_long_as_something_becomes_free_on_disk_too() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT, quota_bytes=41 * MIB)
    make(model, 1, 10 * MIB)
    for attempt in (2, 3, 4):
        make(model, attempt)
    model.spill()
    model.spill()
    make(model, 5)  # 90 MiB in memory, and 40 of 41 on disk
    run_long(model, 6)
    need(model, 7, 7, 80 * MIB)
    model.wait(10.0)
    free(model, 1)
    model.wait(13.0)
    assert not model.spills and not model.rooms
    model.wait(3.0)
    no_room(model)
    (said,) = refusals(model)
    assert "no room for 80.0 MiB: 90.0 MiB of 100 MiB are in use, and the quota of 41.0 MiB" in said


def test_what_was_promised_in_vain_has_not_become_free() -> None:
    model = full_model()
    free(model, 1)
    run_long(model, 4)
    model.hold_segments = True
    need(model, 5, 7)
    waited = 0.0
    while not model.rooms:
        for created in model.held_segments:  # by the accounts there is room, and the store has none
            model.feed(events.Measured({}, {}))  # whatever happens meanwhile
            model.feed(events.SegmentFailed(created.request, "full"))
        model.held_segments.clear()
        model.wait(0.5)
        waited += 0.5
        assert waited < 20.0
    assert waited > 14.0
    no_room(model)
    assert len(refusals(model)) == 1


# --------------------------------------------------------------------------- beside whom


def test_a_result_does_not_wait_behind_an_input() -> None:
    model = full_model()
    run_long(model, 4)
    need(model, 5, 7)
    has_result(model, 5 * MIB)
    assert model.slots[0].segment


def test_an_input_waits_behind_no_other_that_is_larger_but_behind_results() -> None:
    model = full_model(slots=2)
    run_long(model, 4)
    run_long(model, 5, slot=1)
    need(model, 6, 7)
    need(model, 8, 8, 4 * MIB, holder=B)
    assert [room.incoming for room in model.rooms] == [8]
    has_result(model, 40 * MIB)
    need(model, 9, 9, 4 * MIB, holder=B)
    assert not model.slots[0].segment
    assert [room.incoming for room in model.rooms] == [8]


def test_an_input_that_waits_for_room_keeps_no_other_task_from_a_slot() -> None:
    model = full_model(slots=2)
    run_long(model, 4)
    run_long(model, 5, slot=1)
    need(model, 6, 7)
    model.report(1, [0.1, b"value"])
    assert not heartbeat(model)["intake_paused"]
    model.tell(grant(8, 1))
    assert model.slots[1].pipe


def test_what_else_comes_from_a_holder_passes_what_waits_for_room() -> None:
    model = full_model()
    run_long(model, 4)
    need(model, 5, 7, 70 * MIB)
    model.tell(grant(6, 1, values=[[8, 1, 5 * MIB, [A]]], needs=[[0]]))
    assert [fetch.values[0] for fetch in model.fetches] == [7, 8]
    told = [message for message in model.sent if isinstance(message, messages.FetchFailed)]
    assert told == [messages.FetchFailed(EPOCH, 7, 1, A, "it waits for room")], "the holder may serve another"
    free(model, 1)
    free(model, 2)
    came(model, 7, 70 * MIB)
    assert len(model.fetches) == 2


def test_when_there_is_room_again_it_counts_as_on_its_way() -> None:
    model = full_model()
    run_long(model, 4)
    need(model, 5, 7, 70 * MIB)
    free(model, 1)
    free(model, 2)
    model.tell(grant(6, 1, values=[[8, 1, 5 * MIB, [A]]], needs=[[0]]))
    assert [fetch.values[0] for fetch in model.fetches] == [7]
    came(model, 7, 70 * MIB)
    assert [fetch.values[0] for fetch in model.fetches] == [7, 8]


# --------------------------------------------------------------------------- at whose expense


def test_a_task_that_waits_for_room_while_a_slot_is_idle_goes_back_soon() -> None:
    model = full_model()
    need(model, 5, 7)
    model.wait(0.04)
    assert not model.rooms
    model.wait(0.02)
    no_room(model)
    (said,) = refusals(model)
    assert "no room for an input of 20.0 MiB beside what is held in 100 MiB" in said


def test_so_does_one_with_an_input_of_at_most_a_megabyte() -> None:
    model = full_model(quota_bytes=1000)
    make(model, 4, 10 * MIB)
    model.sent.clear()
    need(model, 5, 7, MIB)
    model.feed(events.ValueFetched(A, 7, 1, MIB, bytes(MIB), ""))
    model.wait(0.06)
    assert len(refusals(model)) == 1


def test_what_a_task_took_that_has_just_ended_is_waited_for() -> None:
    model = full_model()
    run_long(model, 4)
    need(model, 5, 7)
    model.finish(0)
    model.wait(0.03)
    free(model, 1)
    came(model, 7)
    assert model.work() == 1 and not refusals(model)


def test_while_results_wait_for_room_too_nothing_else_could_begin_so_it_is_not_hurried() -> None:
    model = full_model(slots=2)
    ask(model, 4, 30 * MIB)
    need(model, 5, 7)
    model.wait(5.0)
    assert not model.rooms and not model.slots[0].segment


def test_while_one_task_runs_at_a_time_no_slot_is_idle_for_want_of_another() -> None:
    model = full_model(slots=2)
    run_long(model, 4)
    model.feed(events.Measured({"slot_bytes": 20 * MIB}, {}))
    need(model, 5, 7)
    model.wait(5.0)
    assert heartbeat(model)["intake_paused"] and not model.rooms


def test_a_call_of_an_actor_takes_no_slot_and_is_not_hurried() -> None:
    model = full_model()
    model.tell(grant(4, 1, actor=[b"c" * 16, 4, 0]))
    model.start_slots()
    actor = max(model.slots)
    model.finish(actor, data=b"reference")
    model.sent.clear()
    values = [[7, 1, 20 * MIB, [A]], [0, 4, 9, []]]
    model.tell(grant(5, 1, values=values, needs=[[0, 1]], actor_call=True))
    model.feed(events.RoomAsked(7, -1, 7, 1, 20 * MIB))
    model.wait(14.0)
    assert not model.rooms
    free(model, 1)
    came(model, 7)
    assert model.slots[actor].pipe


def test_an_ordered_copy_waits_as_long_as_a_result() -> None:
    model = full_model()
    model.tell(messages.Fetch([[7, 1, 20 * MIB, [A]]]))
    model.feed(events.RoomAsked(7, -1, 7, 1, 20 * MIB))
    model.wait(14.0)
    assert not [message for message in model.sent if isinstance(message, messages.FetchFailed)]
    model.wait(3.0)
    no_room(model)
    (told,) = [message for message in model.sent if isinstance(message, messages.FetchFailed)]
    assert "no room for 20.0 MiB" in told.reason


# --------------------------------------------------------------------------- values that clients push


def test_a_large_value_is_pushed_when_there_is_room() -> None:
    model = AgentModel()
    model.feed(events.RoomAsked(1, 4, 7, 1, 20 * MIB))
    (room,) = model.rooms
    model.feed(events.ValuePut(4, 7, 1, 20 * MIB, room.path))
    assert model.to_peers == [events.ToPeer(4, messages.PutDone(7, 1, ""))]
    figures = heartbeat(model)
    assert (figures["promised_bytes"], figures["segment_bytes"]) == (0, 20 * MIB)
    model.feed(events.RoomAsked(2, 4, 7, 1, 20 * MIB))
    assert model.rooms[1:] == [events.AnswerRoom(2, "", "it is here")]
    assert model.to_peers == [events.ToPeer(4, messages.PutDone(7, 1, ""))] * 2


def test_a_client_does_not_stand_and_wait_with_what_no_task_needs_yet() -> None:
    model = full_model()
    run_long(model, 4)
    model.feed(events.RoomAsked(1, 4, 7, 1, 20 * MIB))
    model.wait(0.06)
    (told,) = model.to_peers
    assert told.peer == 4 and told.message.full and "no room for 20.0 MiB" in told.message.error
    assert [room.path for room in model.rooms] == [""]


def test_what_a_task_needs_is_waited_for_by_who_pushes_it_too() -> None:
    model = full_model()
    run_long(model, 4)
    need(model, 5, 7, holder="")
    model.feed(events.RoomAsked(7, 4, 7, 1, 20 * MIB))
    model.wait(14.0)
    assert not model.to_peers and not model.rooms
    model.finish(0)
    model.wait(0.06)
    (told,) = model.to_peers
    assert told.message.full
    assert len(refusals(model)) == 1


def test_a_result_that_nobody_waits_for_any_more_stands_in_no_line() -> None:
    model = full_model(slots=2)
    ask(model, 4, 30 * MIB)
    assert heartbeat(model)["intake_paused"]
    model.report(0, [0.1, "exception", b"", {}])
    assert not heartbeat(model)["intake_paused"]
