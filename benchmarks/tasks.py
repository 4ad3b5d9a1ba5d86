"""The functions that the benchmarks run as tasks; every system imports them by name, so none is sent by value."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def identity(value: Any) -> Any:
    """The no-op: what is left of its cost is the system's."""
    return value


def add(left: int, right: int) -> int:
    return left + right


def add_one(value: int) -> int:
    return value + 1


def total(values: list[int], offset: int) -> int:
    """One task of an all-to-all step; the offset makes the tasks of a level different from one another."""
    return sum(values) + offset


def total_of_references(offset: int, *values: int) -> int:
    """`total` for systems that resolve references only among a task's own arguments."""
    return sum(values) + offset


def spin(iterations: int, *inputs: int) -> int:
    """Keeps one core busy for a calibrated number of loop passes; gives the number of its inputs."""
    for _ in range(iterations):
        pass
    return len(inputs)


def hold(started: str, release: str) -> int:
    """Occupies one slot, from the file `started` that it makes until somebody makes the file `release`."""
    Path(started).touch()
    while not Path(release).exists():
        time.sleep(0.01)
    return 0


def print_megabytes(count: int) -> int:
    """Prints so many megabytes, a line of 100 bytes at a time."""
    line = "x" * 99
    for _ in range(count * 10_000):
        print(line)
    return count


class Counter:
    """The smallest actor."""

    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> int:
        self.count += 1
        return self.count
