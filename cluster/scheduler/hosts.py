"""The machines that workers run on, as far as their addresses tell."""

from __future__ import annotations

__all__ = ["Host"]


class Host:
    """The workers whose addresses name the same machine. They see each other's large values without a copy."""

    __slots__ = ("name", "workers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers = 0  # that are connected
