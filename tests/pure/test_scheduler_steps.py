"""No step of the scheduler's loop is long, however much one message drags along.

Counted is work, not time: how many rows changed their state in one call of `handle`.
"""

from __future__ import annotations

from array import array
from itertools import accumulate, pairwise

from cluster.scheduler import invariants
from cluster.scheduler.machine import Disconnected, Event, Received, Scheduler, Send, Settings, Tick
from cluster.scheduler.table import FAILED, FREE, GRANTED, NO_RECIPE, OWNER_WANTS
from cluster.wire import messages

EPOCH = 7
ROWS_PER_STEP = Settings().rows_per_step
MANY = 20_000
CLIENT, OTHER, WORKER = 1, 2, 3


class Steps:
    """A scheduler that is told things, and how many rows each of its steps changed."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.scheduler = Scheduler(EPOCH, settings)
        self.table = self.scheduler.ledger.table
        self.now = 100.0
        self.heard: list[object] = []
        self.handle(Received(CLIENT, messages.ClientJoin(b"c" * 16, "client", {})))
        self.handle(Received(CLIENT, messages.DefineFunction(b"f", "f", b"")))

    def handle(self, event: Event) -> int:
        """How many rows are in another state, or belong to another run, than before."""
        before, runs, holders = bytes(self.table.state), list(self.table.run_of), self.table.holder[:]
        effects = self.scheduler.handle(self.now, event)
        self.heard += [effect.message for effect in effects if isinstance(effect, Send)]
        changed = sum(
            one != other or run is not now_run or holder != now_holder
            for one, other, run, now_run, holder, now_holder in zip(
                before, self.table.state, runs, self.table.run_of, holders, self.table.holder, strict=False
            )
        )
        return changed + max(0, len(self.table.state) - len(before))

    def work_out(self, event: Event) -> list[int]:
        """Handle an event and what it leaves for later; the rows changed in each step."""
        steps = [self.handle(event)]
        while self.scheduler.next_wakeup <= self.now:
            steps.append(self.handle(Tick()))
        invariants.check(self.scheduler.ledger)
        return steps

    def submit(self, first: int, count: int, inputs: list[list[int]] | None = None) -> None:
        starts = dependencies = b""
        if inputs:
            starts = array("I", accumulate(map(len, inputs), initial=0)).tobytes()
            dependencies = array("q", [number for each in inputs for number in each]).tobytes()
        message = messages.Submit(first, count, first, b"f", "f", {}, 0, b"", b"", starts, dependencies)
        self.handle(Received(CLIENT, message))

    def add_worker(self, name: str = "worker", peer: int = WORKER, slots: int = 1) -> None:
        self.handle(
            Received(peer, messages.WorkerJoin(name.encode(), name, f"tcp://{name}", slots, 1 << 30, {}, {}, 1))
        )

    def run_granted(self, peer: int = WORKER) -> None:
        """Have all that is granted succeed, until nothing is left."""
        at = 0
        while at < len(self.heard):
            grant = self.heard[at]
            at += 1
            if isinstance(grant, messages.Grant):
                sizes = array("Q", [8]).tobytes() * sum(grant.runs[1::2])
                done = messages.Done(EPOCH, grant.attempt, grant.runs, sizes, b"", b"", 0.0, 0.00001, [])
                self.handle(Received(peer, done))


def fan(steps: Steps) -> None:
    """One task, and many that take its value."""
    steps.submit(0, 1)
    for first in range(1, MANY, 2000):
        steps.submit(first, 2000, [[0]] * 2000)


def test_a_failure_reaches_a_wide_fan_in_steps() -> None:
    steps = Steps()
    steps.add_worker()
    fan(steps)
    grant = next(message for message in steps.heard if isinstance(message, messages.Grant))
    failed = messages.RunFailed(EPOCH, grant.runs[0], grant.attempt, "exception", b"", {}, 0.1)
    changed = steps.work_out(Received(WORKER, failed))
    assert max(changed) <= ROWS_PER_STEP + 1
    assert steps.table.state.count(FAILED) == MANY + 1


def test_a_failure_runs_down_a_long_chain_in_steps() -> None:
    steps = Steps()
    steps.add_worker()
    steps.submit(0, 1)
    for first in range(1, MANY, 2000):
        steps.submit(first, 2000, [[number - 1] for number in range(first, first + 2000)])
    changed = steps.work_out(Received(CLIENT, messages.Cancel([0, 1])))
    assert max(changed) <= ROWS_PER_STEP + 1
    assert steps.table.state.count(FAILED) == MANY + 1


def test_a_cancel_beside_other_clients_works_in_steps() -> None:
    steps = Steps()
    steps.handle(Received(OTHER, messages.ClientJoin(b"o" * 16, "other", {})))
    steps.submit(0, MANY)
    steps.submit(MANY, 1, [list(range(0, MANY, 100))])
    steps.handle(Received(OTHER, messages.Alias(0, [[b"c" * 16, 5]])))
    changed = steps.work_out(Received(CLIENT, messages.Cancel([0, MANY])))
    assert max(changed) <= ROWS_PER_STEP + 1
    assert steps.table.state.count(FAILED) == MANY, "all but what the other client wants"


def test_a_retry_waits_until_the_failure_has_reached_everybody() -> None:
    steps = Steps()
    fan(steps)
    steps.handle(Received(CLIENT, messages.Cancel([0, 1])))
    assert steps.scheduler.lifecycle.cascading
    changed = steps.work_out(Received(CLIENT, messages.Retry([0, 1])))
    assert len(changed) >= MANY // ROWS_PER_STEP
    assert steps.table.state.count(FAILED) == 0


def test_dependents_that_are_released_meanwhile_do_not_upset_a_cascade() -> None:
    steps = Steps()
    fan(steps)
    steps.handle(Received(CLIENT, messages.Cancel([0, 1])))
    changed = steps.work_out(Received(CLIENT, messages.Release([0, MANY + 1])))
    assert max(changed) <= 3 * ROWS_PER_STEP  # released, drained and failed, each in steps
    assert steps.table.rows_used == 0


def test_a_worker_is_taken_out_of_the_ledger_in_steps() -> None:
    steps = Steps()
    steps.add_worker()
    steps.submit(0, MANY)
    steps.run_granted()
    assert steps.scheduler.ledger.workers[0].held_values == MANY
    steps.add_worker("other", WORKER + 1)
    changed = steps.work_out(Disconnected(WORKER))
    assert max(changed) <= 4 * ROWS_PER_STEP  # and the other worker is granted some of it
    assert len(steps.scheduler.ledger.workers) == 1
    assert steps.table.state.count(FREE) + steps.table.state.count(GRANTED) < len(steps.table)


def test_a_client_that_leaves_is_released_in_steps() -> None:
    steps = Steps()
    fan(steps)
    changed = steps.work_out(Received(CLIENT, messages.Leave()))
    assert max(changed) <= 3 * ROWS_PER_STEP
    assert steps.table.rows_used == 0 and not steps.scheduler.ledger.clients


def test_many_are_kept_and_released_in_steps() -> None:
    steps = Steps()
    steps.submit(0, MANY)
    steps.work_out(Received(CLIENT, messages.Keep([0, MANY])))
    steps.work_out(Received(CLIENT, messages.Release([0, MANY])))
    assert steps.table.rows_used == MANY, "a keep before a release counts"


def test_values_that_are_needed_again_before_their_turn_has_come_are_not_freed() -> None:
    steps = Steps()
    steps.add_worker(slots=MANY)
    steps.submit(0, 4000)
    steps.run_granted()
    steps.handle(Received(WORKER, messages.Draining(EPOCH)))
    steps.add_worker("other", OTHER)
    steps.submit(4000, 1, [list(range(4000))])
    steps.work_out(Received(CLIENT, messages.Release([0, 4000])))
    grant = steps.heard[-1]
    assert isinstance(grant, messages.Grant)
    sizes = array("Q", [8]).tobytes()
    steps.handle(Received(OTHER, messages.Done(EPOCH, grant.attempt, grant.runs, sizes, b"", b"", 0.1, 0.1, [])))
    assert steps.scheduler.lifecycle.has_unneeded  # what that one took is freed in several steps
    steps.work_out(Disconnected(OTHER))
    freed = [message.values for message in steps.heard if isinstance(message, messages.Free)]
    assert 0 < sum(sum(values[2::3]) for values in freed) < 4000


def test_a_graph_of_which_nothing_is_needed_any_more_is_forgotten_in_steps() -> None:
    steps = Steps()
    steps.add_worker(slots=MANY)
    for first in range(0, MANY, 2000):
        steps.submit(first, 2000)
    for first in range(0, MANY, 2000):
        steps.submit(MANY + first // 2, 1000, [[number, number + 1] for number in range(first, first + 2000, 2)])
    steps.submit(2 * MANY, 10, [list(range(MANY + 1000 * place, MANY + 1000 * place + 1000)) for place in range(10)])
    steps.work_out(Received(CLIENT, messages.Release([0, 2 * MANY])))
    steps.run_granted()
    steps.work_out(Tick())
    changed = steps.work_out(Received(CLIENT, messages.Release([2 * MANY, 10])))
    assert len(changed) > 5 and max(changed) <= 4 * ROWS_PER_STEP
    assert steps.table.rows_used == 0


def test_recipes_beyond_the_bound_are_given_up_in_steps() -> None:
    """Each of them drags its heirs along, though it is but one row."""
    steps = Steps(Settings(lineage_rows=0))
    steps.add_worker(slots=MANY)
    steps.submit(0, 100)
    for first in range(100, MANY, 2000):
        steps.submit(first, 2000, [[number % 100] for number in range(2000)])
    steps.run_granted()
    flags, given_up = steps.table.flags, [0]
    steps.handle(Received(CLIENT, messages.Release([0, 100])))
    while steps.scheduler.next_wakeup <= steps.now:
        given_up.append(flags.count(OWNER_WANTS | NO_RECIPE))
        steps.handle(Tick())
    given_up.append(flags.count(OWNER_WANTS | NO_RECIPE))
    assert given_up[-1] == MANY
    assert max(later - earlier for earlier, later in pairwise(given_up)) <= 5 * ROWS_PER_STEP
    invariants.check(steps.scheduler.ledger)
