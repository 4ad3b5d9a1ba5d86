"""Output and progress reach the client that submitted the task and nobody else, within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.scheduler import output
from cluster.scheduler.machine import Congested
from cluster.wire import messages
from cluster.wire.task_output import CUT, STDOUT
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide


def entry(text: bytes) -> list[Any]:
    return [STDOUT, 5.0, text]


def wrote(worker: WorkerSide, attempt: int, row: int, *entries: Any, epoch: int = EPOCH) -> None:
    worker.say(messages.Output(epoch, [[attempt, row, list(entries)]]))


def showing(dialogue: Dialogue, name: str = "client") -> ClientSide:
    client = dialogue.client(name)
    client.say(messages.ShowOutput(True))
    return client


def test_late_output_is_not_taken_for_that_of_the_next_task_of_its_row() -> None:
    dialogue = Dialogue()
    client, worker = showing(dialogue), dialogue.worker("w", slots=1)
    client.submit()
    grant = worker.grant()
    worker.done(grant)
    client.hear(messages.Finished)
    client.release(0)
    worker.freed()
    client.submit(resources={"GPU": 1.0})  # nobody can run it, so it is never granted
    wrote(worker, grant.attempt, grant.runs[0], entry(b"late"))
    client.hears_nothing()


def ask(client: ClientSide, what: str, detail: Any, request: int = 1) -> None:
    client.say(messages.Query(request, what, detail))


def test_output_goes_to_the_client_of_the_task() -> None:
    dialogue = Dialogue()
    client, other, worker = showing(dialogue), showing(dialogue, "other"), dialogue.worker()
    number = client.submit()
    grant = worker.grant()
    assert grant.origin == [client.client_id, -1, number - grant.runs[0], "", [], True, []]
    wrote(worker, grant.attempt, grant.runs[0], entry(b"hello\n"))
    [[told, key, name, entries]] = client.hear(messages.TaskOutput).tasks
    assert (told, name, entries) == (number, "worker", [entry(b"hello\n")])
    assert key == f"f-{client.client_id.hex()[:8]}-{number}"
    other.hears_nothing()
    dialogue.everybody_heard_everything()


def test_stale_and_foreign_output_is_passed_over() -> None:
    dialogue = Dialogue()
    client, worker = showing(dialogue), dialogue.worker()
    client.submit()
    grant = worker.grant()
    wrote(worker, grant.attempt + 1, grant.runs[0], entry(b"of no run\n"))
    wrote(worker, grant.attempt, 10_000, entry(b"of no row\n"))
    wrote(worker, grant.attempt, grant.runs[0], entry(b"of another life\n"), epoch=EPOCH + 1)
    worker.done(grant)
    client.finished()
    client.release(0)
    worker.freed()
    wrote(worker, grant.attempt, grant.runs[0], entry(b"of what nobody wants\n"))
    dialogue.everybody_heard_everything()


def test_who_does_not_look_is_told_nothing_and_who_reads_slowly_is_told_how_much_was_left_out() -> None:
    dialogue = Dialogue()
    silent, worker = dialogue.client("silent"), dialogue.worker(slots=2)
    silent.submit()
    grant = worker.grant()
    assert grant.origin[5] is False
    wrote(worker, grant.attempt, grant.runs[0], entry(b"line\n"))
    silent.hears_nothing()
    client = showing(dialogue)
    client.submit()
    grant = worker.grant()
    dialogue.handle(Congested(client.peer, True))
    for _ in range(10):
        wrote(worker, grant.attempt, grant.runs[0], entry(b"x" * 1000))
    client.hears_nothing()
    dialogue.handle(Congested(client.peer, False))
    wrote(worker, grant.attempt, grant.runs[0], entry(b"now\n"))
    [[_, _, _, entries]] = client.hear(messages.TaskOutput).tasks
    assert entries == [[CUT, 5.0, b"10000"], entry(b"now\n")]
    dialogue.everybody_heard_everything()


def test_logs_of_each_attempt_are_asked_of_the_worker_that_ran_it() -> None:
    dialogue = Dialogue()
    client, first = dialogue.client(), dialogue.worker("first")
    number = client.submit(retries=1)
    grant = first.grant()
    wrote(first, grant.attempt, grant.runs[0])
    second = dialogue.worker("second")
    first.run_failed(grant)
    again = (second if second.inbox else first).grant()
    runner = second if second.functions else first
    assert again.origin[4] == [again.runs[0], 1]
    wrote(runner, again.attempt, again.runs[0])
    runner.done(again)
    client.finished()
    ask(client, "task_output", number)
    orders = [(worker, worker.hear(messages.Order)) for worker in dict.fromkeys((first, runner))]
    for at, (worker, order) in enumerate(orders):
        assert (order.what, order.detail[1]) == ("logs", again.runs[0])
        client.hears_nothing()
        worker.say(messages.Ordered(EPOCH, order.request, "", [[entry(b"%d" % at)], False]))
    while runner.inbox:  # both attempts ran on the one worker
        order = runner.hear(messages.Order)
        runner.say(messages.Ordered(EPOCH, order.request, "", [[entry(b"again")], False]))
    answer = client.hear(messages.Answer)
    assert len(answer.result) == 2
    dialogue.everybody_heard_everything()


def test_logs_of_a_lost_worker_are_said_to_be_gone() -> None:
    dialogue = Dialogue()
    client, worker = dialogue.client(), dialogue.worker()
    number = client.submit()
    grant = worker.grant()
    wrote(worker, grant.attempt, grant.runs[0])
    ask(client, "task_output", number)
    worker.hear(messages.Order)
    worker.disconnect()
    assert client.hear(messages.Answer).result == [["worker", [], True]]
    ask(client, "task_output", number, request=2)
    assert client.hear(messages.Answer).result == [["", [], True]]
    ask(client, "task_output", 999, request=3)
    assert client.hear(messages.Answer).result == []


def test_logs_are_found_by_key_for_whoever_asks() -> None:
    dialogue = Dialogue()
    client, observer, worker = dialogue.client(), dialogue.client("observer"), dialogue.worker(slots=2)
    client.submit()
    made = worker.grant()
    client.submit(key="mine")
    named = worker.grant()
    for request, grant, key in ((1, made, dialogue.scheduler.ledger.key(made.runs[0])), (2, named, "mine")):
        wrote(worker, grant.attempt, grant.runs[0])
        ask(observer, "logs", {"key": key}, request)
        order = worker.hear(messages.Order)
        worker.say(messages.Ordered(EPOCH, order.request, "", [[entry(b"line\n")], False]))
        answer = observer.hear(messages.Answer)
        assert answer.result == {"key": key, "runs": [["worker", [entry(b"line\n")], False]]}
    ask(observer, "logs", {"key": "nobody's"}, 3)
    assert 'does not know the task "nobody\'s"' in observer.hear(messages.Answer).error
    ask(observer, "logs", "mine", 4)
    assert "takes a number or" in observer.hear(messages.Answer).error


def test_places_and_progress_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PLACES_KEPT", 10)
    monkeypatch.setattr(output, "PROGRESS_KEPT", 10)
    dialogue = Dialogue()
    client, worker = dialogue.client(), dialogue.worker(slots=30)
    client.submit(30)
    grant = worker.grant()
    for row in range(grant.runs[0], grant.runs[0] + grant.runs[1]):
        wrote(worker, grant.attempt, row)
        worker.say(messages.Progress(EPOCH, grant.attempt, row, 0.5, "half"))
    kept = dialogue.scheduler.output
    assert (len(kept._places), len(kept._progress)) == (10, 10)


def test_progress_is_told_of_running_tasks_of_the_asking_client() -> None:
    dialogue = Dialogue()
    client, other, worker = dialogue.client(), dialogue.client("other"), dialogue.worker(slots=4)
    first = client.submit(3)
    grants = [worker.grant()]
    row, attempt = grants[0].runs[0], grants[0].attempt
    worker.say(messages.Progress(EPOCH, attempt, row, 0.1, "one"))
    worker.say(messages.Progress(EPOCH, attempt, row, 0.2, "two"))
    worker.say(messages.Progress(EPOCH, attempt + 1, row + 1, 0.9, "of no run"))
    ask(client, "progress", [first, 3])
    granted, told = client.hear(messages.Answer).result
    assert granted == 3
    assert [(number, fraction, message) for number, _, fraction, message in told] == [(first, 0.2, "two")]
    ask(other, "progress", [first, 3])
    assert other.hear(messages.Answer).result == [0, []]
    worker.done(grants[0], [row])
    client.finished()
    ask(client, "progress", [first, 3])
    assert client.hear(messages.Answer).result == [2, []]
