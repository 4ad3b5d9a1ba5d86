"""Values copied to disk and compared there: what comes back is what went, and little of it is in memory at a time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from cluster.errors import ValueLost
from cluster.storage.segments import SegmentDirectory
from cluster.storage.spill import COMPRESSIONS, Stored, check_file, store_file

VALUE = bytes(64 << 20)


def stored(tmp_path: Path, compression: str, value: bytes = VALUE) -> tuple[SegmentDirectory, Stored]:
    if compression:
        pytest.importorskip(COMPRESSIONS[compression])
    source = tmp_path / "value"
    source.write_bytes(value)
    directory = SegmentDirectory(tmp_path, "spill")
    return directory, store_file(directory, str(source), len(value), compression)


@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
def test_a_value_comes_back_and_little_of_it_is_in_memory_at_a_time(tmp_path: Path, compression: str) -> None:
    directory, (path, stored_bytes, checksum, packed) = stored(tmp_path, compression)
    with directory:
        assert packed == compression
        assert (stored_bytes == len(VALUE)) == (not compression)
        tracemalloc.start()
        plain = check_file(directory, path, len(VALUE), checksum, packed)
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert Path(plain).read_bytes() == VALUE
        assert most_bytes < 16 << 20


@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
def test_a_file_that_was_changed_or_cut_short_is_a_lost_value(tmp_path: Path, compression: str) -> None:
    directory, (path, stored_bytes, checksum, packed) = stored(tmp_path, compression, b"abcd" * 100_000)
    with directory:
        whole = Path(path).read_bytes()
        middle = stored_bytes // 2
        for damaged in (whole[:middle], whole[:middle] + b"\xff\x00\xff" + whole[middle + 3 :], b""):
            Path(path).write_bytes(damaged)
            with pytest.raises(ValueLost):
                check_file(directory, path, 400_000, checksum, packed)
        assert not [file for file in directory.path.iterdir() if str(file) != path and file.name != "lock"]
