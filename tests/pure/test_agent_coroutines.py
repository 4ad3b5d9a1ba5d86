"""What the agent's machine does with tasks that are coroutines: who gets them, what stops and deaths cost others."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from cluster.wire import messages
from cluster.worker import events
from cluster.worker.coroutines import FIRST_COROUTINES
from tests.pure.agent_model import AgentModel, grant, names_of

FIRST = FIRST_COROUTINES


def coroutines(attempt: int, rows: int = 1, died: list[int] | None = None, **options: Any) -> messages.Grant:
    """A grant of coroutines; `died`: flat `[row, deaths, …]`."""
    made = grant(attempt, rows, coroutine=True, **options)
    return made._replace(origin=[*made.origin, died or []])


def begin_all(model: AgentModel, process: int = FIRST) -> list[int]:
    """The process claims all that is in its pipe; the sequences."""
    begun = list(model.slots[process].pipe)
    model.slots[process].pipe.clear()
    return begun


def end(model: AgentModel, sequence: int, process: int = FIRST, rest: list[Any] | None = None) -> None:
    """A coroutine reports."""
    model.feed(events.SlotReports(process, [[sequence, *(rest or [0.001, b"v"])]]))


def model_with(rows: int, **options: Any) -> AgentModel:
    """An agent of one slot with so many coroutines under way, their process up."""
    model = AgentModel(slots=1)
    model.tell(coroutines(1, rows, **options))
    model.start_slots()
    return model


def sent(model: AgentModel, kind: type[Any]) -> list[Any]:
    """All messages of a kind, taken out."""
    found = [message for message in model.sent if isinstance(message, kind)]
    model.sent.clear()
    return found


# --------------------------------------------------------------------------- giving


def test_the_first_starts_a_process_of_their_own_and_all_are_given_at_once() -> None:
    model = AgentModel(slots=1)
    model.tell(coroutines(1, 50))
    assert model.starting == [FIRST] and not model.slots[0].pipe
    model.start_slots()
    assert model.slots[FIRST].runs_coroutines and len(model.slots[FIRST].pipe) == 50


def test_a_plain_task_goes_to_its_slot_whatever_they_do() -> None:
    model = model_with(50)
    begin_all(model)
    model.tell(grant(2, 1))
    assert model.finish(0) == b"0"
    assert names_of(sent(model, messages.Done)[0]) == [(2, 0)]


def test_they_report_in_any_order() -> None:
    model = model_with(3)
    first, second, third = begin_all(model)
    for sequence in (third, first, second):
        end(model, sequence)
    assert [names_of(done) for done in sent(model, messages.Done)] == [[(1, 2)], [(1, 0)], [(1, 1)]]
    assert not model.agent.unanswered_count


def test_a_well_filled_process_gets_company_up_to_one_a_slot() -> None:
    model = AgentModel(slots=2)
    model.tell(coroutines(1, 700))
    model.start_slots()
    assert [len(model.slots[FIRST].pipe), model.starting] == [100, [FIRST + 1]]
    model.start_slots()
    assert len(model.slots[FIRST].pipe) + len(model.slots[FIRST + 1].pipe) == 700
    assert min(len(model.slots[process].pipe) for process in (FIRST, FIRST + 1)) >= 300


def test_large_values_of_two_do_not_take_one_anothers_segments() -> None:
    model = model_with(2)
    one, other = begin_all(model)
    model.slots[FIRST].claimed = one
    model.feed(events.SegmentAsked(FIRST, one, 1 << 20))
    end(model, other, rest=[0.001, "exception", b"", {}])
    assert model.segments == {model.slots[FIRST].segment}
    end(model, one, rest=[0.001, "segment", 1 << 20, []])
    assert model.segments


# --------------------------------------------------------------------------- stopping


def test_one_that_takes_note_of_its_stop_is_waited_for() -> None:
    model = model_with(2)
    one, other = begin_all(model)
    model.tell(messages.Stop([1, 0]))
    assert model.slots[FIRST].interrupted == [one]
    model.feed(events.CoroutineStopping(FIRST, one))
    model.wait(60.0)
    assert not model.killed
    end(model, one, rest=[0.001, "interrupted", b"", {}])
    assert [failed.kind for failed in sent(model, messages.RunFailed)] == ["cancelled"]
    end(model, other)
    assert not model.agent.unanswered_count


def test_one_whose_loop_is_stuck_costs_its_process_and_the_others_run_again_uncharged() -> None:
    model = model_with(3)
    begin_all(model)
    model.tell(messages.Stop([1, 1]))
    model.wait(2.0)
    assert model.killed == [FIRST]
    model.die(FIRST, signal=9)
    assert [(failed.kind, failed.row) for failed in sent(model, messages.RunFailed)] == [("cancelled", 1)]
    model.start_slots()
    assert len(model.slots[FIRST + 1].pipe) == 2


def test_one_that_takes_too_long_is_stopped_and_says_why() -> None:
    model = model_with(2, timeout_seconds=5.0)
    one, other = begin_all(model)
    end(model, other)
    model.wait(4.9)
    assert not model.slots[FIRST].interrupted
    model.wait(0.2)
    assert model.slots[FIRST].interrupted == [one]
    model.feed(events.CoroutineStopping(FIRST, one))
    end(model, one, rest=[5.0, "interrupted", b"", {}])
    assert [failed.kind for failed in sent(model, messages.RunFailed)] == ["timeout"]


def test_one_that_has_no_process_yet_is_withdrawn() -> None:
    model = AgentModel(slots=1)
    model.tell(coroutines(1, 3))
    model.tell(messages.Stop([1, 1]))
    assert [(failed.kind, failed.row) for failed in sent(model, messages.RunFailed)] == [("cancelled", 1)]
    model.start_slots()
    assert len(model.slots[FIRST].pipe) == 2


# --------------------------------------------------------------------------- deaths


def test_a_death_charges_all_that_had_begun_and_no_other() -> None:
    model = model_with(3)
    model.slots[FIRST].pipe.popleft()
    model.slots[FIRST].pipe.popleft()
    model.die(FIRST)
    failed = sent(model, messages.RunFailed)
    assert [(one.kind, one.row) for one in failed] == [("died", 0), ("died", 1)]
    assert "and 1 other at once ended with signal 11" in failed[0].details["message"]
    model.start_slots()
    assert len(model.slots[FIRST + 1].pipe) == 1


def test_those_that_died_are_kept_apart() -> None:
    model = AgentModel(slots=1)
    model.tell(coroutines(1, 25, died=[row for index in range(24) for row in (index, 1 if index < 20 else 2)]))
    for _ in range(8):
        model.start_slots()
    sizes = sorted(len(slot.pipe) for process, slot in model.slots.items() if process >= FIRST)
    assert sizes == [1, 1, 1, 1, 1, 10, 10]


def test_a_process_for_those_that_died_ends_when_it_has_done_its_work() -> None:
    model = model_with(1, died=[0, 2])
    end(model, begin_all(model)[0])
    assert model.killed == [FIRST]


def test_a_process_that_does_not_get_ready_is_tried_again_after_a_pause() -> None:
    model = AgentModel(slots=1)
    model.tell(coroutines(1, 1))
    model.starting.clear()
    model.feed(events.SlotExited(FIRST, [], 1, -1, "no such module", 0))
    assert not model.starting and "no such module" in model.said[0]
    model.wait(0.2)
    assert model.starting == [FIRST + 1]


# --------------------------------------------------------------------------- the end


def test_a_worker_that_drains_hands_back_what_has_not_begun_and_waits_for_the_rest() -> None:
    model = model_with(2)
    begun = begin_all(model)
    model.die(FIRST)
    model.sent.clear()
    model.tell(coroutines(2, 2))
    model.feed(events.DrainAsked())
    assert names_of(sent(model, messages.Recalled)[0]) == [(2, 1), (2, 0)]
    assert begun and model.closed is not None


@pytest.mark.parametrize("seed", range(30))
def test_each_is_answered_for_once_whatever_happens(seed: int) -> None:
    draw = random.Random(seed)
    model = AgentModel(slots=draw.choice((1, 2)), drain_seconds=1.0)
    granted: list[tuple[int, int]] = []
    begun: dict[int, list[int]] = {}
    for step in range(150):
        up = [process for process in model.slots if process >= FIRST]
        choice = draw.random()
        if choice < 0.15:
            rows, options = draw.choice((1, 5, 150)), {"timeout_seconds": 2.0} if draw.random() < 0.3 else {}
            model.tell(coroutines(step + 1, rows, died=[0, draw.choice((0, 1, 2))], **options))
            granted += [(step + 1, row) for row in range(rows)]
        elif choice < 0.35:
            model.start_slots()
        elif choice < 0.65 and up:
            process = draw.choice(up)
            begun.setdefault(process, []).extend(begin_all(model, process))
            draw.shuffle(begun[process])
            for sequence in [begun[process].pop() for _ in range(len(begun[process]) // 2)]:
                end(model, sequence, process)
        elif choice < 0.72 and up:
            model.die(process := draw.choice(up))
            begun.pop(process, None)
        elif choice < 0.85 and granted:
            model.tell(messages.Stop(list(draw.choice(granted))))
        else:
            model.wait(draw.choice((0.01, 0.3, 1.5)))
        for process in [process for process in model.killed if process in model.slots]:
            model.die(process, signal=9)
            begun.pop(process, None)
    model.feed(events.DrainAsked())
    while model.closed is None:
        model.wait(1.1)
        for process in list(model.slots):
            model.die(process, signal=9)
    answered = Counter(
        name for message in model.sent if isinstance(message, messages.Done) for name in names_of(message)
    )
    for kind in (messages.RunFailed, messages.Recalled):
        answered.update(name for message in model.sent if isinstance(message, kind) for name in names_of(message))
    assert answered == Counter(granted)
