"""The most that processes hold together while something runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path


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
