"""Every message that crosses a socket, as a named tuple with typed fields.

This module is the protocol. A message travels as one frame: a four byte little-endian length, then a msgpack array
whose first item is the message's code and whose others are its fields in order (`frames.py` does that). Nothing here
opens a socket, and nothing here unpickles: functions, arguments, values and exceptions are opaque bytes on every hop.

It is longer than a file may be, and stays one: whoever has to know what a peer can say, or which code is free, reads
one list. What could go by itself, the messages between peers about values, is a fifth of it: the rest would still be
longer than a file may be, and whoever answers a peer would name messages by two modules.

Conventions
-----------
number
    A client numbers its tasks 0, 1, 2 … for its whole life. `(client_id, number)` names a task everywhere and for ever,
    so that a message sent twice is recognised. A batch is a run of consecutive numbers.
row
    The scheduler's place for a task. Rows are reused, so a row means nothing without an attempt.
attempt
    Drawn by the scheduler from one counter that never repeats within an epoch; one attempt number covers all rows of
    one grant. `(row, attempt)` names one run of a task, and after it succeeded, the value that the run made. Replicas
    of a value share its name.
runs
    A flat list `[first, count, first, count, …]` of consecutive numbers or rows. The order is meaningful.
packed integers
    Columns travel as bytes of the machine's `array` module, little-endian: `'I'` is four bytes, `'q'` and `'Q'` eight.
offsets
    `count + 1` packed `'I'`: item i of a blob is `blob[offsets[i]:offsets[i + 1]]`. An empty `offsets` has a meaning of
    its own, said at the field.
epoch
    One life of a scheduler; told in the welcome, repeated in every message of an agent about a run or a value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# --------------------------------------------------------------------------- client -> scheduler


class ClientJoin(NamedTuple):
    """First message of a client. A client that joins again under the same id takes its own wants over.

    `weight` is its share of slot time against other clients', above zero.
    """

    client_id: bytes
    name: str
    versions: dict[str, str]
    weight: float = 1.0


class DefineFunction(NamedTuple):
    """A function's pickled bytes under their content hash, at most 64 KiB; sent before the first task that names it."""

    function_id: bytes
    name: str
    blob: bytes


class Submit(NamedTuple):
    """Consecutive tasks of one function with one set of options: a part of a batch, at most 1 MiB and 16,384 tasks.

    `arguments` says what a task's piece of `blob` is: 0 the pickle of its positional arguments (a tuple), 1 the pickle
    of `(positional tuple, keyword dict)`. Empty `offsets`: all tasks share the whole blob.

    `dependency_starts` (packed 'I', `count + 1`) and `dependencies` (packed 'q') are the tasks' inputs as compressed
    sparse rows: task i's mark k stands for `dependencies[starts[i] + k]`, the client's own number of the task whose
    value goes there. Empty starts with dependencies: every task takes all of them. Both are empty when no task has
    inputs. A dependency's number is always known to the scheduler by
    then: the client's own earlier task, an alias, or a value it offered.

    `options`: only what differs from the default, by name: priority (int), retries (int), timeout_seconds (float),
    workers (list of names or addresses), allow_other_workers (bool), resources (dict name -> amount), keep (bool: run
    to the end though nobody wants the result), key (str, the user's own name for a batch of one), awaited (bool: as if
    an Await of all followed), parent (`[attempt, row]`: the run that submitted these from inside a slot; what of them
    is unfinished and not wanted otherwise is cancelled when that run ends), actor, actor_call (bool: the tasks make
    actors, or call methods of those that the last input of each is; `cluster.scheduler.actor_desk`).

    `batch` is the first number of the batch that this is a part of; -1: each task is a batch of its own (single submits
    that were gathered on the way). `ids.task_key` makes a task's key from it.
    """

    first: int
    count: int
    batch: int
    function_id: bytes
    label: str
    options: dict[str, Any]
    arguments: int
    offsets: bytes
    blob: bytes
    dependency_starts: bytes
    dependencies: bytes


class Offer(NamedTuple):
    """Values that this client holds under its own numbers (`scatter`, large arguments); it keeps them until released.

    `sizes` is packed 'Q', bytes. `contains[i]` lists the futures inside value i as `[client_id, number]`; the list is
    empty when no value contains any. `placement`: "demand" pushes a value to a worker when one is about to need it,
    "spread" pushes each at once to one worker, "broadcast" to every worker. `workers` restricts either (empty: any).
    """

    first: int
    count: int
    sizes: bytes
    contains: list[Any]
    placement: str
    workers: list[str]


class Alias(NamedTuple):
    """Own numbers, from `first` on, for tasks of other clients (futures that came inside a value), and a want for
    each."""

    first: int
    references: list[Any]


class Release(NamedTuple):
    """The client no longer wants these numbers, and will never name them again."""

    runs: list[int]


class Await(NamedTuple):
    """Somebody is waiting for these numbers: let small values travel with the notice that they are done."""

    runs: list[int]


class Keep(NamedTuple):
    """Run these to the end although the client may release them or go (`fire_and_forget`)."""

    runs: list[int]


class Cancel(NamedTuple):
    """Stop these and everything that depends on them, except what another client wants."""

    runs: list[int]


class Retry(NamedTuple):
    """Run these failed tasks again, and what failed only because of them."""

    runs: list[int]


class Locate(NamedTuple):
    """Where are the values of these numbers? Answered by `Located` as soon as all are finished or failed."""

    request: int
    runs: list[int]


class Pushed(NamedTuple):
    """Outcome of a push order: empty `error` when the worker has the value. `full`: it has no room for it now."""

    number: int
    address: str
    error: str
    full: bool = False


class PushRefused(NamedTuple):
    """The client will not carry out a push order, however often: the tasks that need the value there fail with this."""

    number: int
    address: str
    message: str
    remedy: str


class Query(NamedTuple):
    """Ask for something that one Answer answers, at once or later: "scheduler_info", "who_has" (detail: list of
    numbers), "ping", and what other parts of the scheduler register (`cluster.scheduler.questions`)."""

    request: int
    what: str
    detail: Any


class Leave(NamedTuple):
    """The client is done: release all that it wants, now."""


# --------------------------------------------------------------------------- scheduler -> client


class ClientWelcome(NamedTuple):
    """The answer to ClientJoin. `versions` are the scheduler's."""

    epoch: int
    versions: dict[str, str]


class Finished(NamedTuple):
    """These numbers have their values. Item k of the blob belongs to the k-th number of the runs; a piece of no bytes
    means that the value stays with a worker. Empty `offsets`: no value came along."""

    runs: list[int]
    offsets: bytes
    blob: bytes


class Failed(NamedTuple):
    """These numbers ended without a value.

    `kind` is "exception", "died", "timeout", "cancelled", "lost", "full", "unserializable", "unrunnable" or "import".
    `error` is a value (see payload.py) of the exception, or empty. `details` is bounded text by name: type, message,
    traceback, key, worker, attempt, cause, lines, remedy.
    """

    runs: list[int]
    kind: str
    error: bytes
    details: dict[str, Any]


class Reset(NamedTuple):
    """These finished numbers lost their values and are being computed again; Finished or Failed will come anew."""

    runs: list[int]


class Located(NamedTuple):
    """The answer to Locate: `[number, row, attempt, nbytes, [addresses]]` each; failed numbers are left out."""

    request: int
    entries: list[Any]


class Push(NamedTuple):
    """Send the value that you offered under this number to that worker, by PutValue under this name."""

    number: int
    row: int
    attempt: int
    address: str


class Answer(NamedTuple):
    """The answer to a query. `error` is empty when it succeeded."""

    request: int
    error: str
    result: Any


class ArgumentsTaken(NamedTuple):
    """So many bytes of this client's arguments, all in all since it joined, were granted or are needed no more. The
    client keeps back what would leave the scheduler with more than 64 MiB of others."""

    total_bytes: int


# --------------------------------------------------------------------------- agent -> scheduler


class WorkerJoin(NamedTuple):
    """First message of an agent. `address` is where it listens for peers, "tcp://host:port"."""

    worker_id: bytes
    name: str
    address: str
    slots: int
    memory_limit_bytes: int
    resources: dict[str, float]
    versions: dict[str, str]
    process_id: int


class Done(NamedTuple):
    """Rows of one attempt that succeeded: this agent holds their values.

    `sizes` is packed 'Q', one a row, in bytes. `offsets` and `blob` carry the small values as in Finished. The times
    are of running alone (loading the function and the arguments is apart): the sum, and the median of one task.
    `contains`: `[row, [client_id, number, client_id, number …]]` for each value with futures inside.
    """

    epoch: int
    attempt: int
    runs: list[int]
    sizes: bytes
    offsets: bytes
    blob: bytes
    run_seconds: float
    median_seconds: float
    contains: list[Any]


class RunFailed(NamedTuple):
    """One run that ended without a value; `kind`, `error` and `details` as in Failed.

    "cancelled" is also the answer for a run that the scheduler asked to stop. "missing" is for an input that could not
    be fetched: then `details` has "row", "attempt" (the value's) and "address" (the holder's). "full": the
    worker had no room for an input.
    """

    epoch: int
    row: int
    attempt: int
    kind: str
    error: bytes
    details: dict[str, Any]
    run_seconds: float


class Recalled(NamedTuple):
    """What a recall brought back, flat `[attempt, row, attempt, row …]`: only these are free to be granted again."""

    epoch: int
    request: int
    names: list[int]


class Held(NamedTuple):
    """Values that arrived here otherwise than by a run: flat `[row, attempt, nbytes, …]`."""

    epoch: int
    values: list[int]


class FetchFailed(NamedTuple):
    """An ordered copy (`Fetch`) that could not be made."""

    epoch: int
    row: int
    attempt: int
    address: str
    reason: str


class ValueDamaged(NamedTuple):
    """A value that came from the agent at that address had another checksum than was said; it is fetched again."""

    epoch: int
    row: int
    attempt: int
    address: str


class DropReplicas(NamedTuple):
    """Memory is short: may these copies go, which no granted task needs? Flat `[row, attempt, …]`; answered by
    DropAllowed."""

    epoch: int
    values: list[int]


class AgentHeartbeat(NamedTuple):
    """Every second; an agent silent for ten is taken for dead. `report` holds plain figures (memory, slots …)."""

    epoch: int
    report: dict[str, Any]


class Draining(NamedTuple):
    """The agent was asked to end: grant it nothing more. It closes when its running tasks have ended."""

    epoch: int


class Ordered(NamedTuple):
    """What came of an Order. `error` is empty when it was carried out."""

    epoch: int
    request: int
    error: str
    result: Any


# --------------------------------------------------------------------------- scheduler -> agent


class WorkerWelcome(NamedTuple):
    """The answer to WorkerJoin. `index` is the scheduler's small number for this worker."""

    epoch: int
    index: int
    versions: dict[str, str]


class Grant(NamedTuple):
    """Run these rows, under this attempt, in this order.

    `arguments`, `offsets`, `blob` as in Submit, over the granted rows. `inputs` (packed 'I') are the rows' inputs as
    compressed sparse rows with `input_starts`; each is an index into `values`, whose entries are
    `[row, attempt, nbytes, [addresses of agents that hold it]]`; an empty list of addresses means that a client will
    push it here. Empty starts with inputs: every task takes all of them. Both are empty when no task has inputs.
    `inline_limit_bytes`: results up to this size travel in Done.
    `options`: timeout_seconds (float), parent (`[attempt, row]`, as in Submit), actor (the reference of the one task's
    future), actor_call (bool: all rows are for one actor), coroutine (bool: all rows are coroutines).
    `origin` is what the tasks may be told of themselves: `[client_id, batch, shift, key, before, shown, died]`. A
    task's number is its row plus `shift`; `key` is the user's own or empty; `before` is flat `[row, count, …]` of those
    that failed or died so often, `died` of those that died; `shown` says whether the client wants to see what they
    write.
    """

    attempt: int
    runs: list[int]
    function_id: bytes
    label: str
    arguments: int
    offsets: bytes
    blob: bytes
    input_starts: bytes
    inputs: bytes
    values: list[Any]
    inline_limit_bytes: int
    options: dict[str, Any]
    origin: list[Any]


class Recall(NamedTuple):
    """Give back up to `count` granted tasks that no slot has claimed, youngest first; answered by Recalled, always."""

    request: int
    count: int


class Stop(NamedTuple):
    """End these runs, claimed or not: flat `[attempt, row, …]`. Each still known is answered by RunFailed
    "cancelled"."""

    names: list[int]


class Free(NamedTuple):
    """Nobody needs these values: flat `[attempt, first row, count, …]`."""

    values: list[int]


class DropAllowed(NamedTuple):
    """The answer to DropReplicas: what was asked, and those that may go, flat `[row, attempt, …]`. The scheduler counts
    on these no more; what a task needs after all is kept, and told by Held."""

    asked: list[int]
    allowed: list[int]


class Fetch(NamedTuple):
    """Get a copy of these values: `[row, attempt, nbytes, [addresses]]` each; answered by Held or FetchFailed."""

    values: list[Any]


class Order(NamedTuple):
    """Do something that is no task, and answer with Ordered: what there is to order, and each one's detail, is said in
    `cluster.worker.orders`."""

    request: int
    what: str
    detail: Any


class ShutDown(NamedTuple):
    """End the worker: its slots, then itself."""

    reason: str


# --------------------------------------------------------------------------- any peer -> agent, and back


class GetValues(NamedTuple):
    """Ask an agent for values, flat `[row, attempt, …]`. Each is answered by one of the three messages below
    (or, on one host, by ValueSegment), in order."""

    request: int
    values: list[int]


class Value(NamedTuple):
    """A value of at most 1 MiB, and its checksum, or -1 where there is none."""

    request: int
    row: int
    attempt: int
    data: bytes
    checksum: int = -1


class ValueStream(NamedTuple):
    """A larger value: `nbytes` raw bytes follow this frame on the connection."""

    request: int
    row: int
    attempt: int
    nbytes: int


class ValueMissing(NamedTuple):
    """The agent does not hold it."""

    request: int
    row: int
    attempt: int


class GetPiece(NamedTuple):
    """Ask an agent for some bytes of a value over 1 MiB, at most 16 MiB at a time; answered by ValuePiece or
    ValueMissing, in order."""

    row: int
    attempt: int
    offset: int
    nbytes: int


class ValuePiece(NamedTuple):
    """Bytes of a value: `nbytes` raw bytes follow this frame on the connection. `checksum` is theirs, or -1 where TLS
    protects them."""

    row: int
    attempt: int
    offset: int
    nbytes: int
    checksum: int


class PutValue(NamedTuple):
    """A value pushed to an agent: `data` if it is at most 1 MiB, else empty and `nbytes` raw bytes follow the frame.
    They are thrown away if there is no room for them."""

    row: int
    attempt: int
    nbytes: int
    data: bytes


class PutRequest(NamedTuple):
    """Is there room for this value of more than 1 MiB, so that I may push it? Answered by PutReady when there is, which
    may take a while, else by PutDone."""

    row: int
    attempt: int
    nbytes: int


class PutReady(NamedTuple):
    """There is room for that value: now send it by PutValue."""

    row: int
    attempt: int


class PutDone(NamedTuple):
    """The answer to PutValue, PutSegment and PutRequest; `error` is empty when the agent holds the value. `full`: there
    is no room for it now."""

    row: int
    attempt: int
    error: str
    full: bool = False


# --------------------------------------------------------------------------- peers that share a host with an agent


class HostProbe(NamedTuple):
    """In these files of mine lies what proves, if you can read it, that we share a host (`cluster.storage.probes`).

    Answered by HostProof. Without paths, to an agent: name yours; it answers with a HostProbe, which has no paths where
    it does not want to share."""

    paths: list[str]


class HostProof(NamedTuple):
    """What was read in the files of a HostProbe, in their order; nothing where one cannot be opened."""

    contents: list[bytes]


class ValueSegment(NamedTuple):
    """The answer to GetValues where the peer has proved that it can open the file in which the value lies: the segment
    of that name in the agent's directory of that position in its HostProbe. It may be gone when it is opened."""

    request: int
    row: int
    attempt: int
    nbytes: int
    directory: int
    name: str


class PutSegment(NamedTuple):
    """A value pushed to an agent that has proved that it can open the peer's own segments: it lies in the one of that
    name, beside the probe. The agent makes a second link to it, its own, and then both own the pages."""

    row: int
    attempt: int
    nbytes: int
    name: str


# --------------------------------------------------------------------------- by way of the scheduler


class Relay(NamedTuple):
    """client -> scheduler, first message of a connection: pass on what follows to the worker at that address, which
    this client cannot reach, and back. Answered by Relayed."""

    address: str


class Relayed(NamedTuple):
    """scheduler -> client: the worker is at the other end now, or why not."""

    error: str


class RelayData(NamedTuple):
    """Bytes of a connection between client and worker, at most 256 KiB; the scheduler does not look into them."""

    data: bytes


# --------------------------------------------------------------------------- tasks that wait for tasks


class LivesInSlot(NamedTuple):
    """client -> scheduler: this client is a slot's, and all that it wants ends with its connection, without grace."""


class HandOver(NamedTuple):
    """client -> scheduler: futures of these numbers lie in the value that this run is about to report. They are held
    until the run has ended, so that they may be released before its Done, which comes another way, has arrived."""

    attempt: int
    row: int
    runs: list[int]


class Suspended(NamedTuple):
    """agent -> scheduler: this run waits for other tasks, and takes no slot until `Resumed`; its resources stay taken.
    `change` goes upwards with each Suspended, Resumed and Room of an agent."""

    epoch: int
    change: int
    row: int
    attempt: int


class Resumed(NamedTuple):
    """agent -> scheduler: what the run waited for has come, and it wants a slot again (the agent's next free one)."""

    epoch: int
    change: int
    row: int
    attempt: int


class Room(NamedTuple):
    """agent -> scheduler: so many tasks may run here at a time that are not children of a task which waits here. Fewer
    than the slots when nearly all processes that the agent may have are kept by tasks that wait."""

    epoch: int
    change: int
    tasks: int


class EndActor(NamedTuple):
    """scheduler -> agent: end the process of the actor that this run made; nobody holds it any more."""

    attempt: int
    row: int


class ActorEnded(NamedTuple):
    """agent -> scheduler: the process of the actor that this run made has ended by itself. `details` as in Failed."""

    epoch: int
    row: int
    attempt: int
    details: dict[str, Any]


class Heartbeat(NamedTuple):
    """Keeps a connection known to be alive in either direction; carries nothing."""


class ObserverJoin(NamedTuple):
    """First message of a peer that asks queries and does nothing else; answered by ClientWelcome."""

    observer_id: bytes
    name: str


# --------------------------------------------------------------------------- what tasks write


class ShowOutput(NamedTuple):
    """Client -> scheduler: whether it wants to see what its tasks write from now on."""

    shown: bool


class Output(NamedTuple):
    """Agent -> scheduler: what runs of tasks wrote, `[attempt, row, entries]` each, before the Done of those runs.

    The entries (`cluster.wire.task_output`) are empty where the client does not want to see them: then this only tells,
    once for each run, that the agent has some."""

    epoch: int
    tasks: list[Any]


class TaskOutput(NamedTuple):
    """Scheduler -> client: what its tasks wrote, `[number, key, worker, entries]` each."""

    tasks: list[Any]


class Progress(NamedTuple):
    """Agent -> scheduler: how far a run is, as the task itself says."""

    epoch: int
    attempt: int
    row: int
    fraction: float
    message: str


CLASSES: tuple[type[Any], ...] = (
    # The position is the code on the wire: append only, never reorder.
    ClientJoin, DefineFunction, Submit, Offer, Alias, Release, Await, Keep, Cancel, Retry, Locate, Pushed, Query, Leave,
    ClientWelcome, Finished, Failed, Reset, Located, Push, Answer,
    WorkerJoin, Done, RunFailed, Recalled, Held, FetchFailed, AgentHeartbeat, Draining,
    WorkerWelcome, Grant, Recall, Stop, Free, Fetch, ShutDown,
    GetValues, Value, ValueStream, ValueMissing, PutValue, PutDone, Heartbeat,
    Order, Ordered,
    ObserverJoin,
    ArgumentsTaken, PushRefused,
    ShowOutput, Output, TaskOutput, Progress,
    LivesInSlot, HandOver, Suspended, Resumed, Room,
    EndActor, ActorEnded,
    HostProbe, HostProof, ValueSegment,
    Relay, Relayed, RelayData,
    GetPiece, ValuePiece, ValueDamaged, DropReplicas, DropAllowed,
    PutSegment,
    PutRequest, PutReady,
)  # fmt: skip
