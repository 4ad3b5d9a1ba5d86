"""Datasets of HDF5 files in graphs, where `dask.array.from_array` puts the open dataset itself.

One that is open for reading travels by the file's path and its name in it, and is opened where a task takes it. A file
that is open for writing is refused: what was written may not have left the process yet.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from cluster.wire.pickling import register_reducer

__all__ = ["open_hdf5", "share_hdf5"]


def share_hdf5() -> None:
    """From now on what h5py has open for reading can be sent; to be called again, since h5py may be loaded later."""
    h5py = sys.modules.get("h5py")
    if h5py is not None and hasattr(h5py, "File"):  # it has not while it is being loaded
        register_reducer(h5py.File, lambda file: (open_hdf5, (_path_of(file),)))
        register_reducer(h5py.Group, _reduce_member)
        register_reducer(h5py.Dataset, _reduce_member)


def _reduce_member(member: Any) -> tuple[Any, ...]:
    return open_hdf5, (_path_of(member.file), member.name)


def _path_of(file: Any) -> str:
    if file.mode != "r":
        raise TypeError(f"{file.filename} is open for writing (mode {file.mode!r}): open it with mode 'r' to send it")
    return os.path.abspath(str(file.filename))


def open_hdf5(path: str, name: str | None = None) -> Any:
    """A file, or what has that name in it; found in pickles only."""
    file = import_module("h5py").File(path, "r")
    return file if name is None else file[name]
