"""Handles of actors: a method called on one returns a future."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cluster.client.future import Future
from cluster.session.calls import call_method, read_attribute
from cluster.wire.payload import actor_from, register_actor_type

__all__ = ["Actor"]

_CALL_OPTIONS = {"actor_call": True, "keep": True}


class Actor:
    """An object that lives on a worker, in a process of its own; the result of `client.submit(cls, ..., actor=True)`.

    `actor.method(*args)` returns a `Future` at once. Each client's calls run in the order in which it made them, one
    at a time, whether or not their futures are kept. `actor.name`, where `name` is no method, waits for the attribute's
    value and returns it. A handle can be passed to tasks, returned and stored; the actor lives as long as there is one,
    or the future that it came from.

    An actor is made once. When its process or its worker dies, calls that have not ended fail with TaskDied, as do all
    later ones. A call that is cancelled while it runs is interrupted; if it goes on for another second, the actor's
    process is ended.
    """

    __slots__ = ("__weakref__", "_future", "_methods", "_name")

    def __init__(self, future: Future, name: str, methods: tuple[str, ...]) -> None:
        self._future = future
        self._name = name
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        if name in self._methods:
            return partial(self._submit, call_method, name)
        if name.startswith("_"):  # what others look for in any object; none is asked of the actor unawares
            raise AttributeError(f"the actor {self._name} has no method {name!r}, and hides names with underscores")
        return self._submit(read_attribute, name).result()

    def __call__(self, *args: Any, **kwargs: Any) -> Future:
        """Call the object itself."""
        return self._submit(call_method, "__call__", *args, **kwargs)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._methods})

    def __reduce__(self) -> tuple[Any, ...]:
        # In an argument the future becomes the task's input, which is a handle; in a value it stays a future.
        return actor_from, (self._future, self._name, self._methods)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Actor) and other._future.key == self._future.key

    def __hash__(self) -> int:
        return hash(self._future.key)

    def __repr__(self) -> str:
        return f"<Actor {self._name} {self._future.key}>"

    def _submit(self, function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Future:
        client, number = self._future._client, self._future._wanted()
        label = f"{self._name}.{name}"
        submit = client._submission.submit
        number, call = submit(function, (name, *args), kwargs, label, _CALL_OPTIONS, further=(number,))
        return Future(client, number, client._origin(call.label), client._drop)


register_actor_type(Actor)
