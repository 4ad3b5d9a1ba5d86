"""The labels of pandas' frames, made again from their array as they were.

pandas makes an index of a pickle as of a user's data, with all that it looks at then. A frame has two of them, and on a
small one that is half of what loading it takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["index_from", "reduce_index"]


def reduce_index(index: Any) -> Any:
    """What pickle wants of `__reduce__` for a `pandas.Index`, of exactly that class."""
    data = getattr(index, "_data", None)
    return NotImplemented if data is None else (index_from, (data, index.name))


def index_from(data: Any, name: Any) -> Any:
    """Make such an index again; found in pickles only."""
    kind = import_module("pandas").Index
    make = getattr(kind, "_simple_new", None)  # pandas' own way where it has the array, for those inside
    return kind(data, dtype=data.dtype, name=name, copy=False) if make is None else make(data, name)
