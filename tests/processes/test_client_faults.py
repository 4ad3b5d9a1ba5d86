"""The client when something goes wrong: lost processes, interrupts, forks, wrong addresses; and local clusters."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import Client, LocalCluster
from cluster.errors import AddressError, ClusterError, ConnectionLost, WrongSecret

pytestmark = pytest.mark.timeout(60)


def inc(x: int) -> int:
    return x + 1


def sleep_then(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def large(size: int) -> bytes:
    return b"x" * size


def run_script(text: str, *arguments: str, timeout: float = 40) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture
def own_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, slots=2) as cluster:
        yield cluster


def process_ids(client: Client) -> tuple[int, list[int]]:
    """The scheduler's process id, and the workers'."""
    deadline = time.monotonic() + 10
    while not (info := client.scheduler_info())["workers"]:
        assert time.monotonic() < deadline
    return info["process_id"], [worker["process_id"] for worker in info["workers"].values()]


# --------------------------------------------------------------------------- lost processes


def test_when_the_scheduler_is_gone_everything_that_waits_is_told(own_cluster: LocalCluster) -> None:
    with Client(own_cluster) as client:
        scheduler, _ = process_ids(client)
        here = client.submit(inc, 1)
        assert here.result(10) == 2
        futures = [client.submit(sleep_then, 30) for _ in range(3)]
        os.kill(scheduler, signal.SIGKILL)
        for future in futures:
            with pytest.raises(ConnectionLost, match="scheduler"):
                future.result(10)
        assert here.result() == 2
        assert futures[0].status == "lost"
        with pytest.raises(ConnectionLost):
            client.submit(inc, 1)
        with pytest.raises(ConnectionLost):
            client.scheduler_info()


@pytest.mark.kills_processes
def test_values_of_a_lost_worker_are_computed_again(own_cluster: LocalCluster) -> None:
    own_cluster.scale(2)
    with Client(own_cluster) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        futures = client.map(large, [200_000 + k for k in range(20)])
        assert all(future.exception(20) is None for future in futures)
        _, workers = process_ids(client)
        os.kill(workers[0], signal.SIGKILL)
        assert [len(value) for value in client.gather(futures, timeout=40)] == [200_000 + k for k in range(20)]


@pytest.mark.kills_processes
def test_a_killed_client_takes_its_local_cluster_along() -> None:
    script = """
        import os, signal
        from cluster import Client, LocalCluster
        with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
            client.submit(pow, 2, 2).result(20)
            info = client.scheduler_info()
            print(info["process_id"], *(worker["process_id"] for worker in info["workers"].values()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    found = run_script(script)
    assert found.returncode == -signal.SIGKILL
    pids = [int(text) for text in found.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(psutil.pid_exists, pids))


def test_a_program_that_does_not_close_anything_ends_cleanly() -> None:
    script = """
        from cluster import Client
        client = Client()
        print(client.submit(pow, 2, 3).result(20))
        print(client.scheduler_info()["process_id"])
    """
    found = run_script(script)
    assert found.returncode == 0, found.stderr
    value, scheduler = found.stdout.split()
    assert value == "8"
    assert not psutil.pid_exists(int(scheduler))


# --------------------------------------------------------------------------- interrupts and forks


def test_ctrl_c_while_waiting_leaves_the_client_usable() -> None:
    script = """
        import os, random, signal, threading, time
        from cluster import Client, LocalCluster

        def inc(x):
            return x + 1

        with LocalCluster(n_workers=1, slots=2) as cluster, Client(cluster) as client:
            client.submit(inc, 1).result(20)
            stop = threading.Event()

            def interrupt():
                pause = random.Random(1)
                while not stop.wait(pause.uniform(0.0005, 0.01)):
                    os.kill(os.getpid(), signal.SIGINT)

            interrupts = 0
            thread = None
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                try:
                    if thread is None:
                        thread = threading.Thread(target=interrupt)
                        thread.start()
                    future = client.submit(inc, 1)
                    assert future.result(10) == 2
                    assert client.gather(client.map(inc, range(50)), timeout=10) == list(range(1, 51))
                except KeyboardInterrupt:
                    interrupts += 1
            while True:
                try:
                    stop.set()
                    thread.join()
                    break
                except KeyboardInterrupt:
                    pass
            assert interrupts > 20, interrupts
            assert client.submit(inc, 41).result(10) == 42
            print("usable after", interrupts)
    """
    found = run_script(script)
    assert "usable after" in found.stdout, found.stdout + found.stderr
    assert found.returncode == 0, found.stderr


def test_a_forked_child_is_told_to_make_its_own_client() -> None:
    script = """
        import os
        from cluster import Client, LocalCluster
        with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
            future = client.submit(pow, 2, 2)
            child = os.fork()
            if child == 0:
                try:
                    client.submit(pow, 2, 2)
                except ConnectionError as error:
                    os._exit(7 if "forked" in str(error) else 8)
                os._exit(9)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), future.result(20))
    """
    found = run_script(script)
    assert found.stdout.split() == ["7", "4"], found.stderr


# --------------------------------------------------------------------------- connecting


def test_nobody_at_the_address_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ClusterError, match=str(port)):
        Client(f"tcp://127.0.0.1:{port}", timeout=0.5)
    with pytest.raises(AddressError):
        Client("nowhere")


def test_another_secret_is_refused(own_cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(WrongSecret):
        Client(own_cluster.scheduler_address, directory=tmp_path / "other")
    with Client(own_cluster.scheduler_address, directory=own_cluster.directory) as client:
        assert client.submit(inc, 1).result(10) == 2


def test_the_address_in_the_settings_is_used(own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER__ADDRESS", own_cluster.scheduler_address)
    with Client(directory=own_cluster.directory) as client:
        assert client.scheduler_address == own_cluster.scheduler_address
        assert client.submit(inc, 1).result(10) == 2


# --------------------------------------------------------------------------- local clusters


def test_tasks_wait_for_a_worker_to_come() -> None:
    with LocalCluster(n_workers=0, slots=1) as cluster, Client(cluster) as client:
        future = client.submit(inc, 1)
        with pytest.raises(TimeoutError):
            future.result(0.1)
        cluster.scale(1)
        assert len(cluster.workers) == 1
        assert future.result(20) == 2


def test_workers_see_the_modules_that_the_client_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found]

    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        assert client.submit(only_here.answer).result(20) == 42


def test_wrong_arguments_of_a_local_cluster_are_named() -> None:
    with pytest.raises(ValueError, match="threads_per_worker"):
        LocalCluster(slots=2, threads_per_worker=2)
    with pytest.raises(ValueError, match="slots must be from 1 to 1024, not 0"):
        LocalCluster(slots=0)
    with pytest.raises(TypeError, match="slots must be a whole number, not '2'"):
        LocalCluster(slots="2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="threads must be a whole number"):
        LocalCluster(threads=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_workers"):
        LocalCluster(n_workers=-1)


def test_a_local_cluster_none_of_whose_workers_could_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTER__SPILL_DIRECTORY", str(tmp_path / "missing"))
    with (
        LocalCluster(n_workers=2, slots=1) as cluster,
        pytest.raises(ConnectionLost, match=r"local-\w+-0 \(exit status 2\), local-\w+-1 \(exit status 2\)"),
    ):
        Client(cluster)
    said = capfd.readouterr().err
    assert "it cannot be made (No such file or directory)" in said
    assert "spill_directory" in said


def test_a_closed_local_cluster_leaves_no_process_and_can_be_closed_again() -> None:
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    with Client(cluster) as client:
        while len(client.scheduler_info()["workers"]) < 2:
            time.sleep(0.02)
        assert client.submit(inc, 1).result(20) == 2
        scheduler, workers = process_ids(client)
        children = psutil.Process(workers[0]).children(recursive=True)
    cluster.close()
    cluster.close()
    assert not any(map(psutil.pid_exists, [scheduler, *workers]))
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() for child in children)
