"""Packs the arguments of many calls into one blob, quickly, and notes what they depend on.

One pickler serves all calls: it is made once and its memo cleared between them. A future in an argument, at any depth,
becomes a mark; so does a large argument, which is then a value of its own and travels apart. `add` returns what the
marks of that call stand for, in order.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Sequence
from typing import Any

import cloudpickle

from cluster.errors import ClusterError, SerializationError
from cluster.units import format_bytes
from cluster.wire.encoded import Encoded, Reference
from cluster.wire.payload import Mark, dumps, input_at, inputs_at
from cluster.wire.pickling import FULL_AFTER_FAILURE, MAIN, SMALLEST_WITH_CLASS_BYTES, ValuePickler
from cluster.wire.repeated_arrays import is_repeated
from cluster.wire.unpicklable import SizeProbe, serialization_error

LARGE_BYTES = 65536
"""An argument over this becomes a value of its own."""
RENEWED_AFTER_BYTES = 4096
"""A pickler's memo never shrinks: after a call this large a new pickler costs less than clearing the memo for ever."""
CALL_LIMIT_BYTES = 8 << 20
"""No call's own pickle may be larger: it has to fit a frame."""
NESTING_LIMIT = 20
MANY_FUTURES = 10_000
"""From so many on a call may be too large on account of them."""
MARK_BYTES = 4
"""Of a future in a sequence of futures."""
_NOTHING: tuple[Any, ...] = ()


class ArgumentChanged(ClusterError):
    """A large argument is not any more what it was at the call."""

    def __init__(self, value: object) -> None:
        super().__init__(
            f"a large argument, a {type(value).__qualname__}, was changed after the call and before the task had ended"
        )
        self.remedy = (
            "leave large arguments alone until their task has ended, or have a snapshot taken at the call: "
            "client.options(copy=True).submit(...)"
        )


class LargeArgument:
    """An argument that becomes a value of its own, without futures in it; `nbytes` is what `dumps` makes of it.

    Its bytes are made when they are needed, unless it has a `snapshot` of them. `identity` tells two apart that are not
    the same object with the same content.
    """

    __slots__ = ("checksum", "identity", "nbytes", "snapshot", "value")

    def __init__(self, value: object, encoded: Encoded, copies: bool) -> None:
        self.nbytes = encoded.nbytes
        self.checksum = encoded.checksum()
        self.snapshot = encoded.to_bytes() if copies else None
        self.value = None if copies else value
        self.identity = id(value), self.checksum, copies

    def encode(self) -> Encoded:
        """The bytes as they are now, to be checked; raises ArgumentChanged if they are not as many as at the call."""
        if self.snapshot is not None:
            return Encoded([self.snapshot], self.nbytes, [])
        encoded = dumps(self.value, name="a large argument")
        if encoded.nbytes != self.nbytes:
            raise ArgumentChanged(self.value)
        return encoded

    def check(self, checksum: int) -> None:
        """Raise ArgumentChanged if bytes with this checksum are not those of the call."""
        if checksum != self.checksum:
            raise ArgumentChanged(self.value)

    def __repr__(self) -> str:
        what = type(self.value).__name__ if self.snapshot is None else "snapshot"
        return f"<LargeArgument {what}, {self.nbytes} bytes>"


Noted = Reference | LargeArgument


class _TooLarge(Exception):
    """A call's pickle passes the limit; it is packed again with its large arguments apart."""


class _Blob:
    """The sink of all calls. A call that turns out large is given up at its first large piece, before it is copied."""

    __slots__ = ("data", "limit_bytes", "write")

    def __init__(self) -> None:
        data = self.data = bytearray()
        self.limit_bytes = LARGE_BYTES
        append = data.extend

        def write(piece: Any) -> None:
            # Almost every piece is a whole small call: one comparison, and no attribute looked up.
            try:
                if len(piece) > LARGE_BYTES and len(piece) > self.limit_bytes:
                    raise _TooLarge
            except TypeError:  # a large buffer that stays in the call comes as it is, and has no length
                piece = piece.raw()  # `_keep_in_band` has seen that it is not too large
            append(piece)

        self.write = write


class _ArgumentPickler(ValuePickler):
    """Turns futures into marks, each future of a call into one dependency."""

    def __init__(self, blob: _Blob, plain: bool = False) -> None:
        self.noted: list[Noted] = []
        self.positions: dict[Any, int] = {}
        self.in_band_bytes = 0
        self.limit_bytes = LARGE_BYTES
        self.apart: _Apart | None = None
        super().__init__(blob, self._keep_in_band, plain)

    def _keep_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        self.touched = True
        self.in_band_bytes += buffer.raw().nbytes
        if self.in_band_bytes > self.limit_bytes:
            raise _TooLarge
        return True

    def position_of(self, identity: Any, noted: Noted) -> int:
        position = self.positions.setdefault(identity, len(self.noted))
        if position == len(self.noted):
            self.noted.append(noted)
        return position

    def reduce_future(self, references: Any, sequence: bool) -> Any:
        if not sequence:
            return input_at, (self.position_of(references, references),)
        if not self.noted:  # mostly: the only futures of the call, none of them twice
            self.positions = dict(zip(references, range(len(references)), strict=True))
            if len(self.positions) == len(references):
                self.noted = list(references)
                return inputs_at, (array("I", range(len(references))).tobytes(),)
            self.positions = {}
        positions = [self.position_of(reference, reference) for reference in references]
        return inputs_at, (array("I", positions).tobytes(),)

    def reduce_array(self, array: Any) -> Any:
        if array.nbytes > LARGE_BYTES and not is_repeated(array):
            if self.apart is not None:
                mark = self.apart.mark_of_array(array)
                return super().reduce_array(array) if mark is None else mark.__reduce__()
            if array.nbytes > self.limit_bytes and not array.dtype.hasobject:
                raise _TooLarge
        return super().reduce_array(array)

    def clear(self) -> None:
        self.forget_memo()
        self.noted = []
        self.positions = {}
        self.in_band_bytes = 0
        self.globals_ref.clear()
        self.touched = False


class ArgumentPacker:
    """Packs calls one after the other; `take` hands over what was packed and begins anew. For one thread at a time.

    With `copies`, a snapshot is taken of large arguments in each call.
    """

    __slots__ = (
        "_blob",
        "_clear_memo",
        "_data",
        "_full_left",
        "_large",
        "_pickler",
        "_write_pickle",
        "copies",
        "offsets",
    )

    def __init__(self, copies: bool = False) -> None:
        self.copies = copies
        self._blob = _Blob()
        self._data = self._blob.data
        self.offsets = array("I", (0,))
        # By identity, so that what many calls share is measured once; each entry keeps its object alive.
        self._large: dict[int, LargeArgument] = {}
        self._full_left = 0
        self._pickler = _ArgumentPickler(self._blob)
        self._renew()

    def _renew(self, full: bool = False) -> None:
        self._pickler.clear()  # it refers to itself, and would hold the arguments until garbage is collected
        by_value = cloudpickle.list_registry_pickle_by_value()
        self._pickler = _ArgumentPickler(self._blob, plain=not (full or self._full_left or by_value))
        self._write_pickle = self._pickler.write_pickle
        self._clear_memo = self._pickler.forget_memo

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes packed so far."""
        return len(self._data)

    def blob(self) -> bytes:
        """Give the packed calls; call i lies between offsets i and i + 1."""
        return bytes(self._data)

    def take(self) -> tuple[bytes, bytes]:
        """Hand over (offsets, blob) of what was packed, as `Submit` wants them, and begin anew."""
        taken = self.offsets.tobytes(), bytes(self._data)
        self._data.clear()
        del self.offsets[1:]
        self._large.clear()
        if not (self._full_left or self._pickler.plain):
            self._renew()
        return taken

    def add(self, positional: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Sequence[Noted]:
        """Pack one call's arguments: the tuple alone, or with keywords the pair. Returns what its marks stand for.

        A call that cannot be packed is a `SerializationError`, and leaves the packer as it was before.
        """
        data = self._data
        start = len(data)
        if not start and self._pickler.plain and self._pickler.is_stale():
            self._renew()
        try:
            self._write_pickle(positional if keywords is None else (positional, keywords))
        except _TooLarge:
            del data[start:]
            return self._add_large(positional, keywords)
        except BaseException as error:
            del data[start:]
            if self._pickler.plain and isinstance(error, Exception):
                return self._add_in_full(positional, keywords)
            self._renew()
            if isinstance(error, Exception):
                raise _call_error(positional, keywords, error) from error
            raise
        end = len(data)
        if end - start >= SMALLEST_WITH_CLASS_BYTES:
            if self._full_left:
                self._full_left -= 1
            elif data.find(MAIN, start) >= 0 and self._pickler.plain:
                del data[start:]
                return self._add_in_full(positional, keywords)
        self.offsets.append(end)
        if end - start > RENEWED_AFTER_BYTES:
            noted = self._pickler.noted
            self._renew()
            self._check_call(start, noted)
            return noted
        if self._pickler.touched:
            noted = self._pickler.noted
            self._pickler.clear()
            return noted
        self._clear_memo()
        return _NOTHING

    def _add_in_full(self, positional: tuple[Any, ...], keywords: dict[str, Any] | None) -> Sequence[Noted]:
        """Pack a call for which a plain pickler was of no use; some that follow are likely to be of that kind."""
        self._full_left = FULL_AFTER_FAILURE
        self._renew()
        return self.add(positional, keywords)

    def _add_large(self, positional: tuple[Any, ...], keywords: dict[str, Any] | None) -> Sequence[Noted]:
        self._renew(full=True)
        data, pickler = self._data, self._pickler
        start = len(data)
        self._blob.limit_bytes = pickler.limit_bytes = CALL_LIMIT_BYTES
        try:
            with _Apart(pickler, {} if self.copies else self._large, self.copies) as apart:
                small = tuple(apart.replace(value, f"args[{index}]") for index, value in enumerate(positional))
                named = {key: apart.replace(value, key) for key, value in (keywords or {}).items()}
                pickler.apart = apart
                self._write_pickle(small if keywords is None else (small, named))
            noted = pickler.noted
        except _TooLarge:
            del data[start:]
            raise SerializationError(
                f"the arguments of one call take more than {format_bytes(CALL_LIMIT_BYTES)}, and what is large in them "
                "holds futures and so cannot travel apart. "
                + (_remedy_of_futures(pickler.noted) or "Pass the futures as arguments of their own, beside the data.")
            ) from None
        except BaseException as error:
            del data[start:]
            if isinstance(error, Exception) and not isinstance(error, SerializationError):
                raise _call_error(positional, keywords, error) from error
            raise
        finally:
            self._blob.limit_bytes = LARGE_BYTES
            self._renew()
        self.offsets.append(len(data))
        self._check_call(start, noted)
        return noted

    def _check_call(self, start: int, noted: Sequence[Noted]) -> None:
        """Take the last call back if it does not fit a frame though nothing in it is large."""
        nbytes = len(self._data) - start
        if nbytes > CALL_LIMIT_BYTES:
            del self._data[start:]
            self.offsets.pop()
            raise SerializationError(
                f"the arguments of one call take {format_bytes(nbytes)}, in parts too small to travel apart, and at "
                f"most {format_bytes(CALL_LIMIT_BYTES)} may go together. "
                + (_remedy_of_futures(noted) or "Pass them as one list: it travels as a value.")
            )


class _Apart:
    """Replaces the large arguments of one call by marks; what holds futures is taken apart instead, since those have to
    become values. Of an object that nobody here knows how to take apart, the pickler hands over the large arrays."""

    def __init__(self, pickler: _ArgumentPickler, known: dict[int, LargeArgument], copies: bool) -> None:
        self.pickler = pickler
        self.copies = copies
        self.known = known
        self._probe = SizeProbe()

    def __enter__(self) -> _Apart:
        return self

    def __exit__(self, *exception: object) -> None:
        self._probe.forget()

    def _is_small(self, value: Any) -> bool:
        """Is it small beside what was measured before it? What many arguments share is looked at once."""
        try:
            return self._probe.measure(value) <= LARGE_BYTES
        except Exception:  # told by whoever encodes it, with the name of what is to blame
            return False

    def replace(self, value: Any, name: str, depth: int = 0) -> Any:
        large = self.known.get(id(value))
        if large is None:
            if self._is_small(value):
                return value
            encoded = dumps(value, name=name)
            self._probe.forget()  # this one may travel apart, and then what others share with it counts for them
            if encoded.nbytes <= LARGE_BYTES:
                return value
            if not encoded.futures:
                large = self._note(value, encoded)
        if large is not None:
            return self._mark(large, value)
        if depth > NESTING_LIMIT:
            return value
        if type(value) is dict:
            return {key: self.replace(member, f"{name}[{key!r}]", depth + 1) for key, member in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.replace(it, f"{name}[{index}]", depth + 1) for index, it in enumerate(value))
        return value

    def mark_of_array(self, array: Any) -> Mark | None:
        """What stands for a large array that lies inside such an object; None if it has to stay there."""
        large = self.known.get(id(array))
        if large is None:
            encoded = dumps(array, name="an array")
            if encoded.futures or encoded.nbytes <= LARGE_BYTES:
                return None
            large = self._note(array, encoded)
        return self._mark(large, array)

    def _note(self, value: Any, encoded: Encoded) -> LargeArgument:
        large = self.known[id(value)] = LargeArgument(value, encoded, self.copies)
        return large

    def _mark(self, large: LargeArgument, value: Any) -> Mark:
        return Mark(self.pickler.position_of(("large", id(value)), large))


def _remedy_of_futures(noted: Sequence[Noted]) -> str:
    """What to do about a call that is too large by the futures in it; nothing if others are to blame."""
    futures = sum(not isinstance(one, LargeArgument) for one in noted)
    if futures <= MANY_FUTURES:
        return ""
    return (
        f"There are {futures:,} futures in them: pass the sequence that `map` returned as it is, of which "
        f"{CALL_LIMIT_BYTES // MARK_BYTES:,} fit, or have tasks combine some of them first."
    )


def _call_error(positional: tuple[Any, ...], keywords: dict[str, Any] | None, error: Exception) -> SerializationError:
    for index, value in enumerate(positional):
        try:
            dumps(value, name=f"args[{index}]")
        except SerializationError as named:
            return named
    for key, value in (keywords or {}).items():
        try:
            dumps(value, name=key)
        except SerializationError as named:
            return named
    return serialization_error((positional, keywords), error, "the arguments")
