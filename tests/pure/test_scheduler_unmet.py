"""Requests that no connected worker can meet: when they err, what they say, and what starts the clock anew."""

from __future__ import annotations

import pytest

from cluster.errors import ProtocolError
from cluster.scheduler import unmet
from cluster.scheduler.machine import Settings, Tick
from cluster.wire import messages
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide


def wait(dialogue: Dialogue, seconds: float) -> None:
    """Let time pass with workers that are heard of."""
    for _ in range(round(seconds)):
        for worker in dialogue.ledger.workers.values():
            worker.last_seen = dialogue.now
        dialogue.wait(1.0)


def test_after_a_minute_it_fails_and_names_what_the_nearest_worker_lacks(dialogue: Dialogue) -> None:
    client = dialogue.client()
    dialogue.worker("small", gpu=1.0)
    dialogue.worker("plain")
    number = client.submit(resources={"gpu": 4.0, "disk": 1.0})
    taker = client.submit(inputs=[[number]])
    wait(dialogue, 59)
    client.hears_nothing()
    wait(dialogue, 3)
    failed = client.failed(number)
    assert failed.kind == "unrunnable"
    message = failed.details["message"]
    assert message.startswith("for 1 min no connected worker could run f-636c6965-0: it takes 1 disk, 4 gpu")
    assert "the nearest of 2 workers, small at tcp://small:1, has 0 of 1 disk, 1 of 4 gpu" in message
    assert client.failed(taker).kind == "unrunnable"


def test_a_name_that_nobody_has_fails_too_and_a_preference_does_not(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("one")
    client.submit(workers=["two"], allow_other_workers=True)
    worker.done(worker.grant())
    client.finished()
    number = client.submit(workers=["two"])
    wait(dialogue, 62)
    assert 'it runs only on "two"' in client.failed(number).details["message"]


def test_a_plain_task_waits_for_ever_and_so_does_any_while_no_worker_is_there(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit()
    number = client.submit(resources={"gpu": 1.0})
    wait(dialogue, 200)
    client.hears_nothing()
    worker = dialogue.worker("plain")
    worker.done(worker.grant())
    client.finished()
    wait(dialogue, 55)
    client.hears_nothing()
    wait(dialogue, 7)
    client.failed(number)


def test_the_clock_starts_anew_for_a_worker_that_could_and_for_no_other(dialogue: Dialogue) -> None:
    client = dialogue.client()
    dialogue.worker("plain")
    client.submit(2, resources={"gpu": 1.0})
    wait(dialogue, 50)
    other = dialogue.worker("other", disk=1.0)
    other.disconnect()
    able = dialogue.worker("able", gpu=1.0)
    able.grant()
    able.disconnect()
    wait(dialogue, 55)
    client.hears_nothing()
    wait(dialogue, 7)
    assert {client.failed(0).kind, client.failed(1).kind} == {"unrunnable"}


def test_a_worker_that_drains_does_not_meet_anything(dialogue: Dialogue) -> None:
    client, able = dialogue.client(), dialogue.worker("able", gpu=1.0)
    able.say(messages.Draining(EPOCH))
    number = client.submit(resources={"gpu": 1.0})
    wait(dialogue, 62)
    assert "no worker is connected that will stay" in client.failed(number).details["message"]


def test_what_was_submitted_late_has_its_own_minute(dialogue: Dialogue) -> None:
    client = dialogue.client()
    dialogue.worker("plain")
    first = client.submit(resources={"gpu": 1.0})
    wait(dialogue, 40)
    late = client.submit(resources={"gpu": 1.0})
    wait(dialogue, 25)
    client.failed(first)
    client.hears_nothing()
    wait(dialogue, 40)
    client.failed(late)


def test_a_retry_waits_as_long_again_and_runs_where_it_can_by_then(dialogue: Dialogue) -> None:
    client = dialogue.client()
    dialogue.worker("plain")
    number = client.submit(resources={"gpu": 1.0})
    client.submit(resources={"gpu": 1.0})
    wait(dialogue, 62)
    client.failed(0), client.failed(1)
    client.say(messages.Retry([number, 1]))
    client.reset(number)
    wait(dialogue, 55)
    client.hears_nothing()
    able = dialogue.worker("able", gpu=1.0)
    able.done(able.grant())
    assert client.finished() == [number]


@pytest.mark.parametrize("patience", [0.0, 5.0])
def test_the_time_is_a_setting_and_zero_is_never(patience: float) -> None:
    dialogue = Dialogue(Settings(unmet_request_seconds=patience))
    client = dialogue.client()
    dialogue.worker("plain")
    client.submit(resources={"gpu": 1.0})
    wait(dialogue, 100)
    if patience:
        assert "for 5.00 s" in client.failed(0).details["message"]
    client.hears_nothing()


def test_very_many_fail_in_steps_and_stop_when_a_worker_comes(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmet, "ROWS_PER_STEP", 10)
    client = dialogue.client()
    dialogue.worker("plain")
    client.submit(25, resources={"gpu": 1.0})
    for _ in range(20):
        client.submit(resources={"gpu": 1.0})
    scheduler = dialogue.scheduler
    wait(dialogue, 59)
    while not scheduler.unmet.has_work:
        dialogue.now += 0.5
        dialogue.handle(Tick())
    assert len(client.inbox) == 10
    able = dialogue.worker("able", gpu=2.0)
    able.grant()
    dialogue.handle(Tick())
    assert len(client.inbox) == 10 and not scheduler.unmet.has_work
    able.disconnect()
    able.inbox.clear()
    wait(dialogue, 63)
    assert len(client.inbox) == 45 and not scheduler.unmet.has_work
    client.inbox.clear()


def shares(dialogue: Dialogue, clients: list[ClientSide], worker: WorkerSide, seconds: float) -> list[float]:
    """The slot time that each client's tasks get, all having work; each task takes 0.05 s."""
    for client in clients:
        client.submit(1000, function=client.name)
    had = dict.fromkeys([client.name.encode() for client in clients], 0.0)
    end = dialogue.now + seconds
    while dialogue.now < end:
        grant = worker.grant()
        count = sum(grant.runs[1::2])
        had[grant.function_id] += 0.05 * count
        dialogue.now += 0.05 * count
        worker.done(grant, seconds=0.05)
    for peer in (*clients, worker):
        peer.inbox.clear()
    return list(had.values())


def test_clients_share_slot_time_by_weight(dialogue: Dialogue) -> None:
    light, heavy, worker = dialogue.client("light"), dialogue.client("heavy", weight=3.0), dialogue.worker()
    one, three = shares(dialogue, [light, heavy], worker, 20.0)
    assert three / one == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ProtocolError, match="weight"):
        Dialogue().client(weight=weight)
