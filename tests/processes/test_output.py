"""What tasks print, warn of, log and report, as the client that submitted them sees it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster import Client, ClusterError, LocalCluster, TaskDied, as_completed
from tests.processes.whole_cluster import Gate, own_bytes, until, wait_at

KILOBYTE = "x" * 1023 + "\n"


def say(text: str, end: str = "\n") -> str:
    print(text, end=end)
    return text


def texts(future: cluster.Future, *streams: str) -> list[str]:
    """The lines of a future's logs, of these streams only if any are named."""
    return [line.text for line in future.logs() if not streams or line.stream in streams]


# ---------------------------------------------------------------------- print


def test_what_a_task_prints_is_here_when_its_result_is(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    def speak() -> int:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        print("no end", end="")
        return 1

    future = client.submit(speak)
    assert future.result() == 1
    shown = capsys.readouterr()
    assert shown.out == "to stdout\nno end"
    assert shown.err.strip() == "to stderr"
    before = time.time()
    lines = future.logs()
    assert [(line.stream, line.text) for line in lines] == [
        ("stdout", "to stdout"),
        ("stderr", "to stderr"),
        ("stdout", "no end"),
    ]
    assert all(before - 60 < line.time <= before and line.worker for line in lines)


def test_each_line_belongs_to_the_task_that_wrote_it(client: Client) -> None:
    futures = client.map(say, [f"line {number}" for number in range(300)], end="")
    client.gather(futures)
    for number in (0, 1, 150, 298, 299):
        assert texts(futures[number]) == [f"line {number}"]


def test_a_task_that_wrote_nothing_has_no_lines(client: Client) -> None:
    future = client.submit(abs, -1)
    assert future.result() == 1
    assert future.logs() == []


def test_c_code_and_processes_that_a_task_starts_are_its_own(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    def past_python() -> None:
        os.write(1, b"straight\n")
        subprocess.run(["echo", "from a process"], check=True)
        print("and from Python")
        subprocess.run(["echo", "and again"], check=True)

    future = client.submit(past_python)
    future.result()
    expected = ["straight", "from a process", "and from Python", "and again"]
    assert texts(future) == expected
    assert capsys.readouterr().out.splitlines() == expected
    # From then on the slot marks each task, whatever writes.
    after = client.map(lambda number: os.write(1, b"raw %d\n" % number), range(20))
    client.gather(after)
    later = client.map(lambda number: os.write(1, b"raw %d\n" % number), range(20, 40))
    client.gather(later)
    assert [texts(future) for future in later] == [[f"raw {number}"] for number in range(20, 40)]


def test_a_running_task_is_heard(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def speak_and_wait(path: str) -> None:
        print("before the gate")
        wait_at(path)

    with Gate(tmp_path / "gate") as gate:
        future = client.submit(speak_and_wait, gate.path)
        gate.wait_until_reached()
        shown = ""

        def is_shown() -> bool:
            nonlocal shown
            shown += capsys.readouterr().out
            return shown == "before the gate\n"

        until(is_shown, "the line is shown while the task runs")
        assert texts(future) == ["before the gate"]
        gate.open()
        future.result()


def test_a_flood_is_cut_and_said(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    def flood(kilobytes: int) -> None:
        print("the beginning")
        for _ in range(kilobytes):
            sys.stdout.write(KILOBYTE)
        print("the end")

    agent = next(iter(client.scheduler_info()["workers"].values()))["process_id"]
    before = own_bytes(agent)
    future = client.submit(flood, 30_000)
    future.result()
    assert own_bytes(agent) - before < 8 << 20
    lines = texts(future)
    assert (lines[0], lines[-1]) == ("the beginning", "the end")
    assert 900_000 < sum(map(len, lines)) <= 1 << 20
    [cut] = texts(future, "cut")
    assert cut == "… 28.3 MiB not shown …"
    shown = capsys.readouterr()
    assert shown.out.startswith("the beginning\n")
    assert shown.out.endswith("the end\n")
    assert len(shown.out) <= 1 << 20
    assert f"28.3 MiB not shown of {future.key}" in shown.err


def test_who_does_not_want_to_see_it_asks_for_it(
    local_cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(local_cluster, show_output=False) as silent:
        future = silent.submit(say, "quietly")
        future.result()
        assert texts(future) == ["quietly"]
    assert capsys.readouterr() == ("", "")


def test_failed_and_dead_tasks_leave_their_lines(client: Client) -> None:
    def fail() -> None:
        print("about to fail")
        raise ValueError

    def die() -> None:
        print("about to die")
        os._exit(5)

    failed, dead = client.submit(fail), client.submit(die)
    assert isinstance(failed.exception(), ValueError)
    assert texts(failed) == ["about to fail"]
    error = dead.exception()
    assert isinstance(error, TaskDied)
    assert texts(dead) == ["about to die"] * 3
    assert error.last_lines == ("about to die",)
    assert (error.cause, error.exit_code, error.signal, error.out_of_memory_by) == ("exit", 5, None, None)
    assert error.attempts == 3
    assert error.worker
    assert error.peak_memory_bytes > 1 << 20
    for said in ("exit status 5", "3 attempts", "peaked at", "about to die"):
        assert said in str(error)


def test_an_innocent_predecessors_lines_are_not_the_dead_ones(client: Client) -> None:
    client.gather(client.map(say, ["innocent"] * 20))
    error = client.submit(os._exit, 3).exception()
    assert isinstance(error, TaskDied)
    assert error.last_lines == ()
    assert "It wrote nothing" in str(error)


def test_a_task_that_spoils_its_streams_spoils_its_own_only(client: Client) -> None:
    def spoil(how: str) -> None:
        if how == "close":
            sys.stdout.close()
        elif how == "replace":
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        else:
            os.close(1)

    for how in ("close", "replace", "descriptor"):
        client.gather([client.submit(spoil, how) for _ in range(4)], errors="skip")
        future = client.submit(say, how)
        future.result()
        assert texts(future) == [how]


def test_a_process_of_the_tasks_own_prints_for_it(client: Client) -> None:
    def fork() -> None:
        print("the task")
        process = os.fork()
        if not process:
            print("its child")
            logging.getLogger("child").warning("logged")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(process, 0)

    future = client.submit(fork)
    future.result()
    assert sorted(texts(future)) == ["WARNING:child:logged", "its child", "the task"]


# ---------------------------------------------------------------------- warnings and logging


def warn_often(times: int, action: str = "") -> None:
    with warnings.catch_warnings():
        if action:
            warnings.simplefilter(action)  # type: ignore[arg-type]
        for _ in range(times):
            warnings.warn("again and again", stacklevel=1)


async def warn_in_a_coroutine(times: int) -> None:
    warn_often(times)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_warning_comes_once_from_each_task_that_gives_it(threads: int) -> None:
    with LocalCluster(slots=1, threads=threads) as local, Client(local, show_output=False) as client:
        plain = [client.submit(warn_often, 3) for _ in range(3)]
        coroutines = [client.submit(warn_in_a_coroutine, 3) for _ in range(3)]
        client.gather(plain + coroutines)
        assert [len(texts(future, "warning")) for future in plain + coroutines] == [1] * 6
        once, never = client.submit(warn_often, 3, "once"), client.submit(warn_often, 3, "ignore")
        client.gather([once, never])
        assert [len(texts(future, "warning")) for future in (once, never)] == [1, 0]
        always = client.submit(warn_often, 3, "always")
        always.result()
        assert len(texts(always, "warning")) == (3 if threads == 1 else 1)  # threads of a process share its filters


def test_a_warning_is_one_here_and_names_the_task(client: Client) -> None:
    def warn() -> None:
        warnings.warn("take care", RuntimeWarning, stacklevel=1)

    with pytest.warns(RuntimeWarning, match="take care") as caught:
        future = client.submit(warn)
        future.result()
    assert future.key in str(caught[0].message)
    assert caught[0].filename == __file__
    assert any("RuntimeWarning: take care" in text for text in texts(future, "warning"))


def test_a_record_is_handled_by_the_logger_of_its_name(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    def log() -> None:
        logger = logging.getLogger("app.part")
        logger.info("an info of %d", 1)
        try:
            raise ValueError("inside")
        except ValueError:
            logger.exception("it went wrong")

    caplog.set_level(logging.INFO, "app")
    future = client.submit(log)
    future.result()
    records = [record for record in caplog.records if record.name == "app.part"]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("INFO", "an info of 1"),
        ("ERROR", "it went wrong"),
    ]
    assert records[0].__dict__["task_key"] == future.key
    assert "ValueError: inside" in str(records[1].exc_text)
    assert texts(future, "log")[:2] == ["INFO:app.part:an info of 1", "ERROR:app.part:it went wrong"]


def test_the_clients_levels_decide_what_is_shown(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "quiet")
    future = client.submit(lambda: logging.getLogger("quiet").warning("not now"))
    future.result()
    assert not [record for record in caplog.records if record.name == "quiet"]
    assert texts(future) == ["WARNING:quiet:not now"]


def test_a_task_may_configure_logging_itself(client: Client) -> None:
    def configure() -> None:
        logging.basicConfig(format="mine %(message)s", force=True)
        logging.getLogger().warning("as usual")
        logging.getLogger().handlers.clear()

    future = client.submit(configure)
    future.result()
    assert texts(future, "stderr") == ["mine as usual"]


# ---------------------------------------------------------------------- cluster.current()


def look() -> dict[str, Any]:
    task = cluster.current()
    left = None if task.deadline is None else task.deadline - time.monotonic()
    return {"key": task.key, "attempt": task.attempt, "worker": task.worker, "left": left, "stop": task.cancelled}


def test_a_task_knows_itself(client: Client) -> None:
    future = client.submit(look)
    [worker] = [info["name"] for info in client.scheduler_info()["workers"].values()]
    assert future.result() == {"key": future.key, "attempt": 1, "worker": worker, "left": None, "stop": False}
    many = client.map(lambda _: cluster.current().key, range(500))
    assert client.gather(many) == [future.key for future in many]
    assert client.submit(look, key="my-own").result()["key"] == "my-own"
    left = client.options(timeout_seconds=100).submit(look).result()["left"]
    assert 90 < left <= 100


def test_a_task_knows_which_attempt_it_is(client: Client, tmp_path: Path) -> None:
    def third_time(folder: str) -> int:
        attempt = cluster.current().attempt
        Path(folder, str(attempt)).touch()
        if attempt == 1:
            os._exit(1)
        if attempt == 2:
            raise ValueError
        return attempt

    assert client.submit(third_time, str(tmp_path), retries=2).result() == 3
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3"]


def test_outside_of_a_task_there_is_none() -> None:
    with pytest.raises(ClusterError, match="does not run inside"):
        cluster.current()


def test_a_thread_of_a_task_sees_that_it_is_cancelled(client: Client, tmp_path: Path) -> None:
    def work(path: str, folder: str) -> None:
        import threading

        task = cluster.current()

        def watch() -> None:
            while not task.cancelled:
                time.sleep(0.001)
            Path(folder, "seen").touch()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            wait_at(path)
        finally:
            thread.join()

    with Gate(tmp_path / "gate") as gate:
        future = client.submit(work, gate.path, str(tmp_path))
        gate.wait_until_reached()
        future.cancel()
        until((tmp_path / "seen").exists, "the thread saw it")


def test_what_a_task_says_to_its_log_is_shown_in_any_case(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        future = client.submit(lambda: cluster.current().log("step 1 of 2"))
        future.result()
    assert "step 1 of 2" in caplog.text
    assert texts(future) == ["INFO:cluster.task:step 1 of 2"]


def test_progress_is_checked_where_it_is_reported(client: Client) -> None:
    def report(fraction: Any) -> None:
        cluster.current().progress(fraction)

    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="the fraction must be from"):
            client.submit(report, wrong).result()


def test_an_old_context_says_that_its_task_has_ended(client: Client) -> None:
    def keep() -> None:
        sys.kept = cluster.current()  # type: ignore[attr-defined]

    def use() -> None:
        sys.kept.progress(0.5)  # type: ignore[attr-defined]

    client.gather([client.submit(keep) for _ in range(4)])
    errors = [client.submit(use).exception() for _ in range(4)]
    assert any(isinstance(error, ClusterError) and "has ended" in str(error) for error in errors)


# ---------------------------------------------------------------------- client.progress


def step(path: str) -> None:
    task = cluster.current()
    task.progress(0.25, "first")
    task.progress(0.5, "half way")
    wait_at(path)


def test_progress_counts_and_shows_what_tasks_say(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Gate(tmp_path / "gate") as gate:
        waiting = client.submit(step, gate.path)
        gate.wait_until_reached()
        done = client.map(abs, range(100))
        client.gather(done)
        with client.progress([waiting, done], block=False) as display:
            seen = until(
                lambda: display.snapshot is not None and display.snapshot.tasks and display.snapshot,
                "the task's own progress is seen",
            )
            assert [tuple(task) for task in seen.tasks] == [(waiting.key, 0.5, "half way")]
            counts = {each.label: each for each in seen.labels}
            assert (counts["abs"].done, counts["abs"].total) == (100, 100)
            assert (counts["step"].running, counts["step"].waiting) == (1, 0)
            gate.open()
    assert display.snapshot is not None
    assert display.snapshot.ended
    assert "abs: 100 of 100 done" in capsys.readouterr().err


def test_progress_returns_when_all_have_ended_and_counts_failures(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    futures = client.map(divmod, [1, 1, 1], [1, 0, 1])
    display = client.progress(futures)
    assert all(future.done() for future in futures)
    assert display.snapshot is not None
    [counts] = display.snapshot.labels
    assert (counts.done, counts.failed, counts.total) == (2, 1, 3)
    assert "2 of 3 done, 1 failed" in capsys.readouterr().err


def test_progress_can_be_left(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        future = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        with pytest.raises(KeyError), client.progress(future, block=False):
            raise KeyError
        gate.open()
        assert next(as_completed([future])) is future
