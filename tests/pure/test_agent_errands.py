"""What an agent does beside tasks: errands, uploaded modules, slots that are renewed."""

from __future__ import annotations

from typing import Any

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, grant, names_of


class ErrandModel(AgentModel):
    """Notes what it is asked to do for errands and uploads."""

    def __init__(self, slots: int = 2) -> None:
        self.asides: list[Any] = []
        super().__init__(slots)

    def _perform(self, effect: events.Effect, pending: Any) -> None:
        if isinstance(effect, events.StartErrand | events.EndErrand | events.StoreModule):
            self.asides.append(effect)
        else:
            super()._perform(effect, pending)

    def order(self, request: int, what: str, **detail: Any) -> None:
        self.tell(messages.Order(request, what, detail))

    def run(self, request: int) -> None:
        self.order(request, "run", name="f", function=b"code", arguments=b"args")


def test_an_errand_is_started_answered_and_ended() -> None:
    model = ErrandModel()
    model.run(1)
    assert model.asides == [events.StartErrand(1, "f", b"code", b"args")]
    model.feed(events.ErrandReported(1, [1, 0.1, b"value"]))
    answer = model.expect(messages.Ordered)
    assert (answer.request, answer.error, answer.result) == (1, "", {"data": b"value"})
    assert model.asides[1:] == [events.EndErrand(1)]
    model.feed(events.ErrandEnded(1, "signal 9", ""))
    assert model.silent


def test_an_errand_that_fails_or_dies_is_answered_with_that() -> None:
    model = ErrandModel()
    model.run(1)
    model.run(2)
    model.feed(events.ErrandReported(1, [1, 0.1, "exception", b"error", {"type": "KeyError"}]))
    assert model.expect(messages.Ordered).result["kind"] == "exception"
    model.feed(events.ErrandEnded(2, "signal 11", "last words"))
    died = model.expect(messages.Ordered).result
    assert (died["kind"], died["details"]["lines"]) == ("died", "last words")
    assert "signal 11" in died["details"]["message"]


def test_so_many_errands_at_once_and_no_more() -> None:
    model = ErrandModel()
    for request in range(1, 12):
        model.run(request)
    assert len(model.asides) == 8
    model.feed(events.ErrandReported(3, [1, 0.1, b"value"]))
    assert [effect.request for effect in model.asides[8:]] == [3, 9]
    model.feed(events.ErrandEnded(4, "signal 9", ""))
    assert model.asides[-1].request == 10


def test_no_task_starts_while_a_module_is_being_stored_and_slots_are_renewed_then() -> None:
    model = ErrandModel(slots=2)
    model.tell(grant(1, 1))
    slot = next(index for index, own in model.slots.items() if own.pipe)
    model.slots[slot].claim()
    model.order(1, "upload", name="m.py", data=b"code")
    assert model.asides == [events.StoreModule(1, "m.py", b"code")]
    model.tell(grant(2, 1, first_row=9))
    assert not any(own.pipe for own in model.slots.values())
    model.feed(events.ModuleStored(1, ""))
    assert model.expect(messages.Ordered).error == ""
    idle = 1 - slot
    assert model.killed == [idle]
    model.die(idle, signal=9)
    model.start_slots()
    assert model.finish(idle) == b"0"  # the new process has the new module
    model.finish(slot)
    assert model.killed == [idle, slot]
    model.die(slot, signal=9)
    assert model.starting == [slot]


def test_a_module_that_cannot_be_stored_renews_nothing() -> None:
    model = ErrandModel()
    model.order(1, "upload", name="../m.py", data=b"code")
    model.feed(events.ModuleStored(1, "no plain file name"))
    assert model.expect(messages.Ordered).error == "no plain file name"
    assert model.killed == []
    model.tell(grant(1, 1))
    model.work()


def test_a_renewed_slot_gives_back_what_lies_in_its_pipe() -> None:
    model = ErrandModel(slots=1)
    model.tell(grant(1, 1))
    model.finish(0, seconds=0.00001)
    model.tell(grant(2, 50))
    model.slots[0].claim()
    assert len(model.slots[0].pipe) == 49
    model.order(1, "upload", name="m.py", data=b"code")
    model.feed(events.ModuleStored(1, ""))
    assert not model.slots[0].pipe
    model.finish(0)
    model.die(0, signal=9)
    model.start_slots()
    assert model.work() == 49


def test_a_restart_replaces_every_process_and_loses_no_task_that_was_not_stopped() -> None:
    model = ErrandModel(slots=2)
    model.tell(grant(1, 2))
    for own in model.slots.values():
        own.claim()
    model.tell(messages.Stop([1, 0]))
    model.order(1, "restart")
    assert model.killed == [0, 1]
    model.die(0, signal=9)
    model.die(1, signal=9)
    model.start_slots()
    model.expect(messages.Ordered)
    assert names_of(model.expect(messages.RunFailed)) == [(1, 0)]
    assert model.work() == 1
    assert names_of(model.expect(messages.Done)) == [(1, 1)]
