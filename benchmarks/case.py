"""What a benchmark is: a case, the figures it gives, the goals for them, and one measurement of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.systems import System


class WrongResult(Exception):
    """A system gave a wrong answer; its time is worth nothing."""


@dataclass(frozen=True)
class Goal:
    """A bound for our own figure: an absolute one, one in times of Dask's figure, or both."""

    absolute: float | None = None
    times_dask: float | None = None


@dataclass(frozen=True)
class Figure:
    """One number of a case; the goals are the project's, for its own system."""

    name: str
    unit: str
    higher_is_better: bool = False
    at_least: Goal | None = None
    aim: Goal | None = None


@dataclass(frozen=True)
class Measurement:
    """One run of a case: its figures, how long the timed part took, and the processor time by process role."""

    size: int
    tasks: int
    seconds: float
    figures: Mapping[str, float]
    processor_seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def linear_cost(size: int) -> float:
    """The usual relation of a case's size to its time; used to foresee how long a slow system would take."""
    return float(size)


@dataclass(frozen=True)
class Case:
    """A benchmark. `sizes` are wanted; `ladder` (ascending) are those that a system too slow for them falls back to."""

    name: str
    title: str
    sizes: tuple[int, ...]
    ladder: tuple[int, ...]
    figures: tuple[Figure, ...]
    measure: Callable[[System, int], Measurement]
    needs: frozenset[str] = frozenset()
    cost: Callable[[int], float] = linear_cost
    opens_system: bool = True
    only: frozenset[str] = frozenset()

    def runs_on(self, system: System) -> bool:
        """Whether the system can do what the case needs."""
        if (self.only or system.only_where_named) and system.name not in self.only:
            return False
        return self.needs <= system.abilities if self.opens_system else bool(system.first_result_program)


class Meter:
    """Times a block, and the processor time that each role of the system's processes spends in it."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.seconds = 0.0
        self.processor_seconds: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self._before = processor_seconds_by_process(self.system)
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        after = processor_seconds_by_process(self.system)
        for (role, process_id), seconds in after.items():
            spent = seconds - self._before.get((role, process_id), 0.0)
            self.processor_seconds[role] = self.processor_seconds.get(role, 0.0) + spent

    def measurement(self, size: int, tasks: int, figures: Mapping[str, float], *notes: str) -> Measurement:
        return Measurement(size, tasks, self.seconds, figures, self.processor_seconds, notes)


def processor_seconds_by_process(system: System) -> dict[tuple[str, int], float]:
    """User and system time of each process so far; the clock ticks are 10 ms, so only long blocks tell much."""
    spent: dict[tuple[str, int], float] = {}
    for role, process_ids in system.processes().items():
        for process_id in process_ids:
            try:
                times = psutil.Process(process_id).cpu_times()
            except psutil.NoSuchProcess:
                continue
            spent[role, process_id] = times.user + times.system
    return spent


def resident_bytes(process_ids: list[int]) -> int:
    """The sum of the resident sets."""
    return sum(psutil.Process(process_id).memory_info().rss for process_id in process_ids)


def settled_resident_bytes(process_ids: list[int], *, quiet_seconds: float = 1.0, limit_seconds: float = 60.0) -> int:
    """The resident set once it has changed by less than 256 KiB for a while: what is on its way has arrived."""
    deadline = time.monotonic() + limit_seconds
    settled = resident_bytes(process_ids)
    since = time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < quiet_seconds:
        time.sleep(0.05)
        now = resident_bytes(process_ids)
        if abs(now - settled) > 262_144:
            settled, since = now, time.monotonic()
    return settled


def check_equal(found: Any, expected: Any, what: str) -> None:
    """Raises WrongResult, showing the first place where two lists differ."""
    if found == expected:
        return
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            raise WrongResult(f"{what}: {len(found)} values instead of {len(expected)}")
        place = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        raise WrongResult(f"{what}: value {place} is {found[place]!r:.80} instead of {expected[place]!r:.80}")
    raise WrongResult(f"{what}: {found!r:.80} instead of {expected!r:.80}")
