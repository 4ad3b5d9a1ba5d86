"""What came of one file of an examined test suite."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Outcome(NamedTuple):
    """The counts of one file, and what stands behind them."""

    passed: int
    failed: list[str]
    """The names of the tests that failed."""
    skipped: dict[str, str]
    """The reason by test."""
    reached: int
    """How many calls came to the cluster."""


class Suite(Protocol):
    """A module of this folder that examines with the tests of somebody else."""

    def files(self) -> list[str]:
        """The files of the suite, as its library names them."""
        ...

    def run(self, file: str) -> Outcome:
        """Run one file on a cluster; called in a process of its own."""
        ...
