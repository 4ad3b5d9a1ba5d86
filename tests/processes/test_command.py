"""The command `cluster` against real daemons, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import Client, LocalCluster
from tests.processes.whole_cluster import Daemon, Gate, daemon, until, wait_at, whole_cluster
from tests.surroundings import Surroundings

COMMAND = [sys.executable, "-m", "cluster.cli.main"]


def fail(text: str) -> None:
    raise ValueError(text)


def refuse(text: str) -> None:
    raise ValueError(text)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(cluster: LocalCluster, *arguments: str) -> Any:
    """The JSON document of a command that asks that cluster."""
    where = ("--address", cluster.scheduler_address, "--directory", str(cluster.directory))
    finished = run(*arguments, *where, "--json")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_status_tasks_and_workers_show_what_runs_and_what_failed(
    local_cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    with Gate(tmp_path / "gate") as gate:
        failed = client.submit(fail, "it is too small")
        with pytest.raises(ValueError, match="too small"):
            failed.result(10)
        running = client.submit(wait_at, gate.path, 5)
        gate.wait_until_reached()
        status = ask(local_cluster, "status")
        assert (status["clients"], status["workers"], status["slots"], status["slots_busy"]) == (1, 1, 2, 1)
        assert status["failed_by_label"] == {"fail": 1}
        assert status["versions"]["python"].startswith("3.")
        tasks = ask(local_cluster, "tasks")
        assert [(task["key"], task["state"]) for task in tasks["tasks"]] == [
            (running.key, "granted"),
            (failed.key, "failed"),
        ]
        assert "it is too small" in tasks["tasks"][1]["error"]
        (worker,) = ask(local_cluster, "workers")["workers"]
        assert (worker["name"], worker["slots"], worker["slots_busy"]) == (local_cluster.workers[0], 2, 1)
        assert worker["versions"]["cloudpickle"]
        gate.open()
        assert running.result(10) == 5


def test_many_tasks_are_counted_and_the_first_of_them_listed(local_cluster: LocalCluster, client: Client) -> None:
    count = 200_000
    futures = client.map(abs, range(count))
    assert client.submit(abs, -1).result(60) == 1
    tasks = ask(local_cluster, "tasks", "--limit", "1000", "--state", "finished")
    assert sum(tasks["counts"].values()) >= count
    assert len(tasks["tasks"]) + tasks["not_listed"] == tasks["counts"]["finished"]
    del futures


def say(text: str) -> None:
    print(text)
    print("quietly", file=sys.stderr)


def test_logs_of_a_task_are_found_by_its_key(local_cluster: LocalCluster, client: Client) -> None:
    made, named, silent = client.submit(say, "aloud"), client.submit(say, "twice", key="mine"), client.submit(abs, -1)
    for future, key, text in ((made, made.key, "aloud"), (named, "mine", "twice")):
        future.result(10)
        document = ask(local_cluster, "logs", key)
        assert (document["key"], document["dropped_bytes"]) == (key, 0)
        assert [[stream, line] for _, stream, line in document["lines"]] == [["stdout", text], ["stderr", "quietly"]]
    assert silent.result(10) == 1
    assert ask(local_cluster, "logs", silent.key)["lines"] == []
    where = ("--address", local_cluster.scheduler_address, "--directory", str(local_cluster.directory))
    assert run("logs", "mine", *where).stdout.splitlines()[0].endswith(" stdout: twice")
    unknown = run("logs", "nobody's", *where)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "does not know the task" in unknown.stderr


def test_events_are_followed_while_they_happen(local_cluster: LocalCluster) -> None:
    where = ["--address", local_cluster.scheduler_address, "--directory", str(local_cluster.directory)]
    with Daemon([*COMMAND, "events", "--follow", *where], {**os.environ, "PYTHONUNBUFFERED": "1"}) as following:
        following.wait_for(f"worker_joined +{local_cluster.workers[0]}")
        with Client(local_cluster, name="guest") as guest:
            following.wait_for("client_joined +guest")
            future = guest.submit(refuse, "no")
            following.wait_for(f"task_failed +{future.key}: on .*ValueError: no")
        following.wait_for("client_left +guest")
        following.signal(signal.SIGINT)
        assert following.end() == 130
        assert "Aborted" not in following.text
        assert "Traceback" not in following.text
    kinds = [event["kind"] for event in ask(local_cluster, "events")["events"]]
    assert {"worker_joined", "client_joined", "client_left", "task_failed"} <= set(kinds)
    assert not any("command" in line for line in following.printed), "those who only ask are no event"


def test_the_doctor_finds_the_cluster_and_its_versions(local_cluster: LocalCluster, surroundings: Surroundings) -> None:
    where = ("--address", local_cluster.scheduler_address, "--directory", str(local_cluster.directory))
    document = json.loads(run("doctor", *where, "--json").stdout)
    checks = {check["name"]: check for check in document["checks"]}
    for name in ("settings", "secret", "scheduler", "versions there", "clock"):
        assert checks[name]["outcome"] == "ok", checks[name]
    assert checks["shared memory"]["outcome"] == ("ok" if surroundings.fast_paths else "warning")
    assert all(check["remedy"] for check in checks.values() if check["outcome"] != "ok")


def test_the_doctor_fails_where_a_scheduler_should_be_and_names_who_has_its_port(own_directory: Path) -> None:
    with whole_cluster(workers=0) as cluster:
        port = cluster.address.rpartition(":")[2]
        finished = run("doctor", CLUSTER__SCHEDULER_PORT=port, CLUSTER__ADDRESS="tcp://127.0.0.1:1")
        assert finished.returncode == 1
        assert "cannot connect to tcp://127.0.0.1:1" in finished.stdout
        assert f"process {cluster.scheduler.process.pid}" in finished.stdout
        # Without a word about addresses, it is the scheduler at this machine's usual port.
        document = json.loads(run("doctor", "--json", CLUSTER__SCHEDULER_PORT=port).stdout)
        checks = {check["name"]: check for check in document["checks"]}
        assert checks["scheduler"]["outcome"] == "warning"
        assert "start one: cluster-worker" in checks["scheduler"]["remedy"]
        assert checks[f"port {port}"]["outcome"] == "ok"


def test_the_doctor_finds_what_a_process_left_that_lost_its_power() -> None:
    with whole_cluster(workers=1) as cluster:
        memory = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"]) / f"cluster-{os.getuid()}"
        value = cluster.client().submit(bytes, 1_000_000)
        until(cluster.segments, "the value is a file")
        assert leftovers()["outcome"] == "ok", "a living worker's values are no leftovers"
        left = memory / "agent-left"
        left.mkdir(mode=0o700)
        (left / "lock").touch(0o600)
        (left / "s1").write_bytes(bytes(1 << 20))
        assert leftovers()["found"] == "1.00 MiB of processes that are dead"
        assert len(value.result(10)) == 1_000_000
        cluster.add_workers(())
        assert leftovers()["outcome"] == "ok"


def leftovers() -> Any:
    (check,) = [
        each for each in json.loads(run("doctor", "--json").stdout)["checks"] if each["name"].startswith("left")
    ]
    return check


def test_nobody_there_is_said_in_one_line() -> None:
    for command in (("status",), ("tasks",), ("workers",), ("events",), ("explain", "f-1"), ("logs", "f-1")):
        finished = run(*command, "--address", "tcp://127.0.0.1:1")
        assert finished.returncode == 1
        assert finished.stdout == ""
        assert finished.stderr.startswith("cluster: cannot connect to tcp://127.0.0.1:1")
        assert finished.stderr.count("\n") == 1
    wrong = run("status", CLUSTER__ADRESS="tcp://127.0.0.1:1")
    assert wrong.returncode == 1
    assert "did you mean CLUSTER__ADDRESS?" in wrong.stderr


def test_the_demo_ends_well_and_says_what_it_did() -> None:
    finished = run("demo")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "333328333350000" in finished.stdout
    assert "ValueError: invalid literal" in finished.stdout
    assert "standard deviation 1.00" in finished.stdout


def test_the_daemons_are_commands_of_it_too() -> None:
    with Daemon([*COMMAND, "scheduler", "--port", "0"]) as scheduler:
        address = scheduler.wait_for(r"listening at (\S+)")
        with Daemon([*COMMAND, "worker", address, "--name", "alias"]) as worker:
            worker.wait_for("cluster-worker alias at")
    with daemon("cluster-worker") as plain, Daemon([*COMMAND, "worker"]) as alias:
        assert (plain.end(), alias.end()) == (2, 2)
        assert plain.text == alias.text


LOADED = """
import sys
from cluster.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    heavy = ("numpy", "pandas", "rich", "asyncio", "psutil", "cloudpickle", "cluster.client.client")
    print("loaded:", [name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", [("--help",), ("status", "--json", "--address", "tcp://127.0.0.1:1")])
def test_a_command_loads_little_before_it_answers(arguments: tuple[str, ...]) -> None:
    finished = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "loaded: []"


def test_a_shell_completes_commands_and_options() -> None:
    words = {"COMP_WORDS": "cluster st", "COMP_CWORD": "1", "_CLUSTER_COMPLETE": "bash_complete"}
    assert run(**words).stdout == "plain,status\n"
    words["COMP_WORDS"], words["COMP_CWORD"] = "cluster tasks --li", "2"
    assert run(**words).stdout == "plain,--limit\n"
