"""A row of small runs, of which each worker takes a stretch: nothing is left out, and two work towards each other."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduler.hosts import Host
from cluster.scheduler.neighbours import MEANWHILE_PLACES, PIECE_PLACES, Neighbours


class Listed:
    """As much of a bucket as a row of neighbours sees."""

    def __init__(self) -> None:
        self.size = 1
        self.place = -1


LATER = 1.0
HOSTS = [Host(f"host{number}") for number in range(5)]
for host in HOSTS:
    host.workers = 1
SHARED = Host("shared")
SHARED.workers = 2


def grow(row: Neighbours, count: int) -> list[Listed]:
    added = [Listed() for _ in range(count)]
    for bucket in added:
        row.add(cast("Any", bucket), 0.0)
    return added


def take(row: Neighbours, worker: int, now: float = LATER, host: Host | None = None) -> int | None:
    """The place of the one that the worker runs next; at a host of its own if none is given."""
    for bucket in row.of(worker, host or HOSTS[worker], 1, now):
        assert bucket.size == 1
        bucket.size = 0
        return bucket.place
    return None


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "leave"]), st.integers(0, 4)), max_size=200))
def test_every_one_is_taken_once_whoever_asks(steps: list[tuple[str, int]]) -> None:
    row = Neighbours()
    waiting: dict[int, Listed] = {}
    for what, which in steps:
        if what == "add":
            waiting.update((bucket.place, bucket) for bucket in grow(row, 3 * which))
        elif what == "take":
            place = take(row, which)
            assert (place is None) == (not waiting)
            waiting.pop(cast("int", place), None)
        elif waiting:
            left = waiting.pop(sorted(waiting)[which % len(waiting)])
            left.size = 0
            row.leave(cast("Any", left))
    for _ in range(len(waiting)):
        place = take(row, 0)
        assert place is not None
        del waiting[place]
    assert not waiting
    assert take(row, 0) is None


def test_two_work_towards_each_other() -> None:
    row = Neighbours()
    grow(row, 400)
    taken: dict[int, list[int]] = {0: [], 1: []}
    for turn in range(400):
        place = take(row, turn % 2)
        assert place is not None
        taken[turn % 2].append(place)
    assert taken[0] == list(range(200))
    assert taken[1] == list(reversed(range(200, 400)))


def test_nobody_begins_at_the_end_of_a_row_that_grows() -> None:
    row = Neighbours()
    grow(row, 100)
    assert take(row, 0, now=0.0) == 0
    assert [take(row, 1, now=0.0) for _ in range(MEANWHILE_PLACES)] == [50, 51, 52, 53]
    grow(row, 100)
    assert take(row, 1) == 199


def test_who_takes_from_another_comes_from_its_far_end() -> None:
    row = Neighbours()
    grow(row, 8)
    assert [take(row, worker) for worker in (0, 1, 2, 2, 0)] == [0, 7, 3, 2, 1]


def test_workers_of_one_host_take_turns_at_one_stretch() -> None:
    row = Neighbours()
    grow(row, 40)
    taken = [take(row, turn % 2, host=SHARED) for turn in range(20)]
    assert PIECE_PLACES == 2
    assert taken[:8] == [0, 2, 1, 3, 4, 6, 5, 7]
    assert sorted(filter(None, taken)) == list(range(1, 20)), "nothing is left behind on the way"
    assert take(row, 4) == 39, "another host comes from the other end"


def test_a_worker_that_another_joins_at_its_host_shares_what_it_has() -> None:
    row, host = Neighbours(), Host("host")
    host.workers = 1
    grow(row, 12)
    assert [take(row, 0, host=host) for _ in range(3)] == [0, 1, 2]
    host.workers = 2
    assert [take(row, worker, host=host) for worker in (1, 0, 1, 0)] == [3, 5, 4, 6]
