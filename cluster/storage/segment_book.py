"""The book of an agent's segments: which hold values, which are free to be used again, and which are still looked at.

It decides and counts, and touches no file. Whoever keeps it (`cluster.daemon.agent_store`) asks the kernel whether a
segment is open elsewhere, renames, truncates and removes, and says so here.

A segment is *used* from the moment that it is made or taken until its value is released. Then it is *free*, or, while
somebody still has it open or linked, *open*: its bytes must not change. One that was *shown*, whose pages somebody got
by `sendfile`, is never used again. One slot at most keeps a map of a segment to write through, its *writer*; it keeps
that while the segment is free, and is asked first whether it wants the segment again.

What is made anew takes the place of free segments of other sizes (`displaced`): a shuffle's chunks would else stay
beside its pieces, and those beside what is merged of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, islice
from typing import Final, Literal

__all__ = ["NOBODY", "PAGE_BYTES", "KnownSegment", "SegmentBook", "class_of", "whole_pages"]

NOBODY: Final = -1
PAGE_BYTES: Final = 4096
_CLASS_BITS: Final = 4  # eight classes a doubling: 1, 1 1/8, 1 2/8, … 2
_FREE_PART: Final = 1 / 16  # of the limit may be free, whatever sizes are wanted: to give back and make costs time

State = Literal["used", "free", "open"]


def whole_pages(nbytes: int) -> int:
    """The bytes of the pages that so many bytes need."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def class_of(nbytes: int) -> int:
    """The size class of a value: the least size of it that is not below, eight to a doubling.

    A segment is used for values of its own class only, so no more than an eighth of it is unused.
    """
    step = max(PAGE_BYTES, 1 << max(0, (nbytes - 1).bit_length() - _CLASS_BITS))
    return -(-nbytes // step) * step


class KnownSegment:
    """One segment."""

    __slots__ = (
        "class_bytes", "descriptor", "is_recycled", "number", "path", "reserved_bytes", "shown", "since", "state",
        "writer",
    )  # fmt: skip

    def __init__(self, number: int, path: str, nbytes: int, descriptor: int) -> None:
        self.number = number
        self.path = path
        self.class_bytes = class_of(nbytes)
        self.reserved_bytes = whole_pages(nbytes)  # grows to its class when a larger value of the class comes
        self.descriptor = descriptor  # the agent's opening; -1: it is not used again
        self.writer = NOBODY
        self.shown = False
        self.is_recycled = False
        self.state: State = "used"
        self.since = 0.0  # when it became free


class SegmentBook:
    """The segments of one directory, and what they may take together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0  # with what is being reserved
        self.free_bytes = 0
        self.open_bytes = 0
        self.descriptor_count = 0
        self._displacing_bytes = 0  # made while as much could have gone for it, and not gone yet
        self._numbers = count(1)
        self._used: dict[str, KnownSegment] = {}  # by path
        self._free: dict[int, KnownSegment] = {}  # by number, the one that was released first in front
        self._free_by_class: dict[int, dict[int, dict[int, KnownSegment]]] = {}  # class -> writer -> by number
        self._open: dict[int, KnownSegment] = {}  # by number, the one that was looked at first in front

    @property
    def total_bytes(self) -> int:
        """What all take."""
        return self.used_bytes + self.free_bytes + self.open_bytes

    # ------------------------------------------------------------------ segments that are used

    def begin(self, nbytes: int, keeps: bool) -> None:
        """Count a segment that is about to be made; `keeps`: it will have a descriptor."""
        self.used_bytes += whole_pages(nbytes)
        self.descriptor_count += keeps

    def end(self, nbytes: int, keeps: bool) -> None:
        """It was made, and is to be added, or could not be made."""
        self.used_bytes -= whole_pages(nbytes)
        self.descriptor_count -= keeps

    def add(self, path: str, nbytes: int, descriptor: int) -> KnownSegment:
        """Take note of a segment that was made."""
        segment = self._used[path] = KnownSegment(next(self._numbers), path, nbytes, descriptor)
        self.used_bytes += segment.reserved_bytes
        self.descriptor_count += descriptor >= 0
        return segment

    def find(self, path: str) -> KnownSegment:
        """The used segment with that path."""
        return self._used[path]

    def __contains__(self, path: str) -> bool:
        return path in self._used

    def take(self, segment: KnownSegment, nbytes: int, new_path: str) -> int:
        """Use a free segment, under a new path, for a value; by how many bytes it has to grow for that."""
        assert segment.state == "free"
        assert segment.class_bytes == class_of(nbytes)
        self._leave(segment)
        growth = max(0, whole_pages(nbytes) - segment.reserved_bytes)
        segment.reserved_bytes += growth
        segment.state = "used"
        segment.path = new_path
        segment.is_recycled = True
        self._used[segment.path] = segment
        self.used_bytes += segment.reserved_bytes
        return growth

    def hand(self, segment: KnownSegment, writer: int) -> int:
        """A slot gets the segment to write to, and keeps a map of it; the slot that kept one before lets go of it."""
        before, segment.writer = segment.writer, writer
        return before

    def release(self, segment: KnownSegment, new_path: str, is_open: bool, now: float) -> None:
        """The value in it is needed no more. It has a new path, so that nobody opens it who knew the old one.

        One that was shown is never free: it is for `drop` when nobody has it open.
        """
        assert segment.state == "used"
        assert segment.descriptor >= 0
        self._leave(segment)
        segment.path = new_path
        segment.since = now
        if is_open or segment.shown:
            self._set_open(segment)
        else:
            self._set_free(segment)

    # ------------------------------------------------------------------ segments that are not

    def candidates(self, nbytes: int, writer: int, limit: int) -> list[KnownSegment]:
        """Some free segments for a value: what this slot has mapped, then nobody's, then others'; the warmest first."""
        by_writer = self._free_by_class.get(class_of(nbytes), {})
        order = (who for who in dict.fromkeys((writer, NOBODY, *by_writer)) if who in by_writer)
        return list(islice((segment for who in order for segment in reversed(by_writer[who].values())), limit))

    def open_of_class(self, nbytes: int, limit: int) -> list[KnownSegment]:
        """Some open segments that would do for a value, if they have been let go of."""
        wanted = class_of(nbytes)
        fitting = (one for one in self._open.values() if one.class_bytes == wanted and not one.shown)
        return list(islice(fitting, limit))

    def next_open(self, limit: int) -> list[KnownSegment]:
        """So many of the open segments, to be looked at; the next time others."""
        chosen = list(islice(self._open.values(), limit))
        for segment in chosen:
            self._open[segment.number] = self._open.pop(segment.number)
        return chosen

    def was_closed(self, segment: KnownSegment, now: float) -> None:
        """Nobody has the segment open any more. It is free, unless it was shown: then it is for `drop`."""
        assert segment.state == "open"
        assert not segment.shown
        self._leave(segment)
        segment.since = now
        self._set_free(segment)

    def was_opened(self, segment: KnownSegment) -> None:
        """Somebody has opened a free segment, whoever that is."""
        assert segment.state == "free"
        self._leave(segment)
        self._set_open(segment)

    def oldest_free(self, nbytes: int) -> list[KnownSegment]:
        """Free segments that take so much together, those that were released first."""
        chosen = []
        for segment in self._free.values():
            if nbytes <= 0:
                break
            chosen.append(segment)
            nbytes -= segment.reserved_bytes
        return chosen

    def displaced(self, nbytes: int) -> list[KnownSegment]:
        """Free segments that go because one of so many bytes is about to be made; those that were released first.

        None of its class could be used, so what is free has other sizes. As much of that goes as is made, in whole
        segments, but what may always be free stays: memory grows by what is in use, and not by each size once more.
        """
        spare_bytes = max(0, self.free_bytes - int(_FREE_PART * self.limit_bytes))
        self._displacing_bytes = min(self._displacing_bytes + whole_pages(nbytes), spare_bytes)
        chosen = []
        for segment in self._free.values():
            if segment.reserved_bytes > self._displacing_bytes:
                break
            chosen.append(segment)
            self._displacing_bytes -= segment.reserved_bytes
        return chosen

    def idle(self, before: float) -> list[KnownSegment]:
        """Free segments that were released before that time."""
        chosen = []
        for segment in self._free.values():
            if segment.since >= before:
                break
            chosen.append(segment)
        return chosen

    def drop(self, segment: KnownSegment) -> None:
        """The segment is removed."""
        self._leave(segment)
        self.descriptor_count -= segment.descriptor >= 0

    def writer_ended(self, writer: int) -> None:
        """A slot's process has ended, and its maps with it."""
        for segment in (*self._used.values(), *self._open.values()):
            if segment.writer == writer:
                segment.writer = NOBODY
        for by_writer in self._free_by_class.values():
            for number, segment in by_writer.pop(writer, {}).items():
                segment.writer = NOBODY
                by_writer.setdefault(NOBODY, {})[number] = segment

    def descriptors(self) -> list[int]:
        """The openings of all segments."""
        everybody = (*self._used.values(), *self._free.values(), *self._open.values())
        return [segment.descriptor for segment in everybody if segment.descriptor >= 0]

    # ------------------------------------------------------------------ inside

    def _set_free(self, segment: KnownSegment) -> None:
        segment.state = "free"
        self._free[segment.number] = segment
        self._free_by_class.setdefault(segment.class_bytes, {}).setdefault(segment.writer, {})[segment.number] = segment
        self.free_bytes += segment.reserved_bytes

    def _set_open(self, segment: KnownSegment) -> None:
        segment.state = "open"
        self._open[segment.number] = segment
        self.open_bytes += segment.reserved_bytes

    def _leave(self, segment: KnownSegment) -> None:
        """Take it off the list that it is on."""
        if segment.state == "used":
            del self._used[segment.path]
            self.used_bytes -= segment.reserved_bytes
        elif segment.state == "open":
            del self._open[segment.number]
            self.open_bytes -= segment.reserved_bytes
        else:
            del self._free[segment.number]
            by_writer = self._free_by_class[segment.class_bytes]
            del by_writer[segment.writer][segment.number]
            if not by_writer[segment.writer]:
                del by_writer[segment.writer]
                if not by_writer:
                    del self._free_by_class[segment.class_bytes]
            self.free_bytes -= segment.reserved_bytes

    def check(self, reserving: Iterable[tuple[int, bool]] = ()) -> None:
        """Count everything again; for tests. `reserving`: what those that are being made were begun with."""
        reserving = list(reserving)
        lists = {"used": self._used.values(), "free": self._free.values(), "open": self._open.values()}
        for state, segments in lists.items():
            assert all(segment.state == state for segment in segments), state
        sums = {state: sum(one.reserved_bytes for one in segments) for state, segments in lists.items()}
        sums["used"] += sum(whole_pages(nbytes) for nbytes, _ in reserving)
        assert sums == {"used": self.used_bytes, "free": self.free_bytes, "open": self.open_bytes}
        free = {
            number: segment
            for size, by_writer in self._free_by_class.items()
            for writer, segments in by_writer.items()
            for number, segment in segments.items()
            if segment.class_bytes == size and segment.writer == writer
        }
        assert free == self._free
        assert all(not segment.shown and segment.descriptor >= 0 for segment in free.values())
        everybody = [segment for segments in lists.values() for segment in segments]
        assert len({segment.path for segment in everybody}) == len(everybody)
        assert self.descriptor_count == len(self.descriptors()) + sum(keeps for _, keeps in reserving)
