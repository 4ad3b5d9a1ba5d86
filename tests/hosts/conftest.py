"""Tests of several hosts: skipped, with the reason, where a machine cannot make them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.cluster_on_hosts import ClusterOnHosts
from tests.hosts.namespaces import Network, why_not
from tests.surroundings import Surroundings


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    """The test's own directories; a process that outlives the test fails it."""
    own = Surroundings()
    own.enter(monkeypatch)
    yield own
    left = own.leave(sweep=True)
    assert not left, f"left behind: {left}"


@pytest.fixture
def own_directory(surroundings: Surroundings) -> Path:
    """The test's own directory."""
    return surroundings.directory


@pytest.fixture
def network() -> Iterator[Network]:
    """Five hosts on a bridge."""
    if reason := why_not():
        pytest.skip(reason)
    with Network(5) as network:
        yield network


@pytest.fixture
def cluster(network: Network, own_directory: Path) -> Iterator[ClusterOnHosts]:
    """A place for a scheduler and workers, each on a host."""
    with ClusterOnHosts(network, own_directory) as cluster:
        yield cluster
