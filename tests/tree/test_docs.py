"""The documentation builds without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.tree.sources import ROOT


def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "-d", tmp_path / "doctrees"]
    finished = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "html"],
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "html" / "reference" / "client.html").read_text(encoding="utf-8").count("cluster.Client") > 5
