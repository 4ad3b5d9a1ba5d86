"""Functions to their pickled bytes, pickled anew unless nothing that the bytes hold can have changed.

Pickling a function by value takes 50 to 100 µs, ten times what the rest of a submit takes, so the bytes of the last
functions are kept. A change must never be missed, so a function's bytes are used again only if

- it is importable by name (its bytes are only the name), or
- it is a plain function with the very same code and defaults as before, and everything that its closure and the globals
  named in its code hold is the very same object as before, and immutable: a number, a text, a module, or a function or
  class that is importable by name or passes the same test.

Anything else (a method, a partial, a function that names a list or an object of one's own) is pickled at each call.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

from cluster.errors import SerializationError
from cluster.session.parts import Function
from cluster.units import format_bytes
from cluster.wire.payload import Encoded, closure_sizes, dumps

__all__ = ["FunctionTable", "LargeFunction", "is_coroutine_function", "label_of"]

FUNCTION_LIMIT_BYTES = 64 * 1024
"""A function with more bytes travels as a value."""
WARNING_BYTES = 10_000_000
ERROR_BYTES = 1_000_000_000
KEPT_FUNCTIONS = 256

_IMMUTABLE = (int, float, complex, str, bytes, bool, type(None), type(...))
_ABSENT = object()


class LargeFunction(NamedTuple):
    """A function that travels as a value, because of what it captures."""

    function: Callable[..., Any]
    nbytes: int


class _Kept(NamedTuple):
    function: Callable[..., Any]
    unchanged: Callable[[], bool]
    packed: Function


class FunctionTable:
    """Gives a function's pickled bytes."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def pack(self, function: Callable[..., Any]) -> Function | LargeFunction:
        """Pickle a function, or find that its bytes are known and cannot have changed."""
        kept = self._kept.get(id(function))
        if kept is not None and kept.function is function and kept.unchanged():
            return kept.packed
        if not callable(function):
            raise TypeError(f"a function is needed, and {type(function).__name__} was given: {function!r:.100}")
        encoded = dumps(function, name="function")
        if encoded.futures:
            raise SerializationError(
                f"{label_of(function)} captures a future. Pass the future as an argument: then the task waits for it, "
                "and receives its value."
            )
        if encoded.nbytes > FUNCTION_LIMIT_BYTES:
            _complain_if_huge(function, encoded)
            return LargeFunction(function, encoded.nbytes)
        blob = encoded.to_bytes()
        identity = hashlib.blake2b(blob, digest_size=16).digest()
        packed = Function(identity, label_of(function), blob, is_coroutine_function(function))
        unchanged = _test_of_change(function)
        if unchanged is not None:
            if len(self._kept) >= KEPT_FUNCTIONS:
                del self._kept[next(iter(self._kept))]
            self._kept[id(function)] = _Kept(function, unchanged, packed)
        return packed


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether a call is known to make a coroutine: an `async def`, a partial of one, an object whose call is one."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        return False
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def label_of(function: Callable[..., Any]) -> str:
    """The name of a function for people, at most 100 characters."""
    while (inner := getattr(function, "func", None)) is not None and not hasattr(function, "__name__"):
        function = inner
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name)[:100]


def _complain_if_huge(function: Callable[..., Any], encoded: Encoded) -> None:
    if encoded.nbytes <= WARNING_BYTES:
        return
    captured = closure_sizes(function)
    blame = ", ".join(f"{name} ({format_bytes(nbytes)})" for name, nbytes in captured) or "what it captures"
    text = (
        f"{label_of(function)} takes {format_bytes(encoded.nbytes)} with what it captures: {blame}. "
        "Pass large data as an argument, or scatter it once and pass the future."
    )
    if encoded.nbytes > ERROR_BYTES:
        raise SerializationError(text)
    warnings.warn(text, stacklevel=5)


# --------------------------------------------------------------------------- has a function changed?


def _importable(thing: Any) -> bool:
    """Whether pickling this is only writing down its name."""
    module_name = getattr(thing, "__module__", None)
    if module_name is None or module_name == "__main__" or not _by_reference(module_name):
        return False
    found: Any = sys.modules.get(module_name)
    for part in getattr(thing, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is thing


def _by_reference(module_name: str) -> bool:
    """False for modules that the user asked cloudpickle to send by value."""
    by_value: frozenset[str] | set[str] = sys.modules["cloudpickle"].list_registry_pickle_by_value()
    return not any(module_name == name or module_name.startswith(name + ".") for name in by_value)


@lru_cache(maxsize=1024)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """All names that the code may look up as globals, its inner functions' too (and names of attributes: no harm)."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return tuple(dict.fromkeys((*code.co_names, *(name for each in inner for name in _names_in(each)))))


def _test_of_change(function: Callable[..., Any]) -> Callable[[], bool] | None:
    """A cheap test of whether the function's bytes would still be the same; None if it cannot be told."""
    if isinstance(function, types.FunctionType | types.BuiltinFunctionType | type) and _importable(function):
        return lambda: True
    found: dict[int, _Snapshot] = {}
    if not isinstance(function, types.FunctionType) or not all(_collect(function, found)):
        return None
    snapshots = list(found.values())
    if len(snapshots) == 1:
        return snapshots[0].holds
    return lambda: all(snapshot.holds() for snapshot in snapshots)


class _Snapshot:
    """Everything that a plain function's bytes depend on, as it was."""

    __slots__ = ("cells", "code", "defaults", "function", "globals", "keyword_defaults", "namespace")

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function
        self.code = function.__code__
        self.defaults = function.__defaults__
        self.keyword_defaults = function.__kwdefaults__
        self.cells = [(cell, _content(cell)) for cell in function.__closure__ or ()]
        self.namespace = function.__globals__
        self.globals = [(name, self.namespace.get(name, _ABSENT)) for name in _names_in(self.code)]

    def holds(self) -> bool:
        """Whether everything is the very same object still."""
        function = self.function
        if (
            function.__code__ is not self.code
            or function.__defaults__ is not self.defaults
            or function.__kwdefaults__ is not self.keyword_defaults
            or function.__dict__
        ):
            return False
        for cell, content in self.cells:
            if _content(cell) is not content:
                return False
        namespace = self.namespace
        return all(namespace.get(name, _ABSENT) is value for name, value in self.globals) if self.globals else True

    def parts(self) -> Iterator[Any]:
        """The objects that must not change."""
        yield self.defaults
        yield self.keyword_defaults
        for _, part in (*self.cells, *self.globals):
            yield part


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


def _collect(function: types.FunctionType, found: dict[int, _Snapshot]) -> Iterator[bool]:
    """Gather the function and the plain functions it refers to; yields False where something may change unnoticed."""
    if id(function) in found:
        return
    snapshot = found[id(function)] = _Snapshot(function)
    yield not function.__dict__
    for part in snapshot.parts():
        if isinstance(part, types.ModuleType):
            yield sys.modules.get(part.__name__) is part
        elif isinstance(part, types.FunctionType) and not _importable(part):
            yield from _collect(part, found)
        else:
            yield _cannot_change(part)


def _cannot_change(part: Any) -> bool:
    if isinstance(part, types.FunctionType | types.BuiltinFunctionType | type):
        return _importable(part)
    items = part if type(part) is tuple else (part,)
    return part is _ABSENT or all(type(item) in _IMMUTABLE for item in items)
