"""What processes on one host prove to each other, and values that a client maps instead of receiving them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster import AsyncClient, Client, LocalCluster, config
from cluster.client import values
from cluster.daemon.agent_hosts import PeerHosts
from cluster.daemon.agent_store import Store
from cluster.daemon.same_host import AgentHost, open_value
from cluster.errors import ProtocolError, ValueLost
from cluster.storage.probes import PROBE, make_probe, proven, read_probe, read_probes
from cluster.wire import messages
from tests.processes.whole_cluster import until

pytestmark = pytest.mark.timeout(30)

NUMBERS = 200_000

shared = pytest.mark.skipif(not config.load().fast_paths, reason="without the fast paths nothing is shared")


def file_under(array: np.ndarray[Any, Any]) -> str:
    """The file that is mapped where the array lies; empty if its memory is this process's own."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, _, _, _, _, *path = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in extent.split("-"))
        if start <= address < end:
            return path[0] if path and path[0].startswith("/") else ""
    raise AssertionError("the array lies nowhere")


def count_from(first: int) -> np.ndarray[Any, Any]:
    return np.arange(first, first + NUMBERS)


def frame_from(first: int) -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(first, first + NUMBERS), "b": np.ones(NUMBERS)})


# --------------------------------------------------------------------------- the proof


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory as agents and clients have one."""
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    return own


def test_who_reads_the_probe_has_proved_it_and_nobody_else(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    probes = [make_probe(str(place)), make_probe(str(other))]
    assert proven(probes, read_probes([probe.path for probe in probes])) == {0, 1}
    assert proven(probes, [b"", probes[1].content]) == {1}
    assert proven(probes, [probes[1].content, probes[0].content]) == frozenset()
    assert proven(probes, []) == frozenset()
    assert proven(probes, [bytes(32)] * 100) == frozenset()


def test_a_probe_that_nobody_should_trust_is_not_read(place: Path, tmp_path: Path) -> None:
    path = make_probe(str(place)).path
    assert len(read_probe(path)) == 32
    assert read_probe(os.path.relpath(path)) == b""
    assert read_probe(f"{path}\0") == read_probe(str(place / "lock")) == read_probe("") == b""
    link = tmp_path / "link"
    link.symlink_to(place)
    assert read_probe(f"{link}/{PROBE}") == b"", "a directory is not looked for behind a link"
    place.chmod(0o755)
    assert read_probe(path) == b"", "others may enter it"
    place.chmod(0o700)
    Path(path).write_bytes(bytes(33))
    assert read_probe(path) == b""
    os.unlink(path)
    os.symlink("/etc/hostname", path)
    assert read_probe(path) == b""
    os.unlink(path)
    os.mkfifo(path)
    assert read_probe(path) == b"", "and nobody waits for a pipe"


def test_only_segments_of_proved_directories_are_opened() -> None:
    host = AgentHost(("/dev/shm/one", ""))
    assert host.segment(0, "s12") == "/dev/shm/one/s12"
    wrong = (0, "../s1"), (0, "s1/../../x"), (0, "lock"), (0, "probe"), (1, "s1"), (2, "s1"), (-1, "s1")
    for position, name in wrong:
        with pytest.raises(ProtocolError, match="not proved"):
            host.segment(position, name)


class Heard:
    """Stands for a connection: what was sent on it."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.send = self.sent.append


def test_an_agent_shows_its_segments_to_peers_that_proved_themselves(tmp_path: Path) -> None:
    store = Store(tmp_path, "agent", 1 << 30)
    try:
        hosts, peer = PeerHosts(store, True), Heard()
        made: list[str] = []
        store.create(100, lambda path, reason: made.append(path))
        assert hosts.show(1, made[0]) is None
        hosts.heard(peer, 1, messages.HostProbe([]))  # type: ignore[arg-type]
        (probe,) = peer.sent
        hosts.heard(peer, 1, messages.HostProof([bytes(32)] * len(probe.paths)))  # type: ignore[arg-type]
        assert hosts.show(1, made[0]) is None, "a wrong answer"
        hosts.heard(peer, 1, messages.HostProof(read_probes(probe.paths)))  # type: ignore[arg-type]
        assert hosts.show(1, made[0]) == (0, Path(made[0]).name)
        assert hosts.show(2, made[0]) is None, "another peer has proved nothing"
        assert not store._book.find(made[0]).shown, "it is seen who has it open, or a link to it"
        store.remove(made[0])
        assert hosts.show(1, made[0]) is not None and made[0] not in store._book, "it was freed while the answer waited"
        hosts.closed(1)
        assert hosts.show(1, made[0]) is None
        unwilling, other = PeerHosts(store, False), Heard()
        unwilling.heard(other, 1, messages.HostProbe([]))  # type: ignore[arg-type]
        assert other.sent == [messages.HostProbe([])]
    finally:
        store.close()


# --------------------------------------------------------------------------- results


@shared
def test_a_large_result_is_mapped_and_the_clients_own(client: Client, local_cluster: LocalCluster) -> None:
    future = client.submit(count_from, 3)
    first, second = future.result(10), future.result(10)
    assert "/agent-" in file_under(first)
    assert file_under(first) == file_under(second), "no copy was made of either"
    first[:] = 0
    assert second[0] == 3 and future.result(10)[-1] == NUMBERS + 2, "nobody sees what another changed"


@shared
def test_frames_and_containers_lie_in_the_agents_memory_too(client: Client) -> None:
    frame = client.submit(frame_from, 5).result(10)
    assert "/agent-" in file_under(frame["a"].to_numpy())
    assert frame.equals(frame_from(5))
    inside = client.submit(lambda: {"x": [np.arange(NUMBERS)], "y": (1, np.zeros(NUMBERS))}).result(10)
    assert "/agent-" in file_under(inside["x"][0]) and "/agent-" in file_under(inside["y"][1])


@shared
def test_a_result_outlives_its_future_and_its_cluster() -> None:
    with LocalCluster(n_workers=1, slots=1) as cluster, Client(cluster) as client:
        future = client.submit(count_from, 7)
        array = future.result(10)
        place = Path(file_under(array))
        del future
        until(lambda: not place.exists(), "the agent has freed the value")
        assert array.sum() == count_from(7).sum()
    assert np.array_equal(array, count_from(7))


@shared
def test_a_value_that_was_freed_before_it_is_mapped_is_got_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [ValueLost("freed")] * 2

    def late(path: str, nbytes: int) -> memoryview:
        if failures:
            raise failures.pop()
        return open_value(path, nbytes)

    monkeypatch.setattr(values, "open_value", late)
    assert client.submit(count_from, 1).result(10)[0] == 1
    assert not failures


@shared
def test_values_of_a_medium_size_are_read_and_take_no_map(client: Client) -> None:
    array = client.submit(np.arange, 10_000).result(10)
    assert file_under(array) == ""
    array[0] = 5  # and it is writable


def test_a_medium_sized_value_that_is_gone_or_too_short_is_lost(tmp_path: Path) -> None:
    with pytest.raises(ValueLost, match="is gone"):
        open_value(str(tmp_path / "s1"), 100)
    (tmp_path / "s1").write_bytes(bytes(50))
    with pytest.raises(ValueLost, match="less than 100 bytes"):
        open_value(str(tmp_path / "s1"), 100)
    assert open_value(str(tmp_path / "s1"), 50) == bytes(50)


@shared
def test_the_asyncio_face_maps_as_well(local_cluster: LocalCluster) -> None:
    async def scenario() -> str:
        async with AsyncClient(local_cluster) as client:
            future = client.submit(count_from, 2)
            gathered = await client.gather([future, future])
            return file_under(gathered[1])

    assert "/agent-" in asyncio.run(scenario())


def test_without_the_fast_paths_values_come_over_the_connection(
    local_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER__FAST_PATHS", "false")
    with Client(local_cluster) as client:
        array = client.submit(count_from, 4).result(10)
        assert file_under(array) == ""
        assert array[0] == 4
