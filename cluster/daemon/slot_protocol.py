"""What an agent, its starter and its slots say to one another, on one host, between processes of one user.

A slot has these descriptors, made by its agent and passed to it through the starter (or, without the fast paths, made
under names in the agent's own directory, where the starter opens them):

    claim     pipe, agent -> slot    one record of 16 bytes a task: its sequence, little-endian. The slot runs a task by
                                     reading its record; the agent takes back by reading from the same end (without
                                     the fast paths never while the slot lives).
    tasks     pipe, agent -> slot    what the tasks are, as msgpack arrays that begin with a TASKS_… code
    reports   pipe, slot -> agent    what became of them, as msgpack arrays
    output    pipe, slot -> agent    its standard output and error
    page      a shared page          a few bytes that either side looks at without a system call; see below
    segments  socket, agent -> slot  descriptors of segments, each sent before the TASKS_SEGMENT that tells of it; not
                                     there without the fast paths

The records and what the tasks are travel apart because only the records are ever taken back. A slot that has claimed a
task reads `tasks` until it has found it, and drops what comes before: that was taken back.

The page, by offset:

    0    the sequence whose task is to be interrupted (8 bytes), written before SIGUSR1 is sent
    8    1: the slot marks the output of every task, since something writes past Python's streams (agent -> slot)
    9    1: a task that wrote or reported progress has ended; read its output before its report (slot -> agent)
    10   1: the running task reports progress (slot -> agent)
    11   1: the slot is to give back memory when it has ended its task (agent -> slot); SIGUSR1 if it runs none
    16   the token of the marks in the output pipe (16 bytes); see `cluster.wire.task_output`
    32   a counter, odd while the following is being written (8 bytes), then the progress that a task has reported:
         its attempt, row and fraction (8 bytes each), the message's length (2 bytes), the message
    2048 the sequence whose thread is to be left (8 bytes), written before SIGUSR1 is sent

A process whose slots are threads has the descriptors of each, but one output for all; the marks in it say whose it is.

Reports are told apart by their length: 1, `[0]`: ready for tasks. 2, `[sequence, nbytes]`: wants a segment, or with a
REPORT_… code in the place of the bytes: waits for other tasks, wants to go on, stops a coroutine, or has given back
memory (and the bytes that it holds in the place of the sequence). Else it is a
task's report as `cluster.worker.events` describes it.

Starter: msgpack arrays that begin with a STARTER_… code (`starter_channel.py`).
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Final

__all__ = [
    "CLAIM_BYTES",
    "LEAVE_OFFSET",
    "MARK_ALL_OFFSET",
    "MOST_THREADS",
    "PAGE_BYTES",
    "PRINTED_OFFSET",
    "PROGRESSING_OFFSET",
    "PROGRESS_COUNTER_OFFSET",
    "PROGRESS_OFFSET",
    "PROGRESS_TEXT_BYTES",
    "REPORT_STOPPING",
    "REPORT_TRIMMED",
    "REPORT_WAITS",
    "REPORT_WOKEN",
    "STARTER_CLUSTER",
    "STARTER_EXITED",
    "STARTER_INTERRUPT",
    "STARTER_KILL",
    "STARTER_START",
    "STARTER_STARTED",
    "TASKS_ACTOR",
    "TASKS_COROUTINES",
    "TASKS_DEFINE",
    "TASKS_FORGET_SEGMENT",
    "TASKS_GIVE",
    "TASKS_GO_ON",
    "TASKS_SEGMENT",
    "TASKS_STOP",
    "TASKS_WAIT_NOTED",
    "TOKEN_OFFSET",
    "TRIM_OFFSET",
    "claim_record",
    "claim_records",
    "progress_record",
]

CLAIM_BYTES: Final = 16
PAGE_BYTES: Final = 4096
MARK_ALL_OFFSET: Final = 8
PRINTED_OFFSET: Final = 9
PROGRESSING_OFFSET: Final = 10
TRIM_OFFSET: Final = 11
TOKEN_OFFSET: Final = 16
PROGRESS_COUNTER_OFFSET: Final = 32
PROGRESS_OFFSET: Final = 40
PROGRESS_TEXT_BYTES: Final = 1000
LEAVE_OFFSET: Final = 2048
MOST_THREADS: Final = 50
"""Slots of one process: so many sets of descriptors go with one packet."""

# agent -> slot
TASKS_DEFINE: Final = 0  # function_id, name, blob
# sequence, count, function_id, label, arguments, offsets, blob, input_starts, inputs, values, context
TASKS_GIVE: Final = 1
TASKS_SEGMENT: Final = 2  # sequence, path (empty: no room), reason, number of a map to keep, whether it has to be made
TASKS_FORGET_SEGMENT: Final = 14  # number of a map that was kept
TASKS_WAIT_NOTED: Final = 3  # sequence: what is claimed from now on runs inside this task, which waits
TASKS_ACTOR: Final = 8  # reference of a future: what the first task makes is kept in this process, as an actor
TASKS_GO_ON: Final = 4  # sequence, whether it is interrupted
TASKS_COROUTINES: Final = 9  # this process runs coroutines, many at once; comes before the first task
TASKS_STOP: Final = 10  # sequence of a coroutine

# slot -> agent, in the place of a segment's bytes
REPORT_WAITS: Final = -1
REPORT_WOKEN: Final = -2
REPORT_STOPPING: Final = -3
REPORT_TRIMMED: Final = -4

# agent -> starter
# slot, path prefixes of it and of the further threads of its process (none: with the descriptors claim, tasks, reports,
# output, page, and without the output for each further thread), how many of these
STARTER_START: Final = 0
STARTER_KILL: Final = 1  # slot
STARTER_INTERRUPT: Final = 2  # slot
STARTER_CLUSTER: Final = 5  # the scheduler's address, and the secret; the first message

# starter -> agent
STARTER_STARTED: Final = 3  # slot, process id
STARTER_EXITED: Final = 4  # slot, exit code or -1, signal or -1, peak memory in bytes

# 16 bytes and not 8, so that a record could carry more one day without a new size; the upper half is zero.
claim_record: Final = struct.Struct("<QQ")
progress_record: Final = struct.Struct("<QQdH")


def claim_records(sequence: int, count: int) -> bytes:
    """The records of consecutive tasks."""
    words = array("Q", bytes(CLAIM_BYTES * count))
    words[::2] = array("Q", range(sequence, sequence + count))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
