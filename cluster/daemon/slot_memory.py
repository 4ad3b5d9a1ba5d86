"""A slot gives back the memory that it keeps without using it."""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Final

from cluster.daemon.process_memory import own_bytes

__all__ = ["give_back", "give_back_free_memory"]

# A function of glibc alone; elsewhere the allocator decides by itself.
_MALLOC_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> int:
    """Collect cycles, return free memory to the system, and say how much this process still holds."""
    gc.collect()
    give_back_free_memory()
    return own_bytes(os.getpid())


def give_back_free_memory() -> None:
    """Return free memory to the system."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)
