"""What the agent's machine does with tasks and slots: giving, taking back, reporting, deaths, stops, the end."""

from __future__ import annotations

from array import array

import pytest

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import FUNCTION, AgentModel, grant, names_of

# --------------------------------------------------------------------------- giving


def test_a_lone_task_starts_at_once_and_is_reported_at_once() -> None:
    model = AgentModel(slots=2)
    model.tell(grant(1, 1, first_row=5))
    assert model.finish(0) == b"0"
    done = model.expect(messages.Done)
    assert names_of(done) == [(1, 5)]
    assert done.blob == b"v0"
    assert array("Q", done.sizes).tolist() == [2]
    assert model.silent


def test_a_function_that_was_never_measured_is_given_one_task_a_slot() -> None:
    model = AgentModel(slots=2)
    model.tell(grant(1, 10))
    assert [len(model.slots[slot].pipe) for slot in (0, 1)] == [1, 1]


def test_a_pipe_holds_about_three_milliseconds_of_measured_work() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.finish(0, seconds=0.0001)
    model.tell(grant(2, 1000))
    assert 25 <= len(model.slots[0].pipe) <= 35


def test_a_pipe_never_holds_more_than_256_tasks() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.finish(0, seconds=0.0000001)
    model.tell(grant(2, 1000))
    assert len(model.slots[0].pipe) == 256


def test_a_long_function_is_given_one_task_at_a_time() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.finish(0, seconds=1.0)
    model.tell(grant(2, 10))
    assert len(model.slots[0].pipe) == 1


def test_one_long_run_does_not_end_the_lead_of_a_short_function() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 20))
    model.work(seconds=0.00001)
    model.tell(grant(2, 1))
    model.finish(0, seconds=5.0)
    model.tell(grant(3, 1000))
    assert len(model.slots[0].pipe) == 256


def test_few_tasks_are_shared_out_between_the_slots() -> None:
    model = AgentModel(slots=2)
    model.tell(grant(1, 1))
    model.finish(0)
    model.tell(grant(2, 10))
    assert [len(model.slots[slot].pipe) for slot in (0, 1)] == [5, 5]


def test_each_task_gets_its_own_piece_of_the_arguments_in_order() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 40))
    assert [model.finish(0) for _ in range(40)] == [str(number).encode() for number in range(40)]


def test_a_function_is_handed_to_a_slot_once_and_again_to_its_successor() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 3))
    model.work()
    model.die(0)
    model.start_slots()
    assert not model.slots[0].functions
    model.tell(grant(2, 1))
    assert model.slots[0].functions == {FUNCTION}


def test_rows_in_several_runs_start_in_the_order_of_the_grant() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, [7, 1, 3, 2], inline=0))
    ran = []
    for _ in range(3):
        model.slots[0].claim()
        model.report(0, [1.0, b"v"])
        ran += names_of(model.expect(messages.Done))
    assert ran == [(1, 7), (1, 3), (1, 4)]


def test_a_grant_that_comes_twice_runs_once() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 2))
    model.tell(grant(1, 2))
    assert model.work() == 2
    model.tell(grant(1, 2))
    assert model.work() == 0


def test_a_task_whose_function_never_came_fails_and_names_it() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, function_id=b"g" * 16))
    failed = model.expect(messages.RunFailed)
    assert failed.kind == "unrunnable"
    assert "function" in failed.details["message"]


# --------------------------------------------------------------------------- reporting


def test_reports_of_a_flood_are_gathered_and_leave_within_two_milliseconds() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 1000))
    for _ in range(100):
        model.finish(0)
    assert model.silent
    model.wait(0.002)
    done = model.expect(messages.Done)
    assert done.runs == [0, 100]
    assert done.run_seconds == pytest.approx(100 * 0.00001)
    assert done.median_seconds == 0.00001


def test_a_slot_that_has_run_dry_sends_what_was_gathered() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 50))
    model.work()
    assert sum(len(names_of(message)) for message in model.sent if isinstance(message, messages.Done)) == 50


def test_inline_values_stay_below_64_kib_a_frame() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 100))
    for _ in range(100):
        model.finish(0, data=b"x" * 4000)
    model.wait(0.01)
    blobs = [message.blob for message in model.sent if isinstance(message, messages.Done)]
    assert sum(map(len, blobs)) == 100 * 4000
    assert max(map(len, blobs)) <= 65536


def test_a_value_above_the_limit_of_the_grant_stays_here() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, inline=3))
    model.finish(0, data=b"four")
    done = model.expect(messages.Done)
    assert (done.offsets, done.blob) == (b"", b"")
    assert array("Q", done.sizes).tolist() == [4]


def test_rows_of_two_slots_are_reported_as_one_run() -> None:
    model = AgentModel(slots=2)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 1000))
    for _ in range(50):
        model.finish(0)
        model.finish(1)
    model.sent.clear()
    model.wait(0.002)
    done = model.expect(messages.Done)
    assert len(done.runs) == 4  # one stretch a slot
    assert sum(done.runs[1::2]) == 100


def test_futures_inside_a_value_are_listed() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, first_row=9))
    model.slots[0].claim()
    model.report(0, [0.1, b"value", [b"c" * 16, 4]])
    assert model.expect(messages.Done).contains == [[9, [b"c" * 16, 4]]]


def test_a_failed_task_is_answered_with_its_error() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, first_row=9))
    model.slots[0].claim()
    model.report(0, [0.5, "exception", b"error", {"type": "ValueError"}])
    failed = model.expect(messages.RunFailed)
    assert failed == messages.RunFailed(3, 9, 1, "exception", b"error", {"type": "ValueError"}, 0.5)


# --------------------------------------------------------------------------- taking back


def short_behind_long(model: AgentModel) -> None:
    """Slot 0 runs a task that turns out long, with others in its pipe; slot 1 is idle."""
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 20))
    model.slots[0].claim()
    while model.slots[1].pipe:
        model.finish(1)


def test_no_short_task_waits_behind_a_long_one_while_a_slot_idles() -> None:
    model = AgentModel(slots=2)
    short_behind_long(model)
    model.wait(0.01)
    while model.slots[1].pipe:
        model.finish(1)
        model.wait(0.001)
    assert not model.slots[0].pipe
    assert model.slots[0].claimed
    model.finish(0, seconds=1.0)
    names = [name for message in model.sent if isinstance(message, messages.Done) for name in names_of(message)]
    assert sorted(names) == [(2, row) for row in range(20)]


def test_a_slot_that_gets_ready_late_takes_its_share_of_a_full_pipe() -> None:
    model = AgentModel(slots=2)
    model.die(1)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 20))
    model.slots[0].claim()
    assert len(model.slots[0].pipe) == 19
    model.start_slots()
    model.wait(0.001)
    assert len(model.slots[1].pipe) >= 9


def test_work_that_takes_a_moment_is_not_moved() -> None:
    model = AgentModel(slots=2)
    short_behind_long(model)
    assert len(model.slots[0].pipe) == 9
    model.wait(0.0002)
    assert len(model.slots[0].pipe) == 9


def test_a_recall_brings_back_the_youngest_from_the_queue_first() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 10))
    model.tell(messages.Recall(1, 3))
    assert model.expect(messages.Recalled) == messages.Recalled(3, 1, [1, 9, 1, 8, 1, 7])
    assert model.work() == 7


def test_a_recall_reaches_into_the_pipes_but_not_for_what_was_claimed() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 5))
    model.slots[0].claim()
    model.tell(messages.Recall(1, 100))
    assert model.expect(messages.Recalled).names == [2, 4, 2, 3, 2, 2, 2, 1]
    assert model.work() == 1


def test_what_a_recall_leaves_is_given_out_again() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 5))
    model.slots[0].claim()
    model.tell(messages.Recall(1, 2))
    assert model.work() == 3


def test_a_recall_that_finds_nothing_is_answered_all_the_same() -> None:
    model = AgentModel()
    model.tell(messages.Recall(1, 5))
    assert model.expect(messages.Recalled) == messages.Recalled(3, 1, [])


def test_a_recall_that_comes_twice_brings_back_once() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 10))
    model.tell(messages.Recall(1, 3))
    model.tell(messages.Recall(1, 3))
    assert len(model.expect(messages.Recalled).names) == 6
    assert model.expect(messages.Recalled).names == []


# --------------------------------------------------------------------------- death


def test_a_death_charges_only_the_task_that_was_claimed() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 5))
    model.slots[0].claim()
    model.die(0, signal=11, lines="Segmentation fault")
    model.expect(messages.Output)
    failed = model.expect(messages.RunFailed)
    assert (failed.kind, failed.row) == ("died", 0)
    assert failed.details["signal"] == 11
    assert failed.details["lines"] == "Segmentation fault"
    model.start_slots()
    assert [model.finish(0) for _ in range(4)] == [b"1", b"2", b"3", b"4"]


def test_a_death_between_tasks_charges_nobody() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 5))
    model.sent.clear()
    model.die(0)
    assert model.silent
    model.start_slots()
    assert model.work() == 5


def test_slots_that_die_before_they_are_ready_are_started_again_after_growing_pauses() -> None:
    model = AgentModel(slots=1)
    model.die(0)
    pauses = []
    for _ in range(12):
        model.starting.clear()
        model.feed(events.SlotExited(0, [], 1, -1, "ImportError: no such thing", 0))
        before = model.now
        while not model.starting:
            model.wait(0.05)
        pauses.append(model.now - before)
    assert pauses[0] < 0.2
    assert pauses[3] > pauses[2] > pauses[1]
    assert max(pauses) < 10.1
    assert len(model.said) == 10
    assert "ImportError: no such thing" in model.said[0]
    model.start_slots()
    model.tell(grant(1, 1))
    assert model.work() == 1


# --------------------------------------------------------------------------- stopping


def test_stopping_a_queued_task_is_answered_and_it_never_runs() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 5))
    model.tell(messages.Stop([1, 3]))
    failed = model.expect(messages.RunFailed)
    assert (failed.kind, failed.row) == ("cancelled", 3)
    assert model.work() == 4


def test_stopping_an_unclaimed_task_in_a_pipe_takes_it_out() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 5))
    model.slots[0].claim()
    model.tell(messages.Stop([2, 3]))
    assert model.expect(messages.RunFailed).row == 3
    assert not model.slots[0].interrupted
    assert model.work() == 4


def test_a_running_task_is_asked_to_stop_and_answers() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    sequence = model.slots[0].claim()
    model.tell(messages.Stop([1, 0]))
    assert model.slots[0].interrupted == [sequence]
    model.report(0, [0.1, "interrupted", b"", {}])
    assert model.expect(messages.RunFailed).kind == "cancelled"
    model.wait(5)
    assert not model.killed


def test_a_running_task_that_does_not_stop_is_killed_after_a_second_and_not_charged() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.slots[0].claim()
    model.tell(messages.Stop([1, 0]))
    model.wait(0.9)
    assert not model.killed
    model.wait(0.2)
    assert model.killed == [0]
    model.die(0, signal=9)
    assert model.expect(messages.RunFailed).kind == "cancelled"


def test_a_task_that_ends_while_it_is_being_stopped_is_cancelled() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.slots[0].claim()
    model.tell(messages.Stop([1, 0]))
    model.finish(0)
    assert model.expect(messages.RunFailed).kind == "cancelled"
    assert model.silent
    model.tell(grant(2, 1))
    model.wait(2)
    assert not model.killed


def test_a_running_task_is_interrupted_though_the_report_before_it_was_not_read_yet() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.tell(grant(2, 2))
    model.read_at_once = False
    model.finish(0)
    sequence = model.slots[0].claim()
    model.tell(messages.Stop([2, 1]))
    model.read(0)
    assert model.slots[0].interrupted[-1:] == [sequence]


def test_a_stop_of_an_unknown_run_is_ignored() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.tell(messages.Stop([1, 77, 5, 0]))
    assert model.silent


def test_a_task_over_its_limit_is_interrupted_and_reported_as_timed_out() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, timeout_seconds=2.0))
    sequence = model.slots[0].claim()
    model.wait(1.9)
    assert not model.slots[0].interrupted
    model.wait(0.2)
    assert model.slots[0].interrupted == [sequence]
    model.report(0, [2.1, "interrupted", b"", {}])
    assert model.expect(messages.RunFailed).kind == "timeout"


def test_a_limit_is_counted_from_the_claim_and_not_from_the_pipe() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.finish(0)
    model.tell(grant(2, 3, timeout_seconds=2.0))
    for _ in range(3):
        model.wait(1.5)
        model.finish(0)
    assert not model.slots[0].interrupted


def test_a_task_over_its_limit_that_cannot_be_interrupted_is_killed() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, timeout_seconds=2.0))
    model.slots[0].claim()
    model.wait(3.1)
    assert model.killed == [0]
    model.die(0, signal=9)
    failed = model.expect(messages.RunFailed)
    assert failed.kind == "timeout"
    model.start_slots()
    model.tell(grant(2, 1))
    assert model.work() == 1


def test_tasks_behind_one_that_is_killed_are_not_charged() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 4, timeout_seconds=2.0))
    model.slots[0].claim()
    model.wait(3.1)
    model.die(0, signal=9)
    assert names_of(model.expect(messages.RunFailed)) == [(2, 0)]
    model.start_slots()
    assert model.work() == 3


# --------------------------------------------------------------------------- the end


def test_a_drained_worker_gives_back_what_no_slot_claimed_and_ends_after_what_runs() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.work()
    model.expect(messages.Done)
    model.tell(grant(2, 5))
    model.slots[0].claim()
    model.feed(events.DrainAsked())
    assert isinstance(model.expect(messages.Draining), messages.Draining)
    recalled = model.expect(messages.Recalled)
    assert recalled.request == -1
    assert sorted(names_of(recalled)) == [(2, row) for row in range(1, 5)]
    assert model.closed is None
    model.finish(0)
    assert names_of(model.expect(messages.Done)) == [(2, 0)]
    assert model.closed is not None
    assert model.closed.exit_status == 0


def test_a_grant_that_crosses_a_drain_comes_back() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.slots[0].claim()
    model.feed(events.DrainAsked())
    model.expect(messages.Draining)
    model.tell(grant(2, 3))
    assert len(names_of(model.expect(messages.Recalled))) == 3


def test_a_task_that_outlasts_the_drain_is_stopped() -> None:
    model = AgentModel(slots=1, drain_seconds=5.0)
    model.tell(grant(1, 1))
    sequence = model.slots[0].claim()
    model.feed(events.DrainAsked())
    model.wait(4.9)
    assert not model.slots[0].interrupted
    model.wait(0.2)
    assert model.slots[0].interrupted == [sequence]
    model.wait(1.1)
    assert model.killed == [0]
    model.die(0, signal=9)
    model.expect(messages.Draining)
    assert model.expect(messages.RunFailed).kind == "cancelled"
    assert model.closed is not None
    assert not model.starting


def test_an_idle_worker_drains_at_once() -> None:
    model = AgentModel()
    model.feed(events.DrainAsked())
    assert model.closed is not None


def test_a_worker_that_is_told_to_shut_down_closes() -> None:
    model = AgentModel()
    model.tell(grant(1, 2))
    model.tell(messages.ShutDown("the scheduler ends"))
    assert model.closed is not None
    assert model.agent.next_wakeup is None


def test_a_heartbeat_leaves_every_second() -> None:
    model = AgentModel()
    model.wait(5.5)
    beats = [message for message in model.sent if isinstance(message, messages.AgentHeartbeat)]
    assert len(beats) == 5
    assert beats[0].epoch == 3
    assert beats[0].report["slots_running"] == 0
