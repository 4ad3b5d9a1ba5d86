"""The object that an actor's process keeps, made by the process's first task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.session.calls import ActorValue, keep_actor

__all__ = ["KeptActor"]


class KeptActor:
    """What an actor's process knows of itself."""

    def __init__(self, reference: tuple[Any, ...]) -> None:
        self._reference = reference
        self._is_made = False

    def making(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What the task runs in the function's place: the first makes the object, which stays here."""
        if self._is_made:
            return function

        def make(*args: Any, **kwargs: Any) -> ActorValue:
            made = function(*args, **kwargs)
            self._is_made = True
            return keep_actor(made, self._reference)

        return make
