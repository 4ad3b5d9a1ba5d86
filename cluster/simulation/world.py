"""One simulation from its seed to its verdict.

First the clients act while faults come. Then everything heals: every worker is started again, and each client waits for
all that it still wants, compares it with the oracle, releases it and leaves. What must hold is checked all along.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from zlib import crc32

from cluster.scheduler import invariants
from cluster.scheduler.table import FAILED, FINISHED, FREE, RELEASED
from cluster.session import table as states
from cluster.simulation.agents import AgentProcess
from cluster.simulation.checkers import FairnessWatch, PromiseWatch, check_agreement, check_everything_is_gone
from cluster.simulation.clients import ClientProcess
from cluster.simulation.clock import Clock
from cluster.simulation.explaining import ExplainWatch
from cluster.simulation.faults import RESTART_SECONDS, Faults
from cluster.simulation.network import Connection, Link, Network
from cluster.simulation.plan import Plan, draw_plan
from cluster.simulation.scheduling import SchedulerProcess
from cluster.simulation.workloads import Spec, Workload
from cluster.wire import messages

__all__ = ["Report", "World", "simulate"]

# What tells of changes is told again after a lost connection. Questions are not: each answer is for one.
COME_TWICE = frozenset(
    (
        messages.DefineFunction, messages.Submit, messages.Offer, messages.Alias, messages.Release, messages.Await,
        messages.Keep, messages.Cancel, messages.Pushed, messages.Done, messages.RunFailed, messages.Recalled,
        messages.Held, messages.Draining, messages.AgentHeartbeat, messages.Grant, messages.Recall, messages.Stop,
        messages.Free, messages.Finished, messages.Failed, messages.Order, messages.Ordered, messages.LivesInSlot,
        messages.HandOver, messages.Suspended, messages.Resumed, messages.Room,
    )
)  # fmt: skip
START_SECONDS = 1000.0
PATIENCE_SECONDS = 90.0  # for the next run of any task; a client that is gone is forgotten within it
LONGEST_SECONDS = 3600.0
SETTLING_SECONDS = 20.0  # after that, for the last messages: longer than a silent worker is believed to live
CLIENT_GRACE_SECONDS = 70.0


@dataclass
class Report:
    """What came of a seed."""

    seed: int
    fault: str = ""  # empty: none was found
    events: int = 0
    seconds: float = 0.0  # of virtual time
    tasks: int = 0
    runs: int = 0
    values_compared: int = 0
    fingerprint: int = 0  # of all that was decided, if it was recorded
    faults: dict[str, int] = field(default_factory=dict)
    explained: dict[str, int] = field(default_factory=dict)  # explanations found right, by state and first reason


class World:
    """All processes of a simulation, and what they share: time, network, tasks."""

    def __init__(self, seed: int, plan: Plan | None = None, record: bool = False) -> None:
        self.seed = seed
        self._streams: dict[str, Random] = {}
        self.report = Report(seed)
        self.plan = draw_plan(self.random_of("plan")) if plan is None else plan
        plan = self.plan
        self.clock = Clock(self.random_of("clock"))
        self.clock.now = START_SECONDS
        self.network = Network(
            self.clock,
            self.random_of("network"),
            plan.shortest_delay_seconds,
            plan.longest_delay_seconds,
            plan.framed,
            plan.repeats,
        )
        self._names = [f"w{index}" for index in range(len(plan.workers))]
        self.workload = Workload(self.random_of("workload"), plan.shape, self._names)
        no_room = plan.full_stores or plan.spill_quota_bytes
        if plan.lineage_rows < 1_000_000 or no_room or plan.refused_peers or plan.spill_damages:
            self.workload.always_possible.add("lost")
        if plan.mutes or plan.greed:
            self.workload.always_possible.add("died")  # who is silent counts as ended, whatever became of it
        if no_room or plan.spill_failures:
            self.workload.always_possible |= {"exception", "full"}
        self.healed = False
        self.index_of: dict[tuple[bytes, int], int] = {}  # (client's id, number) -> the spec's index
        self.agents: dict[str, AgentProcess] = {}  # by address, the dead ones too
        self.mute: list[AgentProcess] = []
        self.clients: list[ClientProcess] = []
        self.workers_ended = False  # whether any ever did
        self.progress_at = 0.0  # when a task was last run or has failed, or a value was fetched
        self._lives: dict[str, int] = {}
        self._record = record
        self.scheduler = SchedulerProcess(self)
        self.promise = PromiseWatch(self)
        self.fairness = FairnessWatch(self)
        self.explain = ExplainWatch(self)
        restarts = self.random_of("restarts")
        self._restarts = restarts
        for index, name in enumerate(self._names):
            late = index >= max(1, len(self._names) - plan.late_workers)
            self.clock.after(0.5 * restarts.random() if late else 0.0, self.start_agent, name)
        for index in range(plan.clients):
            self.clients.append(ClientProcess(self, index))
        Faults(self)

    def random_of(self, name: str) -> Random:
        """The stream of chance for one purpose: what one purpose draws does not shift what another does."""
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Random(f"{self.seed} {name}")
        return stream

    # ------------------------------------------------------------------ what processes do

    def note(self, who: str, effect: Any) -> None:
        """Something was decided; goes into the fingerprint."""
        if self._record:
            text = f"{self.clock.now!r} {who} {effect!r}"
            self.report.fingerprint = crc32(text.encode(), self.report.fingerprint)

    def send(self, link: Link, message: Any, content: bytes = b"", nbytes: int = 0) -> None:
        """Send a message, and what follows it as raw bytes; what changes something at the scheduler may come twice."""
        copies = self.network.copies() if type(message) in COME_TWICE else 1
        link.send((self.network.carry(message), content), nbytes, copies)

    def connect_to_agent(self, address: str, hear: Callable[[Any], None], ended: Callable[[], None]) -> Connection:
        """Connect to an agent; if it is not there, `ended` is called a little later."""
        agent = self.agents.get(address)
        number = 0
        connection = Connection(
            self.network,
            hear,
            ended,
            lambda item: agent.called(number, item) if agent is not None else None,
            lambda: agent.hung_up(number) if agent is not None else None,
        )
        if agent is None or not agent.alive:
            connection.far_dies()
        else:
            number = agent.accept(connection)
        return connection

    def knows(self, client_id: bytes, number: int) -> bool:
        """Whether the scheduler has heard of a client's number."""
        client = self.scheduler.ledger.clients.get(client_id)
        return client is not None and client.row(number) >= 0

    def spec_of(self, row: int) -> Spec:
        """The task behind a row in use."""
        ledger = self.scheduler.ledger
        return self.workload.specs[self.index_of[ledger.run(row).client.identity, ledger.number(row)]]

    def start_agent(self, name: str) -> None:
        """Start a worker under that name, unless one of that name is there."""
        if any(agent.alive and agent.name == name for agent in self.agents.values()):
            return
        life = self._lives[name] = self._lives.get(name, 0) + 1
        slots, gpus = self.plan.workers[self._names.index(name)]
        agent = AgentProcess(self, name, life, slots * self.plan.threads, {"gpu": gpus} if gpus else {})
        self.agents[agent.address] = agent

    def agent_ended(self, agent: AgentProcess) -> None:
        """A worker has died or drained: whoever runs this cluster starts it again."""
        self.workers_ended = True
        seconds = 0.5 if self.healed else self._restarts.choice(RESTART_SECONDS)
        self.clock.after(seconds, self.start_agent, agent.name)

    def client_ended(self, client: ClientProcess) -> None:
        """A client has died: nobody waits for what it shared any more, but those who took it."""
        for other in self.clients:
            if other is not client and other.alive:
                other.look()

    # ------------------------------------------------------------------ from beginning to end

    def run(self) -> None:
        """Everything, in order. Raises AssertionError (or whatever a machine raised) on the first fault."""
        self._run_until(START_SECONDS + self.plan.fault_seconds, lambda: False)
        self._run_until(self.clock.now + LONGEST_SECONDS, lambda: not any(c.acting and c.alive for c in self.clients))
        self._heal()
        alive = [client for client in self.clients if client.alive]
        self._look_at_everything(alive)
        if any(not client.alive for client in self.clients):
            self._run_until(self.clock.now + CLIENT_GRACE_SECONDS, lambda: False)
        self._settle()
        unanswered = {client.name: client.asked for client in alive if client.asked}
        assert not unanswered, f"questions were never answered: {unanswered}"
        self.scheduler.check()
        check_agreement(self)
        for client in alive:
            client.release(sorted(client.held))
            client.flush()
        self._settle()
        table = self.scheduler.ledger.table
        # What is kept to run to its end, and no worker can run, ends when that has been so for long enough.
        self._run_until(self.clock.now + self.plan.unmet_request_seconds, lambda: not table.rows_used)
        left = table.rows_used
        assert not left, f"everything was released, and {left} rows are still in use"
        for client in alive:
            client.session.leave()
            client.send()
        for agent in self.agents.values():
            agent.end_clients()
        self._run_until(self.clock.now + SETTLING_SECONDS, lambda: False)
        self.scheduler.check()
        check_everything_is_gone(self)
        if self.plan.calm:
            twice = [spec.index for spec in self.workload.specs if spec.runs > 1]
            assert not twice, f"nothing was lost, and the tasks {twice} ran more than once"

    def _settle(self) -> None:
        """Let the last messages arrive, and what still runs though nobody wants it run out."""
        self._run_until(self.clock.now + SETTLING_SECONDS, lambda: False)
        self._run_out()
        # What a client keeps back may wait for room that tasks take which nobody can run: until they fail, one by one.
        self._run_until(
            self.clock.now + LONGEST_SECONDS,
            lambda: all(client.session.has_room for client in self.clients if client.alive),
        )
        self._run_until(self.clock.now + 1.0, lambda: False)
        self._run_out()  # what then came, too
        self._run_until(self.clock.now + 1.0, lambda: False)

    def _run_out(self) -> None:
        self.progress_at = self.clock.now
        workers = self.scheduler.ledger.workers
        self._run_until(
            self.clock.now + LONGEST_SECONDS,
            lambda: not any(worker.grants for worker in workers.values()) or self._stands_still(),
        )

    def _look_at_everything(self, clients: list[ClientProcess]) -> None:
        """Let each client gather all that it holds, and then the futures that came inside."""
        seen: set[tuple[int, int]] = set()
        longest = self.clock.now + LONGEST_SECONDS
        while True:
            unseen = {client: [n for n in sorted(client.held) if (client.index, n) not in seen] for client in clients}
            if not any(unseen.values()):
                return
            for client, numbers in unseen.items():
                seen.update((client.index, number) for number in numbers)
                client.gather(numbers)
            self.progress_at = self.clock.now
            self._run_until(longest, lambda: not any(client.gathers for client in clients) or self._stands_still())
            if any(client.gathers for client in clients):
                raise AssertionError(self._hang(clients))

    def _stands_still(self) -> bool:
        return self.clock.now - self.progress_at > PATIENCE_SECONDS

    def _run_until(self, when: float, done: Callable[[], bool]) -> None:
        clock = self.clock
        while clock.now < when and not done():
            if not clock.step():
                return

    def _heal(self) -> None:
        self.healed = True
        for agent in self.mute:
            if agent.alive:
                agent.die()
        for name in self._names:
            self.start_agent(name)
        for client in self.clients:
            self.scheduler.congest(client.client_id, False)

    def _hang(self, clients: list[ClientProcess]) -> str:
        ledger = self.scheduler.ledger
        seconds = self.clock.now - self.progress_at
        lines = [f"somebody still waits, all are well, and for {seconds:.0f} s no task has run"]
        for client in clients:
            for gather in client.gathers:
                states_of = {number: client.session.state(number) for number in gather.waits_for()}
                stuck = [number for number, state in states_of.items() if state == states.PENDING] or list(states_of)
                for number in stuck[:3]:
                    state = states_of[number]
                    lines.append(f"{client.name} waits for {number} (task {client.held[number]}), state {state}")
                    known = ledger.clients.get(client.client_id)
                    row = -1 if known is None else known.row(number)
                    if row >= 0:
                        lines.append(invariants.story(ledger, row))
        unfinished = [
            row for row, state in enumerate(ledger.table.state) if state not in (FREE, FINISHED, RELEASED, FAILED)
        ]
        lines += [invariants.story(ledger, row) for row in unfinished[:3]]
        workers = [(worker.name, worker.outstanding, worker.draining) for worker in ledger.workers.values()]
        lines.append(f"workers (tasks, draining): {workers}")
        return "\n".join(lines)


def simulate(seed: int, plan: Plan | None = None, *, record: bool = False) -> Report:
    """Run one seed; the report says what fault was found, if any."""
    world: World | None = None
    fault = ""
    try:
        world = World(seed, plan, record)
        world.run()
    except Exception as error:
        # Whatever escapes a machine is a fault of it, and the search goes on with other seeds.
        where = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} in {where.name} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno}): {error}"
    report = Report(seed) if world is None else world.report
    report.fault = fault
    if world is not None:
        report.events = world.clock.events
        report.seconds = world.clock.now - START_SECONDS
        report.tasks = len(world.workload.specs)
        report.runs = sum(spec.runs for spec in world.workload.specs)
    return report
