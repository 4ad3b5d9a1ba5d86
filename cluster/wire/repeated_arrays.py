"""Arrays that say the same over and over: what lies in memory is pickled once, and repeated where it is loaded.

`numpy.broadcast_to` makes such an array, and so do Dask's `ones`, `zeros` and `full`: of a gigabyte that the array
counts there are eight bytes. Nobody can write to it, so nobody can tell whether its places share their memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["is_repeated", "reduce_repeated", "repeated"]


def is_repeated(array: Any) -> bool:
    """Whether this is a numpy array, read-only, with an axis along which it lies at one place."""
    if type(array).__module__ != "numpy" or array.flags.writeable or 0 not in array.strides:
        return False
    return any(stride == 0 and length > 1 for stride, length in zip(array.strides, array.shape, strict=True))


def reduce_repeated(array: Any) -> tuple[Any, ...]:
    """What pickle wants of `__reduce__` for such an array."""
    once = array[tuple(slice(1) if stride == 0 else slice(None) for stride in array.strides)]
    return repeated, (once, array.shape)


def repeated(once: Any, shape: tuple[int, ...]) -> Any:
    """Make such an array again; found in pickles only."""
    return import_module("numpy").broadcast_to(once, shape)
