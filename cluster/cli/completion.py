"""The command `cluster completion`."""

from __future__ import annotations

import click

__all__ = ["completion"]

_LINES = {
    "bash": ('eval "$(_CLUSTER_COMPLETE=bash_source cluster)"', "~/.bashrc"),
    "zsh": ('eval "$(_CLUSTER_COMPLETE=zsh_source cluster)"', "~/.zshrc"),
    "fish": ("_CLUSTER_COMPLETE=fish_source cluster | source", "~/.config/fish/completions/cluster.fish"),
}


@click.command()
@click.argument("shell", type=click.Choice(list(_LINES)))
def completion(shell: str) -> None:
    """The line that teaches your shell to complete commands and options of `cluster`.

    Paste it into the file that is named on the error output (it is a comment there), and open a new shell.
    """
    line, file = _LINES[shell]
    click.echo(f"# put this into {file}:", err=True)
    click.echo(line)
