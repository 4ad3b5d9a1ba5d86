"""Producers wait for room in a worker's memory, consumers do not, and nothing ever stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.scheduler import holdings
from cluster.scheduler.sizes import OutputSizes, SizesByLabel
from cluster.scheduler.worker_memory import BUDGET_SHARE
from cluster.wire import messages
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide, numbers_of

MIB = 1 << 20
LIMIT = 1 << 30  # what the dialogue's workers have
BUDGET = int(BUDGET_SHARE * LIMIT)


def learn(dialogue: Dialogue, client: ClientSide, worker: WorkerSide, function: str, nbytes: int) -> None:
    """Let the scheduler see how large a function's results are, and how long it runs."""
    number = client.submit(function=function)
    worker.done(worker.grant(), nbytes=nbytes, seconds=1.0)
    assert client.finished() == [number]
    client.release(number)
    worker.freed()


def produce(client: ClientSide, count: int, consumers: Sequence[Sequence[int]], function: str = "make") -> int:
    """Tasks whose values only consumers need, by places; the first consumer's number."""
    first = client.submit(count, function=function)
    taking = client.submit(
        len(consumers), function="take", inputs=[[first + place for place in each] for each in consumers]
    )
    client.release(first, count)
    return taking


def granted(worker: WorkerSide) -> list[messages.Grant]:
    """What the worker was granted since; that values are free again is passed over."""
    grants = []
    while worker.inbox:
        if type(worker.inbox[0]) is messages.Free:
            worker.inbox.popleft()
        else:
            grants.append(worker.grant())
    return grants


def rows(grants: list[messages.Grant]) -> list[int]:
    return [row for grant in grants for row in numbers_of(grant.runs)]


def hold(dialogue: Dialogue, client: ClientSide, worker: WorkerSide, nbytes: int) -> int:
    """A value that only an unfinished task keeps, which cannot run; its number."""
    number = client.submit(function="hold")
    client.submit(function="never", inputs=[[number]], workers=["nowhere"])
    client.release(number)
    worker.done(worker.grant(), nbytes=nbytes, seconds=1.0)
    return number


# ------------------------------------------------------------------ what is learned


def test_the_estimate_is_a_high_quantile_and_one_freak_does_not_change_it() -> None:
    sizes = OutputSizes()
    assert sizes.estimate_bytes is None
    sizes.observe([5 * MIB], 5 * MIB)
    assert sizes.estimate_bytes == 5 * MIB
    sizes.observe([MIB] * 16, 16 * MIB)
    assert sizes.estimate_bytes == MIB
    sizes.observe([500 * MIB], 500 * MIB)
    assert sizes.estimate_bytes == MIB
    sizes.observe([400 * MIB], 400 * MIB)
    assert sizes.estimate_bytes == 400 * MIB
    sizes.observe([MIB] * 16, 16 * MIB)
    assert sizes.estimate_bytes == MIB


def test_small_results_are_not_worth_counting_until_they_grow() -> None:
    sizes = OutputSizes()
    sizes.observe([8] * 1000, 8000)
    assert sizes.estimate_bytes == 0
    sizes.observe([MIB], MIB)
    assert sizes.estimate_bytes == MIB


def test_a_function_under_several_labels_is_learned_apart_up_to_a_bound() -> None:
    known = SizesByLabel()
    known.of("load").observe([MIB], MIB)
    assert known.of("load").estimate_bytes == MIB
    assert known.of("add").estimate_bytes is None
    many = [known.of(f"label {index}") for index in range(1000)]
    assert many[-1] is many[-2] is not many[0]


# ------------------------------------------------------------------ producers and consumers


def test_a_producer_waits_for_room_and_goes_when_a_value_is_used_up(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    learn(dialogue, client, worker, "make", 200 * MIB)
    taking = produce(client, 6, [[0], [1], [2], [3], [4], [5]])
    (grant,) = granted(worker)  # three of 200 MiB fit into 614
    made = rows([grant])
    assert len(made) == 3
    worker.done(grant, made[:1], nbytes=200 * MIB)
    consumer = worker.grant()  # and no producer in the place of the one that ended
    assert dialogue.ledger.number(consumer.runs[0]) == taking
    worker.hears_nothing()
    worker.done(consumer)  # now the value is used up
    assert len(rows(granted(worker))) == 1
    client.inbox.clear()


def test_a_consumer_that_frees_as_much_as_it_makes_passes_a_full_memory(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    learn(dialogue, client, worker, "make", 600 * MIB)
    learn(dialogue, client, worker, "take", 500 * MIB)
    taking = produce(client, 2, [[0], [1]])
    worker.done(worker.grant(), nbytes=600 * MIB)
    assert dialogue.ledger.number(worker.grant().runs[0]) == taking
    client.inbox.clear()


def test_one_that_makes_more_than_it_frees_waits_like_a_producer(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    learn(dialogue, client, worker, "make", 100 * MIB)
    learn(dialogue, client, worker, "take", 500 * MIB)
    produce(client, 2, [[0], [1]])
    makers = granted(worker)
    for grant in makers:
        worker.done(grant, nbytes=100 * MIB)
    assert len(rows(granted(worker))) == 1  # of 200 MiB held and 500 to come no further 500 fit
    client.inbox.clear()


def test_the_parts_of_what_several_tasks_free_add_up(dialogue: Dialogue) -> None:
    # All-to-all: each of three takes all three values, and makes as much as one of them.
    client, worker = dialogue.client(), dialogue.worker(slots=3)
    learn(dialogue, client, worker, "make", 200 * MIB)
    learn(dialogue, client, worker, "take", 200 * MIB)
    first = client.submit(3, function="make")
    client.submit(3, function="take", shared=[first, first + 1, first + 2])
    client.release(first, 3)
    for grant in granted(worker):
        worker.done(grant, nbytes=200 * MIB)
    assert len(rows(granted(worker))) == 3
    client.inbox.clear()


def test_when_nothing_runs_the_first_is_admitted_whatever_it_needs(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    learn(dialogue, client, worker, "make", 5000 * MIB)
    client.submit(3, function="make")
    grant = worker.grant()
    assert len(rows([grant])) == 1
    worker.hears_nothing()
    worker.done(grant, nbytes=5000 * MIB)
    assert len(rows(granted(worker))) == 1
    client.inbox.clear()


def test_the_producer_that_a_consumer_waits_for_is_found_far_down_a_stretch(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    learn(dialogue, client, one, "make", 200 * MIB)
    small = client.submit(function="small")
    one.done(one.grant(), nbytes=8)
    assert client.finished() == [small]
    two = dialogue.worker("two")
    for worker in (one, two):
        kept = client.submit(function="hold", workers=[worker.name])
        client.submit(function="never", inputs=[[kept]], workers=["nowhere"])
        client.release(kept)
        worker.done(worker.grant(), nbytes=BUDGET, seconds=1.0)
    client.submit(function="long", workers=["one"])
    assert len(granted(one)) == 1
    first = client.submit(200, function="make")
    client.submit(function="join", inputs=[[small, first + 150]])
    dialogue.wait(0.1)
    assert rows(granted(two)) == [dialogue.ledger.clients[client.client_id].row(first + 150)]
    assert not granted(one)


def test_until_a_size_is_known_there_are_no_more_than_slots(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(10, function="make")
    assert len(rows(granted(worker))) == 2


def test_a_promise_is_given_back_however_a_run_ends(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    learn(dialogue, client, worker, "make", 250 * MIB)
    first = client.submit(8, function="make")
    grant = worker.grant()
    one, two = rows([grant])
    memory = next(iter(dialogue.ledger.workers.values())).memory
    assert memory.promised_bytes == 500 * MIB
    worker.run_failed(grant, row=one)
    client.failed(first)
    (again,) = rows(granted(worker))
    worker.say(messages.Recalled(EPOCH, 1, [grant.attempt, two]))
    assert memory.promised_bytes == 500 * MIB  # of the two that were granted in their place
    client.cancel(first, 8)
    stop = worker.hear(messages.Stop) if type(worker.inbox[0]) is messages.Stop else None
    while worker.inbox:
        worker.inbox.popleft()
    assert stop is not None or again >= 0
    client.inbox.clear()


# ------------------------------------------------------------------ whose it is


def test_what_a_client_wants_leaves_half_of_the_budget_to_its_work(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    learn(dialogue, client, worker, "make", 100 * MIB)
    kept = client.submit(function="kept")
    worker.done(worker.grant(), nbytes=2000 * MIB, seconds=1.0)
    assert client.finished() == [kept]
    produce(client, 8, [[place] for place in range(8)])
    assert len(rows(granted(worker))) == BUDGET // 2 // (100 * MIB)


def test_what_is_held_for_one_client_does_not_stop_anothers_producers(dialogue: Dialogue) -> None:
    greedy, modest, worker = dialogue.client("greedy"), dialogue.client("modest"), dialogue.worker(slots=4)
    learn(dialogue, greedy, worker, "make", 100 * MIB)
    hold(dialogue, greedy, worker, 900 * MIB)
    greedy.submit(5, function="make")
    assert len(rows(granted(worker))) == 1  # its own memory is full, and nothing of it ran
    modest.submit(5, function="make")
    assert len(rows(granted(worker))) >= 1
    for peer in (greedy, modest):
        peer.inbox.clear()


def test_a_want_that_ends_makes_the_value_one_that_work_frees(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    number = client.submit()
    client.submit(function="never", inputs=[[number]], workers=["nowhere"])
    worker.done(worker.grant(), nbytes=MIB)
    assert client.finished() == [number]
    memory = next(iter(dialogue.ledger.workers.values())).memory
    row = next(iter(dialogue.ledger.clients.values())).row(number)
    assert not holdings.is_intermediate(dialogue.ledger, row) and not memory.intermediate
    client.release(number)
    assert memory.intermediate == {client.client_id: MIB}


# ------------------------------------------------------------------ restrictions, memory=, reports


@pytest.mark.parametrize("options", [{"resources": {"gpu": 0.1}}, {"workers": ["worker"]}])
def test_restrictions_do_not_switch_admission_off(dialogue: Dialogue, options: dict[str, Any]) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8, gpu=1.0)
    learn(dialogue, client, worker, "make", 300 * MIB)
    client.submit(8, function="make", **options)
    assert len(rows(granted(worker))) == 2


def test_memory_is_what_the_user_says_and_not_what_was_learned(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    learn(dialogue, client, worker, "make", 8)
    client.submit(8, function="make", memory_bytes=200 * MIB)
    assert len(rows(granted(worker))) == 3


def test_of_tasks_that_need_more_than_a_budget_one_runs_at_each_worker(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one", slots=2), dialogue.worker("two", slots=2)
    client.submit(6, function="make", memory_bytes=700 * MIB)
    first, second = one.grant(), two.grant()
    one.hears_nothing()
    two.hears_nothing()
    one.done(first, nbytes=8)
    assert len(rows(granted(one))) == 1
    two.done(second, nbytes=400 * MIB)
    dialogue.wait(0.2)
    two.hears_nothing()
    client.inbox.clear()


def ended_for_memory(worker: WorkerSide, grant: messages.Grant, row: int, nbytes: int) -> None:
    details = {"out_of_memory_by": "worker", "needed_bytes": nbytes, "memory_limit_bytes": LIMIT, "message": "too much"}
    worker.run_failed(grant, "died", row, **details)


@pytest.mark.parametrize("options", [{}, {"memory_bytes": MIB}])
def test_what_was_ended_for_its_memory_runs_again_when_there_is_room_for_as_much(
    dialogue: Dialogue, options: dict[str, Any]
) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=3)
    client.submit(40, function="make", **options)
    grants = granted(worker)
    begun = {row: grant for grant in grants for row in rows([grant])}
    one, two, three = list(begun)[:3]
    for row in list(begun)[3:]:
        worker.done(begun[row], [row], nbytes=8)
    ended_for_memory(worker, begun[one], one, 400 * MIB)
    assert not granted(worker), "two others run that may take as much"
    worker.done(begun[two], [two], nbytes=8)
    assert not granted(worker)
    worker.done(begun[three], [three], nbytes=8)
    assert len(rows(granted(worker))) == 1
    client.inbox.clear()


def test_what_was_learned_of_a_task_that_was_ended_is_forgotten_after_some_results(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(60, function="make")
    (grant,) = granted(worker)
    one, two = rows([grant])
    ended_for_memory(worker, grant, one, 400 * MIB)
    worker.done(grant, [two], nbytes=8)
    for _ in range(15):
        (grant,) = granted(worker)
        assert len(rows([grant])) == 1
        worker.done(grant, nbytes=8)
    assert len(rows(granted(worker))) > 1
    client.inbox.clear()


def test_a_task_that_no_worker_has_memory_for_holds_nobody_back(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit(10, function="make")
    (grant,) = granted(worker)
    ended_for_memory(worker, grant, rows([grant])[0], LIMIT + MIB)
    assert rows(granted(worker)), "it is tried once more, beside the other"
    client.inbox.clear()


def test_what_is_on_disk_and_what_slots_hold_count_as_reported(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=8)
    learn(dialogue, client, worker, "make", 100 * MIB)
    hold(dialogue, client, worker, 500 * MIB)
    client.submit(8, function="make")
    assert len(rows(granted(worker))) == 1
    worker.say(messages.AgentHeartbeat(EPOCH, {"spilled_bytes": 400 * MIB}))
    assert len(rows(granted(worker))) == 4
    worker.say(messages.AgentHeartbeat(EPOCH, {"spilled_bytes": 500 * MIB, "slot_bytes": 900 * MIB}))
    worker.hears_nothing()


def test_a_spill_under_way_is_waited_for_but_not_for_ever(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    learn(dialogue, client, worker, "make", 300 * MIB)
    hold(dialogue, client, worker, 600 * MIB)
    worker.say(messages.AgentHeartbeat(EPOCH, {"spilling_bytes": MIB}))
    client.submit(function="make")
    worker.hears_nothing()
    dialogue.wait(1.0)
    worker.say(messages.AgentHeartbeat(EPOCH, {"spilling_bytes": MIB}))
    worker.hears_nothing()
    dialogue.wait(1.5)
    worker.grant()


def test_inputs_on_their_way_count(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    learn(dialogue, client, one, "make", 400 * MIB)
    produce(client, 1, [[0]])
    one.done(one.grant(), nbytes=400 * MIB, seconds=1.0)
    one.grant()  # the consumer, where its input is
    client.submit(function="else", inputs=[[1]], workers=["two"])
    client.release(1)
    two = dialogue.worker("two", slots=2)
    (grant,) = granted(two)
    memory = dialogue.ledger.workers[1].memory
    assert memory.coming_bytes == 400 * MIB
    row, attempt, nbytes, _ = grant.values[0]
    two.say(messages.Held(EPOCH, [row, attempt, nbytes]))
    assert memory.coming_bytes == 0 and memory.used_bytes(dialogue.ledger.workers[1].held_bytes) == 400 * MIB
    client.inbox.clear()


def test_inputs_that_never_came_do_not_count_for_ever(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    learn(dialogue, client, one, "make", 400 * MIB)
    number = client.submit(function="make")
    one.done(one.grant(), nbytes=400 * MIB, seconds=1.0)
    assert client.finished() == [number]
    client.submit(function="else", inputs=[[number]], workers=["two"])
    two = dialogue.worker("two")
    (grant,) = granted(two)
    memory = dialogue.ledger.workers[1].memory
    assert memory.coming_bytes == 400 * MIB
    two.run_failed(grant, "exception")
    assert memory.coming_bytes == 0
    client.failed(number + 1)


# ------------------------------------------------------------------ what is said


def test_explain_says_who_holds_what_and_what_goes_first(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    learn(dialogue, client, worker, "make", 200 * MIB)
    produce(client, 6, [[place] for place in range(6)])
    (grant,) = granted(worker)
    worker.done(grant, rows([grant])[:2], nbytes=200 * MIB)
    granted(worker)
    number = dialogue.ledger.number(rows([grant])[-1]) + 1
    client.say(messages.Query(1, "explain", number))
    answer = client.hear(messages.Answer).result
    told = {line["what"]: line["why"] for line in answer["lines"]}
    assert told["memory"] == (
        "held back: worker worker holds 400 MiB of values, 200 MiB are about to be made there, of the 614 MiB that "
        "values may take of its 1.00 GiB; make makes about 200 MiB; 2 tasks that take values run first"
    )
    assert told["estimate"] == "make makes about 200 MiB"
