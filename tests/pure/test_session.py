"""The client's machine: what leaves when, what is wanted, what arrived."""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import Any

from cluster.session import table as states
from cluster.session.machine import DropOffered, PushValue, Session
from cluster.session.parts import Call, Function
from cluster.wire import messages

INC = Call(Function(b"i" * 16, "inc", b"<inc>"), "inc", {}, 0)
ADD = Call(Function(b"a" * 16, "add", b"<add>"), "add", {}, 0)


def new_session() -> Session:
    return Session(b"c" * 16, "tester", {})


def sent(session: Session, now: float = 0.0) -> list[Any]:
    session.flush()
    return session.take_messages(now)


def of_kind(kind: type[Any], found: list[Any]) -> list[Any]:
    return [message for message in found if isinstance(message, kind)]


def finished(first: int, *pieces: bytes) -> messages.Finished:
    offsets = array("I", accumulate(map(len, pieces), initial=0)).tobytes()
    return messages.Finished([first, len(pieces)], offsets, b"".join(pieces))


def submit(session: Session, count: int, call: Call = INC) -> range:
    numbers = [session.submit(call, b"%d" % index) for index in range(count)]
    return range(numbers[0], numbers[-1] + 1)


def submit_map(session: Session, count: int) -> range:
    first = session.submit_part(INC, count, array("I", range(count + 1)).tobytes(), b"x" * count)
    return range(first, first + count)


# --------------------------------------------------------------------------- what leaves


def test_single_submits_of_one_call_leave_as_one_part() -> None:
    session = new_session()
    assert submit(session, 3) == range(3)
    define, part = sent(session)
    assert define == messages.DefineFunction(*INC.function[:3])
    assert (part.first, part.count, part.batch, part.label, part.blob) == (0, 3, -1, "inc", b"012")
    assert list(array("I", part.offsets)) == [0, 1, 2, 3]
    assert part.options["awaited"]


def test_another_call_closes_the_part() -> None:
    session = new_session()
    submit(session, 2)
    submit(session, 1, ADD)
    submit(session, 1)
    parts = of_kind(messages.Submit, sent(session))
    assert [(part.first, part.count, part.label) for part in parts] == [(0, 2, "inc"), (2, 1, "add"), (3, 1, "inc")]


def test_nothing_follows_the_goodbye() -> None:
    session = new_session()
    submit(session, 2)
    sent(session)
    session.leave()
    session.dropped.append(0)  # a future is dropped while the client is being closed, perhaps in another thread
    session.flush()
    assert sent(session) == [messages.Leave()]
    session.dropped.append(1)
    assert sent(session) == []


def test_a_function_is_sent_once() -> None:
    session = new_session()
    submit(session, 1)
    assert len(of_kind(messages.DefineFunction, sent(session))) == 1
    submit(session, 1)
    assert not of_kind(messages.DefineFunction, sent(session))


def test_the_first_submit_after_a_pause_is_due_at_once_and_the_next_is_gathered() -> None:
    session = new_session()
    submit(session, 1)
    assert session.flush_is_due(5.0)
    sent(session, 5.0)
    submit(session, 1)
    assert not session.flush_is_due(5.0005)
    assert session.flush_is_due(5.0011)


def test_submitting_without_a_pause_makes_larger_parts_and_waiting_ends_that() -> None:
    session = new_session()
    now, gaps = 1.0, []
    submit(session, 1)
    assert session.flush_is_due(now)
    sent(session, now)
    for _ in range(6):
        start = now
        while True:
            submit(session, 1)
            now += 0.0001
            if session.flush_is_due(now):
                break
        sent(session, now)
        gaps.append(round((now - start) * 1000))
    assert gaps == [1, 2, 4, 8, 8, 8]
    session.want([0])
    submit(session, 1)
    assert session.flush_is_due(now)


def test_a_part_has_a_limit_of_bytes_and_of_tasks() -> None:
    session = new_session()
    session.submit(INC, b"x" * 300_000)
    session.submit(INC, b"x")
    assert [part.count for part in of_kind(messages.Submit, sent(session))] == [1, 1]
    submit(session, 16_385)
    assert [part.count for part in of_kind(messages.Submit, sent(session))] == [16_384, 1]


def test_dependencies_of_gathered_tasks_travel_as_sparse_rows() -> None:
    session = new_session()
    first = session.submit(INC, b"")
    session.submit(INC, b"a", [first])
    session.submit(INC, b"")
    session.submit(INC, b"b", [first, 1])
    (part,) = of_kind(messages.Submit, sent(session))
    assert list(array("I", part.dependency_starts)) == [0, 0, 1, 1, 3]
    assert list(array("q", part.dependencies)) == [0, 0, 1]


def test_a_map_goes_on_under_its_batch_unless_other_numbers_came_between() -> None:
    session = new_session()
    assert session.submit_part(INC, 10, b"", b"") == 0
    assert session.submit_part(INC, 5, b"", b"", batch=0, following=10) == 10
    submit(session, 1)
    assert session.submit_part(INC, 5, b"", b"", batch=0, following=15) == 16
    parts = of_kind(messages.Submit, sent(session))
    assert [(part.first, part.batch) for part in parts] == [(0, 0), (10, 0), (15, -1), (16, 16)]


# --------------------------------------------------------------------------- what arrives


def test_a_value_that_came_along_is_here_and_one_that_did_not_is_elsewhere() -> None:
    session = new_session()
    submit(session, 3)
    sent(session)
    session.receive(finished(0, b"v", b""))
    session.receive(messages.Finished([2, 1], b"", b""))
    assert [session.state(number) for number in range(3)] == [states.HERE, states.ELSEWHERE, states.ELSEWHERE]
    assert session.table.value(0) == b"v"
    assert session.table.value_bytes == 1


def test_a_notice_that_comes_twice_changes_nothing() -> None:
    session = new_session()
    submit(session, 2)
    sent(session)
    for _ in range(2):
        session.receive(finished(0, b"v", b"w"))
    session.receive(messages.Finished([0, 2], b"", b""))
    assert session.table.value(1) == b"w"
    assert session.table.value_bytes == 2


def test_a_notice_across_pages_fills_them_all() -> None:
    session = new_session()
    numbers = submit_map(session, 10_000)
    pieces = [b"%d" % number for number in numbers]
    session.receive(finished(0, *pieces))
    assert [session.table.value(number) for number in (0, 4095, 4096, 9999)] == [b"0", b"4095", b"4096", b"9999"]
    assert session.all_done(numbers)()


def test_a_number_that_was_not_sent_yet_is_pending() -> None:
    session = new_session()
    submit(session, 1)
    assert session.state(0) == states.PENDING
    assert not session.is_done(0)


def test_values_are_not_taken_beyond_the_limit_unless_somebody_waits() -> None:
    session = new_session()
    submit_map(session, 3)
    sent(session)
    session.receive(finished(0, b"x" * (65 << 20)))
    session.receive(finished(1, b"y"))
    assert session.state(1) == states.ELSEWHERE
    session.waiting = 1
    session.receive(finished(2, b"y"))
    assert session.state(2) == states.HERE
    submit(session, 1)
    (part,) = of_kind(messages.Submit, sent(session))
    assert "awaited" not in part.options
    session.want([3])
    assert of_kind(messages.Await, session.take_messages(0.0)) == [messages.Await([3, 1])]


def test_a_failure_is_kept_until_its_number_is_released() -> None:
    session = new_session()
    submit(session, 2)
    sent(session)
    session.receive(messages.Failed([0, 2], "exception", b"e", {"message": "no"}))
    assert session.state(1) == states.FAILED
    assert session.failures[1].kind == "exception"
    session.dropped.extend([0, 1])
    assert of_kind(messages.Release, sent(session)) == [messages.Release([0, 2])]
    assert not session.failures


def test_a_lost_value_that_is_here_stays_and_one_elsewhere_is_pending_again() -> None:
    session = new_session()
    submit(session, 2)
    sent(session)
    session.receive(finished(0, b"v", b""))
    session.receive(messages.Reset([0, 2]))
    assert session.state(0) == states.HERE
    assert session.state(1) == states.PENDING


def test_cancelled_is_the_end_whatever_still_comes() -> None:
    session = new_session()
    submit(session, 1)
    session.cancel([0])
    assert of_kind(messages.Cancel, sent(session)) == [messages.Cancel([0, 1])]
    session.receive(finished(0, b"v"))
    assert session.state(0) == states.FAILED
    assert session.failures[0].kind == "cancelled"


def test_retry_makes_failed_tasks_pending_and_leaves_others_alone() -> None:
    session = new_session()
    submit(session, 2)
    sent(session)
    session.receive(finished(0, b"v"))
    session.receive(messages.Failed([1, 1], "exception", b"", {}))
    session.retry([0, 1])
    assert of_kind(messages.Retry, sent(session)) == [messages.Retry([1, 1])]
    assert session.state(1) == states.PENDING


def test_after_the_connection_is_lost_everything_is_done() -> None:
    session = new_session()
    submit(session, 2)
    watch = session.watch({0, 1})
    session.lose("the scheduler has gone")
    assert session.is_done(1)
    assert len(watch.completed) == 2


# --------------------------------------------------------------------------- wants


def test_a_number_is_released_when_its_last_holder_goes() -> None:
    session = new_session()
    submit(session, 1)
    sent(session)
    assert session.refer(0)
    session.dropped.append(0)
    assert not of_kind(messages.Release, sent(session))
    session.dropped.append(0)
    assert of_kind(messages.Release, sent(session)) == [messages.Release([0, 1])]
    assert not session.refer(0)


def test_more_holders_than_a_byte_counts_are_all_counted() -> None:
    session = new_session()
    submit(session, 1)
    for _ in range(600):
        session.refer(0)
    session.dropped.extend([0] * 600)
    assert not of_kind(messages.Release, sent(session))
    session.dropped.append(0)
    assert of_kind(messages.Release, sent(session)) == [messages.Release([0, 1])]


def test_a_sequence_releases_its_run_except_what_others_hold() -> None:
    session = new_session()
    numbers = submit_map(session, 10_000)
    session.refer(5000)
    session.dropped.append(numbers)
    assert of_kind(messages.Release, sent(session)) == [messages.Release([0, 5000, 5001, 4999])]
    session.dropped.append(5000)
    assert of_kind(messages.Release, sent(session)) == [messages.Release([5000, 1])]


def test_a_release_never_overtakes_the_submit_that_needs_the_number() -> None:
    session = new_session()
    first = session.submit(INC, b"")
    session.submit(INC, b"", [first])
    session.dropped.append(first)
    kinds = [type(message) for message in sent(session)]
    assert kinds.index(messages.Submit) < kinds.index(messages.Release)


def test_released_values_take_no_memory() -> None:
    session = new_session()
    numbers = submit_map(session, 10_000)
    session.receive(finished(0, *[b"v"] * 10_000))
    session.dropped.append(numbers)
    session.flush()
    assert session.table.value_bytes == 0
    assert session.state(numbers[0]) == states.UNWANTED


# --------------------------------------------------------------------------- offered values


def dropped_offers(session: Session) -> list[int]:
    return [number for effect in session.take_effects() if isinstance(effect, DropOffered) for number in effect.numbers]


def offer_for_a_task(session: Session) -> tuple[int, int]:
    """A large argument and the task that takes it, as `submit` sends them."""
    offered = session.offer([100_000], [[]], placement="demand")
    number = session.submit(INC, b"", [offered])
    session.dropped.append(offered)
    return offered, number


def test_a_large_argument_is_held_until_its_task_has_finished() -> None:
    session = new_session()
    offered, number = offer_for_a_task(session)
    assert not of_kind(messages.Release, sent(session))
    session.receive(messages.Push(offered, 3, 7, "tcp://w"))
    assert session.take_effects() == [PushValue(offered, 3, 7, "tcp://w")]
    session.receive(finished(number, b"v"))
    assert of_kind(messages.Release, sent(session)) == [messages.Release([offered, 1])]
    assert dropped_offers(session) == [offered]


def test_a_large_argument_of_a_failed_task_is_held_for_a_retry_until_the_task_is_released() -> None:
    session = new_session()
    offered, number = offer_for_a_task(session)
    sent(session)
    session.receive(messages.Failed([number, 1], "exception", b"", {}))
    assert dropped_offers(session) == []
    session.dropped.append(number)
    sent(session)
    assert dropped_offers(session) == [offered]


def test_a_large_argument_outlives_its_released_task_while_another_task_needs_that_one() -> None:
    session = new_session()
    offered, number = offer_for_a_task(session)
    last = session.submit(INC, b"", [number])
    session.dropped.append(number)
    sent(session)
    assert dropped_offers(session) == []
    session.receive(finished(last, b"v"))
    sent(session)
    assert dropped_offers(session) == [offered]


def test_one_large_argument_of_many_tasks_is_held_until_the_last_has_finished() -> None:
    session = new_session()
    offered = session.offer([100_000], [[]], placement="demand")
    starts = array("I", range(6001)).tobytes()
    first = session.submit_part(INC, 6000, b"", b"x", starts, array("q", [offered] * 6000).tobytes())
    session.dropped.append(offered)
    sent(session)
    session.receive(finished(first, *[b"v"] * 5999))
    assert dropped_offers(session) == []
    session.receive(finished(first, *[b"v"] * 6000))
    assert dropped_offers(session) == [offered]


def test_scattered_data_is_held_as_long_as_its_future() -> None:
    session = new_session()
    number = session.offer([10], [[]], placement="spread")
    assert session.is_done(number)
    sent(session)
    session.dropped.append(number)
    assert of_kind(messages.Release, sent(session)) == [messages.Release([number, 1])]
    assert dropped_offers(session) == [number]


# --------------------------------------------------------------------------- watching


def test_a_watch_gives_each_number_once() -> None:
    session = new_session()
    numbers = submit_map(session, 100)
    session.receive(finished(0, b"v"))
    watch = session.watch(numbers[::2])
    session.receive(finished(0, *[b"v"] * 50))
    session.receive(finished(0, *[b"v"] * 50))
    assert [number for run in watch.completed for number in run] == list(range(0, 50, 2))


def test_a_watch_of_scattered_numbers_takes_more() -> None:
    session = new_session()
    submit_map(session, 10)
    watch = session.watch({3, 5})
    session.receive(finished(0, *[b"v"] * 4))
    session.watch_more(watch, 1)
    session.watch_more(watch, 7)
    session.receive(finished(4, *[b"v"] * 6))
    assert [number for run in watch.completed for number in run] == [3, 1, 5, 7]


def test_a_reversed_view_is_watched_like_any_other() -> None:
    session = new_session()
    numbers = submit_map(session, 6)
    watch = session.watch(numbers[::-2])
    session.receive(finished(0, *[b"v"] * 6))
    assert sorted(number for run in watch.completed for number in run) == [1, 3, 5]


def test_answers_are_kept_under_their_request() -> None:
    session = new_session()
    submit(session, 1)
    request = session.locate([0])
    assert session.take_messages(0.0)[-1] == messages.Locate(request, [0, 1])
    session.receive(messages.Located(request, [[0, 1, 2, 3, ["tcp://w"]]]))
    assert request in session.answers
