"""`cluster-worker ADDRESS`: start a worker for the scheduler at that address."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from cluster import config
from cluster.cli.parser import CommandParser, port_number
from cluster.daemon.agent import AgentDaemon, AgentOptions
from cluster.daemon.slot_protocol import MOST_THREADS
from cluster.errors import ClusterError
from cluster.secret import load_or_create_secret
from cluster.storage.host_limits import host_limits
from cluster.units import parse_bytes
from cluster.worker.events import RESTART_STATUS

__all__ = ["main"]

_USAGE_STATUS = 2


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its status: 0 ended as asked, 1 the scheduler was lost, 2 it could not start."""
    options = _parser().parse_args(arguments)
    # A worker that belongs to a user's program writes into its output only what that user should know.
    level = logging.INFO if options.parent_socket is None else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level, stream=sys.stderr)
    try:
        settings = config.load(directory=options.directory)
        secret = load_or_create_secret(settings.directory)
        agent_options = AgentOptions(
            scheduler_address=options.address,
            host=options.host,
            port=options.port,
            announced_host=options.announced_host,
            slots=options.slots,
            memory_limit_bytes=options.memory_limit,
            resources=options.resources,
            name=options.name or f"{socket.gethostname()}-{os.getpid()}",
            python_path=options.python_path,
            threads=options.threads,
            parent=None if options.parent_socket is None else socket.socket(fileno=options.parent_socket),
        )
        daemon = AgentDaemon(agent_options, settings, secret)
        status = asyncio.run(daemon.run())
    except ClusterError as error:
        print(f"cluster-worker: {error}", file=sys.stderr)
        status = _USAGE_STATUS
    if status == RESTART_STATUS:
        restart(sys.argv[1:] if arguments is None else arguments, options.parent_socket)
    sys.exit(status)


def restart(arguments: list[str], parent_socket: int | None) -> NoReturn:
    """Replace this process by a fresh one of the same command, which the same parent watches over."""
    if parent_socket is not None:
        os.set_inheritable(parent_socket, True)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "cluster.cli.worker", *arguments])


def _parser() -> CommandParser:
    parser = CommandParser(prog="cluster-worker", description="Start a worker: an agent and its slots.")
    parser.add_argument("address", help="the scheduler's address, as it printed it")
    limits = host_limits()
    parser.add_argument("--slots", type=_slots, default=limits.slots, help="tasks at a time (default: cores)")
    parser.add_argument(
        "--threads",
        type=_threads,
        default=1,
        help="tasks that each slot's process runs at once, in threads (default: 1). For tasks that wait for input and "
        "output or release the GIL. A thread cannot be ended from outside: stopping one task is no longer certain, and "
        "a crash ends all tasks of its process",
    )
    parser.add_argument(
        "--memory-limit",
        type=_bytes,
        default=limits.worker_memory_bytes(),
        help="for values and slots, as 8GB (default: four fifths of what the host, or the container, has)",
    )
    parser.add_argument("--resources", type=_resources, default={}, help="what tasks may ask for, as GPU=1,MEM=2")
    parser.add_argument("--name", default="", help="how the worker is called (default: host and process number)")
    parser.add_argument(
        "--host", default="", help="where to listen for others (default: this machine's address towards the scheduler)"
    )
    parser.add_argument(
        "--address", dest="announced_host", default="", help="host that others are told to connect to, if it is another"
    )
    parser.add_argument("--port", type=port_number, default=0, help="… and on which port (default: any free one)")
    parser.add_argument("--directory", type=Path, default=None, help="where the secret and the settings are")
    parser.add_argument("--python-path", default="", help="folders that tasks import from, before all others")
    parser.add_argument("--parent-socket", type=int, help=argparse.SUPPRESS)
    return parser


def _slots(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"a worker has 1 to 1024 slots, not {text}")
    return int(text)


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_THREADS):
        raise argparse.ArgumentTypeError(f"a slot's process has 1 to {MOST_THREADS} threads, not {text}")
    return int(text)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _resources(text: str) -> dict[str, float]:
    resources: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        name, separator, amount = item.partition("=")
        try:
            resources[name.strip()] = float(amount)
        except ValueError:
            separator = ""
        if not separator or not name.strip() or not resources[name.strip()] >= 0:
            raise argparse.ArgumentTypeError(f"{item!r} is no resource; write NAME=AMOUNT,NAME=AMOUNT, as in GPU=1")
    return resources


if __name__ == "__main__":
    main()
