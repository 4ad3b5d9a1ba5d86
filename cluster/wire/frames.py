"""Messages as frames: a four byte little-endian length, then a msgpack array of the message's code and its fields.

`encode` makes one frame. A `Decoder` takes whatever a socket gave and returns the messages that are complete; it trusts
nothing: lengths are checked before memory is taken, and every field against the type that its message declares.

Raw bytes: a `ValueStream`, a `ValuePiece`, or a `PutValue` without data, announces `nbytes` raw bytes right behind its
frame. The decoder stops there (`raw_bytes_expected` is above 0) until they have been taken with `take_raw` (those that
were fed already) and counted by `raw_received` (those that the caller read from the socket straight into their target).
After that, `feed(b"")` goes on with what was fed behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, get_args, get_origin, get_type_hints

import msgpack

from cluster.errors import ProtocolError
from cluster.wire import messages

__all__ = ["FRAME_LIMIT_BYTES", "PREFIX_BYTES", "Decoder", "Message", "encode"]

FRAME_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""Among members of a cluster; a peer that has proved nothing yet is listened to for 4 KiB (`handshake.py`). Nearly all
frames are far below 1 MiB: the grant of a task that takes two million values is the one of 120 MB."""
PREFIX_BYTES: Final = 4

# A named tuple of messages.py. What such a tuple is made of, mypy cannot say for all of them at once.
Message: TypeAlias = Any

_Check: TypeAlias = Callable[[Any], bool]

_prefix = struct.Struct("<I")
_CODES: Final[dict[type[Any], int]] = {kind: code for code, kind in enumerate(messages.CLASSES)}


def encode(message: Message) -> bytes:
    """Return the frame of one message; raises ProtocolError if it is too large or holds what msgpack cannot carry."""
    code = _CODES.get(message.__class__)
    if code is None:
        raise ProtocolError(f"{type(message).__name__} is no message; messages.py lists them all")
    try:
        body: bytes = msgpack.Packer().pack((code, *message))
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{type(message).__name__} cannot be encoded: {error}") from error
    if len(body) > FRAME_LIMIT_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} takes {len(body)} bytes, more than the {FRAME_LIMIT_BYTES} of a frame; split it"
        )
    return _prefix.pack(len(body)) + body


class _Shape:
    """What the fields of one message class must look like, worked out once.

    `types` holds the exact types, compared with those of a whole frame in one step. What a list or a dictionary may
    hold is in `inner`, by position. Where the types differ, `repair` decides field by field: an integer is good for a
    float, anything for an `Any`.
    """

    __slots__ = ("code", "inner", "kind", "types")

    def __init__(self, code: int, kind: type[Any]) -> None:
        hints = get_type_hints(kind)
        annotations = [hints[field] for field in kind._fields]
        self.code = code
        self.kind = kind
        # The code comes first in a frame and in `types`, so that the whole list can be compared without a copy.
        self.types = [int, *(get_origin(annotation) or annotation for annotation in annotations)]
        self.inner = [(at, check) for at, one in enumerate(annotations, 1) if (check := _check_of_items(one))]

    def repair(self, frame: list[Any]) -> None:
        """Make the frame's fields fit their types, or raise ProtocolError naming the first that cannot."""
        name = self.kind.__name__
        if len(frame) != len(self.types):
            raise ProtocolError(f"{name} has {len(self.types) - 1} fields, but {len(frame) - 1} came")
        for at, (value, wanted) in enumerate(zip(frame, self.types, strict=True)):
            if wanted is Any or type(value) is wanted:
                continue
            if wanted is float and type(value) is int:
                try:
                    frame[at] = float(value)
                except OverflowError as error:
                    raise ProtocolError(f"{name}.{self.kind._fields[at - 1]} is too large a number") from error
                continue
            raise ProtocolError(
                f"{name}.{self.kind._fields[at - 1]} must be {wanted.__name__}, but {type(value).__name__} came"
            )


def _check_of_items(annotation: Any) -> _Check | None:
    """Return the check of what a list or a dictionary holds; None where there is nothing to check."""
    origin, items = get_origin(annotation), get_args(annotation)
    if origin is list and items[0] is not Any:
        return _only(items[0])
    if origin is dict:
        keys = _only(items[0])
        values = _only(items[1]) if items[1] is not Any else None
        if values is None:
            return keys
        check_values: _Check = values
        return lambda value: keys(value) and check_values(value.values())
    return None


def _only(kind: type[Any]) -> _Check:
    allowed = {float, int} if kind is float else {kind}

    def check(items: Iterable[Any]) -> bool:
        # In C for the whole list: a run of many thousand numbers costs some 20 ns each.
        return allowed.issuperset(map(type, items))

    return check


_SHAPES: Final = tuple(_Shape(code, kind) for code, kind in enumerate(messages.CLASSES))
_new_tuple = tuple.__new__


def _decode_body(body: bytes | bytearray | memoryview) -> Message:
    try:
        frame = msgpack.unpackb(body)
    except Exception as error:  # msgpack raises ValueError, its own exceptions and UnicodeDecodeError alike
        raise ProtocolError(f"a frame of {len(body)} bytes is not msgpack: {error}") from error
    if type(frame) is not list or not frame or type(frame[0]) is not int:
        raise ProtocolError(f"a frame of {len(body)} bytes is not an array that begins with a message's code")
    code = frame[0]
    if not 0 <= code < len(_SHAPES):
        raise ProtocolError(f"no message has the code {code}; the peer may run a newer version")
    shape = _SHAPES[code]
    if list(map(type, frame)) != shape.types:
        shape.repair(frame)
    for at, check in shape.inner:
        if frame[at] and not check(frame[at]):
            field = shape.kind._fields[at - 1]
            raise ProtocolError(f"{shape.kind.__name__}.{field} holds something else than {field} may hold")
    del frame[0]
    return _new_tuple(shape.kind, frame)


class Decoder:
    """Turns what a socket gave into messages. After it raised ProtocolError the connection must be closed."""

    __slots__ = ("_limit_bytes", "_pending", "raw_bytes_expected")

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._pending = bytearray()
        self.raw_bytes_expected = 0

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take bytes in and return the messages that are complete; raises ProtocolError on the first bad frame.

        The data may be overwritten after the call: whatever is kept is copied.
        """
        pending = self._pending
        if not pending and not self.raw_bytes_expected:
            # The usual case: whole frames at once, decoded where they lie.
            view = memoryview(data)
            found, used = self._decode(view)
            if used != len(view):
                pending += view[used:]
            return found
        pending += data
        if self.raw_bytes_expected:
            return []
        with memoryview(pending) as view:
            found, used = self._decode(view)
        if used:
            del pending[:used]
        return found

    def _decode(self, view: memoryview) -> tuple[list[Message], int]:
        found: list[Message] = []
        at, end = 0, len(view)
        while end - at >= PREFIX_BYTES:
            length: int = _prefix.unpack_from(view, at)[0]
            if not 0 < length <= self._limit_bytes:
                raise ProtocolError(f"a frame says that it has {length} bytes; 1 to {self._limit_bytes} are allowed")
            body = at + PREFIX_BYTES
            if end - body < length:
                break
            at = body + length
            # Released at once, also when a frame is bad: the pending bytes cannot be resized under a view.
            with view[body:at] as piece:
                message = _decode_body(piece)
            found.append(message)
            if isinstance(message, (messages.ValueStream, messages.ValuePiece, messages.PutValue)):
                self.raw_bytes_expected = _raw_bytes_behind(message)
                if self.raw_bytes_expected:
                    break
        return found, at

    @property
    def pending_bytes(self) -> int:
        """How many bytes were fed but belong to no message returned so far."""
        return len(self._pending)

    def take_raw(self, limit_bytes: int) -> bytes:
        """Hand over at most so many of the raw bytes that were fed already, and count them as taken."""
        count = min(limit_bytes, self.raw_bytes_expected, len(self._pending))
        taken = bytes(memoryview(self._pending)[:count])
        del self._pending[:count]
        self.raw_bytes_expected -= count
        return taken

    def raw_received(self, nbytes: int) -> None:
        """Count raw bytes that were read from the socket without passing through `feed`."""
        if not 0 <= nbytes <= self.raw_bytes_expected or self._pending:
            raise ProtocolError(f"{nbytes} raw bytes were counted where {self.raw_bytes_expected} were to come")
        self.raw_bytes_expected -= nbytes


def _raw_bytes_behind(message: messages.ValueStream | messages.ValuePiece | messages.PutValue) -> int:
    if message.nbytes < 0:
        raise ProtocolError(f"{type(message).__name__}.nbytes is {message.nbytes}; a size cannot be negative")
    if isinstance(message, messages.PutValue) and message.data:
        return 0
    return message.nbytes
