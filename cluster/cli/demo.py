"""The command `cluster demo`."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import click

from cluster.cli.connecting import json_option, print_json

__all__ = ["demo"]

_NEXT = """\
Next:
  from cluster import Client
  client = Client()                       # a cluster on this machine; ends with your program
  client.submit(pow, 2, 10).result()
or, in three terminals: cluster scheduler; the line that it prints; cluster status. See also cluster doctor."""


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """A short tour on a cluster of its own: maps, trees, futures as arguments, an error, a cancel; a few seconds.

    It needs nothing but this package, and shows more where NumPy and pandas are installed. All data are generated. The
    cluster ends with the tour.

    \b
    JSON: lines [text], seconds.
    """
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if not as_json:
            click.echo(line)

    # Loaded only when it runs: a shell that completes a command's name loads this module.
    local_cluster: Any = import_module("cluster.deploy.local").LocalCluster
    client_class: Any = import_module("cluster.client.client").Client
    started = time.perf_counter()
    with local_cluster() as cluster, client_class(cluster) as client:
        slots = f"{cluster.slots} slot{'' if cluster.slots == 1 else 's'}"
        client.submit(pow, 2, 10).result()
        ready_seconds = time.perf_counter() - started
        say(f"A cluster of this machine's own: a scheduler and a worker with {slots}, ready in {ready_seconds:.2f} s.")
        for line in import_module("cluster.deploy.tour").tour(client):
            say(line)
    say(f"That was {time.perf_counter() - started:.1f} s.")
    if as_json:
        print_json({"lines": lines, "seconds": round(time.perf_counter() - started, 3)})
    else:
        click.echo(_NEXT)
