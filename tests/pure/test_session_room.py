"""What the client's machine keeps back while the scheduler holds enough of its arguments."""

from __future__ import annotations

from array import array
from typing import Any

from cluster.session import table as states
from cluster.session.machine import Session
from cluster.session.parts import LINKED_PART_INPUTS, LINKED_PART_TASKS, Call, Function
from cluster.wire import messages

INC = Call(Function(b"i" * 16, "inc", b"<inc>"), "inc", {}, 0)
LIMIT_BYTES = 10


def sent(session: Session) -> list[Any]:
    session.flush()
    return session.take_messages(0.0)


def parts(found: list[Any]) -> list[int]:
    return [message.first for message in found if isinstance(message, messages.Submit)]


def kinds(found: list[Any]) -> list[type[Any]]:
    return [type(message) for message in found]


def full_session() -> Session:
    """Parts 0 to 2 of 4 bytes each: two have left, the third is kept back."""
    session = Session(b"c" * 16, "tester", {}, arguments_limit_bytes=LIMIT_BYTES)
    for _ in range(3):
        session.submit_part(INC, 1, b"", b"abcd")
    assert parts(sent(session)) == [0, 1]
    return session


def test_a_part_leaves_when_the_scheduler_has_room_for_it() -> None:
    session = full_session()
    assert not session.has_room and session.has_left([0, 1]) and not session.has_left([2])
    session.receive(messages.ArgumentsTaken(1))
    assert parts(sent(session)) == []
    session.receive(messages.ArgumentsTaken(4))
    session.receive(messages.ArgumentsTaken(4))  # twice does not count twice
    assert parts(sent(session)) == [2]
    assert session.has_room and session.has_left([2])
    session.submit_part(INC, 1, b"", b"abcd")
    assert parts(sent(session)) == []


def test_a_part_that_is_too_large_leaves_when_nothing_else_waits() -> None:
    session = Session(b"c" * 16, "tester", {}, arguments_limit_bytes=LIMIT_BYTES)
    session.submit_part(INC, 1, b"", b"x" * 100)
    session.submit_part(INC, 1, b"", b"")
    assert parts(sent(session)) == [0]
    session.receive(messages.ArgumentsTaken(100))
    assert parts(sent(session)) == [1]


def test_what_depends_on_order_waits_behind_what_is_kept_back() -> None:
    session = full_session()
    session.query("ping")
    session.dropped.extend([0, 2])
    session.submit_part(INC, 1, b"", b"", array("I", (0, 1)).tobytes(), array("q", (1,)).tobytes())
    assert sent(session) == []
    session.receive(messages.ArgumentsTaken(8))
    found = sent(session)
    assert kinds(found) == [messages.Submit, messages.Release, messages.Query, messages.Submit] or kinds(found) == [
        messages.Submit, messages.Query, messages.Submit, messages.Release,
    ]  # fmt: skip


def test_what_nothing_kept_back_needs_is_released_at_once() -> None:
    session = full_session()
    session.submit_part(INC, 1, b"", b"", array("I", (0, 1)).tobytes(), array("q", (1,)).tobytes())
    session.dropped.extend([0, 1, 2])
    assert sent(session) == [messages.Release([0, 1])]
    session.receive(messages.ArgumentsTaken(8))
    found = sent(session)
    assert kinds(found) == [messages.Submit, messages.Submit, messages.Release]
    assert found[2] == messages.Release([1, 2])


def test_questions_about_what_has_left_do_not_wait() -> None:
    session = full_session()
    session.locate([0, 1])
    session.query("scheduler_info")
    session.alias([(b"o" * 16, 5)])
    assert kinds(sent(session)) == [messages.Locate, messages.Query, messages.Alias]
    session.locate([1, 2])
    assert sent(session) == []


def test_a_cancel_is_heard_at_once_and_again_after_what_it_concerns() -> None:
    session = full_session()
    session.cancel([1, 2])
    assert session.state(2) == states.FAILED
    assert sent(session) == [messages.Cancel([1, 2])]
    session.receive(messages.ArgumentsTaken(8))
    found = sent(session)
    assert kinds(found) == [messages.Submit, messages.Cancel, messages.Cancel]
    assert found[1] == messages.Cancel([2, 1]), "right behind its task, before that runs"


def test_what_is_retried_before_it_has_left_is_run() -> None:
    session = full_session()
    session.cancel([2])
    session.retry([2])
    sent(session)
    session.receive(messages.ArgumentsTaken(8))
    assert kinds(sent(session)) == [messages.Submit, messages.Cancel, messages.Retry]
    assert session.state(2) == states.PENDING


def test_a_client_that_leaves_gives_up_what_is_kept_back() -> None:
    session = full_session()
    session.leave()
    assert kinds(sent(session)) == [messages.Leave]


def test_large_arguments_take_room_until_their_task_has_ended_unless_several_share_one() -> None:
    session = Session(b"c" * 16, "tester", {}, arguments_limit_bytes=LIMIT_BYTES)
    large = session.offer([100], [[]], placement="demand")
    task = session.submit(INC, b"", [large])
    session.dropped.append(large)
    sent(session)
    assert not session.has_room
    session.receive(messages.Finished([task, 1], b"", b""))
    assert session.has_room
    large = session.offer([100], [[]], placement="demand")
    task = session.submit(INC, b"", [large])
    session.dropped.append(large)
    sent(session)
    session.receive(messages.Failed([task, 1], "exception", b"", {}))
    assert session.has_room, "what a failed task keeps for a retry would be waited for in vain"
    shared = session.offer([100], [[]], placement="demand")
    session.share(shared)
    assert session.has_room
    session.offer([100], [[]], placement="spread")
    assert session.has_room, "what was scattered is the user's own"


def test_one_message_names_no_more_than_so_many_runs() -> None:
    session = Session(b"c" * 16, "tester", {})
    session.submit_part(INC, 20_000, b"", b"")
    sent(session)
    session.cancel(range(0, 20_000, 2))
    found = sent(session)
    assert kinds(found) == [messages.Cancel] * 3
    assert [number for message in found for number in message.runs[::2]] == list(range(0, 20_000, 2))


def test_single_submits_with_inputs_leave_in_smaller_parts() -> None:
    session = Session(b"c" * 16, "tester", {})
    for _ in range(2 * LINKED_PART_TASKS):
        session.submit(INC, b"", [0])
    for _ in range(4):
        session.submit(INC, b"", [0] * (LINKED_PART_INPUTS // 2))
    counts = [message.count for message in sent(session) if isinstance(message, messages.Submit)]
    assert counts == [LINKED_PART_TASKS, LINKED_PART_TASKS, 2, 2]


def test_a_release_does_not_overtake_a_retry_that_is_kept_back() -> None:
    session = full_session()
    session.receive(messages.Failed([0, 1], "exception", b"", {}))
    session.retry([0])
    session.dropped.append(0)
    assert kinds(sent(session)) == []
    session.receive(messages.ArgumentsTaken(8))
    assert kinds(sent(session)) == [messages.Submit, messages.Retry, messages.Release]
