"""The most that processes hold together while something runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil

from benchmarks.case import WrongResult

SHARED_BEFORE_BYTES: Final = psutil.virtual_memory().shared
"""When this process began, before the system that it measures did: that is others'."""
FREED_BY_OTHERS_BYTES: Final = 5_000_000
"""So much does not matter."""


class PeakMemory:
    """Asks again and again what is held while the block runs; `peak_bytes` is the most."""

    def __init__(self, held_bytes: Callable[[], int], every_seconds: float = 0.05) -> None:
        self.peak_bytes = 0
        self._held_bytes = held_bytes
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _sample(self) -> None:
        try:
            while True:
                self.peak_bytes = max(self.peak_bytes, self._held_bytes())
                if self._ended.wait(self._every_seconds):
                    return
        except Exception as failure:  # for who waits for the figure
            self._failure = failure


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
    next has mapped by the time it is looked at. What other programs take or free meanwhile is counted too, so none
    should run; WrongResult if they have freed more than these hold.
    """
    held = proportional_bytes(process_ids)
    shared_bytes = psutil.virtual_memory().shared - SHARED_BEFORE_BYTES
    if shared_bytes < -FREED_BY_OTHERS_BYTES:
        raise WrongResult(f"{-shared_bytes / 1e6:.0f} MB of shared memory were freed by others meanwhile")
    return held["Pss"] - held["Pss_Shmem"] + shared_bytes
