"""The check that tests leave nothing behind finds what is left behind, and removes it."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.surroundings import Surroundings


def test_a_process_that_outlives_its_test_is_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = Surroundings()
    surroundings.enter(monkeypatch)
    waiting = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        left = surroundings.leave(patience_seconds=0)
        assert [f"process {process.pid}:" in line for line in left] == [True]
        process.wait()
    assert not psutil.pid_exists(process.pid)


def test_a_file_left_in_shared_memory_is_named_and_removed() -> None:
    surroundings = Surroundings()
    value = surroundings.shared_memory / "value"
    value.write_bytes(b"left")
    assert surroundings.leave() == [f"file {value}"]
    assert not surroundings.shared_memory.exists()
    assert not surroundings.directory.exists()
