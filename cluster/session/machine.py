"""The client's machine: what a client wants, what it sends for it, what has arrived. Pure: no socket, clock or lock.

A shell (cluster/client/) calls a method for each thing that happens, with the time where it matters, and then carries
out what has piled up: `take_messages()` are for the scheduler, in this order; `take_effects()` are the other duties.
The simulator drives the same class. Nothing here pickles: arguments, functions and values are bytes.

Events, as methods
    join, show_output            the connection stands: say who we are, and whether to be sent what tasks write
    submit, submit_to_open_part  one task; gathered with its neighbours of the same `Call` until `flush`
    submit_part                  consecutive tasks of a map
    offer                        values that this client holds (scattered data, large arguments)
    alias                        futures of other clients, found inside a value
    refer, `dropped`             holders inside the client come and go; `dropped.append(number or range)` is all that
                                 a finalizer does, and the next `flush` counts them
    want                         somebody waits for these numbers
    keep, cancel, retry          as their messages
    locate, query                questions; the answer is in `answers` under the returned request number
    pushed, push_refused         outcome of a PushValue
    flush                        the open part and the releases leave
    receive                      a message from the scheduler
    lose                         the connection has ended

Effects
    PushValue                    send the offered value to that worker, then call `pushed`
    DropOffered                  nobody will ask for these offered values again: let go of the objects

What is submitted while the scheduler holds 64 MiB of arguments for this client stays here, and all that must not
overtake it (`outbox.py`).

A Submit says that its tasks are awaited while the values that wait in the client take less than 64 MiB: the
small results of most programs are looked at, and one that came along saves its round trip. What arrives beyond the
limit while nobody waits is noted, and fetched when it is looked at. An offered value is needed until the tasks that
take it as input have finished, or failed and been released (so that a failed task can be retried). A task submitted on
top of an unfinished one takes over that one's offered values: should that one be released early, it still has to run.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from cluster.session import table as states
from cluster.session.outbox import ARGUMENTS_LIMIT_BYTES, Outbox
from cluster.session.parts import Call, OpenPart
from cluster.session.table import Page, Table, runs_of
from cluster.session.watch import AllDone, Watch
from cluster.wire import messages

__all__ = ["DropOffered", "Effect", "Failure", "PushValue", "Session"]

GATHER_SECONDS = 0.001
GATHER_LIMIT_SECONDS = 0.008
"""Single submits are gathered for so long after the last send: 1 ms, and while the caller goes on submitting without a
pause, twice as long each time, up to 8 ms. A send costs what 50 submits cost."""

HELD_VALUES_LIMIT_BYTES = 64 << 20
"""Values are taken along unasked while those in the client take less than this."""

OF_NO_TASK = frozenset(("scheduler_info", "status", "tasks", "workers", "events", "wait_for_workers"))
"""Queries that are answered at once, however much is kept back."""

DROPPED_BEFORE_RELEASE = 4096
"""So many dropped futures make a flush due."""


class Failure(NamedTuple):
    """How a task ended without a value; the fields are those of the message Failed."""

    kind: str
    error: bytes
    details: dict[str, Any]


class PushValue(NamedTuple):
    """Send the offered value `number` to the agent at `address` under the name (row, attempt)."""

    number: int
    row: int
    attempt: int
    address: str


class DropOffered(NamedTuple):
    """These offered values will not be asked for again."""

    numbers: list[int]


Effect = PushValue | DropOffered

_CANCELLED = Failure("cancelled", b"", {"message": "cancelled by this client"})


class Session:
    """One client's numbers, wants and knowledge; the module's text lists what can happen to it."""

    def __init__(
        self,
        client_id: bytes,
        name: str,
        versions: dict[str, str],
        weight: float = 1.0,
        *,
        arguments_limit_bytes: int = ARGUMENTS_LIMIT_BYTES,
    ) -> None:
        self.client_id = client_id
        self.name = name
        self.versions = versions
        self.weight = weight
        self.table = Table()
        self.epoch: int | None = None
        self.lost: str | None = None
        """Why the connection ended, once it has."""
        self.failures: dict[int, Failure] = {}
        self.dropped: deque[int | range] = deque()
        self.answers: dict[int, messages.Located | messages.Answer] = {}
        self.output: deque[list[Any]] = deque()
        """What tasks wrote and nobody has shown yet, as in TaskOutput; the shell takes it out when it has received."""
        self.sent_at = float("-inf")
        """When `take_messages` last had something to send."""
        self.waiting = 0
        """How many callers wait for values; counted by the shell."""
        self._outbox = Outbox(arguments_limit_bytes, self._cancelled_among)
        self._effects: list[Effect] = []
        self._open: OpenPart | None = None
        self._defined: set[bytes] = set()
        self._offers: dict[int, int] = {}  # offered number -> unfinished tasks that may need it
        self._large: dict[int, int] = {}  # large argument that one task takes, as far as is known -> its bytes
        self._large_bytes = 0
        self._large_limit_bytes = arguments_limit_bytes
        self._some_are_silent = False  # something was submitted without an Await
        self._watches: list[Watch] = []
        self._requests = 0
        self._given_up: set[int] = set()  # questions whose answers nobody waits for
        self._gather_seconds = GATHER_SECONDS

    # ------------------------------------------------------------------ what is to be done

    def take_messages(self, now: float) -> list[Any]:
        """Give the messages that are to be sent to the scheduler, in order."""
        outgoing = self._outbox.take()
        if outgoing:
            self.sent_at = now
        return outgoing

    def take_effects(self) -> list[Effect]:
        """Give the duties that are not messages to the scheduler."""
        effects = self._effects
        if effects:
            self._effects = []
        return effects

    @property
    def has_room(self) -> bool:
        """Whether who produces arguments should go on: the scheduler takes them, and not too much is held here of large
        ones. What is submitted without room is kept here."""
        return self._outbox.has_room and self._large_bytes < self._large_limit_bytes

    def has_left(self, numbers: Iterable[int]) -> bool:
        """Whether these tasks were sent: none of them waits here for the scheduler to have room."""
        outbox = self._outbox
        return not outbox.keeps_back or max(numbers, default=-1) < outbox.first_kept

    @property
    def gathered(self) -> int:
        """How many single submits wait for `flush`."""
        return 0 if self._open is None else self._open.count

    @property
    def has_unsent(self) -> bool:
        """Whether there are messages, or gathered submits, that could leave now."""
        return self._outbox.has_ready or self._open is not None

    def flush_is_due(self, now: float) -> bool:
        """Whether what was gathered should leave now; ask after each submit."""
        part = self._open
        if part is None:
            return len(self.dropped) >= DROPPED_BEFORE_RELEASE
        quiet_seconds = now - self.sent_at
        gather_seconds = self._gather_seconds
        if quiet_seconds < gather_seconds:
            return part.full
        in_a_row = quiet_seconds < 2 * gather_seconds
        self._gather_seconds = min(2 * gather_seconds, GATHER_LIMIT_SECONDS) if in_a_row else GATHER_SECONDS
        return True

    # ------------------------------------------------------------------ the user's side

    def join(self) -> None:
        """Say who we are."""
        self._outbox.add(messages.ClientJoin(self.client_id, self.name, self.versions, self.weight))

    def show_output(self, shown: bool) -> None:
        """Say whether the client wants to see what its tasks write."""
        self._outbox.add(messages.ShowOutput(shown))

    def submit(self, call: Call, piece: bytes, dependencies: Sequence[int] = ()) -> int:
        """Add one task to the open part, and return its number. Its want lasts until it is dropped."""
        part = self._open
        if part is None or part.call is not call or part.full:
            self._close_part()
            part = self._open = OpenPart(call, self.table.next_number)
        return part.add(piece, dependencies)

    def submit_to_open_part(self, call: Call, piece: bytes, dependencies: Sequence[int] = ()) -> int:
        """As `submit` if the open part takes it, else -1. An interrupt leaves nothing half done."""
        part = self._open
        return -1 if part is None or part.call is not call or part.full else part.add(piece, dependencies)

    def submit_part(
        self,
        call: Call,
        count: int,
        offsets: bytes,
        blob: bytes,
        dependency_starts: bytes = b"",
        dependencies: bytes = b"",
        *,
        batch: int = -1,
        following: int = -1,
    ) -> int:
        """Send consecutive tasks, a part of a map; return the first of their numbers.

        Pass `batch` and the number that would follow the part before: if other numbers were given out meanwhile, this
        part begins a batch of its own, named by its own first number.
        """
        self._close_part()
        first = self.table.allocate(count, states.PENDING)
        if following != first:
            batch = first
        self._send_part(
            messages.Submit(
                first,
                count,
                batch,
                call.function.function_id,
                call.label,
                call.options,
                call.arguments,
                offsets,
                blob,
                dependency_starts,
                dependencies,
            ),
            call,
        )
        return first

    def offer(
        self, sizes: Sequence[int], contains: Sequence[Any] = (), *, placement: str, workers: Sequence[str] = ()
    ) -> int:
        """Announce values that this client holds; return the first of their numbers."""
        self._close_part()
        first = self.table.allocate(len(sizes), states.OFFERED)
        self._offers.update(dict.fromkeys(range(first, first + len(sizes)), 0))
        if placement == "demand":
            self._large.update(enumerate(sizes, first))
            self._large_bytes += sum(sizes)
        packed = array("Q", sizes).tobytes()
        self._outbox.add(messages.Offer(first, len(sizes), packed, list(contains), placement, list(workers)))
        return first

    def share(self, number: int) -> None:
        """A large argument takes no room any more: several tasks share it, so that it is not produced for each, or its
        task has ended."""
        self._large_bytes -= self._large.pop(number, 0)

    def alias(self, references: Sequence[tuple[bytes, int]]) -> int:
        """Take own numbers for tasks of other clients; return the first."""
        self._close_part()
        first = self.table.allocate(len(references), states.PENDING)
        self._outbox.add_ahead(messages.Alias(first, [list(reference[:2]) for reference in references]))
        self._some_are_silent = True
        return first

    def refer(self, number: int) -> bool:
        """Count one more holder of a number inside this client; False if it was released already."""
        if number >= self.table.next_number:
            self._close_part()
        return self.table.refer(number)

    def want(self, numbers: Sequence[int]) -> None:
        """Somebody waits for these numbers: small values are to travel with the notice."""
        self._close_part()
        self._gather_seconds = 0.0  # who waits for one submit after the other has nothing to gather
        if self._some_are_silent:
            if not isinstance(numbers, range):
                numbers = [number for number in numbers if self.table.state(number) == states.PENDING]
            if numbers:
                self._outbox.add_twice(messages.Await(runs_of(numbers)))

    def keep(self, numbers: Iterable[int]) -> None:
        """Run these to the end though nobody holds them."""
        self._close_part()
        self._outbox.add_twice(messages.Keep(runs_of(numbers)))

    def cancel(self, numbers: Iterable[int]) -> None:
        """Stop these; for this client they are cancelled from now on, whatever the scheduler still says."""
        self._close_part()
        cancelled = [number for number in numbers if self.table.state(number) == states.PENDING]
        if cancelled:
            self._outbox.add_twice(messages.Cancel(runs_of(cancelled)))
            self._fail(runs_of(cancelled), _CANCELLED)

    def retry(self, numbers: Iterable[int]) -> None:
        """Run these failed tasks again."""
        failed = [number for number in numbers if self.table.state(number) == states.FAILED]
        for number in failed:
            self._reset(number)
        if failed:
            self._outbox.add(messages.Retry(runs_of(failed)))
            self._some_are_silent = True

    def locate(self, numbers: Iterable[int]) -> int:
        """Ask where values are; the answer comes when all are finished or failed."""
        self._close_part()
        self._requests += 1
        numbers = list(numbers) if not isinstance(numbers, range) else numbers
        message = messages.Locate(self._requests, runs_of(numbers))
        if self.has_left(numbers):
            self._outbox.add_ahead(message)
        else:
            self._outbox.add(message)
        return self._requests

    def query(self, what: str, detail: Any = None) -> int:
        """Ask the scheduler something. The answer knows of all that was submitted before, so that it may be long in
        coming when much is kept back here; except to what concerns no task."""
        self._close_part()
        self._requests += 1
        message = messages.Query(self._requests, what, detail)
        if what in OF_NO_TASK:
            self._outbox.add_ahead(message)
        else:
            self._outbox.add(message)
        return self._requests

    def give_up(self, request: int) -> None:
        """Nobody waits for the answer to a question any more."""
        if self.answers.pop(request, None) is None:
            self._given_up.add(request)

    def pushed(self, number: int, address: str, error: str, *, full: bool = False) -> None:
        """Tell how a PushValue ended."""
        self._outbox.add_ahead(messages.Pushed(number, address, error, full))

    def push_refused(self, number: int, address: str, message: str, remedy: str) -> None:
        """Tell that a PushValue will not be carried out, and why."""
        self._outbox.add_ahead(messages.PushRefused(number, address, message, remedy))

    def leave(self) -> None:
        """The client is done; what is kept back is given up."""
        self._close_part()
        self._outbox.leave()

    def flush(self) -> None:
        """Let the open part leave, then release what was dropped."""
        self._close_part()
        if self.dropped:
            self._release_dropped()

    # ------------------------------------------------------------------ looking

    def state(self, number: int) -> int:
        """The state of a number; what has not left yet is pending."""
        return states.PENDING if number >= self.table.next_number else self.table.state(number)

    def is_done(self, number: int) -> bool:
        """Whether a number has ended, or nothing more will be heard of it."""
        return self.lost is not None or self.state(number) != states.PENDING

    def all_done(self, numbers: Sequence[int]) -> AllDone:
        """Make a test of whether all these are done; cheap to repeat. Say `want` first."""
        return AllDone(self.table, numbers)

    def watch(self, numbers: Sequence[int] | set[int]) -> Watch:
        """Begin to collect these as they become done; those that are done already are in it at once."""
        self._close_part()
        watch = Watch(numbers)
        self._watches.append(watch)
        for number in numbers:
            if self.is_done(number):
                watch.note(number, number + 1)
        return watch

    def watch_more(self, watch: Watch, number: int) -> None:
        """Watch one number more."""
        watch.add(number)
        if self.is_done(number):
            watch.note(number, number + 1)

    def unwatch(self, watch: Watch) -> None:
        """End a watch."""
        self._watches.remove(watch)

    # ------------------------------------------------------------------ from the scheduler

    def receive(self, message: Any) -> None:
        """Take a message from the scheduler in. Anything may come twice, and late."""
        if isinstance(message, messages.Finished):
            self._finished(message)
        elif isinstance(message, messages.Failed):
            self._fail(message.runs, Failure(message.kind, message.error, message.details))
        elif isinstance(message, messages.Located | messages.Answer):
            if message.request in self._given_up:
                self._given_up.discard(message.request)
            else:
                self.answers[message.request] = message
        elif isinstance(message, messages.Push):
            self._effects.append(PushValue(*message))
        elif isinstance(message, messages.Reset):
            for number in _numbers(message.runs):
                if self.table.state(number) in (states.ELSEWHERE, states.FAILED):
                    self._reset(number)
        elif isinstance(message, messages.ArgumentsTaken):
            self._outbox.taken(message.total_bytes)
        elif isinstance(message, messages.TaskOutput):
            self.output.extend(message.tasks)
        elif isinstance(message, messages.ClientWelcome):
            self.epoch = message.epoch

    def lose(self, reason: str) -> None:
        """The connection has ended: nothing that is pending will be heard of again."""
        self._close_part()
        self.lost = reason
        self._outbox.forget_kept()
        for watch in self._watches:
            watch.note(0, self.table.next_number)

    # ------------------------------------------------------------------ inside

    def _close_part(self) -> None:
        part = self._open
        if part is not None:
            self._open = None
            self.table.allocate(part.count, states.PENDING)
            self._send_part(part.message(), part.call)

    def _send_part(self, message: messages.Submit, call: Call) -> None:
        function = call.function
        if function.function_id not in self._defined:
            self._defined.add(function.function_id)
            self._outbox.add_ahead(messages.DefineFunction(*function[:3]))
        if self._offers and message.dependencies:
            self._note_offers_needed(message)
        if self.table.value_bytes < HELD_VALUES_LIMIT_BYTES:
            message = message._replace(options={**message.options, "awaited": True})
        else:
            self._some_are_silent = True
        self._outbox.add(message)

    def _note_offers_needed(self, message: messages.Submit) -> None:
        dependencies = array("q", message.dependencies)
        starts = array("I", message.dependency_starts)
        if not starts:  # every task takes all of them
            starts = array("I", range(0, len(dependencies) * message.count + 1, len(dependencies)))
            dependencies *= message.count
        shared: dict[tuple[int, ...], frozenset[int]] = {}
        for number, (start, stop) in enumerate(pairwise(starts), message.first):
            inputs = tuple(dependencies[start:stop])
            needed = shared.get(inputs)
            if needed is None:
                needed = shared[inputs] = frozenset().union(*map(self._offers_behind, inputs))
            for offered in needed:
                self._offers[offered] += 1
            if needed:
                page, at = self.table.place(number)
                if page.inputs is None:
                    page.inputs = [None] * len(page.states)
                page.inputs[at] = needed

    def _offers_behind(self, number: int) -> frozenset[int]:
        if number in self._offers:
            return frozenset((number,))
        if self.state(number) == states.UNWANTED:
            return frozenset()
        page, at = self.table.place(number)
        return (page.inputs[at] if page.inputs is not None else None) or frozenset()

    def _settle_inputs(self, page: Page, low: int, high: int) -> None:
        """Tasks of this page no longer need their offered inputs."""
        if page.inputs is None:
            return
        for at in range(low, high):
            needed = page.inputs[at]
            if needed is None:
                continue
            page.inputs[at] = None
            for offered in sorted(needed):
                self._offers[offered] -= 1
                if not self._offers[offered] and not self.table.references(offered):
                    self._release(offered, 1, self._outgoing_release())

    def _outgoing_release(self) -> list[int]:
        last = self._outbox.last
        if not isinstance(last, messages.Release):
            last = messages.Release([])
            self._outbox.add(last)
        return last.runs

    def _finished(self, message: messages.Finished) -> None:
        table = self.table
        pieces: list[bytes | None] | None = None
        if message.offsets and (self.waiting or table.value_bytes < HELD_VALUES_LIMIT_BYTES):
            blob = message.blob
            pieces = [blob[start:stop] for start, stop in pairwise(array("I", message.offsets))]
        taken = 0
        for first, count in _pairs(message.runs):
            for page, low, high, number in table.spans(first, count):
                offset = taken + number - first
                ended = table.store(page, low, high, pieces and pieces[offset : offset + high - low])
                if ended:
                    self._settle_inputs(page, low, high)
            taken += count
            self._done(first, count)

    def _fail(self, runs: list[int], failure: Failure) -> None:
        for first, count in _pairs(runs):
            for page, low, high, number in self.table.spans(first, count):
                for at in range(low, high):
                    if page.states[at] == states.PENDING:
                        page.states[at] = states.FAILED
                        self.failures[number + at - low] = failure
                        for offered in (page.inputs[at] or ()) if page.inputs is not None else ():
                            self.share(offered)  # kept for a retry: no room comes of waiting for it
            self._done(first, count)

    def _done(self, first: int, count: int) -> None:
        for watch in self._watches:
            watch.note(first, first + count)

    def _cancelled_among(self, first: int, count: int) -> list[int]:
        """The runs of these numbers that have ended without ever having been sent."""
        failures = self.failures
        return runs_of(number for number in range(first, first + count) if number in failures) if failures else []

    def _reset(self, number: int) -> None:
        self.failures.pop(number, None)
        self.table.set_state(number, states.PENDING)

    def _release_dropped(self) -> None:
        runs = self._outgoing_release()
        dropped = self.dropped
        table = self.table
        first = stop = 0
        while dropped or first < stop:
            item = dropped.popleft() if dropped else range(0)
            # Futures made one after the other are mostly dropped like that, or, in a list, last first.
            if item == stop:
                stop += 1
                continue
            if item == first - 1:
                first -= 1
                continue
            for start, count in list(table.unrefer_run(first, stop - first)):
                self._release(start, count, runs)
            first, stop = (item.start, item.stop) if isinstance(item, range) else (item, item + 1)
        if not runs:
            self._outbox.drop_last()

    def _release(self, first: int, count: int, runs: list[int]) -> None:
        """No holder is left of these numbers: tell the scheduler, except of offered values that tasks still need."""
        table = self.table
        if self._offers:
            needed = [number for number in range(first, first + count) if self._offers.get(number)]
            if needed:
                for number in range(first, first + count):
                    if number not in needed:
                        self._release(number, 1, runs)
                return
            offered = [number for number in range(first, first + count) if self._offers.pop(number, None) is not None]
            if offered:
                self._effects.append(DropOffered(offered))
                for number in offered:
                    self.share(number)
            for page, low, high, _ in list(table.spans(first, count)):
                self._settle_inputs(page, low, high)
        if self.failures:
            for page, low, high, number in table.spans(first, count):
                if page.states.find(states.FAILED, low, high) >= 0:
                    for failed in range(number, number + high - low):
                        self.failures.pop(failed, None)
        table.forget(first, count)
        if runs and runs[-2] + runs[-1] == first:
            runs[-1] += count
        else:
            runs += (first, count)


def _pairs(runs: list[int]) -> Iterator[tuple[int, int]]:
    return zip(runs[::2], runs[1::2], strict=True)


def _numbers(runs: list[int]) -> Iterator[int]:
    for first, count in _pairs(runs):
        yield from range(first, first + count)
