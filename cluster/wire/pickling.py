"""The pickler that values and arguments share: cloudpickle's, with futures noted and large data not copied.

Functions and classes that cannot be imported elsewhere travel by value (cloudpickle). For that the C pickler asks
`reducer_override` about every object whose class it does not know itself, at half a microsecond each. A pickler made
`plain` does without: what needs care is in its table, by class. It either fails, or writes down by name what it should
have taken along, and that shows (`names_main`): whoever pickles then does it again with one that is not plain.

A future is recognised by its class. `register_future_type` is called by the module that defines the class, so this
floor names nothing above it. What stands for a future on the way is its *reference*: a tuple of plain data that begins
with the client's id and the task's number, `(client_id, number, …)`; the rest is the class's own affair.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any, Protocol

import cloudpickle

from cluster.wire.encoded import Reference
from cluster.wire.object_arrays import ARROW_BACKED, reduce_arrow_backed, reduce_strings
from cluster.wire.pandas_index import reduce_index
from cluster.wire.repeated_arrays import is_repeated, reduce_repeated
from cluster.wire.serializers import reduce_registered, reduce_registered_class, registered

SMALLEST_WITH_CLASS_BYTES = 24
"""A shorter pickle names no class and no function."""
FULL_AFTER_FAILURE = 50
"""When a plain pickler was of no use, so many pickles are made without trying one."""
MAIN = b"__main__"
"""What is defined there is written by a plain pickler with this text; what else cannot be imported, it refuses."""
_BEGINNINGS = frozenset({b"\x80", b"\x95"})
"""How what a pickler writes begins, if it is not a large object itself: a pickle, or a frame of it."""

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


_known: dict[type[Any], Callable[[ValuePickler, Any], Any]] = {}
"""What is special in this library's pickles, by its class: how it is reduced."""


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

    def reduce(pickler: ValuePickler, instance: Any) -> Any:
        pickler.touched = True
        return pickler.reduce_future(references(instance), sequence)

    _known[kind] = reduce


def register_reducer(kind: type[Any], reduce: Callable[[Any], tuple[Any, ...]]) -> None:
    """Have instances of exactly this class pickled by `reduce(instance)`, as by `__reduce__`, in this library only."""
    _known[kind] = lambda pickler, instance: reduce(instance)


_cloudpickle_reducers: dict[Any, Any] = cloudpickle.Pickler._dispatch_table


def _reduce_code(code: CodeType) -> Any:
    """As cloudpickle does it, but with the file's name, which 3.1.3 leaves out: tracebacks and warnings tell of it."""
    kind, arguments = _cloudpickle_reducers[CodeType](code)
    return kind, tuple(code.co_filename if argument == "<dynamic-code>" else argument for argument in arguments)


class _DispatchTable(dict[Any, Any]):
    """Always empty: cloudpickle's reducers, then the standard library's, as they are when asked; cheaper than its
    ChainMap, and asked about every instance of a class."""

    def __missing__(self, kind: type[Any]) -> Any:
        if kind is CodeType:
            return _reduce_code
        return _cloudpickle_reducers[kind] if kind in _cloudpickle_reducers else copyreg.dispatch_table[kind]


def is_importable(named: Any) -> bool:
    """Is this function or class found by its name in a module? If in doubt no: cloudpickle then looks itself."""
    module = named.__module__
    return (
        module != "__main__"
        and getattr(sys.modules.get(module), named.__qualname__, None) is named
        and not cloudpickle.list_registry_pickle_by_value()
    )


def names_main(pieces: Sequence[Any]) -> bool:
    """Might what a plain pickler wrote name a thing that is not found by that name elsewhere?

    Large objects among the pieces are not looked through.
    """
    return any(type(piece) is bytes and piece[:1] in _BEGINNINGS and piece.find(MAIN) >= 0 for piece in pieces)


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """Pickles into a sink; futures on the way are noted by `reduce_future`, which subclasses define.

    `touched` says that something was met that leaves a trace in the pickler itself (a future, a function, a class).
    """

    dispatch_table = _DispatchTable()

    def __init__(
        self, sink: Sink, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None, plain: bool = False
    ) -> None:
        super().__init__(sink, 5, buffer_callback)
        # A plain pickler looks for exactly a class, and a registered serializer is for subclasses too.
        plain = plain and not registered
        self.touched = False
        self.plain = plain
        self._made_from = len(_known), dict(copyreg.dispatch_table) if plain else {}, _pandas_arrays()
        pickler: Any = self._plain_pickler(sink, buffer_callback) if plain else super(cloudpickle.Pickler, self)
        self.write_pickle: Callable[[object], None] = pickler.dump
        self.forget_memo: Callable[[], None] = pickler.clear_memo

    def _plain_pickler(
        self, sink: Sink, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None
    ) -> pickle.Pickler:
        pickler = pickle.Pickler(sink, 5, buffer_callback=buffer_callback)
        table: dict[type[Any], Any] = {**copyreg.dispatch_table, **_cloudpickle_reducers}
        table.update(dict.fromkeys(_known, self._reduce_known))
        if "numpy" in sys.modules:
            table[sys.modules["numpy"].ndarray] = self._reduce_plain_array
        if (arrays := _pandas_arrays()) is not None:
            table.update({getattr(arrays, name): _reduce_plain_arrow for name in ARROW_BACKED})
            table[sys.modules["pandas"].Index] = _reduce_plain_index
        pickler.dispatch_table = table
        return pickler

    def is_stale(self) -> bool:
        """Has a way to pickle some class been registered since this plain pickler's table was made?"""
        return (
            self._made_from[1] != copyreg.dispatch_table
            or self._made_from[0] != len(_known)
            or self._made_from[2] is not _pandas_arrays()
            or bool(registered)
            or bool(cloudpickle.list_registry_pickle_by_value())
        )

    def _reduce_known(self, obj: Any) -> Any:
        return _known[type(obj)](self, obj)

    def _reduce_plain_array(self, array: Any) -> Any:
        reduced = self.reduce_array(array)
        return array.__reduce_ex__(5) if reduced is NotImplemented else reduced

    def reduce_future(self, references: Any, sequence: bool) -> Any:
        raise NotImplementedError

    def reducer_override(self, obj: Any) -> Any:
        """Called by the C pickler for each object of a class that is not built in."""
        kind = type(obj)
        if kind in _known:
            return self._reduce_known(obj)
        if registered and (reduced := reduce_registered(obj)) is not None:
            return reduced
        if kind is FunctionType or issubclass(kind, type):
            if is_importable(obj):
                return NotImplemented
            self.touched = True
            reduced = super().reducer_override(obj)
            return reduced if kind is FunctionType else reduce_registered_class(obj, reduced)
        if kind.__name__ == "ndarray":
            return self.reduce_array(obj)
        if kind.__name__ in ARROW_BACKED:
            return reduce_arrow_backed(obj)
        if kind.__name__ == "Index" and kind is getattr(sys.modules.get("pandas"), "Index", None):
            return reduce_index(obj)
        return NotImplemented

    def reduce_array(self, array: Any) -> Any:
        """A numpy array that is a view with gaps is packed once here, so that whoever loads it need not copy it; one of
        strings is packed as text, and of one that repeats itself what it repeats."""
        numpy = sys.modules.get("numpy")
        if numpy is None or type(array) is not numpy.ndarray or array.nbytes < OUT_OF_BAND_BYTES:
            return NotImplemented
        if is_repeated(array):
            return reduce_repeated(array)
        if array.dtype.hasobject:
            return reduce_strings(array)
        if array.flags.forc:
            return NotImplemented
        return array.copy(order="K").__reduce_ex__(5)


def _pandas_arrays() -> Any:
    return getattr(sys.modules.get("pandas"), "arrays", None)  # none while pandas is being loaded


def _reduce_plain_arrow(array: Any) -> Any:
    reduced = reduce_arrow_backed(array)
    return array.__reduce_ex__(5) if reduced is NotImplemented else reduced


def _reduce_plain_index(index: Any) -> Any:
    reduced = reduce_index(index)
    return index.__reduce_ex__(5) if reduced is NotImplemented else reduced
