"""A real agent with real slots, under a scheduler that the test plays."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from cluster.wire import messages
from tests.processes.agent_harness import (
    EPOCH,
    PlayedScheduler,
    Worker,
    done_rows,
    function_message,
    grant,
    make_scheduler,
)


@pytest.fixture
def scheduler() -> Iterator[PlayedScheduler]:
    with make_scheduler() as scheduler:
        yield scheduler


@pytest.fixture
def worker(scheduler: PlayedScheduler) -> Iterator[Worker]:
    with Worker(scheduler.address, "--slots", "2", "--name", "w1") as worker:
        yield worker


def test_a_worker_joins_and_says_so_in_one_line(scheduler: PlayedScheduler, worker: Worker) -> None:
    join = scheduler.expect(messages.WorkerJoin)
    assert (join.name, join.slots, join.process_id) == ("w1", 2, worker.process.pid)
    assert worker.first_line == f"cluster-worker w1 at {join.address} joined {scheduler.address} with 2 slots\n"


def test_granted_tasks_run_and_their_small_values_travel_with_the_notice(
    scheduler: PlayedScheduler, worker: Worker
) -> None:
    scheduler.send(function_message(lambda x: x * 2), grant(1, [(number,) for number in range(500)], first_row=10))
    values = scheduler.done(500)
    assert {row: pickle.loads(data) for (_, row), data in values.items()} == {10 + n: 2 * n for n in range(500)}


def test_a_lone_task_is_reported_with_epoch_size_and_time(scheduler: PlayedScheduler, worker: Worker) -> None:
    scheduler.send(function_message(lambda: b"x" * 5000), grant(3, [()], first_row=8))
    done = scheduler.expect(messages.Done)
    assert done.epoch == EPOCH
    [(attempt, row, nbytes, data)] = done_rows(done)
    assert (attempt, row, data) == (3, 8, b"")
    assert 5000 < nbytes < 5100
    assert 0 < done.median_seconds == done.run_seconds < 1
