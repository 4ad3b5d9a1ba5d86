"""Slots that are threads, in the simulator: the circumstances of the usual seeds, with several slots a process."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from cluster.simulation.plan import Plan, draw_plan
from cluster.simulation.world import simulate

SEEDS = 30
TOGETHER = 10


def plan_with_threads(seed: int) -> Plan:
    """What is drawn for a seed, but with threads, and with processes that die more often."""
    plan = draw_plan(Random(seed))
    crashes = plan.slot_crashes or (1.0 if seed % 3 == 0 else 0.0)
    return replace(plan, threads=2 + seed % 2, slot_crashes=crashes)


@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
def test_threads_show_no_fault(first: int) -> None:
    for seed in range(first, first + TOGETHER):
        fault = simulate(seed, plan_with_threads(seed)).fault
        assert not fault, f"{fault}\nagain: simulate({seed}, plan_with_threads({seed}))"
