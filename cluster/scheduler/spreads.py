"""What is remembered of a large value while it is copied to several workers (`spreading` decides)."""

from __future__ import annotations

from typing import Final

__all__ = ["SPREAD_FROM_BYTES", "Spread"]

SPREAD_FROM_BYTES: Final = 1024 * 1024
"""Smaller values are fetched by whoever likes: a turn would cost more than it saves."""


class Spread:
    """The copies of one value that are being made, and who waits for its turn."""

    __slots__ = ("under_way", "waiting")

    def __init__(self) -> None:
        self.under_way: dict[int, int] = {}  # index of the worker that gets it -> of the one that gives it
        self.waiting: dict[int, None] = {}  # indices of workers, first come first
