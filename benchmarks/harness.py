"""Runs cases, each run in a fresh child process, the systems in turn so that a busy minute hurts all alike.

A system for which a run would take longer than the limit is measured at the largest size of the case's ladder that does
not; small runs come first to foresee it.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.case import Case, Measurement
from benchmarks.systems import System

ROOT = Path(__file__).resolve().parent.parent
# Opening and closing a system, and the warm-up, come on top of the timed part.
OVERHEAD_SECONDS = 90.0
# A run this long says how long a larger one takes; a shorter one is mostly fixed cost.
TELLING_SECONDS = 1.0


@dataclass
class Cell:
    """All runs of one case on one system at one size. `wanted` is larger than `size` where the system is too slow."""

    case: Case
    system: System
    wanted: int
    size: int
    measurements: list[Measurement] = field(default_factory=list)
    failure: str = ""

    def values(self, figure_name: str) -> list[float]:
        return [m.figures[figure_name] for m in self.measurements if figure_name in m.figures]

    def median(self, figure_name: str) -> float | None:
        values = self.values(figure_name)
        return statistics.median(values) if values else None

    def processor_microseconds(self) -> dict[str, float]:
        """The median processor time a task, by process role."""
        roles = list(dict.fromkeys(role for m in self.measurements for role in m.processor_seconds))
        return {
            role: statistics.median(m.processor_seconds.get(role, 0.0) / m.tasks for m in self.measurements) * 1e6
            for role in roles
        }


class RunFailed(Exception):
    """A run that ended without a measurement."""


class Harness:
    def __init__(self, *, runs: int, limit_seconds: float, size: int | None) -> None:
        self.runs = runs
        self.limit_seconds = limit_seconds
        self.size = size
        self.timed: dict[tuple[str, str], dict[int, float]] = {}

    def run_case(self, case: Case, systems: Iterable[System]) -> list[Cell]:
        """All cells of a case; a system that fails has its failure in the cell."""
        cells: list[Cell] = []
        for wanted in case.sizes if self.size is None else (self.size,):
            fresh = [self.open_cell(case, system, wanted) for system in systems if case.runs_on(system)]
            for cell in fresh:
                same = [c for c in cells if c.system is cell.system and c.size == cell.size]
                cell.measurements = same[0].measurements if same else cell.measurements
            for _ in range(self.runs):
                for cell in fresh:
                    if len(cell.measurements) < self.runs and not cell.failure:
                        self.run_cell(cell)
            cells += fresh
        return cells

    def run_cell(self, cell: Cell) -> None:
        try:
            cell.measurements.append(self.run(cell.case, cell.system, cell.size))
        except RunFailed as failure:
            cell.failure = str(failure)

    def open_cell(self, case: Case, system: System, wanted: int) -> Cell:
        """Finds the size for a system, by small runs if it has not been timed yet."""
        try:
            return Cell(case, system, wanted, self.fitting_size(case, system, wanted))
        except RunFailed as failure:
            return Cell(case, system, wanted, wanted, failure=str(failure))

    def fitting_size(self, case: Case, system: System, wanted: int) -> int:
        """The largest size whose run should keep within the limit: at least two runs tell fixed cost from pace."""
        smaller = [size for size in case.ladder if size < wanted]
        if not smaller or self.size is not None:
            return wanted
        timed = self.timed.setdefault((case.name, system.name), {})
        for size in smaller:
            if len(timed) > 1 and timed[max(timed)] >= TELLING_SECONDS:
                break
            # A fast system is asked in large steps.
            if size > max(timed, default=0) and (not timed or size >= max(timed) * step_after(timed[max(timed)])):
                self.run(case, system, size)
        pace = pace_of(case, timed)
        known = max(timed)
        fitting = [
            size
            for size in (*smaller, wanted)
            if timed[known] + pace * (case.cost(size) - case.cost(known)) <= self.limit_seconds
        ]
        return max(fitting, default=smaller[0])

    def run(self, case: Case, system: System, size: int) -> Measurement:
        """One run in a child process of its own session; whatever it leaves behind is ended."""
        with tempfile.TemporaryDirectory(prefix="cluster-bench-", ignore_cleanup_errors=True) as directory:
            environment = {**os.environ, **settings_inside(directory)}
            output = Path(directory, "measurement.json")
            command = [sys.executable, "-m", "benchmarks.child", case.name, system.name, str(size), str(output)]
            with Path(directory, "log").open("w+") as log:
                # A terminal's Ctrl-C must reach the harness alone, and the child's group is ended as one.
                child = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
                )
                late = False
                try:
                    child.wait(self.limit_seconds * 1.5 + OVERHEAD_SECONDS)
                except subprocess.TimeoutExpired:
                    late = True
                finally:
                    end_with_descendants(child)
                log.seek(0)
                text = log.read()
            if not output.exists():
                reason = "took too long" if late else f"ended with status {child.returncode}"
                raise RunFailed(f"{case.name} on {system.name} at {size}: {reason}\n{text[-3000:]}")
            raw = json.loads(output.read_text())
        measurement = Measurement(**{**raw, "notes": tuple(raw["notes"])})
        self.timed.setdefault((case.name, system.name), {})[size] = measurement.seconds
        print_progress(case, system, measurement)
        return measurement


def step_after(seconds: float) -> float:
    """How many times larger the next small run is to be."""
    return 2.0 if seconds >= TELLING_SECONDS else 10.0


def pace_of(case: Case, timed: dict[int, float]) -> float:
    """Seconds a unit of cost, from the two largest sizes timed; never more than if nothing of it were fixed cost."""
    sizes = sorted(timed)
    largest = sizes[-1]
    whole = timed[largest] / case.cost(largest)
    if len(sizes) < 2:
        return whole
    slope = (timed[largest] - timed[sizes[-2]]) / (case.cost(largest) - case.cost(sizes[-2]))
    # A run disturbed by its neighbours can make the slope absurdly flat.
    return min(whole, max(slope, whole / 4))


def settings_inside(directory: str) -> dict[str, str]:
    """What a system leaves on disk goes into a directory of the run's own, ours and the peers' alike."""
    return {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": directory,
        "CLUSTER__DIRECTORY": str(Path(directory, "settings")),
        "RAY_TMPDIR": directory,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def end_with_descendants(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and every process that it started and that is still its descendant."""
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(child.pid).children(recursive=True)
        if child.poll() is None:
            child.kill()
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()


def print_progress(case: Case, system: System, measurement: Measurement) -> None:
    figures = "  ".join(f"{name} {value:,.4g}" for name, value in measurement.figures.items())
    line = f"{case.name:16} {system.name:13} {measurement.size:>9,} {measurement.seconds:8.2f} s   {figures}"
    print(line, file=sys.stderr, flush=True)


def failures(cells: Sequence[Cell]) -> list[str]:
    return [cell.failure for cell in cells if cell.failure]
