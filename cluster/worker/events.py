"""What an agent's machine is told (events) and what it asks for (effects), as named tuples.

`Agent.handle(now, event)` takes one event and returns a list of effects, to be performed in order. Nothing here does
anything by itself, so the daemon and the simulator drive the same class.

What a shell has to keep to
---------------------------
- **Slots** are numbered for the agent's life, from 0; a process that dies is replaced under the same number. The
  machine numbers the tasks that it gives to a slot (`sequence`), upwards and never twice, also across processes.
- **The claim.** `GiveTasks` puts one record a task into the slot's pipe, in order. The slot takes the oldest record,
  runs it, reports it, and only then takes the next. `TakeBack` takes out all records that are still there, at that
  moment, whatever the slot is doing, and is always answered by `TookBack` with exactly those sequences in their order
  (an empty list too). A record has one owner: who took it out.
  A shell without such a pipe says so (`one_task_at_a_time`): a slot then gets a task when it has none, and there is no
  `TakeBack`.
- **Death.** When a slot's process has ended, the shell first hands in all that the slot had reported (`SlotReports`),
  and then `SlotExited` with what was still in the pipe. So what remains was claimed and not reported. That answers a
  `TakeBack`, too, that was asked for and not answered yet.
- **Reports** come in the order of the sequences. A report is a list, one of:
  `[sequence, run_seconds, data]`: a value of at most 64 KiB, as bytes;
  `[sequence, run_seconds, data, contains]`: … with futures inside it, flat `[client_id, number, …]`;
  `[sequence, run_seconds, "segment", nbytes, contains]`: a value in the segment that the slot was given for it;
  `[sequence, run_seconds, kind, error, details]`: a failure as in `RunFailed`, or with kind "interrupted" one that was
  stopped by an `Interrupt`.
- **Waiting.** A task that waits for others says so (`SlotWaits`), and its slot then claims nothing before `NoteWait`,
  which comes after all that was in the pipe was taken back. From there on the slot runs what it claims *inside* the
  task that waits, reports it, and looks whether the wait is over; then it says so (`SlotWoken`) and claims nothing
  before `GoOn`. `GoOn` may come unasked, to interrupt a task that waits. Slots numbered beyond those that an agent has
  are further processes, for tasks that run while others wait (`cluster.worker.nesting`), and
  from `FIRST_ACTOR` on those of actors (`cluster.worker.actors`), which are not replaced.
- **Coroutines.** From `FIRST_COROUTINES` on (`cluster.worker.coroutines`) processes run many tasks at once, when told
  so (`BecomeCoroutines`): they claim whatever is in the pipe, and report in any order. A task there is stopped by
  `StopCoroutine`; as soon as its event loop has taken note of that, the process says so (`CoroutineStopping`).
- **Threads.** A process may have several slots, each in a thread of its own with pipes of its own
  (`cluster.worker.threads`). It ends as one. What it writes comes under the number of the first slot.
- A slot asks for a segment at most once a task (`SegmentAsked`), and waits for the `AnswerSegment`.
- `next_wakeup` is the time at which the machine wants a `Tick` if nothing else happens before; None: never.

Values have a key, `attempt << 32 | row`. A value is held as bytes (or among others in a pack on disk), or as a segment,
of which the machine knows the path (a name that it never looks into) and the size.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from cluster.wire.task_output import Piece
from cluster.worker.disk_events import CheckSpilled as CheckSpilled
from cluster.worker.disk_events import DiskEvent
from cluster.worker.disk_events import PackFailed as PackFailed
from cluster.worker.disk_events import PackRead as PackRead
from cluster.worker.disk_events import PackWritten as PackWritten
from cluster.worker.disk_events import ReadPack as ReadPack
from cluster.worker.disk_events import RemovePacks as RemovePacks
from cluster.worker.disk_events import RewritePacks as RewritePacks
from cluster.worker.disk_events import Spilled as Spilled
from cluster.worker.disk_events import SpilledChecked as SpilledChecked
from cluster.worker.disk_events import SpillFailed as SpillFailed
from cluster.worker.disk_events import SpillSegment as SpillSegment
from cluster.worker.disk_events import WritePack as WritePack

# --------------------------------------------------------------------------- events


class Started(NamedTuple):
    """The connection to the scheduler stands: join, start the slots."""


class FromScheduler(NamedTuple):
    """A message of the scheduler."""

    message: Any


class FromPeer(NamedTuple):
    """GetValues, GetPiece, or a PutValue that carries its data; `peer` is the shell's number for the connection."""

    peer: int
    message: Any


class PeerSent(NamedTuple):
    """All that a peer was given before the NoteSent has left; or the peer has gone."""

    peer: int
    gone: bool


class FileGone(NamedTuple):
    """A peer was to be sent a value from this file, and it is not there."""

    row: int
    attempt: int
    path: str


class ValuePut(NamedTuple):
    """A pushed value whose bytes are all here, in a segment that now belongs to the machine."""

    peer: int
    row: int
    attempt: int
    nbytes: int
    path: str


class RoomAsked(NamedTuple):
    """A value over 1 MiB is about to come, from the peer that pushes it or (-1) because it is fetched, and needs a
    segment; `incoming` is the shell's number for it. Answered by AnswerRoom, perhaps after long."""

    incoming: int
    peer: int
    row: int
    attempt: int
    nbytes: int


class RoomReturned(NamedTuple):
    """… and it will not come: the segment that was given is not needed, or (an empty path) none is to be given."""

    incoming: int
    path: str


class SlotReady(NamedTuple):
    """The slot's process has started and waits for its first task."""

    slot: int


class SlotReports(NamedTuple):
    """Tasks that the slot has ended, in order (see above for what a report looks like)."""

    slot: int
    reports: list[Any]


class SlotWaits(NamedTuple):
    """The slot's task waits for other tasks; answered by NoteWait, or by GoOn if it is to end."""

    slot: int
    sequence: int


class SlotWoken(NamedTuple):
    """What the slot's task waited for has come; answered by GoOn when it may go on."""

    slot: int
    sequence: int


class SlotTrimmed(NamedTuple):
    """The slot has given back what it could, between two tasks, and holds so much that is its own."""

    slot: int
    nbytes: int


class CoroutineStopping(NamedTuple):
    """The coroutine was told to stop, and its event loop is not stuck; its report follows when it likes."""

    slot: int
    sequence: int


class SegmentAsked(NamedTuple):
    """The slot needs a segment for the value of this task."""

    slot: int
    sequence: int
    nbytes: int


class TookBack(NamedTuple):
    """The records that were taken out of a slot's pipe, oldest first."""

    slot: int
    sequences: list[int]


class SlotExited(NamedTuple):
    """The slot's process has ended; one of `exit_code` and `signal` is -1. `last_lines`: the last that it wrote when it
    ran no task. `out_of_memory`: a signal ended it while the kernel was ending processes for want of memory.

    `unclaimed` are the records taken out of its pipe, oldest first, as in TookBack; `unclaimed_beside` those of each
    further slot of that process, in order."""

    slot: int
    unclaimed: list[int]
    exit_code: int
    signal: int
    last_lines: str
    peak_memory_bytes: int
    out_of_memory: bool = False
    unclaimed_beside: tuple[list[int], ...] = ()


class SlotWrote(NamedTuple):
    """What a slot's tasks wrote, in order; `seconds` is the time since the epoch at which it was read.

    It comes before the SlotReports of the task that wrote it."""

    slot: int
    pieces: list[Piece]
    seconds: float


class ProgressMade(NamedTuple):
    """A task says how far it is."""

    attempt: int
    row: int
    fraction: float
    message: str


class SegmentCreated(NamedTuple):
    """The segment that `CreateSegment` asked for; if there were data, they are in it."""

    request: int
    path: str


class SegmentFailed(NamedTuple):
    """There is no room for that segment, neither in memory nor on disk."""

    request: int
    reason: str


class ValueFetched(NamedTuple):
    """A value from another agent: its bytes, or (`data` empty) in a segment that now belongs to the machine."""

    address: str
    row: int
    attempt: int
    nbytes: int
    data: bytes
    path: str
    is_link: bool = False
    """Whether the segment is a link to the other agent's: nothing was moved."""


class ValueNotFetched(NamedTuple):
    """That agent has not got it, or cannot be reached, or the transfer failed. Of a large value the shell keeps what
    has come until the value is fetched from another, or given up (GiveUpFetch).

    `kind`: "lost"; "damaged" if what came had another checksum than was said; "full" if there is no room for it here.
    """

    address: str
    row: int
    attempt: int
    reason: str
    kind: str = "lost"


class ErrandReported(NamedTuple):
    """The function of a `StartErrand` has ended; the report is like a slot's."""

    request: int
    report: list[Any]


class ErrandEnded(NamedTuple):
    """The process of a `StartErrand` has ended, for this cause; the last lines that it wrote."""

    request: int
    cause: str
    last_lines: str


class ModuleStored(NamedTuple):
    """What `StoreModule` asked for is done, or (with an error) cannot be."""

    request: int
    error: str


class Measured(NamedTuple):
    """What was measured of the worker's memory, by name (`Memory.measured`); and what each slot's process holds that is
    its own."""

    figures: dict[str, int]
    slots: dict[int, int]


class DrainAsked(NamedTuple):
    """Somebody wants this worker to end (SIGTERM): take nothing more, let running tasks end, then close."""


class EndAsked(NamedTuple):
    """… at once."""


class Tick(NamedTuple):
    """`next_wakeup` has come."""


Event: TypeAlias = (
    Started | FromScheduler | FromPeer | ValuePut | SlotReady | SlotReports | SlotWaits | SlotWoken | SegmentAsked
    | CoroutineStopping | SlotTrimmed
    | TookBack | SlotExited | SlotWrote | ProgressMade | SegmentCreated | SegmentFailed | ValueFetched | ValueNotFetched
    | DiskEvent | PeerSent | FileGone | RoomAsked | RoomReturned
    | ErrandReported | ErrandEnded | ModuleStored | Measured | DrainAsked | EndAsked | Tick
)  # fmt: skip

# --------------------------------------------------------------------------- effects


RESTART_STATUS: Final = 75
"""The exit status of a worker that is to be started again: "try again", in sysexits.h."""


class ToScheduler(NamedTuple):
    """Send this message to the scheduler."""

    message: Any


class ToPeer(NamedTuple):
    """Send this message to a peer; nothing if it has gone."""

    peer: int
    message: Any


class NoteSent(NamedTuple):
    """Say (PeerSent) when all that the peer was given before this has left, so that it is not given more than it
    takes."""

    peer: int


class ServeSegment(NamedTuple):
    """Send a value that lies in a segment: as Value if it is at most 1 MiB, else as ValueStream and the raw bytes.

    It keeps its place among the `ToPeer` of the same peer. A segment that is removed once the transfer has begun is
    still sent to its end."""

    peer: int
    request: int
    row: int
    attempt: int
    nbytes: int
    path: str


class StartSlot(NamedTuple):
    """Start a process for this slot, and for the following ones if it has more threads than one.

    SlotReady follows for each of them, or one SlotExited."""

    slot: int
    threads: int


class BecomeActor(NamedTuple):
    """What the first task in this process makes is kept there as an actor; `reference`: of the future of that task."""

    slot: int
    reference: list[Any]


class BecomeCoroutines(NamedTuple):
    """This process runs coroutines, many at once."""

    slot: int


class StopCoroutine(NamedTuple):
    """Cancel a coroutine; CoroutineStopping follows, and its report."""

    slot: int
    sequence: int


class NoteWait(NamedTuple):
    """From now on, what is in the slot's pipe is to be run inside the task that waits."""

    slot: int
    sequence: int


class GoOn(NamedTuple):
    """The slot's task that waited goes on; `interrupted`: it is to be stopped."""

    slot: int
    sequence: int
    interrupted: bool


class DefineInSlot(NamedTuple):
    """Hand a function's bytes to the slot; comes before the first tasks that name it."""

    slot: int
    function_id: bytes
    name: str
    blob: bytes


class GiveTasks(NamedTuple):
    """Put `tasks` records, `sequence` and up, into the slot's pipe, and hand it what the tasks need.

    `arguments`, `offsets` and `blob` as in Grant, except that the offsets (if any) count from `offsets[0]`.
    `input_starts` and `inputs` (packed 'I'; both empty without inputs, the starts alone when all tasks take all of the
    inputs) index `values`, whose items are a value's bytes, or `[path, nbytes]`. `context` is what a running task may
    be told of itself: its attempt, the rows (the first one's number if they follow one another, else packed 'Q'), the
    grant's `origin`, its limit in seconds or 0; an errand has none."""

    slot: int
    sequence: int
    tasks: int
    function_id: bytes
    label: str
    arguments: int
    offsets: bytes
    blob: bytes
    input_starts: bytes
    inputs: bytes
    values: list[Any]
    context: list[Any]


class TakeBack(NamedTuple):
    """Take all unclaimed records out of the slot's pipe; answered by TookBack."""

    slot: int


class Interrupt(NamedTuple):
    """Raise inside the slot's task, if it still runs that sequence."""

    slot: int
    sequence: int


class TrimSlot(NamedTuple):
    """Have the slot give back memory as soon as it runs no task; SlotTrimmed follows, unless its process ends.

    `idle`: it runs none, so it has to be woken. A task is not disturbed: a signal would cut its system calls short."""

    slot: int
    idle: bool


class LeaveThread(NamedTuple):
    """Report the slot's task as interrupted in its place, if it still runs that sequence, and let another thread be
    the slot from then on."""

    slot: int
    sequence: int


class KillSlot(NamedTuple):
    """End the process whose (first) slot this is, and all that it started; SlotExited follows."""

    slot: int


class AnswerSegment(NamedTuple):
    """The answer to SegmentAsked. An empty path: there is no room, for this reason."""

    slot: int
    sequence: int
    path: str
    reason: str


class CreateSegment(NamedTuple):
    """Reserve a segment; write `data` into it unless they are empty. Answered by SegmentCreated or SegmentFailed.

    `slot` is the one that will write to it, -1 if none will: it may have one mapped that is free.
    `on_disk`: it may not lie in memory. If it may, and memory is full all the same, it lies on disk too.
    """

    request: int
    nbytes: int
    data: bytes
    slot: int = -1
    on_disk: bool = False


class AnswerRoom(NamedTuple):
    """The answer to RoomAsked. An empty path: the value shall not come, for this reason; who pushes it is told."""

    incoming: int
    path: str
    reason: str


class ShrinkSegments(NamedTuple):
    """Give so much memory of segments back that are kept to be used again, if there is so much."""

    nbytes: int


class RemoveSegments(NamedTuple):
    """These segments are needed no more."""

    paths: list[str]


class FetchFrom(NamedTuple):
    """Ask that agent for values, flat `[row, attempt, nbytes, …]`; ValueFetched or ValueNotFetched answers each."""

    address: str
    values: list[int]
    in_pieces: bool = False
    """Whether they are too large to travel inside their messages."""


class GiveUpFetch(NamedTuple):
    """Nobody needs that large value from other agents any more: end its transfer, if it is under way (ValueNotFetched
    follows then), and forget what has come of it."""

    row: int
    attempt: int


class ServePiece(NamedTuple):
    """Answer a peer with some bytes of a segment, and their checksum; ValueMissing if it is gone by then."""

    peer: int
    row: int
    attempt: int
    offset: int
    nbytes: int
    path: str


class StartErrand(NamedTuple):
    """Run a function in a process of its own, like a slot's; ErrandReported and ErrandEnded follow."""

    request: int
    name: str
    function: bytes
    arguments: bytes


class EndErrand(NamedTuple):
    """End the process of an errand that has reported."""

    request: int


class StoreModule(NamedTuple):
    """Store a file (a module, or an archive of packages) where slots that are started from now on can import it."""

    request: int
    name: str
    data: bytes


class Say(NamedTuple):
    """A line for the log: something that a person should look at."""

    text: str


class Close(NamedTuple):
    """The worker has ended: send what is unsent, end the slots, remove the segments, exit with that status; with
    `RESTART_STATUS`, start again with the same arguments."""

    reason: str
    exit_status: int


Effect: TypeAlias = (
    ToScheduler | ToPeer | ServeSegment | StartSlot | BecomeActor | NoteWait | GoOn | DefineInSlot | GiveTasks
    | TakeBack | Interrupt | TrimSlot | LeaveThread | KillSlot | BecomeCoroutines | StopCoroutine
    | ShrinkSegments | SpillSegment | CheckSpilled | WritePack | RewritePacks | ReadPack | RemovePacks | NoteSent
    | AnswerSegment | AnswerRoom | CreateSegment | RemoveSegments | FetchFrom | GiveUpFetch | ServePiece
    | StartErrand | EndErrand | StoreModule | Say | Close
)  # fmt: skip
