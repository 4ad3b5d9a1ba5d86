"""What is told of a task whose process has ended."""

from __future__ import annotations

from typing import Any

from cluster.units import format_bytes
from cluster.worker.events import SlotExited
from cluster.worker.slots import MemoryEnd

__all__ = ["cause_of", "details_of_death"]


def cause_of(end: SlotExited) -> str:
    """How the process ended.

    >>> cause_of(SlotExited(0, [], -1, 9, "", 0))
    'signal 9'
    """
    return f"signal {end.signal}" if end.signal >= 0 else f"exit status {end.exit_code}"


def details_of_death(
    end: SlotExited, kind: str, lines: str, *, waiting: bool, beside: int, memory: MemoryEnd | None = None
) -> dict[str, Any]:
    """The details of a `RunFailed`. `kind`: "died", or why the task was to be stopped; `lines`: the last it wrote;
    `waiting`: another task ran inside it; `beside`: so many others ran in that process; `memory`: the worker ended
    it because it held too much."""
    if memory is not None:
        message = (
            f"its process held {format_bytes(memory.nbytes)}, and the worker in all {format_bytes(memory.used_bytes)}, "
            f"which is above its memory limit of {format_bytes(memory.limit_bytes)}; nothing else could be freed, so "
            "the worker ended it"
        )
    elif kind == "died" and waiting:
        message = f"the process in which the task waited ended with {cause_of(end)}, while a child of it ran there"
    elif kind == "died":
        others = f" and {beside} other{'' if beside == 1 else 's'} at once" if beside else ""
        message = f"the process that ran the task{others} ended with {cause_of(end)}"
        if end.out_of_memory:
            message += ": the kernel ended it because memory had run out"
    else:
        message = "the task did not stop when it was asked to, so its process was ended"
    details = {
        "message": message,
        "signal": end.signal,
        "exit_code": end.exit_code,
        "lines": lines,
        "peak_memory_bytes": end.peak_memory_bytes,
        "out_of_memory_by": "kernel" if end.out_of_memory else "",
    }
    if memory is not None:
        details |= {
            "out_of_memory_by": "worker",
            "peak_memory_bytes": max(end.peak_memory_bytes, memory.nbytes),
            "needed_bytes": memory.nbytes // (1 + beside),
            "used_bytes": memory.used_bytes,
            "memory_limit_bytes": memory.limit_bytes,
        }
    if waiting:
        details["waiting"] = True
    return details
