"""Running one file of a suite that pytest runs, in this process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.outcome import Outcome

TEST_SECONDS = 900
"""A test that takes longer than this fails: some merge a hundred times, on a machine that may do other things."""


class _Counts:
    """What pytest tells while it runs."""

    def __init__(self, left_out: Callable[[str], str | None]) -> None:
        self.passed = 0
        self.failed: list[str] = []
        self.skipped: dict[str, str] = {}
        self.interrupted = False
        self._left_out = left_out

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            reason = self._left_out(item.nodeid.partition("::")[2])
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.nodeid or "the file"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            self.failed.append(f"collecting {report.nodeid}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.interrupted = excinfo.type is KeyboardInterrupt  # an error while it collects is one of a subclass

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        if report.failed:
            if name not in self.failed:
                self.failed.append(name)
                if report.when == "teardown":
                    self.passed -= 1
        elif report.skipped:
            self.skipped[name] = _reason(report)
        elif report.when == "call":
            self.passed += 1


def run_file(path: Path, left_out: Callable[[str], str | None], reached: Callable[[], int]) -> Outcome:
    """Run a file's tests; `left_out` gives the reason why a test is not run, `reached` how many calls have come."""
    counts = _Counts(left_out)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "pytest.ini")
        settings.write_text("[pytest]\nxfail_strict = true\n", encoding="utf-8")
        arguments = [str(path), "-c", str(settings), f"--rootdir={path.parent}", "-p", "no:cacheprovider", "-q"]
        arguments += [f"--timeout={TEST_SECONDS}", "--tb=short", "-rf", f"--basetemp={folder}/temporary"]
        sys.stdout.flush()
        pytest.main(arguments, plugins=[counts])
    if counts.interrupted:
        raise KeyboardInterrupt  # pytest caught it; what came of half a file is not what came of the file
    return Outcome(counts.passed, counts.failed, counts.skipped, reached())


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail or 'no reason given'}"
    return report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "skipped"
