"""The driver of the examination goes on where it was stopped, and says what there is to say."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conformance import run
from tests.conformance.outcome import Outcome
from tests.conformance.with_pytest import run_file

OUTCOMES = {
    "first.py": Outcome(3, [], {"test_gpu": "needs a GPU"}, 4),
    "folder/second.py": Outcome(7, ["test_it"], {"test_gpu": "needs a GPU", "test_net": "needs a network"}, 2),
}

DIFFERENCES: dict[str, dict[str, str]] = {}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were run, of a suite of two."""
    ran: list[str] = []

    def run_apart(name: str, file: str, kept: Path) -> Outcome:
        ran.append(file)
        run.save(OUTCOMES[file], kept)
        return run.load(kept)

    monkeypatch.setattr(run, "_run_apart", run_apart)
    monkeypatch.setattr(
        run, "_suite", lambda name: SimpleNamespace(files=lambda: list(OUTCOMES), DIFFERENCES=DIFFERENCES)
    )
    return ran


def drive(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run", "dask", "--results", str(folder), *arguments])
    return run.main()


def test_a_file_that_was_run_is_not_run_again(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run.save(OUTCOMES["first.py"], tmp_path / "dask" / "first.py.json")
    assert drive(monkeypatch, tmp_path) == 1, "a test has failed"
    assert calls == ["folder/second.py"]
    monkeypatch.setitem(DIFFERENCES, "folder/second.py", {"test_.*": "a copy comes back"})
    assert drive(monkeypatch, tmp_path, "--table") == 0, "it is explained"
    assert len(calls) == 1
    drive(monkeypatch, tmp_path, "--again")
    assert calls[1:] == list(OUTCOMES)


def test_the_table_has_counts_failures_and_every_reason() -> None:
    lines = run.table({"dask": OUTCOMES}, lambda *_: None).splitlines()
    assert "| dask | 2 | 10 | 1 | 3 | 6 |" in lines
    assert "few calls: dask folder/second.py: 7 passed, 1 failed, 2 skipped, 2 calls reached the cluster" in lines
    assert "failed: dask folder/second.py test_it" in lines
    assert "skipped: dask: 2 times: needs a GPU" in lines
    assert not [line for line in lines if line.startswith("few calls: dask first.py")]
    lines = run.table({"dask": OUTCOMES}, lambda *_: "a copy comes back").splitlines()
    assert "failed and explained: 1 times: dask: a copy comes back" in lines
    assert not [line for line in lines if line.startswith("failed:")]


def test_a_process_that_dies_is_a_failure_of_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run.sys, "executable", "/bin/false")
    outcome = run._run_apart("dask", "first.py", tmp_path / "dask" / "first.py.json")
    assert outcome.failed == [f"the whole file: its process ended with code 1 (see {tmp_path}/dask/first.py.log)"]


def test_a_file_that_was_interrupted_has_no_outcome_and_one_that_cannot_be_collected_has(tmp_path: Path) -> None:
    file = tmp_path / "test_examined.py"
    file.write_text("def test_one(): pass\ndef test_two(): raise KeyboardInterrupt\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run_file(file, lambda test: None, lambda: 0)
    broken = tmp_path / "test_broken.py"
    broken.write_text("import nothing_of_that_name\n", encoding="utf-8")
    assert run_file(broken, lambda test: None, lambda: 5) == Outcome(0, ["collecting test_broken.py"], {}, 5)
