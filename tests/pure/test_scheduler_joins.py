"""Tasks that all take the same inputs: told once, linked once, granted once."""

from __future__ import annotations

from array import array

import pytest

from cluster.scheduler import invariants
from cluster.scheduler.machine import Settings
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue, WorkerSide, numbers_of


def make_level(client: ClientSide, worker: WorkerSide, count: int) -> tuple[int, list[int]]:
    """Tasks that have run: the first one's number, and their rows."""
    first = client.submit(count)
    rows: list[int] = []
    while len(rows) < count:
        grant = worker.grant()
        worker.done(grant)
        rows += numbers_of(grant.runs)
        client.finished()
    return first, rows


def leave_nothing(dialogue: Dialogue, client: ClientSide) -> None:
    client.release(0, client.next_number)
    for peer in dialogue.peers:
        peer.inbox.clear()
    assert dialogue.ledger.table.rows_used == 0
    assert not dialogue.ledger.contains


def test_shared_inputs_are_named_once_for_all_tasks(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=3)
    first, rows = make_level(client, worker, 3)
    client.submit(3, function="g", shared=range(first, first + 3))
    grant = worker.grant()
    assert grant.input_starts == b""
    assert list(array("I", grant.inputs)) == [0, 1, 2]
    assert [value[0] for value in grant.values] == rows
    worker.done(grant)
    assert client.finished() == [3, 4, 5]
    leave_nothing(dialogue, client)


def test_tasks_with_shared_inputs_wait_for_the_last_of_them(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    first = client.submit(2)
    client.submit(2, function="g", shared=(first, first + 1))
    grant = worker.grant()
    one, other = numbers_of(grant.runs)
    worker.done(grant, [one])
    client.finished()
    worker.hears_nothing()
    worker.done(grant, [other])
    client.finished()
    worker.done(worker.grant())
    assert client.finished() == [2, 3]
    leave_nothing(dialogue, client)


def test_shared_inputs_are_kept_until_the_last_task_has_ended(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    first, rows = make_level(client, worker, 2)
    client.submit(2, function="g", shared=(first, first + 1))
    client.release(first, 2)
    grant = worker.grant()
    mine, other = numbers_of(grant.runs)
    worker.done(grant, [mine])
    client.finished()
    worker.hears_nothing()
    worker.done(grant, [other])
    client.finished()
    assert sorted(row for _, row in worker.freed()) == rows
    leave_nothing(dialogue, client)


def test_a_lost_shared_input_makes_ready_tasks_wait_again(dialogue: Dialogue) -> None:
    client, holder = dialogue.client(), dialogue.worker("holder", slots=2)
    first, _ = make_level(client, holder, 2)
    busy = client.submit(2, function="h")  # takes the slots, so that what follows stays ready
    holder.grant()
    client.submit(2, function="g", shared=(first, first + 1))
    holder.disconnect()
    client.reset(first)
    client.reset(first + 1)
    second = dialogue.worker("second", slots=4)
    ended: list[int] = []
    while second.inbox:
        second.done(second.grant())
        ended += client.finished()
    assert sorted(ended) == [first, first + 1, busy, busy + 1, busy + 2, busy + 3]
    assert max(map(ended.index, (first, first + 1))) < min(map(ended.index, (busy + 2, busy + 3)))
    leave_nothing(dialogue, client)


def test_a_failed_shared_input_fails_all_tasks_and_a_retry_runs_all(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    first = client.submit(2)
    client.submit(2, function="g", shared=(first, first + 1))
    grant = worker.grant()
    bad, good = numbers_of(grant.runs)
    worker.run_failed(grant, row=bad)
    assert sorted(numbers_of(client.hear(messages.Failed).runs)[0] for _ in range(3)) == [0, 2, 3]
    worker.done(grant, [good])
    client.finished()
    client.say(messages.Retry([2, 1]))
    worker.done(worker.grant())
    worker.done(worker.grant())
    for peer in dialogue.peers:
        peer.inbox.clear()
    leave_nothing(dialogue, client)


def test_values_made_of_released_shared_inputs_are_computed_again_from_the_start(dialogue: Dialogue) -> None:
    client, holder = dialogue.client(), dialogue.worker("holder", slots=2)
    first, _ = make_level(client, holder, 2)
    client.submit(2, function="g", shared=(first, first + 1))
    client.release(first, 2)
    holder.done(holder.grant())
    client.finished()
    holder.freed()
    second = dialogue.worker("second", slots=2)
    holder.disconnect()
    client.reset(2)
    client.reset(3)
    second.done(second.grant())
    second.done(second.grant())
    assert client.finished() == [2, 3]
    second.freed()
    leave_nothing(dialogue, client)


def test_cancelling_a_shared_input_cancels_all_tasks(dialogue: Dialogue) -> None:
    client = dialogue.client()
    first = client.submit(2)
    client.submit(2, function="g", shared=(first, first + 1))
    client.cancel(first)
    assert {numbers_of(client.hear(messages.Failed).runs)[0] for _ in range(3)} == {0, 2, 3}
    leave_nothing(dialogue, client)


def test_tasks_with_a_shared_input_that_is_gone_fail_and_say_so(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    first, _ = make_level(client, worker, 2)
    client.release(first)
    worker.freed()
    client.submit(2, function="g", shared=(first, first + 1))
    assert "released before" in client.failed(2).details["message"]
    client.failed(3)
    leave_nothing(dialogue, client)


def test_recipes_of_shared_inputs_are_given_up_beyond_the_lineage_bound() -> None:
    dialogue = Dialogue(Settings(lineage_rows=1))
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    first, _ = make_level(client, worker, 2)
    client.submit(2, function="g", shared=(first, first + 1))
    client.release(first, 2)
    worker.done(worker.grant())
    client.finished()
    worker.freed()
    worker.disconnect()
    for number in (2, 3):
        client.reset(number)
        assert client.failed(number).kind == "lost"
    invariants.check(dialogue.ledger)
    leave_nothing(dialogue, client)


@pytest.mark.parametrize("count", [1, 5])
def test_an_all_to_all_has_edges_for_its_inputs_and_its_tasks_not_for_their_product(
    dialogue: Dialogue, count: int
) -> None:
    client = dialogue.client()
    first = client.submit(10)
    client.submit(count, function="g", shared=range(first, first + 10))
    assert len(dialogue.ledger.table.edge_row) == 10 + count
    leave_nothing(dialogue, client)


def test_a_value_that_comes_late_is_not_taken_for_that_of_a_join_in_its_row(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=3)
    first, _ = make_level(client, worker, 2)
    offered = client.offer([100, 100], "spread")
    pushes = [client.hear(messages.Push), client.hear(messages.Push)]
    client.release(offered, 2)
    assert len(worker.freed()) == 2
    client.submit(1, function="g", shared=range(first, first + 2))
    grant = worker.grant()
    assert any(dialogue.ledger.run(push.row).is_join for push in pushes)
    for push in pushes:
        worker.say(messages.Held(7, [push.row, push.attempt, 100]))
        assert worker.freed() == [(push.attempt, push.row)]
    worker.done(grant)
    client.finished()
    leave_nothing(dialogue, client)
