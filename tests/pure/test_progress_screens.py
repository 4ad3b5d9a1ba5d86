"""How progress is drawn: as lines, in a terminal, in a notebook."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster.client import progress
from cluster.client.progress import LabelCounts, PlainScreen, Snapshot, TaskProgress
from cluster.client.progress_notebook import NotebookScreen, html_of
from cluster.client.progress_terminal import TerminalScreen

COUNTS = LabelCounts("train <b>", 10, 4, 1, 2, 2.5, 2.0)
SNAPSHOT = Snapshot([COUNTS], [TaskProgress("train-1", 0.5, "epoch [3] & on")], False)
ENDED = Snapshot([LabelCounts("train <b>", 10, 9, 1, 0, 2.5, 0.0)], [], True)


def test_counts_add_up_and_are_said() -> None:
    assert COUNTS.waiting == 3
    assert COUNTS.figures() == "4 of 10 done, 2 running, 3 waiting, 1 failed, 2.5/s, 2.00 s left"


def test_plain_lines_come_seldom_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    screen = PlainScreen()
    for _ in range(100):
        screen.draw(SNAPSHOT)
    screen.draw(ENDED)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "  train-1: 50% epoch [3] & on" in lines
    assert lines[-1].startswith("train <b>: 9 of 10 done, 1 failed")


def test_the_terminal_shows_labels_as_they_are() -> None:
    out = io.StringIO()
    screen = TerminalScreen(Console(file=out, force_terminal=True, width=120))
    screen.draw(SNAPSHOT)
    screen.draw(ENDED)
    screen.close()
    text = out.getvalue()
    for said in ("train <b>", "4 of 10 done", "epoch [3] & on", "9 of 10 done"):
        assert said in text


def test_the_notebook_replaces_one_output_and_escapes_what_users_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    handle = SimpleNamespace(update=drawn.append)

    def display(drawing: Any, display_id: bool) -> Any:
        drawn.append(drawing)
        return handle

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    screen = progress._screen()
    assert isinstance(screen, NotebookScreen)
    screen.draw(SNAPSHOT)
    screen.draw(ENDED)
    screen.close()
    assert drawn == [html_of(SNAPSHOT), html_of(ENDED)]
    assert "train &lt;b&gt;" in drawn[0]
    assert "epoch [3] &amp; on" in drawn[0]
