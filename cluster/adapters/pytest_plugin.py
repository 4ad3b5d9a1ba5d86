"""A pytest plugin: the fixtures `cluster` and `client`, a marker for the cluster's shape, and a check for leaks.

pytest loads this in every run of an environment in which the package is installed, so nothing is imported before a test
asks for a fixture.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import pytest

from cluster.client.providers import LocalClusterLike, open_local_cluster

if TYPE_CHECKING:
    from cluster.client.client import Client

__all__ = ["client", "cluster", "pytest_configure", "shared_clusters"]

PATIENCE_SECONDS = 5.0
"""So long what a test began may take to end after it."""
MARKER = (
    "cluster(n_workers=1, slots=2, fresh=False, check_leaks=True): "
    "the shape of the cluster that the fixtures `cluster` and `client` give; `fresh` for one that no other test uses; "
    "what the test leaves behind fails it unless `check_leaks=False`"
)


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the marker."""
    config.addinivalue_line("markers", MARKER)


class Shape(NamedTuple):
    """What a marker asks for."""

    n_workers: int = 1
    slots: int = 2
    fresh: bool = False
    check_leaks: bool = True


class Cluster(LocalClusterLike, Protocol):
    """What is needed of a `LocalCluster`."""

    @property
    def workers(self) -> list[str]:
        """The names of the workers."""
        ...


class Started(NamedTuple):
    """A cluster, and the folder that holds its secret and its values."""

    cluster: Cluster
    folder: Path


class SharedClusters:
    """The clusters of a run, by shape; each is started when a test first asks for it."""

    def __init__(self) -> None:
        self._started: dict[tuple[int, int], Started] = {}

    def take(self, shape: Shape) -> Started:
        """One for a test; it is started anew if a test before has harmed it."""
        key = shape.n_workers, shape.slots
        started = self._started.get(key)
        if started is not None and not shape.fresh and _is_whole(started.cluster, shape):
            return started
        if started is not None:
            _end(self._started.pop(key))
        started = self._started[key] = _start(shape)
        return started

    def give_back(self, shape: Shape, harmed: bool) -> None:
        """The test is over; the next of this shape may have its cluster, unless it was the test's alone, or harmed."""
        if shape.fresh or harmed:
            _end(self._started.pop((shape.n_workers, shape.slots)))

    def close(self) -> None:
        """End all."""
        while self._started:
            _end(self._started.popitem()[1])


@pytest.fixture(scope="session")
def shared_clusters() -> Iterator[SharedClusters]:
    """The clusters of this run."""
    clusters = SharedClusters()
    yield clusters
    clusters.close()


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, shared_clusters: SharedClusters, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """A `LocalCluster` of the shape that the marker `cluster` says (one worker with two slots): `Client()` reaches it.

    Tests of the same shape share it. The test fails if it leaves behind threads, descriptors or children of this
    process, or values on the cluster.
    """
    shape = _shape(request)
    started = shared_clusters.take(shape)
    monkeypatch.setenv("CLUSTER__ADDRESS", started.cluster.scheduler_address)
    monkeypatch.setenv("CLUSTER__DIRECTORY", str(started.folder))
    leaks_module: Any = import_module("cluster.adapters.leaks")
    before = leaks_module.Holdings(started.folder)
    leaks: list[str] = []
    try:
        yield started.cluster
        if shape.check_leaks:
            leaks = leaks_module.leaks_since(before, PATIENCE_SECONDS)
    finally:
        shared_clusters.give_back(shape, harmed=bool(leaks))
    if leaks:
        pytest.fail(
            f"{request.node.nodeid} left behind:\n  " + "\n  ".join(leaks) + "\n"
            "Close clients and executors (`with`), join threads, and unpublish datasets at the end of the test; what a "
            "library keeps for good is let be with @pytest.mark.cluster(check_leaks=False).",
            pytrace=False,
        )


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A `Client` of the test's `cluster`, closed when the test ends."""
    overridden = None if request.node.get_closest_marker("cluster") else _client_of_another_plugin(request)
    if overridden is not None:
        yield overridden
        return
    client_class: type[Client] = import_module("cluster.client.client").Client
    with client_class(request.getfixturevalue("cluster")) as connected:
        yield connected


def _client_of_another_plugin(request: pytest.FixtureRequest) -> Any:
    """Plugins for web applications have a fixture of this name, too: a test that is not about clusters means theirs."""
    try:
        return request.getfixturevalue("client")
    except pytest.FixtureLookupError:
        return None  # there is none below ours


def _shape(request: pytest.FixtureRequest) -> Shape:
    marker = request.node.get_closest_marker("cluster")
    try:
        return Shape() if marker is None else Shape(*marker.args, **marker.kwargs)
    except TypeError as error:
        reason = str(error).replace("Shape.__new__() ", "")
        pytest.fail(f"@pytest.mark.cluster of {request.node.nodeid} {reason}; it takes {MARKER}", pytrace=False)


def _is_whole(local_cluster: Cluster, shape: Shape) -> bool:
    return len(local_cluster.workers) == shape.n_workers and not local_cluster.explain_failure()


def _start(shape: Shape) -> Started:
    """Start a cluster whose files are apart from those of all others, the user's own above all."""
    config: Any = import_module("cluster.config")
    folder = Path(tempfile.mkdtemp(prefix="cluster-test-", dir=config.load().shared_memory_directory))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CLUSTER__DIRECTORY", str(folder))
        environment.setenv("CLUSTER__SHARED_MEMORY_DIRECTORY", str(folder))
        return Started(cast(Cluster, open_local_cluster(n_workers=shape.n_workers, slots=shape.slots)), folder)


def _end(started: Started) -> None:
    started.cluster.close()
    shutil.rmtree(started.folder, ignore_errors=True)
