"""How often the scheduler's process looks for objects that only refer to each other."""

from __future__ import annotations

import gc

__all__ = ["collect_seldom"]


def collect_seldom() -> None:
    """What lives now lives for ever: collections need not look at it again, nor look often at large tables."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
