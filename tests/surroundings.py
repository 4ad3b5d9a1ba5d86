"""Directories that one test has for itself, and what of its processes and segments is still there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from cluster import config
from cluster.daemon import fast_paths
from cluster.storage.segments import sweep as remove_dead_segments

DIRECTORY = "CLUSTER__DIRECTORY"
SHARED_MEMORY_DIRECTORY = "CLUSTER__SHARED_MEMORY_DIRECTORY"
# Processes are known to be a test's by this, wherever their parent has gone and whatever settings they were given.
MARK = "STARTED_BY_TEST_IN"

# How long a test's processes may take to end once it has let go of them.
ENDING_SECONDS = 10.0


class Surroundings:
    """A settings directory and a shared memory directory that no other test knows, and who still uses them."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cluster-test-"))
        self.temporary = self.directory / "tmp"
        self.temporary.mkdir()
        settings = config.load(directory=self.directory)
        self.fast_paths = fast_paths.choose(settings.fast_paths).slots
        memory = "/dev/shm" if settings.fast_paths and os.access("/dev/shm", os.W_OK) else None
        self.shared_memory = Path(tempfile.mkdtemp(prefix="cluster-test-", dir=memory))

    def enter(self, environment: pytest.MonkeyPatch) -> None:
        """Make this process, and those that it starts, use these directories."""
        environment.setenv(MARK, str(self.directory))
        environment.setenv(DIRECTORY, str(self.directory))
        environment.setenv("TMPDIR", str(self.temporary))
        environment.setenv(SHARED_MEMORY_DIRECTORY, str(self.shared_memory))

    def processes(self) -> list[psutil.Process]:
        """Every process that was started with these directories, orphans too, this one left out."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(MARK) == str(self.directory)
                if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue  # it has ended, or it is somebody else's: neither can be one of ours
        return found

    def segments(self) -> list[str]:
        """The values' files that lie in shared memory, or on disk because that was full."""
        return [
            str(path) for folder in (self.shared_memory, self.temporary) for path in folder.rglob("*") if path.is_file()
        ]

    def leave(self, *, sweep: bool = False, patience_seconds: float = ENDING_SECONDS) -> list[str]:
        """Remove the directories and say what was left; `sweep`: after a sweep, as the next start would make one."""
        _, alive = psutil.wait_procs(self.processes(), timeout=patience_seconds)
        left = [f"process {process.pid}: {' '.join(process.cmdline())}" for process in alive if process.is_running()]
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=ENDING_SECONDS)
        if sweep and self.segments():
            remove_dead_segments(self.shared_memory)
            remove_dead_segments(self.temporary)
        left += [f"file {path}" for path in self.segments()]
        shutil.rmtree(self.shared_memory, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        return left
