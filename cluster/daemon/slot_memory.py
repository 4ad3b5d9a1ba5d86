"""A slot's heap: what is not used is given back, and large arrays do not lose their places to small things."""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Final

from cluster.daemon.process_memory import own_bytes

__all__ = ["give_back", "give_back_free_memory", "keep_small_apart"]

_LIBC: Final = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = (ctypes.c_size_t,)
_LIBC.free.argtypes = (ctypes.c_void_p,)
# A function of glibc alone; elsewhere the allocator decides by itself.
_MALLOC_TRIM: Final = getattr(_LIBC, "malloc_trim", None)
_GAPS: Final = 8  # to import numpy and pandas fills half of them
_GAP_BYTES: Final = 4 << 20  # what is larger has no place in them
_PIN_BYTES: Final = 1 << 20  # more than there is free in one piece at first, or it would not lie behind the gap


def give_back() -> int:
    """Collect cycles, return free memory to the system, and say how much this process still holds."""
    gc.collect()
    give_back_free_memory()
    return own_bytes(os.getpid())


def give_back_free_memory() -> None:
    """Return free memory to the system."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def keep_small_apart() -> None:
    """Leave gaps in the heap for what is small, so that none of it is put where a large array was.

    A slot's arrays lie in its heap, since the same memory is then used for the next (`agent_starter.py`). If a few kB
    of the place of one are taken meanwhile, by something that stays, the next of that size needs another place, and
    the slot holds one array more from then on. The allocator takes the smallest free piece that will do. No memory is
    used for a gap before something is put there.
    """
    if _MALLOC_TRIM is None:
        return
    gaps = []
    for _ in range(_GAPS):
        gaps.append(_LIBC.malloc(_GAP_BYTES))
        _LIBC.malloc(_PIN_BYTES)  # behind it for good, or it would be one piece with what is free there
    for gap in gaps:
        _LIBC.free(gap)
