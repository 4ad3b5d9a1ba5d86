"""`python -m cluster.simulation`: replay seeds, or look for a fault with fresh ones.

::

    python -m cluster.simulation 17 4711        run these seeds; exit status 1 if one shows a fault
    python -m cluster.simulation --record 17    … with a fingerprint of every decision, to compare two runs
    python -m cluster.simulation --seconds 60   fresh seeds for a minute; each that fails is printed
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterable, Iterator

from cluster.simulation.world import Report, simulate


def main(arguments: list[str] | None = None) -> int:
    """Run the simulator as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.simulation", description="Simulate clusters from seeds.")
    parser.add_argument("seeds", nargs="*", type=int, help="seeds to replay")
    parser.add_argument("--seconds", type=float, default=0.0, help="look for faults with fresh seeds for so long")
    parser.add_argument("--record", action="store_true", help="print a fingerprint of all decisions")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    seeds: Iterable[int] = options.seeds or fresh_seeds(started + options.seconds)
    reports = []
    for seed in seeds:
        report = simulate(seed, record=options.record)
        reports.append(report)
        if report.fault or options.seeds:
            _say(describe(report))
    seconds = time.monotonic() - started
    faults = sum(bool(report.fault) for report in reports)
    events = sum(report.events for report in reports)
    _say(f"{len(reports)} seeds, {faults} with a fault, {events} events, {events / seconds:.0f} events/s")
    return 1 if faults else 0


def fresh_seeds(until: float) -> Iterator[int]:
    """Seeds that nobody has tried, until that time."""
    while time.monotonic() < until:
        yield secrets.randbelow(1 << 48)


def describe(report: Report) -> str:
    """What came of a seed, for people."""
    if report.fault:
        return f"seed {report.seed}: {report.fault}\n  again: python -m cluster.simulation {report.seed}"
    recorded = f", fingerprint {report.fingerprint:08x}" if report.fingerprint else ""
    return (
        f"seed {report.seed}: {report.tasks} tasks in {report.runs} runs, {report.values_compared} values compared, "
        f"{report.events} events in {report.seconds:.1f} s{recorded}, faults {report.faults}"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
