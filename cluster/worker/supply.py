"""The values that tasks need and other processes ask for: what is here, what is on its way, who waits for it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from cluster.units import format_bytes
from cluster.wire import messages
from cluster.worker.arrivals import NOBODY, Arrival, Arrivals
from cluster.worker.events import (
    AnswerRoom,
    FetchFrom,
    GiveUpFetch,
    PackRead,
    RemoveSegments,
    RoomAsked,
    Say,
    ServePiece,
    ServeSegment,
    SpilledChecked,
    ToPeer,
)
from cluster.worker.fetching import Fetching, Want
from cluster.worker.inputs import keys_taken
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.packing import Packing
from cluster.worker.pieces import PIECE_LIMIT_BYTES
from cluster.worker.queue import Assignment, ReadyQueue
from cluster.worker.replicas import Replicas
from cluster.worker.returning import Returning
from cluster.worker.room import Room
from cluster.worker.spilling import Spilling
from cluster.worker.values import SMALL_VALUE_BYTES, Segment, Values, value_key, value_name

__all__ = ["Supply"]

# Forgetting a million values would take 0.2 s; this many take about 2 ms.
_ROWS_FREED_AN_EVENT: Final = 10_000


class Waiting:
    """A task that lacks inputs."""

    __slots__ = ("assignment", "index", "missing")

    def __init__(self, assignment: Assignment, index: int, missing: int) -> None:
        self.assignment = assignment
        self.index = index
        self.missing = missing


class Supply:
    """The agent's values and the tasks that wait for some."""

    def __init__(
        self,
        ledger: Ledger,
        queue: ReadyQueue,
        own_address: str,
        new_request: Callable[[], int],
        values: Values,
        memory: Memory,
        room: Room,
        spilling: Spilling,
        packing: Packing,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self.values = values
        self._memory = memory
        self._spilling = spilling
        self._packing = packing
        self._own_address = own_address
        self.returning = Returning(ledger, values, spilling, packing, own_address)
        self._fetching = Fetching(own_address)
        self._waiting: dict[int, Waiting] = {}  # by attempt << 32 | index, in the order of the grants
        self.arrivals = Arrivals(ledger, memory, room, new_request, self._waiting_for)
        self.replicas = Replicas(ledger)
        self._held: list[int] = []
        self.fetched_bytes = 0  # from other agents, so far
        self.linked_bytes = 0  # shared with other agents of this host instead
        self._freed: deque[tuple[int, int, int]] = deque()  # attempt, first row, count: not forgotten yet

    @property
    def waiting_count(self) -> int:
        """Tasks that lack inputs."""
        return len(self._waiting)

    # ------------------------------------------------------------------ tasks

    def bring(self, assignment: Assignment, now: float, first: int = 0, count: int = -1) -> None:
        """Queue the tasks whose inputs are here, and get what the others lack; `first` and `count`: of these alone."""
        if assignment.values:
            self.finish_freeing()
        if count < 0:
            count = len(assignment.rows)
        missing: dict[int, Want] = {}
        held = self.values
        if len(self.replicas):
            self.replicas.needed(value_key(entry[1], entry[0]) for entry in assignment.values)
        for position, entry in enumerate(assignment.values):
            key = value_key(entry[1], entry[0])
            if key not in held:
                missing[position] = self._fetching.want(entry)
            elif self.returning.is_away(key, now):
                missing[position] = self.returning.want(key, entry[2])
        if not missing:
            self._queue.append(assignment, first, count)
            return
        for index in range(first, first + count):
            lacking = [missing[need] for need in dict.fromkeys(assignment.needs(index)) if need in missing]
            if not lacking:
                self._queue.append(assignment, index, 1)
                continue
            self._waiting[assignment.attempt << 32 | index] = Waiting(assignment, index, len(lacking))
            for want in lacking:
                want.waiting.append((assignment, index))
        for want in missing.values():
            self._check_hopeless(want)

    def youngest_waiting(self) -> Assignment | None:
        """The assignment of the task that was granted last, of those that wait."""
        if not self._waiting:
            return None
        return next(reversed(self._waiting.values())).assignment

    def take_youngest_waiting(self) -> tuple[Assignment, int]:
        """Stop waiting for that task's inputs; what is on its way still arrives."""
        _, waiting = self._waiting.popitem()
        return waiting.assignment, waiting.index

    def lacking(self, assignment: Assignment, index: int) -> list[Want]:
        """The values that a task waits for; empty if it does not wait."""
        if assignment.attempt << 32 | index not in self._waiting:
            return []
        wants = []
        for need in dict.fromkeys(assignment.needs(index)):
            row, attempt = assignment.values[need][:2]
            key = value_key(attempt, row)
            want = self._fetching.find(key) or self.returning.find(key)
            if want is not None:
                wants.append(want)
        return wants

    def sends_back(self, assignment: Assignment, first: int, count: int, now: float) -> bool:
        """Whether some of these tasks, which were queued, need a value that was spilled since: they all wait then."""
        # An actor that is to be made has its process already; what it takes was compared when that was started.
        if not self._spilling.any or assignment.actor_reference is not None:
            return False
        if not any(self._spilling.is_unchecked(key, now) for key in keys_taken(assignment, first, count)):
            return False
        self.bring(assignment, now, first, count)
        return True

    def stop_waiting(self, assignment: Assignment, index: int) -> bool:
        """Take one task out; False if it is not among those that wait."""
        return self._waiting.pop(assignment.attempt << 32 | index, None) is not None

    # ------------------------------------------------------------------ values that come

    def store_small(self, attempt: int, rows: Sequence[int], values: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Hold the small values of runs that have ended here; what is held may be other objects with these bytes."""
        return self.values.add_small(attempt, rows, values)

    def store_segment(self, attempt: int, row: int, path: str, nbytes: int) -> None:
        """Hold the large value of a run that has ended here."""
        self._hold_segment(value_key(attempt, row), self._memory.segment(path, nbytes))

    def _hold_segment(self, key: int, segment: Segment) -> None:
        self.values.add_segment(key, segment)
        self._spilling.holds(key, segment)

    def put(self, peer: int, message: messages.PutValue) -> None:
        """A peer pushes a value that came with its message."""
        self._receive(peer, message.row, message.attempt, message.nbytes, message.data)

    def arrived_in_segment(self, peer: int, row: int, attempt: int, nbytes: int, path: str) -> None:
        """A large value has come, into a segment."""
        self.finish_freeing()
        key = value_key(attempt, row)
        segment = self._memory.segment(path, nbytes)
        if key in self.values:
            self._ledger.effects.append(RemoveSegments([path]))
        else:
            self._hold_segment(key, segment)
        self._now_held(peer, row, attempt, nbytes)

    def fetched(self, address: str, row: int, attempt: int, nbytes: int, data: bytes, path: str, is_link: bool) -> None:
        """A value has come from another agent."""
        self.finish_freeing()
        if is_link:
            self.linked_bytes += nbytes
        else:
            self.fetched_bytes += nbytes
        key = value_key(attempt, row)
        self._fetching.ended(address, key)
        want = self._fetching.find(key)
        if want is not None:
            want.begun = False
        if want is None:
            # It came otherwise or was freed while it travelled: then nobody must be told of it.
            if path:
                self._memory.segment(path, nbytes)
                self._ledger.effects.append(RemoveSegments([path]))
        elif path:
            self.arrived_in_segment(NOBODY, row, attempt, nbytes, path)
        else:
            self._receive(NOBODY, row, attempt, nbytes, data)

    def not_fetched(self, address: str, row: int, attempt: int, reason: str, kind: str) -> None:
        """An agent did not give a value: try the next that has it, or answer for the tasks that need it."""
        key = value_key(attempt, row)
        if kind == "full":  # nobody else could change that, and no holder is to blame
            self._fetching.ended(address, key)
            want, address = self._fetching.forget(key), ""
        elif kind == "damaged":
            text = f"a value of row {row} (attempt {attempt}) came damaged from {address} to this worker: {reason}"
            self._ledger.effects.append(Say(text))
            self._ledger.send(messages.ValueDamaged(self._ledger.epoch, row, attempt, address))
            want = self._fetching.damaged(address, key)
        else:
            want = self._fetching.failed(address, key)
        if want is not None:
            self._give_up(want, address, reason, kind="full" if kind == "full" else "missing")

    def order(self, entries: list[Any]) -> None:
        """Get copies that the scheduler wants here."""
        self.finish_freeing()
        for entry in entries:
            row, attempt, nbytes, _ = entry
            if value_key(attempt, row) in self.values:
                self._held += (row, attempt, nbytes)
                continue
            want = self._fetching.want(entry)
            want.ordered = True
            self._check_hopeless(want)

    def let_replicas_go(self, nbytes: int) -> int:
        """Memory is short by so much: ask leave to drop copies that nobody needs here; how much that would bring."""
        if not len(self.replicas):
            return 0
        droppable_bytes = self.replicas.droppable_bytes
        self.replicas.let_go(nbytes)
        self.replicas.finish_event()
        return droppable_bytes

    def drop_replicas(self, message: messages.DropAllowed) -> None:
        """Let copies go, as the scheduler allows, that no task needs by now."""
        self.finish_freeing()
        dropped, kept = self.replicas.answered(message)
        for key in dropped:
            row, attempt = value_name(key)
            self.free([attempt, row, 1])
        self.finish_freeing()
        for key in kept:
            self._held += (*value_name(key), self.replicas.size(key))

    def is_to_come(self, event: RoomAsked) -> None:
        """A large value is about to come: there has to be room first."""
        self.finish_freeing()
        if value_key(event.attempt, event.row) in self.values:
            self._ledger.effects.append(AnswerRoom(event.incoming, "", "it is here"))
            self._now_held(event.peer, event.row, event.attempt, event.nbytes)
        else:
            self.arrivals.is_to_come(event)

    def segment_created(self, request: int, path: str) -> None:
        """The segment is there for a value that has come, with its bytes in it, or for one that may come now."""
        arrival = self.arrivals.created(request, path)
        if arrival is None:
            return
        if arrival.has_come:
            self.arrived_in_segment(arrival.peer, arrival.row, arrival.attempt, arrival.nbytes, path)
        else:
            self._fetching.goes_on(arrival.key)

    def segment_failed(self, request: int, reason: str) -> None:
        """There is no room for a value."""
        arrival = self.arrivals.failed(request, reason)
        if arrival is None or (arrival.peer == NOBODY and not arrival.has_come):
            return  # nobody needs it, or who was to fetch it says that it will not come
        if arrival.peer != NOBODY:
            done = messages.PutDone(arrival.row, arrival.attempt, reason, full=True)
            self._ledger.effects.append(ToPeer(arrival.peer, done))
        want = self._fetching.forget(arrival.key)
        if want is not None:
            self._give_up(want, "", reason, kind="full")

    def let_others_pass(self, requests: list[int]) -> None:
        """These values wait for room, nobody knows how long: what is fetched beside them need not."""
        for request in requests:
            arrival = self.arrivals.find(request)
            want = None if arrival is None or arrival.peer != NOBODY else self._fetching.find(arrival.key)
            if arrival is None or want is None or not want.begun:
                continue
            self._fetching.stands_aside(arrival.key)
            if not want.ordered:  # else the copy would be given up
                reason = "it waits for room"
                message = messages.FetchFailed(self._ledger.epoch, want.row, want.attempt, want.address, reason)
                self._ledger.send(message)
        self._ledger.effects += [FetchFrom(*request) for request in self._fetching.requests()]

    def problem_of(self, wants: list[Want]) -> str:
        """Why there is no room for one of these values, if it waits for some."""
        stuck = any(self.arrivals.is_stuck(value_key(want.attempt, want.row)) for want in wants)
        return self._spilling.problem if stuck else ""

    def _waiting_for(self, key: int) -> list[Assignment]:
        """The assignments of the tasks that wait for that value."""
        want = self._fetching.find(key)
        tasks = () if want is None else want.waiting
        return [assignment for assignment, index in tasks if assignment.attempt << 32 | index in self._waiting]

    # ------------------------------------------------------------------ values that go

    def serve(self, peer: int, message: messages.GetValues, now: float) -> None:
        """Answer a peer that asks for values, in its order."""
        request, names = message
        keys = [value_key(attempt, row) for row, attempt in zip(names[::2], names[1::2], strict=True)]
        self.returning.answer(peer, keys, partial(self._answer, peer, request), now)

    def _answer(self, peer: int, request: int, key: int, brought: bytes | None) -> None:
        effects = self._ledger.effects
        row, attempt = value_name(key)
        value = self.values.get(key) if brought is None else brought
        if value is None:
            effects.append(ToPeer(peer, messages.ValueMissing(request, row, attempt)))
        elif isinstance(value, Segment):
            self._spilling.used(key)
            effects.append(ServeSegment(peer, request, row, attempt, value.nbytes, value.path))
        else:
            if self.values.keeps_order and brought is None:
                self.values.used_small(key)
            effects.append(ToPeer(peer, messages.Value(request, row, attempt, value)))

    def serve_piece(self, peer: int, message: messages.GetPiece, now: float) -> None:
        """Answer a peer that asks for some bytes of a large value."""
        key = value_key(message.attempt, message.row)
        self.returning.answer(peer, [key], partial(self._answer_piece, peer, message), now)

    def _answer_piece(self, peer: int, message: messages.GetPiece, key: int, brought: bytes | None) -> None:
        row, attempt, offset, nbytes = message
        value = self.values.get(key) if brought is None else brought
        self._spilling.used(key)
        asks_well = offset >= 0 and 0 < nbytes <= PIECE_LIMIT_BYTES
        if isinstance(value, Segment) and asks_well and offset + nbytes <= value.nbytes:
            self._ledger.effects.append(ServePiece(peer, row, attempt, offset, nbytes, value.path))
        else:
            self._ledger.effects.append(ToPeer(peer, messages.ValueMissing(0, row, attempt)))

    def free(self, names: list[int]) -> None:
        """Forget values, flat `[attempt, first row, count, …]`: some now, the others in the events that follow."""
        for position in range(0, len(names), 3):
            attempt, first, count = names[position : position + 3]
            self._freed.append((attempt, first, count))

    @property
    def freeing(self) -> bool:
        """Whether values remain to be forgotten; then events should follow without delay."""
        return bool(self._freed)

    def finish_freeing(self, rows: int = sys.maxsize) -> None:
        """Forget so many of the values that were freed. All of them before a name may become known anew."""
        if not self._freed:
            return
        paths: list[str] = []
        while self._freed and rows > 0:
            attempt, first, count = self._freed.popleft()
            if count > rows:
                self._freed.appendleft((attempt, first + rows, count - rows))
                count = rows
            rows -= count
            paths += self._forget(attempt, first, count)
            if len(self._fetching):
                self._end_wants(attempt, first, count)
        if paths:
            self._ledger.effects.append(RemoveSegments(paths))

    def _forget(self, attempt: int, first: int, count: int) -> list[str]:
        paths: list[str] = []
        if len(self.replicas):
            self.replicas.gone(range(value_key(attempt, first), value_key(attempt, first) + count))
        for key, segment in self.values.remove(attempt, first, count):
            paths += self._spilling.forget(key, segment)
        if self.returning.any_wanted:
            for row in range(first, first + count):
                want = self.returning.take(value_key(attempt, row))
                if want is not None:
                    self._give_up(want, want.address, "the scheduler freed it")
        return paths

    # ------------------------------------------------------------------ values that come back from disk

    def spilled_checked(self, event: SpilledChecked, now: float) -> None:
        """A spilled value was compared: who needs it goes on, or has lost it."""
        key = event.key
        if not event.reason:
            if self._spilling.checked(key, event.path, event.new_path, now):
                want = self.returning.take(key)
                if want is not None:
                    self._go_on(want)
        elif self._spilling.damaged(key, event.path):
            self._lose([key], f"{event.path} is damaged: {event.reason}")
        self.returning.go_on(now)

    def pack_read(self, event: PackRead, now: float) -> None:
        """Small values were read from their pack: who needs them goes on, or has lost them."""
        reading = self._packing.was_read(event)
        if reading.lost:
            self._lose(reading.lost, f"a pack is damaged: {reading.reason}")
        if reading.peer != NOBODY:
            self.returning.brought(reading.peer, reading.found, now)
            return
        for key, value in reading.found.items():
            want = self.returning.take(key)
            if want is not None:  # else it was freed meanwhile
                if self.values.is_packed(key):
                    self.values.bring(key, value)
                self._go_on(want)

    def files_gone(self, assignment: Assignment, paths: list[str]) -> None:
        """A slot did not find these files of what its task takes. Mostly the values were freed meanwhile; if not, then
        somebody else has removed them: whoever cleans up, or logs a user out."""
        if paths:
            self._lose_files([value_key(entry[1], entry[0]) for entry in assignment.values], paths)

    def file_gone(self, row: int, attempt: int, path: str) -> None:
        """The file of a value was not found when a peer was to be sent it."""
        self._lose_files([value_key(attempt, row)], [path])

    def _lose_files(self, keys: list[int], paths: list[str]) -> None:
        held = [(key, self.values.get(key)) for key in keys]
        lost = [key for key, value in held if isinstance(value, Segment) and value.path in paths]
        if lost:
            self._lose(lost, f"{paths[0]} was removed by somebody else")

    def _lose(self, keys: list[int], reason: str) -> None:
        """The files of these values are not what was written."""
        what = "a value is" if len(keys) == 1 else f"{len(keys)} values are"
        self._ledger.effects.append(Say(f"{what} lost, and computed again where needed: {reason}"))
        for key in keys:
            row, attempt = value_name(key)
            want = self.returning.take(key)
            paths = self._forget(attempt, row, 1)
            if paths:
                self._ledger.effects.append(RemoveSegments(paths))
            self._ledger.send(messages.FetchFailed(self._ledger.epoch, row, attempt, self._own_address, reason))
            if want is not None:
                self._give_up(want, self._own_address, reason)

    def _end_wants(self, attempt: int, first: int, count: int) -> None:
        for row in range(first, first + count):
            want = self._fetching.forget(value_key(attempt, row))
            if want is not None:
                want.ordered = False
                self._give_up(want, want.address, "the scheduler freed it")

    def finish_event(self) -> None:
        """Say what has come and ask for what is missing; called once at the end of each event."""
        self.finish_freeing(_ROWS_FREED_AN_EVENT)
        self.replicas.finish_event()
        if self._held and self._ledger.epoch:  # a client may be faster than the scheduler's welcome
            self._ledger.send(messages.Held(self._ledger.epoch, self._held))
            self._held = []
        self._ledger.effects += [FetchFrom(*request) for request in self._fetching.requests()]

    # ------------------------------------------------------------------ inside

    def _receive(self, peer: int, row: int, attempt: int, nbytes: int, data: bytes) -> None:
        self.finish_freeing()
        key = value_key(attempt, row)
        if key in self.values:
            self._now_held(peer, row, attempt, nbytes)
        elif len(data) <= SMALL_VALUE_BYTES:
            self.values.add_small(attempt, (row,), (data,))
            self._now_held(peer, row, attempt, nbytes)
        else:
            self.arrivals.has_come(Arrival(peer, row, attempt, nbytes), data)

    def _now_held(self, peer: int, row: int, attempt: int, nbytes: int) -> None:
        self._held += (row, attempt, nbytes)
        self.replicas.came(value_key(attempt, row), nbytes)
        if peer != NOBODY:
            self._ledger.effects.append(ToPeer(peer, messages.PutDone(row, attempt, "")))
        want = self._fetching.forget(value_key(attempt, row))
        if want is not None:
            if want.begun:  # a client was faster
                self._ledger.effects.append(GiveUpFetch(row, attempt))
            self._go_on(want)

    def _go_on(self, want: Want) -> None:
        for assignment, index in want.waiting:
            waiting = self._waiting.get(assignment.attempt << 32 | index)
            if waiting is not None:
                waiting.missing -= 1
                if not waiting.missing:
                    del self._waiting[assignment.attempt << 32 | index]
                    self._queue.append(assignment, index, 1)

    def _check_hopeless(self, want: Want) -> None:
        # Nobody is being asked though somebody had been named: the value was said to be nowhere else than here.
        if not want.address and want.tried:
            self._fetching.forget(value_key(want.attempt, want.row))
            self._give_up(want, want.tried[-1], "it is not there")

    def _give_up(self, want: Want, address: str, reason: str, *, kind: str = "missing") -> None:
        row, attempt = want.row, want.attempt
        message = f"an input of {want.nbytes} bytes could not be fetched from {address or 'any agent'}: {reason}"
        if kind == "full":
            limit = format_bytes(self._memory.limit_bytes)
            message = (
                f"there is no room for an input of {format_bytes(want.nbytes)} beside what is held in {limit}: {reason}"
            )
        if want.begun:
            self._ledger.effects.append(GiveUpFetch(row, attempt))
        if want.ordered or want.begun:
            self._ledger.send(messages.FetchFailed(self._ledger.epoch, row, attempt, address, reason))
        for assignment, index in want.waiting:
            if self.stop_waiting(assignment, index):
                details = {
                    "message": message,
                    "row": row,
                    "attempt": attempt,
                    "address": address,
                    "addresses": list(want.tried),
                }
                self._ledger.failed(assignment, index, kind, b"", details)
