"""What must hold between processes: the promise while they work, and agreement once everything is still."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.scheduler import invariants
from cluster.scheduler.startable import Bar, bar, inputs_exist
from cluster.scheduler.table import FINISHED, GRANTED, READY
from cluster.simulation.disk import check_memory
from cluster.worker.values import Segment, value_key

if TYPE_CHECKING:
    from cluster.scheduler.workers import WorkerRecord
    from cluster.simulation.agents import AgentProcess
    from cluster.simulation.world import World

__all__ = ["FairnessWatch", "PromiseWatch", "check_agreement", "check_everything_is_gone"]

PROMISED_SECONDS = 0.1
LOOK_EVERY_SECONDS = 0.02
JUDGED_AFTER_SECONDS = 2.0  # of slot time: functions must have been measured, and their tasks differ


class PromiseWatch:
    """No startable task waits longer than 100 ms while a slot that may run it is idle.

    Startable is what `cluster.scheduler.startable` says, for a worker to which not much has to be moved. Both the wait
    and the idleness are seen from outside, in the processes that run: that the scheduler has granted a task to somebody
    is no excuse.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._next_look = 0.0
        self._looks_again = False
        self._waiting_since: dict[tuple[int, int, int, int], float] = {}  # row, run, runs of it, worker
        self._limit_seconds = PROMISED_SECONDS + 20 * world.plan.longest_delay_seconds

    def look(self) -> None:
        """Compare who waits with who is idle, at most every 20 ms."""
        world = self._world
        now = world.clock.now
        if now < self._next_look or not world.plan.keeps_the_promise:
            return
        self._next_look = now + LOOK_EVERY_SECONDS
        ledger = world.scheduler.ledger
        state = ledger.table.state
        since: dict[tuple[int, int, int, int], float] = {}
        idle = self._idle()
        if idle and (READY in state or GRANTED in state):
            for row, code in enumerate(state):
                if code in (READY, GRANTED) and self._startable(row):
                    for worker, agent in idle:
                        if self._may_run(row, worker):
                            key = (row, ledger.run(row).identity, world.spec_of(row).runs, worker.index)
                            since[key] = self._waiting_since.get(key, now)
                            self._compare(row, worker, agent, since[key])
        self._waiting_since = since
        if since and not self._looks_again:
            # As long as somebody waits and somebody is idle, nothing that happens in between may be missed.
            self._looks_again = True
            world.clock.after(LOOK_EVERY_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._looks_again = False
        self.look()

    def _startable(self, row: int) -> bool:
        world = self._world
        ledger = world.scheduler.ledger
        table = ledger.table
        if table.holds[row] == 0 or world.spec_of(row).active:
            return False  # nobody wants it any more, or it runs
        if not inputs_exist(table, row):
            return False
        if table.state[row] == GRANTED:
            worker = ledger.workers[table.holder[row]]
            agent = world.agents.get(worker.address)
            if agent is None or not agent.alive:
                return False  # its end is not known yet
            return not agent.machine.supply.waiting_count  # perhaps for its inputs, which were worth moving
        return True

    def _idle(self) -> list[tuple[WorkerRecord, AgentProcess]]:
        found = []
        for worker in self._world.scheduler.ledger.workers.values():
            agent = self._world.agents.get(worker.address)
            if agent is None or not agent.alive or worker.draining or agent.draining:
                continue
            if self._world.plan.threads > 1 and any(slot.renew for slot in agent.machine.workforce.slots):
                continue  # a thread stands still until its process can be replaced
            if agent.nests:
                # Nothing but children is due where nearly all processes are kept by tasks that wait.
                if worker.room == worker.slots and agent.free_seats > agent.machine.supply.waiting_count:
                    found.append((worker, agent))
                continue
            # A slot whose next task's inputs are on their way is not idle for want of a decision.
            if sum(slot.idle for slot in agent.slots.values()) > agent.machine.supply.waiting_count:
                found.append((worker, agent))
        return found

    def _may_run(self, row: int, worker: WorkerRecord) -> bool:
        ledger = self._world.scheduler.ledger
        if ledger.run(row).is_coroutine and ledger.deaths.get(row):
            return False  # it ended a process, perhaps, and is kept apart from others
        # Whether a slot is taken is seen in the processes: what is granted to a worker may be stuck behind another's.
        return bar(ledger, row, worker, 0.0) in (None, Bar.SLOT)

    def _compare(self, row: int, worker: WorkerRecord, agent: AgentProcess, since: float) -> None:
        world = self._world
        if agent.nests:
            idle_since = agent.seats_changed_at
        else:
            idle_since = min(slot.idle_since for slot in agent.slots.values() if slot.idle)
        waited = world.clock.now - max(since, idle_since, world.spec_of(row).left_a_slot_at)
        if waited > self._limit_seconds:
            ledger = world.scheduler.ledger
            others = [(other.name, other.outstanding, other.recall_pending) for other in ledger.workers.values()]
            raise AssertionError(
                f"row {row} has waited for {waited:.3f} s while a slot of {worker.name} that may run it is idle"
                f"\n{invariants.story(ledger, row)}\n  workers (tasks, recall pending): {others}"
            )


class FairnessWatch:
    """Clients have shares of slot time by their weights as long as all of them have work that waits.

    Watched from the beginning until, for the first time, some client has nothing that waits: what was used before would
    shift the shares that follow.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._seconds: dict[int, float] = {}
        self._longest = 0.0
        self._contended = False
        self._ended = not world.plan.compares_shares

    def note(self, client: int, seconds: float) -> None:
        """A slot has spent so much time on a client's task."""
        if not self._ended:
            self._seconds[client] = self._seconds.get(client, 0.0) + seconds
            self._longest = max(self._longest, seconds)

    def look(self) -> None:
        """See whether the clients still compete, and whether each had its share."""
        if self._ended:
            return
        ledger = self._world.scheduler.ledger
        waiting = [client.ready_rows > 0 for client in ledger.clients.values()]
        if len(waiting) < self._world.plan.clients or not all(waiting):
            self._ended = self._contended
            return
        self._contended = True
        shares = [self._seconds.get(client.index, 0.0) / client.weight for client in self._world.clients]
        slots = sum(worker.slots for worker in ledger.workers.values())
        # What runs now is not counted, and what was granted ahead was granted by expectation.
        least = min(client.weight for client in self._world.clients)
        tolerance = 0.25 * sum(shares) + 2 * slots * (self._longest + ledger.settings.lead_seconds) / least
        fair = max(shares) - min(shares) <= tolerance or sum(shares) < JUDGED_AFTER_SECONDS
        assert fair, f"the clients had {shares} s of slot time while all were waiting"


def check_agreement(world: World) -> None:
    """Nothing is under way: scheduler, agents and files say the same of every value."""
    ledger = world.scheduler.ledger
    table = ledger.table
    for worker in ledger.workers.values():
        agent = world.agents[worker.address]
        listed = {
            value_key(table.attempt[row], row)
            for row in range(len(table))
            if table.state[row] == FINISHED and worker.index in table.holders(row)
        }
        held = {key: value for shard in agent.machine.supply.values._shards for key, value in shard.items()}
        packs = agent.machine.supply.values.packed.packs
        packed = {pack.key(entry) for pack in packs.values() for entry in pack.wanted()}
        present = held.keys() | packed
        missing, orphans = sorted(listed - present), sorted(present - listed)
        assert not missing, f"{worker.name} does not hold {_names(missing)}, which the scheduler says it does"
        assert not orphans, f"{worker.name} holds {_names(orphans)}, of which the scheduler knows nothing"
        paths = {value.path for value in held.values() if isinstance(value, Segment)}
        leftover = sorted(agent.files.keys() ^ paths)
        assert not leftover, f"{worker.name} has files that no value uses, or the other way round: {leftover}"
        assert agent.disk.packs.keys() == packs.keys(), f"{worker.name} has packs that it does not know of"
        check_memory(agent.machine, at_rest=True)
        unanswered = agent.machine.unanswered_count
        assert unanswered == worker.outstanding == 0, f"{worker.name} owes {unanswered} of {worker.outstanding} tasks"
        assert not agent.machine.supply.waiting_count, f"tasks still wait for inputs at {worker.name}"
    alive = sum(agent.alive for agent in world.agents.values())
    assert len(ledger.workers) == alive, f"{alive} workers live, and the ledger lists {len(ledger.workers)}"


def _names(keys: list[int]) -> list[tuple[int, int]]:
    return [(key >> 32, key & 0xFFFFFFFF) for key in keys]


def check_everything_is_gone(world: World) -> None:
    """Every client has released everything and left: nothing remains anywhere."""
    invariants.check_empty(world.scheduler.ledger)
    check_agreement(world)
    for client in world.clients:
        if client.alive:
            session = client.session
            left = (session.table._pages, session._offers, session.failures, session.dropped, session.gathered)
            assert not any(left), f"{client.name} still knows of {left}"
            assert session.has_room, f"{client.name} was not told that all its arguments were taken"
