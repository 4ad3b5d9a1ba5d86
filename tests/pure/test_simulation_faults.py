"""Faults planted into the machines, one at a time: a simulator that does not find each in some seeds is blind.

The product holds no switch for them: a test replaces a named function of a machine by one that is subtly wrong. Should
a function be renamed, its test fails here, and not by finding nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from cluster.scheduler import explain, placement, startable, unmet, wants, worker_desk
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.inquiries import Inquiries
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.linked import LinkedRows
from cluster.scheduler.machine import Scheduler
from cluster.scheduler.nesting_desk import NestingDesk
from cluster.scheduler.orders import Orders
from cluster.scheduler.ready import Bucket
from cluster.scheduler.spreading import Spreading
from cluster.scheduler.table import FINISHED, GRANTED, Table
from cluster.scheduler.worker_losses import WorkerLosses
from cluster.scheduler.worker_memory import WorkerMemory
from cluster.scheduler.workers import WorkerRecord
from cluster.session.machine import Session
from cluster.simulation import agents
from cluster.simulation.plan import Plan, draw_plan
from cluster.simulation.world import simulate
from cluster.wire import messages
from cluster.worker import nesting
from cluster.worker.events import SlotExited
from cluster.worker.ledger import Ledger as AgentLedger
from cluster.worker.nesting import Nesting
from cluster.worker.queue import Assignment, ReadyQueue
from cluster.worker.slots import Slot
from cluster.worker.supply import Supply
from cluster.worker.threads import Threads
from cluster.worker.workforce import Workforce
from tests.pure.planted_packing import PLANTED_PACKING
from tests.pure.planted_plans import (
    RIVALS,
    UNEQUAL_RIVALS,
    asking_plan,
    busy_plan,
    damaging_plan,
    deadly_plan,
    explaining_deadly_plan,
    explaining_nested_plan,
    explaining_plan,
    full_plan,
    impossible_plan,
    losing_plan,
    mortal_plan,
    nested_plan,
    popular_plan,
    referring_plan,
)

SEEDS = 400

Faulty = Callable[[pytest.MonkeyPatch], None]


def found_after(plan_of: Callable[[int], Plan]) -> tuple[int, str]:
    """How many seeds it takes to find a fault, and what was found."""
    for seed in range(SEEDS):
        fault = simulate(seed, plan_of(seed)).fault
        if fault:
            return seed + 1, fault
    pytest.fail(f"the planted fault was not found in {SEEDS} seeds")


# ------------------------------------------------------------------ between agents


def accepts_damaged_values(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(agents, "agree", lambda announced, data: True)


def forgets_who_waits_for_a_copy(patch: pytest.MonkeyPatch) -> None:
    def held(self: Spreading, row: int, worker: WorkerRecord) -> None:
        spread = self.ledger.spreads.get(row)
        if spread is not None:
            spread.under_way.pop(worker.index, None)
            if not spread.under_way and not spread.waiting:
                del self.ledger.spreads[row]

    patch.setattr(Spreading, "held", held)


def lets_the_last_copy_go(patch: pytest.MonkeyPatch) -> None:
    def drop_replicas(self: worker_desk.WorkerDesk, worker: WorkerRecord, message: Any) -> None:
        self.ledger.send(worker.peer, messages.DropAllowed(message.values, message.values))

    patch.setattr(worker_desk.WorkerDesk, "drop_replicas", drop_replicas)


# ------------------------------------------------------------------ the scheduler


def accepts_stale_completions(patch: pytest.MonkeyPatch) -> None:
    def accept(self: worker_desk.WorkerDesk, worker: WorkerRecord, attempt: int, row: int) -> bool:
        table = self.ledger.table
        worker.stopping.pop((attempt, row), None)
        if row >= len(table) or table.state[row] != GRANTED:
            return False
        grant = worker.grants.get(attempt)
        if grant is not None:
            self._account(worker, attempt, grant, 1)
        return True

    patch.setattr(worker_desk.WorkerDesk, "_accept", accept)


def counts_a_recall_without_its_list(patch: pytest.MonkeyPatch) -> None:
    original = worker_desk.WorkerDesk.recalled

    def recalled(self: worker_desk.WorkerDesk, now: float, worker: WorkerRecord, message: Any) -> None:
        table = self.ledger.table
        mine = [row for row in range(len(table)) if table.holder[row] == worker.index]
        granted = [row for row in mine if table.state[row] == GRANTED]
        surplus = granted[worker.slots :] if message.request >= 0 else []
        names = [name for row in surplus for name in (table.attempt[row], row)]
        original(self, now, worker, message._replace(names=names))

    patch.setattr(worker_desk.WorkerDesk, "recalled", recalled)


def splits_arguments_off_by_one(patch: pytest.MonkeyPatch) -> None:
    original = placement._arguments_of

    def arguments_of(run: Any, spans: list[tuple[int, int]]) -> tuple[bytes, bytes]:
        moved = [(start - (start > run.start), stop - (start > run.start)) for start, stop in spans]
        return original(run, moved)

    patch.setattr(placement, "_arguments_of", arguments_of)


def splits_a_stretch_off_by_one(patch: pytest.MonkeyPatch) -> None:
    original = Bucket._move

    def move(self: Bucket, victim: int, thief: int, limit: int) -> None:
        original(self, victim, thief, limit)
        span = self.spans[thief][-1]
        if span[1] - span[0] > 2:
            span[1] -= 1

    patch.setattr(Bucket, "_move", move)


def loses_a_release(patch: pytest.MonkeyPatch) -> None:
    original = wants.Wants.defer

    def defer(self: wants.Wants, what: str, client: ClientRecord, runs: list[int]) -> None:
        original(self, what, client, runs[:-2] if what == "release" and len(runs) > 4 else runs)

    patch.setattr(wants.Wants, "defer", defer)


def releases_recipes(patch: pytest.MonkeyPatch) -> None:
    original = Table.drop_heirs

    def drop_heirs(self: Table, sources: Iterable[int]) -> list[int]:
        sources = list(sources)
        return original(self, sources) + original(self, [source for source in sources if self.heirs[source]])

    patch.setattr(Table, "drop_heirs", drop_heirs)


def misses_the_wake_up_of_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "next_wakeup", float("inf"))


def misses_the_wake_up_of_a_dependent(patch: pytest.MonkeyPatch) -> None:
    original = LinkedRows.make_ready

    def make_ready(self: LinkedRows, woken: Iterable[int], latest: int = -1) -> None:
        found = list(woken)
        original(self, found[:-1] if len(found) > 4 else found, latest)

    patch.setattr(LinkedRows, "make_ready", make_ready)


def misses_a_dependent_of_what_is_lost(patch: pytest.MonkeyPatch) -> None:
    original = Table.rows_of_fans

    def rows_of_fans(self: Table, row: int) -> Any:
        found = list(original(self, row))
        return iter(found[:-1] if len(found) > 4 else found)

    patch.setattr(Table, "rows_of_fans", rows_of_fans)


def shares_by_tasks_and_not_by_time(patch: pytest.MonkeyPatch) -> None:
    original = ClientRecord.charge
    patch.setattr(ClientRecord, "charge", lambda self, now, seconds: original(self, now, 0.001))


def loses_the_futures_inside_bytes_that_were_sent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lifecycle, "_has_sent_bytes", lambda self, row: False)


def loses_the_futures_inside_a_value(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(worker_desk.WorkerDesk, "_rows_of", lambda self, references: [])


def keeps_the_attempt_after_a_loss(patch: pytest.MonkeyPatch) -> None:
    original = Lifecycle.requeue

    def requeue(self: Lifecycle, row: int) -> None:
        self.ledger._attempts -= 1
        original(self, row)

    patch.setattr(Lifecycle, "requeue", requeue)


def gives_resources_back_twice(patch: pytest.MonkeyPatch) -> None:
    original = WorkerRecord.end

    def end(self: WorkerRecord, attempt: int, count: int) -> float:
        lane = self.grants[attempt].run.lane
        for name, amount in () if lane is None else lane.restriction.resources:
            self.available[name] += amount * count
        return original(self, attempt, count)

    patch.setattr(WorkerRecord, "end", end)


def forgets_whom_to_tell_of_a_reset(patch: pytest.MonkeyPatch) -> None:
    original = Ledger.tell_wanting
    patch.setattr(
        Ledger, "tell_wanting", lambda self, row, failure: original(self, row, failure) if failure is not None else None
    )


def believes_a_worker_that_is_gone(patch: pytest.MonkeyPatch) -> None:
    original = WorkerLosses._rows_at
    patch.setattr(WorkerLosses, "_rows_at", lambda self, index: list(original(self, index))[1:])


def frees_values_that_are_needed(patch: pytest.MonkeyPatch) -> None:
    def leave_inputs(self: Lifecycle, row: int) -> None:
        table = self.ledger.table
        for source in table.inputs_of(row):
            self.unhold(source)
            if table.state[source] == FINISHED and table.holds[source] > 1:
                self.unhold(source)

    patch.setattr(Lifecycle, "leave_inputs", leave_inputs)


def explains_a_task_without_its_last_input(patch: pytest.MonkeyPatch) -> None:
    original = explain._missing_inputs

    def missing_inputs(ledger: Ledger, row: int) -> tuple[list[int], int]:
        missing, count = original(ledger, row)
        return missing[: max(1, len(missing) - 1)], count

    patch.setattr(explain, "_missing_inputs", missing_inputs)


def explains_by_what_a_worker_has_in_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        startable,
        "worker_bar",
        lambda worker, restriction: None if worker.permits(restriction) else startable.Bar.LACKING,
    )


def explains_what_failed_by_who_failed_last(patch: pytest.MonkeyPatch) -> None:
    original = explain._failed

    def failed(ledger: Ledger, row: int, now: float) -> list[explain.Reason]:
        return [reason._replace(rows=(row,)) for reason in original(ledger, row, now)]

    patch.setattr(explain, "_failed", failed)


def tells_nothing_of_a_lost_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "note", lambda self, row, what, why="": None)


def leaves_a_question_to_a_lost_worker_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Orders, "worker_gone", lambda self, worker: None)
    patch.setattr(Inquiries, "watch", lambda self, now: None)


def gives_up_requests_that_a_worker_can_meet(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unmet, "is_met", lambda ledger, restriction: False)


def never_gives_up_what_nobody_can_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unmet.Unmet, "watch", lambda self, now: None)


def shares_without_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClientRecord, "weight", property(lambda self: 1.0, lambda self, weight: None), raising=False)


def explains_a_wait_without_its_first_child(patch: pytest.MonkeyPatch) -> None:
    original = explain._unfinished_children

    def unfinished_children(ledger: Ledger, row: int) -> tuple[list[int], bool]:
        found, all_seen = original(ledger, row)
        return found[1:], all_seen

    patch.setattr(explain, "_unfinished_children", unfinished_children)


def takes_any_task_for_a_child_of_who_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nesting, "FURTHER_PROCESSES_A_SLOT", 1)
    patch.setattr(startable, "runs_inside_parent", lambda ledger, row, worker: True)


def sees_nobody_charged_with_the_end_of_a_worker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(startable, "is_kept_apart", lambda worker, lane: False)


# ------------------------------------------------------------------ the agent and the session


def agent_counts_places_by_sequence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Slot, "ahead_of", lambda self, sequence: sequence - self.pieces[0].sequence)


def agent_takes_what_waits_for_inputs_for_queued(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Supply, "lacking", lambda self, assignment, index: [])


def agent_leaves_one_out_of_a_recall(patch: pytest.MonkeyPatch) -> None:
    original = AgentLedger.send

    def send(self: AgentLedger, message: Any) -> None:
        if isinstance(message, messages.Recalled):
            message = message._replace(names=message.names[:-2])
        original(self, message)

    patch.setattr(AgentLedger, "send", send)


def agent_loses_a_record_that_came_back(patch: pytest.MonkeyPatch) -> None:
    original = Workforce.put_back
    patch.setattr(Workforce, "put_back", lambda self, slot, taken: original(self, slot, taken[:-1]))


def agent_blames_who_stood_by_when_a_slot_died(patch: pytest.MonkeyPatch) -> None:
    original = Workforce.exited

    def exited(self: Workforce, end: Any, now: float) -> None:
        original(self, end._replace(unclaimed=[]), now)

    patch.setattr(Workforce, "exited", exited)


def agent_takes_back_where_there_is_no_way_back(patch: pytest.MonkeyPatch) -> None:
    original = Slot.give

    def give(self: Slot, assignment: Assignment, index: int, count: int, now: float) -> int:
        sequence = original(self, assignment, index, count, now)
        self.pipe_is_empty = False
        return sequence

    patch.setattr(Slot, "give", give)


def agent_does_not_notice_that_an_input_came(patch: pytest.MonkeyPatch) -> None:
    original = Supply._now_held

    def now_held(self: Supply, peer: int, row: int, attempt: int, nbytes: int) -> None:
        original(self, peer, row, attempt, nbytes)
        if attempt % 3 == 0:
            self._held = self._held[:-3]

    patch.setattr(Supply, "_now_held", now_held)


def counts_a_task_that_waits_as_running(patch: pytest.MonkeyPatch) -> None:
    original = NestingDesk.worker_says

    def worker_says(self: NestingDesk, worker: WorkerRecord, message: Any) -> None:
        if not isinstance(message, messages.Suspended):
            original(self, worker, message)

    patch.setattr(NestingDesk, "worker_says", worker_says)


def never_gives_a_promise_of_memory_back(patch: pytest.MonkeyPatch) -> None:
    original = WorkerMemory.promise

    def promise(self: WorkerMemory, client: bytes, nbytes: int) -> None:
        original(self, client, max(0, nbytes))

    patch.setattr(WorkerMemory, "promise", promise)


def forgets_workers_that_were_full(patch: pytest.MonkeyPatch) -> None:
    def look_at_full(self: placement.Placement) -> None:
        self.ledger.relieved.clear()

    patch.setattr(placement.Placement, "_look_at_full", look_at_full)
    patch.setattr(placement, "LOOK_AGAIN_SECONDS", 10.0)


def agent_gives_no_seat_to_who_goes_on(patch: pytest.MonkeyPatch) -> None:
    original = Nesting.let_go_on
    patch.setattr(Nesting, "let_go_on", lambda self: original(self) if self.free_seats > 1 else None)


def agent_runs_anything_inside_a_task_that_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReadyQueue, "children_of", lambda self, parent: self.head())
    patch.setattr(ReadyQueue, "take_children", lambda self, parent, limit: self.take(limit))


def agent_forgets_the_other_threads_of_a_process(patch: pytest.MonkeyPatch) -> None:
    original = Threads.vacate

    def vacate(self: Threads, slot: Slot, end: SlotExited, now: float) -> bool:
        for one in self.members(slot)[1:]:
            one.pieces.clear()
            one.outstanding = 0
        return original(self, slot, end._replace(unclaimed_beside=([],) * len(end.unclaimed_beside)), now)

    patch.setattr(Threads, "vacate", vacate)


def agent_runs_what_died_beside_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Threads, "take_sound_only", lambda self, slot: False)


def session_passes_over_a_reset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "_reset", lambda self, number: None)


def session_lets_go_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "_offers_behind", lambda self, number: frozenset())


PLANTED: list[tuple[Faulty, Callable[[int], Plan]]] = [
    (accepts_damaged_values, damaging_plan),
    (forgets_who_waits_for_a_copy, popular_plan),
    (lets_the_last_copy_go, popular_plan),
    (accepts_stale_completions, busy_plan),
    (counts_a_recall_without_its_list, lambda seed: replace(draw_plan(Random(seed)), check_every=1)),
    (splits_arguments_off_by_one, busy_plan),
    (splits_a_stretch_off_by_one, busy_plan),
    (loses_a_release, busy_plan),
    (releases_recipes, busy_plan),
    (misses_the_wake_up_of_time, lambda seed: draw_plan(Random(seed))),
    (misses_the_wake_up_of_a_dependent, busy_plan),
    (misses_a_dependent_of_what_is_lost, busy_plan),
    (shares_by_tasks_and_not_by_time, lambda seed: RIVALS),
    (loses_the_futures_inside_a_value, referring_plan),
    (loses_the_futures_inside_bytes_that_were_sent, mortal_plan),
    (keeps_the_attempt_after_a_loss, busy_plan),
    (gives_resources_back_twice, busy_plan),
    (forgets_whom_to_tell_of_a_reset, losing_plan),
    (believes_a_worker_that_is_gone, busy_plan),
    (frees_values_that_are_needed, busy_plan),
    (agent_leaves_one_out_of_a_recall, busy_plan),
    (agent_loses_a_record_that_came_back, busy_plan),
    (agent_blames_who_stood_by_when_a_slot_died, deadly_plan),
    (agent_takes_back_where_there_is_no_way_back, lambda seed: replace(busy_plan(seed), one_task_at_a_time=True)),
    (agent_does_not_notice_that_an_input_came, busy_plan),
    (counts_a_task_that_waits_as_running, nested_plan),
    (agent_gives_no_seat_to_who_goes_on, nested_plan),
    (agent_runs_anything_inside_a_task_that_waits, nested_plan),
    (agent_forgets_the_other_threads_of_a_process, lambda seed: replace(deadly_plan(seed), threads=2)),
    (agent_runs_what_died_beside_others, lambda seed: replace(deadly_plan(seed), threads=2)),
    (session_passes_over_a_reset, losing_plan),
    (session_lets_go_too_early, referring_plan),
    (explains_a_task_without_its_last_input, explaining_plan),
    (explains_by_what_a_worker_has_in_all, explaining_plan),
    (explains_what_failed_by_who_failed_last, explaining_plan),
    (tells_nothing_of_a_lost_run, explaining_plan),
    (leaves_a_question_to_a_lost_worker_open, asking_plan),
    (gives_up_requests_that_a_worker_can_meet, impossible_plan),
    (never_gives_up_what_nobody_can_run, impossible_plan),
    (never_gives_a_promise_of_memory_back, full_plan),
    (forgets_workers_that_were_full, full_plan),
    (shares_without_weights, lambda seed: UNEQUAL_RIVALS),
    (agent_counts_places_by_sequence, explaining_plan),
    (agent_takes_what_waits_for_inputs_for_queued, explaining_plan),
    (explains_a_wait_without_its_first_child, explaining_nested_plan),
    (takes_any_task_for_a_child_of_who_waits, explaining_nested_plan),
    (sees_nobody_charged_with_the_end_of_a_worker, explaining_deadly_plan),
    *PLANTED_PACKING,
]


@pytest.mark.planted
@pytest.mark.parametrize(("plant", "plan_of"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_fault_is_found(
    plant: Faulty, plan_of: Callable[[int], Plan], monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        seeds, fault = found_after(plan_of)
    record_property("seeds", seeds)
    record_property("fault", fault)
    # The same seed shows nothing without it.
    assert not simulate(seeds - 1, plan_of(seeds - 1)).fault
