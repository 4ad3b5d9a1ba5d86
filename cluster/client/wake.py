"""Waking a thread that waits for descriptors."""

from __future__ import annotations

import os
import threading

__all__ = ["Wake"]


class Wake:
    """Wakes one thread out of a poll."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """What to poll."""
        return self._reader

    def set(self) -> None:
        """Wake it; not lost if it does not sleep yet."""
        with self._lock:  # or another thread might close it meanwhile, and its number be another file's
            if self._writer < 0:
                return  # closed: there is nobody to wake
            try:
                os.write(self._writer, b"\x00")
            except BlockingIOError:
                return  # full, so it will wake

    def clear(self) -> None:
        """Called by the woken thread."""
        with self._lock:
            if self._reader < 0:
                return
            try:
                os.read(self._reader, 4096)
            except BlockingIOError:
                return  # somebody else was faster

    def close(self) -> None:
        """Give the descriptors back; nobody must poll them any more. `set` and `clear` do nothing from now on."""
        with self._lock:
            self._close()

    def forget_after_fork(self) -> None:
        """This process is a fork: another thread, which is not in it, may have had the lock."""
        self._lock = threading.RLock()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        reader, writer = self._reader, self._writer
        self._reader = self._writer = -1
        if reader >= 0:
            os.close(reader)
            os.close(writer)
