"""What notebooks show of clients, clusters and futures: small static tables that follow the page's own colours."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

__all__ = ["card"]

TEXT_LIMIT = 200
"""Longer texts are cut: a card stays under 4 kB."""
_CARD = (
    "display:inline-block;color:inherit;font:inherit;border:1px solid currentColor;border-radius:4px;"
    "padding:.3em .7em;margin:.2em 0"
)
_CELL = "text-align:left;color:inherit;background:none;border:none;padding:0 .8em 0 0"


def card(title: str, facts: Iterable[tuple[str, object]]) -> str:
    """A title over a table of names and values, as HTML; every text is escaped.

    >>> "a &lt; b" in card("Future", [("key", "a < b")])
    True
    """
    rows = "".join(
        f'<tr style="background:none"><td style="{_CELL};opacity:.7">{_text(name)}</td>'
        f'<td style="{_CELL}">{_text(value)}</td></tr>'
        for name, value in facts
    )
    return f'<div style="{_CARD}"><b>{_text(title)}</b><table style="border:none;margin:0">{rows}</table></div>'


def _text(value: object) -> str:
    text = str(value)
    if len(text) > TEXT_LIMIT:
        text = text[:TEXT_LIMIT] + "…"
    # Loaded here: its table of all names of characters is as large as ten of our modules.
    escaped: str = import_module("html").escape(text)
    return escaped
