"""Coroutines in the simulator: the circumstances of the usual seeds, with a part of the tasks running many at once."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from cluster.simulation.plan import Plan, draw_plan
from cluster.simulation.world import simulate

SEEDS = 30
TOGETHER = 10


def plan_with_coroutines(seed: int) -> Plan:
    """What is drawn for a seed, but with coroutines; where tasks are, the simulator cannot tell of these."""
    plan = draw_plan(Random(seed))
    return replace(plan, explains=0.0, shape=replace(plan.shape, coroutines=(0.3, 1.0)[seed % 2], parents=0.0))


@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
def test_coroutines_show_no_fault(first: int) -> None:
    for seed in range(first, first + TOGETHER):
        fault = simulate(seed, plan_with_coroutines(seed)).fault
        assert not fault, f"{fault}\nagain: simulate({seed}, plan_with_coroutines({seed}))"
