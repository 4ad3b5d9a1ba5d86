"""The most that processes hold together while something runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil

SHARED_BEFORE_BYTES: Final = psutil.virtual_memory().shared
"""When this process began, before the system that it measures did: that is others'."""


class PeakMemory:
    """Asks again and again what is held while the block runs; `peak_bytes` is the most."""

    def __init__(self, held_bytes: Callable[[], int], every_seconds: float = 0.05) -> None:
        self.peak_bytes = 0
        self._held_bytes = held_bytes
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())
            if self._ended.wait(self._every_seconds):
                return


def proportional_bytes(process_ids: Iterable[int]) -> Counter[str]:
    """What these processes hold, shared pages counted once: in all ("Pss"), and of each kind ("Pss_Anon" …)."""
    held: Counter[str] = Counter()
    for process_id in process_ids:
        try:
            lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        for name, _, figure in (line.partition(":") for line in lines):
            if name.startswith("Pss"):
                held[name] += int(figure.split()[0]) * 1024
    return held


def held_bytes(process_ids: Iterable[int]) -> int:
    """What these processes hold: of their own and of files, shared pages counted once, and of shared memory what the
    kernel says there is now, whether anybody has it mapped just then or not.

    Looked at one after the other, the processes' parts of that add up to more than there is: what one lets go of, the
    next has mapped by the time it is looked at.
    """
    held = proportional_bytes(process_ids)
    return held["Pss"] - held["Pss_Shmem"] + psutil.virtual_memory().shared - SHARED_BEFORE_BYTES
