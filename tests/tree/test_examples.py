"""Every example in the documentation runs, so a reader may paste any of them, and every link leads somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree.sources import ROOT, product, text_files

PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
WITH_PYTHON = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if PYTHON_BLOCK.search(path.read_text(encoding="utf-8"))
)


@pytest.mark.parametrize("name", [module.name for module in product() if ">>> " in module.text])
def test_docstring_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("document", WITH_PYTHON)
def test_a_documents_python_runs_from_top_to_bottom(document: str, tmp_path: Path) -> None:
    blocks = PYTHON_BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path}: {link}"
        for path, text in text_files()
        if path.endswith(".md")
        for link in LINK.findall(text)
        if not (ROOT / path).parent.joinpath(link).exists()
    ]
    assert not broken
