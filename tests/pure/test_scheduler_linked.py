"""Plain rows of graphs are finished, woken, released and freed in spans; and what the spans may not change."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cluster.scheduler.linked import LinkedRows
from cluster.scheduler.machine import Settings
from cluster.scheduler.table import Run
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


def test_recipes_that_come_and_go_in_spans_are_counted_one_by_one(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    first = client.submit(8, pieces=[b"x" * place for place in range(8)])
    second = tree_level(client, first, 8)
    record = dialogue.ledger.clients[client.client_id]
    client.release(first, 8)
    worker.done(worker.grant())
    worker.done(worker.grant())
    assert (record.recipe_rows, record.recipe_bytes) == (8, 28)
    client.release(second, 2)  # and with these go the first four leaves, out of the middle of the list
    assert (record.recipe_rows, record.recipe_bytes) == (4, 22)
    client.release(second + 2, 2)
    assert (record.recipe_rows, record.recipe_bytes, record.oldest_recipe, record.newest_recipe) == (0, 0, -1, -1)
    assert dialogue.ledger.table.rows_used == 0
    worker.inbox.clear()
    client.inbox.clear()


def test_a_span_of_recipes_beyond_the_bound_gives_up_the_oldest() -> None:
    talk = Dialogue(Settings(lineage_rows=3))
    client, worker = talk.client(), talk.worker(slots=8)
    first = client.submit(8)
    tree_level(client, first, 8)
    client.release(first, 8)
    worker.done(worker.grant())
    worker.done(worker.grant())
    record = talk.ledger.clients[client.client_id]
    # The heir of a leaf that is given up cannot be computed again, so that its other leaf goes as well.
    assert (record.recipe_rows, sum(run.live for run in record.all_runs())) == (2, 6)


def test_rows_that_are_let_go_in_a_span_wait_no_less_for_their_inputs(dialogue: Dialogue) -> None:
    client = dialogue.client()
    first = client.submit(8)
    second = tree_level(client, first, 8)
    third = client.submit(1, function="add", inputs=[(second, second + 1)])
    client.release(second, 4)
    client.release(first, 8)
    worker = dialogue.worker(slots=8)
    leaves = worker.grant()
    assert leaves.runs[1::2] == [4]  # those of which nothing is wanted any more are not run
    worker.done(leaves)
    middle = worker.grant()
    assert middle.runs[1::2] == [2]
    worker.done(middle)
    top = worker.grant()
    assert len(worker.freed()) == 4
    worker.done(top)
    assert len(worker.freed()) == 2
    assert client.finished() == [third]


def test_values_of_a_span_that_is_let_go_are_counted_as_intermediate_if_they_are_large(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    client.submit(4)
    leaves = worker.grant()
    worker.done(leaves, nbytes=100_000)
    client.finished()
    client.submit(2, function="add", inputs=[(0, 1), (2, 3)])
    client.release(0, 4)
    (record,) = dialogue.ledger.workers.values()
    assert sum(record.memory.intermediate.values()) == 400_000
    worker.done(worker.grant())
    worker.freed()
    client.finished()
    assert sum(record.memory.intermediate.values()) == 0


def test_of_values_released_side_by_side_those_with_heirs_stay_as_recipes(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    client.submit(4)
    client.submit(2, function="add", inputs=[(0,), (3,)])
    worker.done(worker.grant())
    worker.done(worker.grant())
    client.inbox.clear()
    client.release(0, 4)
    assert len(worker.freed()) == 4
    record = dialogue.ledger.clients[client.client_id]
    assert [record.row(number) >= 0 for number in range(4)] == [True, False, False, True]


def test_what_a_shared_input_leaves_behind_goes_with_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    client.submit(2)
    takers = client.submit(3, function="add", inputs=[(0, 1)] * 3)
    client.release(0, 2)
    worker.done(worker.grant())
    worker.done(worker.grant())
    client.inbox.clear()
    for number in range(takers, takers + 3):  # each leaves a stale edge at both inputs
        client.release(number)
    worker.inbox.clear()
    table = dialogue.ledger.table
    assert (table.rows_used, table.stale_edges) == (0, {})


def test_the_edges_of_values_that_stay_do_not_become_ever_more(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(2)
    worker.done(worker.grant())
    for _ in range(300):
        number = client.submit(2, function="g", inputs=[(0,), (1,)])
        worker.done(worker.grant())
        client.release(number, 2)
        worker.freed()
    client.inbox.clear()
    assert len(dialogue.ledger.table.edge_row) < 250


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
    assert not talk.ledger.table.stale_edges
    return {"finished": sorted(finished), "freed": sorted(freed), "ran": sorted(ran)}


@pytest.mark.parametrize("seed", range(30))
def test_spans_come_to_the_same_as_rows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    by_spans = play(seed)
    never: Callable[..., bool] = lambda *_: False  # noqa: E731
    monkeypatch.setattr(LinkedRows, "are_plain", never)
    monkeypatch.setattr(LinkedRows, "release", lambda self, limit: limit)
    assert play(seed) == by_spans


def shuffle(width: int, lineage_rows: int, seed: int) -> dict[str, list[int]]:
    """A shuffle on two workers, reported in random order and let go of: what the client and the workers were told."""
    chance = random.Random(seed)
    talk = Dialogue(Settings(lineage_rows=lineage_rows))
    client, workers = talk.client(), [talk.worker("w0", slots=4), talk.worker("w1", slots=4)]
    client.submit(width)
    pieces = client.submit(
        width * width,
        function="piece",
        inputs=[(load,) for load in range(width) for _ in range(width)],
        pieces=[b"x" * chance.randint(0, 3) for _ in range(width * width)],
    )
    client.submit(
        width,
        function="merge",
        inputs=[range(pieces + place, pieces + width * width, width) for place in range(width)],
    )
    client.release(0, width + width * width)
    freed, finished = [], []
    while busy := [worker for worker in workers if worker.inbox]:
        worker = chance.choice(busy)
        if type(worker.inbox[0]) is messages.Free:
            freed += [row for _, row in worker.freed()]
            continue
        grant = worker.grant()
        rows = numbers_of(grant.runs)
        for part in (rows[::2], rows[1::2]) if chance.random() < 0.3 else (rows,):
            if part:
                worker.done(grant, part)
    while client.inbox:
        finished += client.finished()
    client.release(0, client.next_number)
    for worker in workers:
        while worker.inbox:
            freed += [row for _, row in worker.freed()]
    record = talk.ledger.clients[client.client_id]
    assert (talk.ledger.table.rows_used, talk.ledger.table.stale_edges) == (0, {})
    assert (record.recipe_rows, record.recipe_bytes, record.oldest_recipe, record.newest_recipe) == (0, 0, -1, -1)
    return {"finished": sorted(finished), "freed": sorted(freed)}


@pytest.mark.parametrize("lineage_rows", [1_000_000, 150, 40, 1])
@pytest.mark.parametrize("seed", range(3))
def test_what_merges_leave_is_released_in_strides_as_row_by_row(
    seed: int, lineage_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    strides: list[int] = []
    release_rows = LinkedRows._release_rows

    def observed(self: LinkedRows, rows: range, run: Run, freed: object) -> int:
        cost = release_rows(self, rows, run, freed)  # type: ignore[arg-type]
        strides.append(rows.step if cost else 0)
        return cost

    monkeypatch.setattr(LinkedRows, "_release_rows", observed)
    in_strides = shuffle(12, lineage_rows, seed)
    assert strides.count(12) >= 12
    monkeypatch.setattr(LinkedRows, "release", lambda self, limit: limit)
    assert shuffle(12, lineage_rows, seed) == in_strides


def test_what_can_never_be_computed_again_is_not_kept_as_a_recipe() -> None:
    talk = Dialogue(Settings(lineage_rows=1))
    client, worker = talk.client(), talk.worker(slots=4)
    client.submit(2)
    client.submit(2, function="g", inputs=[(0,), (1,)])
    client.submit(1, function="h", inputs=[(2, 3)])
    client.release(0, 2)
    worker.done(worker.grant())
    worker.done(worker.grant())
    last = worker.grant()
    worker.freed()  # the first two, whose recipes are one too many: one of what was made of them has none any more
    record = talk.ledger.clients[client.client_id]
    assert record.recipe_rows == 1
    worker.done(last)
    client.release(2, 2)
    assert len(worker.freed()) == 2
    assert record.recipe_rows == 0 and sum(run.live for run in record.all_runs()) == 1
    client.inbox.clear()
