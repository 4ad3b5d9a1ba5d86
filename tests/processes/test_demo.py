"""The demo's script and notebook run on real daemons and the whole year, and notice when a number is wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

pytest.importorskip("pandas", reason="the demo's extra is not installed")


def run_script(script: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(NOTEBOOKS)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(("workers", "slots"), [(1, 2), (2, 1)], ids=["one-worker", "two-workers"])
def test_the_demo_computes_the_year_as_one_pandas_process_does(workers: int, slots: int, tmp_path: Path) -> None:
    arguments = ["--workers", str(workers), "--slots", str(slots), "--output", str(tmp_path / "output")]
    finished = run_script(NOTEBOOKS / "flights.py", *arguments, folder=tmp_path)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr
    assert "Check against one pandas process, 336,776 flights: equal" in finished.stdout
    assert "JetBlue Airways" in finished.stdout
    assert (tmp_path / "output" / "flights.png").stat().st_size > 10_000
    assert len(list((tmp_path / "output" / "months").iterdir())) == 12


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads((NOTEBOOKS / "flights.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(code), encoding="utf-8")
    finished = run_script(script, folder=tmp_path)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr


@pytest.fixture
def flights(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    return importlib.import_module("flights")


def small_tables(flights: Any) -> Any:
    return {"hour": flights.pd.DataFrame({"flights": [3, 5], "late": [0.25, float("nan")]}, index=[6, 7])}


def test_equal_tables_show_no_difference(flights: Any) -> None:
    assert list(flights.differences(small_tables(flights), small_tables(flights))) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda table: table.assign(flights=[3, 6]), "hour: other values in flights"),
        (lambda table: table.assign(late=[0.25 * (1 + 1e-8), float("nan")]), "hour: other values in late"),
        (lambda table: table.assign(late=[0.25, 0.0]), "hour: other values in late"),
        (lambda table: table.astype({"flights": "float64"}), "hour: other columns or types"),
        (lambda table: table.rename(index={7: 8}), "hour: other rows"),
        (lambda table: table.iloc[:1], "hour: other rows"),
        (lambda table: table.drop(columns="late"), "hour: other columns or types"),
    ],
    ids=["count", "mean", "missing", "type", "label", "row", "column"],
)
def test_a_wrong_table_is_noticed(flights: Any, change: Any, found: str) -> None:
    actual = {"hour": change(small_tables(flights)["hour"])}
    assert list(flights.differences(actual, small_tables(flights))) == [found]


def test_a_mean_within_the_tolerance_is_no_difference(flights: Any) -> None:
    actual = {"hour": small_tables(flights)["hour"].assign(late=[0.25 * (1 + 1e-10), float("nan")])}
    assert list(flights.differences(actual, small_tables(flights))) == []
