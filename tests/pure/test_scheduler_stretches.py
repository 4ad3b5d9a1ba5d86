"""The stretches of a batch: who draws from which, and that every ready task is drawn once."""

from __future__ import annotations

import gc

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.hosts import Host
from cluster.scheduler.ready import ANYWHERE, NOBODY, Bucket, Lane
from cluster.scheduler.table import GRANTED, READY, WAITING, Table


def bucket_of(*stretches: tuple[int, int, int]) -> tuple[Bucket, bytearray]:
    """A bucket with stretches `(owner, start, stop)`, and the states of its rows."""
    stop = max(stretch[2] for stretch in stretches)
    table = Table(fan_rows=32)
    bucket = Bucket(table.allocate(stop, ClientRecord(b"c" * 16, "c", 1, table.state), 0))
    for owner, start, end in stretches:
        bucket.add(owner, start, end)
    return bucket, bytearray((READY,)) * stop


def anywhere(row: int, owner: int, thief: int) -> bool:
    return True


def nowhere(row: int, owner: int, thief: int) -> bool:
    return False


def rows_of(spans: list[tuple[int, int]]) -> list[int]:
    return [row for start, stop in spans for row in range(start, stop)]


def test_a_worker_draws_from_its_own_stretch_in_order() -> None:
    bucket, state = bucket_of((1, 0, 4), (2, 4, 8))
    assert rows_of(bucket.take(2, 3, state, anywhere, 0)) == [4, 5, 6]


def test_a_worker_without_a_stretch_takes_half_of_the_largest() -> None:
    bucket, state = bucket_of((1, 0, 2), (2, 2, 12))
    assert rows_of(bucket.take(3, 9, state, anywhere, 0))[:5] == [7, 8, 9, 10, 11]


def test_a_stretch_that_one_grant_takes_is_not_cut() -> None:
    bucket, state = bucket_of((1, 0, 2), (2, 2, 12))
    assert bucket.take(3, 11, state, anywhere, 0) == [(2, 12), (1, 2)]
    assert bucket.spans[1][0] == [0, 1]


def test_what_nobody_owns_is_drawn_from_the_front() -> None:
    bucket, state = bucket_of((NOBODY, 0, 8))
    assert rows_of(bucket.take(1, 4, state, nowhere, 0)) == [0, 1, 2, 3]


def test_a_stretch_that_was_refused_once_can_be_taken_later() -> None:
    bucket, state = bucket_of((1, 0, 10), (2, 10, 12))
    taken = bucket.take(3, 1, state, lambda row, owner, thief: owner == 2, 0)
    assert rows_of(taken) == [11]
    assert len(rows_of(bucket.take(3, 5, state, anywhere, 0))) == 5


def test_a_row_that_became_ready_again_elsewhere_is_drawn_once() -> None:
    bucket, state = bucket_of((1, 0, 2))
    state[1] = WAITING
    bucket.size -= 1
    bucket.dirty = True
    state[1] = READY
    bucket.add(2, 1, 2)
    drawn = rows_of(bucket.take(2, 5, state, anywhere, 0))
    assert sorted(drawn) == [0, 1]
    assert state == bytearray((GRANTED, GRANTED))
    assert bucket.size == 0


def test_rows_that_left_the_ready_state_are_passed_over() -> None:
    bucket, state = bucket_of((1, 0, 6))
    for row in (0, 3):
        state[row] = WAITING
    bucket.size -= 2
    bucket.dirty = True
    assert rows_of(bucket.take(1, 10, state, anywhere, 0)) == [1, 2, 4, 5]


def test_a_row_that_may_move_leaves_a_stretch_that_may_not() -> None:
    bucket, state = bucket_of((1, 0, 6))
    only_two = lambda row, owner, thief: row == 2  # noqa: E731
    assert bucket.take(9, 4, state, only_two, 0) == []
    assert rows_of(bucket.take(9, 4, state, only_two, 16)) == [2]
    assert rows_of(bucket.take(1, 10, state, nowhere, 0)) == [0, 1, 3, 4, 5]


def test_runs_that_were_drawn_are_not_kept_for_their_places_while_others_come() -> None:
    table, lane, host = Table(fan_rows=32), Lane(ANYWHERE), Host("host")
    client = ClientRecord(b"c" * 16, "c", 1, table.state)
    before = sum(isinstance(each, Bucket) for each in gc.get_objects())
    for _ in range(20):
        run = table.allocate(1, client, 0)
        lane.add(run, NOBODY, run.start, run.start + 1)
        if lane.size > 1:  # there is always one more
            assert lane.take(1, host, lambda run: 1, table.state, anywhere, 0, lambda run: None, 0.0) is not None
    assert sum(isinstance(each, Bucket) for each in gc.get_objects()) <= before + 2


def test_behind_many_runs_of_which_nothing_may_start_one_is_found_when_there_is_time() -> None:
    table = Table(fan_rows=32)
    client = ClientRecord(b"c" * 16, "c", 1, table.state)
    lane = Lane(ANYWHERE)
    runs = [table.allocate(1, client, number) for number in range(40)]
    for run in runs:
        lane.add(run, NOBODY, run.start, run.start + 1)
    state = bytearray((READY,)) * len(table)

    def take(search: int) -> object:
        found = lane.take(
            1, Host("h"), lambda run: int(run is runs[-1]), state, anywhere, search, lambda run: None, 0.0
        )
        return None if found is None else found[0]

    assert take(0) is None
    assert take(16) is runs[-1]
    assert lane.size == 39
