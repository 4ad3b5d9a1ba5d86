"""A value's bytes, for those who only pass them on: importing this imports no pickler."""

from __future__ import annotations

from typing import Any, NamedTuple

from cluster.wire.checksums import Checksum

Reference = tuple[Any, ...]
"""What stands for a future in a pickle: `(client_id, number, …)`, plain data."""


class Encoded(NamedTuple):
    """A value's bytes in parts that still lie where they were made; write them one after the other."""

    parts: list[bytes | memoryview]
    nbytes: int
    futures: list[Reference]

    def checksum(self) -> int:
        """The checksum of these bytes."""
        checksum = Checksum()
        for part in self.parts:
            checksum.update(part)
        return int(checksum.intdigest())

    def to_bytes(self) -> bytes:
        """Join the parts; for small values."""
        return self.parts[0] if len(self.parts) == 1 and type(self.parts[0]) is bytes else b"".join(self.parts)
