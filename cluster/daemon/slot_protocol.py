"""What an agent, its starter and its slots say to one another, on one host, between processes of one user.

A slot has five descriptors, made by its agent and passed to it through the starter:

    claim     pipe, agent -> slot    one record of 16 bytes a task: its sequence, little-endian. The slot runs a task by
                                     reading its record; the agent takes back by reading from the same end.
    tasks     pipe, agent -> slot    what the tasks are, as msgpack arrays that begin with a TASKS_… code
    reports   pipe, slot -> agent    what became of them, as msgpack arrays
    output    pipe, slot -> agent    its standard output and error
    page      a shared page          the sequence whose task is to be interrupted (8 bytes), before SIGUSR1 is sent

The records and what the tasks are travel apart because only the records are ever taken back. A slot that has claimed a
task reads `tasks` until it has found it, and drops what comes before: that was taken back.

Reports are told apart by their length: 1, `[0]`: ready for tasks. 2, `[sequence, nbytes]`: wants a segment. Else it is
a task's report as `cluster.worker.events` describes it.

Starter: one message a packet (SOCK_SEQPACKET), msgpack arrays that begin with a STARTER_… code.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Final

__all__ = [
    "CLAIM_BYTES",
    "PACKET_LIMIT_BYTES",
    "PAGE_BYTES",
    "STARTER_EXITED",
    "STARTER_INTERRUPT",
    "STARTER_KILL",
    "STARTER_START",
    "STARTER_STARTED",
    "TASKS_DEFINE",
    "TASKS_GIVE",
    "TASKS_SEGMENT",
    "claim_record",
    "claim_records",
]

CLAIM_BYTES: Final = 16
PAGE_BYTES: Final = 4096
PACKET_LIMIT_BYTES: Final = 65536

# agent -> slot
TASKS_DEFINE: Final = 0  # function_id, name, blob
TASKS_GIVE: Final = 1  # sequence, count, function_id, label, arguments, offsets, blob, input_starts, inputs, values
TASKS_SEGMENT: Final = 2  # sequence, path (empty: no room), reason

# agent -> starter
STARTER_START: Final = 0  # slot; with the descriptors claim, tasks, reports, output, page
STARTER_KILL: Final = 1  # slot
STARTER_INTERRUPT: Final = 2  # slot

# starter -> agent
STARTER_STARTED: Final = 3  # slot, process id
STARTER_EXITED: Final = 4  # slot, exit code or -1, signal or -1, peak memory in bytes

# 16 bytes and not 8, so that a record could carry more one day without a new size; the upper half is zero.
claim_record: Final = struct.Struct("<QQ")


def claim_records(sequence: int, count: int) -> bytes:
    """The records of consecutive tasks."""
    words = array("Q", bytes(CLAIM_BYTES * count))
    words[::2] = array("Q", range(sequence, sequence + count))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
