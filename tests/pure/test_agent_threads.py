"""Slots that are threads of one process: what the agent does about stopping, death and renewal."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, ModelSlot, grant

THREADS = 3


class ThreadModel(AgentModel):
    """The same with the threads of a process starting and ending as one."""

    def __init__(self, slots: int = THREADS, **keywords: Any) -> None:
        self.left: list[tuple[int, int]] = []
        super().__init__(slots, threads=THREADS, **keywords)

    def start_slots(self) -> None:
        """Every process that is being started gets ready, and with it each of its slots."""
        starting, self.starting = self.starting, []
        for first in starting:
            for slot in range(first, first + (THREADS if first < self.seats else 1)):
                self.slots[slot] = ModelSlot()
                self.feed(events.SlotReady(slot))

    def die(self, slot: int, signal: int = 11, exit_code: int = -1, lines: str = "") -> None:
        """The process of that slot ends."""
        members = range(slot, slot + (THREADS if slot < self.seats else 1))
        for member in members:
            self.read(member)
        unclaimed, *beside = (list(self.slots.pop(member).pipe) for member in members)
        self.feed(events.SlotExited(slot, unclaimed, exit_code, signal, lines, 1000, False, tuple(beside)))

    def _perform(self, effect: events.Effect, pending: Any) -> None:
        if isinstance(effect, events.LeaveThread):
            self.left.append((effect.slot, effect.sequence))
        elif not isinstance(effect, events.StoreModule):
            super()._perform(effect, pending)


def running(model: AgentModel, *slots: int) -> list[int]:
    """Have these slots claim; their tasks' arguments."""
    for slot in slots:
        if not model.slots[slot].claimed:
            model.slots[slot].claim()
    return [int(model.slots[slot].argument()) for slot in slots]


def sent(model: AgentModel, kind: type[Any]) -> list[Any]:
    found = [message for message in model.sent if isinstance(message, kind)]
    model.sent.clear()
    return found


def test_a_process_is_started_once_for_all_its_threads() -> None:
    model = ThreadModel(2 * THREADS, start=False)
    model.feed(events.Started())
    assert model.starting == [0, THREADS]


def test_one_thread_of_each_process_gets_a_task_before_a_second() -> None:
    model = ThreadModel(2 * THREADS)
    model.tell(grant(1, 2))
    assert [slot for slot, it in model.slots.items() if it.pipe] == [0, THREADS]


def test_who_does_not_answer_is_left_and_not_killed() -> None:
    model = ThreadModel()
    model.tell(grant(1, 3, timeout_seconds=5.0))
    running(model, 0, 1, 2)
    model.finish(1)
    model.finish(2)
    model.wait(5.5)
    assert model.slots[0].interrupted == [1]
    model.wait(1.0)
    assert model.left == [(0, 1)]
    assert model.killed == []
    assert "it is left to itself" in model.said[-1]
    model.sent.clear()
    model.report(0, [0.0, "interrupted", b"", {"message": "left"}])
    assert [failed.kind for failed in sent(model, messages.RunFailed)] == ["timeout"]
    model.tell(grant(2, 3))
    assert [bool(model.slots[slot].pipe) for slot in range(3)] == [True] * 3


def test_a_process_with_threads_left_is_replaced_when_it_idles() -> None:
    test = ThreadModel()
    test.tell(grant(1, 2, timeout_seconds=5.0))
    running(test, 0, 1)
    test.wait(6.5)
    test.report(0, [0.0, "interrupted", b"", {"message": "left"}])
    test.wait(2.0)
    assert test.killed == [0]  # the other did not even take note of being left: the whole process is stuck
    test.die(0, 9)
    test.start_slots()
    test.killed.clear()
    test.tell(grant(3, 1, timeout_seconds=5.0))
    running(test, 0)
    test.wait(6.5)
    test.report(0, [0.0, "interrupted", b"", {"message": "left"}])
    test.wait(1.5)
    assert test.killed == [0]  # it idles


def test_who_is_stopped_with_its_process_is_charged_and_the_others_run_again() -> None:
    model = ThreadModel()
    model.tell(grant(1, 2))
    model.tell(grant(2, 1, timeout_seconds=5.0, first_row=10))
    running(model, 0, 1, 2)
    model.wait(7.5)
    assert model.killed == [0]
    model.sent.clear()
    model.die(0, 9)
    assert [(failed.kind, failed.attempt) for failed in sent(model, messages.RunFailed)] == [("timeout", 2)]
    model.start_slots()
    assert sum(len(slot.pipe) for slot in model.slots.values()) == 2


def test_a_death_charges_all_that_ran() -> None:
    model = ThreadModel()
    model.tell(grant(1, 4))
    running(model, 0, 1)
    model.sent.clear()
    model.die(0)
    failed = sent(model, messages.RunFailed)
    assert [(one.kind, one.row) for one in failed] == [("died", 0), ("died", 1)]
    assert "and 1 other at once ended with signal 11" in failed[0].details["message"]


def test_a_thread_whose_task_only_waited_is_charged_as_one_that_waited() -> None:
    model = ThreadModel()
    model.tell(grant(1, 2))
    running(model, 0, 1)
    model.feed(events.SlotWaits(0, model.slots[0].claimed))
    model.sent.clear()
    model.die(0)
    failed = {one.row: one.details.get("waiting", False) for one in sent(model, messages.RunFailed)}
    assert failed == {0: True, 1: False}


def died(attempt: int, count: int, first_row: int = 0) -> messages.Grant:
    """A grant of tasks that have died once."""
    it = grant(attempt, count, first_row=first_row)
    died = [number for row in range(first_row, first_row + count) for number in (row, 1)]
    return it._replace(origin=[*it.origin, died])


def test_what_has_died_runs_in_a_process_with_one_thread() -> None:
    model = ThreadModel()
    model.tell(died(1, 1))
    assert not any(slot.pipe for slot in model.slots.values())
    assert model.starting == [THREADS]
    model.tell(grant(2, 1, first_row=5))  # does not wait for it
    assert len(model.slots[0].pipe) == 1
    model.start_slots()
    assert len(model.slots[THREADS].pipe) == 1
    model.finish(THREADS)


def test_a_process_is_renewed_when_all_its_threads_have_ended() -> None:
    model = ThreadModel()
    model.tell(grant(1, 2))
    running(model, 0, 1)
    model.tell(messages.Order(1, "upload", {"name": "module.py", "data": b"x = 1"}))
    model.feed(events.ModuleStored(1, ""))
    model.finish(0)
    assert model.killed == []
    model.tell(grant(2, 1, first_row=5))
    model.finish(1)
    assert model.killed == [0]


@pytest.mark.parametrize("slot", [0, 2])
def test_output_is_kept_under_the_process(slot: int) -> None:
    model = ThreadModel()
    model.tell(grant(1, 3))
    running(model, 0, 1, 2)
    model.feed(events.SlotWrote(0, [events.Piece(0, 1, slot, b"a line\n"), events.Piece(0, 0, 0, b"nobody's")], 1.0))
    model.sent.clear()
    model.finish(slot)
    kinds = [type(message) for message in model.sent if not isinstance(message, messages.AgentHeartbeat)]
    assert kinds[0] is messages.Output
    assert [entry[2] for task in sent(model, messages.Output)[0].tasks for entry in task[2]] == [b"a line\n"]
