"""A task that is stopped while it imports something leaves no half of a module to those that come after it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cluster import Client, LocalCluster

MODULE = """
import builtins, os, time
from pathlib import Path

if hasattr(builtins, "loaded_once"):
    raise ImportError("cannot load module more than once per process")
builtins.loaded_once = True
Path(__file__).with_name("begins").write_text("now")
end = time.monotonic() + 0.4  # less than a task that is asked to stop is given
while time.monotonic() < end:
    pass
process_id = os.getpid()
"""


def load(folder: str) -> int:
    sys.path.insert(0, folder)
    try:
        import loads_once  # type: ignore[import-not-found]
    finally:
        sys.path.remove(folder)
    return int(loads_once.process_id)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_import_is_not_interrupted(tmp_path: Path, threads: int) -> None:
    (tmp_path / "loads_once.py").write_text(MODULE)
    os.mkfifo(tmp_path / "begins")
    with LocalCluster(n_workers=1, slots=1, threads=threads) as cluster, Client(cluster) as client:
        stopped = client.submit(load, str(tmp_path))
        assert (tmp_path / "begins").read_text() == "now"
        stopped.cancel()
        assert client.submit(load, str(tmp_path)).result(60) > 0
