"""Whole clusters in virtual time, from a fixed list of seeds: invariants hold, values are right, nothing hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cluster.client import core as client_module
from cluster.daemon import agent as agent_daemon
from cluster.daemon import scheduler as scheduler_daemon
from cluster.scheduler.machine import Scheduler
from cluster.session.machine import Session
from cluster.simulation import agents, clients, scheduling
from cluster.simulation.world import Report, simulate
from cluster.worker.machine import Agent

# About a minute in all on two cores that others use as well.
SEEDS = 100
TOGETHER = 25


def seeds_with_a_history() -> list[int]:
    lines = (Path(__file__).parent / "seeds.txt").read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


@cache
def report_of(seed: int) -> Report:
    return simulate(seed)


def check(seed: int) -> None:
    fault = report_of(seed).fault
    assert not fault, f"{fault}\nagain: python -m cluster.simulation {seed}"


@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
def test_seeds_show_no_fault(first: int) -> None:
    for seed in range(first, first + TOGETHER):
        check(seed)


@pytest.mark.parametrize("seed", seeds_with_a_history())
def test_a_seed_that_once_showed_a_fault_shows_none(seed: int) -> None:
    check(seed)


def test_a_seed_decides_everything_whatever_the_order_of_sets() -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "cluster.simulation", "--record", "3", "17", "58", "205", "336"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("0", "1", "4711")
    ]
    outputs = set()
    for process in running:
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        outputs.add("\n".join(line for line in said.splitlines() if "fingerprint" in line))
    assert len(outputs) == 1
    assert outputs.pop().count("fingerprint") == 5


def test_the_daemons_and_the_client_run_the_classes_that_are_simulated() -> None:
    assert scheduling.Scheduler is scheduler_daemon.Scheduler is Scheduler
    assert agents.Agent is agent_daemon.Agent is Agent
    assert clients.Session is client_module.Session is Session


def test_the_seeds_reach_what_they_are_for() -> None:
    # A simulator in which nothing goes wrong finds nothing.
    faults: dict[str, int] = {}
    values = tasks = runs = 0
    for seed in range(45):
        report = report_of(seed)
        for name, count in report.faults.items():
            faults[name] = faults.get(name, 0) + count
        values += report.values_compared
        tasks += report.tasks
        runs += report.runs
    assert values > 1000 and tasks > 1000 and runs > 1000
    assert {"slot crash", "agent crash", "stall", "drain", "congestion"} <= faults.keys()
