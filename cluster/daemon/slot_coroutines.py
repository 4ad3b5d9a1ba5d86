"""What a slot does with a task that is an `async def` function: it runs the coroutine to its end."""

from __future__ import annotations

from collections.abc import Coroutine
from importlib import import_module
from typing import Any

__all__ = ["run_coroutine"]


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in an event loop of its own, in this thread; raises what it raises."""
    # Loaded here, since few slots need it and it would be a fifth of what the starter loads.
    return import_module("asyncio").run(coroutine)
