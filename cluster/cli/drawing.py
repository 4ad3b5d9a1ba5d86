"""How answers look in a terminal. What came from the network is shown as plain text, whatever it contains."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.units import format_bytes, format_seconds

__all__ = [
    "draw_checks",
    "draw_events",
    "draw_explanation",
    "draw_logs",
    "draw_settings",
    "draw_status",
    "draw_tasks",
    "draw_workers",
]

_PIPE_COLUMNS = 1000  # a table takes only what it needs; what reads a pipe does not want it cut at 80
_STATES = ("granted", "ready", "waiting", "finished", "released", "failed")
_COLORS = {"failed": "red", "failure": "red", "warning": "yellow", "ok": "green", "draining": "yellow"}
_PRINTABLE = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def draw_status(status: dict[str, Any]) -> None:
    """One line for each thing."""
    tasks = status["tasks"]
    draining = f", {status['workers_draining']} of them draining" if status["workers_draining"] else ""
    lines = [
        ("scheduler", f"{status['address']}, process {status['process_id']}"),
        ("running for", format_seconds(status["uptime_seconds"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in status["versions"].items())),
        ("clients", str(status["clients"])),
        ("workers", f"{status['workers']}{draining}"),
        ("slots", f"{status['slots_busy']} of {status['slots']} busy"),
        ("tasks", ", ".join(f"{tasks[state]} {state}" for state in _STATES)),
        ("values", f"{status['values']}, {_amount(status['values_bytes'], status['memory_limit_bytes'])}"),
    ]
    if status["failed_by_label"]:
        failed = ", ".join(f"{label} {count}" for label, count in status["failed_by_label"].items())
        lines.append(("failed", failed))
    _print_table((), lines)


def draw_tasks(answer: dict[str, Any]) -> None:
    """Two tables: counts, and tasks."""
    _print_table(
        ("label", *_STATES, "values"),
        [
            (
                each["label"],
                *(each[state] or "" for state in _STATES),
                format_bytes(each["bytes"]) if each["bytes"] else "",
            )
            for each in answer["labels"]
        ],
        empty="no tasks",
    )
    if answer["tasks"]:
        click.echo()
        rows = [(task["key"], task["state"], task["worker"], task["client"], _note(task)) for task in answer["tasks"]]
        _print_table(("key", "state", "worker", "client", "note"), rows)
    if answer["not_listed"] > 0:
        click.echo(f"… and {answer['not_listed']} more")


def _note(task: dict[str, Any]) -> str:
    if task["error"]:
        return str(task["error"])
    if task["inputs_missing"]:
        return f"{task['inputs_missing']} input{'' if task['inputs_missing'] == 1 else 's'} missing"
    return format_bytes(task["bytes"]) if task["bytes"] else ""


def draw_workers(answer: dict[str, Any]) -> None:
    """A row for each worker."""
    rows = [
        (
            worker["name"],
            worker["address"],
            worker["state"],
            f"{worker['slots_busy']} of {worker['slots']}{_threads(worker['report'])}",
            worker["tasks_granted"],
            f"{worker['values']}, {format_bytes(worker['values_bytes'])}",
            _memory(worker),
            ", ".join(f"{name}={amount:g}" for name, amount in worker["resources"].items()),
            format_seconds(worker["uptime_seconds"]),
            format_seconds(worker["silent_seconds"]),
        )
        for worker in answer["workers"]
    ]
    names = (
        "name",
        "address",
        "state",
        "slots busy",
        "granted",
        "values",
        "memory",
        "resources",
        "running for",
        "silent for",
    )
    _print_table(names, rows, empty="no workers")


def _memory(worker: dict[str, Any]) -> str:
    """What is in use of a worker's memory, and what lies on disk; as the worker last said."""
    report = worker["report"]
    names = ("segment_bytes", "small_bytes", "slot_bytes", "promised_bytes")
    text = _amount(sum(int(report.get(name, 0)) for name in names), worker["memory_limit_bytes"])
    if report.get("disk_bytes"):
        text += f", {format_bytes(report['disk_bytes'])} on disk"
    if report.get("intake_paused"):
        text += ", full"
    return text


def _threads(report: dict[str, Any]) -> str:
    """What there is to say of a worker whose slots are threads."""
    if "threads" not in report:
        return ""
    left = f", {report['threads_left']} left to themselves" if report["threads_left"] else ""
    return f" ({report['threads']} threads a process{left})"


def draw_explanation(answer: dict[str, Any]) -> None:
    """The reasons in order, each with its remedy."""
    lines = [f"{answer['key']} is {answer['state']}"]
    for number, line in enumerate(answer["lines"], 1):
        why = f": {line['why']}" if line["why"] else ""
        lines.append(f"{number}. {line['what']}{why}")
        if line["remedy"]:
            lines.append(f"   → {line['remedy']}")
    click.echo(_plain("\n".join(lines)))


def draw_logs(answer: dict[str, Any]) -> None:
    """Each line with its time, if it has one, and its stream."""
    for at, stream, text in answer["lines"]:
        clock = time.strftime("%H:%M:%S ", time.localtime(at)) if at else ""
        click.echo(_plain(f"{clock}{stream}: {text.rstrip()}"))
    if not answer["lines"]:
        click.echo(_plain(f"{answer['key']} has printed and logged nothing"))


def draw_events(answer: dict[str, Any]) -> None:
    """A line for each event."""
    for event in answer["events"]:
        times = f" ({event['count']} times)" if event["count"] > 1 else ""
        clock = event["time"][11:19]
        click.echo(_plain(f"{clock} {event['kind']:<15} {event['subject']}{times}: {event['text']}"))


def draw_settings(answer: dict[str, Any]) -> None:
    """A row for each setting; where it came from last."""
    rows = []
    for setting in answer["settings"]:
        value = "(none)" if setting["value"] is None else setting["value"]
        unit = setting["unit"] or setting["type"]
        rows.append((setting["name"], value, unit, setting["from"], setting["sentence"]))
    _print_table(("setting", "value", "unit or type", "from", "what it is"), rows)


def draw_checks(answer: dict[str, Any]) -> None:
    """A row for each check, and the remedies of those that found something."""
    checks = answer["checks"]
    _print_table((), [(check["outcome"], check["name"], check["found"]) for check in checks])
    remedies = [check for check in checks if check["remedy"]]
    if remedies:
        click.echo()
    for check in remedies:
        click.echo(_plain(f"{check['name']}: {check['remedy']}"))


def _amount(used: int, limit: int) -> str:
    return f"{format_bytes(used)} of {format_bytes(limit)}"


def _plain(text: str) -> str:
    """The text without what would steer the terminal."""
    return text.translate(_PRINTABLE)


def _print_table(names: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "") -> None:
    """A table without lines around it; without names, a list of pairs."""
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(box=None, show_header=bool(names), pad_edge=False, header_style="bold")
    for position, _ in enumerate(rows[0]):
        name = names[position] if names else ""
        is_number = all(isinstance(row[position], int) or row[position] == "" for row in rows)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        cells = [_plain(str(cell)) for cell in row]
        table.add_row(*(Text(cell, style=_COLORS.get(cell, "")) for cell in cells))
    if console.is_terminal:
        console.print(table)
        return
    console = Console(markup=False, highlight=False, emoji=False, width=_PIPE_COLUMNS)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
