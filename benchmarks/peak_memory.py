"""The most that processes hold together while something runs."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = "/dev/shm/"


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
    """What these processes hold: of their own and of files, shared pages counted once, and what lies in shared memory,
    whether anybody has it mapped just then or not."""
    ids = list(process_ids)
    held = proportional_bytes(ids)
    return held["Pss"] - held["Pss_Shmem"] + max(held["Pss_Shmem"], shared_memory_bytes(ids))


def shared_memory_bytes(process_ids: Iterable[int]) -> int:
    """What the files take that lie in a directory in shared memory which one of these processes has open."""
    files: dict[int, int] = {}  # by inode: a file may have several names
    for directory in {each for process_id in process_ids for each in _open_directories(process_id)}:
        for path in directory.glob("*"):
            with suppress(FileNotFoundError):  # it was removed just now, or has another name
                facts = path.stat()
                files[facts.st_ino] = facts.st_blocks * 512
    return sum(files.values())


def _open_directories(process_id: int) -> set[Path]:
    found: set[Path] = set()
    with suppress(FileNotFoundError):  # the process has ended
        for link in Path(f"/proc/{process_id}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed just now
                target = os.readlink(link)
                if target.startswith(SHARED_MEMORY) and stat.S_ISDIR(link.stat().st_mode):
                    found.add(Path(target))
    return found
