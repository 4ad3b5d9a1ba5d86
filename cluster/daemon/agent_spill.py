"""The agent's values on disk: two threads write them, read and compare them when they are needed, and remove them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from cluster.errors import StoreFull, ValueLost
from cluster.storage.packs import PackFile, read_pack, rewrite_packs, write_pack
from cluster.storage.segments import SegmentDirectory, sweep
from cluster.storage.spill import check_file, room_bytes, store_file
from cluster.units import format_bytes
from cluster.worker.events import (
    CheckSpilled,
    Event,
    PackFailed,
    PackRead,
    PackWritten,
    ReadPack,
    RemovePacks,
    RewritePacks,
    Spilled,
    SpilledChecked,
    SpillFailed,
    SpillSegment,
    WritePack,
)

__all__ = ["Spiller"]

_Outcome = TypeVar("_Outcome")

logger = logging.getLogger(__name__)

# One may copy a gigabyte while the other brings back what a task waits for.
_THREADS: Final = 2


class Spiller:
    """Carries out what the machine decides about values on disk."""

    def __init__(
        self,
        parent: Path,
        feed: Callable[[Event], None],
        note_moved: Callable[[str, str], None],
        *,
        fast_paths: bool,
    ) -> None:
        """`note_moved(path, new_path)` is called when a segment has been copied."""
        sweep(parent)
        self._directory = SegmentDirectory(parent, "spill", fast_paths=fast_paths)
        self._feed = feed
        self._note_moved = note_moved
        self._threads: ThreadPoolExecutor | None = None
        self._said_full = False
        self._packs: dict[int, PackFile] = {}

    @property
    def path(self) -> Path:
        """Where the files are."""
        return self._directory.path

    @property
    def performers(self) -> dict[type[Any], Callable[[Any], None]]:
        """What carries out which effect."""
        return {
            SpillSegment: self.spill,
            CheckSpilled: self.check,
            WritePack: self.write_pack,
            RewritePacks: self.rewrite_packs,
            ReadPack: self.read_pack,
            RemovePacks: self.remove_packs,
        }

    def owns(self, path: str) -> bool:
        """Whether that file is one of these."""
        return path.startswith(f"{self._directory.path}/")

    def create(self, nbytes: int, then: Callable[[str, str], None]) -> None:
        """Reserve a file for a value that finds no room in memory; `then(path, "")` or `then("", reason)` is called."""

        def created(future: asyncio.Future[tuple[str, str]]) -> None:
            if future.cancelled():
                return  # the worker ends
            path, reason = future.result()
            if path and not self._said_full:
                self._said_full = True
                logger.warning("while memory is full, values go to disk, into %s", self._directory.path)
            then(path, reason)

        self._run(self._create, nbytes).add_done_callback(created)

    def spill(self, effect: SpillSegment) -> None:
        """Copy a segment to disk."""
        self._do(self._spill, effect)

    def check(self, effect: CheckSpilled) -> None:
        """Compare a value with its checksum."""
        self._do(self._check, effect)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._do(self._remove, path)

    def write_pack(self, effect: WritePack) -> None:
        """Write small values into one file."""
        self._make_pack(effect.pack, lambda: write_pack(self._directory, effect.values, effect.compression))

    def rewrite_packs(self, effect: RewritePacks) -> None:
        """Write what is left of some packs into one."""
        pieces = [(self._packs[number], start, size) for number, start, size in effect.pieces]
        self._make_pack(effect.pack, lambda: rewrite_packs(self._directory, pieces, effect.compression))

    def read_pack(self, effect: ReadPack) -> None:
        """Read small values."""
        pack = self._packs[effect.pack]
        self._do(lambda effect: PackRead(effect.request, *read_pack(pack, effect.starts, effect.sizes)), effect)

    def remove_packs(self, effect: RemovePacks) -> None:
        """Remove files of small values."""
        for number in effect.packs:
            self.remove(self._packs.pop(number).path)

    def look(self) -> None:
        """See whether the directory is there; now and then."""
        with contextlib.suppress(OSError):  # what is wrong with it is said when something is to be written there
            self._directory.keep()

    def close(self) -> None:
        """Remove everything."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        self._directory.close()

    def _make_pack(self, number: int, make: Callable[[], PackFile]) -> None:
        def done(future: asyncio.Future[PackFile | PackFailed]) -> None:
            if future.cancelled():
                return
            made = future.result()
            if isinstance(made, PackFailed):
                self._feed(made)
                return
            self._packs[number] = made
            self._feed(PackWritten(number, made.stored_bytes))

        def work(_: None) -> PackFile | PackFailed:
            try:
                return make()
            except (StoreFull, ValueLost) as error:
                directory, damaged = self._directory, isinstance(error, ValueLost)
                return PackFailed(number, str(directory.path.parent), room_bytes(directory), str(error), damaged)

        self._run(work, None).add_done_callback(done)

    def _run(self, work: Callable[[Any], _Outcome], what: Any) -> asyncio.Future[_Outcome]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "spill")
        return asyncio.get_running_loop().run_in_executor(self._threads, work, what)

    def _do(self, work: Callable[[Any], Event | None], what: Any) -> None:
        def done(future: asyncio.Future[Event | None]) -> None:
            if future.cancelled():
                return
            event = future.result()
            if isinstance(event, Spilled):
                self._note_moved(event.path, event.new_path)
            if event is not None:
                self._feed(event)

        self._run(work, what).add_done_callback(done)

    def _create(self, nbytes: int) -> tuple[str, str]:
        room = room_bytes(self._directory)
        try:
            if nbytes > room:
                raise StoreFull(f"{format_bytes(nbytes)} are needed, and {format_bytes(room)} may be taken")
            return self._directory.create(nbytes), ""
        except StoreFull as error:
            return "", f"{self._directory.path.parent} has no room for values: {error}"

    def _spill(self, effect: SpillSegment) -> Event:
        try:
            stored = store_file(self._directory, effect.path, effect.nbytes, effect.compression)
        except (StoreFull, ValueLost) as error:
            parent, lost = str(self._directory.path.parent), isinstance(error, ValueLost)
            return SpillFailed(effect.key, parent, room_bytes(self._directory), str(error), lost)
        return Spilled(effect.key, effect.path, *stored)

    def _check(self, effect: CheckSpilled) -> Event:
        key, path, nbytes, checksum, compression = effect
        try:
            new_path = check_file(self._directory, path, nbytes, checksum, compression)
        except (StoreFull, ValueLost, OSError) as error:
            return SpilledChecked(key, path, path, str(error))
        return SpilledChecked(key, path, new_path, "")

    def _remove(self, path: str) -> None:
        self._directory.remove(path)
