"""Tables of our figure beside each peer's, as markdown, and the sections of RESULTS.md that hold them."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from benchmarks.case import Case, Figure, Goal
from benchmarks.harness import Cell
from benchmarks.systems import System

OURS = "cluster"
# Processor time is counted in ticks of 10 ms: below 20 of them a figure would say little.
TELLING_MICROSECONDS = 200_000
DASK = ("dask", "dask-threads", "dask-apart")


def case_section(case: Case, cells: Sequence[Cell]) -> str:
    """Everything about one case: a table for each figure, the goals, the processor time, the notes."""
    lines = [f"## {case.name}: {case.title}", ""]
    for wanted in dict.fromkeys(cell.wanted for cell in cells):
        group = [cell for cell in cells if cell.wanted == wanted]
        if len(case.sizes) > 1 or len({cell.wanted for cell in cells}) > 1:
            lines += [f"### {wanted:,}", ""]
        for figure in case.figures:
            lines += figure_table(figure, group)
        lines += processor_table(group)
        lines += note_lines(group)
    return "\n".join(lines).rstrip() + "\n"


def figure_table(figure: Figure, cells: Sequence[Cell]) -> list[str]:
    measured = [cell for cell in cells if cell.values(figure.name) or cell.failure or cell.system.name == OURS]
    if not measured:
        return []
    ours = next((cell.median(figure.name) for cell in cells if cell.system.name == OURS), None)
    lines = [
        f"| {figure.name}, {figure.unit} | median | lowest to highest | runs | size | ours is |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for cell in measured:
        values = cell.values(figure.name)
        size = f"{cell.size:,}" + (" (reduced)" if cell.size < cell.wanted else "")
        if not values:
            lines.append(f"| {cell.system.name} | {'failed' if cell.failure else 'not reached'} | | | {size} | |")
            continue
        median = cell.median(figure.name)
        assert median is not None
        ratio = "" if cell.system.name == OURS else times_better(figure, ours, median)
        spread = f"{show(min(values))} to {show(max(values))}"
        lines.append(f"| {cell.system.name} | {show(median)} | {spread} | {len(values)} | {size} | {ratio} |")
    return [*lines, "", *goal_lines(figure, cells, ours)]


def times_better(figure: Figure, ours: float | None, theirs: float) -> str:
    if ours is None or ours <= 0 or theirs <= 0:
        return ""
    ratio = ours / theirs if figure.higher_is_better else theirs / ours
    return f"{show(ratio)} times better" if ratio >= 1 else f"{show(1 / ratio)} times worse"


def goal_lines(figure: Figure, cells: Sequence[Cell], ours: float | None) -> list[str]:
    """Whether each goal is met; Dask's figure is its better setting's."""
    if ours is None or (figure.at_least is None and figure.aim is None):
        return []
    medians = [cell.median(figure.name) for cell in cells if cell.system.name in DASK]
    known = [median for median in medians if median is not None]
    dask = (max(known) if figure.higher_is_better else min(known)) if known else None
    parts = [
        f"{word}: {judge(figure, goal, ours, dask)}"
        for word, goal in (("At least", figure.at_least), ("Aim", figure.aim))
        if goal is not None
    ]
    return [" · ".join(parts), ""]


def judge(figure: Figure, goal: Goal, ours: float, dask: float | None) -> str:
    said: list[str] = []
    if goal.absolute is not None:
        met = ours >= goal.absolute if figure.higher_is_better else ours <= goal.absolute
        said.append(f"{show(goal.absolute)} {figure.unit}: {'met' if met else '**missed**'}")
    if goal.times_dask is not None:
        text = f"{show(goal.times_dask)} times better than Dask"
        if dask is None:
            said.append(f"{text}: Dask not measured")
        else:
            better, worse = (ours, dask) if figure.higher_is_better else (dask, ours)
            verdict = "met" if better >= goal.times_dask * worse else "**missed**"
            said.append(f"{text}: {verdict} ({show(better / worse) if worse else 'nothing at all'})")
    return ", ".join(said)


def processor_table(cells: Sequence[Cell]) -> list[str]:
    """Processor time a task by role: less disturbed by a busy machine than the clock, and it says where to look."""
    rows = [(cell, cell.processor_microseconds()) for cell in cells]
    rows = [(cell, times) for cell, times in rows if sum(times.values()) * tasks_of(cell) >= TELLING_MICROSECONDS]
    if not rows:
        return []
    roles = list(dict.fromkeys(role for _, times in rows for role in times))
    lines = ["| processor time, µs a task | " + " | ".join(roles) + " |", "|---|" + "---:|" * len(roles)]
    for cell, times in rows:
        shown = [show(times[role]) if role in times else "" for role in roles]
        lines.append(f"| {cell.system.name} | {' | '.join(shown)} |")
    return [*lines, ""]


def tasks_of(cell: Cell) -> int:
    return cell.measurements[0].tasks if cell.measurements else 0


def note_lines(cells: Sequence[Cell]) -> list[str]:
    lines = [
        f"- {cell.system.name}: {'; '.join(cell.measurements[-1].notes)}"
        for cell in cells
        if cell.measurements and cell.measurements[-1].notes
    ]
    lines += [f"- {cell.system.name} failed: {cell.failure.splitlines()[0]}" for cell in cells if cell.failure]
    return [*lines, ""] if lines else []


def show(value: float) -> str:
    """Three digits, with thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def environment_section(systems: Iterable[System]) -> str:
    """The machine, the versions and the setting of each system."""
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    lines = [
        "## Machine and settings",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC. {processor_name()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}. Load before the runs (1, 5, 15 min): {load}.",
        "",
        "| system | version | setting |",
        "|---|---|---|",
    ]
    lines += [f"| {system.name} | {system.version()} | {system.setting} |" for system in systems]
    return "\n".join(lines) + "\n"


def processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def write_section(path: Path, name: str, text: str) -> None:
    """Replaces the section between the name's marks, or adds it at the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{text.rstrip()}\n{end}"
    old = path.read_text()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old.rstrip()}\n\n{block}\n"
    path.write_text(new)
