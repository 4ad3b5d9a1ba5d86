"""Actors without sockets: what the scheduler grants to whom, and what an agent does with their processes."""

from __future__ import annotations

import pytest

from cluster.errors import ProtocolError
from cluster.scheduler import invariants
from cluster.scheduler.actor_desk import CALLS_AHEAD
from cluster.scheduler.explain import explain
from cluster.scheduler.story import story
from cluster.wire import messages
from cluster.worker import events
from cluster.worker.actors import ACTORS_AN_AGENT, FIRST_ACTOR
from tests.pure.agent_model import AgentModel, grant, names_of
from tests.pure.dialogue import ClientSide, Dialogue, WorkerSide, numbers_of

REFERENCE = [b"c" * 16, 0, "f", -1, None]


def make_actor(client: ClientSide, worker: WorkerSide) -> tuple[int, messages.Grant]:
    """An actor's number, and the grant of its creation, which has succeeded."""
    actor = client.submit(function="Counter", actor=True)
    creation = worker.grant()
    worker.done(creation, pieces=[b"handle"])
    assert client.finished() == [actor]
    return actor, creation


def call(client: ClientSide, actor: int, *inputs: int, count: int = 1) -> int:
    return client.submit(count, function="method", inputs=[[*inputs, actor]] * count, actor_call=True, keep=True)


# --------------------------------------------------------------------------- the scheduler


def test_a_creation_is_told_what_its_future_is_called(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    actor = client.submit(function="Counter", actor=True, key="mine")
    worker.done(worker.grant())
    assert worker.grant().options == {"actor": [client.client_id, actor, "Counter", -1, "mine"]}
    client.finished()


def test_neither_an_actor_nor_its_calls_take_a_slot(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=1)
    actor, _ = make_actor(client, worker)
    plain = client.submit()
    task = worker.grant()
    calls = [call(client, actor), call(client, actor)]
    granted = [worker.grant(), worker.grant()]
    assert [made.options for made in granted] == [{"actor_call": True}] * 2
    for made in granted:
        worker.done(made)
    assert [client.finished(), client.finished()] == [[number] for number in calls]
    worker.done(task)
    assert client.finished() == [plain]


def test_calls_wait_for_the_creation_and_go_where_it_went(dialogue: Dialogue) -> None:
    client, first, second = dialogue.client(), dialogue.worker("one"), dialogue.worker("two")
    actor = client.submit(function="Counter", actor=True)
    call(client, actor, count=3)
    home, other = (first, second) if first.inbox else (second, first)
    creation = home.grant()
    home.hears_nothing()
    home.done(creation)
    client.finished()
    calls = home.grant()
    assert len(numbers_of(calls.runs)) == 3
    assert calls.values[0][:2] == [creation.runs[0], creation.attempt]
    other.hears_nothing()


def test_a_call_without_its_input_holds_up_its_own_client_only(dialogue: Dialogue) -> None:
    one, other, worker = dialogue.client("one"), dialogue.client("other"), dialogue.worker(slots=1)
    actor, _ = make_actor(one, worker)
    slow = one.submit()
    task = worker.grant()
    held = call(one, actor, slow)
    behind = call(one, actor)
    worker.hears_nothing()
    ledger = dialogue.ledger
    row = ledger.clients[one.client_id].row(behind)
    assert explain(ledger, row, dialogue.now).reasons[0].what == "turn at the actor"
    assert story(ledger, row, dialogue.now)["entries"][-1]["why"] == "for its turn at its actor"
    alias = other.alias(one, actor)
    other.finished()
    call(other, alias)
    theirs = worker.grant()
    worker.hears_nothing()
    worker.done(theirs)
    other.hear(messages.Finished)
    worker.done(task)
    assert one.finished() == [slow]
    first = worker.grant()
    worker.hears_nothing()  # it takes a value, which may have to be fetched: the next must not overtake it
    worker.done(first)
    assert one.finished() == [held]
    worker.grant()


def test_a_call_whose_input_could_not_be_fetched_keeps_its_place(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    actor, _ = make_actor(client, worker)
    value = client.submit()
    worker.done(worker.grant())
    assert client.finished() == [value]
    first, second = call(client, actor, value), call(client, actor)
    made = worker.grant()
    worker.run_failed(made, "missing")
    again = worker.grant()
    assert again.runs == made.runs
    worker.hears_nothing()
    worker.done(again)
    assert client.finished() == [first]
    worker.done(worker.grant())
    assert client.finished() == [second]


def test_calls_are_granted_ahead_but_not_without_end(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    actor, _ = make_actor(client, worker)
    call(client, actor, count=CALLS_AHEAD + 10)
    ahead = worker.grant()
    assert len(numbers_of(ahead.runs)) == CALLS_AHEAD
    worker.hears_nothing()
    worker.done(ahead)
    client.finished()
    assert len(numbers_of(worker.grant().runs)) == 10


def test_a_cancelled_call_lets_those_behind_it_go(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=1)
    actor, _ = make_actor(client, worker)
    slow = client.submit()
    worker.grant()
    held, behind = call(client, actor, slow), call(client, actor)
    worker.hears_nothing()
    client.cancel(held)
    assert client.failed(held).kind == "cancelled"
    worker.done(worker.grant())
    assert client.finished() == [behind]


def test_a_dropped_call_runs_and_then_the_actor_ends(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    actor, creation = make_actor(client, worker)
    called = call(client, actor)
    client.release(called)
    client.release(actor)
    made = worker.grant()
    worker.hears_nothing()
    worker.done(made)
    assert worker.hear(messages.EndActor) == (creation.attempt, creation.runs[0])
    assert sorted(worker.freed()) == sorted([(creation.attempt, creation.runs[0]), (made.attempt, made.runs[0])])
    client.say(messages.Leave())
    invariants.check_empty(dialogue.ledger)


def test_resources_stay_taken_while_the_actor_lives(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=2, GPU=1)
    actor = client.submit(function="Counter", actor=True, resources={"GPU": 1})
    worker.done(worker.grant())
    client.finished()
    client.submit(resources={"GPU": 1})
    worker.hears_nothing()
    client.release(actor)
    worker.hear(messages.EndActor)
    worker.grant()
    worker.freed()


def test_a_dead_actor_fails_its_calls_and_all_later_ones(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    actor, creation = make_actor(client, worker)
    running, behind = call(client, actor), call(client, actor)
    granted = [worker.grant(), worker.grant()]
    details = {"message": "its process ended with signal 11", "signal": 11}
    worker.say(messages.ActorEnded(7, creation.runs[0], creation.attempt, details))
    client.reset(actor)
    assert client.failed(actor).kind == "died"
    for made, number in zip(granted, (running, behind), strict=True):
        worker.run_failed(made, "died", message="it ended with its process")
        failed = client.failed(number)
        assert failed.kind == "died" and "is lost" in failed.details["message"]
        assert "signal 11" in failed.details["message"]
    late = call(client, actor)
    assert client.failed(late).details["signal"] == 11
    assert worker.hear(messages.EndActor) == (creation.attempt, creation.runs[0])
    worker.freed()
    worker.hears_nothing()
    client.say(messages.Retry([late, 1]))
    dialogue.wait(0)
    worker.hears_nothing()  # nothing runs again on a fresh state
    for number in (actor, running, behind, late):
        client.reset(number)
    for number in (actor, running, behind, late):
        assert "not made twice" in client.failed(number).details["message"]


def test_an_actor_is_lost_with_its_worker_though_its_handle_was_copied(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("one")
    actor, creation = make_actor(client, worker)
    other = dialogue.worker("two")
    other.say(messages.Held(7, [creation.runs[0], creation.attempt, 6]))
    called = call(client, actor)
    worker.grant()
    worker.disconnect()
    client.reset(actor)
    assert "worker one was lost" in client.failed(actor).details["message"]
    assert client.failed(called).kind == "died"
    assert other.freed() == [(creation.attempt, creation.runs[0])]
    other.hears_nothing()


def test_a_lost_value_of_a_call_is_not_computed_again(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("one")
    actor, _ = make_actor(client, worker)
    called = call(client, actor)
    worker.done(worker.grant())
    assert client.finished() == [called]
    later = client.submit(inputs=[[called]])
    worker.grant()
    worker.disconnect()
    kinds = {}
    while client.inbox:
        message = client.inbox.popleft()
        if type(message) is messages.Failed:
            kinds[message.runs[0]] = message.kind
    assert kinds == {actor: "died", called: "lost", later: "lost"}


def test_an_actor_is_not_lost_because_its_handle_could_not_be_fetched(dialogue: Dialogue) -> None:
    client, home = dialogue.client(), dialogue.worker("one")
    actor, creation = make_actor(client, home)
    other = dialogue.worker("two")
    client.submit(inputs=[[actor]], workers=["two"])
    task = other.grant()
    unreachable = {"row": creation.runs[0], "attempt": creation.attempt, "address": home.address}
    other.say(messages.RunFailed(7, task.runs[0], task.attempt, "missing", b"", unreachable, 0.0))
    assert other.grant().values[0][3] == [home.address]
    home.hears_nothing()
    client.hears_nothing()


def test_a_call_of_what_is_no_actor_fails(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    plain = client.submit()
    worker.grant()
    called = call(client, plain)
    assert client.failed(called).kind == "unrunnable"
    with pytest.raises(ProtocolError, match="no actor"):
        client.submit(actor_call=True)


# --------------------------------------------------------------------------- the agent


def model_with_actor(slots: int = 1) -> AgentModel:
    model = AgentModel(slots=slots)
    model.tell(grant(1, 1, first_row=9, actor=REFERENCE))
    model.start_slots()
    assert model.slots[FIRST_ACTOR].reference == REFERENCE
    model.finish(FIRST_ACTOR, data=b"handle")
    assert names_of(model.expect(messages.Done)) == [(1, 9)]
    return model


def calls(attempt: int, count: int, first_row: int) -> messages.Grant:
    values = [[9, 1, 6, ["tcp://127.0.0.1:9000"]]]
    return grant(attempt, count, first_row=first_row, values=values, needs=[[0]] * count, actor_call=True)


def test_an_actor_has_a_process_beside_the_slots_and_only_it_runs_its_calls() -> None:
    model = model_with_actor()
    model.tell(calls(2, 3, 20))
    model.tell(grant(3, 1, first_row=30))
    assert [len(model.slots[slot].pipe) for slot in (0, FIRST_ACTOR)] == [1, 3]
    model.slots[FIRST_ACTOR].claim()
    assert model.slots[FIRST_ACTOR].inputs() == []  # the actor is not given to its own methods
    assert [model.finish(FIRST_ACTOR) for _ in range(3)] == [b"0", b"1", b"2"]
    assert names_of(model.expect(messages.Done)) == [(2, 20), (2, 21), (2, 22)]
    model.tell(messages.Recall(1, 10))
    assert names_of(model.expect(messages.Recalled)) == [(3, 30)]


def test_an_actor_that_dies_is_told_of_before_its_calls() -> None:
    model = model_with_actor()
    model.tell(calls(2, 300, 20))  # more than the pipe takes
    model.slots[FIRST_ACTOR].claim()
    model.die(FIRST_ACTOR, lines="last words")
    model.expect(messages.Output)
    ended = model.expect(messages.ActorEnded)
    assert (ended.row, ended.attempt, ended.details["lines"]) == (9, 1, "last words")
    failures = [model.expect(messages.RunFailed) for _ in range(300)]
    assert [failure.row for failure in failures] == list(range(20, 320))
    assert {failure.kind for failure in failures} == {"died"}
    assert not model.starting
    model.tell(calls(3, 1, 400))
    assert model.expect(messages.RunFailed).kind == "died"
    assert model.silent and not model.agent.unanswered_count


def test_an_actor_that_is_released_ends_and_nothing_is_said() -> None:
    model = model_with_actor()
    model.tell(messages.EndActor(1, 9))
    model.tell(messages.EndActor(1, 9))
    assert model.killed == [FIRST_ACTOR]
    model.die(FIRST_ACTOR, signal=9)
    assert model.silent and not model.starting


def test_a_creation_that_fails_leaves_no_process() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, first_row=9, actor=REFERENCE))
    model.start_slots()
    model.slots[FIRST_ACTOR].claim()
    model.report(FIRST_ACTOR, [0.001, "exception", b"", {}])
    assert model.expect(messages.RunFailed).kind == "exception"
    assert model.killed == [FIRST_ACTOR]
    model.die(FIRST_ACTOR, signal=9)
    assert model.silent


def test_a_creation_whose_process_dies_may_be_tried_again() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1, first_row=9, actor=REFERENCE))
    model.feed(events.SlotExited(model.starting.pop(), [], 1, -1, "", 0))
    assert model.expect(messages.RunFailed).kind == "died"
    assert model.silent


def test_a_queued_call_that_is_stopped_goes_and_the_others_stay_in_order() -> None:
    model = model_with_actor()
    model.tell(calls(2, 3, 20))
    model.slots[FIRST_ACTOR].claim()
    model.tell(messages.Stop([2, 21]))
    assert (model.expect(messages.RunFailed).row, len(model.slots[FIRST_ACTOR].pipe)) == (21, 1)
    assert [model.finish(FIRST_ACTOR) for _ in range(2)] == [b"0", b"2"]


def test_a_running_call_that_does_not_stop_takes_its_actor_along_and_that_is_said() -> None:
    model = model_with_actor()
    model.tell(calls(2, 2, 20))
    model.slots[FIRST_ACTOR].claim()
    model.tell(messages.Stop([2, 20]))
    assert model.slots[FIRST_ACTOR].interrupted == [model.slots[FIRST_ACTOR].claimed]
    model.wait(1.5)
    assert model.killed == [FIRST_ACTOR]
    model.die(FIRST_ACTOR, signal=9)
    assert "did not stop" in model.expect(messages.ActorEnded).details["message"]
    assert [model.expect(messages.RunFailed).kind for _ in range(2)] == ["cancelled", "died"]


def test_a_worker_has_a_bounded_number_of_actors() -> None:
    model = AgentModel(slots=1)
    for attempt in range(1, ACTORS_AN_AGENT + 2):
        model.tell(grant(attempt, 1, first_row=attempt, actor=REFERENCE))
    failed = model.expect(messages.RunFailed)
    assert failed.kind == "unrunnable" and str(ACTORS_AN_AGENT) in failed.details["message"]
    assert len(model.starting) == ACTORS_AN_AGENT


def test_a_worker_that_drains_lets_its_actors_end_what_they_have() -> None:
    model = model_with_actor()
    model.tell(calls(2, 1, 20))
    model.feed(events.DrainAsked())
    assert model.closed is None
    model.finish(FIRST_ACTOR)
    assert model.closed is not None


def test_actors_end_when_the_slots_are_restarted_and_that_is_said() -> None:
    model = model_with_actor()
    model.tell(messages.Order(1, "restart", None))
    assert model.killed == [0, FIRST_ACTOR]
    model.expect(messages.Ordered)
    model.die(FIRST_ACTOR, signal=9)
    assert "were restarted" in model.expect(messages.ActorEnded).details["message"]
