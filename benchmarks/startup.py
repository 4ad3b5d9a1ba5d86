"""Process start to first result with a local cluster of two slots, and the cost of the import alone."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cluster
from benchmarks.case import Case, Figure, Goal, Measurement
from benchmarks.systems import System

# CLOCK_MONOTONIC is one clock for all processes of a Linux machine, so a child's reading and ours can be subtracted.
CLOCK = "import time\ndef first_result():\n    global end; end = time.monotonic_ns()\n"
TELL = "\nif __name__ == '__main__':\n    print('END', end)\n"


def measure_first_result(system: System, repetitions: int) -> Measurement:
    """The bare interpreter's own start is measured in turn with the system's, and taken off."""
    compile_package()
    began = time.perf_counter()
    bare = [seconds_until_end("first_result()\n") for _ in range(repetitions)]
    whole = [seconds_until_end(system.first_result_program) for _ in range(repetitions)]
    return Measurement(repetitions, repetitions, time.perf_counter() - began, {"first result": min(whole) - min(bare)})


def measure_import(system: System, repetitions: int) -> Measurement:
    """The import of what a program needs first: the package, and its face."""
    compile_package()
    began = time.perf_counter()
    bare, whole, face = [], [], []
    for _ in range(repetitions):
        bare.append(seconds_until_end("first_result()\n"))
        whole.append(seconds_until_end(f"import {system.module}\nfirst_result()\n"))
        if system.name == "cluster":
            face.append(seconds_until_end("from cluster import Client, LocalCluster\nfirst_result()\n"))
    figures = {"import": (min(whole) - min(bare)) * 1e3}
    if face:
        figures["with Client"] = (min(face) - min(bare)) * 1e3
    return Measurement(repetitions, repetitions, time.perf_counter() - began, figures)


def compile_package() -> None:
    """As an installer does, which has done it for the peers: ours may run from a folder where Python writes nothing."""
    compileall.compile_dir(Path(cluster.__file__).parent, quiet=1)


def seconds_until_end(program: str) -> float:
    """From before the process exists to its call of `first_result`."""
    with tempfile.TemporaryDirectory() as directory:
        # A file, and not -c: some systems start their workers from the main module.
        path = Path(directory, "program.py")
        path.write_text(CLOCK + program + TELL)
        began = time.monotonic_ns()
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=os.environ, timeout=120)
    marks = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("END ")]
    if done.returncode != 0 or len(marks) != 1:
        raise RuntimeError(f"the start-up program ended with status {done.returncode}: {done.stderr[-2000:]}")
    return (int(marks[0]) - began) / 1e9


CASES = (
    Case(
        name="startup",
        title="Process start to first result, a local cluster of 2 slots, beyond a bare interpreter",
        sizes=(1,),
        ladder=(1,),
        figures=(Figure("first result", "s", at_least=Goal(1.0), aim=Goal(0.6)),),
        measure=measure_first_result,
        opens_system=False,
    ),
    Case(
        name="import",
        title="The import, beyond a bare interpreter",
        sizes=(3,),
        ladder=(3,),
        figures=(
            Figure("import", "ms", at_least=Goal(130.0), aim=Goal(80.0)),
            Figure("with Client", "ms", at_least=Goal(130.0), aim=Goal(80.0)),
        ),
        measure=measure_import,
        only=frozenset({"cluster", "joblib", "dask", "ray"}),
        opens_system=False,
    ),
)
