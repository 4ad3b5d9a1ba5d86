"""What the command line asks of the scheduler: counts, lists, events; and the peers that only ask."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import ProtocolError
from cluster.scheduler import census, events, reports
from cluster.scheduler.ledger import Settings
from cluster.scheduler.machine import Tick
from cluster.wire import messages
from tests.pure.dialogue import EPOCH, Dialogue, Peer


class Observer(Peer):
    """A peer that asks and does nothing else."""

    def __init__(self, dialogue: Dialogue, name: str = "observer") -> None:
        super().__init__(dialogue, name)
        self.say(messages.ObserverJoin(name.encode().ljust(16, b"."), name))
        assert self.hear(messages.ClientWelcome).epoch == EPOCH
        self.requests = 0

    def ask(self, what: str, detail: Any = None) -> Any:
        self.requests += 1
        self.say(messages.Query(self.requests, what, detail))
        self.dialogue.wait(0)
        return self.answer()

    def answer(self) -> Any:
        answer = self.hear(messages.Answer)
        assert answer.request == self.requests
        return answer.error or answer.result


def kinds(answer: Any) -> list[str]:
    return [event["kind"] for event in answer["events"]]


def test_the_status_counts_slots_tasks_by_state_and_failures_by_label() -> None:
    dialogue = Dialogue(Settings(started_at=90.0, versions={"python": "3.11"}))
    client, observer = dialogue.client(), Observer(dialogue)
    worker = dialogue.worker("w", slots=2)
    client.submit(2, function="g")
    granted = worker.grant()
    worker.run_failed(granted, type="ValueError", message="no")
    client.failed(0)
    before = client.submit(3, function="f")
    client.submit(1, function="f", inputs=[[before]])
    worker.inbox.clear()
    status = observer.ask("status")
    assert status["uptime_seconds"] == 10.0
    assert status["versions"] == {"python": "3.11"}
    assert (status["clients"], status["workers"], status["slots"]) == (1, 1, 2)
    assert status["failed_by_label"] == {"g": 1}
    assert status["tasks"]["failed"] == 1
    assert status["tasks"]["waiting"] == 1
    assert status["tasks"]["granted"] + status["tasks"]["ready"] == 4
    assert status["slots_busy"] == 2


def test_tasks_are_listed_by_state_label_and_client_the_running_and_failed_first() -> None:
    dialogue = Dialogue()
    one, other, observer = dialogue.client("one"), dialogue.client("other"), Observer(dialogue)
    worker = dialogue.worker("w")
    one.submit(1, function="f")
    worker.run_failed(worker.grant(), type="ValueError", message="it is too small")
    one.failed(0)
    one.submit(3, function="g", key="")
    running = worker.grant()
    other.submit(2, function="f")
    answer = observer.ask("tasks")
    assert answer["counts"]["failed"] == 1
    assert [task["state"] for task in answer["tasks"]] == ["granted", "failed", "ready", "ready", "ready", "ready"]
    failed = answer["tasks"][1]
    assert failed["error"] == "exception: it is too small"
    assert failed["client"] == "one"
    assert answer["tasks"][0]["worker"] == "w"
    assert {each["label"]: each["ready"] for each in answer["labels"]} == {"f": 2, "g": 2}
    assert [task["client"] for task in observer.ask("tasks", {"client": "other"})["tasks"]] == ["other", "other"]
    assert [task["label"] for task in observer.ask("tasks", {"label": "g", "states": ["granted"]})["tasks"]] == ["g"]
    assert [each["label"] for each in observer.ask("tasks", {"label": "g"})["labels"]] == ["g"]
    cut = observer.ask("tasks", {"limit": 2})
    assert (len(cut["tasks"]), cut["not_listed"]) == (2, 4)
    worker.done(running)
    assert observer.ask("tasks", {"states": ["finished"]})["tasks"][0]["worker"] == "w"
    assert "finished" not in {task["state"] for task in observer.ask("tasks")["tasks"]}
    for client in (one, other):
        client.inbox.clear()
    worker.inbox.clear()


def test_the_values_of_a_label_are_counted_in_bytes() -> None:
    dialogue = Dialogue()
    client, observer, worker = dialogue.client(), Observer(dialogue), dialogue.worker("w", slots=4)
    client.submit(3, function="f")
    grant = worker.grant()
    worker.done(grant, pieces=[b"a" * 100, b"b" * 20, b"c" * 3])
    client.submit(1, function="g")
    assert {each["label"]: each["bytes"] for each in observer.ask("tasks")["labels"]} == {"f": 123, "g": 0}
    client.release(1)
    assert {each["label"]: each["bytes"] for each in observer.ask("tasks")["labels"]} == {"f": 103, "g": 0}
    client.inbox.clear()
    worker.inbox.clear()


def test_questions_without_sense_are_answered_with_what_is_wrong() -> None:
    dialogue = Dialogue()
    observer = Observer(dialogue)
    assert "the states are" in observer.ask("tasks", {"states": ["done"]})
    assert "limit must be 0 to 1000" in observer.ask("tasks", {"limit": 1001})
    assert "after must be" in observer.ask("events", {"after": "now"})
    assert "does not know the query" in observer.ask("weather", {"key": "f-1"})


def test_a_walk_is_made_in_steps_between_which_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "STEP_EFFORT", 10 * census.SPAN_EFFORT)
    dialogue = Dialogue()
    client, observer = dialogue.client(), Observer(dialogue)
    for number in range(100):
        client.submit(function=f"f{number % 7}")
    for number in range(10, 30):
        client.release(number)
    dialogue.wait(0)
    observer.requests += 1
    observer.say(messages.Query(1, "tasks", {"states": ["ready"], "limit": 1000}))
    observer.hears_nothing()
    client.submit(3, function="late")
    observer.hears_nothing()
    dialogue.wait(0)
    answer = observer.answer()
    assert answer["counts"]["ready"] == len(answer["tasks"]) == 83
    assert {each["label"] for each in answer["labels"]} == {f"f{kind}" for kind in range(7)} | {"late"}


def test_a_task_that_went_on_while_the_walk_was_made_is_not_listed_in_its_former_state() -> None:
    dialogue = Dialogue()
    client, observer = dialogue.client(), Observer(dialogue)
    client.submit(3, function="f")
    observer.requests += 1
    observer.say(messages.Query(1, "tasks", {"states": ["ready"]}))
    dialogue.handle(Tick())  # the rows are found …
    observer.hears_nothing()
    client.release(1)
    dialogue.handle(Tick())  # … and described
    assert [task["key"][-3:] for task in observer.answer()["tasks"]] == ["[0]", "[2]"]


def test_walks_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "WALKS_WAITING", 2)
    dialogue = Dialogue()
    observer = Observer(dialogue)
    for request in (1, 2, 3):
        observer.say(messages.Query(request, "status", None))
    assert observer.hear(messages.Answer).error == "the scheduler is counting for others; ask again later"
    dialogue.wait(0)
    assert [observer.hear(messages.Answer).request for _ in range(2)] == [1, 2]


def test_labels_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "LABELS_COUNTED", 2)
    dialogue = Dialogue()
    client, observer = dialogue.client(), Observer(dialogue)
    for number in range(5):
        client.submit(function=f"f{number}")
    found = {each["label"]: each["ready"] for each in observer.ask("tasks")["labels"]}
    assert found == {"f0": 1, "f1": 1, census.OTHER_LABELS: 3}


def test_an_observer_is_no_client_and_may_only_ask() -> None:
    dialogue = Dialogue()
    observer = Observer(dialogue)
    assert observer.ask("status")["clients"] == 0
    assert observer.ask("events")["events"] == []
    with pytest.raises(ProtocolError, match="an observer sent Submit"):
        observer.say(messages.Submit(0, 1, -1, b"f", "f", {}, 0, b"", b"", b"", b""))
    observer.disconnect()
    assert Observer(dialogue, "next").ask("events")["events"] == []


def test_the_workers_say_what_they_have_and_hold() -> None:
    dialogue = Dialogue()
    client, observer = dialogue.client(), Observer(dialogue)
    worker = dialogue.worker("w", slots=2, GPU=1.0)
    client.submit(1)
    worker.done(worker.grant(), nbytes=100)
    client.finished()
    worker.say(messages.AgentHeartbeat(EPOCH, {"slots_running": 0}))
    dialogue.now += 3
    (found,) = observer.ask("workers")
    assert (found["name"], found["slots"], found["values"], found["values_bytes"]) == ("w", 2, 1, 100)
    assert (found["resources"], found["silent_seconds"], found["state"]) == ({"GPU": 1.0}, 3.0, "running")
    assert found["report"] == {"slots_running": 0}


def test_coming_going_failing_and_silence_are_events() -> None:
    dialogue = Dialogue()
    observer = Observer(dialogue)
    client = dialogue.client()
    worker, silent = dialogue.worker("w"), dialogue.worker("silent")
    client.submit(1, function="f")
    dying = worker.grant() if worker.inbox else silent.grant()
    runner = worker if worker.functions else silent
    runner.run_failed(dying, "died", type="TaskDied", message="signal 11")
    worker.say(messages.AgentHeartbeat(EPOCH, {"disk_bytes": 5}))
    worker.say(messages.AgentHeartbeat(EPOCH, {"disk_bytes": 6}))
    for _ in range(13):
        worker.say(messages.AgentHeartbeat(EPOCH, {}))
        dialogue.wait(1)
    assert silent.closed
    worker.say(messages.Draining(EPOCH))
    worker.say(messages.Draining(EPOCH))
    worker.disconnect()
    client.say(messages.Leave())
    client.disconnect()
    lost = dialogue.client("lost")
    lost.disconnect()
    dialogue.wait(61)
    assert kinds(observer.ask("events")) == [
        "client_joined", "worker_joined", "worker_joined", "task_died", "store_full", "worker_silent", "worker_lost",
        "worker_draining", "worker_left", "client_left", "client_joined", "client_lost", "client_given_up",
    ]  # fmt: skip
    for peer in (worker, silent, client):
        peer.inbox.clear()


def test_failures_of_one_label_that_follow_one_another_are_one_event() -> None:
    log = events.EventLog()
    for number in range(5):
        log.note_task("task_failed", "f", f"f-{number}", "on w: ValueError")
    log.note("worker_lost", "w", "its connection ended")
    log.note_task("task_failed", "f", "f-5", "on w: ValueError")
    log.note_task("task_failed", "g", "g-1", "on w: ValueError")
    log.now = 100.0
    log.note_task("task_failed", "g", "g-2", "on w: ValueError")
    assert [(event.number, event.subject, event.times) for event in log.after(0)] == [
        (6, "w", 1), (7, "f-5", 6), (8, "g-1", 1), (9, "g-2", 1),
    ]  # fmt: skip
    assert [event.number for event in log.after(8)] == [9]


def test_the_log_is_bounded_and_failing_tasks_push_out_no_lost_worker() -> None:
    log = events.EventLog()
    log.note("worker_lost", "w" * 1000, "x" * 10_000)
    for number in range(3 * events.RING_EVENTS):
        log.note_task("task_failed", f"label {number}", "key", "text")
    found = log.after(0)
    assert len(found) == 1 + events.RING_EVENTS
    assert (len(found[0].subject), len(found[0].text)) == (events.SUBJECT_CHARACTERS, events.TEXT_CHARACTERS)


def test_a_follower_is_answered_when_something_happens() -> None:
    dialogue = Dialogue()
    observer = Observer(dialogue)
    observer.requests += 1
    observer.say(messages.Query(1, "events", {"after": 0, "wait": True}))
    observer.hears_nothing()
    client = dialogue.client()
    answer = observer.answer()
    assert kinds(answer) == ["client_joined"]
    assert observer.ask("events", {"after": 0, "wait": True}) == answer
    observer.say(messages.Query(3, "events", {"after": 1, "wait": True}))
    observer.say(messages.Query(4, "events", {"after": 1, "wait": True}))
    assert observer.hear(messages.Answer) == messages.Answer(3, "", {"events": [], "last": 1})
    observer.disconnect()
    client.disconnect()
    observer.hears_nothing()
