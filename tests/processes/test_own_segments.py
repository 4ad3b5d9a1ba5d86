"""A client's own segments: written once, linked by agents, used again only when nobody can see that."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cluster import Client, LocalCluster, config, get_client
from cluster.client import own_segments
from cluster.client.own_segments import OfferedBytes, OwnSegments
from cluster.daemon.agent_hosts import PeerHosts
from cluster.daemon.agent_store import Store
from cluster.errors import StoreFull, ValueLost
from cluster.storage.maps import map_segment
from cluster.storage.probes import make_probe, read_probe
from cluster.transport.blocking import BlockingConnection
from cluster.wire import messages
from cluster.wire.arguments import ArgumentChanged
from cluster.wire.payload import dumps, loads
from tests.processes.test_same_host import NUMBERS, Heard, count_from, shared
from tests.processes.whole_cluster import Gate, until, wait_at, whole_cluster

pytestmark = pytest.mark.timeout(30)


def offered(value: object) -> OfferedBytes:
    return OfferedBytes(dumps(value), None)


@pytest.fixture
def segments(tmp_path: Path) -> Iterator[OwnSegments]:
    own = OwnSegments(Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path)
    assert own.probe() is not None
    yield own
    own.close()


@pytest.fixture
def agent_directory(segments: OwnSegments) -> Iterator[Path]:
    """Where the test links segments as an agent would: on the same file system."""
    directory = Path(own_path(segments) + "-agent")
    directory.mkdir(mode=0o700)
    yield directory
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def own_path(segments: OwnSegments) -> str:
    probe = segments.probe()
    assert probe is not None
    return os.path.dirname(probe.path)


def write(segments: OwnSegments, number: int, value: object, link: Path | None = None) -> str:
    with segments.holding(number, offered(value)) as name:
        path = f"{own_path(segments)}/{name}"
        if link is not None:
            os.link(path, link)
        return path


def read(path: str | Path) -> Any:
    return loads(map_segment(str(path), os.stat(path).st_size))


# --------------------------------------------------------------------------- one client's, alone


def test_a_value_is_written_once_however_many_agents_want_it(segments: OwnSegments, agent_directory: Path) -> None:
    first = write(segments, 1, count_from(0), agent_directory / "s1")
    assert write(segments, 1, "not looked at", agent_directory / "s2") == first
    assert np.array_equal(read(agent_directory / "s2"), count_from(0))
    assert os.stat(first).st_nlink == 3


def test_a_segment_is_used_again_when_nobody_needs_it(segments: OwnSegments, agent_directory: Path) -> None:
    link = agent_directory / "s1"
    path = write(segments, 1, count_from(0), link)
    inode = os.stat(path).st_ino
    assert os.stat(write(segments, 2, count_from(1))).st_ino != inode, "the client holds the first value"
    segments.let_go([1])
    assert os.stat(write(segments, 3, count_from(2))).st_ino != inode, "an agent holds it"
    view = read(link)
    link.unlink()
    assert os.stat(write(segments, 4, count_from(3))).st_ino != inode, "somebody looks at it"
    assert view[0] == 0
    del view
    if not segments._recycles:
        return
    again = write(segments, 5, count_from(4))
    assert os.stat(again).st_ino == inode
    assert read(again)[0] == 4
    assert not os.path.exists(path), "who was told the old name, and comes late, finds nothing there"


def test_a_value_that_an_agent_has_shown_to_somebody_else_keeps_its_bytes(
    segments: OwnSegments, agent_directory: Path
) -> None:
    link = agent_directory / "s1"
    path = write(segments, 1, count_from(0), link)
    link.chmod(0o400)
    link.unlink()
    segments.let_go([1])
    assert write(segments, 2, count_from(1)) != path


def test_a_segment_whose_name_an_agent_has_but_not_linked_yet_is_not_written_to(segments: OwnSegments) -> None:
    with segments.holding(1, offered(count_from(0))) as name:
        segments.let_go([1])
        with segments.holding(2, offered(count_from(1))) as other:
            assert other != name


def test_nobody_waits_for_a_value_that_is_being_written_but_who_writes_another(
    segments: OwnSegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def check(checksum: int) -> None:
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(own_segments, "IDLE_SECONDS", -1.0)
    names: list[str] = []

    def hand_over() -> None:
        with segments.holding(1, OfferedBytes(dumps(count_from(5)), check)) as name:
            names.append(name)
            assert np.array_equal(read(f"{own_path(segments)}/{name}"), count_from(5))

    writer = threading.Thread(target=hand_over)
    writer.start()
    assert begun.wait(10)
    segments.let_go([1])
    segments.look()
    assert segments.keeps_any, "what is being written is not idle"
    go_on.set()
    writer.join(10)
    assert names
    segments.look()
    assert not segments.keeps_any


def test_what_could_not_be_written_is_used_for_another(segments: OwnSegments) -> None:
    def changed(checksum: int) -> None:
        raise ArgumentChanged("x")

    with pytest.raises(ArgumentChanged), segments.holding(1, OfferedBytes(dumps(count_from(0)), changed)):
        raise AssertionError("it was handed over")
    if not segments._recycles:
        assert not segments.keeps_any
        return
    [kept] = segments._kept
    assert os.path.samestat(os.stat(write(segments, 1, count_from(1))), os.fstat(kept.descriptor))


def test_what_is_of_no_use_goes_back_after_a_while(
    segments: OwnSegments, agent_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = agent_directory / "s1"
    used, unused = write(segments, 1, count_from(0), link), write(segments, 2, count_from(1))
    segments.look()
    assert os.path.exists(used) and os.path.exists(unused)
    segments.look()
    assert os.path.exists(used) and not os.path.exists(unused), "no agent wants it any more, as when it has spilled it"
    segments.let_go([1])
    segments.look()
    assert os.path.exists(used), "it is kept for the next value"
    monkeypatch.setattr(own_segments, "IDLE_SECONDS", -1.0)
    segments.look()
    assert not os.path.exists(used) and not segments.keeps_any
    assert np.array_equal(read(link), count_from(0)), "the agent's link is its own"


def test_no_more_is_kept_than_may_be(
    segments: OwnSegments, agent_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_segments, "KEPT_LIMIT", 2)
    for number in range(5):
        write(segments, number, count_from(number), agent_directory / f"s{number}")
    assert len(segments._kept) == 2
    assert [read(agent_directory / f"s{number}")[0] for number in range(5)] == list(range(5))


def test_a_full_store_gives_back_what_is_idle_and_then_says_so(
    segments: OwnSegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(segments, 1, count_from(0))
    segments.let_go([1])
    directory = segments._directory
    assert directory is not None
    monkeypatch.setattr(directory, "free_bytes", lambda: (10 << 20) if not os.path.exists(path) else 0)
    other = write(segments, 2, np.zeros(1_000_000))
    assert not os.path.exists(path) and os.path.exists(other)
    monkeypatch.setattr(directory, "free_bytes", lambda: 0)
    with pytest.raises(StoreFull, match="no room"):
        write(segments, 3, np.zeros(1_000_000))


def test_an_argument_that_has_changed_is_noticed_while_it_is_written(segments: OwnSegments) -> None:
    array = count_from(0)
    checksum = dumps(array).checksum()

    def check(found: int) -> None:
        if found != checksum:
            raise ArgumentChanged(array)

    with segments.holding(1, OfferedBytes(dumps(array), check)) as name:
        assert np.array_equal(read(f"{own_path(segments)}/{name}"), array)
    array[0] = 5
    with pytest.raises(ArgumentChanged), segments.holding(2, OfferedBytes(dumps(array), check)):
        raise AssertionError("it was handed over")


def test_where_no_directory_can_be_made_that_is_said_once_and_nothing_is_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"cluster-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"cluster-{os.getuid()}").chmod(0o777)
    own = OwnSegments(tmp_path)
    assert own.probe() is None and own.probe() is None
    (record,) = caplog.records
    assert "are sent to the workers of this host, and not shared" in record.getMessage()
    own.close()


# --------------------------------------------------------------------------- an agent, and peers that lie


@pytest.fixture
def store(segments: OwnSegments) -> Iterator[Store]:
    own = Store(Path(own_path(segments)).parent.parent, "agent", 10 << 20)
    yield own
    own.close()


def test_an_agent_takes_over_what_lies_in_a_proved_directory_and_nothing_else(
    segments: OwnSegments, store: Store, tmp_path: Path
) -> None:
    hosts, peer = PeerHosts(store, True), Heard()
    probe = segments.probe()
    assert probe is not None
    path = write(segments, 1, count_from(0))
    size, name = os.stat(path).st_size, os.path.basename(path)

    def take(peer: int, name: str, nbytes: int = size) -> tuple[str, str]:
        return hosts.take_over(peer, messages.PutSegment(1, 1, nbytes, name))

    assert "was proved" in take(1, name)[1]
    hosts.heard(peer, 1, messages.HostProbe([probe.path]))  # type: ignore[arg-type]
    assert peer.sent == [messages.HostProof([probe.content])]
    assert "was proved" in take(2, name)[1], "by another peer"
    for wrong in ("../s1", "lock", "probe", "", "s1/../s2", "/etc/hostname", "s" * 100):
        assert "was proved" in take(1, wrong)[1]
    assert "cannot be taken over" in take(1, "s999")[1]
    os.symlink(path, f"{own_path(segments)}/s900")
    os.mkfifo(f"{own_path(segments)}/s901")
    os.mkdir(f"{own_path(segments)}/s902")
    for wrong in ("s900", "s901", "s902"):
        assert "cannot be taken over" in take(1, wrong)[1]
    os.rmdir(f"{own_path(segments)}/s902")
    assert "cannot be taken over" in take(1, name, size + 1)[1], "it is shorter than the peer says"
    assert "memory limit" in take(1, name, 11 << 20)[1]
    assert not list(store.paths[0].glob("s*")), "nothing is left of all that"
    taken, reason = take(1, name)
    assert not reason and np.array_equal(read(taken), count_from(0))
    store.mark_shown(taken)
    assert os.stat(path).st_mode & 0o777 == 0o400
    store.remove(taken)
    assert not os.path.exists(taken) and os.path.exists(path)


def test_an_agent_takes_nothing_over_from_another_file_system(store: Store, tmp_path: Path) -> None:
    elsewhere = OwnSegments(tmp_path)
    try:
        probe = elsewhere.probe()
        assert probe is not None
        if os.stat(probe.path).st_dev == os.stat(store.paths[0]).st_dev:
            pytest.skip("there is only one file system here")
        hosts, peer = PeerHosts(store, True), Heard()
        hosts.heard(peer, 1, messages.HostProbe([probe.path]))  # type: ignore[arg-type]
        assert peer.sent == [messages.HostProof([b""])]
    finally:
        elsewhere.close()


def test_a_client_that_ends_while_an_agent_looks_at_its_directory_harms_nobody(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "ends"
    directory.mkdir(mode=0o700)
    probe = make_probe(str(directory))

    def read_and_end(path: str) -> bytes:
        content = read_probe(path)
        shutil.rmtree(directory)
        return content

    monkeypatch.setattr("cluster.daemon.agent_hosts.read_probe", read_and_end)
    hosts, peer = PeerHosts(store, True), Heard()
    hosts.heard(peer, 1, messages.HostProbe([probe.path]))  # type: ignore[arg-type]
    assert peer.sent == [messages.HostProof([b""])]


# --------------------------------------------------------------------------- whole clusters


def lies_at(array: np.ndarray[Any, Any]) -> tuple[int, bool]:
    """Inode of the file that is mapped where an array lies, and whether it can be written to."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, _, _, _, inode = line.split()[:5]
        start, end = (int(part, 16) for part in extent.split("-"))
        if start <= address < end:
            return int(inode), array.flags.writeable
    raise AssertionError


def client_inodes(client: Client) -> set[int]:
    return {os.fstat(kept.descriptor).st_ino for kept in client._segments._kept}


@shared
def test_a_task_maps_the_segment_that_the_client_wrote(client: Client) -> None:
    array = count_from(0)
    inode, writable = client.submit(lies_at, array).result(10)
    assert inode in client_inodes(client) and writable
    inside = client.submit(lambda given: [lies_at(given["x"][0])[0]], {"x": [count_from(1)]}).result(10)
    assert inside[0] in client_inodes(client)


def places(value: Any) -> list[int]:
    """The inode of what is mapped where each buffer of a value lies; 0 for memory of the process's own."""
    found = []
    for view in dumps(value).parts:
        if len(view) >= 50_000 and not isinstance(view, bytes):
            found.append(lies_at(np.frombuffer(view, dtype=np.uint8))[0])
    return found


class Measured:
    """An object with buffers of its own."""

    def __init__(self, number: int) -> None:
        self.content = {"at": [np.arange(number)], "flags": np.ones(number, dtype=bool)}
        self.table = pa.table({"x": np.arange(number), "text": [f"text {at}" for at in range(number)]})


@shared
@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.DataFrame({"x": np.arange(NUMBERS), "text": [f"t{at}" for at in range(NUMBERS)]}),
        lambda: pa.table({"x": np.arange(NUMBERS), "text": [f"text {at}" for at in range(NUMBERS)]}),
        lambda: {"nested": [(count_from(0), {"deep": count_from(1)})]},
        lambda: Measured(NUMBERS),
    ],
    ids=["pandas", "pyarrow", "containers", "object"],
)
def test_no_buffer_of_what_hands_them_out_is_copied_by_who_loads_it(client: Client, make: Any) -> None:
    value = make()
    there = client.submit(places, value).result(20)
    assert len(there) >= 2 and set(there) <= client_inodes(client)
    here = client.submit(make).result(20)
    assert places(here) and len(set(places(here))) == 1 and places(here)[0] > 0


@shared
def test_one_argument_after_the_other_uses_one_segment(client: Client) -> None:
    for first in range(5):
        assert client.submit(lambda a: int(a[0] + a[-1]), count_from(first)).result(10) == 2 * first + NUMBERS - 1
        (kept,) = client._segments._kept
        until(lambda kept=kept: os.fstat(kept.descriptor).st_nlink == 1 and kept.is_forgotten, "nobody needs the value")
        if not client._segments._recycles:
            return


@shared
def test_the_arguments_of_a_map_come_whole(client: Client) -> None:
    arrays = [count_from(first) for first in range(12)]
    sums = client.map(lambda a: int(a.sum()), arrays)
    assert client.gather(sums, timeout=20) == [int(array.sum()) for array in arrays]


@shared
def test_broadcast_data_is_one_file_for_all_workers_of_the_host() -> None:
    with LocalCluster(n_workers=2, slots=1) as cluster, Client(cluster) as client:
        until(lambda: len(client.scheduler_info()["workers"]) == 2, "both workers have joined")
        there = client.scatter(count_from(0), broadcast=True)
        (kept,) = client._segments._kept
        assert os.fstat(kept.descriptor).st_nlink == 3
        names = [worker["name"] for worker in client.scheduler_info()["workers"].values()]
        seen = [client.submit(lies_at, there, workers=name).result(10)[0] for name in names]
        assert seen == [os.fstat(kept.descriptor).st_ino] * 2


@shared
@pytest.mark.kills_processes
def test_workers_of_one_host_share_a_value_and_each_keeps_it_when_the_other_dies() -> None:
    with whole_cluster(workers=2) as cluster, cluster.new_client() as client:
        made = client.submit(count_from, 3, workers="worker-0")
        first = client.submit(lies_at, made, workers="worker-0").result(10)
        second = client.submit(lies_at, made, workers="worker-1").result(10)
        assert first[0] == second[0] > 0, "both tasks have mapped the same file"
        assert len(client.who_has([made])[made.key]) == 2
        cluster.workers[0].signal(signal.SIGKILL)
        until(lambda: len(client.scheduler_info()["workers"]) == 1, "the scheduler has noticed")
        assert client.submit(np.sum, made).result(10) == count_from(3).sum()
        assert np.array_equal(made.result(10), count_from(3))


@shared
def test_what_a_client_scattered_survives_it() -> None:
    with whole_cluster() as cluster:
        holder = cluster.client()
        memory = config.load().shared_memory_directory
        program = f"""
            import sys, os, signal
            import numpy as np
            from cluster import Client
            client = Client({cluster.address!r}, directory={str(cluster.directory)!r})
            client.publish_dataset(kept=client.scatter(np.arange({NUMBERS})))
            os.kill(os.getpid(), signal.SIGKILL)
        """
        ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=20, check=False)
        assert ended.returncode == -signal.SIGKILL
        kept = holder.get_dataset("kept")
        assert np.array_equal(holder.submit(np.copy, kept).result(10), count_from(0))
        holder.unpublish_dataset("kept")
        until(lambda: not list(memory.glob("cluster-*/client-*")), "the worker has removed what the client left")


@shared
@pytest.mark.kills_processes
def test_a_worker_that_is_killed_costs_the_client_nothing() -> None:
    with whole_cluster(workers=2) as cluster, Client(cluster.address, directory=cluster.directory) as client:
        array = count_from(0)
        there = client.submit(lambda given: given, array, workers="worker-0", allow_other_workers=True)
        mapped = there.result(10)
        cluster.workers[0].signal(signal.SIGKILL)
        assert np.array_equal(mapped, array), "the client's map stays"
        again = client.submit(lies_at, array)
        assert again.result(20)[0] in client_inodes(client)


@shared
def test_where_the_client_finds_no_room_the_argument_is_sent(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: OwnSegments, number: int, nbytes: int) -> Any:
        raise StoreFull("no room")

    monkeypatch.setattr(OwnSegments, "_create", full)
    assert client.submit(lambda a: int(a.sum()), count_from(0)).result(10) == count_from(0).sum()
    assert not client._segments.keeps_any


@shared
def test_where_the_worker_does_not_take_it_over_the_argument_is_sent(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def lying(self: BlockingConnection, message: Any) -> None:
        if isinstance(message, messages.PutSegment):
            message = message._replace(name="../../s1")
        sent.append(type(message).__name__)
        send(self, message)

    send = BlockingConnection.send
    monkeypatch.setattr(BlockingConnection, "send", lying)
    assert client.submit(lambda a: int(a.sum()), count_from(0)).result(10) == count_from(0).sum()
    assert "PutSegment" in sent


@shared
def test_an_argument_that_changed_before_it_was_written_fails_its_task(client: Client, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        first = client.submit(wait_at, gate.path)
        gate.wait_until_reached()
        array = count_from(0)
        changed = client.submit(lambda a, _: int(a[0]), array, first)
        array[7] = 0
        gate.open()
        with pytest.raises(ValueLost, match="was changed after the call"):
            changed.result(10)
        assert client.submit(lambda a: int(a[7]), array).result(10) == 0


def submits_inside() -> tuple[int, int]:
    client = get_client()
    future = client.submit(lambda a: int(a[0]), count_from(3))
    return future.result(), len(client._segments._kept)


@shared
def test_a_client_inside_a_task_shares_as_well(client: Client) -> None:
    assert client.submit(submits_inside).result(15)[0] == 3


def test_without_the_fast_paths_arguments_are_sent(
    local_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", "false")
    with Client(local_cluster) as client:
        assert client.submit(lambda a: int(a[0]), count_from(4)).result(10) == 4
        assert not client._segments.keeps_any
    assert config.load().fast_paths is False
