"""The agent's segments: in shared memory while there is room, else in files on disk; large ones in a thread."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from cluster.errors import StoreFull
from cluster.storage.segments import SegmentDirectory, sweep
from cluster.units import format_bytes

__all__ = ["Store"]

_Outcome = TypeVar("_Outcome")

logger = logging.getLogger(__name__)

# Reserving or removing more takes longer than a step of the loop may (1 GiB: 0.2 to 0.4 s).
_AT_ONCE_BYTES: Final = 4 * 1024 * 1024


class Store:
    """Creates and removes segments. One thread does what takes long; while it is busy, everything waits its turn."""

    def __init__(
        self, shared_memory_directory: Path, name: str, memory_limit_bytes: int, *, fast_paths: bool = True
    ) -> None:
        parents = list(dict.fromkeys((shared_memory_directory, Path(tempfile.gettempdir()))))
        for parent in parents:
            sweep(parent)
        self._directories = [SegmentDirectory(parent, name, fast_paths=fast_paths) for parent in parents]
        self._memory_limit_bytes = memory_limit_bytes
        self._sizes: dict[str, int] = {}
        self._shown: set[str] = set()
        self._in_memory_bytes = 0
        self.disk_bytes = 0  # of values that found no room in memory
        self._thread: ThreadPoolExecutor | None = None
        self._busy = 0
        self._said_full = False

    @property
    def paths(self) -> list[Path]:
        """The directories: shared memory, then disk."""
        return [directory.path for directory in self._directories]

    @property
    def modules_path(self) -> Path:
        """The folder for modules that users uploaded, on disk."""
        return self._directories[-1].modules_path

    def create(self, nbytes: int, then: Callable[[str, str], None]) -> None:
        """Reserve a segment; `then(path, "")` or `then("", reason)` is called, perhaps at once."""

        def finish(path: str, reason: str) -> None:
            if path:
                self._sizes[path] = nbytes
                if path.startswith(f"{self._directories[0].path}/"):
                    self._in_memory_bytes += nbytes
                else:
                    self.disk_bytes += nbytes
            then(path, reason)

        in_memory = self._in_memory_bytes + nbytes <= self._memory_limit_bytes
        self._do(nbytes, lambda: self._reserve(nbytes, in_memory), lambda outcome: finish(*outcome))

    def remove(self, path: str) -> None:
        """Remove a segment that `create` made."""
        nbytes = self._sizes.pop(path)
        self._shown.discard(path)
        directory = next(one for one in self._directories if path.startswith(f"{one.path}/"))
        if directory is self._directories[0]:
            self._in_memory_bytes -= nbytes
        else:
            self.disk_bytes -= nbytes
        self._do(nbytes, lambda: directory.remove(path), lambda _: None)

    def mark_shown(self, path: str) -> None:
        """A process that is not a slot is told of this segment: its bytes must stay as they are, whoever frees it."""
        if path in self._sizes:  # else it was freed meanwhile
            self._shown.add(path)

    def close(self) -> None:
        """Remove everything."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        for directory in self._directories:
            directory.close()

    def _reserve(self, nbytes: int, in_memory: bool) -> tuple[str, str]:
        reason = f"{format_bytes(nbytes)} more would pass the worker's memory limit"
        for directory in self._directories if in_memory else self._directories[1:]:
            try:
                path = directory.create(nbytes)
            except StoreFull as error:
                reason = str(error)
                continue
            if directory is not self._directories[0] and not self._said_full:
                self._said_full = True
                logger.warning("while memory is full, values go to disk, into %s: %s", directory.path, reason)
            return path, ""
        return "", reason

    def _do(self, nbytes: int, work: Callable[[], _Outcome], then: Callable[[_Outcome], None]) -> None:
        # In order: while the thread has work, a small piece of work waits behind it, and does not race with it.
        if not self._busy and nbytes <= _AT_ONCE_BYTES:
            then(work())
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "storage")
        self._busy += 1
        loop = asyncio.get_running_loop()

        def done(future: asyncio.Future[_Outcome]) -> None:
            self._busy -= 1
            then(future.result())

        loop.run_in_executor(self._thread, work).add_done_callback(done)
