"""The scheduler's machine alone: no sockets, no processes, virtual time. `python -m benchmarks.core --help`.

A scripted client submits graphs in parts as a real one does and releases each level once the next one is submitted.
Scripted workers run every granted task in 10 µs of virtual time on each of two slots, and report every 2 ms. Only the
time inside `Scheduler.handle` is counted, in three phases: build (taking the submission in), run (granting, completing)
and release.

The shapes: `map` is n independent tasks; `tree` sums pairs level by level; `all-to-all` is a shuffle of p partitions: p
tasks, p x p pieces that take one of them each, p tasks that take p pieces each; `fan` is one task, and n that take its
value; `model` is n / 2 tasks, and n / 2 more that take one of these each and, all of them, one value that comes last.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import multiprocessing
import statistics
import time
from array import array
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import psutil

from benchmarks.case import WrongResult
from cluster.daemon.garbage import collect_seldom
from cluster.scheduler.machine import Received, Scheduler, Send, Tick
from cluster.session.parts import LINKED_PART_INPUTS, LINKED_PART_TASKS, PART_TASKS
from cluster.wire import messages

CLIENT_PEER = 0
FUNCTION = b"f" * 16
SLOTS_PER_WORKER = 2
TASK_SECONDS = 10e-6
REPORT_SECONDS = 2e-3
# What the client's pickler makes of `(i,)`, and a slot of a small integer.
ARGUMENT = b"\x80\x05K\x01\x85."
VALUE = b"\x80\x05K\x01."
TASKS = (10_000, 1_000_000, 10_000_000)
WORKERS = (2, 100, 10_000)
LARGEST_REPEATED = 1_000_000
AT_LEAST_MICROSECONDS = 10.0
AIM_MICROSECONDS = 3.0


class Outcome(NamedTuple):
    """One run: microseconds a task inside the scheduler by phase, and what it held at most."""

    shape: str
    tasks: int
    workers: int
    build: float
    run: float
    release: float
    resident_bytes: float
    joins_seconds: float
    grants: int
    longest_step_seconds: float

    @property
    def total(self) -> float:
        return self.build + self.run + self.release


class Level(NamedTuple):
    """Consecutive tasks: how many, and their inputs as compressed sparse rows of client numbers."""

    size: int
    starts: array[int] | None = None
    inputs: array[int] | None = None


def map_levels(tasks: int) -> Iterable[Level]:
    yield Level(tasks)


def tree_levels(tasks: int) -> Iterable[Level]:
    """The largest whole tree of at most so many tasks."""
    count, first = 1 << ((tasks + 1).bit_length() - 2), 0
    yield Level(count)
    while count > 1:
        yield Level(count // 2, array("I", range(0, count + 1, 2)), array("q", range(first, first + count)))
        first += count
        count //= 2


def all_to_all_levels(tasks: int) -> Iterable[Level]:
    """The largest shuffle of at most so many tasks."""
    width = math.isqrt(tasks + 1) - 1
    yield Level(width)
    pieces = array("q", [source for source in range(width) for _ in range(width)])
    yield Level(width * width, array("I", range(width * width + 1)), pieces)
    merged = array("q", [width + source * width + place for place in range(width) for source in range(width)])
    yield Level(width, array("I", range(0, width * width + 1, width)), merged)


def fan_levels(tasks: int) -> Iterable[Level]:
    yield Level(1)
    yield Level(tasks - 1, array("I", range(tasks)), array("q", bytes(8 * (tasks - 1))))


def model_levels(tasks: int) -> Iterable[Level]:
    half = (tasks - 1) // 2
    yield Level(half + 1)
    inputs = array("q", (half,)) * (2 * half)
    inputs[::2] = array("q", range(half))
    yield Level(half, array("I", range(0, 2 * half + 1, 2)), inputs)


SHAPES = {
    "map": map_levels,
    "tree": tree_levels,
    "all-to-all": all_to_all_levels,
    "fan": fan_levels,
    "model": model_levels,
}


class ScriptedWorker:
    """Runs what it is granted in order, and reports as an agent does: 2 ms after the first unsent, or once it is dry.

    The gathering matters: reported grant by grant, small grants beget small reports and these small grants. A tree of
    131,071 tasks then took 100,240 grants and 30 µs a task, instead of 1,562 and 13.
    """

    def __init__(self) -> None:
        self.queue: deque[list[int]] = deque()  # [attempt, inline, first row, count]
        self.queued = 0
        self.clock = 0.0  # the virtual time up to which the queue has been worked off
        self.report_at = math.inf

    def granted(self, now: float, grant: messages.Grant) -> None:
        if not self.queued:
            self.clock = now
        inline = int(grant.inline_limit_bytes >= len(VALUE))
        for position in range(0, len(grant.runs), 2):
            first, count = grant.runs[position], grant.runs[position + 1]
            self.queue.append([grant.attempt, inline, first, count])
            self.queued += count
        self.plan_report()

    def plan_report(self) -> None:
        dry_after = TASK_SECONDS * max(1.0, self.queued / SLOTS_PER_WORKER)
        gathered_after = TASK_SECONDS + REPORT_SECONDS
        self.report_at = self.clock + min(dry_after, gathered_after) if self.queued else math.inf

    def report(self, now: float) -> list[messages.Done]:
        """One message for each attempt that got on."""
        left = self.queued
        if now < self.clock + TASK_SECONDS * max(1.0, self.queued / SLOTS_PER_WORKER) - TASK_SECONDS / 4:
            left = min(left, max(1, round((now - self.clock) * SLOTS_PER_WORKER / TASK_SECONDS)))
        self.queued -= left
        runs: dict[int, list[int]] = {}
        inlines: dict[int, int] = {}
        while left:
            entry = self.queue[0]
            attempt, inline, first, queued = entry
            count = min(left, queued)
            runs.setdefault(attempt, []).extend((first, count))
            inlines[attempt] = inline
            left -= count
            if count == queued:
                self.queue.popleft()
            else:
                entry[2:] = first + count, queued - count
        self.clock = now
        self.plan_report()
        return [report_of(attempt, ran, inlines[attempt]) for attempt, ran in runs.items()]


def report_of(attempt: int, runs: list[int], inline: int) -> messages.Done:
    count = sum(runs[1::2])
    offsets = array("I", range(0, (count + 1) * len(VALUE), len(VALUE))).tobytes() if inline else b""
    sizes = array("Q", (len(VALUE),)).tobytes() * count
    blob = VALUE * count if inline else b""
    return messages.Done(1, attempt, runs, sizes, offsets, blob, TASK_SECONDS * count, TASK_SECONDS, [])


class Bench:
    """A scheduler between a scripted client and scripted workers, under a clock of its own."""

    def __init__(self, workers: int) -> None:
        self.scheduler = Scheduler(epoch=1)
        self.now = 0.0
        self.spent_seconds = 0.0
        self.longest_seconds = 0.0
        self.workers = [ScriptedWorker() for _ in range(workers + 1)]
        self.due: list[tuple[float, int]] = []
        self.recalled: list[tuple[int, messages.Recalled]] = []
        self.grants = 0
        self.completed = 0
        self.finished_count = 0
        self.tell(CLIENT_PEER, messages.ClientJoin(b"c" * 16, "bench", {}))
        began = self.spent_seconds
        for index in range(1, workers + 1):
            address = f"tcp://10.0.{index >> 8}.{index & 255}:8771"  # each on a host of its own
            identity = index.to_bytes(16, "big")
            self.tell(
                index,
                messages.WorkerJoin(identity, f"w{index}", address, SLOTS_PER_WORKER, 1 << 33, {}, {}, index),
            )
        self.joins_seconds = self.spent_seconds - began

    def tell(self, peer: int, message: object) -> None:
        self.step(Received(peer, message))

    def step(self, event: Received | Tick) -> None:
        """One event into the scheduler, timed, and its effects to the scripted peers, not timed."""
        began = time.perf_counter()
        effects = self.scheduler.handle(self.now, event)
        seconds = time.perf_counter() - began
        self.spent_seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)
        for effect in effects:
            if not isinstance(effect, Send):
                raise WrongResult(f"the scheduler closed a connection: {effect}")
            message = effect.message
            if isinstance(message, messages.Grant):
                self.grants += 1
                worker = self.workers[effect.peer]
                worker.granted(self.now, message)
                heapq.heappush(self.due, (worker.report_at, effect.peer))
            elif isinstance(message, messages.Finished):
                self.finished_count += sum(message.runs[1::2])
            elif isinstance(message, messages.Recall):
                # Whatever is recalled has been claimed by then.
                self.recalled.append((effect.peer, messages.Recalled(1, message.request, [])))
            elif isinstance(message, messages.Failed):
                raise WrongResult(f"a task failed: {message.details}")

    def submit(self, shape: str, tasks: int) -> tuple[int, int]:
        """All levels, each released once the next is submitted; the task count and the last level's first number."""
        self.tell(CLIENT_PEER, messages.DefineFunction(FUNCTION, "bench", b"function"))
        number = previous = last = 0
        for place, level in enumerate(SHAPES[shape](tasks)):
            last = number
            self.submit_level(level, number)
            number += level.size
            if place:
                self.tell(CLIENT_PEER, messages.Release([previous, last - previous]))
            previous = last
        self.tell(CLIENT_PEER, messages.Await([last, number - last]))
        return number, last

    def submit_level(self, level: Level, batch: int) -> None:
        part = PART_TASKS
        if level.inputs is not None:
            part = min(LINKED_PART_TASKS, max(1, LINKED_PART_INPUTS * level.size // len(level.inputs)))
        for start in range(0, level.size, part):
            count = min(part, level.size - start)
            starts, inputs, offsets, blob = b"", b"", b"", ARGUMENT
            if level.starts is None:
                offsets = array("I", range(0, (count + 1) * len(ARGUMENT), len(ARGUMENT))).tobytes()
                blob = ARGUMENT * count
            elif level.inputs is not None:
                mine = level.starts[start : start + count + 1]
                starts = array("I", [edge - mine[0] for edge in mine]).tobytes()
                inputs = level.inputs[mine[0] : mine[-1]].tobytes()
            self.tell(
                CLIENT_PEER,
                messages.Submit(batch + start, count, batch, FUNCTION, "bench", {}, 0, offsets, blob, starts, inputs),
            )

    def run(self, tasks: int) -> None:
        """Time goes on until every task has been reported."""
        while self.completed < tasks:
            while self.recalled:
                self.tell(*self.recalled.pop())
            # A plan that was changed since leaves its old time behind in the heap.
            while self.due and self.workers[self.due[0][1]].report_at != self.due[0][0]:
                heapq.heappop(self.due)
            wakeup = self.scheduler.next_wakeup
            if self.due and self.due[0][0] <= wakeup:
                self.now, peer = heapq.heappop(self.due)
                self.report(peer)
            elif math.isinf(wakeup):
                raise WrongResult(f"nothing moves, with {self.completed} of {tasks} tasks done")
            else:
                self.now = max(self.now, wakeup)
                self.step(Tick())

    def report(self, peer: int) -> None:
        worker = self.workers[peer]
        for done in worker.report(self.now):
            self.tell(peer, done)
            self.completed += sum(done.runs[1::2])
        if worker.queued:
            heapq.heappush(self.due, (worker.report_at, peer))

    def settle(self) -> None:
        """Lets the scheduler do what it put off."""
        while self.scheduler.next_wakeup <= self.now:
            self.step(Tick())


def measure(shape: str, tasks: int, workers: int) -> Outcome:
    """One run, in this process."""
    gc.collect()
    collect_seldom()  # as the daemon does before anybody connects
    bench = Bench(workers)
    process = psutil.Process()
    resident = process.memory_info().rss
    spent = [bench.spent_seconds]
    count, last = bench.submit(shape, tasks)
    held = process.memory_info().rss - resident
    spent.append(bench.spent_seconds)
    bench.run(count)
    bench.settle()
    if bench.completed != count:
        raise WrongResult(f"{bench.completed} tasks were run instead of {count}")
    if bench.finished_count < count - last:
        raise WrongResult(f"the client was told of {bench.finished_count} tasks, at least {count - last} were awaited")
    held = max(held, process.memory_info().rss - resident)
    spent.append(bench.spent_seconds)
    bench.tell(CLIENT_PEER, messages.Release([last, count - last]))
    bench.settle()
    spent.append(bench.spent_seconds)
    build, run, release = ((spent[i + 1] - spent[i]) / count * 1e6 for i in range(3))
    return Outcome(
        shape,
        count,
        workers,
        build,
        run,
        release,
        held / count,
        bench.joins_seconds,
        bench.grants,
        bench.longest_seconds,
    )


def measure_apart(shape: str, tasks: int, workers: int) -> Outcome:
    """One run in a fresh process, so that no run sees the memory of another."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (shape, tasks, workers))


def core_section(shapes: Iterable[str], sizes: Iterable[int], worker_counts: Iterable[int], runs: int) -> str:
    """The table of all combinations, medians of the runs; over a million tasks one run is made, since they are long."""
    lines = [
        "## core: The scheduler's machine alone, no sockets",
        "",
        "| shape | tasks | workers | µs a task | lowest to highest | build | run | release "
        "| longest step, ms | tasks a grant | bytes a task | at least | aim |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for shape in shapes:
        for tasks in sizes:
            for workers in worker_counts:
                times = runs if tasks <= LARGEST_REPEATED else 1
                row = core_row([measure_apart(shape, tasks, workers) for _ in range(times)])
                print(row, flush=True)
                lines.append(row)
    lines += [
        "",
        f"At least {AT_LEAST_MICROSECONDS:g} µs a task, flat in tasks and workers; aim {AIM_MICROSECONDS:g} µs. "
        "The bytes are of the resident set, arguments included. A shuffle has two inputs a task. "
        "No step should take longer than 5 ms.",
    ]
    return "\n".join(lines) + "\n"


def core_row(outcomes: list[Outcome]) -> str:
    totals = [outcome.total for outcome in outcomes]
    total = statistics.median(totals)
    first = outcomes[0]
    phases = [statistics.median(getattr(o, phase) for o in outcomes) for phase in ("build", "run", "release")]
    cells = [
        first.shape,
        f"{first.tasks:,}",
        f"{first.workers:,}",
        f"{total:.2f}",
        f"{min(totals):.2f} to {max(totals):.2f}",
        *(f"{phase:.2f}" for phase in phases),
        f"{statistics.median(o.longest_step_seconds for o in outcomes) * 1e3:.1f}",
        f"{first.tasks / first.grants:.1f}",
        f"{statistics.median(o.resident_bytes for o in outcomes):.0f}",
        "met" if total <= AT_LEAST_MICROSECONDS else "**missed**",
        "met" if total <= AIM_MICROSECONDS else "**missed**",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description="The scheduler's machine alone.")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tasks", default=",".join(map(str, TASKS)))
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)))
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.tasks.split(",")]
    worker_counts = [int(count) for count in arguments.workers.split(",")]
    print(core_section(arguments.shapes.split(","), sizes, worker_counts, arguments.runs))


if __name__ == "__main__":
    main()
