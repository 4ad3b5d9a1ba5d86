"""Does memory grow while work comes and goes? `python -m benchmarks.endurance --help`.

Rounds of mixed work (maps, single submits, a tree, large values passed on, errors, cancels) are spread evenly over the
time; everything is released at the end of a round. Between rounds the memory that each role has for itself (resident,
without what it shares) is looked at. The first fifth of the rounds is warm-up: modules are imported, allocators and
bounded histories fill. Growth is the median of the last tenth of the rounds against that of the first tenth after it.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.case import WrongResult, check_equal
from benchmarks.report import write_section
from benchmarks.systems import Cluster
from benchmarks.tasks import add, identity

RESULTS = Path(__file__).with_name("RESULTS.md")
ROLES = ("scheduler", "agent", "client", "slots")
MAPPED = 40_000
LEAVES = 4_096
SINGLE = 500
LARGE = 16
LARGE_BYTES = 1 << 20
TASKS_A_ROUND = MAPPED + 2 * LEAVES - 1 + SINGLE + 2 * LARGE + 1
WARM_UP_PART = 0.2
COMPARED_PART = 0.1
AT_LEAST_PERCENT = 1.0


def fill(place: int) -> bytes:
    return bytes([place]) * LARGE_BYTES


def last_byte(value: bytes) -> int:
    return value[-1]


def one_round(system: Cluster) -> None:
    """About fifty thousand tasks, of every kind; nothing of them is held afterwards."""
    client = system.client
    mapped = client.map(identity, range(MAPPED))
    check_equal(client.gather(mapped), list(range(MAPPED)), "the map")
    level = client.map(identity, range(LEAVES))
    while len(level) > 1:
        level = client.map(add, level[::2], level[1::2])
    check_equal(level[0].result(), LEAVES * (LEAVES - 1) // 2, "the tree")
    singles = [client.submit(identity, number) for number in range(SINGLE)]
    check_equal([future.result() for future in singles], list(range(SINGLE)), "the single submits")
    large = client.map(fill, range(LARGE))
    check_equal(client.gather(client.map(last_byte, large)), list(range(LARGE)), "the large values")
    if not isinstance(client.submit(divmod, 1, 0).exception(), ZeroDivisionError):
        raise WrongResult("an error did not come back as itself")
    client.cancel(client.map(identity, range(100)))


def own_megabytes(system: Cluster) -> dict[str, float]:
    """What each role's processes have in memory that they share with nobody, in MiB."""
    gc.collect()
    found = {}
    for role, process_ids in system.processes().items():
        figures = [psutil.Process(process_id).memory_info() for process_id in process_ids]
        found[role] = sum(figure.rss - figure.shared for figure in figures) / (1 << 20)
    return found


def endure(minutes: float, tasks: int) -> tuple[int, float, list[dict[str, float]]]:
    """Run rounds for so long, and for so many tasks; how many tasks, how many minutes, and the memory by round."""
    system = Cluster()
    system.open()
    try:
        rounds = -(-tasks // TASKS_A_ROUND)
        seconds_a_round = minutes * 60 / rounds
        began = time.monotonic()
        memory = []
        for place in range(rounds):
            one_round(system)
            time.sleep(max(0.0, began + (place + 1) * seconds_a_round - time.monotonic()))
            memory.append(own_megabytes(system))
            if place % 10 == 0:
                shown = ", ".join(f"{role} {memory[-1][role]:.1f}" for role in ROLES)
                print(f"round {place + 1} of {rounds}: MiB {shown}", flush=True)
        return rounds * TASKS_A_ROUND, (time.monotonic() - began) / 60, memory
    finally:
        system.close()


def endurance_section(tasks: int, minutes: float, memory: list[dict[str, float]]) -> str:
    """The table: memory after the warm-up and at the end, by role."""
    first = int(len(memory) * WARM_UP_PART)
    compared = max(1, int(len(memory) * COMPARED_PART))
    lines = [
        "## endurance: Memory while work comes and goes",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, CPython {platform.python_version()}: {tasks:,} tasks in "
        f"{minutes:.1f} minutes, {len(memory)} rounds, of which {first} are warm-up.",
        "",
        "| role | after the warm-up, MiB | at the end, MiB | highest, MiB | growth | at least |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for role in ROLES:
        values = [figures[role] for figures in memory]
        before = statistics.median(values[first : first + compared])
        after = statistics.median(values[-compared:])
        growth = (after / before - 1) * 100
        verdict = ("met" if growth < AT_LEAST_PERCENT else "**missed**") if role != "slots" else ""
        lines.append(f"| {role} | {before:.1f} | {after:.1f} | {max(values):.1f} | {growth:+.2f} % | {verdict} |")
    lines += ["", f"At least: under {AT_LEAST_PERCENT:g} % for scheduler, agent and client; aim: none."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description="Does memory grow?")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--tasks", type=int, default=10_000_000)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    section = endurance_section(*endure(arguments.minutes, arguments.tasks))
    print(section)
    if arguments.write:
        write_section(RESULTS, "endurance", section)


if __name__ == "__main__":
    main()
