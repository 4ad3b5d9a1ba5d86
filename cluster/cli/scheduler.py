"""The command `cluster-scheduler`."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from cluster import config
from cluster.cli.parser import CommandParser, port_number
from cluster.daemon.scheduler import SchedulerOptions, main_loop
from cluster.errors import ClusterError
from cluster.version import __version__

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a scheduler; the exit status is 0 when it was asked to end, 2 when it could not start."""
    parser = CommandParser(
        prog="cluster-scheduler", description="The scheduler of a cluster: decides which worker runs which task."
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address or name of this machine to listen at, 0.0.0.0 for all; beyond 127.0.0.1 everything is encrypted "
        "(default: %(default)s)",
    )
    parser.add_argument("--address", default="", help="host that others are told to connect to, if it is another")
    parser.add_argument("--insecure", action="store_true", help="encrypt nothing, although others could listen")
    parser.add_argument("--port", type=port_number, help="port to listen at; 0 takes any free one (default: 8770)")
    parser.add_argument("--directory", type=Path, help="directory of the secret and the settings")
    parser.add_argument("--version", action="version", version=f"cluster {__version__}")
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent-socket", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        settings = config.load(directory=options.directory, scheduler_port=options.port)
        bound = None if options.listen_fd is None else socket.socket(fileno=options.listen_fd)
        scheduler_options = SchedulerOptions(
            options.host, settings.scheduler_port, options.address, options.insecure, bound, options.parent_socket
        )
        main_loop(settings, scheduler_options)
    except ClusterError as error:
        print(f"cluster-scheduler: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
