"""How many local workers there should be: up at once, down late, and only by who has nothing to do."""

from __future__ import annotations

from cluster.deploy.adapting import BACKLOG_SECONDS, DOWN_AFTER_SECONDS, Adapting, Load, WorkerLoad

GB = 1_000_000_000


def workers(*loads: tuple[int, int]) -> list[WorkerLoad]:
    return [WorkerLoad(f"w{place}", *load) for place, load in enumerate(loads)]


def test_work_asks_for_workers_at_once_and_for_no_more_than_there_are_tasks() -> None:
    adapting = Adapting(1, 8, 2, GB)
    assert adapting.decide(0.0, Load(10 * BACKLOG_SECONDS, 1000, []), 1).workers == 5
    assert adapting.decide(0.1, Load(1000.0, 3, []), 1).workers == 2
    assert adapting.decide(0.2, Load(1e9, 10**6, []), 1).workers == 8
    assert adapting.decide(0.3, Load(0.001, 1, []), 0).workers == 1


def test_what_is_held_asks_for_room() -> None:
    held = workers((0, GB), (0, GB))
    assert Adapting(0, 8, 2, GB).decide(0.0, Load(0.0, 0, held), 2).workers == 4


def test_workers_go_when_they_were_not_needed_for_a_while_and_the_emptiest_first() -> None:
    adapting = Adapting(1, 8, 1, 100 * GB)
    there = workers((0, 500), (1, 0), (0, 100))
    busy, calm = Load(3 * BACKLOG_SECONDS, 3, there), Load(BACKLOG_SECONDS, 1, there)
    assert adapting.decide(0.0, busy, 3).retire == []
    assert adapting.decide(1.0, calm, 3).retire == []
    assert adapting.decide(DOWN_AFTER_SECONDS + 0.5, calm, 3).retire == []  # a moment ago they were all needed
    decision = adapting.decide(1.0 + 2 * DOWN_AFTER_SECONDS, calm, 3)
    assert decision.retire == ["w2", "w0"] and decision.workers == 1
    assert "ask for 1 workers" in decision.why


def test_a_burst_in_between_begins_the_wait_anew() -> None:
    adapting = Adapting(0, 4, 1, 100 * GB)
    there = workers((0, 0), (0, 0))
    for now in range(0, 40):
        load = Load(2 * BACKLOG_SECONDS, 2, there) if now % 7 == 0 else Load(0.0, 0, there)
        assert adapting.decide(float(now), load, 2).retire == []


def test_who_runs_something_stays_and_the_least_number_is_kept() -> None:
    adapting = Adapting(1, 4, 1, 100 * GB)
    for now in (0.0, 100.0, 200.0):
        decision = adapting.decide(now, Load(0.0, 0, workers((1, 0), (1, 0), (0, 0))), 3)
    assert decision.retire == ["w2"]
    for now in (300.0, 400.0):
        decision = adapting.decide(now, Load(0.0, 0, workers((0, 0))), 1)
    assert decision.retire == []
