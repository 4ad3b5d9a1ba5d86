"""Progress drawn in a notebook: one output that is replaced, so that no widget and no script is needed."""

from __future__ import annotations

from html import escape
from importlib import import_module
from typing import Any

from cluster.client.progress import Snapshot

__all__ = ["NotebookScreen", "html_of"]

_BAR = '<progress value="{value}" max="{total}" style="width: 16em"></progress>'
_CELL = '<td style="text-align: left">{content}</td>'


class NotebookScreen:
    """Draws in the output of the cell that asked for it."""

    def __init__(self) -> None:
        self._display: Any = import_module("IPython.display")
        self._handle: Any = None

    def draw(self, snapshot: Snapshot) -> None:
        """Draw anew."""
        drawing = self._display.HTML(html_of(snapshot))
        if self._handle is None:
            self._handle = self._display.display(drawing, display_id=True)
        else:
            self._handle.update(drawing)

    def close(self) -> None:
        """Leave the last drawing where it is."""


def html_of(snapshot: Snapshot) -> str:
    """The drawing as HTML, in the colours of whatever page it lies in."""
    rows = [
        (f"<b>{escape(counts.label)}</b>", counts.done + counts.failed, counts.total, escape(counts.figures()))
        for counts in snapshot.labels
    ]
    rows += [
        (f"&emsp;{escape(task.key)}", round(100 * task.fraction), 100, escape(f"{task.fraction:.0%} {task.message}"))
        for task in snapshot.tasks
    ]
    lines = []
    for name, value, total, figures in rows:
        cells = (name, _BAR.format(value=value, total=total), figures)
        lines.append("<tr>" + "".join(_CELL.format(content=content) for content in cells) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"
