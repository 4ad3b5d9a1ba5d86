"""A short tour of what a client does, on generated data: what `cluster demo` shows.

The tasks are here too, so this module imports almost nothing: every slot loads it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.client.client import Client

__all__ = ["tour"]

NUMBERS = 100_000
PIECES = 16
ROWS_A_PIECE = 200_000
SLEEP_SECONDS = 3600.0
WATCHED_SECONDS = 0.3
PATIENCE_SECONDS = 60.0


# --------------------------------------------------------------------------- tasks


def square(number: int) -> int:
    """A task that takes no time, so that what is seen is the cluster's own cost."""
    return number * number


def count_hits(seed: int, points: int) -> int:
    """How many of so many random points of the unit square lie in the quarter circle."""
    draw = random.Random(seed).random
    return sum(draw() ** 2 + draw() ** 2 <= 1 for _ in range(points))


def add(left: int, right: int) -> int:
    """The node of a tree."""
    return left + right


def rest(seconds: float) -> float:
    """A task that nobody wants to wait for."""
    time.sleep(seconds)
    return seconds


def make_piece(seed: int, rows: int) -> Any:
    """A piece of random numbers, made where it is used."""
    return import_module("numpy").random.default_rng(seed).normal(size=rows)


def moments(piece: Any) -> tuple[int, float, float]:
    """Count, sum and sum of squares of a piece."""
    return len(piece), float(piece.sum()), float((piece**2).sum())


def summarize(seed: int, rows: int) -> Any:
    """Sums and counts by group of a generated table: a few numbers out of many rows."""
    numpy, pandas = import_module("numpy"), import_module("pandas")
    draw = numpy.random.default_rng(seed)
    groups = draw.choice(["north", "east", "south", "west"], rows)
    table = pandas.DataFrame({"group": groups, "amount": draw.gamma(2.0, 10.0, rows)})
    return table.groupby("group")["amount"].agg(["sum", "count"])


# --------------------------------------------------------------------------- the tour


def tour(client: Client) -> Iterator[str]:
    """Go through it with that client, and say what is done as it is done; takes a few seconds."""
    yield from _map(client)
    yield from _tree(client)
    yield from _failure(client)
    yield from _cancel(client)
    if find_spec("numpy") is not None:
        yield from _arrays(client)
    if find_spec("numpy") is not None and find_spec("pandas") is not None:
        yield from _tables(client)


def _map(client: Client) -> Iterator[str]:
    yield f"1. Many small tasks.  futures = client.map(square, range({NUMBERS:_})); client.gather(futures)"
    started = time.perf_counter()
    total = sum(client.gather(client.map(square, range(NUMBERS))))
    seconds = time.perf_counter() - started
    yield f"   The sum is {total}; {NUMBERS} tasks took {seconds:.2f} s, {NUMBERS / seconds:,.0f} a second."


def _tree(client: Client) -> Iterator[str]:
    points = 50_000
    yield f"2. Futures as arguments.  {PIECES} tasks throw points at a circle; a tree of add(left, right) sums them up."
    started = time.perf_counter()
    level = list(client.map(count_hits, range(PIECES), [points] * PIECES))
    while len(level) > 1:
        # An add starts when both of its inputs exist, where they are; none of them passes through this process.
        level = list(client.map(add, level[::2], level[1::2]))
    hits = level[0].result(PATIENCE_SECONDS)
    pi = 4 * hits / (PIECES * points)
    yield f"   π is about {pi:.4f} (off by {abs(pi - math.pi):.4f}), after {time.perf_counter() - started:.2f} s."


def _failure(client: Client) -> Iterator[str]:
    yield '3. A task that fails.  client.submit(int, "many").result() raises what the task raised.'
    future = client.submit(int, "many")
    try:
        future.result(PATIENCE_SECONDS)
    except ValueError as error:
        yield f"   {type(error).__name__}: {error}"


def _cancel(client: Client) -> Iterator[str]:
    yield "4. Tasks that are stopped.  One in each slot would sleep for an hour; client.cancel(futures) ends them."
    sleeping = client.map(rest, [SLEEP_SECONDS] * sum(client.nthreads().values()))
    try:
        sleeping[0].result(WATCHED_SECONDS)
    except TimeoutError:
        yield f"   After {WATCHED_SECONDS} s they sleep. A task that comes now waits for a slot …"
    following = client.submit(square, 2)
    started = time.perf_counter()
    client.cancel(sleeping)
    following.result(PATIENCE_SECONDS)
    yield f"   … and has its result {time.perf_counter() - started:.2f} s after they were cancelled."


def _arrays(client: Client) -> Iterator[str]:
    size_bytes = 8 * PIECES * ROWS_A_PIECE
    size = f"{size_bytes / 1e6:.0f} MB"
    yield f"5. Data that stays where it was made.  {PIECES} NumPy arrays, {size} in all, in shared memory."
    started = time.perf_counter()
    pieces = client.map(make_piece, range(PIECES), [ROWS_A_PIECE] * PIECES)
    found = client.gather(client.map(moments, pieces))
    count, total, squares = (sum(column) for column in zip(*found, strict=True))
    deviation = math.sqrt(squares / count - (total / count) ** 2)
    yield f"   {count} numbers, standard deviation {deviation:.4f}; {time.perf_counter() - started:.2f} s."


def _tables(client: Client) -> Iterator[str]:
    yield f"6. Tables.  {PIECES} pandas tables of {ROWS_A_PIECE:_} rows, each summed by group on its worker."
    started = time.perf_counter()
    sums = client.gather(client.map(summarize, range(PIECES), [ROWS_A_PIECE] * PIECES))
    total = import_module("pandas").concat(sums).groupby(level=0).sum()
    means = ", ".join(f"{name} {row['sum'] / row['count']:.2f}" for name, row in total.iterrows())
    yield f"   Mean amount: {means}; {time.perf_counter() - started:.2f} s."
