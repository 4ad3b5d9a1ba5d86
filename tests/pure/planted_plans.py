"""The circumstances in which planted faults show."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from cluster.simulation.plan import Plan, draw_plan
from cluster.simulation.workloads import Shape

# One client's tasks run twenty times as long, and both have more than the cluster can do.
RIVALS = Plan(
    workers=((2, 0.0),),
    clients=2,
    actions=12,
    graph_size=60,
    pause_seconds=0.0001,
    shape=Shape(skew=20.0, functions=1),
    fault_seconds=0.2,
    gathers=0.0,
)
UNEQUAL_RIVALS = replace(RIVALS, weights=(1.0, 4.0))


def busy_plan(seed: int) -> Plan:
    """Some of everything that most planted faults need to show."""
    drawn = draw_plan(Random(f"{seed} planted"))
    shape = replace(drawn.shape, references=0.6, resources=0.2, flaky=0.1, long=0.05)
    return replace(
        drawn, clients=2, shape=shape, offers=0.2, releases=0.3, shares=0.2, gathers=0.2, cancels=0.1, retries=0.1,
        agent_crashes=1.0, slot_crashes=1.0, check_every=1, fault_seconds=2.0, workers=((2, 2.0), (1, 1.0)),
    )  # fmt: skip


def referring_plan(seed: int) -> Plan:
    """Futures in values, offered values, and users who let go of them early."""
    drawn = draw_plan(Random(f"{seed} referring"))
    shape = Shape(references=1.0, long=0.1, functions=2)
    return replace(
        drawn, clients=1, shape=shape, actions=60, graph_size=3, pause_seconds=0.02, offers=0.3, releases=0.3,
        shares=0.0, gathers=0.2, cancels=0.0, retries=0.0, keeps=0.0, check_every=5, fault_seconds=0.2,
        agent_crashes=0.0, drains=0.0, mutes=0.0,
        workers=((2, 0.0), (2, 0.0)), longest_delay_seconds=0.002,
    )  # fmt: skip


def deadly_plan(seed: int) -> Plan:
    """Slots with full pipes, and tasks that kill them."""
    drawn = draw_plan(Random(f"{seed} deadly"))
    shape = Shape(none=0.8, killing=0.05, functions=1)
    return replace(
        drawn, shape=shape, graph_size=60, slot_crashes=3.0, check_every=20, workers=((1, 0.0),),
        one_task_at_a_time=False,
    )  # fmt: skip


def explaining_plan(seed: int) -> Plan:
    """Rows explained after every event, and clients that ask."""
    return replace(busy_plan(seed), explains=1.0, asks=0.2)


def explaining_nested_plan(seed: int) -> Plan:
    """As nested, with rows explained after every event, and more tasks that wait at once."""
    return replace(nested_plan(seed), explains=0.3, graph_size=12, actions=4, check_every=50)


def explaining_deadly_plan(seed: int) -> Plan:
    """Tasks that take their workers down, and rows explained after every event."""
    plan = busy_plan(seed)
    return replace(plan, explains=1.0, agent_crashes=5.0, shape=replace(plan.shape, ending_workers=0.2))


def losing_plan(seed: int) -> Plan:
    """Workers that often die with values that clients look for, and cannot always be made again."""
    plan = busy_plan(seed)
    shape = replace(plan.shape, parents=0.0, none=0.0, flaky=0.3)
    return replace(
        plan, shape=shape, agent_crashes=5.0, actions=16, graph_size=8, gathers=0.4, releases=0.1, cancels=0.0,
        memory_limit_bytes=1 << 32, threads=1, spill_failures=0.0, spill_damages=0.0, greed=0.0,
        spill_quota_bytes=0,
    )  # fmt: skip


def asking_plan(seed: int) -> Plan:
    """Clients that mostly ask, about workers that often die."""
    return replace(busy_plan(seed), asks=1.5, agent_crashes=5.0, actions=20, graph_size=6, longest_delay_seconds=0.005)


def impossible_plan(seed: int) -> Plan:
    """Some tasks ask for what nobody has, and the others' workers are slow."""
    plan = busy_plan(seed)
    return replace(plan, shape=replace(plan.shape, impossible=0.1, long=0.3, resources=0.5), unmet_request_seconds=2.0)


def nested_plan(seed: int) -> Plan:
    """Tasks that submit tasks and wait for them, on few slots."""
    drawn = draw_plan(Random(f"{seed} nested"))
    shape = replace(drawn.shape, parents=0.6, depth=4, long=0.0, timeouts=0.1, resources=0.0)
    return replace(drawn, shape=shape, check_every=5, cancels=0.2, workers=((1, 0.0), (2, 0.0)), graph_size=4)


def mortal_plan(seed: int) -> Plan:
    """Tasks that return futures, and workers that die between the arrival of their bytes and the unpickling."""
    return replace(nested_plan(seed), agent_crashes=4.0, shares=0.0, memory_limit_bytes=1 << 32, actions=12)


def full_plan(seed: int) -> Plan:
    """Values that fill the workers' memory, rows explained, and nothing but deaths of slots going wrong."""
    drawn = draw_plan(Random(f"{seed} full"))
    shape = Shape(large=0.7, functions=2, memory=0.1)
    return replace(
        drawn, clients=2, shape=shape, memory_limit_bytes=1 << 28, explains=0.3, releases=0.4, graph_size=12,
        slot_crashes=0.5, agent_crashes=0.0, mutes=0.0, stalls=0.0, drains=0.0, full_stores=0.0, refused_peers=0.0,
        slot_start_failures=0.0, client_crashes=0.0, longest_delay_seconds=0.002, spill_quota_bytes=0,
    )  # fmt: skip


def damaging_plan(seed: int) -> Plan:
    """Values that go from worker to worker, and change on the way."""
    plan = busy_plan(seed)
    return replace(plan, damages=0.3, shape=replace(plan.shape, large=0.4), graph_size=12, agent_crashes=0.2)


def popular_plan(seed: int) -> Plan:
    """Large values that many workers need, and workers that let go of copies."""
    drawn = draw_plan(Random(f"{seed} popular"))
    return replace(
        drawn, clients=1, workers=((1, 0.0),) * 6, late_workers=0, shape=Shape(large=0.8, functions=2), graph_size=20,
        actions=6, check_every=5, fault_seconds=2.0, short_memories=20.0, agent_crashes=0.3, memory_limit_bytes=1 << 32,
    )  # fmt: skip
