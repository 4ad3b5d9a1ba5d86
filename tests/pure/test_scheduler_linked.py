"""Plain rows of graphs are finished, woken, released and freed in spans; and what the spans may not change."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cluster.scheduler.linked import LinkedRows
from cluster.scheduler.machine import Settings
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue, numbers_of


def tree_level(client: ClientSide, first: int, count: int) -> int:
    return client.submit(count // 2, function="add", inputs=[(first + i, first + i + 1) for i in range(0, count, 2)])


def test_a_report_wakes_the_next_level_as_one_grant(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    first = client.submit(8)
    second = tree_level(client, first, 8)
    worker.done(worker.grant())
    assert client.finished() == list(range(first, first + 8))
    grant = worker.grant()
    assert grant.runs[1::2] == [4]
    worker.done(grant)
    assert client.finished() == list(range(second, second + 4))


def test_values_that_a_level_leaves_are_freed_as_one_span(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    first = client.submit(8)
    second = tree_level(client, first, 8)
    client.release(first, 8)
    leaves = worker.grant()
    worker.done(leaves)
    worker.done(worker.grant())
    assert client.finished() == list(range(second, second + 4))
    freed = worker.hear(messages.Free)
    assert freed.values == [leaves.attempt, leaves.runs[0], 8]


def test_what_the_tasks_of_a_shuffle_leave_is_freed_as_one_span(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    client.submit(6)
    client.submit(3, function="merge", inputs=[(place, 3 + place) for place in range(3)])
    client.release(0, 6)
    pieces = worker.grant()
    worker.done(pieces)
    worker.done(worker.grant())
    assert client.finished() == [6, 7, 8]
    assert worker.hear(messages.Free).values == [pieces.attempt, pieces.runs[0], 6]


@pytest.mark.parametrize(("nbytes", "place"), [(10, 1), (100_000, 0)])
def test_where_inputs_are_apart_a_task_goes_to_the_latest_unless_they_are_large(
    dialogue: Dialogue, nbytes: int, place: int
) -> None:
    client = dialogue.client()
    client.submit(1)
    client.submit(1, function="g")
    workers = [dialogue.worker("w0"), dialogue.worker("w1")]
    client.submit(1, function="add", inputs=[(0, 1)])
    for worker in workers:
        worker.done(worker.grant(), nbytes=nbytes)
    assert workers[place].grant().runs[1::2] == [1]
    workers[1 - place].hears_nothing()
    client.inbox.clear()


def test_an_input_taken_twice_is_released_once(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(2)
    client.submit(2, function="g", inputs=[(0, 0), (0, 1)])
    client.release(0, 2)
    worker.done(worker.grant())
    worker.done(worker.grant())
    assert client.finished() == [2, 3]
    assert len(worker.freed()) == 2
    client.release(2, 2)
    worker.freed()
    assert dialogue.ledger.table.rows_used == 0


def test_a_kept_task_of_a_graph_is_let_go_when_it_has_ended(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(2)
    client.submit(1, function="g", inputs=[(0, 1)])
    client.say(messages.Keep([2, 1]))
    client.release(0, 3)
    worker.done(worker.grant())
    worker.done(worker.grant())
    while worker.inbox:
        worker.freed()
    assert dialogue.ledger.table.rows_used == 0


def test_recipes_beyond_the_bound_are_given_up_one_by_one_and_not_all_at_once() -> None:
    talk = Dialogue(Settings(lineage_rows=3))
    client, worker = talk.client(), talk.worker()
    client.submit()
    for number in range(8):
        client.submit(inputs=[[number]])
    client.release(0, 8)
    kept = []
    while worker.inbox:
        if type(worker.inbox[0]) is messages.Free:
            worker.freed()
            continue
        worker.done(worker.grant())
        kept.append(talk.ledger.clients[client.client_id].recipe_rows)
    assert kept[3:] == [3] * (len(kept) - 3)
    assert client.finished() == [8]
    talk.everybody_heard_everything()


def play(seed: int) -> dict[str, list[int]]:
    """A random graph, run to its end in random order: what the client and the worker were told, in all."""
    chance = random.Random(seed)
    talk = Dialogue()
    client, worker = talk.client(), talk.worker(slots=3)
    for _ in range(6):
        known = list(range(client.next_number))
        count = chance.randint(1, 5)
        inputs = [chance.sample(known, chance.randint(0, min(3, len(known)))) for _ in range(count)] if known else ()
        client.submit(count, inputs=inputs)
    released = [number for number in range(client.next_number) if chance.random() < 0.6]
    for number in released:
        client.release(number)
    finished, freed, ran = [], [], []
    while worker.inbox:
        if type(worker.inbox[0]) is messages.Free:
            freed += [row for _, row in worker.freed()]
            continue
        grant = worker.grant()
        ran += numbers_of(grant.runs)
        rows = numbers_of(grant.runs)
        cut = chance.randint(0, len(rows))
        for part in (rows[:cut], rows[cut:]):
            if part:
                worker.done(grant, part)
    while client.inbox:
        finished += client.finished()
    client.release(0, client.next_number)
    while worker.inbox:
        freed += [row for _, row in worker.freed()]
    assert talk.ledger.table.rows_used == 0
    return {"finished": sorted(finished), "freed": sorted(freed), "ran": sorted(ran)}


@pytest.mark.parametrize("seed", range(30))
def test_spans_come_to_the_same_as_rows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    by_spans = play(seed)
    never: Callable[..., bool] = lambda *_: False  # noqa: E731
    monkeypatch.setattr(LinkedRows, "are_plain", never)
    monkeypatch.setattr(LinkedRows, "release", lambda self, limit: limit)
    assert play(seed) == by_spans
