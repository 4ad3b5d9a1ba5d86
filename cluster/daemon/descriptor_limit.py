"""How many files a worker's processes may have open: an agent needs more than the usual limit, users' code gets that.

The usual limit, 1,024, is for programs that use `select`, which can watch no more. An agent keeps a file open for each
segment that can be used again.
"""

from __future__ import annotations

import contextlib
import resource
from typing import NamedTuple

__all__ = ["DescriptorLimit", "raise_descriptor_limit"]


class DescriptorLimit(NamedTuple):
    """What was allowed, and what may be made of it."""

    soft: int
    hard: int

    def give_to(self, process_id: int) -> None:
        """Let another process, and those that it starts from now on, have this limit."""
        if hasattr(resource, "prlimit"):
            with contextlib.suppress(OSError):  # a sandbox may forbid it; a higher limit does little harm
                resource.prlimit(process_id, resource.RLIMIT_NOFILE, self)


def raise_descriptor_limit() -> DescriptorLimit:
    """Raise the limit of this process as far as it may be; what it was before."""
    before = DescriptorLimit(*resource.getrlimit(resource.RLIMIT_NOFILE))
    if hasattr(resource, "prlimit"):  # else what this process starts could not be given what it was
        resource.setrlimit(resource.RLIMIT_NOFILE, (before.hard, before.hard))
    return before
