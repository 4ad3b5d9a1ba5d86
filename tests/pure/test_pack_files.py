"""Small values in one file: each comes back as it went, alone or with others, and what is damaged is not given out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest

from cluster.errors import StoreFull, ValueLost
from cluster.storage import packs
from cluster.storage.packs import BLOCK_BYTES, PackFile, read_pack, rewrite_packs, write_pack
from cluster.storage.segments import SegmentDirectory
from cluster.storage.spill import COMPRESSIONS
from cluster.worker.packs import GONE, ON_DISK, Pack, PackIndex

SIZES = (200, 1_000, 5_000, 60_000)
COUNT = 400
COMPRESSED = ["", "lz4", "zstd"]


def content(index: int) -> bytes:
    size = SIZES[index % len(SIZES)]
    return b"%d".ljust(size // 2, b".") % index + Random(index).randbytes(size // 2)


VALUES = [content(index) for index in range(COUNT)]
STARTS = list(accumulate(map(len, VALUES), initial=0))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[SegmentDirectory]:
    with SegmentDirectory(tmp_path, "spill") as made:
        yield made


def write(directory: SegmentDirectory, compression: str = "") -> PackFile:
    if compression:
        pytest.importorskip(COMPRESSIONS[compression])
    return write_pack(directory, VALUES, compression)


def read(pack: PackFile, *indices: int) -> list[bytes | None]:
    return read_pack(pack, [STARTS[index] for index in indices], [len(VALUES[index]) for index in indices])[0]


def change(pack: PackFile, place: int) -> None:
    with open(pack.path, "r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("compression", COMPRESSED)
def test_values_come_back_alone_and_in_a_row(directory: SegmentDirectory, compression: str) -> None:
    pack = write(directory, compression)
    assert pack.compression == compression
    assert Path(pack.path).stat().st_size == pack.stored_bytes
    assert (pack.stored_bytes < 0.7 * STARTS[-1]) == bool(compression)
    assert read(pack, *range(COUNT)) == VALUES
    for index in (0, 1, 7, 203, COUNT - 1):
        assert read(pack, index) == [VALUES[index]]


def test_values_come_back_where_room_is_reserved_by_writing(tmp_path: Path) -> None:
    with SegmentDirectory(tmp_path, "spill", fast_paths=False) as directory:
        assert read(write(directory), *range(COUNT)) == VALUES


def test_what_does_not_shrink_is_written_as_it_is(directory: SegmentDirectory) -> None:
    pytest.importorskip(COMPRESSIONS["zstd"])
    values = [Random(index).randbytes(1000) for index in range(100)]
    pack = write_pack(directory, values, "zstd")
    assert (pack.compression, pack.stored_bytes) == ("", 100_000)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_changed_byte_costs_its_block_alone(directory: SegmentDirectory, compression: str) -> None:
    pack = write(directory, compression)
    block = len(pack.checksums) // 2
    change(pack, pack.places[block] + 20)
    lost = [index for index, value in enumerate(read(pack, *range(COUNT))) if value is None]
    assert lost == [index for index in range(COUNT) if pack.starts[block] <= STARTS[index] < pack.starts[block + 1]]
    assert 0 < sum(len(VALUES[index]) for index in lost) < BLOCK_BYTES + max(SIZES)
    _, reason = read_pack(pack, [STARTS[lost[0]]], [len(VALUES[lost[0]])])
    assert pack.path in reason


def test_a_file_that_was_cut_or_removed_has_lost_what_is_missing(directory: SegmentDirectory) -> None:
    pack = write(directory)
    with open(pack.path, "r+b") as opened:
        opened.truncate(STARTS[-1] // 2)
    values = read(pack, 0, COUNT - 1)
    assert values == [VALUES[0], None]
    directory.remove(pack.path)
    assert read(pack, 0, 1) == [None, None]


@pytest.mark.parametrize("compression", COMPRESSED)
def test_what_is_left_of_packs_is_written_into_one(directory: SegmentDirectory, compression: str) -> None:
    first, second = write(directory, compression), write(directory)
    pieces = [(pack, STARTS[index], len(VALUES[index])) for index in range(0, COUNT, 7) for pack in (second, first)]
    pack = rewrite_packs(directory, pieces, compression)
    sizes = [size for _, _, size in pieces]
    found, _ = read_pack(pack, list(accumulate(sizes, initial=0))[:-1], sizes)
    assert found == [VALUES[index] for index in range(0, COUNT, 7) for _ in (first, second)]


def test_nothing_is_written_anew_of_what_is_damaged(directory: SegmentDirectory) -> None:
    pack = write(directory)
    change(pack, 10)
    with pytest.raises(ValueLost, match="damaged"):
        rewrite_packs(directory, [(pack, 0, len(VALUES[0]))])


def test_no_pack_is_begun_for_which_there_is_no_room(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "room_bytes", lambda directory: STARTS[-1] - 1)
    with pytest.raises(StoreFull, match="are needed"):
        write(directory)
    assert [path.name for path in directory.path.iterdir()] == ["lock"]


# --------------------------------------------------------------------------- the index


def index_of(attempts: int, rows: int) -> PackIndex:
    """An index of values of a kilobyte: so many attempts of so many rows, in packs of 4096."""
    index = PackIndex()
    keys = [attempt << 32 | row for attempt in range(attempts) for row in range(attempt, attempt + rows)]
    for number, start in enumerate(range(0, len(keys), 4096)):
        part = keys[start : start + 4096]
        index.add(number, Pack(part, [1000] * len(part)))
    return index


@pytest.mark.parametrize(("attempts", "rows", "most"), [(1_000, 100, 14), (100_000, 1, 180)])
def test_a_value_in_a_pack_takes_a_small_part_of_its_memory(attempts: int, rows: int, most: int) -> None:
    tracemalloc.start()
    try:
        index = index_of(attempts, rows)
        taken = tracemalloc.get_traced_memory()[0] / (attempts * rows)
    finally:
        tracemalloc.stop()
    assert index.count == attempts * rows
    assert taken < most, f"{taken:.1f} bytes"


def test_a_key_is_found_where_it_is_and_nowhere_else() -> None:
    index = index_of(300, 50)
    for attempt in range(0, 300, 7):
        for row in range(attempt - 2, attempt + 52):
            place = index.find(attempt << 32 | row) if row >= 0 else None
            if attempt <= row < attempt + 50:
                assert place is not None
                assert index.packs[place.number].key(place.position) == attempt << 32 | row
            else:
                assert place is None
    assert index.find(300 << 32 | 300) is None


def test_runs_of_rows_are_freed_across_packs_and_emptied_packs_are_named() -> None:
    index = index_of(100, 100)
    assert len(index.packs) == 3
    assert index.free(40, 100, 10) == 10 and index.free(40, 0, 1000) == 90 and index.free(40, 0, 1000) == 0
    assert (index.count, index.nbytes, index.emptied) == (9_900, 9_900_000, [])
    for attempt in range(41):
        index.free(attempt, attempt, 100)
    assert index.emptied == [0]
    states = index.packs[1].states
    assert states.count(GONE) and states.count(ON_DISK)
