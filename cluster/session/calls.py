"""What runs in a slot on behalf of the client; imported there by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cluster.wire.encoded import Reference
from cluster.wire.payload import actor_from, future_from

__all__ = ["ActorValue", "call_first", "call_method", "keep_actor", "read_attribute"]

_METHODS_LISTED: Final = 1000
_actor_here: list[Any] = []


def call_first(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that is itself an input: one whose pickle is too large to travel as a function."""
    return function(*args, **kwargs)


def call_method(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the actor that this process keeps."""
    return getattr(_actor_here[0], name)(*args, **kwargs)


def read_attribute(name: str, /) -> Any:
    """An attribute of the actor that this process keeps."""
    return getattr(_actor_here[0], name)


def keep_actor(made: Any, reference: Reference) -> ActorValue:
    """Keep an object in this process as its actor; what others are given for it."""
    _actor_here[:] = [made]
    return ActorValue(made, reference)


class ActorValue:
    """The value of an actor's creation: it is loaded as a handle (`cluster.client.actor`)."""

    def __init__(self, made: Any, reference: Reference) -> None:
        kind = type(made)
        names = (name for name in dir(kind) if not (name.startswith("__") and name != "__call__"))
        self._methods = [name for name in names if callable(getattr(kind, name, None))][:_METHODS_LISTED]
        self._reference = reference
        self._name = kind.__qualname__[:100]

    def __reduce__(self) -> tuple[Any, ...]:
        return actor_from, (_Unnoted(self._reference), self._name, tuple(self._methods))


class _Unnoted:
    """A future of the value that it lies in. If the pickler counted it as contained, the value would hold itself."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __reduce__(self) -> tuple[Any, ...]:
        return future_from, self._reference
