"""Segments are used again, and nobody who looks at one sees its bytes change."""

from __future__ import annotations

import asyncio
import builtins
import errno
import os
import resource
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.daemon import agent_store
from cluster.daemon.agent_peers import PeerServer
from cluster.daemon.agent_store import BY_PATH, Store
from cluster.daemon.slot_segments import SegmentAnswer, SegmentWriter, send_descriptor
from cluster.errors import ValueLost
from cluster.storage.maps import map_segment, map_to_write
from cluster.storage.segment_book import class_of, whole_pages
from cluster.storage.segments import SegmentDirectory, write_encoded
from cluster.wire import messages
from cluster.wire.payload import dumps, loads
from cluster.worker import events
from tests.processes.whole_cluster import WholeCluster, whole_cluster

pytestmark = [pytest.mark.fast_path("nothing is used again"), pytest.mark.timeout(60)]

MIB = 1 << 20


class Held:
    """A store, what it told slots to forget, and how many files it keeps open."""

    def __init__(self, limit_bytes: int, fast_paths: bool) -> None:
        self.forgotten: list[tuple[int, int]] = []
        self.descriptors_before = len(os.listdir("/proc/self/fd"))
        self.store = Store(
            Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"]),
            "test",
            limit_bytes,
            fast_paths=fast_paths,
            on_forget=lambda slot, number: self.forgotten.append((slot, number)),
        )

    async def create(self, nbytes: int, writer: int = -1) -> str:
        """The path of a segment, or empty."""
        created: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.store.create(nbytes, lambda path, reason: created.set_result(path), writer=writer)
        return await created

    async def create_with(self, byte: int, nbytes: int = MIB, writer: int = -1) -> str:
        """… with these bytes in it."""
        path = await self.create(nbytes, writer)
        with open(path, "r+b") as segment:
            segment.write(bytes([byte]) * nbytes)
        return path

    async def settle(self) -> None:
        """Wait for what the store's thread has to do."""
        thread = self.store._thread
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, lambda: None)
            await asyncio.sleep(0)

    def figures(self) -> tuple[int, int, int]:
        return self.store.used_bytes, self.store.free_bytes, self.store.open_bytes


@asynccontextmanager
async def held(limit_bytes: int = 64 * MIB, fast_paths: bool = True) -> AsyncIterator[Held]:
    one = Held(limit_bytes, fast_paths)
    yield one
    one.store.close()


def inode(path: str) -> int:
    return os.stat(path).st_ino


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_a_released_segment_is_used_again_under_another_name() -> None:
    async def test() -> None:
        async with held() as one:
            path = await one.create_with(1)
            before = inode(path)
            assert one.figures() == (MIB, 0, 0)
            one.store.remove(path)
            assert one.figures() == (0, MIB, 0)
            with pytest.raises(ValueLost):
                map_segment(path, MIB)
            again = await one.create(MIB - 5000)
            assert (again != path, inode(again)) == (True, before)
            assert one.figures() == (MIB, 0, 0)
            assert (await one.create(65 * MIB)).startswith(f"{one.store.paths[-1]}/"), "beyond the limit"

    run(test)


def test_while_anybody_looks_it_is_not_used_again() -> None:
    async def test() -> None:
        async with held() as one:
            path = await one.create_with(1)
            before, view = inode(path), map_segment(path, MIB)
            one.store.remove(path)
            assert one.figures() == (0, 0, MIB)
            others = [await one.create_with(2) for _ in range(3)]
            assert before not in map(inode, others)
            assert bytes(view) == b"\1" * MIB
            one.store.look()
            assert one.figures() == (3 * MIB, 0, MIB)
            part = view[:10]
            del view
            one.store.look()
            assert one.store.open_bytes == MIB
            del part
            # It is noticed when one is wanted, and not only by the look.
            assert inode(await one.create(MIB)) == before
            assert one.figures() == (4 * MIB, 0, 0)

    run(test)


def test_what_a_stranger_opened_while_it_was_free_is_not_used_again() -> None:
    async def test() -> None:
        async with held() as one:
            path = await one.create_with(1)
            before = inode(path)
            one.store.remove(path)
            [free] = one.store.paths[0].glob("free-*")
            view = map_segment(str(free), MIB)
            assert inode(await one.create_with(2)) != before
            assert bytes(view[:3]) == b"\1\1\1"
            assert one.figures() == (MIB, 0, MIB)
            del view
            one.store.look()
            assert one.figures() == (MIB, MIB, 0)

    run(test)


def test_what_was_shown_is_removed_and_its_memory_counted_until_nobody_has_it() -> None:
    async def test() -> None:
        async with held() as one:
            path = await one.create_with(1)
            one.store.mark_shown(path)
            view = map_segment(path, MIB)
            one.store.remove(path)
            assert one.figures() == (0, 0, MIB)
            assert not list(one.store.paths[0].glob("[fs]*"))
            await one.create_with(2)
            assert bytes(view) == b"\1" * MIB
            del view
            one.store.look()
            assert one.figures() == (MIB, 0, 0)
            other = await one.create(MIB)
            one.store.mark_shown(other)
            one.store.remove(other)
            assert one.figures() == (MIB, 0, 0)

    run(test)


def test_a_larger_value_of_the_class_makes_the_segment_grow() -> None:
    async def test() -> None:
        async with held() as one:
            small, large = 8 * MIB + 1, class_of(8 * MIB + 1)
            path = await one.create(small)
            before = inode(path)
            assert os.stat(path).st_size == whole_pages(small)
            assert one.store.used_bytes < small + 4096
            one.store.remove(path)
            path = await one.create(large)
            assert (inode(path), os.stat(path).st_size, one.store.used_bytes) == (before, large, large)
            assert os.stat(path).st_blocks * 512 == large
            one.store.remove(path)
            path = await one.create(small)
            assert (inode(path), one.store.used_bytes) == (before, large)

    run(test)


def test_free_segments_make_room_for_others_and_are_given_back_when_asked() -> None:
    async def test() -> None:
        async with held(limit_bytes=10 * MIB) as one:
            paths = [await one.create(2 * MIB) for _ in range(4)]
            for path in paths:
                one.store.remove(path)
            assert one.figures() == (0, 8 * MIB, 0)
            path = await one.create(5 * MIB)  # the two that were released first go
            assert path.startswith(f"{one.store.paths[0]}/")
            assert one.figures() == (5 * MIB, 4 * MIB, 0)
            assert one.store.shrink(1) == 2 * MIB
            assert one.store.shrink(100 * MIB) == 2 * MIB
            assert one.store.shrink(1) == 0
            assert one.figures() == (5 * MIB, 0, 0)
            assert len(list(one.store.paths[0].glob("[fs]*"))) == 1
            # What somebody looks at counts: there is room for no more.
            view = map_segment(path, 5 * MIB)
            one.store.remove(path)
            assert (await one.create(6 * MIB)).startswith(f"{one.store.paths[-1]}/")
            del view
            assert (await one.create(6 * MIB)).startswith(f"{one.store.paths[0]}/")

    run(test)


def test_a_segment_that_is_made_takes_the_place_of_free_ones_of_other_sizes() -> None:
    async def test() -> None:
        async with held(limit_bytes=64 * MIB) as one:
            pieces = [await one.create(2 * MIB) for _ in range(8)]
            views = [map_segment(path, 2 * MIB) for path in pieces]
            for path in pieces:
                one.store.remove(path)
            assert one.figures() == (0, 0, 16 * MIB)
            views.clear()  # nobody has them open any more, which is seen when the next is made
            await one.create(8 * MIB)
            assert one.figures() == (8 * MIB, 8 * MIB, 0)

    run(test)


def test_many_small_ones_that_are_given_back_at_once_are_no_work_for_the_loop() -> None:
    async def test() -> None:
        async with held() as one:
            for path in [await one.create(2 * MIB) for _ in range(4)]:
                one.store.remove(path)
            assert one.store._thread is None
            assert one.store.shrink(8 * MIB) == 8 * MIB
            assert one.store._thread is not None

    run(test)


def test_free_segments_go_when_they_were_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with held() as one:
            one.store.remove(await one.create(8 * MIB))
            one.store.look()
            assert one.store.free_bytes == 8 * MIB
            monkeypatch.setattr(agent_store, "IDLE_SECONDS", 0.0)
            one.store.look()
            assert one.store.free_bytes == 0
            await one.settle()
            assert not list(one.store.paths[0].glob("[fs]*"))

    run(test)


def test_the_memory_is_free_though_a_writer_still_has_it_mapped() -> None:
    async def test() -> None:
        async with held() as one:
            directory = os.open(one.store.paths[0], os.O_RDONLY)
            path = await one.create_with(1, 16 * MIB)
            one.store.remove(path)
            path = await one.create(16 * MIB, writer=3)
            number, descriptor = one.store.hand_over(path, 3)
            mapped = map_to_write(descriptor, 16 * MIB)
            before = os.fstatvfs(directory).f_bfree
            one.store.remove(path)
            assert one.store.free_bytes == 16 * MIB, "the writer's map counts for nobody's"
            one.store.shrink(1)
            assert one.forgotten == [(3, number)]
            await one.settle()
            assert (os.fstatvfs(directory).f_bfree - before) * 4096 > 15 * MIB
            os.close(directory)
            del mapped

    run(test)


def test_a_slot_is_given_what_it_has_mapped_and_lets_go_of_what_another_gets() -> None:
    async def test() -> None:
        async with held() as one:
            paths = [await one.create(MIB) for _ in range(2)]
            assert [one.store.hand_over(path, 0) for path in paths] == [BY_PATH, BY_PATH]
            for path in paths:
                one.store.remove(path)
            first, second = await one.create(MIB, writer=0), await one.create(MIB, writer=1)
            (one_number, one_descriptor), two = one.store.hand_over(first, 0), one.store.hand_over(second, 1)
            assert one_descriptor >= 0
            assert two.descriptor >= 0
            one.store.remove(first)
            one.store.remove(second)
            again = await one.create(MIB, writer=0)
            assert one.store.hand_over(again, 0) == (one_number, -1)
            other = await one.create(MIB, writer=0)
            assert one.store.hand_over(other, 0) == two
            assert one.forgotten == [(1, two.number)]
            one.store.not_handed(other)
            assert one.store.hand_over(other, 0) == two
            one.store.writer_ended(0)
            assert one.store.hand_over(again, 2) == (one_number, one_descriptor)
            assert one.forgotten == [(1, two.number)]

    run(test)


def test_many_are_removed_in_steps_and_at_once_where_there_would_be_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_store, "_STEP_SECONDS", 0.0)  # one a step

    async def test() -> None:
        async with held(limit_bytes=10 * MIB) as one:
            paths = [await one.create(MIB) for _ in range(10)]
            one.store.remove_all(paths[:3])
            one.store.remove_all(paths[3:5])
            assert one.figures() == (9 * MIB, MIB, 0)
            await asyncio.sleep(0)
            assert one.figures() == (8 * MIB, 2 * MIB, 0)
            assert (await one.create(5 * MIB)).startswith(f"{one.store.paths[0]}/")
            assert one.figures() == (10 * MIB, 0, 0)
            one.store.remove_all(paths[5:])

    run(test)


def test_where_a_segment_cannot_grow_or_be_made_free_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    room = [1 << 40]
    monkeypatch.setattr(SegmentDirectory, "free_bytes", lambda directory: room[0])

    async def test() -> None:
        async with held() as one:
            small, large = 8 * MIB + 20_000, class_of(8 * MIB + 1)
            one.store.remove(await one.create(small))
            one.store.remove(await one.create(4 * MIB))
            assert one.store.free_bytes > 12 * MIB
            # The system is short of memory, though the worker's limit is far.
            room[0] = 0
            path = await one.create(small - 10_000)
            assert path.startswith(f"{one.store.paths[0]}/"), "no more room is needed"
            one.store.remove(path)
            assert not await one.create(large), "neither can it grow, nor is there room for another, here or on disk"
            await one.settle()
            assert one.figures() == (0, 0, 0)
            assert not list(one.store.paths[0].glob("[fs]*"))
            room[0] = 1 << 40
            assert (await one.create(large)).startswith(f"{one.store.paths[0]}/")

    run(test)


def test_a_slot_that_cannot_map_a_segment_writes_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = dumps(np.arange(1000))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = tmp_path / "segment"
    with ours, theirs, path.open("w+b") as segment:
        segment.truncate(class_of(encoded.nbytes))
        writer = SegmentWriter(theirs.fileno())
        assert send_descriptor(ours, segment.fileno())
        answer = writer.take_in(SegmentAnswer(str(path), "", 7, 1))
        with monkeypatch.context() as patched:
            patched.setattr("cluster.daemon.slot_segments.map_to_write", no_address_space)
            writer.write(answer, encoded)
        assert path.read_bytes()[: encoded.nbytes] == encoded.to_bytes()
        # The agent takes it for mapped from now on, and says so.
        other = dumps(np.arange(1, 1001))
        writer.write(SegmentAnswer(str(path), "", 7, 0), other)
        assert path.read_bytes()[: other.nbytes] == other.to_bytes()
        # Now it goes through a map, and the file need not have its name any more.
        assert send_descriptor(ours, segment.fileno())
        answer = writer.take_in(SegmentAnswer("/nowhere", "", 8, 1))
        writer.write(answer, encoded)
        writer.write(answer._replace(descriptor=0), encoded)
        assert path.read_bytes()[: encoded.nbytes] == encoded.to_bytes()
        writer.forget(8)
        assert str(path) not in Path("/proc/self/maps").read_text()
        theirs.close()
        assert not send_descriptor(ours, segment.fileno()), "the slot has ended"


def no_address_space(*_: Any) -> Any:
    raise OSError(errno.ENOMEM, "no address space")


def test_a_store_that_is_closed_while_segments_are_made_ends_quietly() -> None:
    async def scenario() -> None:
        faults: list[Any] = []
        made: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        async with held(200 * MIB) as one:
            for _ in range(6):
                one.store.create(16 * MIB, lambda path, reason: made.append(path))
        await asyncio.sleep(0.1)
        assert (faults, made) == ([], [])

    asyncio.run(scenario())


def test_without_the_fast_paths_nothing_is_kept() -> None:
    async def test() -> None:
        async with held(fast_paths=False) as one:
            path = await one.create(MIB)
            one.store.remove(path)
            assert one.figures() == (0, 0, 0)
            assert not list(one.store.paths[0].glob("[fs]*"))
            assert one.store.hand_over(await one.create(MIB), 0) == BY_PATH

    run(test)


def test_no_descriptor_stays_open_and_there_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with held() as one:
            one.store._descriptors_limit = 6
            small = [await one.create(MIB // 2) for _ in range(20)]
            large = [await one.create(MIB) for _ in range(20)]
            assert len(os.listdir("/proc/self/fd")) < one.descriptors_before + 16
            for path in small + large:
                one.store.remove(path)
            assert one.figures() == (0, 3 * MIB // 2 + 3 * MIB, 0), "half of them for small ones"
            await one.create(MIB // 2)

    before = len(os.listdir("/proc/self/fd"))
    run(test)
    assert len(os.listdir("/proc/self/fd")) == before


class SlowPeer:
    """Stands for a connection whose peer reads nothing at first: what was sent on it."""

    def __init__(self) -> None:
        self.paused = True
        self.encrypted = False
        self.context = None
        self.sent: list[Any] = []
        self.files: list[bytes] = []
        self.send = self.sent.append

    def send_descriptor(self, descriptor: int, offset: int, nbytes: int, *, by_system_call: bool) -> None:
        self.files.append(os.pread(descriptor, nbytes, offset))
        os.close(descriptor)


@pytest.mark.parametrize("nbytes", [MIB, 2 * MIB])  # in its message, and as a stream
def test_an_answer_that_waited_never_holds_another_value(nbytes: int) -> None:
    async def test() -> None:
        async with held() as one:
            server, peer = PeerServer(one.store, None, lambda event: None), SlowPeer()  # type: ignore[arg-type]
            server.connected(peer)  # type: ignore[arg-type]
            path, kept = await one.create_with(1, nbytes), await one.create_with(3, nbytes)
            before = inode(path)
            server.send(events.ServeSegment(1, 5, 6, 7, nbytes, path))
            server.send(events.ServeSegment(1, 5, 8, 7, nbytes, kept))
            one.store.remove(path)
            again = await one.create_with(2, nbytes)
            assert inode(again) == before
            peer.paused = False
            peer.on_writable()  # type: ignore[attr-defined]
            missing, answer = peer.sent
            assert missing == messages.ValueMissing(5, 6, 7)
            if nbytes == MIB:
                assert answer[:4] == (5, 8, 7, b"\3" * nbytes)
            else:
                assert peer.files == [b"\3" * nbytes]
            # What `sendfile` served may lie in a socket's queue for long, so it is not used again.
            inode_of_kept = inode(kept)
            one.store.remove(kept)
            assert (inode(await one.create(nbytes)) == inode_of_kept) is (nbytes == MIB)

    run(test)


# ----------------------------------------------------------------------- on real daemons


KEPT = 200_000  # numbers in an array: a segment of 1.6 MB, of which slots keep maps


def numbers(first: int) -> np.ndarray[Any, Any]:
    return np.arange(first, first + KEPT)


def compare_at(gate: str, answer: str, array: np.ndarray[Any, Any], first: int) -> None:
    """Wait at the gate, then say whether the array is what it was."""
    with open(gate) as opened:
        opened.read()
    with open(answer, "w") as opened:
        opened.write(str(np.array_equal(array, numbers(first)[10:])))


def keep_in_a_global(array: np.ndarray[Any, Any], *arguments: Any) -> None:
    builtins.kept = array[10:]  # type: ignore[attr-defined]
    threading.Thread(
        target=lambda gate, answer, first: compare_at(gate, answer, builtins.kept, first),  # type: ignore[attr-defined]
        args=arguments,
        daemon=True,
    ).start()


def keep_in_a_child(array: np.ndarray[Any, Any], gate: str, answer: str, first: int) -> None:
    part = array[10:]
    if os.fork() == 0:
        compare_at(gate, answer, part, first)
        os._exit(0)


def refill(client: Any, rounds: int = 40) -> None:
    """Results of the same size, which would be written into any segment that is thought to be free."""
    for number in range(rounds):
        future = client.submit(numbers, -number * 10_000)
        assert client.submit(np.ndarray.__getitem__, future, 5).result(10) == 5 - number * 10_000


def inodes(cluster: WholeCluster) -> set[int]:
    return {path.stat().st_ino for path in cluster.segments()}


def test_whoever_holds_a_view_never_sees_it_change(tmp_path: Path) -> None:
    fifos = [str(tmp_path / name) for name in ("gate-1", "answer-1", "gate-2", "answer-2")]
    for fifo in fifos:
        os.mkfifo(fifo)
    with whole_cluster(slots=2) as cluster:
        client = cluster.client()
        firsts = (1_000_000, 2_000_000, 3_000_000, 4_000_000)
        futures = client.map(numbers, firsts)
        client.submit(keep_in_a_global, futures[0], *fifos[:2], firsts[0]).result(10)
        client.submit(keep_in_a_child, futures[1], *fifos[2:], firsts[1]).result(10)
        fetched = futures[2].result(10)
        views = [map_segment(str(path), path.stat().st_size) for path in cluster.segments()]
        arrays = [loads(view) for view in views]
        del views
        assert sorted(array[0] for array in arrays) == list(firsts)
        del futures
        refill(client)
        assert np.array_equal(fetched, numbers(firsts[2]))
        for array in arrays:
            assert np.array_equal(array, numbers(int(array[0])))
        # Now nobody but the slot and the child of one has a view.
        del arrays, array, fetched
        refill(client)
        for gate, answer in (fifos[:2], fifos[2:]):
            with open(gate, "w") as opened:
                opened.write("go")
            with open(answer) as opened:
                assert opened.read() == "True"


def test_results_of_one_size_use_the_same_file_again() -> None:
    with whole_cluster() as cluster:
        client = cluster.client()
        seen = set()
        for number in range(20):
            future = client.submit(numbers, number)
            assert client.submit(np.ndarray.__getitem__, future, 5).result(10) == 5 + number
            seen |= inodes(cluster)
            del future
        assert len(seen) <= 4


def test_a_value_that_ends_a_little_later_in_the_same_page_is_whole() -> None:
    with whole_cluster() as cluster:
        client = cluster.client()
        for length in (1_000_001, 1_000_002, 1_001_000):
            future = client.submit(np.ones, length, np.uint8)
            assert client.submit(np.sum, future).result(10) == length
            del future


def test_a_slot_that_dies_while_it_has_segments_mapped_loses_nothing_of_others() -> None:
    with whole_cluster(slots=2) as cluster:
        client = cluster.client()
        for number in range(12):
            future = client.submit(numbers, number)
            if number % 4 == 3:
                with pytest.raises(Exception, match=r"died|ended|killed"):
                    client.submit(os._exit, 3, retries=0).result(20)
            assert np.array_equal(future.result(10), numbers(number))
            del future


def test_an_agent_may_open_many_files_and_a_task_as_many_as_its_user_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        with whole_cluster() as cluster:
            in_slot = cluster.client().submit(resource.getrlimit, resource.RLIMIT_NOFILE).result(10)
            in_agent = resource.prlimit(cluster.workers[0].process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert in_slot == (300, before[1])
    assert in_agent == (before[1], before[1])


def test_a_value_is_written_and_read_the_same_by_a_map_and_by_the_path(tmp_path: Path) -> None:
    value = {"a": np.arange(300_000), "b": b"x" * 100_000, "c": [np.ones(5), "text"]}
    encoded = dumps(value)
    path = tmp_path / "by-path"
    path.write_bytes(bytes(encoded.nbytes))
    write_encoded(str(path), encoded)
    assert encoded.to_bytes() == path.read_bytes()
