"""Every test has a directory of its own for secret and settings, and for what it puts into shared memory."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.surroundings import DIRECTORY, SHARED_MEMORY_DIRECTORY, Surroundings


@pytest.fixture(scope="session", autouse=True)
def surroundings_of_the_run() -> Iterator[Surroundings]:
    """What fixtures of a module or of the run see; never the directory of whoever runs the tests."""
    surroundings = Surroundings()
    with pytest.MonkeyPatch.context() as environment:
        surroundings.enter(environment)
        yield surroundings
    left = surroundings.leave()
    assert not left, f"left behind by the run: {left}"


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """A shell's jobs in the background ignore Ctrl-C, and whatever they start does too; some tests are about it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def skip_what_is_about_a_fast_path(request: pytest.FixtureRequest, surroundings_of_the_run: Surroundings) -> None:
    """Without the fast paths, tests that are about one of them have nothing to look at."""
    marker = request.node.get_closest_marker("fast_path")
    if marker is not None and not surroundings_of_the_run.fast_paths:
        pytest.skip(f"without the fast paths {marker.args[0]}")


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own directory for secret and settings."""
    directory = tmp_path / "settings"
    monkeypatch.setenv(DIRECTORY, str(directory))
    monkeypatch.setenv(SHARED_MEMORY_DIRECTORY, str(tmp_path))
    return directory
