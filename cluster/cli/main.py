"""The command `cluster`: its commands are loaded when they are run, so that each starts fast.

::

    cluster status | tasks | workers | explain KEY | logs KEY | events     ask a running cluster
    cluster config | doctor                                               look at this machine
    cluster demo                                                          see it work
    cluster scheduler | worker                                            the daemons
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import click

from cluster.errors import ClusterError
from cluster.version import __version__

__all__ = ["main"]


class _Place(NamedTuple):
    module: str
    name: str
    sentence: str


_COMMANDS = {
    "status": _Place("cluster.cli.inspecting", "status", "How the cluster stands, on one screen."),
    "tasks": _Place("cluster.cli.inspecting", "tasks", "Tasks by label and state, and the first of them."),
    "workers": _Place("cluster.cli.inspecting", "workers", "The workers: slots, memory, what they do."),
    "explain": _Place("cluster.cli.inspecting", "explain", "Why a task does not run, and what to do about it."),
    "logs": _Place("cluster.cli.inspecting", "logs", "What a task printed and logged."),
    "events": _Place("cluster.cli.inspecting", "events", "What happened in the cluster."),
    "config": _Place("cluster.cli.settings", "config", "Every setting, its value, and where it came from."),
    "doctor": _Place("cluster.cli.doctor", "doctor", "Check this machine and the cluster, with remedies."),
    "demo": _Place("cluster.cli.demo", "demo", "A short tour on a cluster of its own."),
    "completion": _Place("cluster.cli.completion", "completion", "The line that teaches your shell to complete."),
    "scheduler": _Place("cluster.cli.scheduler", "main", "Run a scheduler (the same as cluster-scheduler)."),
    "worker": _Place("cluster.cli.worker", "main", "Run a worker (the same as cluster-worker)."),
}
_DAEMONS = ("scheduler", "worker")


class _Commands(click.Group):
    """Loads a command's module when it is run or asked for its help, and not for the list of all."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            near = difflib.get_close_matches(cmd_name, _COMMANDS, 1)
            ctx.fail(f"there is no command {cmd_name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        if cmd_name in _DAEMONS:
            return _daemon(cmd_name, place)
        command: click.Command = getattr(import_module(place.module), place.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.sentence) for name, place in _COMMANDS.items()])


def _daemon(name: str, place: _Place) -> click.Command:
    """Passes all arguments on as they are."""

    def run(arguments: tuple[str, ...]) -> None:
        run_daemon: Callable[[list[str]], Any] = getattr(import_module(place.module), place.name)
        sys.exit(run_daemon(list(arguments)))

    return click.Command(
        name,
        callback=run,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        help=place.sentence,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="cluster %(version)s")
def commands() -> None:
    """Look at a cluster, and at what it runs on.

    Each command has its own --help. Those that ask a cluster take --address; without it they use the setting `address`
    (see `cluster config`), or a scheduler on this machine at its usual port. Those that answer take --json.

    The exit status is 0, 1 when something is wrong (it is said in one line), or 2 for a command line that cannot be
    read.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command `cluster` and exit with its status."""
    try:
        commands.main(arguments, prog_name="cluster", standalone_mode=True)
    except ClusterError as error:
        click.echo(f"cluster: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
