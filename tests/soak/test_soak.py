"""Fresh seeds while there is time (`make soak SOAK_SECONDS=3600`). One that fails goes into tests/pure/seeds.txt."""

from __future__ import annotations

import os
import time

import pytest

from cluster.simulation.__main__ import describe, fresh_seeds
from cluster.simulation.world import simulate


@pytest.mark.soak
def test_fresh_seeds_show_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
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
