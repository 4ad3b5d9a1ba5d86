"""The command `cluster config`."""

from __future__ import annotations

import click

from cluster import config as configuration
from cluster.cli.connecting import json_option, show

__all__ = ["config"]


@click.command()
@click.argument("names", nargs=-1, metavar="[SETTING]...")
@json_option
def config(names: tuple[str, ...], as_json: bool) -> None:
    """Every setting (or those that are named), its value, and where it came from.

    \b
    A setting is taken from the first of these that has it:
      1. an argument of the program or the command
      2. the environment:     CLUSTER__SCHEDULER_PORT=9000
      3. the project file:    cluster.toml, or [tool.cluster] in pyproject.toml, in the working directory
                              or in the nearest folder above it that has either
      4. the user's file:     settings.toml in the directory that `directory` names
      5. the default
    A relative path in a file starts at that file's folder. A name that is no setting is an error.

    \b
    JSON: settings [{name, value, type, unit, sentence, from ("environment NAME", a file, "default"), default}],
    project_file, user_file (null where there is none).
    """
    reports = configuration.describe()
    known = [report.name for report in reports]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name} is no setting; the settings are {', '.join(known)}")
    directory = next(report.value for report in reports if report.name == "directory")
    user_file = directory / configuration.SETTINGS_FILE
    document = {
        "settings": [
            {
                "name": report.name,
                "value": report.value,
                "type": report.kind,
                "unit": report.unit,
                "sentence": report.sentence,
                "from": report.origin,
                "default": report.default,
            }
            for report in reports
            if not names or report.name in names
        ],
        "project_file": configuration.project_file(),
        "user_file": user_file if user_file.exists() else None,
    }
    show("settings", document, as_json)
