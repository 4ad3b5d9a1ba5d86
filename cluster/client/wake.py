"""Waking a thread that waits for descriptors."""

from __future__ import annotations

import os

__all__ = ["Wake"]


class Wake:
    """Wakes one thread out of a poll."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """What to poll."""
        return self._reader

    def set(self) -> None:
        """Wake it; not lost if it does not sleep yet."""
        try:
            os.write(self._writer, b"\x00")
        except BlockingIOError:
            return  # full, so it will wake

    def clear(self) -> None:
        """Called by the woken thread."""
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            return  # somebody else was faster

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
