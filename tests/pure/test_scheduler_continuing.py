"""Parts that continue the run before them become rows of that run; and whatever is done to it stays right."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cluster.scheduler import continuing
from cluster.scheduler.ledger import Settings
from cluster.scheduler.table import Table
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue, WorkerSide, numbers_of

BATCH = 1000


def submit_level(client: ClientSide, parts: Sequence[Sequence[Sequence[int]]], **said: Any) -> int:
    """A level in parts, each as the inputs of its tasks; the first number."""
    firsts = [client.submit(len(part), function="g", inputs=part, batch=BATCH, **said) for part in parts]
    return firsts[0]


def runs_of(client: ClientSide) -> list[tuple[int, int]]:
    """The client's runs, as first number and count."""
    return [(run.first_number, run.count) for run in client.dialogue.ledger.clients[client.client_id].all_runs()]


def finish_all(client: ClientSide, *workers: WorkerSide) -> list[int]:
    """Run what is granted until nothing is; the numbers that finished."""
    while any(worker.inbox for worker in workers):
        for worker in workers:
            if worker.inbox and type(worker.inbox[0]) is messages.Free:
                worker.freed()
            elif worker.inbox:
                worker.done(worker.grant())
    finished: list[int] = []
    while client.inbox:
        finished += client.finished()
    return finished


def test_parts_of_a_level_become_one_run_and_are_granted_as_one(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    client.submit(8)
    submit_level(client, [[(0, 1), (2, 3)], [(4, 5)], [(6, 7)]])
    assert runs_of(client) == [(0, 8), (8, 4)]
    worker.done(worker.grant())
    assert client.finished() == list(range(8))
    grant = worker.grant()
    assert grant.runs[1::2] == [4]
    assert array("I", grant.input_starts).tolist() == [0, 2, 4, 6, 8]
    assert [value[0] for value in grant.values] == list(range(8))
    worker.done(grant)
    assert client.finished() == [8, 9, 10, 11]


def two_parts(client: ClientSide, second: dict[str, Any], first: dict[str, Any] | None = None) -> None:
    client.submit(4)
    client.submit(2, **{"function": "g", "inputs": [(0,), (1,)], "batch": BATCH, **(first or {})})
    client.submit(2, **{"function": "g", "inputs": [(2,), (3,)], "batch": BATCH, **second})


@pytest.mark.parametrize(
    "second",
    [
        {"function": "h", "label": "g"},
        {"label": "other"},
        {"batch": BATCH + 1},
        {"priority": 1},
        {"mode": 1},
        {"awaited": True},
        {"coroutine": True},
        {"actor": True},
        {"argument": b"other"},
        {"pieces": (b"one", b"two")},
        {"inputs": [(2,), (4,)]},
        {"inputs": [(2,), (6,)]},
        {"inputs": [(), (7,)]},
        {"inputs": ()},
        {"inputs": (), "shared": (2, 3)},
    ],
    ids=str,
)
def test_a_part_that_differs_is_a_run_of_its_own(dialogue: Dialogue, second: dict[str, Any]) -> None:
    client = dialogue.client()
    two_parts(client, second)
    assert runs_of(client) == [(0, 4), (4, 2), (6, 2)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"inputs": ()}, {}),
        ({"inputs": ()}, {"inputs": ()}),
        ({"inputs": [(), ()]}, {"inputs": [(), ()]}),
        ({"coroutine": True}, {}),
        ({"actor": True}, {}),
        ({"argument": b"onetwo"}, {"pieces": (b"one", b"two")}),
        ({"pieces": (b"one", b"two")}, {"argument": b"onetwo"}),
    ],
    ids=str,
)
def test_a_run_of_another_kind_is_not_continued(
    dialogue: Dialogue, first: dict[str, Any], second: dict[str, Any]
) -> None:
    client = dialogue.client()
    two_parts(client, second, first)
    assert runs_of(client) == [(0, 4), (4, 2), (6, 2)]


def test_tasks_that_share_their_inputs_are_not_continued_by_others(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    client.submit(2)
    client.submit(2, function="deep", inputs=[(1,), (2,)])
    client.release(0)
    client.submit(2, function="g", shared=(1, 2), batch=BATCH)
    assert dialogue.ledger.table.run_of[0].is_join  # so that the rows behind the run are free
    client.submit(2, function="g", inputs=[(3,), (4,)], batch=BATCH)  # as deep as those, behind their join
    depths = {run.depth for run in dialogue.ledger.clients[client.client_id].all_runs() if run.label == "g"}
    assert (depths, runs_of(client)) == ({2}, [(1, 2), (3, 2), (5, 2), (7, 2)])


def test_calls_of_an_actor_are_not_continued_by_other_tasks(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(actor=True)
    submit_level(client, [[(0,)]], actor_call=True)
    submit_level(client, [[(0,)]])
    assert runs_of(client) == [(0, 1), (1, 1), (2, 1)]


def test_a_part_whose_tasks_are_kept_continues_one_whose_are_not(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    two_parts(client, {"keep": True})
    assert runs_of(client) == [(0, 4), (4, 4)]
    client.release(0, 8)
    worker.done(worker.grant())
    assert worker.grant().runs[1::2] == [2]
    assert len(worker.freed()) == 2


def test_the_children_of_a_task_are_runs_of_their_own(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    grant = worker.grant()
    child = dialogue.client("child")
    parent = [grant.attempt, grant.runs[0]]
    first = child.submit(parent=parent)
    for _ in range(2):
        child.submit(function="g", inputs=[(first,)], batch=BATCH, parent=parent)
    child.submit(function="g", inputs=[(first,)], batch=BATCH)
    assert runs_of(child) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_numbers_that_do_not_follow_begin_a_run(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(2)
    submit_level(client, [[(0,)]])
    client.submit()
    submit_level(client, [[(1,)]])
    assert runs_of(client) == [(0, 2), (2, 1), (3, 1), (4, 1)]


def test_what_comes_later_begins_a_run(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(4)
    submit_level(client, [[(0,)]])
    dialogue.wait(0.9)
    submit_level(client, [[(1,)]])
    dialogue.wait(0.2)
    submit_level(client, [[(2,)]])
    assert runs_of(client) == [(0, 4), (4, 2), (6, 1)]


def test_a_run_that_was_forgotten_is_not_continued(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(2)
    first = submit_level(client, [[(0,)]])
    finish_all(client, worker)
    client.release(first)
    worker.freed()
    submit_level(client, [[(1,)]])
    assert runs_of(client) == [(0, 2), (3, 1)]
    assert finish_all(client, worker) == [3]


def test_a_part_with_an_input_that_was_released_is_a_run_of_its_own(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(3)
    client.release(2)
    submit_level(client, [[(0,)], [(1,), (2,)]])
    assert runs_of(client) == [(0, 3), (3, 1), (4, 2)]
    assert client.failed(5).kind == "lost"


def test_where_anothers_rows_are_behind_a_run_it_ends(dialogue: Dialogue) -> None:
    one, other = dialogue.client("one"), dialogue.client("other")
    one.submit(4)
    submit_level(one, [[(0,)], [(1,)]])
    other.submit()
    submit_level(one, [[(2,)], [(3,)]])
    assert runs_of(one) == [(0, 4), (4, 2), (6, 2)]


@pytest.mark.parametrize(
    ("limit", "value"), [("LARGEST_RUN_TASKS", 4), ("LARGEST_RUN_INPUTS", 8), ("LARGEST_RUN_BYTES", 12)]
)
def test_a_run_is_not_continued_without_end(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(continuing, limit, value)
    client = dialogue.client()
    client.submit(2)
    for _ in range(3):
        submit_level(client, [[(0, 1), (1, 0)]], pieces=(b"one", b"two"))
    assert runs_of(client) == [(0, 2), (2, 4), (6, 2)]


def test_arguments_of_all_parts_are_granted_with_their_tasks(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(4)
    pieces = [b"a", b"bcd", b"", b"ef", b"g"]
    client.submit(2, function="g", inputs=[(0,), (1,)], batch=BATCH, pieces=pieces[:2])
    client.submit(3, function="g", inputs=[(2,), (3,), (0,)], batch=BATCH, pieces=pieces[2:])
    assert runs_of(client) == [(0, 4), (4, 5)]
    granted: dict[int, bytes] = {}
    while worker.inbox:
        grant = worker.grant()
        shift = grant.origin[2]
        offsets = array("I", grant.offsets)
        if offsets:
            assert type(grant.blob) is bytes
            places = enumerate(numbers_of(grant.runs))
            granted |= {row + shift: grant.blob[offsets[place] : offsets[place + 1]] for place, row in places}
        worker.done(grant)
    assert granted == dict(enumerate(pieces, 4))
    client.inbox.clear()


@pytest.mark.parametrize("said", [{"argument": b"four"}, {"pieces": (b"three", b"10")}], ids=str)
def test_each_parts_bytes_are_counted_once_while_they_wait_and_once_when_taken(said: dict[str, Any]) -> None:
    talk = Dialogue(Settings(arguments_told_bytes=1))
    client, worker = talk.client(), talk.worker(slots=1)
    client.submit(2)
    record = talk.ledger.clients[client.client_id]
    submit_level(client, [[(0,), (1,)]] * 2, **said)
    size = len(said.get("argument", b"")) or sum(map(len, said["pieces"]))
    assert (record.argument_bytes, record.taken_bytes) == (2 * size, 0)
    for _ in range(2):
        worker.done(worker.grant())
    worker.done(worker.grant(), seconds=10.0)  # so that it gets the others one by one
    assert 0 < record.taken_bytes < 2 * size
    assert record.argument_bytes + record.taken_bytes == 2 * size
    submit_level(client, [[(0,), (1,)]], **said)
    assert runs_of(client) == [(0, 2), (2, 6)]
    assert record.argument_bytes + record.taken_bytes == 3 * size
    while worker.inbox:
        worker.done(worker.grant(), seconds=10.0)
    assert (record.argument_bytes, record.taken_bytes) == (0, 3 * size)
    assert [message for message in client.inbox if type(message) is messages.ArgumentsTaken][-1].total_bytes == 3 * size
    client.inbox.clear()


def test_parts_are_released_apart(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    client.submit(4)
    first = submit_level(client, [[(0,), (1,)], [(2,), (3,)]])
    assert finish_all(client, worker) == list(range(8))
    client.release(first, 2)
    assert len(worker.freed()) == 2
    record = dialogue.ledger.clients[client.client_id]
    assert [record.row(number) >= 0 for number in range(first, first + 4)] == [False, False, True, True]
    client.release(first + 2, 2)
    client.release(0, 4)
    while worker.inbox:
        worker.freed()
    assert dialogue.ledger.table.rows_used == 0


def test_one_part_is_cancelled_and_the_other_runs(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    client.submit(4)
    first = submit_level(client, [[(0,), (1,)], [(2,), (3,)]])
    client.cancel(first + 1, 2)
    assert [client.failed(number).kind for number in (first + 1, first + 2)] == ["cancelled"] * 2
    assert finish_all(client, worker) == [0, 1, 2, 3, first, first + 3]


def test_a_failure_in_one_part_reaches_its_own_dependents_only(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    client.submit(4)
    first = submit_level(client, [[(0,), (1,)], [(2,), (3,)]])
    top = client.submit(2, function="h", inputs=[(first, first + 1), (first + 2, first + 3)])
    worker.done(worker.grant())
    client.finished()
    grant = worker.grant()
    rows = numbers_of(grant.runs)
    worker.run_failed(grant, row=rows[2])
    assert [client.failed(number).kind for number in (first + 2, top + 1)] == ["exception"] * 2
    worker.done(grant, [row for row in rows if row != rows[2]])
    assert finish_all(client, worker) == [first, first + 1, first + 3, top]


def test_values_of_all_parts_are_computed_anew_when_their_worker_is_lost(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("one", slots=8)
    client.submit(4)
    first = submit_level(client, [[(0,), (1,)], [(2,), (3,)]])
    client.release(0, 4)
    finish_all(client, worker)
    other = dialogue.worker("other", slots=8)
    worker.disconnect()
    for number in range(first, first + 4):
        client.reset(number)
    assert sorted(finish_all(client, other)) == list(range(first, first + 4))


def test_a_part_that_continues_a_run_which_is_running_joins_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    client.submit(3)
    worker.done(worker.grant())
    first = submit_level(client, [[(0,)]])
    early = worker.grant()
    submit_level(client, [[(1,)], [(2,)]])
    assert runs_of(client) == [(0, 3), (first, 3)]
    late = [worker.grant(), worker.grant()]
    worker.done(early)
    for grant in late:
        worker.done(grant)
    assert finish_all(client, worker) == [0, 1, 2, first, first + 1, first + 2]


# --------------------------------------------------------------------------- room in the table


def table_with_client() -> tuple[Table, Any]:
    dialogue = Dialogue()
    client = dialogue.client()
    return dialogue.ledger.table, dialogue.ledger.clients[client.client_id]


def test_a_run_at_the_end_of_the_table_is_extended_beyond_it() -> None:
    table, client = table_with_client()
    run = table.allocate(60, client, 0)
    assert table.extend(run, 1000)
    assert (run.count, run.live, table.rows_used) == (1060, 1060, 1060)
    assert len(table) >= 1060 and table.run_of[1059] is run
    after = table.allocate(5, client, 2000)
    assert after.start >= 1060


def test_a_run_is_extended_into_rows_that_were_freed_and_no_further() -> None:
    table, client = table_with_client()
    run, between, last = (table.allocate(count, client, 0) for count in (10, 20, 34))
    table.state[between.start : between.start + 20] = b"\1" * 20
    table.heirs[between.start] = 3
    assert not table.extend(run, 1)
    table.free_rows(between, range(between.start, between.start + 20))
    assert table.extend(run, 15)
    assert table.heirs[run.start + 10] == 0 and table.run_of[run.start + 24] is run
    assert not table.extend(run, 6)
    assert table.extend(run, 5)
    assert (run.start + run.count, run.live, table.rows_used) == (last.start, 30, 64)


# --------------------------------------------------------------------------- random graphs


def play(seed: int, cut: Callable[[random.Random, int], int]) -> tuple[dict[str, list[int]], int]:
    """A random graph of levels, in parts, run to its end: what happened, and how many runs there were at most."""
    chance, cutting = random.Random(seed), random.Random(seed)
    talk = Dialogue()
    client, worker = talk.client(), talk.worker(slots=4)
    client.submit(8)
    level = range(8)
    for function in ("g", "h", "i"):
        inputs = [chance.sample(level, chance.randint(1, 3)) for _ in range(chance.randint(3, 9))]
        batch = first = client.next_number
        while inputs:
            length = cut(cutting, len(inputs))
            part, inputs = inputs[:length], inputs[length:]
            client.submit(length, function=function, inputs=part, batch=batch, pieces=[b"%d" % len(part)] * length)
        level = range(first, client.next_number)
    runs = len(runs_of(client))
    for number in range(client.next_number):
        if chance.random() < 0.6:
            client.release(number)
    ran, freed = [], 0
    while worker.inbox:
        if type(worker.inbox[0]) is messages.Free:
            freed += len(worker.freed())
            continue
        grant = worker.grant()
        rows = numbers_of(grant.runs)
        ran += [row + grant.origin[2] for row in rows]
        middle = chance.randint(0, len(rows))
        for reported in (rows[:middle], rows[middle:]):
            if reported:
                worker.done(grant, reported)
    finished: list[int] = []
    while client.inbox:
        finished += client.finished()
    client.release(0, client.next_number)
    while worker.inbox:
        freed += len(worker.freed())
    assert talk.ledger.table.rows_used == 0
    return {"ran": sorted(ran), "finished": sorted(finished), "freed": [freed]}, runs


def whole(chance: random.Random, left: int) -> int:
    return left


def in_parts(chance: random.Random, left: int) -> int:
    return min(left, chance.randint(1, 3))


@pytest.mark.parametrize("seed", range(30))
def test_a_graph_in_parts_ends_as_the_whole_does(seed: int) -> None:
    expected, runs = play(seed, whole)
    assert runs == 4
    assert play(seed, in_parts) == (expected, runs)
