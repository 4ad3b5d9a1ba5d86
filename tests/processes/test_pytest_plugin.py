"""The pytest plugin, in runs of pytest of their own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module

import pytest

from tests.tree.sources import ROOT

pytest_plugins = ["pytester"]

PLUGIN = "cluster.adapters.pytest_plugin"
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the tests of a file in a new interpreter that has this plugin only."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run_file(text: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(text)
        return pytester.runpytest_subprocess(*arguments, "-p", PLUGIN, "--strict-markers", "-W", "error", "-v")

    return run_file


def test_tests_get_the_cluster_that_their_marker_asks_for(run: Run) -> None:
    outcome = run(
        """
        import os
        import signal

        import psutil
        import pytest
        from cluster import Client

        seen = []


        def test_the_usual_shape(cluster, client):
            seen.append(cluster.scheduler_address)
            assert list(client.nthreads().values()) == [2]
            assert client.submit(pow, 2, 10).result() == 1024


        def test_it_is_shared_and_reached_without_an_address(cluster):
            assert cluster.scheduler_address == seen[0]
            with Client() as client:
                assert client.scheduler_address == seen[0]


        @pytest.mark.cluster(n_workers=2, slots=1)
        def test_another_shape(client):
            assert list(client.nthreads().values()) == [1, 1]


        @pytest.mark.cluster(fresh=True)
        def test_one_of_its_own_may_be_harmed(cluster, client):
            assert cluster.scheduler_address != seen[0]
            (worker,) = client.scheduler_info()["workers"].values()
            process = psutil.Process(worker["process_id"])
            process.terminate()
            process.wait(10)


        def test_the_next_has_a_whole_one(client):
            assert client.submit(pow, 2, 5).result() == 32
        """
    )
    outcome.assert_outcomes(passed=5)


def test_what_a_test_leaves_behind_fails_it_by_name(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"import {PLUGIN} as plugin\nplugin.PATIENCE_SECONDS = 0.05")
    outcome = run(
        """
        import os
        import subprocess
        import sys
        import threading

        import pytest
        from cluster import Client

        release = threading.Event()
        kept = []


        def test_thread(client):
            threading.Thread(target=release.wait, name="left-over", daemon=True).start()


        def test_descriptor(client):
            kept.append(open(os.devnull))


        def test_child(client):
            kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))


        @pytest.mark.cluster(check_leaks=False)
        def test_that_may(client):
            kept.append(open(os.devnull))


        def test_value(client):
            client.publish_dataset(kept=client.submit(bytes, 1_000_000))
            client.get_dataset("kept").result()


        def test_the_next(cluster):
            with Client(cluster) as client:
                assert client.list_datasets() == ()


        def teardown_module():
            release.set()
            for each in kept:
                if isinstance(each, subprocess.Popen):
                    each.communicate(b"go on")
                else:
                    each.close()
        """
    )
    outcome.assert_outcomes(passed=6, errors=4)
    outcome.stdout.re_match_lines_random(
        [
            r".*::test_thread left behind:",
            r"  thread 'left-over'",
            r".*::test_descriptor left behind:",
            r"  descriptor \d+: /dev/null",
            r".*::test_child left behind:",
            r"  child process \d+: .*input\(\)",
            r".*::test_value left behind:",
            r"  shared file .*/s1: a value that somebody keeps on the cluster",
            r".*check_leaks=False.*",
        ]
    )


def test_a_wrong_marker_is_named(run: Run) -> None:
    outcome = run(
        """
        import pytest


        @pytest.mark.cluster(workers=2)
        def test_something(client):
            pass
        """
    )
    outcome.assert_outcomes(errors=1)
    outcome.stdout.fnmatch_lines(["*test_something got an unexpected keyword argument 'workers'; it takes*n_workers*"])


def test_a_fixture_client_of_another_plugin_is_let_be(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        web="""
        import pytest


        @pytest.fixture
        def client():
            return "a web client"
        """
    )
    outcome = run(
        """
        import pytest


        def test_web(client):
            assert client == "a web client"


        @pytest.mark.cluster
        def test_cluster(client):
            assert client.submit(abs, -1).result() == 1
        """,
        "-p",
        "web",
    )
    outcome.assert_outcomes(passed=2)


def test_it_loads_nothing_before_it_is_asked() -> None:
    command = (
        f"import sys, pytest, {PLUGIN}; "
        "print(*sorted({'psutil', 'cluster.client.client', 'cluster.deploy.local', 'cloudpickle'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == ""


def test_pytest_finds_it_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"cluster": PLUGIN}
    assert callable(import_module(PLUGIN).pytest_configure)
