"""The descriptors that an agent and a slot share: made without names and passed on, or by names that are opened.

`slot_protocol.py` says what each is for.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
from typing import Final, NamedTuple

from cluster.daemon import slot_protocol

__all__ = ["AgentEnds", "make_named", "make_unnamed", "open_named", "remove_named"]

# Larger than the kernel's 64 KiB, so that a slot seldom waits for its agent to read, nor the agent for the slot.
_PIPE_BYTES: Final = 256 * 1024
_SET_PIPE_SIZE: Final = getattr(fcntl, "F_SETPIPE_SZ", None)
_READ_BY_SLOT: Final = ("claim", "tasks")
_WRITTEN_BY_SLOT: Final = ("reports", "output")
_PAGE: Final = "page"
# Opening one end of a pipe that has a name would else wait until somebody opens the other.
_OPEN_READER: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_WRITER: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_PAGE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class AgentEnds(NamedTuple):
    """The agent's ends, none of which blocks, and what it passes on."""

    claim_read: int
    claim_write: int
    tasks: int
    reports: int
    output: int
    """-1 if another slot of the same process has it."""
    page: mmap.mmap
    segments: socket.socket | None
    kept: tuple[int, ...]
    """Further ends, which nobody uses: they have to stay open."""
    for_slot: tuple[int, ...]
    """The slot's ends in the order of `slot_protocol`, to be passed on and closed; none if they have names."""


def make_unnamed(*, with_output: bool = True) -> AgentEnds:
    """Pipes and a page in memory, whose slot's ends travel as descriptors."""
    claim, claim_write = os.pipe()
    tasks, tasks_write = _wide_pipe()
    reports_read, reports = _wide_pipe()
    output_read, output = _wide_pipe() if with_output else (-1, -1)
    page = os.memfd_create("slot-page")
    os.ftruncate(page, slot_protocol.PAGE_BYTES)
    # The same pipe opened a second time: whether reading blocks belongs to the opening, and the slot's must.
    claim_read = os.open(f"/proc/self/fd/{claim}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    for descriptor in (claim_write, tasks_write, reports_read, output_read)[: 4 if with_output else 3]:
        os.set_blocking(descriptor, False)
    mapped = mmap.mmap(page, slot_protocol.PAGE_BYTES)
    segments, segments_read = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    segments.setblocking(False)
    shared = (output,) if with_output else ()
    for_slot = (claim, tasks, reports, *shared, page, segments_read.detach())
    return AgentEnds(claim_read, claim_write, tasks_write, reports_read, output_read, mapped, segments, (), for_slot)


def make_named(prefix: str, *, with_output: bool = True) -> AgentEnds:
    """Pipes and a page that are files whose paths begin so; the slot's ends are opened by `open_named`."""
    readers, writers = {}, {}
    for name in (*_READ_BY_SLOT, *_written(with_output)):
        os.mkfifo(f"{prefix}-{name}", 0o600)
        # Both ends, so that neither data nor the end of them depend on when the slot opens its own.
        readers[name] = os.open(f"{prefix}-{name}", _OPEN_READER)
        writers[name] = os.open(f"{prefix}-{name}", _OPEN_WRITER)
    page = os.open(f"{prefix}-{_PAGE}", _OPEN_PAGE | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(page, slot_protocol.PAGE_BYTES)
        mapped = mmap.mmap(page, slot_protocol.PAGE_BYTES)
    finally:
        os.close(page)
    kept = (readers["tasks"], *(writers[name] for name in _written(with_output)))
    output = readers.get("output", -1)
    return AgentEnds(
        readers["claim"], writers["claim"], writers["tasks"], readers["reports"], output, mapped, None, kept, (),
    )  # fmt: skip


def open_named(prefix: str, *, with_output: bool = True) -> tuple[int, ...]:
    """The slot's ends of what `make_named` made, in the order of `slot_protocol`. Raises OSError if it is gone."""
    descriptors: list[int] = []
    written = _written(with_output)
    try:
        for names, flags in ((_READ_BY_SLOT, _OPEN_READER), (written, _OPEN_WRITER), ((_PAGE,), _OPEN_PAGE)):
            descriptors += [os.open(f"{prefix}-{name}", flags) for name in names]
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    for descriptor in descriptors:
        os.set_blocking(descriptor, True)
    return tuple(descriptors)


def remove_named(prefix: str) -> None:
    """Remove the files; who has opened them keeps them."""
    for name in (*_READ_BY_SLOT, *_WRITTEN_BY_SLOT, _PAGE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{prefix}-{name}")


def _written(with_output: bool) -> tuple[str, ...]:
    return _WRITTEN_BY_SLOT if with_output else _WRITTEN_BY_SLOT[:1]


def _wide_pipe() -> tuple[int, int]:
    read, write = os.pipe()
    if _SET_PIPE_SIZE is not None:
        with contextlib.suppress(OSError):  # the user's share of pipe memory is used up: smaller ones do as well
            fcntl.fcntl(write, _SET_PIPE_SIZE, _PIPE_BYTES)
    return read, write
