"""Who runs what and when: order, fairness, restrictions, resources, locality, the lead, and taking back."""

from __future__ import annotations

from itertools import chain

import pytest

from cluster.wire import messages
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide, numbers_of


def measure(dialogue: Dialogue, client: ClientSide, worker: WorkerSide, function: str, seconds: float) -> None:
    """Let the scheduler learn how long a function runs."""
    number = client.submit(function=function)
    worker.done(worker.grant(), seconds=seconds)
    assert client.finished() == [number]
    client.release(number)
    worker.freed()


def test_higher_priority_goes_first(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    for priority in (-1, 0, 5, 0):
        client.submit(priority=priority)
    order = []
    for _ in range(5):
        grant = worker.grant()
        order += grant.runs[:1]
        worker.done(grant, seconds=1.0)
    assert order == [0, 3, 2, 4, 1]
    client.inbox.clear()


def test_consumers_go_before_producers(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(3)
    client.submit(function="g", inputs=[[0]])
    order = []
    for _ in range(4):
        grant = worker.grant()
        order += numbers_of(grant.runs)
        worker.done(grant, seconds=1.0)
    assert order == [0, 3, 1, 2]
    client.inbox.clear()


def test_clients_share_slot_time_and_not_tasks(dialogue: Dialogue) -> None:
    slow, quick, worker = dialogue.client("slow"), dialogue.client("quick"), dialogue.worker()
    slow.submit(100, function="slow")
    quick.submit(1000, function="quick")
    seconds = {b"slow": 0.0, b"quick": 0.0}
    each = {b"slow": 0.1, b"quick": 0.01}
    while sum(seconds.values()) < 6.0:
        grant = worker.grant()
        count = len(numbers_of(grant.runs))
        seconds[grant.function_id] += count * each[grant.function_id]
        dialogue.now += count * each[grant.function_id]
        worker.done(grant, seconds=each[grant.function_id])
    assert abs(seconds[b"slow"] - seconds[b"quick"]) < 0.5
    for peer in (slow, quick, worker):
        peer.inbox.clear()


def test_a_task_runs_only_where_it_may(dialogue: Dialogue) -> None:
    client = dialogue.client()
    one = dialogue.worker("one")
    client.submit(workers=["two"])
    one.hears_nothing()
    two = dialogue.worker("two")
    two.done(two.grant())
    assert client.finished() == [0]
    client.submit(workers=[one.address])
    one.done(one.grant())
    assert client.finished() == [1]


def test_a_preferred_worker_that_is_not_there_is_no_obstacle(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    client.submit(workers=["two"], allow_other_workers=True)
    one.done(one.grant())
    assert client.finished() == [0]


def test_resources_bound_what_runs_at_once(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4, gpu=2.0)
    client.submit(3, resources={"gpu": 1})
    client.submit(function="plain")
    first = worker.grant()
    plain = worker.grant()
    assert numbers_of(first.runs) == [0, 1] and plain.function_id == b"plain"
    worker.done(first, [0])
    last = worker.grant()
    assert numbers_of(last.runs) == [2]
    for grant, rows in ((first, [1]), (plain, [3]), (last, [2])):
        worker.done(grant, rows)
    client.inbox.clear()
    assert dialogue.ledger.workers[0].available == {"gpu": 2.0, "coroutines": 4000.0}


def test_what_is_asked_for_is_forgotten_with_the_last_task_that_asks_for_it(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(gpu=1.0)
    for asked in range(1, 20):
        number = client.submit(resources={"gpu": 1 / asked})
        worker.done(worker.grant())
        assert client.finished() == [number]
        client.release(number)
        worker.inbox.clear()
    (record,) = dialogue.ledger.clients.values()
    assert len(record.lanes) == 0
    client.submit()
    assert len(record.lanes) == 1
    worker.done(worker.grant())
    client.inbox.clear()
    worker.inbox.clear()


def test_resources_come_back_once_when_a_run_is_told_twice(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4, gpu=1.0)
    client.submit(3, resources={"gpu": 1})
    grant = worker.grant()
    worker.done(grant)
    following = worker.grant()
    worker.done(grant)
    worker.hears_nothing()
    worker.done(following)
    worker.done(worker.grant())
    client.inbox.clear()


def test_a_task_that_needs_what_nobody_has_waits_for_who_has_it(dialogue: Dialogue) -> None:
    client, plain = dialogue.client(), dialogue.worker("plain")
    client.submit(resources={"gpu": 1})
    plain.hears_nothing()
    able = dialogue.worker("able", gpu=1.0)
    able.done(able.grant())
    assert client.finished() == [0]


def test_a_task_runs_where_most_of_its_inputs_are(dialogue: Dialogue) -> None:
    client = dialogue.client()
    one, two = dialogue.worker("one"), dialogue.worker("two")
    client.submit(function="a")
    client.submit(function="b")
    one.done(one.grant(), nbytes=10)
    two.done(two.grant(), nbytes=10_000_000)
    client.submit(inputs=[[0, 1]])
    grant = two.grant()
    assert [value[3] for value in grant.values] == [[one.address], [two.address]]
    two.done(grant)
    client.inbox.clear()


def test_copies_of_inputs_count_where_they_are(dialogue: Dialogue) -> None:
    client = dialogue.client()
    maker, keeper = dialogue.worker("maker"), dialogue.worker("keeper")
    client.submit()
    client.submit(function="g")
    maker.done(maker.grant(), nbytes=100_000)
    keeper.done(keeper.grant(), nbytes=50_000)
    client.inbox.clear()
    keeper.say(messages.Held(EPOCH, [0, dialogue.ledger.table.attempt[0], 100_000]))
    client.submit(function="add", inputs=[(0, 1)])
    assert keeper.grant().runs == [2, 1]
    maker.hears_nothing()


def test_a_value_that_only_a_client_has_draws_a_task_nowhere(dialogue: Dialogue) -> None:
    client, idle, holder = dialogue.client(), dialogue.worker("idle"), dialogue.worker("holder")
    client.submit(workers=["holder"])
    holder.done(holder.grant(), nbytes=50_000)
    client.inbox.clear()
    offered = client.offer([900_000])
    client.submit(function="add", inputs=[(0, offered)])
    assert holder.grant().runs == [2, 1]
    assert client.hear(messages.Push).address == holder.address
    idle.hears_nothing()


def test_a_small_input_is_named_with_all_who_hold_it(dialogue: Dialogue) -> None:
    client = dialogue.client()
    maker, keeper, taker = (dialogue.worker(name) for name in ("maker", "keeper", "taker"))
    client.submit(workers=["maker"])
    maker.done(maker.grant())
    client.inbox.clear()
    keeper.say(messages.Held(EPOCH, [0, dialogue.ledger.table.attempt[0], 8]))
    client.submit(inputs=[(0,)], workers=["taker"])
    ((row, _, nbytes, addresses),) = taker.grant().values
    assert (row, nbytes, addresses) == (0, 8, [maker.address, keeper.address])


def test_a_small_value_of_a_client_is_pushed_though_a_worker_has_it(dialogue: Dialogue) -> None:
    client, keeper, taker = dialogue.client(), dialogue.worker("keeper"), dialogue.worker("taker")
    offered = client.offer([8])
    keeper.say(messages.Held(EPOCH, [0, dialogue.ledger.table.attempt[0], 8]))
    client.submit(inputs=[(offered,)], workers=["taker"])
    assert client.hear(messages.Push).address == taker.address
    assert taker.grant().values[0][3] == []


def test_large_inputs_are_waited_for_and_small_ones_moved(dialogue: Dialogue) -> None:
    client = dialogue.client()
    one = dialogue.worker("one")
    measure(dialogue, client, one, "f", 1.0)
    large, small = client.submit(), client.submit()
    one.done(one.grant(), nbytes=500_000_000)
    one.done(one.grant(), nbytes=10)
    client.submit()
    running = one.grant()
    two = dialogue.worker("two")
    # Moving 0.5 GB takes half a second, and the slot that has them is free in one.
    client.submit(inputs=[[large]])
    moved = two.grant()
    assert moved.values[0][3] == [one.address]
    two.done(moved)
    one.done(running)
    client.inbox.clear()
    huge = client.submit(workers=["one"])
    one.done(one.grant(), nbytes=5_000_000_000)
    client.submit(workers=["one"])
    running = one.grant()
    client.submit(inputs=[[huge]])
    two.hears_nothing()
    client.submit(inputs=[[small]])
    moved = two.grant()
    assert moved.values[0][2:] == [10, [one.address]]
    two.done(moved)
    one.done(running)
    one.done(one.grant())
    client.inbox.clear()


def test_a_slot_is_given_no_more_ahead_than_the_lead(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    measure(dialogue, client, worker, "long", 1.0)
    client.submit(10, function="long")
    granted = []
    while worker.inbox:
        granted += numbers_of(worker.grant().runs)
    assert len(granted) <= 4, "each slot has one, and less than a lead waits"
    client.hears_nothing()


@pytest.mark.parametrize(("nbytes", "ahead"), [(2000, True), (25_000_000, False)])
def test_large_values_are_not_made_ahead_however_quickly(dialogue: Dialogue, nbytes: int, ahead: bool) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    first = client.submit(20, function="make")
    taking = client.submit(20, function="take", inputs=[[first + place] for place in range(20)])
    client.release(first, 20)
    worker.done(worker.grant(), seconds=0.001, nbytes=nbytes)
    worker.done(worker.grant(), seconds=0.001)
    grant = worker.grant()  # to write what it makes takes longer than the lead is
    worker.freed()
    made = numbers_of(grant.runs)
    assert (len(made) > 1) == ahead
    worker.done(grant, made[:1], seconds=0.001, nbytes=nbytes)
    if not ahead:
        assert dialogue.ledger.number(worker.grant().runs[0]) == taking + 1
    worker.inbox.clear()
    client.inbox.clear()


def test_work_ahead_at_a_stuck_worker_is_taken_back_for_an_idle_one(dialogue: Dialogue) -> None:
    client, stuck = dialogue.client(), dialogue.worker("stuck")
    measure(dialogue, client, stuck, "f", 0.001)
    client.submit(8)
    grant = stuck.grant()
    rows = numbers_of(grant.runs)
    assert len(rows) == 8
    idle = dialogue.worker("idle")
    idle.hears_nothing()
    dialogue.wait(0.1)
    recall = stuck.hear(messages.Recall)
    assert recall.count >= 1
    brought = rows[-recall.count :]
    stuck.recalled(recall.request, *[name for row in reversed(brought) for name in (grant.attempt, row)])
    taken = idle.grant()
    assert set(numbers_of(taken.runs)) <= set(brought)
    idle.inbox.clear()
    stuck.inbox.clear()


def test_only_what_a_recall_lists_is_granted_again(dialogue: Dialogue) -> None:
    client, stuck = dialogue.client(), dialogue.worker("stuck")
    measure(dialogue, client, stuck, "f", 0.001)
    client.submit(4)
    grant = stuck.grant()
    idle = dialogue.worker("idle", slots=4)
    dialogue.wait(0.05)
    recall = stuck.hear(messages.Recall)
    stuck.recalled(recall.request, grant.attempt, 3)
    assert numbers_of(idle.grant().runs) == [3]
    idle.hears_nothing()
    assert dialogue.ledger.workers[0].outstanding == 3


def test_a_recall_that_brings_nothing_back_is_not_repeated_at_once(dialogue: Dialogue) -> None:
    client, stuck = dialogue.client(), dialogue.worker("stuck")
    measure(dialogue, client, stuck, "f", 0.001)
    client.submit(4)
    stuck.grant()
    dialogue.worker("idle")
    dialogue.wait(0.05)
    recall = stuck.hear(messages.Recall)
    stuck.recalled(recall.request)
    dialogue.wait(0.02)
    stuck.hears_nothing()
    dialogue.wait(0.5)
    assert stuck.hear(messages.Recall).request > recall.request
    stuck.hears_nothing()


def granted(worker: WorkerSide) -> list[tuple[int, int]]:
    """The tasks that a worker has just been given, each as (attempt, row)."""
    grants = []
    while worker.inbox:
        grant = worker.grant()
        grants += [(grant.attempt, row) for row in numbers_of(grant.runs)]
    return grants


def test_a_recall_of_what_nobody_needs_any_more_is_followed_by_others_at_once(dialogue: Dialogue) -> None:
    client, stuck = dialogue.client(), dialogue.worker("stuck")
    measure(dialogue, client, stuck, "f", 0.001)
    other = dialogue.worker("other")
    client.submit(10)
    tasks = {peer: granted(peer) for peer in (stuck, other)}
    idle = dialogue.worker("idle")
    dialogue.wait(0.01)
    for _, row in tasks[stuck][1:] + tasks[other][1:-1]:
        client.release(dialogue.ledger.number(row))
    dialogue.wait(0.04)
    first, second = (stuck, other) if stuck.inbox else (other, stuck)
    recall = first.hear(messages.Recall)
    assert recall.count < len(tasks[first]) - 1
    first.recalled(recall.request, *chain.from_iterable(tasks[first][1 : 1 + recall.count]))
    dialogue.wait(0.0)
    assert first.hear(messages.Recall).count == len(tasks[first]) - 1 - recall.count
    assert second.hear(messages.Recall).count > 0
    idle.hears_nothing()


def test_nothing_wakes_the_scheduler_when_there_is_nothing_to_do(dialogue: Dialogue) -> None:
    assert dialogue.scheduler.next_wakeup == float("inf")
    client = dialogue.client()
    worker = dialogue.worker()
    client.submit()
    worker.done(worker.grant())
    client.finished()
    wakeups = 0
    until = dialogue.now + 5.0
    while dialogue.scheduler.next_wakeup <= until:
        dialogue.wait(dialogue.scheduler.next_wakeup - dialogue.now)
        wakeups += 1
    assert wakeups <= 6, "once a second, to look for the silent"


def test_what_came_back_from_a_stuck_worker_does_not_go_there_again(dialogue: Dialogue) -> None:
    client, stuck = dialogue.client(), dialogue.worker("stuck")
    measure(dialogue, client, stuck, "f", 0.001)
    source = client.submit()
    stuck.done(stuck.grant(), nbytes=8)
    client.finished()
    client.submit(4, inputs=[[source]] * 4)
    rows = numbers_of(stuck.grant().runs)
    idle = dialogue.worker("idle", slots=4)
    dialogue.wait(0.05)
    recall = stuck.hear(messages.Recall)
    attempt = dialogue.ledger.table.attempt[rows[0]]
    stuck.recalled(recall.request, *[name for row in rows[1:] for name in (attempt, row)])
    stuck.hears_nothing()
    moved = numbers_of(idle.grant().runs) + numbers_of(idle.grant().runs)
    assert sorted(moved) == rows[1:], "although the stuck one holds the input"


def test_a_task_that_nobody_may_run_now_does_not_hinder_taking_back(dialogue: Dialogue) -> None:
    client, stuck = dialogue.client(), dialogue.worker("stuck")
    measure(dialogue, client, stuck, "f", 0.001)
    client.submit(4)
    stuck.grant()
    client.submit(resources={"gpu": 1})
    dialogue.worker("idle")
    dialogue.wait(0.05)
    stuck.hear(messages.Recall)


def test_a_task_does_not_wait_for_a_worker_that_may_not_run_it(dialogue: Dialogue) -> None:
    client = dialogue.client()
    holder, other = dialogue.worker("holder"), dialogue.worker("other")
    source = client.submit(workers=["holder"])
    holder.done(holder.grant(), nbytes=10_000_000_000)
    client.finished()
    client.submit(inputs=[[source]], workers=["other"])
    assert other.grant().values[0][3] == [holder.address]


def test_of_a_shuffle_few_tasks_are_granted_at_once_since_a_report_follows_all_their_edges(dialogue: Dialogue) -> None:
    client = dialogue.client()
    sources = client.submit(100, function="make")
    client.submit(1000, function="take", inputs=[range(sources, sources + 100)] * 1000)
    worker = dialogue.worker(slots=100)
    assert sum(worker.grant().runs[1::2]) == 16_384 // 1001
    worker.inbox.clear()
