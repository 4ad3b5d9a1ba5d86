"""Says which member of an object cannot be pickled, and what makes a function's pickle large."""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import Iterator
from itertools import islice
from typing import Any

from cluster.errors import SerializationError
from cluster.wire.pickling import ValuePickler, is_importable

DEPTH_LIMIT = 50
CHILDREN_LIMIT = 100_000
"""A container with more members is searched only so far."""


class _Discard:
    """Takes the pickle and drops it, counting."""

    def __init__(self) -> None:
        self.nbytes = 0

    def write(self, data: Any) -> None:
        self.nbytes += len(data)


class SizeProbe(ValuePickler):
    """Finds out whether something can be pickled, and how large it would be; copies no buffer."""

    def __init__(self) -> None:
        self.discard = _Discard()
        super().__init__(self.discard, self._count)

    def measure(self, value: object) -> int:
        """How large is the pickle of this object with its buffers, without what was measured before and is in it?"""
        before = self.discard.nbytes
        self.write_pickle(value)
        return self.discard.nbytes - before

    def forget(self) -> None:
        """Let go of what was measured."""
        self.clear_memo()
        self.globals_ref.clear()

    def _count(self, buffer: pickle.PickleBuffer) -> bool:
        self.discard.nbytes += buffer.raw().nbytes
        return False

    def reduce_future(self, references: Any, sequence: bool) -> Any:
        return tuple, ()


def _failure(value: object) -> Exception | None:
    try:
        SizeProbe().write_pickle(value)
    except Exception as error:
        return error
    return None


def pickled_bytes(value: object) -> int:
    """How large is the pickle of this object with its buffers? 0 if it cannot be pickled."""
    probe = SizeProbe()
    try:
        return probe.measure(value)
    except Exception:  # whoever pickles it for its own sake says what is wrong
        return 0
    finally:
        probe.forget()


def _globals_named(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_named(constant)
    return names


def captured(function: types.FunctionType) -> Iterator[tuple[str, str, object]]:
    """List what a function that travels by value takes along: (variable, how it is reached, object)."""
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield variable, f".<closure>.{variable}", cell.cell_contents
        except ValueError:
            continue  # an empty cell: the variable has no value yet
    for variable in sorted(_globals_named(function.__code__)):
        if variable in function.__globals__:
            yield variable, f".<globals>.{variable}", function.__globals__[variable]
    for position, default in enumerate(function.__defaults__ or ()):
        yield f"default {position}", f".__defaults__[{position}]", default
    for variable, default in (function.__kwdefaults__ or {}).items():
        yield variable, f".__kwdefaults__[{variable!r}]", default
    for attribute, value in function.__dict__.items():
        yield attribute, f".{attribute}", value


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    state = getattr(value, "__dict__", None)
    if isinstance(state, dict):
        for name, member in state.items():
            yield f".{name}", member
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _children(value: Any) -> Iterator[tuple[str, object]]:
    """List the members of an object with the text that reaches each."""
    if isinstance(value, dict):
        for key, member in value.items():
            yield f"[{_brief(key)}]", member
            yield f".<key {_brief(key)}>", key
    elif isinstance(value, list | tuple):
        for position, member in enumerate(value):
            yield f"[{position}]", member
    elif isinstance(value, set | frozenset):
        for member in value:
            yield f".<item {_brief(member)}>", member
    elif isinstance(value, types.FunctionType):
        for _, path, member in captured(value):
            yield path, member
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from ((f".args{path}", member) for path, member in _children(value.args))
        yield from ((f".keywords{path}", member) for path, member in _children(value.keywords))
    if isinstance(value, type):
        yield from ((f".{name}", member) for name, member in vars(value).items() if not name.startswith("__"))
    elif not isinstance(value, types.FunctionType | types.ModuleType | types.MethodType):
        yield from _attributes(value)


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a class whose repr fails must not hide what we came for
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


class _Suspect:
    """An object that cannot be pickled, and how far its members have been looked at."""

    def __init__(self, path: str, value: object, failure: Exception | None) -> None:
        self.path = path
        self.value = value
        self.failure = failure
        self.members = islice(_children(value), CHILDREN_LIMIT)
        self.passed_on = False
        """A member fails too, so this one is not known to be to blame itself."""


def _find_culprit(value: object, name: str) -> _Suspect:
    """Find a member that fails though none of its own members does: depth first, each object once."""
    first = _Suspect(name, value, _failure(value))
    trail = [first]
    seen: dict[int, object] = {id(value): value}
    while trail:
        suspect = trail[-1]
        if len(trail) > DEPTH_LIMIT:
            return suspect
        for step, member in suspect.members:
            if id(member) in seen:
                # Around again: what fails in there is looked for where it was met first.
                suspect.passed_on = suspect.passed_on or any(member is other.value for other in trail)
                continue
            seen[id(member)] = member
            failure = _failure(member)
            if failure is not None:
                suspect.passed_on = True
                trail.append(_Suspect(suspect.path + step, member, failure))
                break
        else:
            if not suspect.passed_on:
                return suspect
            trail.pop()
    return first


def name_unpicklable(value: object, name: str = "value") -> str:
    """Give the path of the member that cannot be pickled, such as `args[1]['lock'].handle`; it begins with `name`."""
    return _find_culprit(value, name).path


def _is_too_deep(error: BaseException) -> bool:
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def serialization_error(value: object, error: Exception, name: str) -> SerializationError:
    """Make the error that says what could not be pickled, where it is, why, and what to do."""
    if isinstance(error, SerializationError):
        return error
    if _is_too_deep(error):
        return SerializationError(
            f"{name} cannot be pickled: a {_type_name(value)} that is nested too deeply, or holds itself through many "
            "steps. Flatten it (a list of parts instead of a chain of objects), or send the data that it is made from."
        )
    culprit = _find_culprit(value, name)
    reason = _first_line(culprit.failure if culprit.failure is not None else error)
    return SerializationError(
        f"{name} cannot be pickled: {culprit.path} is a {_type_name(culprit.value)} ({reason}). "
        f"{_remedy(culprit.value)}"
    )


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines[0] else type(error).__name__


def _remedy(culprit: object) -> str:
    module = type(culprit).__module__
    if module in ("_thread", "threading", "multiprocessing.synchronize"):
        return "Leave it out (`__getstate__`), and make the lock inside the task."
    if module in ("_io", "socket", "ssl", "sqlite3"):
        return "Pass the path or the address instead, and open it inside the task."
    if isinstance(culprit, Iterator):
        return "Turn it into a list first."
    return "Leave it out (`__getstate__`), give its class a `__reduce__`, or make it inside the task."


def closure_sizes(function: object, minimum_bytes: int = 65536) -> list[tuple[str, int]]:
    """List what makes a function's pickle large: (variable, bytes) of what it captures, largest first."""
    if isinstance(function, types.FunctionType | type) and is_importable(function):
        return []
    if isinstance(function, functools.partial):
        members: Iterator[tuple[str, str, object]] = ((path.lstrip("."), path, it) for path, it in _children(function))
    elif isinstance(function, types.MethodType):
        members = iter([("self", ".__self__", function.__self__)])
    elif isinstance(function, types.FunctionType):
        members = captured(function)
    else:
        members = ((path.lstrip("."), path, it) for path, it in _children(function))
    sizes = [(variable, pickled_bytes(member)) for variable, _, member in members]
    return sorted(((name, size) for name, size in sizes if size >= minimum_bytes), key=lambda item: -item[1])
