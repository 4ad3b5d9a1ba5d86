"""The examination: other projects' tests of their own interfaces, run on a cluster, one process a file.

`python -m tests.conformance.run [SUITE...]` runs what has not been run, and prints a table. What came of each file is
kept in a folder, so that a run that was stopped goes on where it was; `--again` forgets it. Two processes never run at
once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.conformance.outcome import Outcome, Suite

SUITES = ("dask", "joblib", "scikit_learn", "concurrent_futures")
"""The suites, by their modules in this folder; one whose module is not there is left out."""
KEPT = Path(".conformance")
FILE_SECONDS = 3600
"""A file that takes longer is stopped, and counts as failed."""


def main() -> int:
    """The command's entry; the number of failed tests, at most 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__)
    parser.add_argument("suites", nargs="*", default=[], metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--again", action="store_true", help="run all files, also those that were run before")
    parser.add_argument("--results", type=Path, default=KEPT, help="the folder of what came of each file")
    parser.add_argument("--table", action="store_true", help="run nothing; print the table of what is known")
    parser.add_argument("--one", nargs=3, metavar=("SUITE", "FILE", "KEPT"), help="run one file in this process")
    arguments = parser.parse_args()
    if arguments.one:
        name, file, kept = arguments.one
        save(_suite(name).run(file), Path(kept))
        return 0
    named = arguments.suites or [name for name in SUITES if importlib.util.find_spec(f"tests.conformance.{name}")]
    outcomes: dict[str, dict[str, Outcome]] = {}
    for name in named:
        outcomes[name] = {}
        for file in _suite(name).files():
            kept = arguments.results / name / f"{file.replace('/', '.')}.json"
            if arguments.again and not arguments.table:
                kept.unlink(missing_ok=True)
            if not kept.exists() and not arguments.table:
                began = time.monotonic()
                outcome = _run_apart(name, file, kept)
                print(f"{name} {file}: {describe(outcome)}, {time.monotonic() - began:.0f} s", flush=True)
            if kept.exists():
                outcomes[name][file] = load(kept)
    print(table(outcomes, explain))
    return int(any(explain(*failure) is None for failure in _failures(outcomes)))


def main_of_suite(suite: Any) -> None:
    """What `python -m tests.conformance.NAME [FILE...]` does."""
    parser = argparse.ArgumentParser(description=suite.__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE")
    arguments = parser.parse_args()
    for file in arguments.files or suite.files():
        outcome = suite.run(file)
        print(f"{file}: {describe(outcome)}")
        for test in outcome.failed:
            print(f"  failed: {test}")


def describe(outcome: Outcome) -> str:
    """The counts as one line."""
    skipped, failed = len(outcome.skipped), len(outcome.failed)
    return f"{outcome.passed} passed, {failed} failed, {skipped} skipped, {outcome.reached} calls reached the cluster"


def save(outcome: Outcome, path: Path) -> None:
    """Keep what came of a file; whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(outcome._asdict(), indent=1), encoding="utf-8")
    unfinished.replace(path)


def load(path: Path) -> Outcome:
    """What was kept."""
    return Outcome(**json.loads(path.read_text(encoding="utf-8")))


def explain(name: str, file: str, test: str) -> str | None:
    """The difference that makes a test fail, if its suite lists it among its DIFFERENCES."""
    by_pattern = getattr(_suite(name), "DIFFERENCES", {}).get(file, {})
    return next((reason for pattern, reason in by_pattern.items() if re.fullmatch(pattern, test)), None)


def table(outcomes: dict[str, dict[str, Outcome]], explain: Callable[[str, str, str], str | None]) -> str:
    """Counts by suite, files in which fewer calls came than half the tests, failures, and skips by reason."""
    lines = ["| suite | files | passed | failed | skipped | calls |", "|---|---|---|---|---|---|"]
    for name, by_file in outcomes.items():
        lines.append(f"| {name} | {len(by_file)} | {_sums(by_file.values())} |")
    for name, by_file in outcomes.items():
        for file, outcome in by_file.items():
            if outcome.reached < (outcome.passed + len(outcome.failed)) / 2:
                lines.append(f"few calls: {name} {file}: {describe(outcome)}")
    explained: Counter[str] = Counter()
    for name, file, test in _failures(outcomes):
        reason = explain(name, file, test)
        if reason is None:
            lines.append(f"failed: {name} {file} {test}")
        else:
            explained[f"{name}: {reason}"] += 1
    lines += [f"failed and explained: {count} times: {reason}" for reason, count in explained.most_common()]
    for name, by_file in outcomes.items():
        reasons = Counter(reason for each in by_file.values() for reason in each.skipped.values())
        lines += [f"skipped: {name}: {count} times: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _failures(outcomes: dict[str, dict[str, Outcome]]) -> list[tuple[str, str, str]]:
    return [
        (name, file, test)
        for name, by_file in outcomes.items()
        for file, outcome in by_file.items()
        for test in outcome.failed
    ]


def _sums(outcomes: Iterable[Outcome]) -> str:
    rows = [(each.passed, len(each.failed), len(each.skipped), each.reached) for each in outcomes]
    return " | ".join(str(sum(column)) for column in zip(*rows, strict=True)) if rows else "0 | 0 | 0 | 0"


def _suite(name: str) -> Suite:
    suite: Any = importlib.import_module(f"tests.conformance.{name}")
    return suite  # type: ignore[no-any-return]


def _run_apart(name: str, file: str, kept: Path) -> Outcome:
    log = kept.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.conformance.run", "--one", name, file, str(kept)]
    with log.open("wb") as output:
        try:
            code = subprocess.run(command, stdout=output, stderr=output, timeout=FILE_SECONDS, check=False).returncode
            ended = f"its process ended with code {code} (see {log})"
        except subprocess.TimeoutExpired:
            ended = f"it took over {FILE_SECONDS} seconds (see {log})"
    if not kept.exists():
        save(Outcome(0, [f"the whole file: {ended}"], {}, 0), kept)
    return load(kept)


if __name__ == "__main__":
    sys.exit(main())
