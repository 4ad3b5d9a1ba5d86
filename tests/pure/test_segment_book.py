"""The book of an agent's segments, by random histories: what it counts, and what it offers for use."""

from __future__ import annotations

import itertools
import random

import pytest

from cluster.storage.segment_book import NOBODY, PAGE_BYTES, KnownSegment, SegmentBook, class_of, whole_pages

LIMIT_BYTES = 64 << 20
ALWAYS_FREE_BYTES = 4 << 20
NAMES = itertools.count()
SIZES = [300_000, 301_000, 310_000, 1_000_000, 5_000_000]


@pytest.mark.parametrize("nbytes", [1, 4096, 4097, 65_537, 262_144, 262_145, 300_000, 8 << 20, (8 << 20) + 1, 10**9])
def test_a_class_wastes_an_eighth_at_most(nbytes: int) -> None:
    size = class_of(nbytes)
    assert nbytes <= size
    assert size % PAGE_BYTES == 0
    assert size - nbytes <= max(PAGE_BYTES, nbytes / 8)
    assert class_of(size) == size, "a class's largest value is in it"
    assert class_of(size + 1) > size


def test_there_are_eight_classes_to_a_doubling() -> None:
    assert len({class_of(nbytes) for nbytes in range((1 << 20) + 1, (2 << 20) + 1, 4096)}) == 8


class History:
    """A book and what a plain model of it knows."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.book = SegmentBook(LIMIT_BYTES)
        self.reserving: list[tuple[int, bool]] = []
        self.used: dict[str, KnownSegment] = {}
        self.free: list[KnownSegment] = []
        self.open: list[KnownSegment] = []
        self.names = 0
        self.made_bytes = 0
        self.displaced_bytes = 0
        self.now = 0.0

    def new_path(self) -> str:
        self.names += 1
        return f"s{self.names}"

    def begin(self) -> None:
        begun = self.random.choice(SIZES), self.random.random() < 0.8
        self.book.begin(*begun)
        self.reserving.append(begun)

    def end(self) -> None:
        if not self.reserving:
            return
        nbytes, keeps = self.reserving.pop(0)
        self.book.end(nbytes, keeps)
        if self.random.random() < 0.9:
            segment = self.book.add(self.new_path(), nbytes, 7 if keeps else -1)
            self.used[segment.path] = segment

    def take(self) -> None:
        nbytes, writer = self.random.choice(SIZES), self.random.choice([NOBODY, 0, 1, 2])
        offered = self.book.candidates(nbytes, writer, 3)
        fitting = [segment for segment in self.free if segment.class_bytes == class_of(nbytes)]
        assert len(offered) == min(3, len(fitting))
        assert all(segment in fitting for segment in offered)
        if any(segment.writer == writer for segment in fitting):
            assert offered[0].writer == writer, "what it has mapped comes first"
        if offered:
            segment = offered[0]
            reserved = segment.reserved_bytes
            growth = self.book.take(segment, nbytes, self.new_path())
            assert growth == max(0, whole_pages(nbytes) - reserved)
            assert whole_pages(nbytes) <= segment.reserved_bytes <= segment.class_bytes
            self.free.remove(segment)
            self.used[segment.path] = segment

    def hand(self) -> None:
        if self.used:
            segment = self.random.choice(list(self.used.values()))
            before = segment.writer
            assert self.book.hand(segment, self.random.choice([0, 1, 2])) == before

    def show(self) -> None:
        if self.used:
            self.random.choice(list(self.used.values())).shown = True

    def release(self) -> None:
        if not self.used:
            return
        segment = self.random.choice(list(self.used.values()))
        del self.used[segment.path]
        if segment.descriptor < 0:
            self.book.drop(segment)
            return
        is_open = self.random.random() < 0.3
        self.book.release(segment, self.new_path(), is_open, self.now)
        (self.open if is_open or segment.shown else self.free).append(segment)

    def close(self) -> None:
        for segment in self.book.next_open(2):
            assert segment in self.open
            self.open.remove(segment)
            if segment.shown:
                self.book.drop(segment)
            else:
                self.book.was_closed(segment, self.now)
                self.free.append(segment)

    def somebody_opens(self) -> None:
        if self.free:
            segment = self.free.pop(self.random.randrange(len(self.free)))
            self.book.was_opened(segment)
            self.open.append(segment)

    def shrink(self) -> None:
        wanted = self.random.choice(SIZES)
        oldest = self.book.oldest_free(wanted)
        others = [segment for segment in self.free if segment not in oldest]
        assert all(old.since <= other.since for old in oldest for other in others)
        assert not others or sum(segment.reserved_bytes for segment in oldest) >= wanted
        for segment in oldest:
            self.book.drop(segment)
            self.free.remove(segment)

    def displace(self) -> None:
        free_bytes = self.book.free_bytes
        nbytes = self.random.choice(SIZES)
        displaced = self.book.displaced(nbytes)
        others = [segment for segment in self.free if segment not in displaced]
        assert all(old.since <= other.since for old in displaced for other in others)
        for segment in displaced:
            self.book.drop(segment)
            self.free.remove(segment)
        self.made_bytes += whole_pages(nbytes)
        self.displaced_bytes += free_bytes - self.book.free_bytes
        assert self.displaced_bytes <= self.made_bytes
        assert self.book.free_bytes >= min(free_bytes, ALWAYS_FREE_BYTES)

    def give_back_idle(self) -> None:
        idle = self.book.idle(self.now - 20)
        assert all(segment.since < self.now - 20 for segment in idle)
        for segment in idle:
            self.book.drop(segment)
            self.free.remove(segment)

    def writer_ends(self) -> None:
        writer = self.random.choice([0, 1, 2])
        self.book.writer_ended(writer)
        assert all(segment.writer != writer for segment in (*self.used.values(), *self.free, *self.open))

    def step(self) -> None:
        self.now += 1
        steps = (
            self.begin, self.end, self.take, self.take, self.hand, self.show, self.release, self.release, self.close,
            self.somebody_opens, self.shrink, self.displace, self.give_back_idle, self.writer_ends,
        )  # fmt: skip
        weights = (4, 4, 4, 4, 4, 1, 4, 4, 2, 1, 1, 1, 1, 1)
        self.random.choices(steps, weights)[0]()
        self.book.check(self.reserving)
        for path, segment in self.used.items():
            assert self.book.find(path) is segment
        looked_for = [segment for size in SIZES for segment in self.book.open_of_class(size, 1000)]
        assert {segment.number for segment in looked_for} == {one.number for one in self.open if not one.shown}


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_are_counted_and_offer_only_what_is_free(seed: int) -> None:
    history = History(seed)
    for _ in range(400):
        history.step()


def test_every_open_segment_gets_its_look() -> None:
    book = SegmentBook(LIMIT_BYTES)
    for number in range(10):
        book.release(book.add(f"s{number}", 300_000, 7), f"free-{number}", is_open=True, now=0.0)
    looked_at = [segment.number for _ in range(4) for segment in book.next_open(3)]
    assert set(looked_at) == set(range(1, 11))


def free_segments(book: SegmentBook, sizes: list[int]) -> list[KnownSegment]:
    segments = [book.add(f"s{number}", nbytes, 7) for number, nbytes in enumerate(sizes)]
    for number, segment in enumerate(segments):
        book.release(segment, f"free-{number}", is_open=False, now=float(number))
    return segments


def make(book: SegmentBook, nbytes: int) -> list[KnownSegment]:
    """Make a segment, and say which went for it."""
    displaced = book.displaced(nbytes)
    for segment in displaced:
        book.drop(segment)
    book.add(f"made-{next(NAMES)}", nbytes, 7)
    return displaced


def test_what_is_made_takes_the_place_of_as_much_that_was_free_first() -> None:
    book = SegmentBook(LIMIT_BYTES)
    pieces = free_segments(book, [1 << 20] * 16)
    assert make(book, 8 << 20) == pieces[:8]
    assert book.total_bytes == 16 << 20
    assert make(book, 8 << 20) == pieces[8:12], "what may always be free stays"
    assert make(book, 8 << 20) == []


def test_a_large_free_segment_goes_when_small_ones_have_made_it_up() -> None:
    book = SegmentBook(LIMIT_BYTES)
    chunks = free_segments(book, [8 << 20] * 2)
    assert [make(book, 1 << 20) for _ in range(9)] == [*[[]] * 7, chunks[:1], []]


def test_what_was_made_while_nothing_was_free_displaces_nothing_later() -> None:
    book = SegmentBook(LIMIT_BYTES)
    assert make(book, 32 << 20) == []
    free_segments(book, [2 << 20] * 8)
    assert make(book, 1 << 20) == []
