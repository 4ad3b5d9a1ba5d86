"""Where the agent says that a run is: fetching, queued, in a slot (running or behind another), gone."""

from __future__ import annotations

from typing import Any

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import EPOCH, AgentModel, grant


class Asker:
    """Orders that ask where runs are."""

    def __init__(self, model: AgentModel) -> None:
        self.model = model
        self._requests = 0

    def __call__(self, attempt: int, row: int) -> Any:
        self._requests += 1
        self.model.sent.clear()
        self.model.tell(messages.Order(self._requests, "whereabouts", [attempt, row]))
        (answer,) = self.model.sent
        assert isinstance(answer, messages.Ordered) and answer.request == self._requests and not answer.error
        return answer.result


def test_a_run_goes_from_the_queue_through_a_slot_and_is_gone() -> None:
    model = AgentModel(slots=1)
    ask = Asker(model)
    model.tell(grant(1, 3))
    model.slots[0].claim()
    model.now += 2.0
    assert ask(1, 0) == {"where": "slot", "slot": 0, "ahead": 0, "seconds": 2.0, "stopping": "", "is_thread": False}
    assert ask(1, 2) == {"where": "queued", "ahead": 1, "ready": 1, "slots": 1, "busy": [2.0]}
    assert ask(1, 3) == ask(2, 0) == {"where": "gone"}
    model.finish(0)
    assert ask(1, 0) == {"where": "gone"}
    assert ask(1, 1)["where"] == "slot"


def test_what_stands_in_a_pipe_is_counted_and_gaps_are_not() -> None:
    model = AgentModel(slots=1)
    ask = Asker(model)
    model.tell(grant(1, 20))
    for _ in range(2):
        model.finish(0, seconds=0.0001)
    model.slots[0].claim()
    piped = [row for row in range(20) if ask(1, row)["where"] == "slot"]
    assert len(piped) > 3
    assert [ask(1, row)["ahead"] for row in piped] == list(range(len(piped)))
    model.tell(messages.Stop([1, piped[1]]))  # all are taken out of the pipe and given again, under other sequences
    assert ask(1, piped[1])["where"] == "gone"
    again = [row for row in piped if ask(1, row)["where"] == "slot"]
    assert [ask(1, row)["ahead"] for row in again] == list(range(len(again)))


def test_missing_inputs_are_named_with_who_is_asked() -> None:
    model = AgentModel(slots=1)
    values = [[7, 3, 100, ["tcp://a:1"]], [8, 3, 100, []]]
    model.tell(grant(5, 1, values=values, needs=[[0, 1]]))
    assert Asker(model)(5, 0) == {
        "where": "fetching",
        "lacking": 2,
        "inputs": [[7, 3, 100, "tcp://a:1"], [8, 3, 100, ""]],
        "no_room": "",
    }


def test_a_run_that_was_asked_to_stop_says_why() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.slots[0].claim()
    model.tell(messages.Stop([1, 0]))
    assert Asker(model)(1, 0)["stopping"] == "cancelled"


def test_slots_that_are_not_up_are_counted() -> None:
    model = AgentModel(slots=2, start=False)
    model.feed(events.Started())
    model.tell(messages.WorkerWelcome(EPOCH, 0, {}))
    model.tell(grant(1, 2))
    ask = Asker(model)
    assert ask(1, 1) == {"where": "queued", "ahead": 1, "ready": 0, "slots": 2, "busy": []}
