"""What a seed decides before anything happens: how large the cluster is, what its tasks are like, which faults come.

Each seed switches whole kinds of faults on or off and draws their rates. The same high rates everywhere would hide what
only shows in quiet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from cluster.simulation.workloads import Shape

__all__ = ["Plan", "draw_plan", "scarce_room"]


@dataclass(frozen=True)
class Plan:
    """One seed's circumstances. Rates are events a second of virtual time while faults last."""

    workers: tuple[tuple[int, float], ...] = ((2, 0.0), (1, 0.0))  # slots and GPUs of each
    late_workers: int = 0
    clients: int = 1
    actions: int = 10  # what each client does
    graph_size: int = 8
    pause_seconds: float = 0.01  # between a client's actions
    shape: Shape = field(default_factory=Shape)
    fault_seconds: float = 5.0
    shortest_delay_seconds: float = 0.00005
    longest_delay_seconds: float = 0.002
    framed: bool = False  # take every message through its frame
    check_every: int = 1  # the whole ledger is checked after so many of the scheduler's events
    lineage_rows: int = 1_000_000
    arguments_limit_bytes: int = 1 << 20  # a task's argument has a few bytes
    drain_seconds: float = 5.0
    slot_start_seconds: float = 0.01
    slot_start_failures: float = 0.0
    full_stores: float = 0.0
    refused_peers: float = 0.0
    repeats: float = 0.0  # the chance of a message to come twice
    slot_crashes: float = 0.0
    agent_crashes: float = 0.0
    mutes: float = 0.0  # an agent that nobody hears any more, and that does not know it
    stalls: float = 0.0  # nothing passes between an agent or a client and the scheduler for a while
    drains: float = 0.0
    broken_links: float = 0.0
    short_memories: float = 0.0  # an agent lets go of copies
    damages: float = 0.0  # the chance of a value to change on its way between agents
    congestions: float = 0.0
    client_crashes: float = 0.0
    releases: float = 0.0  # chances of a client's action to be this
    cancels: float = 0.0
    retries: float = 0.0
    keeps: float = 0.0
    gathers: float = 0.1
    shares: float = 0.0  # taking a future of another client
    offers: float = 0.0
    asks: float = 0.0  # asking why a task is where it is
    explains: float = 0.0  # the chance, after an event of the scheduler, that a row is explained and that checked
    unmet_request_seconds: float = 60.0
    weights: tuple[float, ...] = ()  # of the clients, 1 if left out
    memory_limit_bytes: int = 1 << 32  # of each worker
    spill_quota_bytes: int = 0  # of each worker's disk, 0 if all of it may be used
    spill_failures: float = 0.0  # the chance that the disk is full when a value is to go there
    spill_damages: float = 0.0  # … that what was written there is not what is read
    greed: float = 0.0  # the chance of a run to take much memory, which its slot keeps, free or not
    threads: int = 1  # in each process of a slot
    rows_per_step: int = 1024  # of the scheduler's loop
    fan_rows: int = 32  # so many neighbours that take one row's value are linked as one
    one_task_at_a_time: bool = False  # the agents have no pipe that they could take tasks back from

    @property
    def calm(self) -> bool:
        """Whether nothing is ever lost, so that every task runs exactly once."""
        return not (
            self.slot_crashes or self.agent_crashes or self.mutes or self.drains or self.client_crashes
            or self.shape.ending_workers
            or self.shape.flaky or self.shape.raising or self.shape.killing or self.shape.timeouts or self.cancels
            or self.broken_links or self.damages or self.refused_peers or self.full_stores or self.stalls
            or self.slot_start_failures
            or self.spill_failures or self.spill_damages or self.spill_quota_bytes or self.greed
        )  # fmt: skip

    @property
    def compares_shares(self) -> bool:
        """Whether clients must have their shares: each may use every slot, and its functions can be measured."""
        restricted = self.shape.resources or self.shape.named_workers or self.shape.impossible
        alike = not restricted and not self.shape.long and not self.shape.parents
        return self.calm and self.clients > 1 and alike

    @property
    def keeps_the_promise(self) -> bool:
        """Whether an idle slot may be held against the scheduler: it hears of everything soon."""
        return not (
            self.mutes or self.stalls or self.slot_start_failures or self.refused_peers or self.full_stores
            or self.spill_failures or self.spill_damages or self.spill_quota_bytes or self.greed
        )  # fmt: skip


def draw_plan(random: Random) -> Plan:
    """The circumstances of a seed."""

    def chance(probability: float, low: float, high: float) -> float:
        return low + (high - low) * random.random() if random.random() < probability else 0.0

    workers = tuple(
        (random.choice((1, 1, 2, 2, 4)), random.choice((0.0, 1.0, 2.0))) for _ in range(random.randint(1, 4))
    )
    shape = Shape(
        long=chance(0.4, 0.01, 0.15),
        none=chance(0.3, 0.1, 0.6),
        raising=chance(0.3, 0.01, 0.1),
        flaky=chance(0.3, 0.02, 0.2),
        killing=chance(0.2, 0.01, 0.08),
        timeouts=chance(0.2, 0.02, 0.3),
        large=chance(0.4, 0.05, 0.4),
        resources=chance(0.3, 0.05, 0.5),
        named_workers=chance(0.2, 0.05, 0.3),
        priorities=chance(0.3, 0.1, 0.5),
        references=chance(0.3, 0.2, 0.8),
        functions=random.randint(1, 4),
    )
    if shape.resources:
        workers = ((workers[0][0], 2.0), *workers[1:])  # one that can run the largest task
    faulty = random.random() < 0.7
    slow = random.random() < 0.15
    plan = Plan(
        workers=workers,
        late_workers=random.choice((0, 0, 1, 2)),
        clients=random.choice((1, 1, 2, 3)),
        actions=random.randint(3, 16),
        graph_size=random.choice((2, 4, 8, 8, 16, 40)),
        pause_seconds=random.choice((0.0001, 0.001, 0.01, 0.1)),
        shape=shape,
        fault_seconds=random.choice((0.2, 2.0, 8.0)),
        shortest_delay_seconds=random.choice((0.00002, 0.0001)),
        longest_delay_seconds=0.2 if slow else random.choice((0.0005, 0.002, 0.005)),
        framed=random.random() < 0.08,
        check_every=random.choice((1, 1, 3, 10)),
        lineage_rows=random.choice((2, 10)) if random.random() < 0.1 else 1_000_000,
        drain_seconds=random.choice((0.1, 5.0)),
        slot_start_failures=chance(0.1, 0.05, 0.4) * faulty,
        full_stores=chance(0.08, 0.01, 0.2) * faulty,
        refused_peers=chance(0.1, 0.05, 0.3) * faulty,
        slot_crashes=chance(0.3, 0.2, 5.0) * faulty,
        agent_crashes=chance(0.5, 0.1, 2.0) * faulty,
        mutes=chance(0.1, 0.1, 0.5) * faulty,
        stalls=chance(0.15, 0.2, 2.0) * faulty,
        drains=chance(0.15, 0.1, 1.0) * faulty,
        broken_links=chance(0.15, 0.5, 5.0) * faulty,
        congestions=chance(0.15, 1.0, 20.0),
        client_crashes=chance(0.15, 0.05, 0.5) * faulty,
        releases=chance(0.7, 0.1, 0.5),
        cancels=chance(0.3, 0.05, 0.3),
        retries=chance(0.3, 0.05, 0.3),
        keeps=chance(0.2, 0.05, 0.2),
        gathers=0.1,
        shares=chance(0.4, 0.05, 0.3),
        offers=chance(0.4, 0.05, 0.3),
        repeats=chance(0.1, 0.05, 0.5),
    )
    return _with_later_kinds(plan, random, chance, faulty)


def _with_later_kinds(plan: Plan, random: Random, chance: Callable[[float, float, float], float], faulty: bool) -> Plan:
    """The plan with what came to the plans later: drawn last, so that earlier seeds go on showing what they showed."""
    weights = tuple(random.choice((0.5, 1.0, 2.0, 4.0)) for _ in range(plan.clients))
    plan = replace(
        plan,
        asks=chance(0.3, 0.05, 0.3),
        explains=chance(0.3, 0.2, 1.0),
        shape=replace(plan.shape, impossible=chance(0.15, 0.02, 0.2)),
        unmet_request_seconds=random.choice((20.0, 60.0)),
        weights=weights if random.random() < 0.2 else (),
        one_task_at_a_time=random.random() < 0.12,
    )
    plan = replace(
        plan,
        shape=replace(plan.shape, ending_workers=chance(0.1, 0.005, 0.03) * faulty),
        arguments_limit_bytes=random.choice((2, 12, 60, 1 << 20, 1 << 20, 1 << 20)),
    )
    shape = replace(plan.shape, parents=chance(0.25, 0.05, 0.5), depth=random.choice((1, 2, 3, 6)))
    plan = replace(plan, shape=shape)
    # A few large values, or one, are more than a worker may hold.
    limit = random.choice((1 << 32, 1 << 32, 1 << 30, 1 << 28))
    shape = replace(plan.shape, memory=chance(0.2, 0.05, 0.3))
    plan = replace(plan, shape=shape, memory_limit_bytes=limit)
    plan = replace(plan, damages=chance(0.15, 0.02, 0.3) * faulty, short_memories=chance(0.2, 1.0, 50.0))
    plan = replace(plan, threads=random.choice((2, 2, 3)) if random.random() < 0.2 else 1)
    plan = _with_short_memory(plan, random, faulty=faulty)
    plan = _with_scarce_memory(plan, random, faulty=faulty)
    # One in seven; none of the seeds with a history, which go on showing what they showed.
    drawn = random.random()
    if 0.82 < drawn < 0.9:
        plan = scarce_room(plan, random)
    elif 0.73 < drawn < 0.8:
        plan = _scarce_room_for_large(plan, random)
    steps = random.choice((1, 2, 5, 30)) if random.random() < 0.2 else 1024
    return replace(plan, fan_rows=random.choice((2, 2, 2, 3, 32, 32)), rows_per_step=steps)


def _with_short_memory(plan: Plan, random: Random, *, faulty: bool) -> Plan:
    """Perhaps values do not all fit into an agent's memory, and go to a disk that is full now and then, or rots."""
    if not plan.shape.large or random.random() < 0.5:
        return plan
    greed = random.choice((0.0, 0.0, 0.02, 0.2)) * faulty
    return replace(
        plan,
        memory_limit_bytes=1_000_000_000 if greed else random.choice((250_000, 4_000_000, 1_000_000_000)),
        spill_failures=random.choice((0.0, 0.1, 0.5)) * faulty,
        spill_damages=random.choice((0.0, 0.0, 0.1, 0.3)) * faulty,
        greed=greed,
    )


def _with_scarce_memory(plan: Plan, random: Random, *, faulty: bool) -> Plan:
    """Perhaps a few small values are more than an agent's memory, and go to such a disk in packs."""
    if random.random() < 0.8:
        return plan
    return replace(
        plan,
        shape=replace(plan.shape, bulky=random.choice((0.2, 0.8))),
        memory_limit_bytes=random.choice((10_000, 50_000, 200_000)),
        spill_quota_bytes=random.choice((0, 0, 100_000, 1_000_000)) * faulty,
        spill_failures=random.choice((0.0, 0.1, 0.5)) * faulty,
        spill_damages=random.choice((0.0, 0.0, 0.1, 0.3)) * faulty,
        greed=0.0,
    )


def scarce_room(plan: Plan, random: Random) -> Plan:
    """The plan with values that an agent has room for, one or a few at a time, and little of a disk."""
    shape = replace(
        plan.shape,
        large=random.choice((0.2, 0.4)),
        large_bytes=(70_000, 100_000),
        bulky=random.choice((0.2, 0.6)),
    )
    return replace(
        plan,
        shape=shape,
        workers=(*plan.workers, (2, 0.0)),
        memory_limit_bytes=random.choice((200_000, 250_000, 400_000)),
        spill_quota_bytes=random.choice((20_000, 50_000, 100_000)),
        spill_failures=0.0,
        greed=0.0,
        actions=min(plan.actions, 8),
        graph_size=min(plan.graph_size, 16),
    )


def _scarce_room_for_large(plan: Plan, random: Random) -> Plan:
    """The same with values for which room is asked before they come."""
    plan = scarce_room(plan, random)
    return replace(
        plan,
        shape=replace(plan.shape, large_bytes=(70_000, 1_200_000, 3_000_000)),
        memory_limit_bytes=random.choice((3_500_000, 5_000_000, 8_000_000)),
        spill_quota_bytes=random.choice((20_000, 500_000, 2_000_000)),
        offers=max(plan.offers, 0.1),
    )
