"""A worker that has no room for an input of a task: the task waits for better, is tried again, and fails in the end."""

from __future__ import annotations

from cluster.client.results import rebuild_failure
from cluster.errors import StoreFull
from cluster.session.machine import Failure
from cluster.wire import messages
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide

MIB = 1 << 20


def refuse(worker: WorkerSide, grant: messages.Grant, **value: int) -> None:
    """Neither the memory nor the disk of a worker has room for an input; `value`: the row and attempt of that."""
    message = "there is no room for an input of 1.00 MiB beside what is held in 1.00 GiB"
    details = {"message": message, **value}
    worker.say(messages.RunFailed(EPOCH, grant.runs[0], grant.attempt, "full", b"", details, 0.0))


def make(client: ClientSide, worker: WorkerSide, nbytes: int = MIB) -> int:
    """A value at a worker that its client wants; its number."""
    number = client.submit(function="make", workers=[worker.name])
    worker.done(worker.grant(), nbytes=nbytes)
    assert client.finished() == [number]
    return number


def in_vain(dialogue: Dialogue, *workers: WorkerSide) -> None:
    """As long passes as a refused task waits for nothing but a release."""
    for _ in range(15):
        for worker in workers:
            worker.hears_nothing()
            worker.say(messages.Heartbeat())
        dialogue.wait(1.0)
    dialogue.wait(0.05)  # it is looked at again


def test_a_task_goes_on_to_the_worker_that_has_not_refused_it(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one"), dialogue.worker("two")
    inputs = [make(client, one), make(client, two, 9 * MIB)]
    taking = client.submit(function="take", inputs=[inputs])
    refuse(two, two.grant())  # where most bytes of its inputs are
    two.hears_nothing()
    one.done(one.grant())
    assert client.finished() == [taking]


def test_others_of_its_run_may_still_go_where_one_was_refused(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one"), dialogue.worker("two")
    inputs = [make(client, one), make(client, two, 9 * MIB)]
    busy = client.submit(function="long", workers=["one"])
    held_up = one.grant()
    taking = client.submit(2, function="take", inputs=[inputs, inputs[1:]])
    first = two.grant()
    refuse(two, first)
    second = two.grant()
    assert second.runs != first.runs
    two.done(second)
    assert client.finished() == [taking + 1]
    one.done(held_up)
    assert client.finished() == [busy]
    one.done(one.grant())
    assert client.finished() == [taking]


def test_a_refused_task_is_tried_again_where_less_is_held(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one", slots=2)
    value, other = make(client, one), make(client, one)
    client.submit(function="long")
    one.grant()
    taking = client.submit(function="take", inputs=[[value]])
    refuse(one, one.grant())
    one.hears_nothing()
    client.say(messages.Query(1, "explain", taking))
    (told, *_) = client.hear(messages.Answer).result["lines"]
    assert told["what"] == "memory" and told["why"] == (
        "held back: worker one had no room for an input of it, on disk neither, and holds as much as then: 2.00 MiB of "
        "values, with a memory limit of 1.00 GiB; it waits for another worker, or for tasks to make room"
    )
    client.release(other)
    grant = one.grant()
    one.freed()
    one.done(grant)
    assert client.finished() == [taking]


def test_what_else_can_start_goes_before_a_task_that_was_refused_everywhere(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    value = make(client, one)
    taking = client.submit(function="take", inputs=[[value]])
    grant = one.grant()
    other = client.submit(function="other")
    client.submit(function="never", resources={"gpu": 1})
    refuse(one, grant)
    one.done(one.grant())
    assert client.finished() == [other]
    one.done(one.grant())
    assert client.finished() == [taking]


def test_tasks_that_were_refused_do_not_wait_for_each_other(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one", slots=2), dialogue.worker("two", slots=2)
    inputs = [make(client, one), make(client, two, 9 * MIB)]
    taking = client.submit(function="take", inputs=[inputs])
    client.submit(function="also", inputs=[inputs])
    for grant in (two.grant(), two.grant()):
        refuse(two, grant)
    first, second = one.grant(), one.grant()
    refuse(one, second)
    in_vain(dialogue, one, two)  # though the other is at a worker: it may have no room there either
    refuse(two, two.grant())
    assert client.failed(taking + 1).kind == "full"
    refuse(one, first)
    refuse(two, two.grant())  # where that was long ago
    in_vain(dialogue, one, two)
    refuse(two, two.grant())
    assert client.failed(taking).kind == "full"


def test_when_nothing_is_left_to_wait_for_it_fails_and_says_what_had_no_room_where(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one"), dialogue.worker("two")
    inputs = [make(client, one), make(client, two, 9 * MIB)]
    taking = client.submit(function="take", inputs=[inputs])
    refuse(two, two.grant())
    refuse(one, one.grant())
    client.say(messages.Query(1, "explain", taking))
    (told, *_) = client.hear(messages.Answer).result["lines"]
    assert told["why"].endswith("nothing else runs or can start: it fails in 15.0 s unless something is released")
    in_vain(dialogue, one, two)
    refuse(two, two.grant())
    failed = client.failed(taking)
    error = rebuild_failure(Failure(failed.kind, failed.error, failed.details))
    assert isinstance(error, StoreFull)
    assert "no room for an input of 1.00 MiB beside what is held in 1.00 GiB" in str(error)
    assert "on worker two" in error.__notes__[0] and "release values" in error.__notes__[1]
    assert not dialogue.ledger.refusals
    client.say(messages.Retry([taking, 1]))
    client.reset(taking)
    two.done(two.grant())
    assert client.finished() == [taking]


def test_what_was_released_while_a_task_was_being_refused_may_do(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    value, other = make(client, one), make(client, one)
    taking = client.submit(function="take", inputs=[[value]])
    grant = one.grant()
    client.release(other)
    refuse(one, grant)
    one.freed()
    one.done(one.grant())
    assert client.finished() == [taking]


def test_however_often_it_is_refused_it_is_tried_again_as_long_as_less_is_held(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    value, *others = (make(client, one) for _ in range(13))
    taking = client.submit(function="take", inputs=[[value]])
    for other in others:
        refuse(one, one.grant())
        one.hears_nothing()
        for _ in range(8):  # more than the time in which nothing would become free
            one.say(messages.Heartbeat())
            dialogue.wait(1.0)
        client.release(other)
        one_more = one.inbox.popleft()
        one.freed()
        one.inbox.appendleft(one_more)
    one.done(one.grant())
    assert client.finished() == [taking]


def test_what_runs_beside_a_refused_task_of_the_same_grant_is_something_else(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one", slots=2)
    value = make(client, one)
    client.submit(function="take", inputs=[[value]])
    one.done(one.grant(), seconds=0.0001)
    client.finished()
    taking = client.submit(2, function="take", inputs=[[value], [value]])
    grant = one.grant()
    assert grant.runs[1] == 2
    refuse(one, grant)
    client.say(messages.Query(1, "explain", taking))
    (told, *_) = client.hear(messages.Answer).result["lines"]
    assert told["why"].endswith("it waits for another worker, or for tasks to make room")
    one.done(grant, [grant.runs[0] + 1])
    client.finished()
    one.done(one.grant())
    client.finished()


def test_a_worker_that_comes_is_worth_a_try(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one", slots=2)
    value = make(client, one)
    client.submit(function="long", workers=["one"])
    one.grant()
    taking = client.submit(function="take", inputs=[[value]])
    refuse(one, one.grant())
    new = dialogue.worker("new")
    new.done(new.grant())
    assert client.finished() == [taking]


def test_a_worker_that_is_named_first_is_not_named_again_once_it_has_refused(dialogue: Dialogue) -> None:
    client, one, two, three = dialogue.client(), *(dialogue.worker(name) for name in ("one", "two", "three"))
    value = make(client, three, 9 * MIB)
    client.submit(function="long", workers=["three"])
    three.grant()
    taking = client.submit(function="take", inputs=[[value]], workers=["two"], allow_other_workers=True)
    refuse(two, two.grant())
    dialogue.wait(1.0)  # it would be left to two, which is idle, as long as that is the one to run it
    one.done(one.grant())
    assert client.finished() == [taking]


def test_what_makes_nothing_is_not_given_to_who_refused_it_either(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one"), dialogue.worker("two")
    inputs = [make(client, one), make(client, two, 9 * MIB)]
    for _ in range(2):
        taking = client.submit(function="take", inputs=[inputs])
        refuse(two, two.grant())
        two.hears_nothing()
        one.done(one.grant(), nbytes=8)
        assert client.finished() == [taking]


def test_a_refused_task_that_nobody_needs_any_more_is_noted_no_longer(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one", slots=2)
    value = make(client, one)
    client.submit(function="long")
    one.grant()
    taking = client.submit(function="take", inputs=[[value]])
    refuse(one, one.grant())
    assert dialogue.ledger.refusals
    client.release(taking)
    assert not dialogue.ledger.refusals


# ------------------------------------------------------------------ values that clients push


def no_room(client: ClientSide, offered: int, worker: WorkerSide) -> None:
    """A worker has no room for a value that was pushed."""
    client.hears_nothing()
    reason = "no room for 1.00 MiB: the quota of 10 B is used up"
    client.say(messages.Pushed(offered, worker.address, reason, full=True))


def no_room_for(seconds: int, client: ClientSide, offered: int, *workers: WorkerSide) -> None:
    """The first worker has none for so long, and it is pushed there again each second."""
    for _ in range(seconds):
        no_room(client, offered, workers[0])
        for worker in workers:
            worker.say(messages.Heartbeat())
        client.dialogue.wait(1.0)
        assert client.hear(messages.Push).address == workers[0].address


def test_a_value_is_pushed_no_more_where_it_has_no_room_and_nobody_waits_for_it(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one", slots=2)
    offered = client.offer([MIB])
    client.submit(function="take", inputs=[[offered]])
    client.submit(function="also", inputs=[[offered]])
    grants = [one.grant(), one.grant()]
    value = grants[0].values[0]
    assert client.hear(messages.Push).address == one.address
    two = dialogue.worker("two", slots=2)
    refuse(one, grants[0], row=value[0], attempt=value[1])
    assert client.hear(messages.Push).address == two.address
    client.say(messages.Pushed(offered, one.address, "no room"))
    assert client.hear(messages.Push).address == one.address  # the other task may wait for it still
    refuse(one, grants[1], row=value[0], attempt=value[1])
    client.say(messages.Pushed(offered, one.address, "no room"))
    dialogue.wait(5.0)
    client.hears_nothing()
    two.say(messages.Held(EPOCH, [value[0], value[1], MIB]))
    two.done(two.grant())
    two.done(two.grant())
    assert client.finished() == [offered + 1]
    assert client.finished() == [offered + 2]


def test_a_scatter_hears_of_it(dialogue: Dialogue) -> None:
    client, one, two = dialogue.client(), dialogue.worker("one"), dialogue.worker("two")
    offered = client.offer([MIB])
    client.submit(function="take", inputs=[[offered]], workers=["one"])
    grant = one.grant()
    assert client.hear(messages.Push).address == one.address
    client.say(messages.Query(3, "scattered", [offered, 1, []]))
    client.release(offered + 1)
    client.hears_nothing()
    refuse(one, grant, row=grant.values[0][0], attempt=grant.values[0][1])
    no_room_for(15, client, offered, one, two)
    no_room(client, offered, one)
    answer = client.hear(messages.Answer)
    assert answer.error == "" and answer.result == (
        "worker one at tcp://one:1, with 0 B of values and a memory limit of 1.00 GiB, had no room for 1.00 MiB: the "
        "quota of 10 B is used up; release values that are no longer needed, start workers, or give values more room "
        "on disk"
    )
    one.hears_nothing()
    two.hears_nothing()
    assert not dialogue.scheduler.scatters.pending


def test_a_value_that_finds_no_room_is_pushed_again_for_as_long_as_room_is_waited_for(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    held = make(client, one)
    offered = client.offer([MIB], "spread")
    client.say(messages.Query(3, "scattered", [offered, 1, []]))
    push = client.hear(messages.Push)
    no_room_for(10, client, offered, one)
    client.say(messages.Query(4, "explain", offered))
    (told, *_) = client.hear(messages.Answer).result["lines"]
    assert told["why"] == (
        "its value of 1.00 MiB is in the memory of client client, who offered it; worker one has no room for it: no "
        "room for 1.00 MiB: the quota of 10 B is used up"
    )
    client.release(held)  # then there may be room soon
    one.freed()
    no_room_for(10, client, offered, one)
    one.say(messages.Held(EPOCH, [push.row, push.attempt, MIB]))
    assert client.hear(messages.Answer) == (3, "", None)
    kinds = [event.kind for event in dialogue.ledger.events.after(0)]
    assert kinds.count("push_waits") == 1


def test_a_task_that_waits_for_a_value_without_room_is_left_to_its_worker(dialogue: Dialogue) -> None:
    client, one = dialogue.client(), dialogue.worker("one")
    offered = client.offer([MIB])
    taking = client.submit(function="take", inputs=[[offered]])
    grant = one.grant()
    push = client.hear(messages.Push)
    no_room_for(20, client, offered, one)
    one.say(messages.Held(EPOCH, [push.row, push.attempt, MIB]))
    one.done(grant)
    assert client.finished() == [taking]
