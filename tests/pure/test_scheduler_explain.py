"""`explain` and `story`, for every state of a task, by number and by key, with and without the agent's word."""

from __future__ import annotations

from typing import Any

from cluster.ids import task_key
from cluster.scheduler import inquiries
from cluster.scheduler.history import EVENTS_KEPT, History
from cluster.scheduler.machine import Settings
from cluster.scheduler.table import READY
from cluster.wire import messages
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide


def ask(client: ClientSide, detail: Any, what: str = "explain") -> Any:
    """The answer to a question that the scheduler answers at once."""
    client.say(messages.Query(1, what, detail))
    answer = client.hear(messages.Answer)
    assert not answer.error
    return answer.result


def ask_through(client: ClientSide, worker: WorkerSide, detail: Any, found: Any, what: str = "explain") -> Any:
    """The answer to a question for which an agent is asked, and says that."""
    client.say(messages.Query(2, what, detail))
    client.hears_nothing()
    order = worker.hear(messages.Order)
    assert order.what == "whereabouts"
    worker.say(messages.Ordered(EPOCH, order.request, "", found))
    return client.hear(messages.Answer).result


def lines(answer: Any) -> list[tuple[str, str]]:
    return [(line["what"], line["why"]) for line in answer["lines"]]


def test_without_workers_it_says_how_to_start_one(dialogue: Dialogue) -> None:
    client = dialogue.client()
    number = client.submit()
    answer = ask(client, number)
    assert answer["state"] == "ready" and answer["key"] == task_key("f", client.client_id, -1, number)
    assert lines(answer) == [("no worker", "no worker is connected")]
    assert "cluster-worker" in answer["lines"][0]["remedy"]


def test_a_task_that_no_slot_is_free_for_is_told_who_goes_first(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit()
    worker.grant()
    client.submit(3, function="g")
    low, high = client.submit(priority=-1), client.submit(priority=1)
    assert lines(ask(client, low)) == [
        ("slot", "the slot of worker worker is taken, and no other may run it now"),
        ("turn", "ready before it: 4 tasks of the same client, by priority, depth or age"),
    ]
    assert lines(ask(client, high))[1] == ("turn", "it is the next to start")
    assert lines(ask(client, 3))[1][1].startswith("ready before it: 3 tasks")  # two of its batch, and `high`


def test_a_client_that_had_its_share_is_told_so(dialogue: Dialogue) -> None:
    greedy, modest, worker = dialogue.client("greedy"), dialogue.client("modest"), dialogue.worker()
    greedy.submit(3)
    modest.submit(2)
    what, why = lines(ask(greedy, 1))[1]
    worker.inbox.clear()
    assert what == "turn" and "2 tasks of 1 other clients, who had less slot time by weight" in why


def test_a_request_that_nobody_meets_names_the_nearest_worker(dialogue: Dialogue) -> None:
    client = dialogue.client()
    dialogue.worker("plain")
    dialogue.worker("near", gpu=1.0)
    number = client.submit(resources={"gpu": 2.0})
    what, why = lines(ask(client, number))[0]
    assert what == "resources nowhere"
    assert "it takes 2 gpu; the nearest of 2 workers, near at tcp://near:1, has 1 of 2 gpu" in why
    named = client.submit(workers=["elsewhere"])
    what, why = lines(ask(client, named))[0]
    assert what == "workers" and 'runs only on "elsewhere"' in why and "it fails in 1 min" in why


def test_resources_that_others_have_are_counted(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker(slots=4, gpu=1.0)
    client.submit(3, resources={"gpu": 0.5})
    worker.grant()
    what, why = lines(ask(client, 2))[0]
    assert what == "resources" and "it takes 0.5 gpu" in why and "worker has 0 of 1 gpu free" in why


def test_a_worker_that_will_end_is_no_help(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    worker.say(messages.Draining(EPOCH))
    number = client.submit()
    assert lines(ask(client, number))[0][0] == "draining"


def test_large_inputs_elsewhere_hold_a_task(dialogue: Dialogue) -> None:
    client, holder, idle = dialogue.client(), dialogue.worker("holder"), dialogue.worker("idle")
    client.submit(workers=["holder"])
    holder.done(holder.grant(), nbytes=10**9)
    client.finished()
    client.submit(function="slow", workers=["holder"])
    holder.grant()
    number = client.submit(function="taker", inputs=[[0]])
    reasons = lines(ask(client, number))
    assert [what for what, _ in reasons] == ["slot", "moving", "turn"]
    assert "moving 954 MiB to worker idle is expected to take longer" in reasons[1][1]
    idle.hears_nothing()


def test_a_waiting_task_names_its_inputs_and_what_they_wait_for(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(2)
    client.submit(function="g", inputs=[[0, 1]])
    last = client.submit(function="h", inputs=[[2]])
    worker.grant()
    found = {"where": "slot", "slot": 0, "ahead": 0, "seconds": 3.0, "stopping": ""}
    answer = ask_through(client, worker, last, found)
    assert answer["state"] == "waiting"
    (first, why), (second, deeper) = lines(answer)
    assert first == "inputs" and "g-636c6965-2 (waits for inputs)" in why
    assert second == "running of f-636c6965-0[0]" and "for 3.00 s in slot 0 of worker worker" in deeper


def test_inputs_behind_a_join_are_named_one_by_one(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(8)
    number = client.submit(2, function="g", shared=range(8))
    what, why = lines(ask(client, number))[0]
    assert what == "inputs" and why.startswith("8 of its inputs have no value yet: f-") and why.endswith("and 3 more")


def test_a_granted_task_is_where_its_agent_says(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    number = client.submit(timeout_seconds=60)
    grant = worker.grant()
    for found, state, text in (
        ({"where": "slot", "slot": 1, "ahead": 0, "seconds": 2.5, "stopping": ""}, "running", "has run for 2.50 s"),
        ({"where": "slot", "slot": 1, "ahead": 2, "seconds": 2.5, "stopping": ""}, "queued", "slot 1 behind 2 tasks"),
        ({"where": "queued", "ahead": 1, "ready": 2, "slots": 2, "busy": [9.0]}, "queued", "behind 1 task, and its"),
        ({"where": "queued", "ahead": 0, "ready": 0, "slots": 2, "busy": []}, "queued", "none of its 2 slots is up"),
        ({"where": "fetching", "lacking": 1, "inputs": [[9, 4, 2048, "tcp://x:1"]]}, "fetching", "from tcp://x:1"),
        (
            {
                "where": "fetching",
                "lacking": 1,
                "inputs": [[9, 4, 2048, "tcp://x:1"]],
                "no_room": "it is full",
            },
            "fetching",
            "there is no room for that yet: it is full",
        ),
        ({"where": "gone"}, "granted", "the report is on its way"),
    ):
        answer = ask_through(client, worker, number, found)
        assert answer["state"] == state and text in answer["lines"][0]["why"], answer
    client.release(number)
    client.say(messages.Alias(90, []))
    worker.done(grant)
    worker.freed()


def suspended(worker: WorkerSide, change: int, task: messages.Grant) -> None:
    worker.say(messages.Suspended(EPOCH, change, task.runs[0], task.attempt))


def test_a_parent_that_waits_names_what_it_waits_for_and_what_that_waits_for(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    number = client.submit(function="parent")
    parent = worker.grant()
    inner = dialogue.client("inner")
    inner.say(messages.LivesInSlot())
    inner.submit(7, function="child", parent=[parent.attempt, parent.runs[0]])
    suspended(worker, 1, parent)
    child = worker.grant()
    assert child.runs[1] == 1
    waits = {"where": "waits", "slot": 0, "woken": False}
    (what, why), (deeper, where) = lines(ask_through(client, worker, number, waits))
    assert what == "waits for tasks" and "7 tasks have not ended: child-696e6e65-0[0] (at worker worker), " in why
    assert "child-696e6e65-0[1] (ready)" in why and why.endswith(" and 2 more")
    assert deeper == "granted of child-696e6e65-0[0]" and "worker worker" in where
    suspended(worker, 2, child)  # it waits for tasks of others
    grandchild = worker.grant()
    answer = ask_through(client, worker, number, waits)
    assert "child-696e6e65-0[0] (waits for tasks at worker worker)" in lines(answer)[0][1]
    told = lines(ask(inner, 3))
    assert told[0] == ("slot", "the slot of worker worker is taken, and no other may run it now")
    assert told[1][0] == "parent waits" and "parent-636c6965-0" in told[1][1]
    woken = ask_through(client, worker, number, {"where": "waits", "slot": 0, "woken": True})
    assert lines(woken)[0][0] == "goes on"
    worker.done(grandchild)
    inner.hear(messages.Finished)
    worker.inbox.clear()


def test_a_task_without_a_process_is_told_who_has_them(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    client.submit(function="parent")
    suspended(worker, 1, worker.grant())
    worker.say(messages.Room(EPOCH, 2, 0))
    number = client.submit(function="other")
    ((what, why),) = lines(ask(client, number))
    assert what == "processes" and "worker worker has no process for it" in why
    worker.hears_nothing()


def test_a_suspect_is_told_of_what_and_what_keeps_it_from_a_worker(dialogue: Dialogue) -> None:
    client = dialogue.client()
    client.submit(1, function="one")
    client.submit(1, function="two")
    for name in ("first", "second"):
        lost = dialogue.worker(name, slots=2)
        lost.grant(), lost.grant()
        lost.disconnect()
    assert lines(ask(client, 0))[0][0] == "no worker"
    worker = dialogue.worker("third", slots=2)
    worker.grant()
    rows = {number: dialogue.ledger.client_of_peer[client.peer].row(number) for number in (0, 1)}
    waits = next(number for number, row in rows.items() if dialogue.ledger.table.state[row] == READY)
    (what, why), (also, charge), *_ = lines(ask(client, waits))
    assert what == "suspects" and "as there is one at worker third" in why
    assert also == "suspect" and "its worker ended once while it ran (worker second)" in charge
    marked = client.submit(function="three")
    worker.grant()
    worker.hears_nothing()
    worker.disconnect()
    fourth = dialogue.worker("fourth")
    fourth.grant()
    assert "it was at a worker when that ended" in dict(lines(ask(client, marked)))["suspect"]


def test_an_agent_that_is_silent_delays_the_answer_by_a_few_seconds_only(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    number = client.submit()
    worker.grant()
    client.say(messages.Query(1, "explain", number))
    order = worker.hear(messages.Order)
    dialogue.wait(1.5)
    client.hears_nothing()
    dialogue.wait(2.0)
    answer = client.hear(messages.Answer).result
    assert lines(answer)[0][0] == "silent worker"
    worker.say(messages.Ordered(EPOCH, order.request, "", {"where": "gone"}))  # too late, and harmless
    dialogue.wait(4.0)
    assert lines(ask(client, number))[0][0] == "silent worker"  # it is not asked again


def test_a_task_that_moves_on_while_its_agent_is_asked_is_explained_as_it_then_is(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("a")
    number = client.submit()
    grant = worker.grant()
    client.say(messages.Query(1, "explain", number))
    order = worker.hear(messages.Order)
    worker.done(grant)
    worker.say(messages.Ordered(EPOCH, order.request, "", {"where": "gone"}))
    client.finished()
    assert client.hear(messages.Answer).result["state"] == "finished"


def test_a_worker_lost_while_it_is_asked_leaves_the_task_ready_with_its_past(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("a")
    number = client.submit()
    worker.grant()
    client.say(messages.Query(1, "explain", number))
    worker.disconnect()
    worker.inbox.clear()
    answer = client.hear(messages.Answer).result
    assert answer["state"] == "ready"
    assert lines(answer)[1] == ("before: run lost", "0 s ago: worker a at tcp://a:1 is gone")


def test_a_failure_names_who_failed_first(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker()
    first = client.submit()
    last = client.submit(function="g", inputs=[[first]])
    worker.run_failed(worker.grant(), type="ValueError", message="no")
    client.failed(first), client.failed(last)
    assert lines(ask(client, first)) == [("exception", "0 s ago at worker worker, exception: ValueError: no")]
    answer = ask(client, last)
    assert answer["state"] == "failed"
    assert lines(answer)[0] == ("failed input", "f-636c6965-0 failed first, and this task needs its value")
    client.cancel(client.submit())
    worker.inbox.clear(), client.inbox.clear()
    assert ask(client, 2)["state"] == "cancelled"


def test_what_has_ended_says_where_its_value_is(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("w")
    number = client.submit()
    taker = client.submit(function="g", inputs=[[number]])
    worker.done(worker.grant(), nbytes=2048)
    grant = worker.grant()
    client.finished()
    assert lines(ask(client, number)) == [("finished", "its value of 2.00 KiB is at worker w")]
    offered = client.offer([100])
    assert "in the memory of client client" in lines(ask(client, offered))[0][1]
    client.release(number)
    worker.done(grant)
    client.inbox.clear(), worker.inbox.clear()
    assert ask(client, {"key": task_key("f", client.client_id, -1, number)})["state"] == "released"
    assert ask(client, taker)["state"] == "finished"
    assert ask(client, 999)["state"] == "forgotten"


def test_any_client_may_ask_by_key(dialogue: Dialogue) -> None:
    client, other = dialogue.client("first"), dialogue.client("other")
    client.submit(5)
    own = client.submit(key="my-own key")
    assert ask(other, {"key": task_key("f", client.client_id, 0, 3)})["state"] == "ready"
    assert ask(other, {"key": "my-own key"})["key"] == "my-own key"
    for key in ("", "f", task_key("g", client.client_id, 0, 3), task_key("f", client.client_id, 0, 77), "f-00000000-1"):
        assert ask(other, {"key": key}) == {**ask(other, {"key": key}), "state": "forgotten", "key": key}
    client.release(own)
    assert ask(other, {"key": "my-own key"})["state"] == "forgotten"
    for nonsense in (None, "text", {"key": 3}, [1]):
        other.say(messages.Query(5, "explain", nonsense))
        assert "takes a number" in other.hear(messages.Answer).error


def test_a_key_is_searched_for_in_steps(dialogue: Dialogue, monkeypatch: Any) -> None:
    monkeypatch.setattr(inquiries, "RUNS_PER_STEP", 3)
    client, other = dialogue.client("first"), dialogue.client("other")
    for _ in range(10):
        client.submit()
    client.submit(key="late")
    other.say(messages.Query(1, "explain", {"key": "late"}))
    other.say(messages.Query(2, "explain", {"key": "nowhere"}))
    other.hears_nothing()
    dialogue.wait(0.1)
    answers = {answer.request: answer.result["state"] for answer in (other.hear(messages.Answer) for _ in range(2))}
    assert answers == {1: "ready", 2: "forgotten"}
    assert not dialogue.scheduler.inquiries.searching


# ------------------------------------------------------------------ stories


def steps(story: Any) -> list[str]:
    return [entry["what"] for entry in story["entries"]]


def test_a_story_tells_of_what_is_rare_and_of_the_present(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("a")
    number = client.submit(retries=1)
    grant = worker.grant()
    dialogue.now += 1.0
    worker.run_failed(grant, type="ValueError", message="no")
    second = worker.grant()
    dialogue.now += 2.0
    found = {"where": "slot", "slot": 0, "ahead": 0, "seconds": 1.5, "stopping": ""}
    story = ask_through(client, worker, number, found, "story")
    assert [(entry["what"], entry["ago"]) for entry in story["entries"]] == [
        ("submitted", 3.0), ("run failed", 2.0), ("granted", 2.0), ("started", 1.5)
    ]  # fmt: skip
    assert story["entries"][1]["why"] == "at worker a: ValueError: no"
    worker.done(second)
    client.finished()
    story = ask(client, number, "story")
    assert steps(story) == ["submitted", "run failed", "finished"] and story["entries"][-1]["ago"] is None
    assert "20,000" in story["not_kept"]


def test_a_story_tells_of_losses_and_of_the_failure(dialogue: Dialogue) -> None:
    client, worker = dialogue.client(), dialogue.worker("a")
    number = client.submit()
    worker.done(worker.grant())
    client.finished()
    worker.disconnect()
    client.reset(number)
    following = dialogue.worker("b")
    following.run_failed(following.grant(), "died", signal=9, message="it ended with signal 9", lines="last words")
    following.run_failed(following.grant(), "exception", type="E", message="x")
    client.failed(number)
    story = ask(client, number, "story")
    assert steps(story) == ["submitted", "value lost", "needed again", "slot died", "failed"]
    assert story["entries"][3]["why"] == "at worker b: it ended with signal 9; it last wrote: last words"
    client.say(messages.Retry([number, 1]))
    client.reset(number)
    following.grant()
    found = {"where": "queued", "ahead": 0, "ready": 0, "slots": 1, "busy": []}
    assert steps(ask_through(client, following, number, found, "story"))[-3:] == ["retried", "needed again", "granted"]


def test_the_history_is_bounded_and_says_so() -> None:
    history = History()
    for row in range(EVENTS_KEPT + 1):
        history.note(1.0, row, 0, "something", "x" * 1000)
    assert not history.of(0, 0) and not history.is_complete
    (kept,) = history.of(EVENTS_KEPT, 0)
    assert len(kept.why) == 300
    assert not history.of(EVENTS_KEPT, 1)


def test_a_plain_task_leaves_nothing_in_the_history() -> None:
    dialogue = Dialogue(Settings())
    client, worker = dialogue.client(), dialogue.worker(slots=4)
    client.submit(100)
    while worker.inbox:
        worker.done(worker.grant())
    client.release(0, 100)
    assert not dialogue.ledger.history._events
