"""Maps that a slot keeps: a segment that comes back with another value is not mapped anew, and nobody is deceived."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import ValueLost
from cluster.storage import maps
from cluster.storage.maps import KeptMaps
from cluster.storage.openings import is_open_elsewhere
from cluster.storage.segments import SegmentDirectory
from tests.processes.whole_cluster import WholeCluster, until, whole_cluster

pytestmark = [pytest.mark.fast_path("nothing is used again"), pytest.mark.timeout(60)]

MIB = 1 << 20
BYTES = 2 * MIB


class Owner:
    """An owner of one segment, who writes value after value into it, as a store does."""

    def __init__(self, parent: Path) -> None:
        self.directory = SegmentDirectory(parent, "owner")
        self.path, self.descriptor = self.directory.create_open(BYTES)

    def write(self, byte: int, nbytes: int = BYTES) -> str:
        """Under another name; it must be nobody's."""
        assert not is_open_elsewhere(self.descriptor)
        self.path = self.directory.rename(self.path, is_free=False)
        os.pwrite(self.descriptor, bytes([byte]) * nbytes, 0)
        return self.path

    def held_bytes(self) -> int:
        return os.fstat(self.descriptor).st_blocks * 512


@pytest.fixture
def owner(surroundings: object) -> Iterator[Owner]:
    made = Owner(Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"]))
    assert made.directory.can_recycle()
    yield made
    os.close(made.descriptor)
    made.directory.close()


@pytest.fixture
def kept() -> Iterator[KeptMaps]:
    made = KeptMaps()
    if made._page_map < 0:
        pytest.skip("the kernel does not say here which pages were written to")
    yield made
    made.clear()
    os.close(made._page_map)


def address_of(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def maps_of_this_process() -> str:
    return Path("/proc/self/maps").read_text()


def test_a_segment_that_comes_back_is_not_mapped_again_and_shows_what_it_holds_now(
    owner: Owner, kept: KeptMaps
) -> None:
    view = kept.map(owner.write(1), BYTES)
    first = address_of(view)
    assert bytes(view) == b"\1" * BYTES
    assert is_open_elsewhere(owner.descriptor)
    del view
    assert len(kept) == 1
    for byte in (2, 3):
        view = kept.map(owner.write(byte), BYTES)
        assert address_of(view) == first
        assert bytes(view) == bytes([byte]) * BYTES
        assert is_open_elsewhere(owner.descriptor), "as if it were mapped for this value"
        part = view[100:200]
        del view
        assert is_open_elsewhere(owner.descriptor)
        del part
        assert not is_open_elsewhere(owner.descriptor)


def test_a_map_that_was_written_to_is_not_kept(owner: Owner, kept: KeptMaps) -> None:
    for place in (0, BYTES // 2, BYTES - 1):
        view = kept.map(owner.write(1), BYTES)
        view[place] = 9
        del view
        assert len(kept) == 0
        view = kept.map(owner.write(2), BYTES)
        assert bytes(view) == b"\2" * BYTES
        del view
        assert len(kept) == 1


def test_maps_may_be_looked_at_later_and_their_segments_are_nobodys_meanwhile(owner: Owner, kept: KeptMaps) -> None:
    kept.defers = True
    for byte in (1, 2):
        view = kept.map(owner.write(byte), BYTES)
        assert bytes(view) == bytes([byte]) * BYTES
        if byte == 2:
            view[5] = 9
        del view
        assert (len(kept), is_open_elsewhere(owner.descriptor)) == (0, False)
    kept.settle()
    assert len(kept) == 1, "the one that was not written to"
    view = kept.map(owner.write(3), BYTES)
    assert bytes(view) == b"\3" * BYTES
    del view
    assert len(kept) == 1, "nothing is deferred any more"


def test_a_longer_value_than_is_mapped_is_mapped_whole(owner: Owner, kept: KeptMaps) -> None:
    view = kept.map(owner.write(1), BYTES)
    del view
    owner.directory.extend(owner.descriptor, BYTES, BYTES)
    view = kept.map(owner.write(2, 2 * BYTES), 2 * BYTES)
    assert bytes(view) == b"\2" * (2 * BYTES)
    del view
    view = kept.map(owner.write(3, BYTES), BYTES)
    assert (len(view), bytes(view)) == (BYTES, b"\3" * BYTES)
    del view
    assert len(kept) == 1


def test_two_who_look_at_once_have_maps_of_their_own(owner: Owner, kept: KeptMaps) -> None:
    path = owner.write(1)
    one, other = kept.map(path, BYTES), kept.map(path, BYTES)
    one[0] = 7
    assert other[0] == 1
    del one
    assert is_open_elsewhere(owner.descriptor)
    del other
    assert not is_open_elsewhere(owner.descriptor)
    assert len(kept) == 1


def test_what_a_removed_segment_took_is_free_though_its_map_was_kept(owner: Owner, kept: KeptMaps) -> None:
    view = kept.map(owner.write(1), BYTES)
    del view
    assert owner.held_bytes() >= BYTES
    owner.directory.remove(owner.path)
    assert owner.held_bytes() == 0


def test_so_it_is_when_its_owner_ends_or_has_died(surroundings: object, kept: KeptMaps) -> None:
    parent = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])
    owner = Owner(parent)
    view = kept.map(owner.write(1), BYTES)
    del view
    owner.directory.close()
    assert owner.held_bytes() == 0
    os.close(owner.descriptor)


def test_what_is_looked_at_while_it_is_removed_keeps_its_bytes_and_its_map_goes_with_the_view(
    owner: Owner, kept: KeptMaps
) -> None:
    view = kept.map(owner.write(1), BYTES)
    owner.directory.remove(owner.path)
    assert bytes(view) == b"\1" * BYTES
    del view
    assert len(kept) == 0
    assert "owner-" not in maps_of_this_process()


def test_a_removed_segment_that_was_shown_and_may_not_be_written_to_is_emptied_too(
    owner: Owner, kept: KeptMaps
) -> None:
    view = kept.map(owner.write(1), BYTES)
    del view
    os.chmod(owner.path, 0o400)
    owner.directory.remove(owner.path)
    assert owner.held_bytes() == 0


def test_a_segment_that_another_owner_has_linked_is_not_emptied(owner: Owner, kept: KeptMaps, tmp_path: Path) -> None:
    other = SegmentDirectory(Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"]), "other")
    path = other.link(owner.write(1), BYTES)
    owner.directory.remove(owner.path)
    view = kept.map(path, BYTES)
    assert bytes(view) == b"\1" * BYTES
    del view
    other.remove(path)
    assert owner.held_bytes() == 0
    other.close()


def test_a_small_value_is_mapped_for_itself(owner: Owner, kept: KeptMaps) -> None:
    view = kept.map(owner.write(1), MIB - 1)
    assert bytes(view) == b"\1" * (MIB - 1)
    del view
    assert len(kept) == 0
    assert not is_open_elsewhere(owner.descriptor)


def test_no_more_is_kept_than_may_be(surroundings: object, kept: KeptMaps, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])
    before = len(os.listdir("/proc/self/fd"))
    with SegmentDirectory(parent, "owner") as directory:
        paths = [directory.create(BYTES) for _ in range(6)]
        monkeypatch.setattr(maps, "_KEPT", 4)
        for path in paths:
            kept.map(path, BYTES)
        assert len(kept) == 4
        monkeypatch.setattr(maps, "_KEPT_BYTES", 2 * BYTES)
        kept.map(paths[0], BYTES)
        assert len(kept) == 2
        held = maps_of_this_process()
        assert [path in held for path in paths] == [True, False, False, False, False, True]
        directory.remove(paths[5])
        kept.map(paths[0], BYTES)
        assert len(kept) == 1, "what was removed goes when another is looked after"
        kept.clear()
        assert "owner-" not in maps_of_this_process()
    assert len(os.listdir("/proc/self/fd")) == before


def test_damaged_and_missing_values_are_named(owner: Owner, kept: KeptMaps) -> None:
    with pytest.raises(ValueLost, match=f"{BYTES} bytes instead of {3 * BYTES}"):
        kept.map(owner.path, 3 * BYTES)
    with pytest.raises(ValueLost, match="is gone"):
        kept.map(f"{owner.path}-not", BYTES)
    assert not is_open_elsewhere(owner.descriptor)
    assert len(kept) == 0


def test_a_child_has_the_value_that_its_parent_let_go_of_and_keeps_nothing(owner: Owner, kept: KeptMaps) -> None:
    view = kept.map(owner.write(1), BYTES)
    read, write = os.pipe()
    back_read, back = os.pipe()
    child = os.fork()
    if child == 0:
        kept.after_fork_in_child()
        os.close(write)
        os.read(read, 1)  # returns when the parent closes its end
        seen = bytes(view)
        del view
        gc.collect()
        os.write(back, b"yes" if seen == b"\1" * BYTES and len(kept) == 0 else b"no")
        os._exit(0)
    os.close(read)
    del view
    assert len(kept) == 1
    assert is_open_elsewhere(owner.descriptor), "the child's"
    os.close(write)
    assert os.read(back_read, 3) == b"yes"
    os.waitpid(child, 0)
    assert not is_open_elsewhere(owner.descriptor)
    for descriptor in (back_read, back):
        os.close(descriptor)


def test_a_child_that_closes_all_descriptors_still_counts(owner: Owner, kept: KeptMaps) -> None:
    view = kept.map(owner.write(1), BYTES)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(read, 0)
        os.closerange(1, 1000)
        os.read(0, 1)
        os._exit(0)
    os.close(read)
    del view
    assert is_open_elsewhere(owner.descriptor)
    os.close(write)
    os.waitpid(child, 0)
    assert not is_open_elsewhere(owner.descriptor)


def test_where_addresses_are_limited_nothing_is_kept(owner: Owner) -> None:
    program = textwrap.dedent(f"""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        from cluster.storage.maps import KeptMaps
        kept = KeptMaps()
        view = kept.map({owner.path!r}, {BYTES})
        del view
        print(len(kept))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


def test_views_that_die_in_other_threads_meanwhile_do_no_harm(surroundings: object, kept: KeptMaps) -> None:
    parent = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])
    wrong: list[str] = []
    with SegmentDirectory(parent, "owner") as directory:
        paths = []
        for byte in range(4):
            path, descriptor = directory.create_open(BYTES)
            os.pwrite(descriptor, bytes([byte]) * BYTES, 0)
            os.close(descriptor)
            paths.append(path)

        def look(thread: int) -> None:
            for turn in range(300):
                at = (turn * (thread + 1) + thread) % 4
                view = kept.map(paths[at], BYTES)
                if view[turn] != at or view[-1] != at:
                    wrong.append(f"{at}: {view[turn]}, {view[-1]}")
                if turn % 7 == 0:
                    view[turn] = 99

        threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert not wrong
        assert len(kept) <= 4
        kept.clear()
        assert "owner-" not in maps_of_this_process()


# ----------------------------------------------------------------------- on real daemons

NUMBERS = 400_000  # in an array: 3.2 MB


def numbers(first: int) -> np.ndarray[Any, Any]:
    return np.arange(first, first + NUMBERS)


def sum_and_spoil(array: np.ndarray[Any, Any], spoil: bool) -> int:
    total = int(array.sum())
    if spoil:
        array[::1000] = -1
    return total


def faults_of(array: np.ndarray[Any, Any]) -> int:
    """How many page faults it takes to read an array."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array.sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def cluster() -> Iterator[WholeCluster]:
    with whole_cluster(slots=1) as made:
        yield made


def test_tasks_that_change_their_inputs_change_nobody_elses(cluster: WholeCluster) -> None:
    client = cluster.client()
    for turn in range(60):
        future = client.submit(numbers, turn * 1000)
        expected = int(numbers(turn * 1000).sum())
        spoils = [turn % 3 == 0, False, turn % 2 == 0]
        sums = [client.submit(sum_and_spoil, future, spoil, pure=False) for spoil in spoils]
        assert client.gather(sums) == [expected] * 3


def test_a_value_in_a_segment_that_was_read_before_costs_no_faults(cluster: WholeCluster) -> None:
    client = cluster.client()
    faults = []
    for turn in range(12):
        future = client.submit(numbers, turn)
        faults.append(client.submit(faults_of, future).result(10))
        del future
    assert max(faults[:2]) > 20, "the first time each page group is mapped by a fault"
    assert min(faults) == 0
    assert sorted(faults)[len(faults) // 2] == 0


def test_the_memory_of_a_clients_arguments_is_free_when_it_has_ended_though_slots_keep_maps(
    cluster: WholeCluster,
) -> None:
    client = cluster.client()
    assert client.gather(client.map(len, [numbers(first) for first in range(6)])) == [NUMBERS] * 6
    held = [os.dup(segment.descriptor) for segment in client._segments._kept]
    assert sum(os.fstat(descriptor).st_blocks for descriptor in held) > 0
    client.close()
    until(lambda: not any(os.fstat(descriptor).st_blocks for descriptor in held), "the segments' pages are free")
    for descriptor in held:
        os.close(descriptor)
