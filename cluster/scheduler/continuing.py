"""Parts that continue the run before them: their tasks become further rows of that run.

A level of a graph comes in parts that are small, so that linking one is a short step (`session/parts.py`). As a run of
its own each part would be granted, reported, woken and released by itself, and a worker's neighbouring rows would lie
in several. So a part whose tasks have inputs becomes part of the run before it, if that run is the same in all that is
kept once for its rows, and the table has room behind it.
"""

from __future__ import annotations

from array import array
from typing import Any

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import NO_PARENT, Run
from cluster.wire import messages

__all__ = ["extend_run", "kept_options"]

LARGEST_RUN_TASKS = 131_072  # their rows are used again when the last of them is forgotten
LARGEST_RUN_INPUTS = 1 << 20
LARGEST_RUN_BYTES = 1 << 20  # of arguments: they are kept until the last task of the run is forgotten
SUBMITTED_TOGETHER_SECONDS = 1.0  # a run knows one time of its submission

_NOT_KEPT = frozenset(("awaited", "parent", "keep", "actor", "actor_call", "coroutine"))
_APART = frozenset(("parent", "actor", "actor_call", "coroutine"))
_NO_OPTIONS: dict[str, Any] = {}


def kept_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that a run keeps. Most have none, and a dict for each would be the largest part of the run."""
    return options if options.keys() - _NOT_KEPT else _NO_OPTIONS


def extend_run(
    ledger: Ledger,
    client: ClientRecord,
    message: messages.Submit,
    offsets: array[int] | None,
    starts: array[int] | None,
) -> Run | None:
    """The run that a part continues, its tasks added to it as rows that are not linked yet; None if there is none."""
    if starts is None or not message.dependencies:
        return None
    run = client.run_with(message.first - 1)
    if run is None or not _is_alike(run, message, ledger.now) or not _has_room(run, message, offsets):
        return None
    sources = client.rows_of(array("q", message.dependencies))
    if -1 in sources:
        return None  # released, or not there yet: a task may take one before it in its part
    if ledger.table.depth_above(sources) != run.depth:
        return None  # what takes values of the run itself is deeper, too
    if not ledger.table.extend(run, message.count):
        return None
    assert run.dependency_starts is not None
    _append_offsets(run.dependency_starts, starts)
    run.dependencies.extend(sources)
    if run.offsets is not None and offsets is not None:
        _append_offsets(run.offsets, offsets)
        if not isinstance(run.blob, bytearray):
            run.blob = bytearray(run.blob)  # which grows without being copied each time
        run.blob += message.blob
    run.untaken_bytes += len(message.blob)
    client.argument_bytes += len(message.blob)
    return run


def _is_alike(run: Run, message: messages.Submit, now: float) -> bool:
    """Whether all that is kept once for the run's rows is the same for the part's."""
    return not (
        run.function is None
        or run.function.identity != message.function_id
        or run.batch != message.batch
        or run.label != message.label
        or run.arguments != message.arguments
        or run.options != kept_options(message.options)
        or run.awaited != bool(message.options.get("awaited"))
        or run.takes_join
        or run.parent != NO_PARENT
        or run.makes_actor
        or run.calls_actor
        or run.is_coroutine
        or not _APART.isdisjoint(message.options)
        or now - run.submitted_at > SUBMITTED_TOGETHER_SECONDS
    )


def _has_room(run: Run, message: messages.Submit, offsets: array[int] | None) -> bool:
    """Whether the run may have so many tasks, inputs and bytes more."""
    if run.offsets is None or offsets is None:
        fits = run.offsets is offsets and run.blob == message.blob
    else:
        fits = len(run.blob) + len(message.blob) <= LARGEST_RUN_BYTES
    return (
        fits
        and run.count + message.count <= LARGEST_RUN_TASKS
        and len(run.dependencies) + len(message.dependencies) // 8 <= LARGEST_RUN_INPUTS
    )


def _append_offsets(offsets: array[int], more: array[int]) -> None:
    """Append offsets that begin at zero to such that end where these begin."""
    base = offsets[-1]
    offsets.extend([offset + base for offset in more[1:]])
