"""Values as bytes, and back.

A value without large buffers is a plain pickle (protocol 5; its first byte is 0x80). A value with buffers of 4 KiB and
more that its classes hand out (numpy arrays, pandas frames, anything with `__reduce_ex__(5)` and `pickle.PickleBuffer`)
is a *segment*, the same in memory, in a file and on the wire:

    magic b"CLV1" · number of buffers (4 bytes) · bytes of the pickle (8) · bytes in all (8)
    for each buffer: offset (8) · bytes (8)
    the pickle · padding · buffer · padding · buffer …        every buffer begins at a multiple of 64

Integers are little-endian. `loads` over a writable memoryview (a private map of a file) copies no buffer: the objects
that it makes lie in that memory and keep it alive.

Three things stand for other values inside a pickle:

- in an argument, `input_at(k)`: the k-th input of the task, which `loads` is given; `Mark(k)` pickles to that, as does
  a future under an `ArgumentPacker` (arguments.py), and `inputs_at(ks)` stands for a sequence of futures;
- in a value, `future_from(*reference)`: a future. `loads` makes it by `bind_future(reference)`; without that it is a
  `FutureReference`, which can be passed on but not waited for. `Encoded.futures` lists what a value contains.
"""

from __future__ import annotations

import pickle
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from mmap import mmap
from types import FunctionType
from typing import Any

from cluster.errors import SerializationError
from cluster.wire.encoded import Encoded, Reference
from cluster.wire.pickling import (
    FULL_AFTER_FAILURE,
    OUT_OF_BAND_BYTES,
    SMALLEST_WITH_CLASS_BYTES,
    Pieces,
    ValuePickler,
    names_main,
    register_future_type,
)
from cluster.wire.unpicklable import closure_sizes, name_unpicklable, serialization_error

__all__ = [
    "Encoded",
    "FutureReference",
    "Mark",
    "actor_from",
    "closure_sizes",
    "dumps",
    "future_from",
    "futures_from",
    "input_at",
    "inputs_at",
    "loads",
    "mark",
    "name_unpicklable",
    "register_actor_type",
    "register_future_type",
]

ALIGNMENT_BYTES = 64
MAGIC = b"CLV1"
_HEADER = struct.Struct("<4sIQQ")
_PLAIN = frozenset({type(None), bool, int, float, complex})
_ZEROS = bytes(ALIGNMENT_BYTES)

Buffer = bytes | bytearray | memoryview
BindFuture = Callable[[Reference], Any]


# --------------------------------------------------------------------------- what stands for another value


class _CurrentLoad(threading.local):
    inputs: Sequence[Any] = ()
    bind_future: BindFuture | None = None


_current_load = _CurrentLoad()


def input_at(index: int) -> Any:
    """Give the index-th input of the load in progress; found in pickles only."""
    try:
        return _current_load.inputs[index]
    except IndexError:
        given = len(_current_load.inputs)
        raise SerializationError(f"these arguments name input {index}, but the task was given {given} inputs") from None


def inputs_at(indices: bytes) -> list[Any]:
    """Give several inputs of the load in progress (packed 'I'); found in pickles only."""
    try:
        return list(map(_current_load.inputs.__getitem__, array("I", indices)))
    except IndexError:
        return [input_at(index) for index in array("I", indices)]  # says what is missing


class Mark:
    """Stands for the task's index-th input in an argument that is being packed."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return input_at, (self.index,)

    def __repr__(self) -> str:
        return f"Mark({self.index})"


def mark(index: int) -> Mark:
    """Make what stands for the task's index-th input in an argument."""
    return Mark(index)


class FutureReference:
    """A future in a process that cannot wait for it: it can be returned and passed on, and keeps its identity."""

    __slots__ = ("reference",)

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def __reduce__(self) -> tuple[Any, ...]:
        return future_from, self.reference

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FutureReference) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def __repr__(self) -> str:
        return f"FutureReference{self.reference!r}"


def _reference_of(future: FutureReference) -> Reference:
    return future.reference


register_future_type(FutureReference, _reference_of)


def future_from(*reference: Any) -> Any:
    """Make a future from its reference, as the load in progress wants it; found in pickles only."""
    bind_future = _current_load.bind_future
    return FutureReference(reference) if bind_future is None else bind_future(reference)


def futures_from(references: list[Reference]) -> list[Any]:
    """Make a list of futures from their references; found in pickles only."""
    return [future_from(*reference) for reference in references]


_actor_types: list[Callable[..., Any]] = []


def register_actor_type(kind: Callable[..., Any]) -> None:
    """Make this the class of actors' handles, made from a future, the object's class's name and its methods' names."""
    _actor_types[:] = [kind]


def actor_from(made_by: Any, name: str, methods: tuple[str, ...]) -> Any:
    """Make an actor's handle from the future of its creation, or (in an argument) give that value; in pickles only."""
    if isinstance(made_by, FutureReference):
        raise SerializationError(f"the handle of the actor {name} can be loaded by a client only")
    kind = _actor_types[0]
    return made_by if type(made_by) is kind else kind(made_by, name, methods)


# --------------------------------------------------------------------------- values to bytes


class _WholeValuePickler(ValuePickler):
    """Keeps futures as futures, and notes them; takes buffers worth it out of the pickle."""

    def __init__(self, plain: bool = False) -> None:
        self.output = Pieces()
        self.buffers: list[memoryview] = []
        self.futures: list[Reference] = []
        super().__init__(self.output, self._keep_in_band, plain)

    def forget(self) -> None:
        """Let go of all that it met. It refers to itself, so it lives until the collector comes, which may be long."""
        self.forget_memo()
        self.output.pieces.clear()
        self.buffers = []

    def _keep_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:
            return True  # not in one piece: the pickler says so itself, in its own words
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True
        self.buffers.append(view)
        return False

    def reduce_future(self, references: Any, sequence: bool) -> Any:
        if sequence:
            self.futures.extend(references)
            return futures_from, (list(references),)
        self.futures.append(references)
        return future_from, references


# Making a pickler costs as much as pickling a small value ten times over. A plain one that met nothing but small plain
# data is used again; whoever pickles meanwhile (another thread, a value's own code) makes another.
_idle_picklers: list[_WholeValuePickler] = []
IDLE_PICKLERS_LIMIT = 4
REUSED_UP_TO_BYTES = 4096


class _Tries:
    """How many values are still to be pickled without trying a plain pickler; a thread's miscount does no harm."""

    full_left = 0


def dumps(value: object, *, name: str = "value") -> Encoded:
    """Turn a value into bytes; large buffers are not copied, and the futures in it are listed.

    What cannot be pickled is a `SerializationError` that names the member to blame, as a path that begins with `name`.
    """
    if type(value) in _PLAIN:
        data = pickle.dumps(value, 5)
        return Encoded([data], len(data), [])
    if type(value) is not FunctionType:
        if not _Tries.full_left:
            encoded = _encode_plainly(value)
            if encoded is not None:
                return encoded
            _Tries.full_left = FULL_AFTER_FAILURE
        _Tries.full_left -= 1
    pickler = _WholeValuePickler()
    try:
        pickler.write_pickle(value)
        return _encoded(pickler)
    except Exception as error:
        raise serialization_error(value, error, name) from error
    finally:
        pickler.forget()


def _encode_plainly(value: object) -> Encoded | None:
    """Let a plain pickler try; None if that is of no use."""
    try:
        pickler = _idle_picklers.pop()
    except IndexError:
        pickler = _WholeValuePickler(plain=True)
    try:
        pickler.write_pickle(value)
    except Exception:  # the other pickler may be able to, or says what is wrong
        pickler.forget()
        return None
    pieces = pickler.output.pieces
    may_name = len(pieces) > 1 or len(pieces[0]) >= SMALLEST_WITH_CLASS_BYTES
    if may_name and (pickler.is_stale() or names_main(pieces)):
        pickler.forget()
        return None
    encoded = _encoded(pickler)
    reusable = not (pickler.touched or pickler.buffers) and encoded.nbytes <= REUSED_UP_TO_BYTES
    if reusable and len(_idle_picklers) < IDLE_PICKLERS_LIMIT:
        pickler.forget_memo()
        pieces.clear()
        _idle_picklers.append(pickler)
    else:
        pickler.forget()
    return encoded


def _encoded(pickler: _WholeValuePickler) -> Encoded:
    parts: list[bytes | memoryview] = list(pickler.output.pieces)
    nbytes = sum(map(len, parts))
    return _segment(parts, nbytes, pickler) if pickler.buffers else Encoded(parts, nbytes, pickler.futures)


def _segment(pickled: list[bytes | memoryview], pickle_bytes: int, pickler: _WholeValuePickler) -> Encoded:
    end = _HEADER.size + 16 * len(pickler.buffers) + pickle_bytes
    table: list[int] = []
    tail: list[bytes | memoryview] = []
    for view in pickler.buffers:
        padding = -end % ALIGNMENT_BYTES
        if padding:
            tail.append(_ZEROS[:padding])
        table += (end + padding, view.nbytes)
        tail.append(view)
        end += padding + view.nbytes
    header = _HEADER.pack(MAGIC, len(pickler.buffers), pickle_bytes, end) + struct.pack(f"<{len(table)}Q", *table)
    return Encoded([header, *pickled, *tail], end, pickler.futures)


# --------------------------------------------------------------------------- bytes to values


def loads(
    data: Buffer | mmap,
    *,
    inputs: Sequence[Any] = (),
    bind_future: BindFuture | None = None,
) -> Any:
    """Make the value again. Over writable memory nothing large is copied: the value lies in it and keeps it alive.

    `inputs` are the values that the marks of an argument stand for; `bind_future` makes a future from a reference.
    """
    current = _current_load
    before = current.inputs, current.bind_future
    current.inputs, current.bind_future = inputs, bind_future
    try:
        if data[:1] == b"\x80":
            return pickle.loads(data)
        return _load_segment(memoryview(data))
    finally:
        current.inputs, current.bind_future = before


def _load_segment(data: memoryview) -> Any:
    if len(data) < _HEADER.size:
        raise SerializationError(f"{len(data)} bytes are neither a pickle nor a segment: was the value cut off?")
    magic, count, pickle_bytes, nbytes = _HEADER.unpack_from(data)
    pickle_start = _HEADER.size + 16 * count
    if magic != MAGIC or nbytes > len(data) or pickle_start + pickle_bytes > nbytes:
        raise SerializationError(f"a value of {len(data)} bytes is damaged or cut off: its header says {nbytes} bytes")
    table = struct.unpack_from(f"<{2 * count}Q", data, _HEADER.size)
    if data.readonly:
        data = memoryview(bytearray(data))  # what is made from it must be writable, as it was where it came from
    buffers = []
    for offset, length in zip(table[::2], table[1::2], strict=True):
        if offset + length > nbytes:
            raise SerializationError(f"a value of {len(data)} bytes is damaged: a buffer lies beyond its end")
        buffers.append(data[offset : offset + length])
    return pickle.loads(data[pickle_start : pickle_start + pickle_bytes], buffers=buffers)
