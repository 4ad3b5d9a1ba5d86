"""What the scheduler says while nothing goes wrong: tasks, inputs, values, releases."""

from __future__ import annotations

import itertools
from array import array

import pytest

from cluster.errors import ProtocolError
from cluster.scheduler import invariants
from cluster.scheduler.machine import Congested
from cluster.wire import messages
from tests.pure.dialogue import Dialogue, numbers_of


def test_a_task_is_granted_to_a_free_slot_and_its_end_is_told(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    number = client.submit(argument=b"args")
    grant = worker.grant()
    assert (grant.blob, grant.label, grant.values) == (b"args", "f", [])
    worker.done(grant)
    assert client.finished() == [number]


def test_a_task_waits_for_a_worker_to_come(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    worker = dialogue.worker()
    worker.done(worker.grant())
    assert client.finished() == [0]


def test_a_map_is_granted_in_ranges_once_its_function_is_measured(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(100)
    first = worker.grant()
    assert len(numbers_of(first.runs)) == 2, "a function that was never measured is granted free slots only"
    worker.done(first, seconds=0.001)
    assert client.finished() == [0, 1]
    ahead = worker.grant()
    # 10 ms a slot of tasks of 1 ms.
    assert len(numbers_of(ahead.runs)) == 20
    done = set(numbers_of(first.runs))
    while ahead is not None:
        rows = numbers_of(ahead.runs)
        assert done.isdisjoint(rows)
        done.update(rows)
        worker.done(ahead)
        client.hear(messages.Finished)
        ahead = worker.grant() if worker.inbox else None
    assert len(done) == 100


def test_two_workers_draw_from_stretches_of_their_own(dialogue: Dialogue) -> None:
    client = dialogue.client()
    workers = [dialogue.worker("one"), dialogue.worker("two")]
    client.submit(400)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for turn in range(10_000):
        worker = workers[turn % 2]
        if worker.inbox:
            grant = worker.grant()
            seen[turn % 2] += numbers_of(grant.runs)
            worker.done(grant, seconds=0.001)
        elif not workers[1 - turn % 2].inbox:
            break
    assert sorted(seen[0] + seen[1]) == list(range(400))
    for rows in seen.values():
        breaks = sum(one + 1 != other for one, other in itertools.pairwise(rows))
        assert len(rows) >= 100 and breaks < 20, "neighbours stay together"
    client.inbox.clear()


def test_arguments_of_a_range_are_cut_out_of_the_batch(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    pieces = [b"a", b"bb", b"", b"dddd", b"e"]
    offsets = array("I", [0, 1, 3, 3, 7, 8])
    client.say(messages.DefineFunction(b"f", "f", b"code"))
    client.say(messages.Submit(0, 5, 0, b"f", "f", {}, 0, offsets.tobytes(), b"".join(pieces), b"", b""))
    got: dict[int, bytes] = {}
    while worker.inbox:
        grant = worker.grant()
        cuts = array("I", grant.offsets)
        for place, row in enumerate(numbers_of(grant.runs)):
            got[row] = grant.blob[cuts[place] : cuts[place + 1]]
        worker.done(grant)
        client.finished()
    assert [got[row] for row in sorted(got)] == pieces


def test_a_chain_runs_link_by_link_where_its_values_are(dialogue: Dialogue) -> None:
    client = dialogue.client()
    workers = {worker.address: worker for worker in (dialogue.worker("one"), dialogue.worker("two"))}
    client.submit()
    for _ in range(5):
        client.submit(inputs=[[client.next_number - 1]])
    at = None
    for number in range(6):
        worker = next(worker for worker in workers.values() if worker.inbox)
        grant = worker.grant()
        if number:
            assert worker is at, "the link runs where its input is"
            (value,) = grant.values
            assert value[3] == [worker.address] and array("I", grant.inputs).tolist() == [0]
        at = worker
        worker.done(grant)
        assert client.finished() == [number]


def test_a_diamond_waits_for_both_its_sides(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    top = client.submit()
    left, right = client.submit(inputs=[[top]]), client.submit(function="g", inputs=[[top]])
    client.submit(inputs=[[left, right]])
    worker.done(worker.grant())
    sides = [worker.grant(), worker.grant()]
    worker.done(sides[1])
    assert not worker.inbox
    worker.done(sides[0])
    bottom = worker.grant()
    assert [value[0] for value in bottom.values] == [left, right]
    worker.done(bottom)
    assert [client.finished() for _ in range(4)] == [[0], [2], [1], [3]]


def test_an_input_that_is_taken_twice_is_named_once_and_marked_twice(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    one, other = client.submit(), client.submit()
    client.submit(inputs=[[one, other, one]])
    worker.done(worker.grant())
    worker.done(worker.grant())
    grant = worker.grant()
    assert [value[0] for value in grant.values] == [one, other]
    assert array("I", grant.inputs).tolist() == [0, 1, 0]
    client.release(0, 2)
    worker.done(grant)
    assert [client.finished() for _ in range(3)] == [[0], [1], [2]]
    assert len(worker.freed()) == 2


def test_a_success_told_twice_counts_once(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(3)
    grant = worker.grant()
    worker.done(grant)
    following = worker.grant()
    worker.done(grant)
    assert not worker.inbox, "nothing is freed, nothing is granted twice"
    worker.done(following)
    assert [*client.finished(), *client.finished()] == [0, *numbers_of(following.runs)]


def test_a_success_under_an_old_attempt_is_an_orphan(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    grant = worker.grant()
    worker.recalled(-1, grant.attempt, grant.runs[0])
    again = worker.grant()
    assert again.attempt > grant.attempt
    worker.done(grant)
    assert worker.freed() == [(grant.attempt, grant.runs[0])]
    client.hears_nothing()
    worker.done(again)
    assert client.finished() == [0]


def test_a_report_of_another_epoch_is_not_heard(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    grant = worker.grant()
    worker.say(messages.Done(6, grant.attempt, grant.runs, bytes(8), b"", b"", 0.0, 0.0, []))
    client.hears_nothing()
    worker.done(grant)
    assert client.finished() == [0]


def test_small_values_travel_with_the_notice_when_somebody_waits(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    client.submit()
    client.say(messages.Await([1, 1]))
    plain = worker.grant()
    worker.done(plain)
    awaited = worker.grant()
    assert plain.inline_limit_bytes < 1000 < awaited.inline_limit_bytes
    worker.done(awaited, pieces=[b"value"])
    assert client.finished() == [0]
    notice = client.hear(messages.Finished)
    assert (notice.runs, notice.blob) == ([1, 1], b"value")


def test_a_client_that_does_not_read_gets_no_values_along(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    dialogue.handle(Congested(client.peer, True))
    worker.done(worker.grant(), pieces=[b"value"])
    assert client.hear(messages.Finished).blob == b""
    dialogue.handle(Congested(client.peer, False))
    client.submit()
    worker.done(worker.grant(), pieces=[b"value"])
    assert client.hear(messages.Finished).blob == b"value"


def test_a_released_value_is_freed_at_every_holder(dialogue: Dialogue) -> None:
    client = dialogue.client()
    one, two = dialogue.worker("one"), dialogue.worker("two")
    number = client.submit()
    holder, other = (one, two) if one.inbox else (two, one)
    grant = holder.grant()
    holder.done(grant)
    client.finished()
    other.say(messages.Held(7, [grant.runs[0], grant.attempt, 8]))
    client.release(number)
    name = (grant.attempt, grant.runs[0])
    assert holder.freed() == [name] and other.freed() == [name]
    client.say(messages.Leave())
    invariants.check_empty(dialogue.ledger)


def test_a_value_is_kept_while_a_task_that_takes_it_is_unfinished(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    client.submit(inputs=[[0]])
    worker.done(worker.grant())
    client.release(0)
    grant = worker.grant()
    worker.done(grant)
    assert [client.finished(), client.finished()] == [[0], [1]]
    assert worker.freed() == [(grant.values[0][1], 0)]


def test_releasing_a_running_task_lets_it_run_out(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    grant = worker.grant()
    client.release(0)
    assert not worker.inbox
    worker.done(grant)
    assert worker.freed() == [(grant.attempt, 0)]
    assert dialogue.ledger.table.rows_used == 0


def test_releasing_a_waiting_task_means_that_it_never_runs(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    client.submit(inputs=[[0]])
    client.release(0, 2)
    dialogue.worker()
    assert dialogue.ledger.table.rows_used == 0


def test_a_recipe_lives_as_long_as_its_heirs(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    for number in range(3):
        client.submit(inputs=[[number]])
    client.release(0, 3)
    for _ in range(4):
        worker.done(worker.grant())
        if worker.inbox and type(worker.inbox[0]) is messages.Free:
            worker.freed()
        if worker.inbox and type(worker.inbox[-1]) is messages.Free:
            worker.inbox.pop()
    assert client.finished() == [3]
    assert dialogue.ledger.table.rows_used == 4, "the last could be computed again"
    client.release(3)
    worker.freed()
    assert dialogue.ledger.table.rows_used == 0


def test_a_part_sent_twice_is_one_part(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    client.next_number = 0
    client.submit()
    worker.done(worker.grant())
    assert client.finished() == [0]


def test_kept_tasks_run_although_nobody_wants_them(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    client.say(messages.Keep([0, 1]))
    client.submit(keep=True)
    client.release(0, 2)
    client.say(messages.Leave())
    worker = dialogue.worker()
    for _ in range(2):
        grant = worker.grant()
        worker.done(grant)
        following = worker.inbox.pop() if type(worker.inbox[-1]) is messages.Free else None
        assert following is not None
    invariants.check_empty(dialogue.ledger)


def test_what_a_client_cannot_mean_is_an_error_about_it_alone(dialogue: Dialogue) -> None:
    stranger, client, worker = dialogue.client("stranger"), dialogue.client(), dialogue.worker()
    with pytest.raises(ProtocolError, match="never defined"):
        stranger.say(messages.Submit(0, 1, -1, b"unknown", "f", {}, 0, b"", b"", b"", b""))
    with pytest.raises(ProtocolError):
        stranger.say(messages.AgentHeartbeat(7, {}))
    with pytest.raises(ProtocolError):
        worker.say(messages.Release([0, 1]))
    number = client.submit()
    worker.done(worker.grant())
    assert client.finished() == [number]


def test_a_question_where_values_are_waits_for_their_end(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(2)
    client.say(messages.Locate(5, [0, 2]))
    first = worker.grant()
    worker.done(first)
    client.finished()
    client.hears_nothing()
    second = worker.grant()
    worker.done(second, nbytes=9)
    client.finished()
    located = client.hear(messages.Located)
    assert located.request == 5
    assert located.entries == [[0, 0, first.attempt, 8, [worker.address]], [1, 1, second.attempt, 9, [worker.address]]]


def test_a_question_about_released_numbers_is_answered_all_the_same(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    client.submit(inputs=[[0]])
    client.say(messages.Locate(5, [0, 2]))
    client.release(0)
    client.hears_nothing()
    client.release(1)
    assert client.hear(messages.Located).entries == []


def test_who_has_names_addresses(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(2)
    worker.done(worker.grant(), [0])
    client.finished()
    client.say(messages.Query(1, "who_has", [0, 1, 99]))
    assert client.hear(messages.Answer).result == [[worker.address], [], []]
    client.say(messages.Query(2, "weather", None))
    assert "weather" in client.hear(messages.Answer).error
    worker.grant()
