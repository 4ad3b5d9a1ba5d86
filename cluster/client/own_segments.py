"""A client's own segments: large values, written once where the workers of this host take them from.

An agent that shares the host *links* such a segment into its own directory: then both names stand for the same pages.
Each owner removes only its own name, and the kernel frees the pages with the last one. So the value is the agent's like
any other, a client that ends takes nothing away, and who owns what is never a question for messages.

Making pages costs some five times as much as filling them, so a segment is used for the next value once nobody needs
the last one: the client has forgotten it, the agents' links are gone (the file's link count says so), nobody has it
open or mapped (the kernel says so, `storage/openings.py`), and no agent has marked it as shown (its mode says so).

Few segments are kept, and not for long; the memory of those that agents have given up for some other reason, as when
they spill, goes back to the system within two looks.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from cluster.errors import ClusterError, StoreFull
from cluster.storage.maps import map_to_write
from cluster.storage.openings import is_open_elsewhere
from cluster.storage.probes import Probe, make_probe, renewed
from cluster.storage.segments import SegmentDirectory, sweep
from cluster.units import format_bytes
from cluster.wire.checksums import Checksum
from cluster.wire.encoded import Encoded

__all__ = ["LOOK_SECONDS", "OfferedBytes", "OwnSegments"]

LOOK_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5.0
"""A segment that nobody needs is kept so long for the next value."""
KEPT_LIMIT: Final = 16
KEPT_LIMIT_BYTES: Final = 1 << 30
PIECE_BYTES: Final = 256 * 1024
"""Checked and written in pieces that stay in the processor's cache in between."""

_log = logging.getLogger("cluster.client")


class OfferedBytes(NamedTuple):
    """What a client offers, as bytes; `check`, if there is one, is to be called with their checksum."""

    encoded: Encoded
    check: Callable[[int], None] | None

    def checked(self) -> Encoded:
        """The bytes; raises ArgumentChanged."""
        if self.check is not None:
            self.check(self.encoded.checksum())
        return self.encoded


class _Segment:
    """A segment that is kept open, to be used again."""

    __slots__ = ("descriptor", "given_up", "idle_since", "linking", "number", "path", "reserved_bytes", "target")

    def __init__(self, path: str, descriptor: int, reserved_bytes: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.reserved_bytes = reserved_bytes
        self.target: memoryview | None = None  # a map to write to, made when it is used again
        self.number = -1  # the value's; -1: the client has forgotten it
        self.linking = 0  # so many agents were told its name and have not answered
        self.given_up = False  # the client has not forgotten the value, but at the last look no agent had it
        self.idle_since = 0.0

    def fits(self, nbytes: int) -> bool:
        """Whether it is used for values of so many bytes: little of it would be unused."""
        return nbytes <= self.reserved_bytes <= nbytes + nbytes // 8 + PIECE_BYTES

    @property
    def is_forgotten(self) -> bool:
        """Whether nobody in this process needs what it holds."""
        return self.number < 0 and not self.linking


class OwnSegments:
    """The segments of one client; its directory is made when the first value is written."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._writing = threading.Lock()  # held while a value is written: two at a time would be no faster
        self._lock = threading.Lock()  # for what is kept, and held for moments only; always taken as the second
        self._directory: SegmentDirectory | None = None
        self._probe: Probe | None = None
        self._recycles = False
        self._kept: list[_Segment] = []
        self._broken = False

    @property
    def keeps_any(self) -> bool:
        """Whether `look` has anything to look at."""
        return bool(self._kept)

    def probe(self) -> Probe | None:
        """What proves to an agent that it can open these segments; None if there is no place for any."""
        with self._writing:
            if self._directory is None and not self._broken:
                try:
                    self._open()
                except (OSError, ClusterError) as error:
                    self._broken = True
                    _log.warning("large arguments are sent to the workers of this host, and not shared: %s", error)
            elif self._directory is not None and self._probe is not None:
                with suppress(OSError):  # what is wrong with it is said when a segment is to be made there
                    self._directory.keep()
                self._probe = renewed(self._probe)
            return self._probe

    def _open(self) -> None:
        sweep(self._parent)
        directory = SegmentDirectory(self._parent, "client")
        # A program may end without closing its client; the interpreter's exit closes the directory then.
        weakref.finalize(self, directory.close)
        self._probe = make_probe(str(directory.path))
        self._recycles = directory.can_recycle()
        self._directory = directory

    # ------------------------------------------------------------------ values

    @contextmanager
    def holding(self, number: int, offered: OfferedBytes) -> Iterator[str]:
        """The name of a segment with that value, for an agent to link meanwhile; it is written unless it is there.

        Raises ArgumentChanged, and StoreFull if there is no room. The segment stays until `let_go`, or goes at once if
        too many are kept: then the agents are its only owners.
        """
        with self._writing:
            segment, is_new = self._begin(number, offered.encoded.nbytes)
            try:
                if is_new:
                    self._fill(segment, offered)
            except BaseException:
                self.let_go((number,))
                self._end(segment)
                raise
        try:
            yield os.path.basename(segment.path)
        finally:
            self._end(segment)

    def let_go(self, numbers: Collection[int]) -> None:
        """The client needs these values no more; the agents may."""
        with self._lock:
            for segment in self._kept:
                if segment.number in numbers:
                    segment.number = -1
                    segment.idle_since = time.monotonic()

    def look(self) -> None:
        """Give back what was of no use for a while; to be called every `LOOK_SECONDS` while `keeps_any`."""
        now = time.monotonic()
        with self._lock:
            for segment in list(self._kept):
                alone = os.fstat(segment.descriptor).st_nlink == 1
                if segment.linking:
                    continue
                if segment.is_forgotten:
                    if now - segment.idle_since > IDLE_SECONDS:
                        self._drop(segment)
                elif alone and segment.given_up:
                    self._drop(segment)
                else:
                    segment.given_up = alone

    def close(self) -> None:
        """Remove everything; what agents have linked is theirs."""
        with self._writing, self._lock:
            self._broken = True
            self._probe = None
            for segment in list(self._kept):
                self._drop(segment)
            if self._directory is not None:
                self._directory.close()
                self._directory = None

    # ------------------------------------------------------------------ inside

    def _too_much(self) -> bool:
        return len(self._kept) > KEPT_LIMIT or sum(kept.reserved_bytes for kept in self._kept) > KEPT_LIMIT_BYTES

    def _begin(self, number: int, nbytes: int) -> tuple[_Segment, bool]:
        """The segment with that value, or one for it, which is to be filled (True)."""
        with self._lock:
            segment = next((kept for kept in self._kept if kept.number == number), None)
            if segment is not None:
                self._give(segment, number)
                return segment, False
        # To wait for an agent that is about to let go of one would keep a slot waiting too.
        return self._take(number, nbytes) or self._create(number, nbytes), True

    def _give(self, segment: _Segment, number: int) -> None:
        segment.number = number
        segment.given_up = False
        segment.linking += 1

    def _end(self, segment: _Segment) -> None:
        """The agent has answered, or is not told."""
        with self._lock:
            segment.linking -= 1
            if not segment.linking and segment in self._kept and (not self._recycles or self._too_much()):
                self._drop(segment)

    def _take(self, number: int, nbytes: int) -> _Segment | None:
        """A segment that is kept and that nobody needs, for that value."""
        with self._lock:
            for segment in list(self._kept):
                if segment.fits(nbytes) and segment.is_forgotten and self._directory is not None:
                    try:
                        # First the name: an agent that was told the old one, and comes to it only now, must not find
                        # another value there. Whoever came before is seen by what is asked then.
                        segment.path = self._directory.rename(segment.path, is_free=False)
                    except FileNotFoundError:  # somebody has removed it
                        self._drop(segment)
                        continue
                    if self._is_ours_alone(segment):
                        self._give(segment, number)
                        return segment
        return None

    def _is_ours_alone(self, segment: _Segment) -> bool:
        facts = os.fstat(segment.descriptor)
        return facts.st_nlink == 1 and bool(facts.st_mode & stat.S_IWUSR) and not is_open_elsewhere(segment.descriptor)

    def _create(self, number: int, nbytes: int) -> _Segment:
        if self._directory is None:
            raise StoreFull(f"there is no place for {format_bytes(nbytes)}: the client was closed")
        try:
            path, descriptor = self._directory.create_open(nbytes)
        except StoreFull:
            if not self._drop_forgotten():
                raise
            path, descriptor = self._directory.create_open(nbytes)
        segment = _Segment(path, descriptor, nbytes)
        with self._lock:
            self._give(segment, number)
            self._kept.append(segment)
        return segment

    def _drop_forgotten(self) -> bool:
        """Whether there were any."""
        with self._lock:
            forgotten = [kept for kept in self._kept if kept.is_forgotten]
            for segment in forgotten:
                self._drop(segment)
        return bool(forgotten)

    def _fill(self, segment: _Segment, offered: OfferedBytes) -> None:
        encoded, check = offered
        if segment.target is None and segment.idle_since:
            segment.target = map_to_write(segment.descriptor, segment.reserved_bytes)
        checksum = None if check is None else Checksum()
        end = 0
        for part in encoded.parts:
            view = memoryview(part)
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                if checksum is not None:
                    checksum.update(piece)
                if segment.target is not None:
                    segment.target[end : end + len(piece)] = piece
                else:  # the first time this takes half the time that a map does
                    _write(segment.descriptor, piece, end)
                end += len(piece)
        if checksum is not None and check is not None:
            check(checksum.intdigest())

    def _drop(self, segment: _Segment) -> None:
        self._kept.remove(segment)
        segment.target = None
        os.close(segment.descriptor)
        if self._directory is not None:
            self._directory.remove(segment.path)


def _write(descriptor: int, piece: memoryview, start: int) -> None:
    while piece:
        written = os.pwrite(descriptor, piece, start)
        piece, start = piece[written:], start + written
