"""What the commands that ask a cluster have in common: their options, and how an answer leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from cluster import config
from cluster.client.inquiry import Inquiry

__all__ = ["connect", "json_option", "print_json", "scheduler_options", "show"]

_F = TypeVar("_F", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document with the fields named here."
)


def scheduler_options(command: _F) -> _F:
    """The options `--address` and `--directory`."""
    command = click.option(
        "--directory", type=click.Path(path_type=Path), help="Directory of the secret.  [default: a setting]"
    )(command)
    return click.option(
        "--address",
        help="The scheduler, as tcp://host:port.  [default: the setting `address`, or this machine's usual port]",
    )(command)


def connect(address: str | None, directory: Path | None) -> Inquiry:
    """Reach the scheduler at that address, or where the settings say."""
    settings = config.load(address=address, directory=directory)
    return Inquiry(settings.address or f"tcp://127.0.0.1:{settings.scheduler_port}", settings)


def show(what: str, document: Any, as_json: bool) -> None:
    """Print an answer: as JSON, or as the function of that name in `drawing` draws it."""
    if as_json:
        print_json(document)
    else:
        # What draws is loaded only by who draws.
        getattr(import_module("cluster.cli.drawing"), f"draw_{what}")(document)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=indent, ensure_ascii=False, default=str))
