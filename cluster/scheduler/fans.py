"""Neighbours that all take one row's value: a span of rows in place of an edge for each.

A model, a table to look things up in, a join: one value that thousands of a batch's tasks take. To link these, to wake
them, and to note that they are gone is one step for a span, whose rows are consecutive and of one run.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cluster.scheduler.table import Run

__all__ = ["Fan", "Fans", "Links", "Waking", "all_alike", "divide_links"]

ALIKE_LEAST = 32  # fewer rows are looked at one by one


class Fan:
    """Consecutive rows of a run, each of which takes one value."""

    __slots__ = ("run", "start", "stop", "takes_nothing_else")

    def __init__(self, run: Run, start: int, stop: int, takes_nothing_else: bool) -> None:
        self.run = run
        self.start = start
        self.stop = stop
        self.takes_nothing_else = takes_nothing_else  # but what all of them take

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)


class Waking:
    """Rows of a fan among which are such that wait for nothing any more, and are still to be made ready.

    `latest`: the worker that made the value which came last.
    """

    __slots__ = ("latest", "run", "start", "stop")

    def __init__(self, fan: Fan, latest: int) -> None:
        self.run = fan.run
        self.start = fan.start  # the next one
        self.stop = fan.stop
        self.latest = latest


class Links(NamedTuple):
    """Inputs of rows from `first` on: `starts` says where in `sources` each row's begin, and at last where they end."""

    first: int
    starts: Sequence[int]
    sources: array[int]


class Fans(dict[int, list[Fan]]):
    """The fans of each row that has some, in the order of their submission."""

    def add(self, source: int, fan: Fan) -> None:
        """Further rows take the row's value: a fan more, or more rows of the last one."""
        fans = self.setdefault(source, [])
        last = fans[-1] if fans else None
        if (
            last is not None
            and last.run is fan.run
            and last.stop == fan.start
            and last.takes_nothing_else == fan.takes_nothing_else
        ):
            last.stop = fan.stop
        else:
            fans.append(fan)

    def of_any(self, rows: range) -> list[int]:
        """Those of the rows that have fans."""
        if len(rows) < len(self):
            return [row for row in rows if row in self]
        return sorted(row for row in self if row in rows)

    def prune(self, source: int, state: bytearray) -> None:
        """Drop those of a row's fans of which all rows have been freed."""
        kept = [fan for fan in self.pop(source, ()) if fan.run.live and any(state[fan.start : fan.stop])]
        if kept:
            self[source] = kept


def all_alike(rows: Sequence[int]) -> bool:
    """Whether these are many, and all the same."""
    return len(rows) >= ALIKE_LEAST and rows[0] == rows[-1] and rows.count(rows[0]) == len(rows)


def divide_links(run: Run, first: int, least: int) -> tuple[list[tuple[int, Fan]], list[Links]]:
    """The inputs of a run's rows from `first` on: those that are fans, each with the row that it takes, and the others.

    Where all rows take as many, one that is the same for all makes a fan. Where they take one each, so do neighbours
    that take the same, as the pieces of a chunk do. Fewer rows than `least` have edges, and so have calls of actors,
    which become startable one by one.
    """
    starts, sources = run.dependency_starts, run.dependencies
    assert starts is not None
    place, stop = first - run.start, run.start + run.count
    count, begin, end = run.count - place, starts[place], starts[-1]
    width = (end - begin) // count
    by_edges = [Links(first, starts[place:], sources)]
    if count < least or not width or begin + width * count != end or run.calls_actor:
        return [], by_edges
    if width == 1 and sources[begin] != sources[end - 1]:
        if len(set(sources[begin:])) * least > count or not _has_equal_steps(starts, place, width):
            return [], by_edges
        return _divide_by_groups(run, first, least)
    last = end - width
    alike = [column for column in range(width) if sources[begin + column] == sources[last + column]]
    if not alike or not _has_equal_steps(starts, place, width):
        return [], by_edges
    columns = [sources[begin + column : end : width] for column in range(width)]
    shared = [column for column in alike if columns[column].count(columns[column][0]) == count]
    if not shared:
        return [], by_edges
    fans = [(columns[column][0], Fan(run, first, stop, len(shared) == width)) for column in shared]
    of_all = frozenset(shared)
    others = [column for column in range(width) if column not in of_all]
    if not others:
        return fans, []
    left = array("q", bytes(8 * count * len(others)))
    for position, column in enumerate(others):
        left[position :: len(others)] = columns[column]
    return fans, [Links(first, range(0, len(left) + 1, len(others)), left)]


def _has_equal_steps(starts: array[int], place: int, width: int) -> bool:
    return starts[place:] == array("I", range(starts[place], starts[-1] + 1, width))


def _divide_by_groups(run: Run, first: int, least: int) -> tuple[list[tuple[int, Fan]], list[Links]]:
    """As `divide_links` for rows that take one input each."""
    starts, sources = run.dependency_starts, run.dependencies
    assert starts is not None
    fans: list[tuple[int, Fan]] = []
    by_edges: list[Links] = []
    row = left_from = first
    shift = starts[first - run.start] - first
    for source, group in groupby(sources[row + shift :]):
        stop = row + len(list(group))
        if stop - row >= least:
            if left_from < row:
                by_edges.append(Links(left_from, range(left_from + shift, row + shift + 1), sources))
            fans.append((source, Fan(run, row, stop, True)))
            left_from = stop
        row = stop
    if left_from < row:
        by_edges.append(Links(left_from, range(left_from + shift, row + shift + 1), sources))
    return fans, by_edges
