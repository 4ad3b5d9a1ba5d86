"""Clusters of real processes for the tests to share, and a check that each test leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import Client, LocalCluster
from cluster.client import graphs
from tests.processes.agent_harness import PlayedScheduler, Worker, make_scheduler
from tests.processes.peers import encrypting
from tests.surroundings import Surroundings

# (workers, slots of each): the usual one first.
ONE_WORKER = (1, 2)
TWO_WORKERS = (2, 1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `both_shapes` on one worker of two slots, and again on two workers of one slot."""
    if "cluster_shape" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_shapes"):
        names = ["one-worker", "two-workers"]
        metafunc.parametrize("cluster_shape", [ONE_WORKER, TWO_WORKERS], ids=names, indirect=True, scope="module")


@pytest.fixture(autouse=True)
def surroundings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    """The test's own directories; a process or a segment that outlives the test fails it."""
    own = Surroundings()
    own.enter(monkeypatch)
    yield own
    left = own.leave(sweep=request.node.get_closest_marker("kills_processes") is not None)
    assert not left, f"left behind: {left}"


@pytest.fixture
def own_directory(surroundings: Surroundings) -> Path:
    """The test's own directory for secret and settings."""
    return surroundings.directory


@pytest.fixture
def graphs_sent_in_fours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are sent four tasks at a time, so that a small one is sent in several parts."""
    monkeypatch.setattr(graphs, "SENT_TOGETHER", 4)


@pytest.fixture(params=["plain", "encrypted"])
def plain_or_encrypted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Run the test with connections of this machine, then with such as beyond it."""
    if request.param == "encrypted":
        encrypting.append(tmp_path / "certificate")
    yield
    encrypting.clear()


@pytest.fixture(scope="module")
def cluster_shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """How many workers, and how many slots each has; mark a test `both_shapes` to run it on either."""
    shape: tuple[int, int] = getattr(request, "param", ONE_WORKER)
    return shape


@pytest.fixture(scope="module")
def local_cluster(cluster_shape: tuple[int, int]) -> Iterator[LocalCluster]:
    """A running cluster that a module's tests share; a test that harms one starts its own."""
    workers, slots = cluster_shape
    surroundings = Surroundings()
    with pytest.MonkeyPatch.context() as environment:
        surroundings.enter(environment)
        cluster = LocalCluster(n_workers=workers, slots=slots)
    with cluster:
        yield cluster
    left = surroundings.leave()
    assert not left, f"left behind by the module's cluster: {left}"


@pytest.fixture
def client(local_cluster: LocalCluster) -> Iterator[Client]:
    """A client of the module's cluster."""
    with Client(local_cluster) as connected:
        yield connected


@pytest.fixture
def scheduler() -> Iterator[PlayedScheduler]:
    """A scheduler that the test plays, for workers alone."""
    with make_scheduler() as played:
        yield played


@pytest.fixture
def worker(scheduler: PlayedScheduler) -> Iterator[Worker]:
    """A real worker of two slots, joined to the played scheduler."""
    with Worker(scheduler.address, "--slots", "2", "--name", "w1") as joined:
        yield joined
