"""A line of an explanation."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Reason"]


class Reason(NamedTuple):
    """One line: what holds it, why, and what to do. `rows` are the tasks that are meant, for whoever checks this."""

    what: str
    why: str
    remedy: str = ""
    rows: tuple[int, ...] = ()
