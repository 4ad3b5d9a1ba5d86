"""What each process loads when it starts: what few need must not cost all of them time and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

SELDOM_NEEDED = {"difflib", "html", "importlib.metadata", "pdb", "tomllib", "zipfile"}
NEVER_LOADED = {
    "cluster": {"logging", "pathlib", "xxhash"},
    "cluster.client.client": {"argparse", "asyncio", "shutil", "ssl", "tempfile"},
    "cluster.deploy.local": {"argparse", "asyncio", "shutil", "ssl", "tempfile"},
    "cluster.cli.scheduler": {"platform", "shutil", "tempfile", "xxhash"},
    "cluster.cli.worker": {"platform"},
    # What it loads is in every slot as well, unless that is a fresh interpreter.
    "cluster.daemon.starter": {"argparse", "asyncio", "hashlib", "shutil", "ssl", "tempfile"},
}


@pytest.mark.parametrize("module", NEVER_LOADED)
def test_a_process_does_not_load_what_few_need(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert not (SELDOM_NEEDED | NEVER_LOADED[module]) & set(done.stdout.split())
