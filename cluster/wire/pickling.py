"""The pickler that values and arguments share: cloudpickle's, with futures noted and large data not copied.

Functions and classes that cannot be imported elsewhere travel by value (cloudpickle). Plain data costs no Python call
per object: the C pickler asks `reducer_override` only about instances of classes that it does not know itself.

A future is recognised by its class. `register_future_type` is called by the module that defines the class, so this
floor names nothing above it. What stands for a future on the way is its *reference*: a tuple of plain data that begins
with the client's id and the task's number, `(client_id, number, …)`; the rest is the class's own affair.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import cloudpickle

from cluster.wire.encoded import Reference

OUT_OF_BAND_BYTES = 4096
"""Smaller buffers stay inside the pickle: mapping them would cost more than copying them."""


class Sink(Protocol):
    """Where a pickler writes; pieces of 64 KiB and more arrive as the very object that was pickled, not as a copy."""

    def write(self, data: Any, /) -> object: ...


class Pieces:
    """Gathers what a pickler writes, without joining it: bytes, or large bytes-like objects themselves."""

    __slots__ = ("pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.write: Callable[[Any], object] = self.pieces.append


class _FutureType(NamedTuple):
    references: Callable[[Any], Any]
    sequence: bool


_future_types: dict[type[Any], _FutureType] = {}


def register_future_type(
    kind: type[Any],
    references: Callable[[Any], Reference | Sequence[Reference]],
    *,
    sequence: bool = False,
) -> None:
    """Make instances of exactly this class known as futures.

    `references(instance)` gives the future's reference; for a `sequence` of futures, a list of references. Where the
    instance stands in an argument, the task sees the value (or a list of values); where it stands in a value, whoever
    loads the value gets a future made from the reference again (see `payload.loads`).
    """
    _future_types[kind] = _FutureType(references, sequence)


_cloudpickle_reducers: dict[Any, Any] = cloudpickle.Pickler._dispatch_table


class _DispatchTable(dict[Any, Any]):
    """Always empty: cloudpickle's reducers, then the standard library's, as they are when asked; cheaper than its
    ChainMap, and asked about every instance of a class."""

    def __missing__(self, kind: type[Any]) -> Any:
        return _cloudpickle_reducers[kind] if kind in _cloudpickle_reducers else copyreg.dispatch_table[kind]


def is_importable(named: Any) -> bool:
    """Is this function or class found by its name in a module? If in doubt no: cloudpickle then looks itself."""
    module = named.__module__
    return (
        module != "__main__"
        and getattr(sys.modules.get(module), named.__qualname__, None) is named
        and not cloudpickle.list_registry_pickle_by_value()
    )


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """Pickles into a sink; futures on the way are noted by `reduce_future`, which subclasses define.

    `touched` says that something was met that leaves a trace in the pickler itself (a future, a function, a class).
    """

    dispatch_table = _DispatchTable()

    def __init__(self, sink: Sink, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None) -> None:
        super().__init__(sink, 5, buffer_callback)
        self.touched = False
        self.write_pickle: Callable[[object], None] = super(cloudpickle.Pickler, self).dump

    def reduce_future(self, references: Any, sequence: bool) -> Any:
        raise NotImplementedError

    def reducer_override(self, obj: Any) -> Any:
        """Called by the C pickler for each object of a class that is not built in."""
        kind = type(obj)
        future = _future_types.get(kind)
        if future is not None:
            self.touched = True
            return self.reduce_future(future.references(obj), future.sequence)
        if kind is FunctionType or issubclass(kind, type):
            if is_importable(obj):
                return NotImplemented
            self.touched = True
            return super().reducer_override(obj)
        if kind.__name__ == "ndarray":
            return self.reduce_array(obj)
        return NotImplemented

    def reduce_array(self, array: Any) -> Any:
        """A numpy array that is a view with gaps is packed once here, so that whoever loads it need not copy it."""
        numpy = sys.modules.get("numpy")
        if numpy is None or type(array) is not numpy.ndarray or array.nbytes < OUT_OF_BAND_BYTES:
            return NotImplemented
        if array.flags.forc or array.dtype.hasobject:
            return NotImplemented
        return array.copy(order="K").__reduce_ex__(5)
