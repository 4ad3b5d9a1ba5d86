"""Which values the agent's machine sends to disk, who waits for that, and how they are used from there."""

from __future__ import annotations

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import OWN_ADDRESS, AgentModel, grant
from tests.pure.test_agent_memory import heartbeat

MIB = 1 << 20
LIMIT = 100 * MIB


def ask(model: AgentModel, attempt: int, nbytes: int = 30 * MIB, slot: int = 0) -> None:
    """A task begins in a slot and asks for a segment for its value."""
    model.tell(grant(attempt, 1))
    model.slots[slot].claim()
    model.slots[slot].segment = ""
    model.feed(events.SegmentAsked(slot, model.slots[slot].claimed, nbytes))


def make(model: AgentModel, attempt: int, nbytes: int = 30 * MIB, slot: int = 0) -> str:
    """A task makes a value; its path."""
    ask(model, attempt, nbytes, slot)
    path = model.slots[slot].segment
    assert path
    model.report(slot, [0.1, "segment", nbytes, []])
    return path


def use(model: AgentModel, attempt: int, *made: int) -> None:
    """A task that takes values is granted."""
    values = [[0, one, 30 * MIB, [OWN_ADDRESS]] for one in made]
    model.tell(grant(attempt, 1, values=values, needs=[list(range(len(made)))]))


def full_model(slots: int = 1, quota_bytes: int = 0) -> AgentModel:
    """A worker with three values, 90 of 100 MiB, that was left alone since: the oldest is being spilled."""
    model = AgentModel(slots=slots, limit_bytes=LIMIT, quota_bytes=quota_bytes)
    for attempt in (1, 2, 3):
        make(model, attempt)
    return model


# --------------------------------------------------------------------------- to disk


def test_the_least_recently_needed_value_goes_to_disk_before_memory_is_full() -> None:
    model = full_model()
    assert [spill.key >> 32 for spill in model.spills] == [1]
    figures = heartbeat(model)
    assert (figures["segment_bytes"], figures["spilling_bytes"], figures["spilled_bytes"]) == (90 * MIB, 30 * MIB, 0)
    model.spill()
    figures = heartbeat(model)
    assert (figures["segment_bytes"], figures["spilling_bytes"], figures["spilled_bytes"]) == (60 * MIB, 0, 30 * MIB)
    assert figures["disk_bytes"] == 30 * MIB
    assert not model.spills


def test_a_value_that_was_used_goes_later_than_one_that_was_not() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    make(model, 1)
    make(model, 2)
    use(model, 5, 1)
    model.finish(0)
    make(model, 6)
    assert [spill.key >> 32 for spill in model.spills] == [2]


def test_who_asks_for_room_waits_for_what_is_being_spilled() -> None:
    model = full_model()
    ask(model, 4)
    assert not model.slots[0].segment
    model.spill()
    assert model.slots[0].segment
    assert model.placed == [False] * 4


def test_what_granted_tasks_need_stays_and_the_new_value_is_a_file_on_disk() -> None:
    model = AgentModel(slots=2, limit_bytes=LIMIT)
    for attempt in (1, 2):
        make(model, attempt)
    model.slots[0].claimed = 0
    use(model, 5, 1, 2)
    model.slots[0].claim()
    model.tell(grant(6, 1))
    model.slots[1].claim()
    model.feed(events.SegmentAsked(1, model.slots[1].claimed, 50 * MIB))
    assert not model.spills
    assert model.slots[1].segment.startswith("/disk/")
    assert model.placed[-1]


def test_a_value_larger_than_the_limit_is_a_file_on_disk_and_sends_nothing_else_there() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    make(model, 1)
    assert make(model, 2, 2 * LIMIT).startswith("/disk/")
    assert not model.spills


def test_a_value_that_a_slot_has_when_its_copy_is_done_leaves_memory_when_the_slot_has_done() -> None:
    model = full_model()
    use(model, 5, 1)
    model.slots[0].claim()
    (path, _), *_ = model.slots[0].inputs()
    model.spill()
    assert path in model.segments
    model.finish(0)
    model.wait(0.1)
    assert path not in model.segments
    assert heartbeat(model)["segment_bytes"] == 60 * MIB


def test_a_value_that_is_freed_while_it_is_copied_leaves_nothing() -> None:
    model = full_model()
    model.tell(messages.Free([1, 0, 1]))
    model.spill()
    model.tell(messages.Free([2, 0, 1, 3, 0, 1]))
    assert not model.segments
    figures = heartbeat(model)
    assert not any(figures[name] for name in ("segment_bytes", "spilling_bytes", "spilled_bytes", "promised_bytes"))


def test_the_heaps_of_slots_are_counted_and_make_values_go() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    make(model, 1)
    model.feed(events.Measured({"slot_bytes": 65 * MIB}, {}))
    assert [spill.key >> 32 for spill in model.spills] == [1]


def test_segments_that_are_kept_for_later_are_given_back_first() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    make(model, 1)
    model.feed(events.Measured({"slot_bytes": 30 * MIB, "free_segment_bytes": 50 * MIB}, {}))
    assert model.shrunk == [10 * MIB]
    make(model, 2, 20 * MIB)
    assert model.shrunk == [10 * MIB, 20 * MIB]
    assert not model.spills


# --------------------------------------------------------------------------- from disk


def spilled_model() -> AgentModel:
    model = full_model(slots=2)
    model.spill()
    return model


def test_a_spilled_value_is_compared_before_a_task_gets_it() -> None:
    model = spilled_model()
    use(model, 5, 1)
    assert not model.slots[0].pipe and not model.slots[1].pipe
    (check,) = model.checks
    assert (check.key >> 32, check.checksum) == (1, 7)
    model.feed(events.SpilledChecked(check.key, check.path, check.path, ""))
    model.slots[0].claim()
    assert model.slots[0].inputs() == [[check.path, 30 * MIB]]
    use(model, 6, 1)
    assert len(model.checks) == 1, "it was compared just now"


def test_a_queued_task_whose_input_is_spilled_meanwhile_waits_until_it_is_compared() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    make(model, 1)
    model.tell(grant(4, 1))
    model.slots[0].claim()
    use(model, 5, 1)
    model.feed(events.Measured({"slot_bytes": 90 * MIB}, {}))
    assert [spill.key >> 32 for spill in model.spills] == [1], "nothing else is left, and the limit is passed"
    model.spill()
    model.finish(0)
    assert not model.slots[0].pipe
    (check,) = model.checks
    model.feed(events.SpilledChecked(check.key, check.path, check.path, ""))
    model.slots[0].claim()
    assert model.slots[0].inputs() == [[check.path, 30 * MIB]]


def test_a_damaged_value_is_a_lost_one() -> None:
    model = spilled_model()
    model.sent.clear()
    use(model, 5, 1)
    (check,) = model.checks
    model.feed(events.SpilledChecked(check.key, check.path, check.path, "its checksum differs"))
    lost = model.expect(messages.FetchFailed)
    assert (lost.row, lost.attempt, lost.address) == (0, 1, OWN_ADDRESS)
    failed = model.expect(messages.RunFailed)
    assert failed.kind == "missing"
    assert (failed.details["row"], failed.details["attempt"], failed.details["address"]) == (0, 1, OWN_ADDRESS)
    assert check.path not in model.segments
    assert "damaged" in model.said[0]
    model.feed(events.FromPeer(1, messages.GetValues(1, [0, 1])))
    assert isinstance(model.to_peers[-1].message, messages.ValueMissing)


def test_a_peer_gets_its_answers_in_order_though_one_has_to_be_compared() -> None:
    model = spilled_model()
    model.feed(events.FromPeer(1, messages.GetValues(1, [0, 2, 0, 1, 0, 3])))
    model.feed(events.FromPeer(2, messages.GetValues(1, [0, 3])))
    assert [(answer.peer, answer.attempt) for answer in model.to_peers] == [(1, 2), (2, 3)]
    (check,) = model.checks
    model.feed(events.SpilledChecked(check.key, check.path, check.path, ""))
    assert [(answer.peer, answer.attempt) for answer in model.to_peers] == [(1, 2), (2, 3), (1, 1), (1, 3)]


def test_a_compressed_value_is_unpacked_once_and_its_packed_file_removed() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT, compression="zstd")
    for attempt in (1, 2, 3):
        make(model, attempt)
    assert model.spills[0].compression == "zstd"
    model.spill()
    use(model, 5, 1)
    (check,) = model.checks
    plain = model.new_segment(on_disk=True)
    model.feed(events.SpilledChecked(check.key, check.path, plain, ""))
    assert check.path not in model.segments
    model.slots[0].claim()
    assert model.slots[0].inputs() == [[plain, 30 * MIB]]


def test_a_spilled_value_that_is_freed_while_it_is_compared_is_missing() -> None:
    model = spilled_model()
    use(model, 5, 1)
    model.sent.clear()
    (check,) = model.checks
    model.tell(messages.Free([1, 0, 1]))
    assert model.expect(messages.RunFailed).kind == "missing"
    model.feed(events.SpilledChecked(check.key, check.path, check.path, ""))
    assert model.silent


def test_a_value_that_came_anew_is_compared_though_its_former_file_still_is() -> None:
    model = spilled_model()
    model.feed(events.FromPeer(1, messages.GetValues(1, [0, 1])))
    model.tell(messages.Free([1, 0, 1, 2, 0, 1, 3, 0, 1]))
    model.feed(events.ValuePut(4, 0, 1, 30 * MIB, model.new_segment()))
    model.wait(0.1)
    model.feed(events.Measured({"slot_bytes": 90 * MIB}, {}))
    model.spill()
    use(model, 5, 1)
    former, later = model.checks
    model.feed(events.SpilledChecked(former.key, former.path, former.path, ""))
    assert not model.slots[0].pipe
    model.feed(events.SpilledChecked(later.key, later.path, later.path, ""))
    assert model.work() == 1


def test_an_actor_whose_process_starts_slowly_is_made_once_though_its_input_was_compared_long_ago() -> None:
    model = spilled_model()
    values = [[0, 1, 30 * MIB, [OWN_ADDRESS]]]
    model.tell(grant(5, 1, values=values, needs=[[0]], actor=[b"c" * 16, 1, 0]))
    (check,) = model.checks
    model.feed(events.SpilledChecked(check.key, check.path, check.path, ""))
    assert len(model.starting) == 1
    model.wait(40.0)
    model.start_slots()
    assert not model.starting and len(model.checks) == 1
    assert model.work() == 1


# --------------------------------------------------------------------------- somebody else removes files


def test_a_value_whose_file_is_gone_when_it_is_to_go_to_disk_is_lost_and_the_disk_is_not_to_blame() -> None:
    model = full_model()
    spill = model.spills.pop(0)
    model.wait(0.01)
    model.sent.clear()
    model.feed(events.SpillFailed(spill.key, "/disk", 1 << 40, "its file is gone", lost=True))
    lost = model.expect(messages.FetchFailed)
    assert (lost.row, lost.attempt, lost.address) == (0, 1, OWN_ADDRESS)
    assert heartbeat(model)["segment_bytes"] == 60 * MIB
    assert not heartbeat(model)["spill_problem"]
    assert model.said == [
        f"a value is lost, and computed again where needed: {spill.path} was removed by somebody else"
    ]


def test_of_what_a_slot_did_not_find_the_values_that_are_still_held_are_lost() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    path = make(model, 1)
    model.wait(0.01)
    model.sent.clear()
    use(model, 5, 1)
    model.slots[0].claim()
    model.report(0, [0.0, "missing", b"", {"message": "it is gone", "files": ["/elsewhere", path]}])
    assert model.expect(messages.FetchFailed).attempt == 1
    failed = model.expect(messages.RunFailed)
    assert (failed.kind, failed.details) == ("missing", {"message": "it is gone"})
    assert heartbeat(model)["segment_bytes"] == 0
    assert path not in model.segments


# --------------------------------------------------------------------------- the disk is full


def fail(model: AgentModel) -> None:
    spill = model.spills.pop(0)
    model.feed(events.SpillFailed(spill.key, "/disk", 5 * MIB, "5 MiB are left"))


def test_when_the_disk_is_full_values_stay_nothing_new_begins_and_it_goes_on_by_itself() -> None:
    model = full_model(slots=2)
    ask(model, 4)
    model.full = True
    for _ in range(3):
        fail(model)
        model.wait(2.5)  # it is tried again
    assert len(model.said) == 1
    assert "/disk has no room for spilled values (5.00 MiB free)" in model.said[0]
    assert not model.slots[0].segment
    figures = heartbeat(model)
    assert figures["intake_paused"]
    assert "/disk" in figures["spill_problem"]
    model.tell(grant(9, 2))
    assert not model.slots[1].pipe, "nothing is begun beside the task that waits for room"

    model.full = False
    model.tell(messages.Free([2, 0, 1]))
    assert model.slots[0].segment, "what became free is given to who waits"
    assert not heartbeat(model)["intake_paused"]
    assert model.slots[1].pipe


def test_while_one_task_runs_at_a_time_none_is_put_behind_it_to_be_taken_back() -> None:
    model = full_model(slots=2)
    model.tell(grant(4, 20))
    assert model.work(0.001) == 20  # how long its function takes is known now
    ask(model, 5)
    model.full = True
    fail(model)
    model.report(0, [0.1, "failed", b"", {}])
    model.feed(events.Measured({"slot_bytes": 20 * MIB}, {}))
    assert heartbeat(model)["intake_paused"]
    effects = model.agent.handle(model.now, events.FromScheduler(grant(6, 6)))
    assert [effect.tasks for effect in effects if isinstance(effect, events.GiveTasks)] == [1]
    assert not any(isinstance(effect, events.TakeBack) for effect in effects)


def test_a_value_that_is_freed_before_it_is_copied_does_not_make_the_disk_full() -> None:
    model = full_model()
    model.tell(messages.Free([1, 0, 1]))
    fail(model)
    assert not model.said and not model.agent.spilling.problem
    model.wait(0.1)
    make(model, 4)
    assert [spill.key >> 32 for spill in model.spills] == [2]


def test_who_waits_for_room_when_the_disk_is_full_does_not_wait_for_ever() -> None:
    model = full_model()
    ask(model, 4)
    model.full = True
    fail(model)
    answered = []
    for _ in range(40):
        while model.spills:
            fail(model)
        model.wait(0.5)
        answered.append(not model.agent.workforce.segments.awaited)
    assert not answered[20] and answered[-1]
    assert heartbeat(model)["promised_bytes"] == 0


def test_a_quota_is_kept_and_a_freed_value_makes_room_in_it() -> None:
    model = full_model(quota_bytes=40 * MIB)
    model.spill()
    make(model, 4)
    assert not model.spills
    assert heartbeat(model)["spilled_bytes"] == 30 * MIB
    assert "quota" in model.said[0]
    model.tell(messages.Free([1, 0, 1]))
    model.wait(1.0)
    assert [spill.key >> 32 for spill in model.spills] == [2]


def test_a_quota_is_kept_by_values_made_on_disk_too_and_is_the_reason_in_the_end() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT, quota_bytes=40 * MIB)
    ask(model, 1, 2 * LIMIT)
    assert not model.slots[0].segment and not model.placed
    model.wait(20.0)
    assert not model.agent.workforce.segments.awaited
    assert "quota" in model.answers[0].reason
    assert not model.placed


def test_an_input_that_no_room_is_found_for_is_told_as_such_with_the_figure_and_the_limit() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT, quota_bytes=MIB)
    for attempt in (1, 2, 3):
        make(model, attempt)
    model.tell(grant(4, 1, values=[[9, 1, 11 * MIB, ["tcp://a:1"]]], needs=[[0]]))
    model.feed(events.ValueFetched("tcp://a:1", 9, 1, 11 * MIB, bytes(11 * MIB), ""))
    model.wait(20.0)
    failed = [message for message in model.sent if isinstance(message, messages.RunFailed)]
    assert [each.kind for each in failed] == ["full"]
    assert "no room for an input of 11.0 MiB beside what is held in 100 MiB" in failed[0].details["message"]
    assert "quota" in failed[0].details["message"]
