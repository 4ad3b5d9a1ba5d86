"""joblib's own tests of `Parallel`, with the backend "cluster" among those that they are run for.

`python -m tests.conformance.joblib [FILE...]` runs it alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

from cluster import Client, LocalCluster
from cluster.adapters.joblib import ClusterBackend
from tests.conformance.outcome import Outcome
from tests.conformance.run import main_of_suite
from tests.conformance.with_pytest import run_file

_JOBLIB: Final = Path(str(importlib.util.find_spec("joblib").origin)).parent  # type: ignore[union-attr]
_FILE: Final = "test/test_parallel.py"
LISTS: Final = ("PARALLEL_BACKENDS", "PROCESS_BACKENDS")
"""Lists of names in that file for which its tests are run; further ones are made from what is registered."""

_IN_LOKY = "a process that loky started has not imported this package, and knows no backend of that name"
_OWN_PROCESSES = "expects processes that are this program's own, to be set up by an initializer"
LEFT_OUT: Final[dict[str, str]] = {
    r"test_nested_loop\[(loky|back_compat_backend)-cluster\]": _IN_LOKY,
    r"test_backend_nesting_level\[.*-cluster-loky\]": _IN_LOKY,
    r"test_parallel_with_interactively_defined_functions\[cluster\]": "its program does not import this package",
    r"test_dispatch_multiprocessing\[cluster\]": "shares a list of multiprocessing with its calls, for children only",
    r"test_(auto_memmap_on_arrays_from_generator|memmapping_leaks)\[cluster\]": (
        "expects numpy.memmap; what is mapped here is a plain array"
    ),
    r"test_initializer_(context|parallel)\[.*cluster.*\]": _OWN_PROCESSES,
}
"""By pattern of a test's name, the reason why it is not run. docs/howto/joblib.md explains each."""


class Reached:
    """Counts the batches that come to the backend."""

    def __init__(self) -> None:
        self.calls = 0
        submit = ClusterBackend.submit

        def counted(backend: ClusterBackend, func: Any, callback: Any = None) -> Any:
            self.calls += 1
            return submit(backend, func, callback)

        ClusterBackend.submit = counted  # type: ignore[method-assign]


def files() -> list[str]:
    """The one file that is about `Parallel`."""
    return [_FILE]


def run(file: str) -> Outcome:
    """Run one file."""
    module = importlib.import_module("joblib." + file.removesuffix(".py").replace("/", "."))
    for name in LISTS:
        getattr(module, name).append("cluster")
    reached = Reached()
    # joblib marks one test as failing for loky's sake, not strictly; here it passes.
    os.environ["PYTEST_ADDOPTS"] = "--override-ini=xfail_strict=false"

    def left_out(test: str) -> str | None:
        return next((reason for pattern, reason in LEFT_OUT.items() if re.fullmatch(pattern, test)), None)

    with LocalCluster(n_workers=1, slots=2) as local, Client(local, show_output=False):
        return run_file(_JOBLIB / file, left_out, lambda: reached.calls)


if __name__ == "__main__":
    main_of_suite(sys.modules[__name__])
