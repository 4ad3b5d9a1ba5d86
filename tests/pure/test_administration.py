"""Queries about the cluster as a whole, copies, and workers that are to go, in the scheduler's machine."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.scheduler.pushes import PUSHES_TRIED
from cluster.wire import messages
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide


def ask(client: ClientSide, what: str, detail: Any, request: int = 1) -> None:
    client.say(messages.Query(request, what, detail))


def with_values(dialogue: Dialogue, count: int) -> tuple[ClientSide, WorkerSide, WorkerSide, messages.Grant]:
    """Values of a client at the first of two workers."""
    client, first = dialogue.client(), dialogue.worker("a", slots=count)
    client.submit(count)
    grant = first.grant()
    first.done(grant)
    client.finished()
    return client, first, dialogue.worker("b"), grant


def fetched(worker: WorkerSide) -> list[list[int]]:
    """What the worker is ordered to copy, as `[row, attempt, nbytes]`; it answers that it has it."""
    values = [entry[:3] for entry in worker.hear(messages.Fetch).values]
    worker.say(messages.Held(EPOCH, [part for value in values for part in value]))
    return values


def test_what_workers_hold_and_run() -> None:
    dialogue = Dialogue()
    client, first, second, _ = with_values(dialogue, 2)
    ask(client, "has_what", {"workers": [], "limit": 10})
    found = client.hear(messages.Answer).result
    assert [count for count, _ in found.values()] == [2, 0]
    assert [len(keys) for _, keys in found.values()] == [2, 0]
    ask(client, "has_what", {"workers": ["a"], "limit": 1})
    assert [[count, len(keys)] for count, keys in client.hear(messages.Answer).result.values()] == [[2, 1]]
    client.submit(key="mine")
    granted = [worker for worker in (first, second) if worker.inbox]
    granted[0].grant()
    ask(client, "processing", {"workers": [], "limit": 10})
    assert client.hear(messages.Answer).result[granted[0].address] == [1, ["mine"]]
    ask(client, "processing", {"workers": ["nobody"], "limit": 10})
    assert "no worker is called 'nobody'; there are: a, b" in client.hear(messages.Answer).error


def test_a_function_is_run_on_the_named_workers_and_a_loss_is_an_answer() -> None:
    dialogue = Dialogue()
    client, first, second = dialogue.client(), dialogue.worker("a"), dialogue.worker("b")
    ask(client, "run", {"workers": [], "name": "f", "function": b"code", "arguments": b"args"})
    order = first.hear(messages.Order)
    assert order.detail == {"name": "f", "function": b"code", "arguments": b"args"}
    second.hear(messages.Order)
    first.say(messages.Ordered(EPOCH, order.request, "", {"data": b"v"}))
    client.hears_nothing()
    second.disconnect()
    answer = client.hear(messages.Answer).result
    assert answer[first.address] == ["", {"data": b"v"}]
    assert "lost" in answer[second.address][0]


def test_a_module_goes_to_workers_that_join_later_ahead_of_tasks() -> None:
    dialogue = Dialogue()
    client = dialogue.client()
    ask(client, "upload", {"name": "m.py", "data": b"code"})
    assert client.hear(messages.Answer).result == {}
    client.submit()
    worker = dialogue.worker("late")
    assert worker.hear(messages.Order).detail == {"name": "m.py", "data": b"code"}
    worker.grant()
    ask(client, "upload", {"name": "large.zip", "data": bytes(65 << 20)})
    assert "install large.zip" in client.hear(messages.Answer).error


def test_copies_are_made_where_they_are_missing() -> None:
    dialogue = Dialogue()
    client, first, second, grant = with_values(dialogue, 3)
    ask(client, "replicate", {"numbers": [0, 3], "count": 2, "workers": []})
    assert fetched(second) == [[0, grant.attempt, 8]]
    assert fetched(second) == [[1, grant.attempt, 8]]
    client.hears_nothing()
    assert fetched(second) == [[2, grant.attempt, 8]]
    assert client.hear(messages.Answer).result == [3, []]
    ask(client, "replicate", {"numbers": [0, 3], "count": 0, "workers": []})
    assert client.hear(messages.Answer).result == [0, []]
    first.hears_nothing()


def test_the_copies_of_one_request_are_shared_out() -> None:
    dialogue = Dialogue()
    client, _, second, _ = with_values(dialogue, 4)
    third = dialogue.worker("c")
    ask(client, "replicate", {"numbers": [0, 4], "count": 2, "workers": []})
    assert [len([fetched(worker) for _ in range(2)]) for worker in (second, third)] == [2, 2]
    assert client.hear(messages.Answer).result == [4, []]


def test_a_copy_that_fails_or_whose_worker_is_lost_is_told() -> None:
    dialogue = Dialogue()
    client, first, second, grant = with_values(dialogue, 2)
    ask(client, "replicate", {"numbers": [0, 2], "count": 2, "workers": []})
    second.hear(messages.Fetch)
    second.hear(messages.Fetch)
    second.say(messages.FetchFailed(EPOCH, 0, grant.attempt, first.address, "no room"))
    second.disconnect()
    assert client.hear(messages.Answer).result == [2, ["no room", "worker b was lost"]]


@pytest.mark.parametrize("refused", [True, False])
def test_a_copy_that_its_client_does_not_push_is_told(refused: bool) -> None:
    dialogue = Dialogue()
    client, worker = dialogue.client(), dialogue.worker("a")
    number = client.offer([100_000])
    ask(client, "replicate", {"numbers": [number, 1], "count": 1, "workers": []})
    for _ in range(1 if refused else PUSHES_TRIED):
        if not client.inbox:
            worker.say(messages.Heartbeat())
            dialogue.wait(1.0)
        push = client.hear(messages.Push)
        if refused:
            client.say(messages.PushRefused(number, push.address, "it was changed", "do not change it"))
        else:
            client.say(messages.Pushed(number, push.address, "connection refused"))
    assert client.hear(messages.Answer).result == [1, ["it was changed" if refused else "connection refused"]]
    worker.hears_nothing()


def test_a_retired_worker_ends_its_tasks_then_hands_on_its_values_then_goes() -> None:
    dialogue = Dialogue()
    client, first, second, _ = with_values(dialogue, 2)
    client.submit(3)  # one for the second worker, two for the first
    second_grant = second.grant()
    first_grant = first.grant()
    ask(client, "retire_workers", {"workers": ["a"], "close": True})
    recall = first.hear(messages.Recall)
    assert recall.count == 2
    first.recalled(recall.request)  # nothing: both run
    second.hears_nothing()
    first.done(first_grant)
    client.finished()
    dialogue.wait(0.01)
    assert len(second.hear(messages.Fetch).values) == 1
    for entry in [message for message in second.inbox if isinstance(message, messages.Fetch)]:
        second.say(messages.Held(EPOCH, [part for value in entry.values for part in value[:3]]))
    first.hears_nothing()
    second.say(messages.Held(EPOCH, [0, 1, 8]))
    second.inbox.clear()
    dialogue.wait(0.01)
    assert first.hear(messages.ShutDown).reason == "it was retired"
    client.hears_nothing()
    first.disconnect()
    assert client.hear(messages.Answer).result == [first.address]
    second.done(second_grant)
    client.finished()
    client.hears_nothing()


def test_a_worker_whose_values_nobody_takes_stays() -> None:
    dialogue = Dialogue()
    client, first, second, grant = with_values(dialogue, 1)
    ask(client, "retire_workers", {"workers": ["a"], "close": True})
    for _ in range(4):
        dialogue.wait(0.01)
        second.hear(messages.Fetch)
        second.say(messages.FetchFailed(EPOCH, 0, grant.attempt, first.address, "no room"))
    dialogue.wait(0.01)
    assert "worker a stays" in client.hear(messages.Answer).error
    client.submit(2)
    first.grant()  # it works again
    second.grant()


def test_the_last_worker_with_values_is_not_retired() -> None:
    dialogue = Dialogue()
    client, _, second, _ = with_values(dialogue, 1)
    second.disconnect()
    ask(client, "retire_workers", {"workers": [], "close": True})
    assert "no other worker would be left" in client.hear(messages.Answer).error


def test_a_restart_cancels_everybodys_tasks() -> None:
    dialogue = Dialogue()
    one, other, worker = dialogue.client("one"), dialogue.client("other"), dialogue.worker("w", slots=1)
    one.submit()
    other.submit()
    grant = worker.grant()
    ask(one, "restart", None)
    order = worker.hear(messages.Order)
    assert order.what == "restart"
    assert worker.hear(messages.Stop).names == [grant.attempt, grant.runs[0]]
    worker.say(messages.Ordered(EPOCH, order.request, "", None))
    worker.run_failed(grant, "cancelled")
    assert {message.kind for client in (one, other) for message in client.inbox if hasattr(message, "kind")} == {
        "cancelled"
    }
    assert any(isinstance(message, messages.Answer) for message in one.inbox)


def test_waiting_for_workers_is_answered_when_they_are_there() -> None:
    dialogue = Dialogue()
    client = dialogue.client()
    ask(client, "wait_for_workers", 2)
    dialogue.worker("a")
    client.hears_nothing()
    dialogue.worker("b")
    assert client.hear(messages.Answer).result == 2


def test_values_move_from_who_holds_much_to_who_holds_little() -> None:
    dialogue = Dialogue()
    client, first, second, grant = with_values(dialogue, 4)
    ask(client, "rebalance", {"numbers": [], "workers": []})
    for row in (0, 1):
        assert fetched(second) == [[row, grant.attempt, 8]]
        if row == 0:
            client.hears_nothing()
    assert client.hear(messages.Answer).result == [2, 16, []]
    assert first.freed() + first.freed() == [(grant.attempt, 0), (grant.attempt, 1)]
    held = [worker.held_bytes for worker in dialogue.ledger.workers.values()]
    assert held == [16, 16]
    ask(client, "rebalance", {"numbers": [], "workers": []})
    assert client.hear(messages.Answer).result == [0, 0, []]


def test_what_a_running_task_takes_stays_and_a_copy_that_fails_is_told() -> None:
    dialogue = Dialogue()
    client, first, second, grant = with_values(dialogue, 2)
    client.submit(function="g", inputs=[[0]], workers=["a"])
    first.grant()
    ask(client, "rebalance", {"numbers": [0, 1], "workers": []})
    assert client.hear(messages.Answer).result == [0, 0, []]
    ask(client, "rebalance", {"numbers": [], "workers": []})
    second.hear(messages.Fetch)
    second.say(messages.FetchFailed(EPOCH, 1, grant.attempt, first.address, "no room"))
    assert client.hear(messages.Answer).result == [0, 0, ["no room"]]
    first.hears_nothing()
