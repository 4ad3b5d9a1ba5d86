"""Progress drawn in a terminal; loaded only when it is, since rich takes longer to load than all the rest."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.client.progress import LabelCounts, Snapshot

__all__ = ["TerminalScreen"]

_BAR_COLUMNS = 24


class TerminalScreen:
    """Draws in place on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(stderr=True), auto_refresh=False, redirect_stdout=True)
        self._started = False

    def draw(self, snapshot: Snapshot) -> None:
        """Draw anew."""
        if not self._started:
            self._started = True
            self._live.start()
        self._live.update(_drawing(snapshot), refresh=True)

    def close(self) -> None:
        """Leave the last drawing where it is."""
        if self._started:
            self._live.stop()


def _drawing(snapshot: Snapshot) -> Group:
    table = Table.grid(padding=(0, 1))
    for counts in snapshot.labels:
        ended = counts.done + counts.failed
        bar = ProgressBar(total=counts.total, completed=ended, width=_BAR_COLUMNS)
        table.add_row(Text(counts.label, style="bold"), bar, _figures(counts))
    for task in snapshot.tasks:
        bar = ProgressBar(total=1.0, completed=task.fraction, width=_BAR_COLUMNS)
        table.add_row(Text(f"  {task.key}"), bar, Text(f"{task.fraction:.0%} {task.message}"))
    return Group(table)


def _figures(counts: LabelCounts) -> Text:
    return Text(counts.figures(), style="red" if counts.failed else "")
