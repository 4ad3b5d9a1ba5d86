"""CPython's own tests of `concurrent.futures`, with a client's executor in the place of the pools.

The tests are those of the running interpreter (`test.test_concurrent_futures`). Where it came without them, Python 3.11
takes the file of Debian's package libpython3.11-testsuite, which is unpacked and not installed.

    python -m tests.conformance.concurrent_futures [FILE...]
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster import Client, LocalCluster
from cluster.adapters.executor import ClusterExecutor, ClusterFuture
from tests.conformance.outcome import Outcome

PACKAGE = "test.test_concurrent_futures"
SINGLE_FILE = "test_concurrent_futures"
DEBIAN_PACKAGE = "libpython3.11-testsuite"
WORKERS = 5
"""The tests ask for pools of five, and some need as many calls to run at once."""

MAKES_A_POOL_BY_NAME = "makes the standard library's own pool by its name"
IN_A_NEW_INTERPRETER = "starts an interpreter that makes the standard library's own pool by its name"
POOL_INSIDE = "looks at the threads or processes inside the standard library's pool"
SHARES_MEMORY = "the call and its caller share a list, lock or event: for threads only"
INHERITS = "the call takes a lock, queue or manager of multiprocessing, which only children of this process can"
NO_INITIALIZER = "an executor of a cluster takes no initializer: the processes are not its own"
SYSTEM_EXIT = "expects SystemExit in the caller: a call's SystemExit is a RemoteError here, and ends nobody's program"
UNLOADABLE = "expects that arguments or a value that cannot be loaded break the pool: here the call fails alone"

# Where a class is named: all its tests.
SKIPPED: dict[str, str] = {
    "FailingInitializerMixin": NO_INITIALIZER,
    "FailingInitializerResourcesTest": NO_INITIALIZER,
    "InitializerMixin": NO_INITIALIZER,
    "test_cancel_futures_wait_false": IN_A_NEW_INTERPRETER,
    "test_context_manager_shutdown": MAKES_A_POOL_BY_NAME,
    "test_default_workers": "expects the number of threads of a ThreadPoolExecutor",
    "test_del_shutdown": MAKES_A_POOL_BY_NAME,
    "test_error_at_task_unpickle": UNLOADABLE,
    "test_error_during_result_unpickle_in_result_handler": UNLOADABLE,
    "test_executor_map_current_future_cancel": SHARES_MEMORY,
    "test_exit_at_task_unpickle": UNLOADABLE,
    "test_exit_during_func_exec_on_worker": SYSTEM_EXIT,
    "test_exit_during_result_pickle_on_worker": SYSTEM_EXIT,
    "test_exit_during_result_unpickle_in_result_handler": UNLOADABLE,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": POOL_INSIDE,
    "test_hang_gh83386": IN_A_NEW_INTERPRETER,
    "test_hang_gh94440": IN_A_NEW_INTERPRETER,
    "test_hang_global_shutdown_lock": MAKES_A_POOL_BY_NAME,
    "test_idle_process_reuse_multiple": POOL_INSIDE,
    "test_idle_process_reuse_one": POOL_INSIDE,
    "test_idle_thread_reuse": POOL_INSIDE,
    "test_interpreter_shutdown": IN_A_NEW_INTERPRETER,
    "test_killed_child": POOL_INSIDE,
    "test_map_submits_without_iteration": SHARES_MEMORY,
    "test_max_tasks_early_shutdown": "an executor of a cluster has no max_tasks_per_child",
    "test_max_tasks_per_child": "an executor of a cluster has no max_tasks_per_child",
    "test_max_tasks_per_child_defaults_to_spawn_context": "an executor of a cluster has no max_tasks_per_child",
    "test_pending_calls_race": SHARES_MEMORY,
    "test_processes_terminate": POOL_INSIDE,
    "test_python_finalization_error": IN_A_NEW_INTERPRETER,
    "test_ressources_gced_in_workers": INHERITS,
    "test_saturation": POOL_INSIDE,
    "test_shutdown_deadlock_pickle": POOL_INSIDE,
    "test_shutdown_no_wait": MAKES_A_POOL_BY_NAME,
    "test_submit_after_interpreter_shutdown": IN_A_NEW_INTERPRETER,
    "test_thread_names_assigned": POOL_INSIDE,
    "test_thread_names_default": POOL_INSIDE,
    "test_threads_terminate": POOL_INSIDE,
    "test_traceback": "expects the remote traceback as the exception's cause: here it is a note of it",
}


def files() -> list[str]:
    """The modules of the suite; one for an interpreter older than 3.13."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return [SINGLE_FILE]
    folder = Path(next(iter(found.submodule_search_locations)))
    return sorted(path.stem for path in folder.glob("test_*.py"))


def run(file: str) -> Outcome:
    """Run one module on a cluster of this machine."""
    module = _load(file)
    skipped: dict[str, str] = {}
    result = _Result()
    with LocalCluster(n_workers=1, slots=WORKERS) as cluster, Client(cluster) as client:
        _ExaminedExecutor.client, _ExaminedExecutor.reached = client, 0
        with _own_futures(module, client):
            _suite(module, skipped).run(result)
        skipped.update({_name(test): reason for test, reason in result.skipped})
        failed = [_name(test) for test, _ in (*result.failures, *result.errors)]
        for test, text in (*result.failures, *result.errors):
            sys.stderr.write(f"{_name(test)}\n{text}\n")
        return Outcome(len(result.passed), failed, skipped, _ExaminedExecutor.reached)


class _ExaminedExecutor(ClusterExecutor):
    """What the tests make as they make pools: the client is known, and no context of multiprocessing is needed."""

    client: Client
    reached = 0

    def __init__(self, max_workers: int | None = None, mp_context: None = None) -> None:
        super().__init__(self.client, max_workers=max_workers)

    def _hand_over(self, *call: Any) -> bool:
        type(self).reached += 1
        return super()._hand_over(*call)


class _ClusterMixin:
    """Comes before the mixin that names the standard library's pool."""

    executor_type = _ExaminedExecutor

    def get_context(self) -> None:
        """What the pool of processes is made with."""


class _Result(unittest.TestResult):
    """Remembers what passed, too."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[unittest.TestCase] = []

    def addSuccess(self, test: unittest.TestCase) -> None:
        """A test has passed."""
        self.passed.append(test)


def _load(file: str) -> ModuleType:
    if importlib.util.find_spec(f"{PACKAGE}.{file}" if file != SINGLE_FILE else PACKAGE) is not None:
        return importlib.import_module(f"{PACKAGE}.{file}" if file != SINGLE_FILE else PACKAGE)
    # The workers import it, too: it must stand where they look.
    folder = str(_unpacked())
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    return importlib.import_module(SINGLE_FILE)


def _unpacked() -> Path:
    """A folder with nothing but the file of Debian's package; it is fetched once."""
    folder = Path(tempfile.gettempdir()) / f"cluster-conformance-{os.getuid()}" / DEBIAN_PACKAGE
    file = folder / f"{SINGLE_FILE}.py"
    if not file.exists():
        if sys.version_info[:2] != (3, 11) or shutil.which("apt-get") is None:
            raise FileNotFoundError(
                f"Python {sys.version.split()[0]} came without {PACKAGE}, and only for Python 3.11 on Debian is there "
                "a package to take it from; use an interpreter that has it"
            )
        with tempfile.TemporaryDirectory() as temporary:
            subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], cwd=temporary, check=True, stdout=sys.stderr)
            (package,) = Path(temporary).glob("*.deb")
            subprocess.run(["dpkg", "--extract", package, temporary], check=True)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(temporary, "usr/lib/python3.11/test", file.name), file)
    return folder


def _suite(module: ModuleType, skipped: dict[str, str]) -> unittest.TestSuite:
    """Each test once, on our executor: the file mixes the same tests with every pool."""
    suite = unittest.TestSuite()
    seen: set[Any] = set()
    for kind in list(vars(module).values()):
        if not isinstance(kind, type) or not issubclass(kind, unittest.TestCase):
            continue
        case = type(kind.__name__, (_ClusterMixin, kind), {"__module__": kind.__module__})
        for name in unittest.TestLoader().getTestCaseNames(case):
            test = getattr(case, name)
            if test in seen:
                continue
            seen.add(test)
            kind_of_test, _, _ = test.__qualname__.partition(".")
            reason = SKIPPED.get(kind_of_test) or SKIPPED.get(name)
            if reason is None:
                suite.addTest(case(name))
            else:
                skipped[test.__qualname__] = reason
    return suite


@contextmanager
def _own_futures(module: ModuleType, client: Client) -> Iterator[None]:
    """Have the tests of `Future` itself make ours, which no task stands behind."""
    executor = ClusterExecutor(client)

    class Future(ClusterFuture[Any]):
        def __init__(self) -> None:
            super().__init__(executor)

    places: set[Any] = {module, sys.modules.get(f"{PACKAGE}.util")}
    replaced = [place for place in places if hasattr(place, "Future")]
    for place in replaced:
        place.Future = Future
    try:
        yield
    finally:
        for place in replaced:
            place.Future = concurrent.futures.Future


def _name(test: Any) -> str:
    method = getattr(test, "_testMethodName", None)
    return str(test) if method is None else str(getattr(test, method).__qualname__)


if __name__ == "__main__":
    for each in sys.argv[1:] or files():
        outcome = run(each)
        print(
            f"{each}: {outcome.passed} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped, "
            f"{outcome.reached} calls reached the cluster"
        )
        for failure in outcome.failed:
            print(f"  failed: {failure}")
        for test, reason in sorted(outcome.skipped.items()):
            print(f"  skipped: {test}: {reason}")
