"""Text in pandas' columns: numpy arrays of Python strings, packed as one piece of UTF-8; arrays of Arrow, not copied.

Pickle writes and reads such strings one by one, which takes about three times as long. pyarrow packs and unpacks them
where it is installed; what it packed can be unpacked without it. The array that is made again is equal in every way
that can be told: the same strings, None where None was, and numpy.nan itself where numpy.nan was. An array that holds
anything else is left to pickle, as is one whose strings are mostly the same few objects: pickle writes those once.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from importlib import import_module
from types import NoneType
from typing import Any, Final

__all__ = ["ARROW_BACKED", "reduce_arrow_backed", "reduce_strings"]

ARROW_BACKED: Final = frozenset({"ArrowExtensionArray", "ArrowStringArray"})
"""pandas' names."""
WORTH_PACKING: Final = 1000
"""Fewer strings are pickled as fast."""
SAMPLE: Final = 256
DISTINCT_SHARE: Final = 0.5
WHOLE_SHARE: Final = 0.9
_EXPECTED: Final = frozenset({str, NoneType, float})


def reduce_strings(array: Any) -> Any:
    """What pickle wants of `__reduce__` for an array of objects; NotImplemented where it should do that itself."""
    arrow = sys.modules.get("pyarrow")  # who has pandas and pyarrow has loaded both
    numpy = sys.modules["numpy"]
    if arrow is None or array.dtype != numpy.dtype(object) or array.size < WORTH_PACKING or not array.flags.forc:
        return NotImplemented
    order = "C" if array.flags.c_contiguous else "F"
    flat = array.ravel(order=order)
    sample = flat[:: max(1, flat.size // SAMPLE)].tolist()
    strings = [one for one in sample if type(one) is str]
    if not _EXPECTED.issuperset(map(type, sample)) or len(set(map(id, strings))) < DISTINCT_SHARE * len(sample):
        return NotImplemented
    objects = flat.tolist()
    kinds = set(map(type, objects))
    if not kinds <= _EXPECTED:
        return NotImplemented
    not_a_number = []
    if float in kinds:
        not_a_number = [at for at, one in enumerate(objects) if type(one) is float]
        if any(objects[at] is not numpy.nan for at in not_a_number):
            return NotImplemented
        for at in not_a_number:
            objects[at] = None
    try:
        packed = arrow.array(objects, type=arrow.large_string())
    except (arrow.ArrowInvalid, UnicodeError):  # half of a surrogate pair, for one, has no UTF-8
        return NotImplemented
    buffers = [None if buffer is None else pickle.PickleBuffer(buffer) for buffer in packed.buffers()]
    return unpacked, (array.shape, order, *buffers, not_a_number)


def reduce_arrow_backed(array: Any) -> Any:
    """What pickle wants of `__reduce__` for one of pandas' arrays that lie in Arrow's memory, as its `str` does.

    pandas copies that memory first, so that no more is pickled of a slice than the slice; here only slices are copied.
    """
    state = getattr(array, "__dict__", {})
    chunked = state.get("_pa_array")
    if chunked is None or chunked.num_chunks != 1:
        return NotImplemented
    (chunk,) = chunked.chunks
    if chunk.nbytes < WHOLE_SHARE * chunk.get_total_buffer_size():
        return NotImplemented
    return copyreg.__newobj__, (type(array),), {**state, "_pa_array": [chunk], "_cache": {}}  # type: ignore[attr-defined]


def unpacked(shape: tuple[int, ...], order: Any, valid: Any, ends: Any, text: Any, not_a_number: list[int]) -> Any:
    """Make such an array again; found in pickles only. The buffers are those of an Arrow large_string array."""
    numpy = import_module("numpy")
    size = 1
    for length in shape:
        size *= length
    try:
        arrow = import_module("pyarrow")
    except ImportError:
        flat = _unpack_slowly(numpy, size, valid, ends, text)
    else:
        buffers = [None if buffer is None else arrow.py_buffer(buffer) for buffer in (valid, ends, text)]
        flat = arrow.Array.from_buffers(arrow.large_string(), size, buffers).to_numpy(zero_copy_only=False)
    if not_a_number:
        flat[not_a_number] = numpy.nan
    return flat.reshape(shape, order=order)


def _unpack_slowly(numpy: Any, size: int, valid: Any, ends: Any, text: Any) -> Any:
    flat = numpy.empty(size, dtype=object)
    bounds = numpy.frombuffer(ends, dtype=numpy.int64, count=size + 1).tolist()
    data = memoryview(b"" if text is None else text)
    present = None if valid is None else numpy.unpackbits(numpy.frombuffer(valid, numpy.uint8), bitorder="little")
    for at in range(size):
        if present is None or present[at]:
            flat[at] = str(data[bounds[at] : bounds[at + 1]], "utf-8")
    return flat
