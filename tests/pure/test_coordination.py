"""Locks, semaphores, events, queues, variables, counters and datasets, in talks with the scheduler's machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.errors import ProtocolError
from cluster.scheduler import coordination, kept_values
from cluster.scheduler.machine import Settings
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue


class Asker:
    """A client that asks for named objects, as a real one does."""

    def __init__(self, dialogue: Dialogue, name: str) -> None:
        self.client: ClientSide = dialogue.client(name)
        self.requests = 0
        self.open: list[int] = []

    def ask(self, kind: str, name: str, action: str, *arguments: Any, seconds: float | None = None) -> int:
        self.requests += 1
        floor = min(self.open, default=-1)
        self.open.append(self.requests)
        self.say(self.requests, "coordinate", [floor, kind, name, action, seconds, list(arguments)])
        return self.requests

    def say(self, request: int, what: str, detail: Any) -> None:
        self.client.say(messages.Query(request, what, detail))

    def answer(self, request: int) -> messages.Answer:
        """The next message, which answers that request."""
        answer = self.client.hear(messages.Answer)
        assert answer.request == request
        if request in self.open:
            self.open.remove(request)
        return answer

    def got(self, request: int) -> Any:
        answer = self.answer(request)
        assert not answer.error
        return answer.result

    def gets(self, kind: str, name: str, action: str, *arguments: Any, seconds: float | None = 0) -> Any:
        return self.got(self.ask(kind, name, action, *arguments, seconds=seconds))

    def refused(self, kind: str, name: str, action: str, *arguments: Any) -> str:
        error = self.answer(self.ask(kind, name, action, *arguments)).error
        assert error
        return error

    def settle(self) -> None:
        self.requests += 1
        self.say(self.requests, "coordinate_settle", min(self.open, default=-1))

    def withdraw(self, request: int) -> None:
        self.requests += 1
        self.say(self.requests, "coordinate_withdraw", [min(self.open), request])

    def waits(self) -> None:
        self.client.hears_nothing()


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue(Settings(client_grace_seconds=60.0, worker_timeout_seconds=1e6))


@pytest.fixture
def askers(dialogue: Dialogue) -> tuple[Asker, Asker, Asker]:
    return Asker(dialogue, "anna"), Asker(dialogue, "ben"), Asker(dialogue, "carla")


Askers = tuple[Asker, Asker, Asker]


def acquire(asker: Asker, seconds: float | None = None, *, most: int = 1, lease: float = 30.0) -> int:
    return asker.ask("lease", "door", "acquire", most, lease, -1, -1, seconds=seconds)


def objects(dialogue: Dialogue) -> list[tuple[str, str]]:
    return list(dialogue.scheduler.coordination.objects)


# --------------------------------------------------------------------------- locks and semaphores


def test_a_lock_goes_from_hand_to_hand_in_the_order_of_asking_with_rising_fences(
    dialogue: Dialogue, askers: Askers
) -> None:
    anna, ben, carla = askers
    first = anna.got(acquire(anna))
    second, third = acquire(ben), acquire(carla)
    ben.waits()
    assert carla.gets("lease", "door", "look") == [1, ["anna"]]
    anna.gets("lease", "door", "release", first)
    fence = ben.got(second)
    assert fence > first
    carla.waits()
    ben.gets("lease", "door", "release", fence)
    assert carla.got(third) > fence
    dialogue.everybody_heard_everything()


def test_fences_rise_over_names_that_were_forgotten_and_over_lives_of_the_scheduler(
    dialogue: Dialogue, askers: Askers
) -> None:
    anna = askers[0]
    first = anna.got(acquire(anna))
    anna.gets("lease", "door", "release", first)
    assert objects(dialogue) == []
    assert anna.got(acquire(anna)) > first
    assert first > dialogue.ledger.epoch * coordination.FENCES_A_MILLISECOND
    assert dialogue.scheduler.coordination.values.nbytes == kept_values.OVERHEAD_BYTES + len("door")


def test_a_try_and_a_wait_that_took_too_long_get_nothing_and_leave_the_line(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, carla = askers
    fence = anna.got(acquire(anna))
    assert ben.got(acquire(ben, 0)) is None
    waiting, patient = acquire(ben, 2.0), acquire(carla, 3600.0)
    dialogue.wait(1.9)
    ben.waits()
    dialogue.wait(0.2)
    assert ben.got(waiting) is None
    anna.gets("lease", "door", "release", fence)
    assert carla.got(patient) > fence
    ben.waits()


def test_a_semaphore_has_so_many_leases_and_all_must_agree_on_how_many(askers: Askers) -> None:
    anna, ben, carla = askers
    fence = anna.got(acquire(anna, most=2))
    ben.got(acquire(ben, most=2))
    waiting = acquire(carla, most=2)
    carla.waits()
    assert "2 leases at most" in anna.refused("lease", "door", "acquire", 3, 30.0, -1, -1)
    assert "1 lease or more" in anna.refused("lease", "gate", "acquire", 0, 30.0, -1, -1)
    anna.gets("lease", "door", "release", fence)
    carla.got(waiting)
    assert anna.gets("lease", "door", "look") == [2, ["ben", "carla"]]


def test_only_the_holder_releases_and_only_once(askers: Askers) -> None:
    anna, ben, _ = askers
    fence = anna.got(acquire(anna))
    assert "not held by this client" in ben.refused("lease", "door", "release", fence)
    anna.gets("lease", "door", "release", fence)
    assert "released before" in anna.refused("lease", "door", "release", fence)


def test_what_comes_twice_or_late_is_done_once(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    once = messages.Query(1, "coordinate", [-1, "lease", "door", "acquire", None, [1, 30.0, -1, -1]])
    anna.client.say(once)
    fence = anna.got(1)
    anna.client.say(once)
    assert anna.got(1) == fence
    add = messages.Query(2, "coordinate", [1, "counter", "n", "add", None, [5]])
    anna.client.say(add)
    anna.client.say(add)
    assert (anna.got(2), anna.got(2)) == (5, 5)
    waiting = messages.Query(1, "coordinate", [-1, "lease", "door", "acquire", None, [1, 30.0, -1, -1]])
    ben.requests = 1
    ben.client.say(waiting)
    ben.client.say(waiting)
    release = messages.Query(3, "coordinate", [-1, "lease", "door", "release", None, [fence]])
    anna.client.say(release)
    anna.client.say(release)
    assert (anna.got(3), anna.got(3)) == (None, None)
    assert ben.got(1) > fence
    anna.client.say(once)  # settled long ago, as this is
    anna.client.say(add)
    anna.requests = 3
    assert anna.gets("counter", "n", "add", 0) == 5
    assert ben.gets("lease", "door", "look") == [1, ["ben"]]
    dialogue.everybody_heard_everything()


# --------------------------------------------------------------------------- losses


def test_a_lost_holder_keeps_its_lock_for_the_lease_and_a_returned_one_for_good(
    dialogue: Dialogue, askers: Askers
) -> None:
    anna, ben, _ = askers
    fence = anna.got(acquire(anna, lease=30.0))
    waiting = acquire(ben)
    anna.client.disconnect()
    dialogue.wait(29.0)
    ben.waits()
    anna.client = ClientSide(dialogue, "anna")
    dialogue.wait(100.0)
    ben.waits()
    anna.client.disconnect()
    dialogue.wait(29.9)
    ben.waits()
    dialogue.wait(0.2)
    assert ben.got(waiting) > fence
    anna.client = ClientSide(dialogue, "anna")
    assert "its lease ended" in anna.refused("lease", "door", "release", fence)


def test_who_did_not_hear_of_its_lease_before_it_ended_is_told_so(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    unheard = acquire(anna, lease=3.0)
    anna.client.disconnect()
    anna.client.inbox.clear()
    dialogue.wait(4.0)
    assert ben.got(acquire(ben))
    anna.client = ClientSide(dialogue, "anna")
    anna.say(unheard, "coordinate", [-1, "lease", "door", "acquire", None, [1, 3.0, -1, -1]])
    assert "ended while the connection was lost" in anna.answer(unheard).error


def test_a_lease_ends_with_the_grace_of_its_client_and_at_once_with_its_goodbye(
    dialogue: Dialogue, askers: Askers
) -> None:
    anna, ben, carla = askers
    anna.got(acquire(anna, lease=3600.0))
    second, third = acquire(ben), acquire(carla)
    anna.client.disconnect()
    dialogue.wait(62.0)
    ben.got(second)
    ben.client.say(messages.Leave())
    carla.got(third)


def test_who_waits_when_its_connection_is_lost_is_passed_over(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, carla = askers
    fence = anna.got(acquire(anna))
    acquire(ben)
    ben.ask("queue", "q", "get")
    waiting = acquire(carla)
    ben.client.disconnect()
    assert objects(dialogue) == [("lease", "door")]
    anna.gets("lease", "door", "release", fence)
    carla.got(waiting)
    ben.client = ClientSide(dialogue, "ben")
    ben.say(1, "coordinate", [-1, "lease", "door", "acquire", None, [1, 30.0, -1, -1]])
    ben.waits()  # it stands in line again


def test_a_withdrawn_request_gives_back_its_place_its_lease_and_its_item(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, carla = askers
    unseen, waiting = acquire(anna), acquire(ben)
    following = acquire(carla)
    ben.withdraw(waiting)
    assert "withdrawn" in ben.answer(waiting).error
    ben.answer(ben.requests)
    anna.withdraw(unseen)
    anna.answer(unseen)
    anna.answer(anna.requests)
    carla.got(following)
    for data in (b"1", b"2"):
        carla.gets("queue", "q", "put", 0, data, [])
    taken = ben.ask("queue", "q", "take", 1000)
    carla.gets("queue", "q", "put", 0, b"3", [])
    ben.withdraw(taken)
    ben.answer(taken)
    ben.answer(ben.requests)
    assert [anna.gets("queue", "q", "get")[0][0] for _ in range(3)] == [b"1", b"2", b"3"]
    dialogue.everybody_heard_everything()


# --------------------------------------------------------------------------- events, counters, queues, variables


def test_an_event_wakes_all_and_stays_set(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, carla = askers
    waiting = [(asker, asker.ask("event", "go", "wait", seconds=5)) for asker in (ben, carla)]
    assert anna.gets("event", "go", "look") is False
    anna.gets("event", "go", "set")
    for asker, request in waiting:
        assert asker.got(request) is True
    assert anna.gets("event", "go", "wait") is True
    anna.gets("event", "go", "clear")
    assert anna.gets("event", "go", "wait") is None
    assert objects(dialogue) == []
    dialogue.wait(10.0)
    dialogue.everybody_heard_everything()


def test_a_counter_counts_within_63_bits(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    assert [anna.gets("counter", "n", "add", 1), ben.gets("counter", "n", "add", 2)] == [1, 3]
    assert "63 bits" in anna.refused("counter", "n", "add", (1 << 63) - 3)
    assert anna.gets("counter", "n", "add", -3) == 0
    assert objects(dialogue) == []


def test_a_full_queue_lets_wait_in_order_and_an_empty_one_too(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, carla = askers
    assert anna.gets("queue", "q", "put", 1, b"a", []) is True
    assert anna.gets("queue", "q", "put", 1, b"never", []) is None
    putting = [ben.ask("queue", "q", "put", 1, b"b", []), carla.ask("queue", "q", "put", 0, b"c", [])]
    ben.waits()
    carla.waits()
    assert anna.gets("queue", "q", "get") == [[b"a", 0, []]]
    assert ben.got(putting[0]) is True
    assert carla.got(putting[1]) is True
    assert anna.gets("queue", "q", "look") == 2
    assert anna.gets("queue", "q", "take", 10_000) == [[[b"b", 0, []], [b"c", 0, []]], 2]
    getting = [ben.ask("queue", "q", "get"), carla.ask("queue", "q", "get")]
    anna.gets("queue", "q", "put", 0, b"d", [])
    anna.gets("queue", "q", "put", 0, b"e", [])
    assert [ben.got(getting[0]), carla.got(getting[1])] == [[[b"d", 0, []]], [[b"e", 0, []]]]
    assert objects(dialogue) == []


def test_a_variable_is_waited_for_replaced_and_deleted(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    waiting = ben.ask("variable", "v", "get")
    assert ben.gets("variable", "v", "get") is None
    anna.gets("variable", "v", "set", b"1", [])
    assert ben.got(waiting) == [b"1", 0, []]
    anna.gets("variable", "v", "set", b"2", [])
    assert ben.gets("variable", "v", "get") == [b"2", 0, []]
    assert anna.gets("variable", "v", "delete") is True
    assert anna.gets("variable", "v", "delete") is False
    anna.settle()
    ben.settle()
    assert dialogue.scheduler.coordination.values.nbytes == 0


def test_a_dataset_is_published_once_and_listed(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    assert anna.gets("dataset", "d", "publish", b"1", [], False) is True
    assert ben.gets("dataset", "d", "publish", b"2", [], False) is False
    assert ben.gets("dataset", "d", "publish", b"3", [], True) is True
    assert anna.gets("dataset", "d", "get") == [b"3", 0, []]
    assert anna.gets("dataset", "e", "get") is None
    ben.requests += 1
    ben.say(ben.requests, "datasets", None)
    assert ben.got(ben.requests) == ["d"]
    anna.client.say(messages.Leave())
    assert ben.gets("dataset", "d", "delete") is True
    assert ben.gets("dataset", "d", "delete") is False


# --------------------------------------------------------------------------- futures inside


def finished_task(dialogue: Dialogue, asker: Asker, worker: Any) -> int:
    number = asker.client.submit()
    worker.done(worker.grant())
    assert asker.client.finished() == [number]
    return number


def test_a_future_in_a_queue_is_held_until_its_taker_has_bound_it(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    worker = dialogue.worker()
    number = finished_task(dialogue, anna, worker)
    anna.gets("queue", "q", "put", 0, b"future", [[anna.client.client_id, number]])
    anna.client.release(number)
    anna.client.say(messages.Leave())
    dialogue.wait(100.0)
    assert ben.gets("queue", "q", "get") == [[b"future", 1, []]]
    worker.hears_nothing()
    alias = ben.client.alias(anna.client, number)
    assert ben.client.finished() == [alias]
    ben.settle()
    worker.hears_nothing()
    ben.client.release(alias)
    worker.freed()
    assert not dialogue.ledger.kept_rows


def test_a_taken_future_goes_with_its_taker(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    worker = dialogue.worker()
    number = finished_task(dialogue, anna, worker)
    anna.gets("variable", "v", "set", b"future", [[anna.client.client_id, number]])
    anna.client.release(number)
    ben.gets("variable", "v", "get")
    anna.gets("variable", "v", "delete")
    worker.hears_nothing()
    ben.client.disconnect()
    worker.hears_nothing()
    dialogue.wait(62.0)
    worker.freed()


def test_a_future_passed_on_keeps_its_owners_name(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, carla = askers
    worker = dialogue.worker()
    number = finished_task(dialogue, anna, worker)
    alias = ben.client.alias(anna.client, number)
    ben.client.finished()
    ben.gets("queue", "q", "put", 0, b"future", [[ben.client.client_id, alias]])
    ben.client.release(alias)
    anna.client.release(number)
    names = [ben.client.client_id, alias, anna.client.client_id, number]
    assert carla.gets("queue", "q", "get") == [[b"future", 1, [names]]]
    carla.client.alias(anna.client, number)
    assert len(carla.client.finished()) == 1


def test_a_put_that_waits_or_is_too_late_holds_its_futures_or_not(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    worker = dialogue.worker()
    number = finished_task(dialogue, anna, worker)
    reference = [anna.client.client_id, number]
    anna.gets("queue", "q", "put", 1, b"first", [])
    waiting = anna.ask("queue", "q", "put", 1, b"future", [reference], seconds=5.0)
    anna.client.release(number)
    worker.hears_nothing()
    dialogue.wait(6.0)
    assert anna.got(waiting) is None
    worker.freed()
    assert "was released" in anna.refused("queue", "q", "put", 1, b"late", [reference])
    assert ben.gets("queue", "q", "look") == 1


def test_the_value_of_a_kept_future_is_made_again_when_its_worker_is_lost(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    worker = dialogue.worker("first")
    number = finished_task(dialogue, anna, worker)
    anna.gets("dataset", "d", "publish", b"future", [[anna.client.client_id, number]], False)
    anna.client.say(messages.Leave())
    dialogue.wait(1.0)
    worker.disconnect()
    second = dialogue.worker("second")
    second.done(second.grant())
    ben.gets("dataset", "d", "get")
    ben.client.alias(anna.client, number)
    assert len(ben.client.finished()) == 1
    ben.gets("dataset", "d", "delete")


# --------------------------------------------------------------------------- bounds and nonsense


def test_what_is_kept_is_bounded(askers: Askers, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, ben, _ = askers
    assert "too large" in anna.refused("queue", "q", "put", 0, bytes(kept_values.VALUE_LIMIT_BYTES + 1), [])
    many = [[anna.client.client_id, 0]] * (kept_values.FUTURES_LIMIT + 1)
    assert "futures inside is too large" in anna.refused("variable", "v", "set", b"", many)
    assert "characters" in anna.refused("counter", "n" * 1001, "add", 1)
    monkeypatch.setattr(kept_values, "KEPT_LIMIT_BYTES", 2000)
    anna.gets("queue", "q", "put", 0, bytes(1000), [])
    assert "maxsize" in anna.refused("queue", "q", "put", 0, bytes(1000), [])
    assert ben.gets("queue", "q", "get") == [[bytes(1000), 0, []]]
    ben.settle()
    anna.gets("queue", "q", "put", 0, bytes(1000), [])


def test_requests_and_leases_of_a_client_are_bounded(askers: Askers, monkeypatch: pytest.MonkeyPatch) -> None:
    anna = askers[0]
    monkeypatch.setattr(coordination, "OPEN_REQUESTS_LIMIT", 2)
    monkeypatch.setattr(coordination, "LEASES_LIMIT", 1)
    anna.gets("lease", "door", "acquire", 1, 1.0, -1, -1)
    assert "1 leases at a time" in anna.refused("lease", "gate", "acquire", 1, 1.0, -1, -1)
    for _ in range(2):
        anna.ask("event", "go", "wait")
    assert "at a time" in anna.refused("event", "go", "wait")


def test_timers_of_waits_that_ended_do_not_pile_up(dialogue: Dialogue, askers: Askers) -> None:
    anna, ben, _ = askers
    for _ in range(300):
        waiting = ben.ask("queue", "q", "get", seconds=3600.0)
        anna.gets("queue", "q", "put", 0, b"", [])
        ben.got(waiting)
    assert len(dialogue.scheduler.coordination._timers) <= coordination.IDLE_TIMERS_LIMIT


NONSENSE: Sequence[tuple[str, Any]] = [
    ("coordinate", None),
    ("coordinate", [-1, "sundial", "x", "look", None, []]),
    ("coordinate", [-1, "lease", "x", "steal", None, []]),
    ("coordinate", [-1, "lease", "x", "acquire", None, ["many", 1.0, -1, -1]]),
    ("coordinate", [-1, "lease", "x", "acquire", "long", [1, 1.0, -1, -1]]),
    ("coordinate", [-1, "queue", "x", "put", None, [0, b"", ["me"]]]),
    ("coordinate_settle", "all"),
    ("coordinate_withdraw", 3),
]


@pytest.mark.parametrize(("what", "detail"), NONSENSE)
def test_nonsense_is_refused_and_changes_nothing(dialogue: Dialogue, askers: Askers, what: str, detail: Any) -> None:
    with pytest.raises(ProtocolError):
        askers[0].say(1, what, detail)
    assert askers[1].gets("counter", "n", "add", 1) == 1


# --------------------------------------------------------------------------- what tasks acquire


def in_task(asker: Asker, task: messages.Grant, most: int = 1) -> int:
    """Acquire in the only task of a grant."""
    return asker.ask("lease", "door", "acquire", most, 30.0, task.attempt, task.runs[0])


@pytest.mark.parametrize("end", ["done", "raised", "worker lost", "cancelled"])
def test_what_a_task_acquired_goes_to_the_next_when_the_task_ends_in_whatever_way(
    dialogue: Dialogue, askers: Askers, end: str
) -> None:
    inside, inside_too, waiting = askers
    worker, submitter = dialogue.worker(slots=2), dialogue.client("submitter")
    number = submitter.submit(retries=0)
    task = worker.grant()
    fence = inside.got(in_task(inside, task))
    second = in_task(inside, task)  # another thread of the task, which waits for what the task holds
    patient = acquire(waiting)
    if end == "done":
        worker.done(task)
        submitter.finished()
    elif end == "raised":
        worker.run_failed(task)
        submitter.failed(number)
    elif end == "cancelled":
        submitter.cancel(number)
        worker.hear(messages.Stop)
        submitter.failed(number)
    else:
        worker.disconnect()
    assert "has ended" in inside.answer(second).error
    assert waiting.got(patient) > fence
    assert inside.refused("lease", "door", "release", fence)
    assert "has ended" in inside.answer(in_task(inside, task)).error
    inside_too.waits()


def test_a_task_that_releases_keeps_nothing_and_a_clients_lease_outlives_every_task(
    dialogue: Dialogue, askers: Askers
) -> None:
    inside, outside, _ = askers
    worker, submitter = dialogue.worker(), dialogue.client("submitter")
    submitter.submit()
    task = worker.grant()
    inside.gets("lease", "door", "release", inside.got(in_task(inside, task)))
    mine = outside.got(acquire(outside))
    worker.done(task)
    submitter.finished()
    assert inside.gets("lease", "door", "look") == [1, ["ben"]]
    outside.gets("lease", "door", "release", mine)
    assert objects(dialogue) == []


def test_an_actor_keeps_what_it_acquires_over_its_calls(dialogue: Dialogue, askers: Askers) -> None:
    inside, *_ = askers
    worker, submitter = dialogue.worker(), dialogue.client("submitter")
    submitter.submit(actor=True)
    creation = worker.grant()
    inside.got(in_task(inside, creation))
    worker.done(creation)
    submitter.finished()
    assert inside.gets("lease", "door", "look") == [1, ["anna"]]
