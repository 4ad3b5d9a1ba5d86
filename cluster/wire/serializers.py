"""Serializers that users register for classes of their own.

A registered class is pickled as what its `dumps` made of the instance, and `loads` makes it again. The registration
goes along, so a process that has once loaded such a value serializes what it makes of that class in the same way. It
goes along with the class itself, too, where that travels by value, as what a script or a notebook defines does.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["reduce_registered", "reduce_registered_class", "register_serializer", "registered"]

T = TypeVar("T")


Serializer = tuple[type[Any], Callable[[Any], Any], Callable[[Any], Any]]
"""A class, and how its instances are taken apart and made again."""

registered: dict[type[Any], Serializer] = {}
"""By exactly the class that was named."""
_found: weakref.WeakKeyDictionary[type[Any], Serializer | None] = weakref.WeakKeyDictionary()

# The pickler itself knows instances of exactly these, and asks nobody about them.
_BUILT_IN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset, type}
)


def register_serializer(kind: type[T], dumps: Callable[[T], Any], loads: Callable[[Any], T]) -> None:
    """Have instances of a class, and of its subclasses, travel as what `dumps` makes of them.

    `dumps(instance)` returns anything that can be pickled; large memory in it that is wrapped in a
    `pickle.PickleBuffer` is not copied on the way, and arrives as a memoryview of shared memory that is the receiver's
    to change. `loads` gets that and returns the instance. A class's own registration counts before its bases'; a second
    one for the same class replaces the first. Raises TypeError for what is no class, and for built-in classes.

    Register where the class is defined, so that workers that import it do the same. A registration also travels with
    every value that it made, and with a class that a script or a notebook defines.

    >>> import pickle
    >>> class Image:
    ...     def __init__(self, width, pixels):
    ...         self.width, self.pixels = width, pixels
    >>> register_serializer(
    ...     Image,
    ...     lambda image: (image.width, pickle.PickleBuffer(image.pixels)),
    ...     lambda parts: Image(parts[0], bytearray(parts[1])),
    ... )
    """
    if not isinstance(kind, type):
        raise TypeError(f"a serializer is registered for a class, and {kind!r:.80} is none")
    if kind in _BUILT_IN or kind is object:
        raise TypeError(f"{kind.__name__} is pickled by Python itself; a serializer can be for a subclass of it")
    for name, function in (("dumps", dumps), ("loads", loads)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, not {function!r:.80}")
    registered[kind] = kind, dumps, loads
    _found.clear()


def reduce_registered(instance: Any) -> Any:
    """What pickle wants of `__reduce__`, or None where no serializer is registered."""
    kind = type(instance)
    try:
        serializer = _found[kind]
    except KeyError:
        serializer = _found[kind] = next((registered[each] for each in kind.__mro__ if each in registered), None)
    if serializer is None:
        return None
    return made_by, (serializer, _without_copy(serializer[1](instance)))


def _without_copy(dumped: Any) -> Any:
    return pickle.PickleBuffer(dumped) if type(dumped) in (memoryview, bytearray) else dumped


def made_by(serializer: Serializer, dumped: Any) -> Any:
    """Make an instance again; found in pickles only."""
    _register_once(serializer)
    return serializer[2](dumped)


def _register_once(serializer: Serializer) -> None:
    if serializer[0] not in registered:
        registered[serializer[0]] = serializer
        _found.clear()


def reduce_registered_class(kind: type[Any], reduced: Any) -> Any:
    """What pickle wants of `__reduce__` for a class itself: what cloudpickle said, and the serializer that was
    registered for it, if there is one."""
    if kind not in registered or type(reduced) is not tuple:
        return reduced
    make, arguments, state, items, pairs, set_state = reduced
    # Part of the state, so that the functions may name the class: it is made before.
    return make, arguments, (set_state, state, registered[kind][1:]), items, pairs, set_class_state


def set_class_state(kind: type[Any], state: tuple[Any, ...]) -> None:
    """Give a class that is being loaded its attributes and its serializer; found in pickles only."""
    set_state, attributes, (dumps, loads) = state
    set_state(kind, attributes)
    _register_once((kind, dumps, loads))
