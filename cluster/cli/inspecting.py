"""The commands that ask a running cluster: status, tasks, workers, explain, logs, events."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from cluster.cli.connecting import connect, json_option, print_json, scheduler_options, show
from cluster.client.inquiry import Inquiry
from cluster.client.log_lines import dropped_bytes, lines_of_runs

__all__ = ["events", "explain", "logs", "status", "tasks", "workers"]

_STATES = ("granted", "failed", "ready", "waiting", "finished", "released")
_LIMIT = 1000
_INTERRUPTED_STATUS = 130


@click.command()
@scheduler_options
@json_option
def status(address: str | None, directory: Path | None, as_json: bool) -> None:
    """How the cluster stands, on one screen.

    \b
    JSON: address, process_id, uptime_seconds, versions {name: version}, clients, workers, workers_draining,
    slots, slots_busy, tasks {state: count}, failed_by_label {label: count} (the 20 largest), values,
    values_bytes, memory_limit_bytes.

    \b
    The states of tasks: waiting (for inputs), ready (for a slot), granted (with a worker: it runs or is next),
    finished, released (nobody needs the value), failed.
    """
    with connect(address, directory) as scheduler:
        document = {"address": scheduler.address, **scheduler.ask("status")}
    show("status", document, as_json)


@click.command()
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES), help="List these; may be repeated.")
@click.option("--label", help="Only tasks with this label (the function's name, unless one was given).")
@click.option("--client", help="Only tasks of the client with this name, or whose id begins so.")
@click.option("--limit", type=click.IntRange(0, _LIMIT), default=20, show_default=True, help="List at most so many.")
@scheduler_options
@json_option
def tasks(
    states: tuple[str, ...],
    label: str | None,
    client: str | None,
    limit: int,
    address: str | None,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Tasks by label and state, and the first of them.

    Without --state, tasks that have not ended well are listed: granted, failed, ready, waiting, in this order.

    \b
    JSON: counts {state: count}, labels [{label, waiting, ready, granted, finished, released, failed, bytes}],
    tasks [{key, label, state, client, worker, bytes, inputs_missing, error}], not_listed (how many more there are).
    """
    detail = {"states": list(states), "label": label, "client": client, "limit": limit}
    with connect(address, directory) as scheduler:
        show("tasks", scheduler.ask("tasks", detail), as_json)


@click.command()
@scheduler_options
@json_option
def workers(address: str | None, directory: Path | None, as_json: bool) -> None:
    """The workers: slots, memory, what they do.

    \b
    JSON: workers [{name, address, process_id, state ("running" or "draining"), slots, slots_busy, tasks_granted,
    values, values_bytes, memory_limit_bytes, resources {name: amount}, uptime_seconds, silent_seconds,
    versions {name: version}, report {figure: number}}].
    """
    with connect(address, directory) as scheduler:
        show("workers", {"workers": scheduler.ask("workers")}, as_json)


@click.command()
@click.argument("key")
@scheduler_options
@json_option
def explain(key: str, address: str | None, directory: Path | None, as_json: bool) -> None:
    """Why the task KEY does not run (or what it does), and what to do about it.

    \b
    JSON: key, state, lines [{what, why, remedy}].
    """
    with connect(address, directory) as scheduler:
        show("explanation", scheduler.ask("explain", {"key": key}), as_json)


@click.command()
@click.argument("key")
@scheduler_options
@json_option
def logs(key: str, address: str | None, directory: Path | None, as_json: bool) -> None:
    """What the task KEY printed and logged, as far as it was kept.

    \b
    JSON: key, lines [[time (seconds since 1970), stream, text]], dropped_bytes (of what its runs wrote and no worker
    kept, as far as that is known).
    Streams: stdout, stderr, output (written past Python), log, warning, cut (says in its place what was left out).
    """
    with connect(address, directory) as scheduler:
        answer = scheduler.ask("logs", {"key": key})
    lines = [[line.time, line.stream, line.text] for line in lines_of_runs(answer["runs"])]
    dropped = dropped_bytes(answer["runs"])
    show("logs", {"key": answer["key"], "lines": lines, "dropped_bytes": dropped}, as_json)


@click.command()
@click.option("--follow", is_flag=True, help="Go on printing what happens, until interrupted.")
@scheduler_options
@json_option
def events(follow: bool, address: str | None, directory: Path | None, as_json: bool) -> None:
    """What happened in the cluster: who came and went, what failed, warnings. The newest 2000 are kept.

    \b
    JSON: events [{number, time (ISO 8601), kind, subject, text, count}]. With --follow each event is a document of
    its own on a line of its own.
    Kinds: worker_joined, worker_refused, worker_silent, worker_lost, worker_draining, worker_left, store_full,
    memory_full, memory_free, push_waits, value_lost, client_joined, client_left, client_lost, client_given_up,
    task_died, task_failed.

    Failures of one label within ten seconds are one event; its count says how many, its text is the last one's. When
    it is counted further, it is printed again.
    """
    with connect(address, directory) as scheduler:
        answer = scheduler.ask("events", {"after": 0})
        if not follow:
            show("events", {"events": _with_times(answer)}, as_json)
            return
        try:
            _follow(scheduler, answer, as_json)
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED_STATUS)  # the way in which following ends; there is nothing to say


def _follow(scheduler: Inquiry, answer: dict[str, Any], as_json: bool) -> None:
    while True:
        for event in _with_times(answer):
            if as_json:
                print_json(event, indent=None)
            else:
                show("events", {"events": [event]}, as_json)
        answer = scheduler.ask("events", {"after": answer["last"], "wait": True}, timeout_seconds=None)


def _with_times(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The events with the time of day, by this machine's clock."""
    now = time.time()
    found = []
    for event in answer["events"]:
        happened = time.localtime(now - event["age_seconds"])
        at = {"number": event["number"], "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", happened)}
        found.append({**at, **{name: event[name] for name in ("kind", "subject", "text", "count")}})
    return found
