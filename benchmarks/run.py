"""Command line: `python -m benchmarks.run [--only CASE,…] [--systems cluster,dask,…] [--runs 5] [--write]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.core import SHAPES, TASKS, WORKERS, core_section
from benchmarks.harness import Harness, failures
from benchmarks.peers import SYSTEMS
from benchmarks.registry import CASES
from benchmarks.report import case_section, environment_section, write_section
from benchmarks.systems import System

CORE = "core"
RESULTS = Path(__file__).with_name("RESULTS.md")


def chosen(text: str | None, known: dict[str, object], what: str) -> list[str]:
    names = list(known) if text is None else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown {what} {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Our figures beside each peer's.")
    parser.add_argument("--only", metavar="CASE,…", help=f"of: {', '.join(CASES)}, {CORE}")
    parser.add_argument("--systems", metavar="SYSTEM,…", help=f"of: {', '.join(SYSTEMS)}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit-seconds", type=float, default=180.0, help="longest foreseen run of a cell (180)")
    parser.add_argument("--size", type=int, help="one size for all, to try something out")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()

    case_names = chosen(arguments.only, {**CASES, CORE: None}, "case")
    systems: list[System] = []
    for name in chosen(arguments.systems, dict(SYSTEMS), "system"):
        if SYSTEMS[name].installed():
            systems.append(SYSTEMS[name])
        else:
            print(f"{name} is not installed here and is left out", file=sys.stderr)
    harness = Harness(runs=arguments.runs, limit_seconds=arguments.limit_seconds, size=arguments.size)
    sections = {"environment": environment_section(systems)}
    print(sections["environment"])
    failed: list[str] = []
    for name in case_names:
        if name == CORE:
            sizes = TASKS if arguments.size is None else (arguments.size,)
            sections[name] = core_section(SHAPES, sizes, WORKERS, arguments.runs)
        else:
            cells = harness.run_case(CASES[name], systems)
            sections[name] = case_section(CASES[name], cells)
            failed += failures(cells)
        print(sections[name], flush=True)
        if arguments.write:
            write_section(RESULTS, "environment", sections["environment"])
            write_section(RESULTS, name, sections[name])
    for failure in failed:
        print(failure, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
