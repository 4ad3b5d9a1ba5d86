"""Dask's own tests of its collections, with a cluster in place of every scheduler that Dask has a name for."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any, Final

import dask
import dask.base

from cluster import Client, LocalCluster
from tests.conformance.outcome import Outcome
from tests.conformance.run import main_of_suite
from tests.conformance.with_pytest import run_file

_DASK: Final = Path(str(importlib.util.find_spec("dask").submodule_search_locations[0]))  # type: ignore[union-attr,index]
_FOLDERS: Final = ("array", "bag", "dataframe")
_SINGLE: Final = ("tests/test_delayed.py",)

_OF_DISTRIBUTED: Final = "of the scheduler of dask.distributed, which it starts itself"
_NETWORK: Final = "needs a network"
LEFT_OUT: Final[dict[str, dict[str, str]]] = {
    "dataframe/dask_expr/io/tests/test_distributed.py": {".*": _OF_DISTRIBUTED},
    "dataframe/dask_expr/tests/test_distributed.py": {".*": _OF_DISTRIBUTED},
    "dataframe/io/tests/test_orc.py": {
        r"test_orc_(with_backend|single\[[12]\]|multiple|aggregate_files_offset|names)": _NETWORK,
    },
    "dataframe/io/tests/test_parquet.py": {"test_pyarrow_filesystem_option_real_data": _NETWORK},
    "tests/test_delayed.py": {"test_p2p_as_delayed": _OF_DISTRIBUTED},
}
"""By file, by pattern of a test's name, the reason why it is not run."""


_SHARED: Final = "a task changes a variable or an array of the caller: here it changes its own copy"
_LOCK: Final = "a lock of the threading module stands in the graph, and cannot be pickled"
_IDENTITY: Final = "the very object that stood in the graph is to come back: here a copy of it does"
_LOGGED: Final = "a task logs in its own process; it is shown here, and does not come to the caller's loggers"
_CONFIGURATION: Final = "dask.config in the caller does not hold in the processes of workers"
_HDF5_WRITTEN: Final = "an HDF5 file that is open for writing stands in the graph, and is refused"
_OF_PANDAS: Final = "expected to fail, and passes with this pandas; on Dask's own scheduler as well"
_BY_CHANCE: Final = "expected to fail by the order in which partitions come to a file, which is any here"
_SETTINGS: Final = "expects warnings to be errors, which is a setting of Dask's own repository"
_WARNED_BEFORE: Final = "a process of a worker shows a warning of one line once"
DIFFERENCES: Final[dict[str, dict[str, str]]] = {
    "array/tests/test_array_core.py": {
        r"test_store(_delayed_target|_regions|_compute_false|_sources_unoptimized_nocompute)?": _SHARED,
        r"test_store_locks_.*": _LOCK,
        r"test_from_array_with_lock\[.*\]": _LOCK,
        r"test_from_array_getitem\[.*\]": _SHARED,
        "test_memmap": _SHARED,
        r"test_zarr_(existing_array|regions|to_zarr_shards\[.*\])": _SHARED,  # the array lies in the caller's memory
        "test_zarr_risky_shards_warns": _SETTINGS,
        r"test_(to_hdf5|h5py_newaxis)": _HDF5_WRITTEN,
    },
    "array/tests/test_reductions.py": {
        r"test_array_cumreduction_axis\[blelloch-.*prod\]": _WARNED_BEFORE,
        "test_nanquantile_all_nan": _SETTINGS,
    },
    "array/tests/test_routines.py": {"test_average_raises": _WARNED_BEFORE},
    "array/tests/test_ufunc.py": {"test_frompyfunc": "what numpy.frompyfunc makes cannot be pickled"},
    "bag/tests/test_bag.py": {
        "test_to_delayed_optimize_graph": _SHARED,
        "test_repartition_partition_size_complex_dtypes": _IDENTITY,
        "test_bag_with_single_callable": _IDENTITY,
        "test_reductions_are_lazy": "a generator that was begun stands in the graph, and cannot be pickled",
    },
    "bag/tests/test_text.py": {"test_files_per_partition": _WARNED_BEFORE},
    "dataframe/dask_expr/tests/test_fusion.py": {"test_fusion_executes_only_once": _SHARED},
    "dataframe/io/tests/test_io.py": {"test_from_map_column_projection": _SHARED},
    "dataframe/io/tests/test_parquet.py": {
        r"test_filter_isna\[.*\]": _IDENTITY,  # it filters by `is numpy.nan`
        "test_fsspec_to_parquet_filesystem_option": _SHARED,  # files in the caller's memory
    },
    "dataframe/io/tests/test_sql.py": {
        "test_extra_connection_engine_keywords": _LOGGED,
        "test_to_sql_engine_kwargs": _LOGGED,
    },
    "dataframe/tests/test_arithmetics_reduction.py": {
        r"test_reductions_with_pandas_and_arrow_ea\[kurtosis-(int|float)64\[pyarrow\]\]": _OF_PANDAS
    },
    "dataframe/tests/test_extensions.py": {"test_register_extension_type": _IDENTITY},
    "dataframe/tests/test_groupby.py": {
        r"test_groupby_aggregate_categorical_observed\[.*-(cov|corr)-observed-groupby1-.*\]": _OF_PANDAS,
        r"test_groupby_reduction_split\[disk-(first|last)-split_out\]": _BY_CHANCE,
    },
    "dataframe/tests/test_shuffle.py": {"test_disk_shuffle_with_unknown_compression": _CONFIGURATION},
    "tests/test_delayed.py": {"test_traverse_false": _IDENTITY},
}
"""By file, by pattern of the name of a test that fails, the reason; `docs/howto/dask.md` says the same to users."""


class Reached:
    """A client that counts how often Dask calls it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Reached:
        return self  # tests copy Dask's configuration

    def get(self, graph: Any, keys: Any, **options: Any) -> Any:
        self.calls += 1
        return self.client.get(graph, keys, **options)

    def persist(self, collections: Any, **options: Any) -> Any:
        self.calls += 1
        options = {name: value for name, value in options.items() if name == "optimize_graph"}
        return self.client.persist(collections, **options)


def files() -> list[str]:
    """Every file of tests of arrays, bags and dataframes, and the one of delayed calls."""
    found = [path for folder in _FOLDERS for path in (_DASK / folder).rglob("tests/test_*.py")]
    return sorted(str(path.relative_to(_DASK)) for path in found) + list(_SINGLE)


def run(file: str) -> Outcome:
    """Run one file."""
    with LocalCluster(n_workers=1, slots=2) as local, Client(local) as client:
        reached = Reached(client)
        dask.base.named_schedulers.update(dict.fromkeys(dask.base.named_schedulers, reached.get))
        reasons = LEFT_OUT.get(file, {})

        def left_out(test: str) -> str | None:
            return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, test)), None)

        # Dask looks at this once, when `dask.array` is imported, which nothing here has done before.
        of_expressions = {"array.query-planning": file.startswith("array/_array_expr/")}
        with dask.config.set({"scheduler": reached.get, **of_expressions}):
            return run_file(_DASK / file, left_out, lambda: reached.calls)


if __name__ == "__main__":
    main_of_suite(sys.modules[__name__])
