"""What the agent's machine does with values: inputs that are missing, copies, pushes, serving, freeing, segments."""

from __future__ import annotations

import sys
from array import array

from cluster.wire import messages
from cluster.worker import events
from cluster.worker.values import Values
from tests.pure.agent_model import OWN_ADDRESS, AgentModel, grant, names_of

A, B = "tcp://127.0.0.1:1001", "tcp://127.0.0.1:1002"


def has_value(model: AgentModel, row: int, attempt: int, data: bytes = b"input") -> None:
    """The agent holds a value that came from elsewhere."""
    model.feed(events.FromPeer(1, messages.PutValue(row, attempt, len(data), data)))
    model.sent.clear()
    model.to_peers.clear()


# --------------------------------------------------------------------------- inputs


def test_an_input_that_is_held_is_handed_to_the_slot() -> None:
    model = AgentModel(slots=1)
    has_value(model, 5, 1)
    model.tell(grant(2, 1, values=[[5, 1, 5, [OWN_ADDRESS]]], needs=[[0]]))
    model.slots[0].claim()
    assert model.slots[0].inputs() == [b"input"]
    assert not model.fetches


def test_a_missing_input_is_fetched_and_the_task_starts_when_it_has_come() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 2, values=[[5, 1, 5, [A]]], needs=[[0], []]))
    assert model.fetches == [events.FetchFrom(A, [5, 1, 5])]
    assert model.finish(0) == b"1"  # the one that needs nothing goes first
    model.feed(events.ValueFetched(A, 5, 1, 5, b"input", ""))
    model.slots[0].claim()
    assert model.slots[0].inputs() == [b"input"]
    model.expect(messages.Done)
    assert model.expect(messages.Held).values == [5, 1, 5]


def test_an_input_of_many_tasks_is_fetched_once() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 100, values=[[5, 1, 5, [A]]], needs=[[0]] * 100))
    model.tell(grant(3, 100, values=[[5, 1, 5, [A]]], needs=[[0]] * 100))
    assert len(model.fetches) == 1
    model.feed(events.ValueFetched(A, 5, 1, 5, b"input", ""))
    assert model.work() == 200


def test_a_large_input_is_handed_over_as_a_segment() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 1, values=[[5, 1, 1 << 20, [A]]], needs=[[0]]))
    path = model.new_segment()
    model.feed(events.ValueFetched(A, 5, 1, 1 << 20, b"", path))
    model.slots[0].claim()
    assert model.slots[0].inputs() == [[path, 1 << 20]]


def test_what_was_linked_and_not_moved_is_counted_apart() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 1, values=[[5, 1, 1 << 20, [A]], [6, 1, 2 << 20, [A]]], needs=[[0, 1]]))
    model.feed(events.ValueFetched(A, 5, 1, 1 << 20, b"", model.new_segment()))
    model.feed(events.ValueFetched(A, 6, 1, 2 << 20, b"", model.new_segment(), is_link=True))
    supply = model.agent.supply
    assert (supply.fetched_bytes, supply.linked_bytes) == (1 << 20, 2 << 20)


def test_each_task_gets_its_own_inputs_though_they_are_given_together() -> None:
    model = AgentModel(slots=1)
    for row in range(4):
        has_value(model, row, 1, b"input%d" % row)
    values = [[row, 1, 6, []] for row in range(4)]
    model.tell(grant(2, 1))
    model.work()
    model.tell(grant(3, 4, values=values, needs=[[3, 0], [], [1], [2, 3, 1]]))
    seen = []
    for _ in range(4):
        model.slots[0].claim()
        seen.append(model.slots[0].inputs())
        model.finish(0)
    assert seen == [[b"input3", b"input0"], [], [b"input1"], [b"input2", b"input3", b"input1"]]


def test_the_next_holder_is_asked_when_one_fails() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 1, values=[[5, 1, 5, [A, B]]], needs=[[0]]))
    model.feed(events.ValueNotFetched(A, 5, 1, "gone"))
    assert [fetch.address for fetch in model.fetches] == [A, B]
    model.feed(events.ValueFetched(B, 5, 1, 5, b"input", ""))
    assert model.work() == 1


def test_a_task_whose_input_nobody_has_fails_and_names_it() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 2, values=[[5, 1, 5, [A]]], needs=[[0], [0]]))
    model.feed(events.ValueNotFetched(A, 5, 1, "it does not hold the value"))
    for row in (0, 1):
        failed = model.expect(messages.RunFailed)
        assert (failed.kind, failed.row) == ("missing", row)
        assert (failed.details["row"], failed.details["attempt"], failed.details["address"]) == (5, 1, A)
    assert model.silent
    model.tell(grant(3, 1, values=[[5, 1, 5, [A]]], needs=[[0]]))
    assert len(model.fetches) == 2  # it is tried anew for a new run


def test_an_input_said_to_be_here_that_is_not_is_missing_at_once() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 1, values=[[5, 1, 5, [OWN_ADDRESS]]], needs=[[0]]))
    assert model.expect(messages.RunFailed).kind == "missing"


def test_an_input_that_a_client_will_push_is_waited_for() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 1, values=[[5, 1, 5, []]], needs=[[0]]))
    assert not model.fetches
    model.feed(events.FromPeer(4, messages.PutValue(5, 1, 5, b"input")))
    assert events.ToPeer(4, messages.PutDone(5, 1, "")) in model.to_peers
    assert model.work() == 1


def test_tasks_that_wait_for_inputs_can_be_recalled_and_stopped() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 3, values=[[5, 1, 5, [A]]], needs=[[0]] * 3))
    model.tell(messages.Recall(1, 1))
    assert names_of(model.expect(messages.Recalled)) == [(2, 2)]
    model.tell(messages.Stop([2, 0]))
    assert model.expect(messages.RunFailed).kind == "cancelled"
    model.feed(events.ValueFetched(A, 5, 1, 5, b"input", ""))
    assert model.work() == 1


def test_few_values_are_in_flight_from_one_holder_at_a_time() -> None:
    model = AgentModel(slots=1)
    values = [[row, 1, 10, [A]] for row in range(500)]
    model.tell(grant(2, 500, values=values, needs=[[row] for row in range(500)]))
    asked = model.fetches[0].values[::3]
    assert len(asked) == 64
    for row in asked[:32]:
        model.feed(events.ValueFetched(A, row, 1, 10, b"x" * 10, ""))
    assert sum(len(fetch.values) // 3 for fetch in model.fetches) == 96


def test_large_values_in_flight_are_bounded_by_their_bytes() -> None:
    model = AgentModel(slots=1)
    values = [[row, 1, 40 << 20, [A]] for row in range(5)]
    model.tell(grant(2, 5, values=values, needs=[[row] for row in range(5)]))
    assert [len(fetch.values) // 3 for fetch in model.fetches] == [1]
    model.feed(events.ValueFetched(A, 0, 1, 40 << 20, b"", model.new_segment()))
    assert [len(fetch.values) // 3 for fetch in model.fetches] == [1, 1]


# --------------------------------------------------------------------------- copies and pushes


def test_an_ordered_copy_is_fetched_and_reported_as_held() -> None:
    model = AgentModel()
    model.tell(messages.Fetch([[5, 1, 5, [A]]]))
    model.feed(events.ValueFetched(A, 5, 1, 5, b"input", ""))
    assert model.expect(messages.Held).values == [5, 1, 5]


def test_an_ordered_copy_that_is_here_is_reported_again() -> None:
    model = AgentModel()
    has_value(model, 5, 1)
    model.tell(messages.Fetch([[5, 1, 5, [A]]]))
    assert model.expect(messages.Held).values == [5, 1, 5]
    assert not model.fetches


def test_an_ordered_copy_that_cannot_be_made_is_answered() -> None:
    model = AgentModel()
    model.tell(messages.Fetch([[5, 1, 5, [A, B]]]))
    model.feed(events.ValueNotFetched(A, 5, 1, "gone"))
    model.feed(events.ValueNotFetched(B, 5, 1, "gone as well"))
    failed = model.expect(messages.FetchFailed)
    assert (failed.row, failed.attempt, failed.address, failed.reason) == (5, 1, B, "gone as well")


def test_a_pushed_value_that_comes_twice_is_acknowledged_twice_and_held_once() -> None:
    model = AgentModel()
    first, second = model.new_segment(), model.new_segment()
    model.feed(events.ValuePut(4, 5, 1, 1 << 20, first))
    model.feed(events.ValuePut(4, 5, 1, 1 << 20, second))
    assert model.to_peers == [events.ToPeer(4, messages.PutDone(5, 1, ""))] * 2
    assert model.segments == {first}


def test_a_pushed_value_over_64_kib_goes_into_a_segment() -> None:
    model = AgentModel()
    model.feed(events.FromPeer(4, messages.PutValue(5, 1, 70_000, b"x" * 70_000)))
    assert len(model.segments) == 1
    model.feed(events.FromPeer(6, messages.GetValues(1, [5, 1])))
    assert isinstance(model.to_peers[-1], events.ServeSegment)


def test_a_push_for_which_there_is_no_room_is_refused() -> None:
    model = AgentModel()
    model.full = True
    model.feed(events.FromPeer(4, messages.PutValue(5, 1, 70_000, b"x" * 70_000)))
    assert model.to_peers == [events.ToPeer(4, messages.PutDone(5, 1, "full", full=True))]
    assert model.silent


def test_a_task_that_waits_for_a_push_for_which_there_is_no_room_goes_back_at_once() -> None:
    model = AgentModel()
    model.full = True
    model.tell(grant(2, 1, values=[[5, 1, 70_000, []]], needs=[[0]]))
    model.feed(events.FromPeer(4, messages.PutValue(5, 1, 70_000, b"x" * 70_000)))
    assert model.to_peers == [events.ToPeer(4, messages.PutDone(5, 1, "full", full=True))]
    failed = model.expect(messages.RunFailed)
    assert (failed.kind, failed.details["row"], failed.details["attempt"]) == ("full", 5, 1)


# --------------------------------------------------------------------------- serving and freeing


def test_values_are_served_in_the_order_in_which_they_were_asked_for() -> None:
    model = AgentModel()
    has_value(model, 5, 1)
    path = model.new_segment()
    model.feed(events.ValuePut(4, 6, 1, 1 << 21, path))
    model.to_peers.clear()
    model.feed(events.FromPeer(9, messages.GetValues(2, [6, 1, 7, 1, 5, 1])))
    assert model.to_peers == [
        events.ServeSegment(9, 2, 6, 1, 1 << 21, path),
        events.ToPeer(9, messages.ValueMissing(2, 7, 1)),
        events.ToPeer(9, messages.Value(2, 5, 1, b"input")),
    ]


def test_a_freed_value_is_gone_with_its_segment() -> None:
    model = AgentModel()
    has_value(model, 5, 1)
    model.feed(events.ValuePut(4, 6, 1, 1 << 21, model.new_segment()))
    model.tell(messages.Free([1, 5, 2, 1, 100, 1]))
    assert not model.segments
    assert model.agent.supply.values.count == 0
    model.feed(events.FromPeer(9, messages.GetValues(2, [5, 1])))
    assert model.to_peers[-1] == events.ToPeer(9, messages.ValueMissing(2, 5, 1))


def test_many_values_are_freed_a_part_at_a_time() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 25_000))
    model.work()
    model.tell(messages.Free([2, 0, 25_000]))
    assert model.agent.supply.values.count == 15_001
    assert model.agent.next_wakeup == model.now
    model.wait(0)
    assert model.agent.supply.values.count == 1


def test_a_value_that_was_freed_and_is_ordered_again_is_fetched_again() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 25_000))
    model.work()
    model.sent.clear()
    model.tell(messages.Free([2, 0, 25_000]))
    model.tell(messages.Fetch([[24_999, 2, 5, [A]]]))
    assert model.silent
    assert [fetch.values for fetch in model.fetches] == [[24_999, 2, 5]]


def test_the_value_of_another_attempt_is_another_value() -> None:
    model = AgentModel()
    has_value(model, 5, 1)
    has_value(model, 5, 2, b"other")
    model.tell(messages.Free([1, 5, 1]))
    model.feed(events.FromPeer(9, messages.GetValues(2, [5, 2])))
    assert model.to_peers[-1] == events.ToPeer(9, messages.Value(2, 5, 2, b"other"))


def test_a_value_that_is_freed_while_it_is_fetched_is_dropped_when_it_comes() -> None:
    model = AgentModel()
    model.tell(messages.Fetch([[5, 1, 1 << 20, [A]]]))
    model.tell(messages.Free([1, 5, 1]))
    model.feed(events.ValueFetched(A, 5, 1, 1 << 20, b"", model.new_segment()))
    assert not model.segments
    assert model.silent


def test_a_small_value_takes_little_memory() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 1000))
    model.work()
    values = model.agent.supply.values
    assert values.count == 1001
    assert values.small_bytes == sum(len(b"v%d" % number) for number in range(1000)) + 2


# --------------------------------------------------------------------------- large results


def test_a_large_result_gets_a_segment_and_stays_here() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, first_row=5))
    sequence = model.slots[0].claim()
    model.feed(events.SegmentAsked(0, sequence, 1 << 20))
    path = model.slots[0].segment
    assert path in model.segments
    model.report(0, [0.1, "segment", 1 << 20, [b"c" * 16, 4]])
    done = model.expect(messages.Done)
    assert array("Q", done.sizes).tolist() == [1 << 20]
    assert (done.offsets, done.contains) == (b"", [[5, [b"c" * 16, 4]]])
    model.feed(events.FromPeer(9, messages.GetValues(2, [5, 1])))
    assert model.to_peers[-1] == events.ServeSegment(9, 2, 5, 1, 1 << 20, path)


def test_the_segment_of_a_slot_that_dies_is_removed() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.feed(events.SegmentAsked(0, model.slots[0].claim(), 1 << 20))
    model.die(0)
    assert not model.segments
    assert model.expect(messages.RunFailed).kind == "died"


def test_a_segment_that_is_ready_after_its_slot_died_is_removed() -> None:
    model = AgentModel(slots=1)
    model.hold_segments = True
    model.tell(grant(1, 1))
    model.feed(events.SegmentAsked(0, model.slots[0].claim(), 1 << 20))
    model.die(0)
    model.start_slots()
    model.feed(events.SegmentCreated(model.held_segments[0].request, model.new_segment()))
    assert not model.segments
    assert model.slots[0].segment == ""


def test_the_segment_of_a_result_that_failed_after_all_is_removed() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.feed(events.SegmentAsked(0, model.slots[0].claim(), 1 << 20))
    model.report(0, [0.1, "exception", b"", {}])
    assert not model.segments


def test_a_slot_is_told_when_there_is_no_room() -> None:
    model = AgentModel(slots=1)
    model.full = True
    model.tell(grant(1, 1))
    model.feed(events.SegmentAsked(0, model.slots[0].claim(), 1 << 20))
    assert model.slots[0].segment == ""
    model.report(0, [0.1, "exception", b"", {"type": "StoreFull"}])
    assert model.expect(messages.RunFailed).details == {"type": "StoreFull"}


def test_a_place_for_values_that_is_empty_gives_its_room_back() -> None:
    values = Values()
    rows = range(2_000)
    values.add_small(7, rows, tuple(b"%d" % row for row in rows))
    held = max(map(sys.getsizeof, values._shards))
    values.remove(7, 0, 2_000)
    assert held > 50_000 > 1_000 > max(map(sys.getsizeof, values._shards))
