"""`explain`, `story` and placement by hand, with real processes."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster import CancelledError, Client, ClusterError, LocalCluster, Unrunnable
from tests.processes.whole_cluster import Gate, until, wait_at, whole_cluster


def whats(client: Client, task: Any) -> tuple[str, list[str]]:
    explanation = client.explain(task)
    return explanation.state, [reason.what for reason in explanation.reasons]


def where_am_i(*inputs: Any) -> int:
    return os.getppid()


def die_once(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def test_every_state_is_explained_to_whoever_asks(local_cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, Client(local_cluster) as other:
        running = [client.submit(wait_at, gate.path, n) for n in range(2)]
        gate.wait_until_reached()
        until(lambda: all(whats(client, future)[0] == "running" for future in running), "both run")
        queue = client.map(abs, range(3))
        waiting = client.submit(max, running[0], 5, key="the waiting one")
        assert whats(client, queue[2]) == ("ready", ["slot", "turn"])
        assert whats(client, waiting) == ("waiting", ["inputs", f"running of {running[0].key}"])
        assert whats(other, "the waiting one") == whats(client, waiting)
        assert whats(other, queue[1].key)[0] == "ready"
        text = str(running[0].explain())
        assert text.startswith(f"{running[0].key} is running\n  running: it has run for ") and "  -> wait" in text
        story = [what for _, what, _ in running[0].story().transitions]
        assert story == ["submitted", "granted", "started"]
        cancelled = client.submit(abs, 1)
        cancelled.cancel()
        with pytest.raises(CancelledError):
            cancelled.result(10)
        assert whats(client, cancelled) == ("cancelled", ["cancelled"])
        gate.open()
        assert client.gather(waiting) == 5
        assert whats(client, waiting) == ("finished", ["finished"])
    failing = client.submit(divmod, 1, 0)
    taker = client.submit(abs, failing)
    taker.exception(10)
    state, (first, second) = whats(client, taker)
    assert (state, first, second) == ("failed", "failed input", f"exception of {failing.key}")
    assert "ZeroDivisionError" in str(client.explain(taker))
    assert whats(client, "no such key") == ("forgotten", ["forgotten"])
    key = failing.key
    failing.release()
    with pytest.raises(ClusterError, match="released"):
        failing.explain()
    with pytest.raises(TypeError, match="a Future or a key"):
        client.explain(key.encode())  # type: ignore[arg-type]


def test_a_story_tells_of_a_death_and_its_repetition(client: Client, tmp_path: Path) -> None:
    future = client.submit(die_once, str(tmp_path / "died"))
    assert future.result(20) == "survived"
    story = future.story()
    assert [what for _, what, _ in story.transitions] == ["submitted", "slot died", "finished"]
    (submitted, _, _), (died, _, why), (finished, _, _) = story.transitions
    assert submitted is not None and died is not None and submitted <= died and finished is None
    assert "signal 9" in why and "not kept" in str(story)


def test_an_explanation_does_not_wait_for_a_worker_that_is_stopped(tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, whole_cluster(workers=1) as cluster:
        client = cluster.client()
        future = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        cluster.workers[0].signal(signal.SIGSTOP)
        started = time.monotonic()
        assert whats(client, future) == ("granted", ["silent worker"])
        assert time.monotonic() - started < 8.0  # the worker would be given up after 10 s
        cluster.workers[0].signal(signal.SIGCONT)
        until(lambda: whats(client, future)[0] == "running", "the worker answers again")
        gate.open()
        future.result(10)


def test_tasks_go_where_they_are_sent_by_name_and_by_resources() -> None:
    with whole_cluster(workers=0, unmet_request_seconds=2) as cluster:
        cluster.add_workers(("--resources", "GPU=1.5"), ("--resources", "LICENCE=1,GPU=0.5"), slots=2)
        client = cluster.client()
        addresses = {info["name"]: address for address, info in client.scheduler_info()["workers"].items()}

        def places(**options: Any) -> set[str]:
            futures = [client.submit(where_am_i, n, **options) for n in range(10)]
            client.gather(futures)
            return {address for holders in client.who_has(futures).values() for address in holders}

        first, second = addresses["worker-0"], addresses["worker-1"]
        assert places(workers="worker-0") == {first}
        assert places(workers=second) == {second}
        assert places(workers=["worker-0", second]) <= {first, second}
        assert places(resources={"LICENCE": 1}) == {second}
        assert places(resources={"GPU": 1}) == {first}
        assert places(resources={"GPU": 0.5}) <= {first, second}
        assert places(resources={"GPU": 0.5, "LICENCE": 0.25}) == {second}
        assert places(resources={"GPU": 0.1}, workers="worker-1") == {second}
        preferred = client.submit(where_am_i, workers="worker-1", allow_other_workers=True)
        preferred.result()
        assert client.who_has(preferred)[preferred.key] == [second]
        # What is preferred outweighs where a small input lies.
        moved = client.submit(
            where_am_i, client.submit(where_am_i, workers="worker-0"), workers="worker-1", allow_other_workers=True
        )
        moved.result()
        assert second in client.who_has(moved)[moved.key]
        # Each can be met by somebody, both together by nobody.
        both = client.submit(where_am_i, resources={"GPU": 1, "LICENCE": 1})
        neither = client.submit(where_am_i, workers="worker-0", resources={"LICENCE": 1})
        nowhere = client.submit(where_am_i, workers="worker-9")
        assert "no connected worker can ever run it" in str(both.explain())
        for future, missing in ((both, "LICENCE"), (neither, "LICENCE"), (nowhere, '"worker-9"')):
            with pytest.raises(Unrunnable, match=missing):
                future.result(10)
            assert future.explain().state == "failed"
        both.retry()
        cluster.add_workers(("--resources", "GPU=1,LICENCE=1"))
        assert both.result(10) > 0
        assert [what for _, what, _ in both.story().transitions][:3] == ["submitted", "retried", "needed again"]


def test_fractions_of_a_resource_bound_what_runs_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        gates = [stack.enter_context(Gate(tmp_path / f"gate-{n}")) for n in range(4)]
        cluster = stack.enter_context(whole_cluster(workers=0))
        cluster.add_workers(("--resources", "GPU=1"), slots=4)
        client = cluster.client()
        futures = [
            client.submit(wait_at, gate.path, gpus, resources={"GPU": gpus})
            for gate, gpus in zip(gates, (0.5, 0.25, 0.5, 0.25), strict=True)
        ]
        for position in (0, 1, 3):  # the third lacks a quarter, and the fourth passes it by
            gates[position].wait_until_reached()
        assert whats(client, futures[2]) == ("ready", ["resources", "turn"])
        assert "it takes 0.5 GPU" in str(futures[2].explain())
        gates[1].open()
        futures[1].result(10)
        gates[3].open()
        futures[3].result(10)
        gates[2].wait_until_reached()  # 0.5 and 0.5
        for position in (0, 2):
            gates[position].open()
        assert client.gather(futures) == [0.5, 0.25, 0.5, 0.25]


def test_higher_priority_goes_first_and_a_weight_must_be_one(tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate, whole_cluster(workers=1) as cluster:
        client = cluster.client()
        held = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        log = str(tmp_path / "log")
        wanted = {"a": -1, "b": 0, "c": 5}
        futures = [client.submit(note, log, name, priority=priority) for name, priority in wanted.items()]
        until(lambda: client.scheduler_info()["tasks"] == 4, "all have come")
        gate.open()
        client.gather([held, *futures])
        assert Path(log).read_text() == "cba"
        for weight in (0, -1, float("nan"), float("inf"), 1e9):
            with pytest.raises(ValueError, match="weight must lie between"):
                Client(cluster.address, directory=cluster.directory, weight=weight)
        with pytest.raises(TypeError, match="weight must be a number"):
            Client(cluster.address, directory=cluster.directory, weight="2")  # type: ignore[arg-type]
        with Client(cluster.address, directory=cluster.directory, weight=2) as heavy:
            assert heavy.submit(abs, -1).result() == 1


def note(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)
