"""What clients want of one another: cancels, aliases, futures inside values, offered values, retries."""

from __future__ import annotations

import pytest

from cluster.scheduler import invariants
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue, numbers_of

# ------------------------------------------------------------------ cancel


def test_cancelling_stops_what_runs_and_all_that_depends_on_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    client.submit(inputs=[[0]])
    client.submit(inputs=[[1]])
    grant = worker.grant()
    client.cancel(0)
    for number in (0, 1, 2):
        assert client.failed(number).kind == "cancelled"
    assert worker.hear(messages.Stop).names == [grant.attempt, 0]
    worker.run_failed(grant, "cancelled")
    worker.hears_nothing()


def test_a_stopped_run_keeps_its_slot_until_it_has_ended(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(gpu=1.0)
    client.submit(2, resources={"gpu": 1})
    grant = worker.grant()
    client.cancel(0)
    client.failed(0)
    worker.hear(messages.Stop)
    worker.hears_nothing()
    worker.run_failed(grant, "cancelled")
    worker.done(worker.grant())
    assert client.finished() == [1]


def test_a_success_that_crosses_a_cancel_is_not_accepted(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    grant = worker.grant()
    client.cancel(0)
    client.failed(0)
    worker.hear(messages.Stop)
    worker.done(grant)
    assert worker.freed() == [(grant.attempt, 0)]
    client.hears_nothing()


def test_a_cancel_spares_what_another_client_wants_and_what_that_needs(dialogue: Dialogue) -> None:
    owner, other, worker = dialogue.client("owner"), dialogue.client("other"), dialogue.worker()
    owner.submit()
    owner.submit(inputs=[[0]])
    owner.submit(inputs=[[1]])
    owner.submit(inputs=[[0]])
    alias = other.alias(owner, 1)
    owner.cancel(0)
    cancelled = [owner.hear(messages.Failed) for _ in range(4)]
    assert sorted(number for message in cancelled for number in numbers_of(message.runs)) == [0, 1, 2, 3]
    assert {message.kind for message in cancelled} == {"cancelled"}
    worker.done(worker.grant())
    worker.done(worker.grant())
    assert other.finished() == [alias]
    assert len(worker.freed()) == 1
    owner.hears_nothing()


def test_cancelling_what_has_ended_changes_nothing(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    worker.done(worker.grant())
    client.finished()
    client.cancel(0)
    client.hears_nothing()


def test_a_cancelled_row_can_be_used_again_before_its_run_has_answered(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit()
    stale = worker.grant()
    client.cancel(0)
    client.failed(0)
    worker.hear(messages.Stop)
    client.release(0)
    client.submit()
    fresh = worker.grant()
    assert fresh.runs == stale.runs, "the row is used again"
    worker.done(stale)
    assert worker.freed() == [(stale.attempt, 0)]
    client.hears_nothing()
    worker.done(fresh)
    assert client.finished() == [1]


# ------------------------------------------------------------------ retry


def test_a_retry_runs_the_root_and_what_failed_with_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    client.submit(inputs=[[0]])
    worker.run_failed(worker.grant())
    for number in (0, 1):
        client.failed(number)
    client.say(messages.Retry([1, 1]))
    assert [numbers_of(client.hear(messages.Reset).runs) for _ in range(2)] == [[0], [1]]
    worker.done(worker.grant())
    worker.done(worker.grant())
    assert [client.finished(), client.finished()] == [[0], [1]]


def test_a_retried_task_has_all_its_retries_again(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(retries=1)
    for _ in range(2):
        worker.run_failed(worker.grant())
    client.failed(0)
    client.say(messages.Retry([0, 1]))
    client.reset(0)
    worker.run_failed(worker.grant())
    worker.done(worker.grant())
    assert client.finished() == [0]


# ------------------------------------------------------------------ aliases and futures inside values


def test_an_alias_keeps_a_task_and_is_told_of_its_end(dialogue: Dialogue) -> None:
    owner, other, worker = dialogue.client("owner"), dialogue.client("other"), dialogue.worker()
    owner.submit()
    grant = worker.grant()
    alias = other.alias(owner, 0)
    owner.release(0)
    worker.done(grant, pieces=[b"value"])
    assert other.hear(messages.Finished) == messages.Finished([alias, 1], other_offsets(5), b"value")
    other.submit(inputs=[[alias]])
    following = worker.grant()
    assert following.values[0][:2] == [0, grant.attempt]
    worker.done(following)
    assert other.finished() == [alias + 1]
    other.release(alias)
    assert worker.freed() == [(grant.attempt, 0)]


def other_offsets(nbytes: int) -> bytes:
    """The offsets of one value of that size."""
    return (0).to_bytes(4, "little") + nbytes.to_bytes(4, "little")


def test_an_alias_of_something_forgotten_is_an_error_that_says_so(dialogue: Dialogue) -> None:
    owner, other = dialogue.client("owner"), dialogue.client("other")
    alias = other.alias(owner, 5)
    assert other.failed(alias).kind == "lost"


def test_aliases_told_twice_count_once(dialogue: Dialogue) -> None:
    owner, other, worker = dialogue.client("owner"), dialogue.client("other"), dialogue.worker()
    owner.submit()
    other.alias(owner, 0)
    other.next_number = 0
    other.alias(owner, 0)
    worker.done(worker.grant())
    assert [owner.finished(), other.finished()] == [[0], [0]]
    owner.release(0)
    other.release(0)
    assert len(worker.freed()) == 1


def test_a_value_holds_the_futures_inside_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    client.submit()
    inner = worker.grant()
    worker.done(inner)
    outer = worker.grant()
    worker.done(outer, contains=[[outer.runs[0], [client.client_id, 0]]])
    assert [client.finished(), client.finished()] == [[0], [1]]
    client.release(0)
    worker.hears_nothing()
    alias = client.alias(client, 0)
    assert client.finished() == [alias]
    client.release(1)
    assert worker.freed() == [(outer.attempt, 1)]
    client.release(alias)
    assert worker.freed() == [(inner.attempt, 0)]


def test_a_value_computed_again_holds_its_futures_again(dialogue: Dialogue) -> None:
    client, lost = dialogue.client(), dialogue.worker("lost")
    client.submit()
    client.submit()
    lost.done(lost.grant())
    outer = lost.grant()
    lost.done(outer, contains=[[1, [client.client_id, 0]]])
    assert [client.finished(), client.finished()] == [[0], [1]]
    worker = dialogue.worker("worker")
    lost.disconnect()
    client.inbox.clear()
    for _ in range(2):
        grant = worker.grant()
        worker.done(grant, contains=[[1, [client.client_id, 0]]] if grant.runs[0] == 1 else [])
    client.inbox.clear()
    assert dialogue.ledger.table.holds[0] == 2
    client.release(0, 2)
    assert len(worker.freed()) == 2


@pytest.mark.parametrize("needed", [False, True])
def test_bytes_that_a_client_has_hold_the_futures_inside_when_the_value_is_lost(
    dialogue: Dialogue, needed: bool
) -> None:
    client, stays = dialogue.client(), dialogue.worker("stays")
    client.submit()
    inner = stays.grant()
    stays.done(inner)
    assert client.finished() == [0]
    goes = dialogue.worker("goes")
    client.submit(workers=["goes"], allow_other_workers=True)
    outer = goes.grant()
    if needed:
        client.submit(inputs=[(1,)], workers=["nobody"])
    goes.done(outer, pieces=[b"value"], contains=[[outer.runs[0], [client.client_id, 0]]])
    assert client.finished() == [1]
    client.release(0)
    goes.disconnect()
    if needed:
        again = stays.grant()
        assert again.runs == outer.runs
        stays.done(again, pieces=[b"other"])
    client.inbox.clear()
    stays.hears_nothing()
    alias = client.alias(client, 0)
    assert client.finished() == [alias]
    client.release(alias)
    stays.hears_nothing()
    client.release(1, 2)
    assert (inner.attempt, 0) in stays.freed()
    assert dialogue.ledger.table.rows_used == 0


# ------------------------------------------------------------------ values that clients hold


def test_an_offered_value_is_pushed_when_a_worker_is_about_to_need_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    offered = client.offer([5000])
    client.hears_nothing()
    client.submit(inputs=[[offered]])
    push = client.hear(messages.Push)
    assert (push.number, push.address) == (offered, worker.address)
    grant = worker.grant()
    assert grant.values == [[push.row, push.attempt, 5000, []]]
    worker.say(messages.Held(7, [push.row, push.attempt, 5000]))
    worker.done(grant)
    assert client.finished() == [1]
    client.release(offered)
    assert worker.freed() == [(push.attempt, push.row)]


def test_a_value_that_a_worker_has_is_not_pushed_to_it_again(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    offered = client.offer([5000])
    client.submit(inputs=[[offered]])
    push = client.hear(messages.Push)
    worker.say(messages.Held(7, [push.row, push.attempt, 5000]))
    worker.done(worker.grant())
    client.submit(inputs=[[offered]])
    grant = worker.grant()
    assert grant.values == [[push.row, push.attempt, 5000, [worker.address]]]
    worker.done(grant)
    assert [client.finished(), client.finished()] == [[1], [2]]


def test_scattered_values_are_spread_or_sent_everywhere(dialogue: Dialogue) -> None:
    client = dialogue.client()
    workers = [dialogue.worker("one"), dialogue.worker("two")]
    client.offer([10, 10], "spread")
    assert sorted(client.hear(messages.Push).address for _ in range(2)) == sorted(w.address for w in workers)
    client.offer([10], "broadcast")
    assert sorted(client.hear(messages.Push).address for _ in range(2)) == sorted(w.address for w in workers)


def scattered(client: ClientSide, first: int, count: int, *names: str) -> None:
    client.say(messages.Query(1, "scattered", [first, count, list(names)]))


def test_who_scatters_hears_when_all_has_arrived(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one"), dialogue.worker("two")
    first = client.offer([10], "broadcast")
    scattered(client, first, 1)
    pushes = [client.hear(messages.Push) for _ in range(2)]
    one.say(messages.Held(7, [pushes[0].row, pushes[0].attempt, 10]))
    client.hears_nothing()
    two.say(messages.Held(7, [pushes[0].row, pushes[0].attempt, 10]))
    assert client.hear(messages.Answer) == (1, "", None)


def test_a_scatter_that_cannot_be_sent_says_to_whom_and_why(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    first = client.offer([10], "broadcast")
    scattered(client, first, 1)
    for _ in range(15):
        client.hear(messages.Push)
        client.hears_nothing()
        client.say(messages.Pushed(first, worker.address, "no route"))
        dialogue.wait(1.0)
        worker.say(messages.AgentHeartbeat(7, {}))
    error = client.hear(messages.Answer).error
    assert worker.name in error and "no route" in error
    assert not dialogue.scheduler.scatters.pending


def test_a_worker_that_goes_ends_the_wait_for_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    first = client.offer([10], "broadcast")
    scattered(client, first, 1)
    client.hear(messages.Push)
    worker.disconnect()
    assert client.hear(messages.Answer).error == ""


def test_a_scatter_to_an_unknown_worker_names_those_that_are_there(dialogue: Dialogue) -> None:
    client = dialogue.client()
    dialogue.worker("anna")
    first = client.offer([10])
    scattered(client, first, 1, "bob", "anna")
    error = client.hear(messages.Answer).error
    assert "bob" in error and "those connected are anna" in error


def test_a_push_that_is_refused_fails_who_waits_for_it_at_once(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    offered = client.offer([5000])
    client.submit(inputs=[[offered]])
    grant = worker.grant()
    client.hear(messages.Push)
    for _ in range(2):
        client.say(messages.PushRefused(offered, worker.address, "it was changed", "leave it alone"))
    failure = client.failed(1)
    assert (failure.details["message"], failure.details["remedy"]) == ("it was changed", "leave it alone")
    assert worker.hear(messages.Stop).names == [grant.attempt, grant.runs[0]]
    worker.run_failed(grant, "cancelled")


def test_an_offered_value_whose_worker_is_lost_is_pushed_again(dialogue: Dialogue) -> None:
    client, lost = dialogue.client(), dialogue.worker("lost")
    offered = client.offer([5000])
    client.submit(inputs=[[offered]])
    push = client.hear(messages.Push)
    lost.say(messages.Held(7, [push.row, push.attempt, 5000]))
    lost.grant()
    lost.disconnect()
    worker = dialogue.worker("worker")
    assert client.hear(messages.Push).address == worker.address
    worker.done(worker.grant())
    assert client.finished() == [1]


def test_a_push_that_fails_again_and_again_fails_the_task_with_the_reason(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    offered = client.offer([5000])
    client.submit(inputs=[[offered]])
    grant = worker.grant()
    for tried in range(1, 16):
        push = client.hear(messages.Push)
        client.say(messages.Pushed(push.number, push.address, "no route"))
        if 1 < tried < 15:
            client.hears_nothing()
            worker.say(messages.AgentHeartbeat(7, {}))
            dialogue.wait(1.0)
    failure = client.failed(1)
    assert failure.kind == "lost" and "no route" in failure.details["message"]
    worker.hear(messages.Stop)
    worker.run_failed(grant, "cancelled")


def test_a_pushed_value_that_nobody_wants_any_more_is_freed(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    offered = client.offer([5000], "spread")
    push = client.hear(messages.Push)
    client.release(offered)
    assert worker.freed() == [(push.attempt, push.row)]
    worker.say(messages.Held(7, [push.row, push.attempt, 5000]))
    assert worker.freed() == [(push.attempt, push.row)]
    client.say(messages.Leave())
    invariants.check_empty(dialogue.ledger)


def test_an_offered_value_holds_the_futures_inside_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    grant = worker.grant()
    offered = client.offer([100], contains=[[[client.client_id, 0]]])
    client.release(0)
    worker.done(grant)
    worker.hears_nothing()
    client.release(offered)
    assert worker.freed() == [(grant.attempt, 0)]


def test_a_push_that_fails_ends_tasks_with_shared_inputs_too(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    offered = client.offer([5000])
    client.submit(2, shared=[offered])
    grant = worker.grant()
    while client.inbox and type(client.inbox[0]) is messages.Push:
        push = client.hear(messages.Push)
        client.say(messages.Pushed(push.number, push.address, "no route"))
        if not client.inbox:
            worker.say(messages.AgentHeartbeat(7, {}))
            dialogue.wait(1.0)
    assert [client.hear(messages.Failed).kind for _ in range(2)] == ["lost", "lost"]
    for row in grant.runs[0], grant.runs[0] + 1:
        worker.hear(messages.Stop)
        worker.run_failed(grant, "cancelled", row=row)


def test_a_retry_whose_cancel_came_too_late_is_told_of_the_value(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    number = client.submit()
    worker.done(worker.grant())
    client.finished()
    client.cancel(number)
    client.say(messages.Retry([number, 1]))
    assert client.finished() == [number]


def test_a_retry_after_a_cancel_that_another_client_outweighed_wants_the_task_again(dialogue: Dialogue) -> None:
    owner, other, worker = dialogue.client("owner"), dialogue.client("other"), dialogue.worker()
    number = owner.submit()
    alias = other.alias(owner, number)
    owner.cancel(number)
    assert owner.failed(number).kind == "cancelled"
    owner.say(messages.Retry([number, 1]))
    other.release(alias)
    worker.done(worker.grant())
    assert owner.finished() == [number]


def test_everybody_hears_that_a_value_is_made_again_whoever_has_its_bytes(dialogue: Dialogue) -> None:
    owner, other, lost = dialogue.client("owner"), dialogue.client("other"), dialogue.worker("lost")
    number = owner.submit()
    alias = other.alias(owner, number)
    lost.done(lost.grant(), nbytes=8, pieces=[b"value"])
    owner.finished()
    other.finished()
    lost.disconnect()
    owner.reset(number)
    other.reset(alias)
