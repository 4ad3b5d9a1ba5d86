"""What the scheduler does when runs fail, workers go, values are lost and clients vanish."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.scheduler import invariants
from cluster.scheduler.machine import Settings
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue, WorkerSide, numbers_of


def run_everything(*workers: WorkerSide) -> list[int]:
    """Do what is granted until nothing is; the rows in order. Orders to free are read and forgotten."""
    rows: list[int] = []
    while any(worker.inbox for worker in workers):
        for worker in workers:
            while worker.inbox and type(worker.inbox[0]) is messages.Free:
                worker.inbox.popleft()
            if worker.inbox:
                grant = worker.grant()
                rows += numbers_of(grant.runs)
                worker.done(grant)
    return rows


def finished(client: ClientSide) -> list[int]:
    """All numbers that a client was told to have finished."""
    numbers: list[int] = []
    while client.inbox and type(client.inbox[0]) is messages.Finished:
        numbers += client.finished()
    return numbers


# ------------------------------------------------------------------ runs that fail


def test_an_exception_fails_the_task_and_all_that_take_its_value(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    client.submit(inputs=[[0]])
    client.submit(inputs=[[1]])
    worker.run_failed(worker.grant(), type="ValueError")
    for number in range(3):
        failure = client.failed(number)
        assert (failure.kind, failure.error, failure.details["worker"]) == ("exception", b"error", worker.name)
        assert failure.details["key"] == "f-636c6965-0"


def test_a_task_on_top_of_a_failed_one_fails_at_once(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    worker.run_failed(worker.grant())
    client.failed(0)
    client.submit(inputs=[[0]])
    assert client.failed(1).kind == "exception"


def test_a_task_is_retried_as_often_as_it_may_be(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(retries=2)
    attempts = []
    for _ in range(3):
        grant = worker.grant()
        attempts.append(grant.attempt)
        worker.run_failed(grant)
    assert attempts == sorted(set(attempts))
    assert client.failed(0).details["attempts"] == 3


def test_a_task_that_kills_its_slot_fails_alone_after_three_deaths(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2)
    client.submit()
    client.submit()
    innocent = None
    for _ in range(4):
        grant = worker.grant()
        if grant.runs[0] == 0:
            worker.run_failed(grant, "died", signal=11, lines="segmentation fault")
        else:
            innocent = grant
    failure = client.failed(0)
    assert (failure.kind, failure.details["attempts"], failure.details["signal"]) == ("died", 3, 11)
    assert innocent is not None
    worker.done(innocent)
    assert client.finished() == [1]


def test_an_input_that_cannot_be_fetched_is_computed_again(dialogue: Dialogue) -> None:
    client = dialogue.client()
    one, two = dialogue.worker("one"), dialogue.worker("two")
    client.submit()
    source = one.grant()
    client.submit(function="long")
    long = two.grant()
    one.done(source, nbytes=100)
    client.finished()
    client.submit(inputs=[[0]], workers=["two"])
    two.done(long)
    client.finished()
    grant = two.grant()
    (value,) = grant.values
    assert value[3] == [one.address]
    missing = {"row": 0, "attempt": source.attempt, "address": one.address}
    two.say(messages.RunFailed(7, grant.runs[0], grant.attempt, "missing", b"", missing, 0.0))
    client.reset(0)
    assert one.freed() == [(source.attempt, 0)]
    two.done(two.grant())
    assert run_everything(one, two) == [2]
    assert sorted(finished(client)) == [0, 2]


def test_a_task_whose_inputs_never_arrive_fails_in_the_end(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    for _ in range(11):
        worker.run_failed(worker.grant(), "missing")
    assert client.failed(0).kind == "lost"


# ------------------------------------------------------------------ workers that go


def test_what_a_lost_worker_ran_runs_again_elsewhere_under_a_new_attempt(dialogue: Dialogue) -> None:
    client, lost = dialogue.client(), dialogue.worker("lost", slots=2)
    client.submit(2)
    first = lost.grant()
    other = dialogue.worker("other", slots=2)
    lost.disconnect()
    again = [other.grant(), other.grant()]  # each by itself: one of them may have ended the worker
    assert again[0].attempt > first.attempt and [numbers_of(grant.runs) for grant in again] == [[0], [1]]
    for grant in again:
        other.done(grant)
    assert finished(client) == [0, 1]


def test_only_what_is_lost_and_needed_is_computed_again(dialogue: Dialogue) -> None:
    client, lost = dialogue.client(), dialogue.worker("lost")
    client.submit(function="a")
    client.submit(function="b", inputs=[[0]])
    client.submit(function="c")
    client.submit(function="d")
    assert run_everything(lost) == [0, 1, 2, 3]
    assert finished(client) == [0, 1, 2, 3]
    # A replica of c is elsewhere; d is wanted by nobody.
    other = dialogue.worker("other")
    other.say(messages.Held(7, [2, dialogue.ledger.table.attempt[2], 8]))
    client.release(0)
    lost.freed()
    client.release(3)
    lost.freed()
    lost.disconnect()
    client.reset(1)
    assert run_everything(other) == [0, 1]
    assert finished(client) == [1]


def test_a_value_that_its_client_has_is_not_computed_again_before_somebody_needs_it(dialogue: Dialogue) -> None:
    client, lost = dialogue.client(), dialogue.worker("lost")
    client.submit()
    lost.done(lost.grant(), pieces=[b"value"])
    assert client.finished() == [0]
    lost.disconnect()
    worker = dialogue.worker("worker")
    client.submit(inputs=[[0]])
    assert run_everything(worker) == [0, 1]
    assert finished(client) == [0, 1]


def test_a_large_value_that_was_reported_beside_small_ones_is_computed_again(dialogue: Dialogue) -> None:
    client, lost = dialogue.client(), dialogue.worker("lost", slots=3)
    client.submit(3)
    grant = lost.grant()
    lost.done(grant, [0, 2], pieces=[b"small", b""], nbytes=1 << 20)  # two runs of rows in one report
    assert finished(client) == [0, 2]
    lost.disconnect()
    worker = dialogue.worker("worker", slots=3)
    client.reset(2)
    assert sorted(run_everything(worker)) == [1, 2]
    assert sorted(finished(client)) == [1, 2]


def test_losing_a_part_of_a_map_runs_that_part_again(dialogue: Dialogue) -> None:
    client = dialogue.client()
    one, two = dialogue.worker("one"), dialogue.worker("two")
    client.submit(8)
    at_one, at_two = [], []
    while one.inbox or two.inbox:
        for worker, rows in ((one, at_one), (two, at_two)):
            if worker.inbox:
                grant = worker.grant()
                rows += numbers_of(grant.runs)
                worker.done(grant, seconds=0.1)
    assert sorted(finished(client)) == list(range(8))
    assert at_one and at_two
    one.disconnect()
    lost = [number for message in list(client.inbox) for number in numbers_of(message.runs)]
    client.inbox.clear()
    assert sorted(lost) == sorted(at_one)
    assert sorted(run_everything(two)) == sorted(at_one)
    assert sorted(finished(client)) == sorted(at_one)


def test_ready_tasks_wait_again_when_their_input_is_lost(dialogue: Dialogue) -> None:
    client = dialogue.client()
    lost = dialogue.worker("lost")
    client.submit()
    lost.done(lost.grant())
    client.submit(6, function="g", inputs=[[0]] * 6)
    running = lost.grant()
    assert len(numbers_of(running.runs)) == 1
    lost.disconnect()
    one, two = dialogue.worker("one"), dialogue.worker("two")
    rows = run_everything(one, two)
    assert sorted(rows) == list(range(7)), "each runs once"
    assert client.finished() == [0]
    client.reset(0)
    assert sorted(finished(client)) == list(range(7))


def test_a_ready_task_that_changed_its_place_is_granted_once(dialogue: Dialogue) -> None:
    # Its old place in the stretches is still listed when it becomes ready for another worker.
    client = dialogue.client()
    blocker = dialogue.client("blocker")
    one, two = dialogue.worker("one"), dialogue.worker("two")
    client.submit(function="a")
    client.submit(function="b")
    one.done(one.grant())
    two.done(two.grant())
    blocker.submit(2, function="long")
    long = [one.grant(), two.grant()]
    client.submit(2, function="g", inputs=[[0], [0, 1]], batch=2)
    for worker in (one, two):
        if worker is two:
            worker.say(messages.Held(7, [0, dialogue.ledger.table.attempt[0], 8]))
    # The second input is lost and made again at the other worker.
    two.disconnect()
    three = dialogue.worker("three", slots=4)
    while three.inbox:
        grant = three.grant()
        three.done(grant)
    one.done(long[0])
    while one.inbox:
        one.done(one.grant())
    for side in (client, blocker):
        side.inbox.clear()
    assert dialogue.ledger.ready_rows == 0


def test_a_silent_worker_is_given_up_after_ten_seconds(dialogue: Dialogue) -> None:
    client, silent = dialogue.client(), dialogue.worker("silent")
    client.submit()
    silent.grant()
    dialogue.wait(9.0)
    assert not silent.closed
    dialogue.wait(3.0)
    assert silent.closed
    assert run_everything(dialogue.worker("other")) == [0]
    assert finished(client) == [0]


def test_a_heartbeat_keeps_a_worker(dialogue: Dialogue) -> None:
    worker = dialogue.worker()
    for _ in range(5):
        dialogue.wait(5.0)
        worker.say(messages.AgentHeartbeat(7, {}))
    assert not worker.closed


def test_a_draining_worker_is_granted_nothing_and_what_it_gives_back_runs_elsewhere(dialogue: Dialogue) -> None:
    client, ending = dialogue.client(), dialogue.worker("ending", slots=3)
    client.submit(3)
    grant = ending.grant()
    ending.say(messages.Draining(7))
    ending.recalled(-1, grant.attempt, 1, grant.attempt, 2)
    ending.hears_nothing()
    other = dialogue.worker("other", slots=2)
    assert run_everything(other) == [1, 2]
    ending.run_failed(grant, "cancelled", row=0)
    assert run_everything(other) == [0]
    ending.disconnect()
    assert sorted(finished(client)) == [0, 1, 2]


def test_a_name_in_use_is_refused_with_the_remedy(dialogue: Dialogue) -> None:
    dialogue.worker("worker")
    second = WorkerSide(dialogue, "worker", 1, {}, identity=b"another one.....")
    assert "--name" in second.hear(messages.ShutDown).reason
    assert second.closed


# ------------------------------------------------------------------ recipes


@pytest.fixture
def forgetful() -> Iterator[Dialogue]:
    """A scheduler that keeps two recipes a client."""
    talk = Dialogue(Settings(lineage_rows=2))
    yield talk
    talk.everybody_heard_everything()


def test_beyond_the_lineage_bound_a_lost_value_is_an_error_that_says_so(forgetful: Dialogue) -> None:
    client, lost = forgetful.client(), forgetful.worker("lost")
    client.submit()
    for number in range(5):
        client.submit(inputs=[[number]])
    client.release(0, 5)
    assert run_everything(lost) == list(range(6))
    assert finished(client) == [5]
    assert forgetful.ledger.table.rows_used < 6
    other = forgetful.worker("other")
    lost.disconnect()
    client.reset(5)
    failure = client.failed(5)
    assert failure.kind == "lost" and "lineage" in failure.details["message"]
    other.hears_nothing()
    client.release(5)
    assert forgetful.ledger.table.rows_used == 0


def test_retrying_what_lost_its_recipe_fails_again_and_counts_right(forgetful: Dialogue) -> None:
    client, worker = forgetful.client(), forgetful.worker()
    client.submit()
    client.submit()
    client.submit(inputs=[[0, 1]])
    client.submit(2)
    client.submit(inputs=[[3, 4]])
    client.release(0, 2)
    while worker.inbox:
        if type(worker.inbox[0]) is messages.Free:
            worker.inbox.popleft()
            continue
        grant = worker.grant()
        if grant.runs[0] == 2:
            worker.run_failed(grant)
        else:
            worker.done(grant)
    client.release(3, 2)
    worker.freed()
    client.inbox.clear()
    client.say(messages.Retry([2, 1]))
    client.reset(2)
    client.inbox.clear()
    worker.inbox.clear()
    client.say(messages.Leave())
    worker.inbox.clear()


# ------------------------------------------------------------------ clients that go


def test_the_wants_of_a_client_end_when_it_has_been_gone_for_a_minute(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(3)
    grant = worker.grant()
    client.disconnect()
    for _ in range(11):
        dialogue.wait(5.0)
        worker.say(messages.AgentHeartbeat(7, {}))
    assert dialogue.ledger.table.rows_used == 3
    dialogue.wait(8.0)
    # What it had running is stopped too: nobody hears of it, and it would keep its slot.
    assert worker.hear(messages.Stop).names == [grant.attempt, grant.runs[0]]
    worker.done(grant)
    worker.freed()
    invariants.check_empty(dialogue.ledger)
    client.hears_nothing()


def test_what_another_client_wants_outlives_its_owner(dialogue: Dialogue) -> None:
    owner, other, worker = dialogue.client("owner"), dialogue.client("other"), dialogue.worker()
    owner.submit()
    alias = other.alias(owner, 0)
    owner.say(messages.Leave())
    worker.done(worker.grant())
    assert other.finished() == [alias]
    other.release(alias)
    worker.freed()
    other.say(messages.Leave())
    invariants.check_empty(dialogue.ledger)


def test_offered_values_are_lost_with_their_client(dialogue: Dialogue) -> None:
    owner, other, worker = dialogue.client("owner"), dialogue.client("other"), dialogue.worker()
    owner.offer([1000])
    alias = other.alias(owner, 0)
    assert other.finished() == [alias]
    owner.disconnect()
    other.reset(alias)
    assert other.failed(alias).kind == "lost"
    other.submit(inputs=[[alias]])
    assert other.failed(alias + 1).kind == "lost"
    worker.hears_nothing()


# ------------------------------------------------------------------ tasks that take their worker down


def test_a_task_that_ends_its_worker_fails_after_a_mark_and_three_charges(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    for life in range(4):
        client.hears_nothing()
        worker = dialogue.worker(f"worker-{life}")
        worker.grant()
        worker.disconnect()
    failure = client.failed(0)
    assert (failure.kind, failure.details["attempts"]) == ("died", 3)
    assert "its whole worker ended" in failure.details["message"]
    assert all(f"worker-{life}" in failure.details["message"] for life in (1, 2, 3))
    client.release(0)
    client.submit()
    later = dialogue.worker("later")
    later.done(later.grant())
    assert client.finished() == [1]


def test_what_was_only_queued_at_workers_that_ended_never_fails(dialogue: Dialogue) -> None:
    client = dialogue.client()
    warm = dialogue.worker("warm")
    client.submit(function="short")
    warm.done(warm.grant())
    assert client.finished() == [0]
    warm.disconnect()
    client.reset(0)
    client.release(0)
    client.submit(9, function="short")  # measured by now, so that a worker is granted more than it has slots
    for life in range(12):
        worker = dialogue.worker(f"worker-{life}")
        granted = []
        while worker.inbox:
            granted += numbers_of(worker.grant().runs)
        assert len(granted) == (1 if life else 9), "a suspect is granted by itself, and never ahead"
        worker.disconnect()
    client.hears_nothing()
    last = dialogue.worker("last")
    assert sorted(run_everything(last)) == list(range(9))
    assert len(finished(client)) == 9


def test_a_task_that_was_charged_is_not_put_together_with_another_such(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(2)
    for life in range(2):  # a mark and a charge for both
        worker = dialogue.worker(f"worker-{life}", slots=2)
        grants = []
        while worker.inbox:
            grants.append(worker.grant())
        assert sum(len(numbers_of(grant.runs)) for grant in grants) == 2
        worker.disconnect()
    worker = dialogue.worker("later", slots=2)
    guilty = worker.grant()
    worker.hears_nothing()
    client.submit(function="other")
    other = worker.grant()  # others are
    worker.done(other)
    assert client.finished() == [2]
    worker.disconnect()
    client.reset(2)
    last = dialogue.worker("last", slots=2)
    rows = [numbers_of(last.grant().runs) for _ in range(2)]
    assert numbers_of(guilty.runs) in rows or [1] in rows
    last.disconnect()
    client.inbox.clear()


def test_a_worker_that_drains_charges_nobody(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    for life in range(6):
        worker = dialogue.worker(f"worker-{life}")
        worker.grant()
        worker.say(messages.Draining(7))
        worker.disconnect()
    assert not dialogue.ledger.suspects
    last = dialogue.worker("last")
    last.done(last.grant())
    assert client.finished() == [0]


def test_a_suspect_that_ends_well_is_one_no_more(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(2)
    first = dialogue.worker("first", slots=2)
    first.grant()
    first.disconnect()
    assert sorted(dialogue.ledger.suspects) == [0, 1]
    second = dialogue.worker("second", slots=2)
    second.done(second.grant())
    assert sorted(dialogue.ledger.suspects) == [1]
    second.run_failed(second.grant())
    assert client.finished() == [0]
    client.failed(1)
    client.say(messages.Retry([1, 1]))
    client.reset(1)
    assert not dialogue.ledger.suspects
    second.done(second.grant())
    assert client.finished() == [1]
