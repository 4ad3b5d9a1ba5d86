"""The command `cluster` with a scheduler that the test plays: what it asks, what it prints, how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import click
import pytest
from click.testing import CliRunner, Result

from cluster.cli import inspecting, main
from cluster.errors import ClusterError, ConnectionLost
from cluster.wire.task_output import CUT, STDERR, STDOUT

KEY = "f-3fa20000-1[0]"


class PlayedScheduler:
    """Answers queries from a table, and notes what was asked. An answer that is an exception is raised."""

    address = "tcp://127.0.0.1:1"

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []

    def ask(self, what: str, detail: Any = None, *, timeout_seconds: float | None = 30.0) -> Any:
        self.asked.append((what, detail))
        answer = self.answers[what]
        if isinstance(answer, list) and what == "events":
            answer = answer.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against a played scheduler: `run(scheduler, "status", "--json")`."""

    def run_command(scheduler: PlayedScheduler | None, *arguments: str) -> Result:
        monkeypatch.setattr(inspecting, "connect", lambda address, directory: scheduler)
        return CliRunner().invoke(main.commands, list(arguments))

    return run_command


COUNTS = {"waiting": 1, "ready": 2, "granted": 3, "finished": 4, "released": 5, "failed": 6}
STATUS = {
    "process_id": 7,
    "uptime_seconds": 61.0,
    "versions": {"python": "3.11.7"},
    "clients": 1,
    "workers": 2,
    "workers_draining": 1,
    "slots": 4,
    "slots_busy": 3,
    "tasks": COUNTS,
    "failed_by_label": {"load": 6},
    "values": 4,
    "values_bytes": 1 << 20,
    "memory_limit_bytes": 1 << 30,
}
TASKS = {
    "counts": COUNTS,
    "labels": [{"label": "load", **COUNTS, "bytes": 3 << 20}],
    "tasks": [
        {
            "key": KEY,
            "label": "load",
            "state": "failed",
            "client": "c",
            "worker": "w",
            "bytes": 0,
            "inputs_missing": 0,
            "error": "exception: \x1b]0;evil\x07 [red]no[/red]",
        },
    ],
    "not_listed": 5,
}


def test_the_status_fits_a_screen(run: Run) -> None:
    result = run(PlayedScheduler(status=STATUS), "status")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) <= 24
    assert "running for  1 min 1 s" in lines
    assert "workers      2, 1 of them draining" in lines
    assert "slots        3 of 4 busy" in lines
    assert "values       4, 1.00 MiB of 1.00 GiB" in lines
    assert "failed       load 6" in lines


def test_json_is_what_the_scheduler_said_and_nothing_else(run: Run) -> None:
    status = json.loads(run(PlayedScheduler(status=STATUS), "status", "--json").output)
    assert status == {"address": "tcp://127.0.0.1:1", **STATUS}
    assert json.loads(run(PlayedScheduler(tasks=TASKS), "tasks", "--json").output) == TASKS


def test_tasks_pass_the_filters_on_and_show_hostile_text_as_text(run: Run) -> None:
    scheduler = PlayedScheduler(tasks=TASKS)
    filters = ("--state", "failed", "--state", "ready", "--label", "load", "--client", "c", "--limit", "5")
    result = run(scheduler, "tasks", *filters)
    wanted = {"states": ["failed", "ready"], "label": "load", "client": "c", "limit": 5}
    assert scheduler.asked == [("tasks", wanted)]
    assert KEY in result.output
    assert "[red]no[/red]" in result.output
    assert "3.00 MiB" in result.output
    assert "\x1b" not in result.output
    assert "… and 5 more" in result.output
    assert run(scheduler, "tasks", "--limit", "1001").exit_code == 2
    assert run(scheduler, "tasks", "--state", "done").exit_code == 2
    nothing = {"counts": COUNTS, "labels": [], "tasks": [], "not_listed": 0}
    assert run(PlayedScheduler(tasks=nothing), "tasks").output == "no tasks\n"


def test_workers_have_a_row_each(run: Run) -> None:
    worker = {
        "name": "w",
        "address": "tcp://127.0.0.1:5",
        "process_id": 5,
        "state": "draining",
        "slots": 2,
        "slots_busy": 1,
        "tasks_granted": 30,
        "values": 0,
        "values_bytes": 0,
        "memory_limit_bytes": 1 << 30,
        "resources": {"GPU": 1.0},
        "uptime_seconds": 3.0,
        "silent_seconds": 0.5,
        "versions": {},
        "report": {},
    }
    lines = run(PlayedScheduler(workers=[worker]), "workers").output.splitlines()
    assert len(lines) == 2
    assert "draining" in lines[1]
    assert "GPU=1" in lines[1]
    assert run(PlayedScheduler(workers=[]), "workers").output == "no workers\n"
    assert json.loads(run(PlayedScheduler(workers=[worker]), "workers", "--json").output) == {"workers": [worker]}


def test_an_explanation_names_what_why_and_the_remedy(run: Run) -> None:
    lines = [
        {"what": "it waits for an input", "why": "load-1 has not ended", "remedy": "see cluster explain load-1"},
        {"what": "no slot is free", "why": "", "remedy": ""},
    ]
    scheduler = PlayedScheduler(explain={"key": KEY, "state": "waiting", "lines": lines})
    assert run(scheduler, "explain", KEY).output.splitlines() == [
        f"{KEY} is waiting",
        "1. it waits for an input: load-1 has not ended",
        "   → see cluster explain load-1",
        "2. no slot is free",
    ]
    assert scheduler.asked == [("explain", {"key": KEY})]
    assert json.loads(run(scheduler, "explain", KEY, "--json").output)["lines"] == lines


def test_logs_are_shown_line_by_line_with_what_was_not_kept(run: Run) -> None:
    entries = [[STDOUT, 1.0, b"one\ntw"], [STDERR, 2.0, b"\x1b[31mred"], [CUT, 3.0, b"2048"], [STDOUT, 4.0, b"o\n"]]
    scheduler = PlayedScheduler(logs={"key": KEY, "runs": [["gone", [], True], ["w", entries, False]]})
    output = run(scheduler, "logs", KEY).output.splitlines()
    assert scheduler.asked == [("logs", {"key": KEY})]
    assert output[0] == "cut: what an attempt wrote on gone is no longer kept"
    assert [line[9:] for line in output[1:]] == [
        "stdout: one",
        "cut: … 2.00 KiB not shown …",
        "stdout: two",
        "stderr: \N{REPLACEMENT CHARACTER}[31mred",
    ]
    document = json.loads(run(scheduler, "logs", KEY, "--json").output)
    assert (document["key"], document["dropped_bytes"]) == (KEY, 2048)
    assert document["lines"][1] == [1.0, "stdout", "one"]
    nothing = PlayedScheduler(logs={"key": KEY, "runs": []})
    assert run(nothing, "logs", KEY).output == f"{KEY} has printed and logged nothing\n"
    assert json.loads(run(nothing, "logs", KEY, "--json").output) == {"key": KEY, "lines": [], "dropped_bytes": 0}


def event(number: int, kind: str, count: int = 1) -> dict[str, Any]:
    return {"number": number, "age_seconds": 2.0, "kind": kind, "subject": "w", "text": "why", "count": count}


def test_events_are_followed_from_the_last_one_that_was_seen(run: Run) -> None:
    answers = [
        {"events": [event(1, "worker_joined")], "last": 4},
        {"events": [event(5, "task_failed", 3)], "last": 5},
        ConnectionLost("the scheduler is gone"),
    ]
    scheduler = PlayedScheduler(events=list(answers))
    result = run(scheduler, "events", "--follow")
    assert isinstance(result.exception, ConnectionLost)
    assert [line[9:] for line in result.output.splitlines()] == [
        "worker_joined   w: why",
        "task_failed     w (3 times): why",
    ]
    assert [detail for _, detail in scheduler.asked[1:]] == [{"after": 4, "wait": True}, {"after": 5, "wait": True}]
    documents = run(PlayedScheduler(events=list(answers)), "events", "--follow", "--json").output.splitlines()
    assert [json.loads(document)["number"] for document in documents] == [1, 5]
    once = json.loads(run(PlayedScheduler(events=list(answers)), "events", "--json").output)
    assert set(once["events"][0]) == {"number", "time", "kind", "subject", "text", "count"}


@pytest.mark.parametrize(
    ("error", "status"), [(ClusterError("the scheduler does not know the query 'explain'"), 1), (None, 2)]
)
def test_an_error_is_one_line_and_the_exit_status_says_whose_it_is(
    error: Exception | None, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspecting, "connect", lambda address, directory: PlayedScheduler(explain=error))
    with pytest.raises(SystemExit) as ended:
        main.main(["explain", KEY] if error is not None else ["explian", KEY])
    assert ended.value.code == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(error) in captured.err if error is not None else "did you mean explain?" in captured.err
    assert "Traceback" not in captured.err


def test_every_command_says_what_its_json_holds_and_is_in_the_list() -> None:
    listed = CliRunner().invoke(main.commands, ["--help"]).output
    context = click.Context(main.commands)
    for name in main.commands.list_commands(context):
        assert f"  {name} " in listed
        if name in ("scheduler", "worker", "completion"):
            continue
        command = main.commands.get_command(context, name)
        assert command is not None
        assert any(parameter.name == "as_json" for parameter in command.params)
        assert "JSON: " in CliRunner().invoke(main.commands, [name, "--help"]).output


def test_config_shows_the_named_settings_and_where_they_came_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLUSTER__LEAD_SECONDS", "0.5")
    (tmp_path / "cluster.toml").write_text("drain_seconds = 7\n")
    result = CliRunner().invoke(main.commands, ["config", "drain_seconds", "lead_seconds"])
    lines = result.output.splitlines()
    assert len(lines) == 3
    assert "environment CLUSTER__LEAD_SECONDS" in lines[2]
    assert str(tmp_path / "cluster.toml") in lines[1]
    document = json.loads(CliRunner().invoke(main.commands, ["config", "--json"]).output)
    assert document["project_file"] == str(tmp_path / "cluster.toml")
    found = {setting["name"]: setting for setting in document["settings"]}
    assert found["drain_seconds"]["value"] == 7.0
    assert found["drain_seconds"]["default"] == 30.0
    wrong = CliRunner().invoke(main.commands, ["config", "drain"])
    assert wrong.exit_code == 2
    assert "drain is no setting" in wrong.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_a_shell_is_all_that_is_printed(shell: str) -> None:
    result = CliRunner().invoke(main.commands, ["completion", shell])
    assert result.stdout.count("\n") == 1
    assert f"_CLUSTER_COMPLETE={shell}_source cluster" in result.stdout
