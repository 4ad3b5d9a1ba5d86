"""A value's bytes, for those who only pass them on: importing this imports no pickler."""

from __future__ import annotations

from typing import Any, NamedTuple
from zlib import crc32

Reference = tuple[Any, ...]
"""What stands for a future in a pickle: `(client_id, number, …)`, plain data."""


class Encoded(NamedTuple):
    """A value's bytes in parts that still lie where they were made; write them one after the other."""

    parts: list[bytes | memoryview]
    nbytes: int
    futures: list[Reference]

    def checksum(self) -> int:
        """A number that other bytes hardly ever have; it takes about half a second a GiB."""
        found = 0
        for part in self.parts:
            found = crc32(part, found)
        return found

    def to_bytes(self) -> bytes:
        """Join the parts; for small values."""
        return self.parts[0] if len(self.parts) == 1 and type(self.parts[0]) is bytes else b"".join(self.parts)
