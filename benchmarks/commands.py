"""The command `cluster`, from the start of its process to the first line that it prints."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.case import Case, Figure, Goal, Measurement
from benchmarks.systems import System
from cluster import LocalCluster

COMMAND = (sys.executable, "-m", "cluster.cli.main")


def measure_first_lines(system: System, repetitions: int) -> Measurement:
    """The quickest of several: what asks a running cluster, and what asks nobody."""
    began = time.perf_counter()
    with LocalCluster(n_workers=1, slots=1) as cluster:
        where = ("--address", cluster.scheduler_address, "--directory", str(cluster.directory))
        asks = [seconds_until_first_line("status", *where) for _ in range(repetitions)]
    alone = [seconds_until_first_line("--help") for _ in range(repetitions)]
    figures = {"status": min(asks), "help": min(alone)}
    return Measurement(repetitions, 2 * repetitions, time.perf_counter() - began, figures)


def seconds_until_first_line(*arguments: str) -> float:
    """From before the process exists to its first line."""
    began = time.perf_counter()
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        _, complaint = process.communicate(timeout=60)
    if process.returncode or not line:
        raise RuntimeError(f"cluster {arguments[0]} ended with status {process.returncode}: {complaint[-2000:]}")
    return seconds


CASES = (
    Case(
        name="command",
        title="The command `cluster` to its first line",
        sizes=(5,),
        ladder=(5,),
        figures=(
            Figure("status", "s", at_least=Goal(0.4), aim=Goal(0.2)),
            Figure("help", "s", at_least=Goal(0.4), aim=Goal(0.2)),
        ),
        measure=measure_first_lines,
        only=frozenset({"cluster"}),
        opens_system=False,
    ),
)
