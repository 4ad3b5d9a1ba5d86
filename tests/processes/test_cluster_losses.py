"""Agents killed, stopped and drained, clients killed, in the middle of real work: nothing lost, nothing left."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster import Client, wait
from cluster.errors import TaskDied, ValueLost
from tests.processes.whole_cluster import (
    Daemon,
    Gate,
    hold_the_lock_at,
    script,
    until,
    wait_at,
    whole_cluster,
    worker_of,
)

pytestmark = pytest.mark.timeout(25)

SIZE = 20_000  # numbers in a value: larger than what an agent keeps as bytes


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


def inc(x: int) -> int:
    return x + 1


def note_run(folder: str, name: str) -> None:
    """Leave a file that tells that the task ran, and in which slot."""
    Path(folder, f"{name} {os.getppid()} {uuid.uuid4()}").touch()


def runs(folder: Path) -> dict[str, list[int]]:
    """The starters in whose slots each task ran, in order."""
    found: dict[str, list[tuple[int, int]]] = {}
    for file in folder.iterdir():
        name, starter, _ = file.name.split(" ")
        found.setdefault(name, []).append((file.stat().st_mtime_ns, int(starter)))
    return {name: [starter for _, starter in sorted(times)] for name, times in found.items()}


def load(folder: str, at: int) -> np.ndarray[Any, Any]:
    note_run(folder, f"load-{at}")
    return np.full(SIZE, at, dtype=np.int64)


def combine(folder: str, name: str, gate: str, left: Any, right: Any) -> Any:
    note_run(folder, name)
    if gate:
        wait_at(gate)
    return left + right


def starter_of(worker: Daemon) -> int:
    return psutil.Process(worker.process.pid).children()[0].pid


# --------------------------------------------------------------------------- agents that are lost


@pytest.mark.kills_processes
def test_a_killed_agent_in_the_middle_of_a_tree_costs_only_what_was_lost(tmp_path: Path, gate: Gate) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    with whole_cluster(workers=2) as cluster:
        client = cluster.client()
        survivor, victim = map(starter_of, cluster.workers)
        levels: list[Any] = [client.map(load, [str(folder)] * 32, range(32))]
        while len(levels[-1]) > 1:
            level, below = len(levels), levels[-1]
            names = [f"combine-{level}-{at}" for at in range(len(below) // 2)]
            gates = [gate.path if level == 3 else ""] * len(names)
            levels.append(client.map(combine, [str(folder)] * len(names), names, gates, below[::2], below[1::2]))
        gate.wait_until_reached()
        until(lambda: sum(name.startswith("combine-3") for name in runs(folder)) == 2, "both work on the third level")
        cluster.workers[1].signal(signal.SIGKILL)
        cluster.workers[1].end()
        gate.open()
        values = client.gather(levels, timeout=40)
        assert values[-1][0].tolist() == [sum(range(32))] * SIZE
        assert [value[0] for value in values[0]] == list(range(32))
        again = {name: where for name, where in runs(folder).items() if len(where) > 1}
        assert again
        assert all(where == [victim, survivor] for where in again.values()), "only what the victim had ran again, once"
        assert len(runs(folder)) == 63


@pytest.mark.kills_processes
def test_an_agent_that_stands_still_is_replaced_and_ends_when_it_goes_on(tmp_path: Path, gate: Gate) -> None:
    with whole_cluster(workers=1, worker_timeout_seconds=2, heartbeat_interval_seconds=0.2) as cluster:
        client = cluster.client()
        done = client.submit(load, str(tmp_path), 1)
        wait([done])
        running = client.submit(wait_at, gate.path, "ran elsewhere")
        gate.wait_until_reached()
        stopped = cluster.workers[0]
        below = psutil.Process(stopped.process.pid).children(recursive=True)
        cluster.add_workers(())
        stopped.signal(signal.SIGSTOP)
        assert client.gather(client.map(inc, range(100)), timeout=10) == list(range(1, 101))
        until(lambda: len(client.scheduler_info()["workers"]) == 1, "the worker is taken for dead")
        gate.open()
        assert running.result(20) == "ran elsewhere"
        assert done.result(20)[0] == 1
        assert "worker-0" in cluster.scheduler.text
        stopped.signal(signal.SIGCONT)
        assert stopped.end() == 1
        assert f"the scheduler at {cluster.address} is gone" in stopped.text
        assert "Traceback" not in stopped.text + cluster.scheduler.text
        assert not psutil.wait_procs(below, timeout=5)[1]


# --------------------------------------------------------------------------- workers that are asked to end


def test_a_worker_that_is_asked_to_end_drains_while_others_do_its_work(tmp_path: Path, gate: Gate) -> None:
    with whole_cluster(workers=1, slots=2, drain_seconds=30) as cluster:
        client = cluster.client()
        kept = client.map(load, [str(tmp_path)] * 4, range(4))
        wait(kept)
        running = client.submit(hold_the_lock_at, gate.path)
        gate.wait_until_reached()
        queued = client.map(time.sleep, [0.02] * 40)
        wait(queued[:1])
        cluster.add_workers((), slots=2)
        leaving = cluster.workers[0]
        leaving.signal(signal.SIGTERM)
        client.gather(queued, timeout=20)
        assert running.status == "pending"
        assert leaving.process.poll() is None
        gate.open()
        assert running.result(10) == "held"
        assert leaving.end() == 0
        assert [value[0] for value in client.gather(kept, timeout=20)] == list(range(4))
        assert "Traceback" not in leaving.text


def test_what_does_not_end_in_the_drain_time_runs_again_elsewhere(tmp_path: Path) -> None:
    def wait_where_it_runs_first(folder: str, gate: str) -> int:
        note_run(folder, "task")
        if len(runs(Path(folder))["task"]) == 1:
            hold_the_lock_at(gate)
        return len(runs(Path(folder))["task"])

    (tmp_path / "runs").mkdir()
    with Gate(tmp_path / "gate") as gate, whole_cluster(workers=1, drain_seconds=0.2) as cluster:
        client = cluster.client()
        future = client.submit(wait_where_it_runs_first, str(tmp_path / "runs"), gate.path)
        gate.wait_until_reached()
        cluster.add_workers(())
        cluster.workers[0].signal(signal.SIGTERM)
        assert future.result(20) == 2
        assert cluster.workers[0].end() == 0


def end_own_worker() -> None:
    """A task: kill the agent that its slot belongs to."""
    os.kill(worker_of(os.getppid()), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.kills_processes
@pytest.mark.timeout(60)
def test_a_task_that_kills_its_whole_worker_fails_and_others_do_not() -> None:
    with whole_cluster(workers=1) as cluster:
        client = cluster.client()
        guilty = client.submit(end_own_worker)
        innocent = client.map(inc, range(50))
        for _ in range(3):
            assert cluster.workers[-1].end() == -signal.SIGKILL
            assert not guilty.done()
            cluster.add_workers(())
        with pytest.raises(TaskDied, match=r"its whole worker ended .*worker-1.*worker-2.*worker-3") as caught:
            guilty.result(20)
        assert caught.value.attempts == 3
        cluster.add_workers(())
        assert client.gather(innocent, timeout=20) == list(range(1, 51))


# --------------------------------------------------------------------------- clients that are lost

HOLD_AND_WAIT = """
    import sys, time
    import numpy as np
    from cluster import Client, fire_and_forget, wait
    from tests.processes.whole_cluster import wait_at

    def write(path, value):
        with open(path, "w") as file:
            file.write(str(value))

    address, gate, path = sys.argv[1:]
    client = Client(address)
    kept = client.map(np.ones, [20_000 + size for size in range(20)])
    scattered = client.scatter(np.ones(50_000))
    wait(kept)
    running = client.submit(wait_at, gate, "value")
    fire_and_forget(client.submit(write, path, running))
    more = client.map(abs, range(500), resources={"NOWHERE": 1})
    client.scheduler_info()
    print("ready", client.submit(max, client.submit(min, 1, 2), scattered.key and 3).key, flush=True)
    time.sleep(100)
"""


@pytest.mark.kills_processes
def test_what_a_killed_client_wanted_is_released_but_not_what_it_fired_and_forgot(tmp_path: Path, gate: Gate) -> None:
    path = tmp_path / "written"
    with whole_cluster(workers=2, client_grace_seconds=1) as cluster:
        client = cluster.client()
        with script(HOLD_AND_WAIT, cluster.address, gate.path, str(path)) as victim:
            gate.wait_until_reached()
            victim.wait_for("ready")
            assert client.scheduler_info()["clients"] == 2
            assert client.scheduler_info()["tasks"] > 500
            victim.signal(signal.SIGKILL)
            victim.end()
        until(lambda: client.scheduler_info()["tasks"] <= 2, "all is released but the two that are to run")
        assert client.gather(client.map(inc, range(10)), timeout=10) == list(range(1, 11))
        assert not path.exists()
        gate.open()
        until(lambda: path.exists() and path.read_text() == "value", "what was forgotten ran to the end")
        until(lambda: client.scheduler_info()["tasks"] == 0, "nothing is left of it")
        until(lambda: held_values(client) == 0, "no worker holds anything")
        assert cluster.segments() == []


def held_values(client: Client) -> int:
    return sum(worker["held_values"] for worker in client.scheduler_info()["workers"].values())


SCATTER_AND_WAIT = """
    import sys, time
    import numpy as np
    from cluster import Client

    address, gate = sys.argv[1:]
    client = Client(address)
    value = client.scatter(np.ones(50_000))
    held = client.submit(lambda folder: folder, client.scatter([value]), key="held")
    held.result()
    print("ready", client.id.hex(), held.number, value.number, flush=True)
    time.sleep(100)
"""


@pytest.mark.kills_processes
def test_a_value_that_cannot_be_computed_again_says_why(gate: Gate) -> None:
    with whole_cluster(workers=1, client_grace_seconds=0.2) as cluster:
        client = cluster.client()
        with script(SCATTER_AND_WAIT, cluster.address, gate.path) as owner:
            identity, _, number = owner.wait_for("ready (.*)").split()
            scattered = client._bind_future((bytes.fromhex(identity), int(number)))
            assert scattered.result(10).sum() == 50_000
            owner.signal(signal.SIGKILL)
            owner.end()
        until(lambda: client.scheduler_info()["clients"] == 1, "the owner is gone")
        assert client.submit(np.sum, scattered).result(10) == 50_000  # a worker has it
        cluster.workers[0].signal(signal.SIGKILL)
        cluster.add_workers(())
        error = client.submit(np.sum, scattered).exception(20)
        assert isinstance(error, ValueLost)
        text = "\n".join([str(error), *error.__notes__])
        assert "cannot be computed again" in text and "client" in text and "submit the task again" in text
