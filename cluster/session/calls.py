"""What runs in a slot on behalf of the client; imported there by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["call_first"]


def call_first(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that is itself an input: one whose pickle is too large to travel as a function."""
    return function(*args, **kwargs)
