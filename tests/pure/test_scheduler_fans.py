"""Many neighbours that take one row's value: linked, woken, failed and forgotten as one, and as by an edge each."""

from __future__ import annotations

import random

import pytest

from cluster.scheduler.machine import Settings, Tick
from cluster.scheduler.table import FINISHED, NO_RECIPE, WAITING
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue, WorkerSide, numbers_of

MANY = 40


def edges_and_fans(dialogue: Dialogue) -> tuple[int, dict[int, list[int]]]:
    """How many edges there have ever been at once, and how many rows each fan has, by the row that they take."""
    table = dialogue.ledger.table
    return len(table.edge_row), {row: [len(fan.rows) for fan in fans] for row, fans in table.fans.items()}


def run_all(worker: WorkerSide) -> None:
    while worker.inbox:
        if type(worker.inbox[0]) is messages.Free:
            worker.freed()
        else:
            worker.done(worker.grant())


def leave_nothing(dialogue: Dialogue, client: ClientSide) -> None:
    client.release(0, client.next_number)
    for peer in dialogue.peers:
        peer.inbox.clear()
    assert dialogue.ledger.table.rows_used == 0
    assert not dialogue.ledger.table.stale_edges
    assert not dialogue.ledger.table.fans


def test_tasks_that_take_one_value_are_woken_as_one_span(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit()
    client.submit(MANY, function="g", inputs=[(0,)] * MANY)
    assert edges_and_fans(dialogue) == (0, {0: [MANY]})
    worker.done(worker.grant())
    assert client.finished() == [0]
    grant = worker.grant()
    assert numbers_of(grant.runs) == list(range(1, 1 + MANY))
    worker.done(grant)
    assert client.finished() == list(range(1, 1 + MANY))
    leave_nothing(dialogue, client)


def test_tasks_that_take_a_value_which_exists_become_ready_as_one_span(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit()
    worker.done(worker.grant())
    client.submit(MANY, function="g", inputs=[(0,)] * MANY)
    assert client.finished() == [0]
    grant = worker.grant()
    assert len(numbers_of(grant.runs)) == MANY
    worker.done(grant)
    client.finished()
    leave_nothing(dialogue, client)


def test_of_two_inputs_the_one_that_all_take_makes_a_fan(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit(MANY)
    model = client.submit(function="model")
    takers = client.submit(MANY, function="g", inputs=[(place, model) for place in range(MANY)])
    assert edges_and_fans(dialogue) == (MANY, {model: [MANY]})
    worker.done(worker.grant())
    client.finished()
    worker.done(worker.grant())
    client.finished()
    worker.done(worker.grant())
    assert client.finished() == list(range(takers, takers + MANY))
    leave_nothing(dialogue, client)


def test_the_pieces_of_each_chunk_are_a_fan_and_what_is_left_over_has_edges(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(3)
    client.submit(4 * MANY + 5, function="piece", inputs=[(0,)] * 2 * MANY + [(1,)] * 5 + [(2,)] * 2 * MANY)
    assert edges_and_fans(dialogue) == (5, {0: [2 * MANY], 2: [2 * MANY]})
    leave_nothing(dialogue, client)


def test_a_value_that_is_taken_twice_has_two_fans(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit()
    client.submit(MANY, function="g", inputs=[(0, 0)] * MANY)
    assert edges_and_fans(dialogue) == (0, {0: [MANY, MANY]})
    run_all(worker)
    assert client.finished() == [0]
    assert client.finished() == list(range(1, 1 + MANY))
    leave_nothing(dialogue, client)


def test_the_next_part_of_a_batch_goes_on_with_its_fan(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    for _ in range(3):
        client.submit(MANY, function="g", inputs=[(0,)] * MANY, batch=1)
    assert edges_and_fans(dialogue) == (0, {0: [3 * MANY]})
    leave_nothing(dialogue, client)


def test_what_takes_a_failed_value_fails(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit(2)
    takers = client.submit(MANY, function="g", inputs=[(0, 1)] * MANY)
    grant = worker.grant()
    worker.run_failed(grant, row=numbers_of(grant.runs)[1])
    client.failed(1)
    for number in range(takers, takers + MANY):
        assert client.failed(number).kind == "exception"
    worker.done(grant, numbers_of(grant.runs)[:1])
    assert client.finished() == [0]
    leave_nothing(dialogue, client)


def test_some_of_a_fan_may_have_been_cancelled_or_released(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit()
    client.submit(MANY, function="g", inputs=[(0,)] * MANY)
    client.cancel(3)
    client.failed(3)
    client.release(7)
    worker.done(worker.grant())
    assert client.finished() == [0]
    ran = []
    while worker.inbox:
        grant = worker.grant()
        ran += numbers_of(grant.runs)
        worker.done(grant)
    assert sorted(ran) == [row for row in range(1, 1 + MANY) if row not in (3, 7)]
    client.inbox.clear()
    leave_nothing(dialogue, client)


def test_a_lost_value_makes_its_takers_wait_again(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("w0", slots=1)
    client.submit()
    client.submit(MANY, function="g", inputs=[(0,)] * MANY)
    worker.done(worker.grant())
    worker.grant()  # the first of them
    worker.disconnect()
    client.inbox.clear()
    other = dialogue.worker("w1", slots=MANY)
    ran: list[int] = []
    while other.inbox:
        grant = other.grant()
        ran += numbers_of(grant.runs)
        other.done(grant)
    assert sorted(ran) == list(range(1 + MANY))
    client.inbox.clear()
    leave_nothing(dialogue, client)


def test_fans_of_a_value_that_stays_do_not_become_ever_more(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit()
    worker.done(worker.grant())
    for _ in range(50):
        number = client.submit(MANY, function="g", inputs=[(0,)] * MANY)
        worker.done(worker.grant())
        client.release(number, MANY)
        worker.freed()
    client.inbox.clear()
    assert sum(edges_and_fans(dialogue)[1].get(0, [])) <= 3 * MANY
    leave_nothing(dialogue, client)


def test_what_cannot_be_computed_again_without_a_recipe_is_no_recipe() -> None:
    dialogue = Dialogue(Settings(lineage_rows=1))
    client, worker = dialogue.client(), dialogue.worker(slots=MANY)
    client.submit(2)
    takers = client.submit(MANY, function="g", inputs=[(0,)] * MANY)
    client.submit(function="h", inputs=[(1,)])
    run_all(worker)
    client.inbox.clear()
    client.release(0, 2)  # two recipes: the older one is given up
    table = dialogue.ledger.table
    first = dialogue.ledger.clients[client.client_id].row(takers)
    assert [flags & NO_RECIPE for flags in table.flags[first : first + MANY]] == [NO_RECIPE] * MANY
    worker.inbox.clear()
    leave_nothing(dialogue, client)


def woken_in_part(rows_per_step: int) -> tuple[Dialogue, ClientSide, WorkerSide]:
    """Tasks that take a chunk each and the same model, which has just come: so many of them are ready."""
    dialogue = Dialogue(Settings(rows_per_step=rows_per_step))
    client, worker = dialogue.client(), dialogue.worker("w0", slots=MANY)
    client.submit(MANY)
    model = client.submit(function="model")
    client.submit(MANY, function="g", inputs=[(place, model) for place in range(MANY)])
    worker.done(worker.grant())
    worker.done(worker.grant())
    assert 0 < dialogue.ledger.table.state.count(WAITING) <= MANY - rows_per_step
    return dialogue, client, worker


def test_many_tasks_that_take_one_value_are_woken_in_steps() -> None:
    dialogue, client, worker = woken_in_part(rows_per_step=7)
    waiting = []
    while dialogue.scheduler.next_wakeup == 0.0:
        dialogue.handle(Tick())
        waiting.append(dialogue.ledger.table.state.count(WAITING))
    assert len(waiting) >= 3 and waiting[-1] == 0
    run_all(worker)
    assert dialogue.ledger.table.state.count(FINISHED) == 2 * MANY + 1
    client.inbox.clear()


def test_what_is_being_woken_waits_again_when_the_value_is_lost() -> None:
    dialogue, client, worker = woken_in_part(rows_per_step=7)
    worker.disconnect()
    while dialogue.scheduler.next_wakeup == 0.0:
        dialogue.handle(Tick())
    assert dialogue.ledger.table.state.count(WAITING) == MANY
    run_all(dialogue.worker("w1", slots=3 * MANY))
    finished: list[int] = []
    while client.inbox:
        message = client.inbox.popleft()
        finished += numbers_of(message.runs) if isinstance(message, messages.Finished) else []
    assert set(finished) >= set(range(MANY + 1, 2 * MANY + 1))


def test_what_is_wanted_again_while_others_are_woken_waits_for_what_it_lacks() -> None:
    dialogue = Dialogue(Settings(rows_per_step=7))
    client, worker = dialogue.client(), dialogue.worker(slots=MANY + 2)
    client.submit(MANY)
    model, late = client.submit(function="model"), client.submit(function="late")
    takers = client.submit(MANY, function="g", inputs=[(place, model, late) for place in range(MANY)])
    user = client.submit(function="h", inputs=[(takers + MANY - 1,)])
    client.release(takers + MANY - 1)
    client.cancel(user)
    worker.done(worker.grant())
    worker.done(worker.grant())  # the model; the last taker is nobody's now
    client.say(messages.Retry([user, 1]))
    first = dialogue.ledger.clients[client.client_id].row(takers)
    assert list(dialogue.ledger.table.waiting[first : first + MANY]) == [1] * MANY
    run_all(worker)
    assert dialogue.ledger.table.state.count(FINISHED) == 2 * MANY + 2
    client.inbox.clear()


def play(seed: int, fan_rows: int) -> dict[str, list[int]]:
    """A random graph of levels that share inputs: what the client and the worker were told, in all."""
    chance = random.Random(seed)
    dialogue = Dialogue(Settings(fan_rows=fan_rows, lineage_rows=chance.choice((2, 1_000_000))))
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    client.submit(3)
    for _ in range(5):
        known = range(client.next_number)
        count = chance.randint(1, 9)
        shared = chance.sample(known, chance.randint(0, 2))
        own = [chance.sample(known, chance.choice((0, 1, 1, 2))) for _ in range(count)]
        grouped = chance.random() < 0.3
        inputs = [(chance.choice(known[:3]),) if grouped else (*shared, *each) for each in own]
        client.submit(count, inputs=sorted(inputs) if grouped else inputs if any(inputs) else ())
    failing = {number for number in range(client.next_number) if chance.random() < 0.05}
    released = [number for number in range(client.next_number) if chance.random() < 0.6]
    for number in released:
        client.release(number)
    finished, failed, freed = [], [], []
    while worker.inbox:
        if type(worker.inbox[0]) is messages.Free:
            freed += [row for _, row in worker.freed()]
            continue
        grant = worker.grant()
        for row in numbers_of(grant.runs):
            if row in failing:  # of one client alone the rows are its numbers
                worker.run_failed(grant, row=row)
            else:
                worker.done(grant, [row])
    while client.inbox:
        if type(client.inbox[0]) is messages.Failed:
            failed += numbers_of(client.hear(messages.Failed).runs)
        else:
            finished += client.finished()
    client.release(0, client.next_number)
    while worker.inbox:
        freed += [row for _, row in worker.freed()]
    leave_nothing(dialogue, client)
    return {"finished": sorted(finished), "failed": sorted(failed), "freed": sorted(freed)}


@pytest.mark.parametrize("seed", range(40))
def test_fans_come_to_the_same_as_edges(seed: int) -> None:
    assert play(seed, fan_rows=2) == play(seed, fan_rows=1_000)
