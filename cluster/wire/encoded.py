"""A value's bytes, for those who only pass them on: importing this imports no pickler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

_new_digest: Any = None
with contextlib.suppress(ImportError):  # where there is no wheel of it
    from xxhash import xxh3_64 as _new_digest

Reference = tuple[Any, ...]
"""What stands for a future in a pickle: `(client_id, number, …)`, plain data."""


class Checksum:
    """A number that other bytes hardly ever have; xxh3 takes half the time of a memory copy, zlib's crc32 five times
    that."""

    __slots__ = ("_digest", "_found", "update")

    def __init__(self) -> None:
        self._found = 0
        self._digest = None if _new_digest is None else _new_digest()
        self.update: Callable[[bytes | memoryview], object] = self._update if not self._digest else self._digest.update
        """Go on with these bytes."""

    def _update(self, data: bytes | memoryview) -> None:
        self._found = crc32(data, self._found)

    @property
    def value(self) -> int:
        """The number of the bytes so far."""
        return self._found if self._digest is None else int(self._digest.intdigest())


class Encoded(NamedTuple):
    """A value's bytes in parts that still lie where they were made; write them one after the other."""

    parts: list[bytes | memoryview]
    nbytes: int
    futures: list[Reference]

    def checksum(self) -> int:
        """The number of these bytes, see `Checksum`."""
        checksum = Checksum()
        for part in self.parts:
            checksum.update(part)
        return checksum.value

    def to_bytes(self) -> bytes:
        """Join the parts; for small values."""
        return self.parts[0] if len(self.parts) == 1 and type(self.parts[0]) is bytes else b"".join(self.parts)
