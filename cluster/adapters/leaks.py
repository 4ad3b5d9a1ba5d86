"""What a process holds, and what of it was not there before: threads, descriptors, children, files of values."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import psutil

__all__ = ["Holdings", "leaks_since"]

DESCRIPTORS = Path("/proc/self/fd")
"""Only Linux tells what a descriptor is; elsewhere descriptors are not looked at."""
FIRST_PAUSE_SECONDS = 0.001
LONGEST_PAUSE_SECONDS = 0.1


class Holdings:
    """A snapshot of what this process holds; `folder` is where its cluster puts large values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.threads = frozenset(threading.enumerate())
        self.descriptors = _descriptors()
        self.children = frozenset(psutil.Process().children())
        self.files = frozenset(folder.glob("cluster-*/*/s*"))

    def beside(self, before: Holdings) -> list[str]:
        """What is here and was not there before, each as a line that names it."""
        leaks = [f"thread {thread.name!r}" for thread in self.threads - before.threads]
        for number, target in self.descriptors.items():
            if before.descriptors.get(number) != target:
                leaks.append(f"descriptor {number}: {target}")
        for child in self.children - before.children:
            try:
                leaks.append(f"child process {child.pid}: {' '.join(child.cmdline()) or child.name()}")
            except psutil.Error:
                continue  # it has just ended
        leaks += [
            f"shared file {path}: a value that somebody keeps on the cluster" for path in self.files - before.files
        ]
        return sorted(leaks)


def leaks_since(before: Holdings, patience_seconds: float) -> list[str]:
    """What this process holds beyond that, a line for each; what is about to end gets so long to do so."""
    deadline = time.monotonic() + patience_seconds
    pause_seconds = FIRST_PAUSE_SECONDS
    while leaks := Holdings(before.folder).beside(before):
        if time.monotonic() > deadline:
            break
        gc.collect()  # a socket or client in a cycle is closed when the cycle is found
        time.sleep(pause_seconds)
        pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * pause_seconds)
    return leaks


def _descriptors() -> dict[int, str]:
    """What each open descriptor is. Sockets and pipes are numbered, so one that was opened anew is told apart."""
    found = {}
    for name in os.listdir(DESCRIPTORS) if DESCRIPTORS.exists() else ():
        try:
            found[int(name)] = os.readlink(DESCRIPTORS / name)
        except FileNotFoundError:
            continue  # what listed the directory
    return found
