"""Fresh seeds while there is time (`make soak SOAK_SECONDS=3600`). One that fails goes into tests/pure/seeds.txt, or,
of a graph, into `SEEDS` of tests/pure/test_graph_runs.py."""

from __future__ import annotations

import os
import time

import pytest

from cluster.simulation.__main__ import describe, fresh_seeds
from cluster.simulation.world import simulate
from tests.pure.graph_draws import run_drawn

GRAPHS_SHARE = 0.2  # of the time is for graphs on models of workers


@pytest.mark.soak
def test_fresh_seeds_show_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    seconds = (1 - GRAPHS_SHARE) * float(os.environ.get("SOAK_SECONDS", "600"))
    failed, seeds, events = [], 0, 0
    for seed in fresh_seeds(started + seconds):
        report = simulate(seed)
        seeds += 1
        events += report.events
        if report.fault:
            failed.append(report)
            with capsys.disabled():
                print(f"\n{describe(report)}", flush=True)
    with capsys.disabled():
        print(f"\n{seeds} seeds, {len(failed)} with a fault, {events / (time.monotonic() - started):.0f} events/s")
    assert not failed, "\n".join(describe(report) for report in failed)


@pytest.mark.soak
def test_fresh_graphs_show_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = GRAPHS_SHARE * float(os.environ.get("SOAK_SECONDS", "600"))
    failed, seeds = [], 0
    for seed in fresh_seeds(time.monotonic() + seconds):
        seeds += 1
        try:
            run_drawn(seed)
        except AssertionError as error:
            failed.append(str(error))
            with capsys.disabled():
                print(f"\n{error}", flush=True)
    with capsys.disabled():
        print(f"\n{seeds} seeds of graphs, {len(failed)} with a fault")
    assert not failed, "\n".join(failed)
