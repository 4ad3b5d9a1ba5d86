"""How much memory processes hold that is theirs and no value's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["own_bytes"]

_PROCESSES: Final = Path("/proc")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def own_bytes(process_id: int, processes: Path = _PROCESSES) -> int:
    """What a process holds beside files and shared memory: heaps, stacks, pages changed in private maps.

    Of pages that forks share it has a part, so that the sum over them counts each once. The kernel walks the process's
    page tables for that, about a millisecond for each gigabyte, so this belongs into a thread.
    """
    process = processes / str(process_id)
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
        resident, shared = (process / "statm").read_text().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES
