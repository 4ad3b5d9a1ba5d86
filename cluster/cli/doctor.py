"""The command `cluster doctor`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

from cluster.cli.connecting import json_option, scheduler_options, show

__all__ = ["doctor"]


@click.command()
@scheduler_options
@json_option
def doctor(address: str | None, directory: Path | None, as_json: bool) -> None:
    """Check this machine, and the cluster if one is there: each thing is ok, a warning or a failure, with a remedy.

    Looked at are versions on all sides, settings, the secret, the scheduler, its clock and port, cores, the thread
    counts of BLAS and OpenMP, memory, shared memory, leftover values, the disk for values, limits on open files and
    processes. Nothing is changed.

    The exit status is 1 if anything is a failure, and 0 otherwise.

    \b
    JSON: outcome ("ok", "warning" or "failure": the worst), checks [{name, outcome, found, remedy}].
    """
    # Loaded only when it runs: a shell that completes a command's name loads this module.
    findings = import_module("cluster.doctor.probing").look(address, directory)
    judging = import_module("cluster.doctor.checks")
    checks = judging.check_all(findings)
    outcome = judging.worst_outcome(checks)
    show("checks", {"outcome": outcome, "checks": [check._asdict() for check in checks]}, as_json)
    sys.exit(1 if outcome == "failure" else 0)
