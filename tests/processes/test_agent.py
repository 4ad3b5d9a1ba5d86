"""A real agent with real slots, under a scheduler that the test plays."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from cluster.wire import messages, payload
from tests.processes.agent_harness import (
    EPOCH,
    PlayedScheduler,
    Worker,
    done_rows,
    function_message,
    grant,
    segments_below,
    until,
)

ROOT = Path(__file__).parents[2]


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


def test_a_large_result_is_a_segment_that_peers_can_fetch(scheduler: PlayedScheduler, worker: Worker) -> None:
    join = scheduler.expect(messages.WorkerJoin)
    scheduler.send(function_message(bytes), grant(1, [(3_000_000,), (100_000,), (5,)]))
    sizes = {}
    while len(sizes) < 3:
        sizes |= {row: nbytes for _, row, nbytes, _ in done_rows(scheduler.expect(messages.Done))}
    assert sizes[0] > 3_000_000
    peer = scheduler.peer(join.address)
    assert [len(data) for data in peer.get([(0, 1), (1, 1), (2, 1), (9, 9)])] == [sizes[0], sizes[1], sizes[2], 0]
    assert pickle.loads(peer.get([(2, 1)])[0]) == bytes(5)


def test_values_pushed_to_a_worker_are_inputs_of_its_tasks(scheduler: PlayedScheduler, worker: Worker) -> None:
    join = scheduler.expect(messages.WorkerJoin)
    small, large = pickle.dumps(b"small", 5), payload.dumps(bytes(2_000_000)).to_bytes()
    values = [[1, 50, len(small), []], [2, 50, len(large), []]]
    scheduler.send(function_message(lambda a, b: (a, len(b))))
    scheduler.send(grant(51, [(payload.mark(0), payload.mark(1))], values=values, needs=[[0, 1]]))
    peer = scheduler.peer(join.address)
    assert peer.put(1, 50, small) == ""
    assert peer.put(2, 50, large) == ""
    [data] = scheduler.done(1).values()
    assert pickle.loads(data) == (b"small", 2_000_000)
    held = scheduler.expect(messages.Held).values + scheduler.expect(messages.Held).values
    assert held == [1, 50, len(small), 2, 50, len(large)]


@pytest.mark.parametrize("asks", [False, True])
def test_what_is_pushed_and_has_no_room_is_not_taken_and_the_next_is(
    scheduler: PlayedScheduler, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    monkeypatch.setenv("CLUSTER__SPILL_QUOTA_BYTES", "1000")
    with Worker(scheduler.address, "--slots", "1", "--name", "w1", "--memory-limit", "200MB"):
        peer = scheduler.peer(scheduler.expect(messages.WorkerJoin).address)
        data = os.urandom(30_000_000)
        errors = [peer.put(row, 1, data, asks=asks) for row in range(8)]
        taken = errors.count("")
        assert 1 <= taken < 7 and not any(errors[:taken])
        assert all("no room for 28.6 MiB" in error for error in errors[taken:])
        assert peer.put(9, 1, b"small", asks=False) == ""
        assert peer.get([(0, 1), (7, 1), (9, 1)]) == [data, b"", b"small"]
        scheduler.send(messages.Free([1, 0, 1]))
        assert peer.put(7, 1, data, asks=asks) == ""


def test_room_that_was_given_to_a_peer_that_hangs_up_is_free_again(scheduler: PlayedScheduler, worker: Worker) -> None:
    peer = scheduler.peer(scheduler.expect(messages.WorkerJoin).address)
    assert peer.asks_room(1, 1, 30_000_000) == messages.PutReady(1, 1)
    shared_memory = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])
    (segment,) = [path for directory in segments_below(shared_memory) for path in directory.glob("s*")]
    peer.hang_up()
    until(lambda: not segment.exists(), "it is free again")


def test_a_worker_fetches_missing_inputs_from_another(scheduler: PlayedScheduler, worker: Worker) -> None:
    first = scheduler.expect(messages.WorkerJoin)
    with Worker(scheduler.address, "--slots", "1", "--name", "w2"):
        scheduler.expect(messages.WorkerJoin)
        scheduler.send(function_message(bytes), grant(1, [(5_000_000,), (100,)]))
        sizes: dict[int, int] = {}
        while len(sizes) < 2:
            sizes.update((row, nbytes) for _, row, nbytes, _ in done_rows(scheduler.expect(messages.Done)))
        values = [[row, 1, sizes[row], [first.address]] for row in (0, 1)]
        calls = [(payload.mark(0), payload.mark(1))]
        scheduler.send(
            function_message(lambda a, b: len(a) + len(b), "g"),
            grant(2, calls, name="g", values=values, needs=[[0, 1]]),
            to=1,
        )
        [data] = scheduler.done(1).values()
        assert pickle.loads(data) == 5_000_100
        scheduler.send(grant(3, calls, name="g", values=[[7, 7, 1, [first.address]]] * 2, needs=[[0, 1]]), to=1)
        failed = scheduler.expect(messages.RunFailed)
        assert (failed.kind, failed.details["row"], failed.details["address"]) == ("missing", 7, first.address)


def test_freed_segments_leave_shared_memory(scheduler: PlayedScheduler, worker: Worker) -> None:
    shared_memory = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])
    scheduler.send(function_message(bytes), grant(1, [(1_000_000,), (20_000_000,)]))
    scheduler.done(2)
    segments = [path for directory in segments_below(shared_memory) for path in directory.glob("s*")]
    assert len(segments) == 2
    scheduler.send(messages.Free([1, 0, 2]))
    until(lambda: not any(path.exists() for path in segments), "both segments are removed")


def test_an_agent_never_loads_what_could_unpickle(scheduler: PlayedScheduler, worker: Worker) -> None:
    maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert "numpy" not in maps and "pandas" not in maps
    code = (
        "import sys, cluster.cli.worker; "
        "print([name for name in ('cloudpickle', 'numpy', 'pandas', 'cluster.wire.payload') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "[]\n"


def test_an_agent_unpickles_nothing(scheduler: PlayedScheduler) -> None:
    watch = (
        "import os, sys; "
        "sys.addaudithook(lambda event, _: event == 'pickle.find_class' and os._exit(97)); "
        "from cluster.cli.worker import main; main()"
    )
    with Worker(scheduler.address, "--slots", "1", program=("-c", watch)) as worker:
        address = scheduler.expect(messages.WorkerJoin).address
        scheduler.send(function_message(lambda: [complex(1, 2)]), grant(1, [()]))
        scheduler.done(1)
        peer = scheduler.peer(address)
        data = cloudpickle.dumps(complex(1, 2))
        assert peer.put(1, 50, data) == ""
        assert peer.get([(1, 50)]) == [data]
        worker.process.terminate()
        assert worker.end()[0] == 0


def test_a_fault_of_the_agent_ends_it_and_says_so(scheduler: PlayedScheduler, worker: Worker) -> None:
    scheduler.send(messages.Free([1]))  # three numbers a run; no scheduler sends this
    status, errors = worker.end(5)
    assert status == 1
    assert "by a fault of its own" in errors


def test_a_peer_that_never_reads_disturbs_nobody(scheduler: PlayedScheduler, worker: Worker) -> None:
    address = scheduler.expect(messages.WorkerJoin).address
    scheduler.send(function_message(bytes), grant(1, [(900_000,)]))
    scheduler.done(1)
    lazy, quick = scheduler.peer(address), scheduler.peer(address)
    before = Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]
    lazy.stop_reading()
    lazy.ask([(0, 1)] * 300)
    assert [len(data) > 900_000 for data in quick.get([(0, 1)] * 3)] == [True] * 3
    after = Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]
    assert (int(after) - int(before)) * os.sysconf("SC_PAGE_SIZE") < 50 << 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tcp://127.0.0.1:1"], "cannot connect to tcp://127.0.0.1:1"),
        (["nonsense"], "nonsense"),
        (["tcp://nobody.invalid:8770"], "cannot connect to tls://nobody.invalid:8770"),
    ],
)
def test_a_worker_that_cannot_join_says_why_in_one_line(arguments: list[str], said: str) -> None:
    with Worker(*arguments, wait_until_joined=False) as worker:
        status, errors = worker.end()
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1


def test_a_worker_with_another_secret_is_refused(scheduler: PlayedScheduler, tmp_path: Path) -> None:
    with Worker(scheduler.address, "--directory", str(tmp_path / "other"), wait_until_joined=False) as worker:
        status, errors = worker.end()
    assert status == 2
    assert "secret" in errors
    assert errors.count("\n") == 1


def test_a_port_in_use_is_said(scheduler: PlayedScheduler, worker: Worker) -> None:
    port = scheduler.expect(messages.WorkerJoin).address.rpartition(":")[2]
    with Worker(scheduler.address, "--port", port, wait_until_joined=False) as second:
        status, errors = second.end()
    assert (status, errors.count("\n")) == (2, 1)
    assert f"port {port}" in errors
