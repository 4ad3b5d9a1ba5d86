"""Turning calls into what the session sends: functions, packed arguments, dependencies, large arguments apart."""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cluster.client.driver import Driver
from cluster.client.functions import FunctionTable, LargeFunction, label_of
from cluster.client.future import FutureSequence, packed_numbers
from cluster.client.interrupts import Shield
from cluster.session.calls import call_first
from cluster.session.parts import PART_TASKS, Call, Function
from cluster.wire.arguments import ArgumentPacker, LargeArgument, Noted
from cluster.wire.payload import Encoded, Mark, dumps

__all__ = ["Submission"]

FIRST_PART_TASKS = 256
"""The first part of a map is small: its tasks run while the rest is being packed."""
PART_BYTES = 1 << 20
PART_APART_BYTES = 64 << 20
"""A part leaves when its large arguments take so much: they can only go once it has."""

_NO_OPTIONS: dict[str, Any] = {}


class _ThreadPacker(threading.local):
    def __init__(self) -> None:
        self.packer = ArgumentPacker()
        self.busy = False


class Submission:
    """Packs in the calling thread, outside the lock; only numbers are given out under it."""

    def __init__(self, client_id: bytes, driver: Driver) -> None:
        self._client_id = client_id
        self._driver = driver
        self._session = driver.session
        self._functions = FunctionTable()
        self._plain_calls: dict[bytes, Call] = {}
        self._last_call = Call(Function(b"", "", b""), "", _NO_OPTIONS, 0)
        self._local = _ThreadPacker()
        self._offered: dict[int, object] = {}
        self._offered_by_identity: dict[int, int] = {}

    # ------------------------------------------------------------------ one task

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str | None,
        options: dict[str, Any],
    ) -> tuple[int, Call]:
        """Submit one task; return its number."""
        if self._session.lost is not None:
            self._driver.check()
        call, args = self._call(function, args, bool(kwargs), label, options)
        local = self._local
        if local.busy:
            local = _ThreadPacker()  # an argument's own pickling code submits
        packer = local.packer
        local.busy = True
        try:
            noted = packer.add(args, kwargs or None)
            piece = packer.take()[1]
        finally:
            local.busy = False
        driver = self._driver
        session = self._session
        with driver.lock:
            if noted:
                inputs = _Inputs(self, self._client_id)
                number = session.submit(call, piece, inputs.numbers(noted))
                inputs.let_go()
            else:
                number = session.submit(call, piece)
            due = session.flush_is_due(time.monotonic())
            if not due:
                driver.arm()
        if due:
            driver.flush()
        return number, call

    def _call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        keywords: bool,
        label: str | None,
        options: dict[str, Any],
    ) -> tuple[Call, tuple[Any, ...]]:
        packed = self._functions.pack(function)
        if isinstance(packed, LargeFunction):
            args = (function, *args)
            label = label or label_of(function)
            trampoline = self._functions.pack(call_first)
            assert not isinstance(trampoline, LargeFunction)
            packed = trampoline
        if options or keywords or label:
            label = label or packed.name
            last = self._last_call
            if (last.function.function_id, last.label, last.options) != (packed.function_id, label, options) or (
                last.arguments != keywords
            ):
                last = self._last_call = Call(packed, label, options, int(keywords))
            return last, args
        call = self._plain_calls.get(packed.function_id)
        if call is None:
            call = self._plain_calls[packed.function_id] = Call(packed, packed.name, _NO_OPTIONS, 0)
        return call, args

    def pure_key(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> str:
        """A key from the content of the function, the arguments and the options."""
        packed = self._functions.pack(function)
        content = function if isinstance(packed, LargeFunction) else packed.function_id
        digest = hashlib.blake2b(digest_size=16)
        for part in dumps((content, args, sorted(kwargs.items()), sorted(options.items())), name="arguments").parts:
            digest.update(part)
        return f"{label_of(function)}-{digest.hexdigest()}"

    # ------------------------------------------------------------------ many tasks

    def map(
        self,
        function: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        kwargs: dict[str, Any],
        label: str | None,
        options: dict[str, Any],
    ) -> tuple[list[range], Call, int]:
        """Submit a task for each item; return the runs of their numbers, and the batch."""
        self._driver.check()
        call, first_args = self._call(function, (), bool(kwargs), label, options)
        parts = _Parts(self._driver, call)
        try:
            if not first_args and iterables and all(isinstance(each, FutureSequence) for each in iterables):
                if self._map_sequences(parts, iterables, kwargs):
                    return parts.runs, call, parts.batch
            self._map_items(parts, first_args, zip(*iterables, strict=False), kwargs)
        except BaseException:
            self._session.dropped.extend(parts.runs)
            raise
        return parts.runs, call, parts.batch

    def _map_sequences(self, parts: _Parts, sequences: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """All iterables are sequences of futures: the inputs are arithmetic, and all tasks share their arguments."""
        packer = ArgumentPacker()
        width = len(sequences)
        if packer.add(tuple(map(Mark, range(width))), kwargs or None):
            return False  # futures or large values among the keywords
        blob = packer.blob()
        count = min(map(len, sequences))
        columns = [packed_numbers(sequence.numbers()) for sequence in sequences]
        at = 0
        while at < count:
            size = min(count - at, parts.limit)
            dependencies = array("q", bytes(8 * width * size))
            for position, column in enumerate(columns):
                dependencies[position::width] = column[at : at + size]
            starts = array("I", range(0, width * size + 1, width))
            parts.send(size, b"", blob, starts.tobytes(), dependencies.tobytes())
            at += size
        return True

    def _map_items(
        self, parts: _Parts, first_args: tuple[Any, ...], items: Iterator[tuple[Any, ...]], kwargs: dict[str, Any]
    ) -> None:
        packer = ArgumentPacker()
        add, ends = packer.add, packer.offsets
        keywords = kwargs or None
        inputs = _Inputs(self, self._client_id)
        numbers: dict[int, list[int]] = {}
        count = 0
        try:
            for args in items:
                noted = add(first_args + args if first_args else args, keywords)
                if noted:
                    with self._driver.lock:
                        numbers[count] = inputs.numbers(noted)
                count += 1
                if count >= parts.limit or ends[-1] >= PART_BYTES or inputs.nbytes >= PART_APART_BYTES:
                    self._send_items(parts, packer, count, numbers)
                    inputs.let_go()
                    count = 0
                    numbers = {}
            if count:
                self._send_items(parts, packer, count, numbers)
        finally:
            inputs.let_go()

    def _send_items(self, parts: _Parts, packer: ArgumentPacker, count: int, inputs: dict[int, list[int]]) -> None:
        offsets, blob = packer.take()
        starts, dependencies = b"", b""
        if inputs:
            columns = array("q")
            ends = array("I", (0,))
            for at in range(count):
                columns.extend(inputs.get(at, ()))
                ends.append(len(columns))
            starts, dependencies = ends.tobytes(), columns.tobytes()
        parts.send(count, offsets, blob, starts, dependencies)

    # ------------------------------------------------------------------ offered values

    def offer(
        self,
        values: Sequence[object],
        sizes: Sequence[int],
        contains: Sequence[Any],
        placement: str,
        workers: Sequence[str],
    ) -> int:
        """Hold values under numbers of their own; call it under the lock."""
        first = self._session.offer(sizes, contains, placement=placement, workers=workers)
        self._offered.update(enumerate(values, first))
        return first

    def offer_large(self, argument: LargeArgument) -> int:
        """Hold a large argument under a number; the one that it has while tasks need it. Call it under the lock."""
        identity = id(argument.value)
        number = self._offered_by_identity.get(identity)
        if number is None or not self._session.refer(number):
            number = self.offer([argument.value], [argument.nbytes], [[]], "demand", [])
            self._offered_by_identity[identity] = number
        return number

    def alias(self, reference: Sequence[Any]) -> int:
        """Take a number for another client's task; call it under the lock."""
        return self._session.alias([(reference[0], reference[1])])

    def drop(self, numbers: Iterable[int]) -> None:
        """Give numbers up."""
        self._session.dropped.extend(numbers)

    def offered(self, number: int) -> object:
        """A value that this client holds."""
        return self._offered[number]

    def encode_offered(self, number: int) -> Encoded | None:
        """The bytes of a value that this client holds, or None; they are made anew, and not kept."""
        with self._driver.lock:
            if number not in self._offered:
                return None
            value = self._offered[number]
        return dumps(value, name="a large argument")

    def forget(self, numbers: Sequence[int]) -> None:
        """Nobody will ask for these values again; called under the lock."""
        for number in numbers:
            value = self._offered.pop(number)
            if self._offered_by_identity.get(id(value)) == number:
                del self._offered_by_identity[id(value)]


class _Inputs:
    """The numbers of what the marks of calls stand for. What is made for them is held until `let_go`."""

    def __init__(self, submission: Submission, client_id: bytes) -> None:
        self._submission = submission
        self._client_id = client_id
        self._held: dict[object, int] = {}
        self.nbytes = 0
        """Bytes of the large arguments that are held."""

    def numbers(self, noted: Sequence[Noted]) -> list[int]:
        """Find or make the numbers; call it under the lock."""
        return [self._number(each) for each in noted]

    def _number(self, noted: Noted) -> int:
        if isinstance(noted, LargeArgument):
            identity: object = id(noted.value)
            number = self._held.get(identity)
            if number is None:
                number = self._held[identity] = self._submission.offer_large(noted)
                self.nbytes += noted.nbytes
            return number
        if noted[0] == self._client_id:
            return int(noted[1])
        number = self._held.get(noted)
        if number is None:
            number = self._held[noted] = self._submission.alias(noted)
        return number

    def let_go(self) -> None:
        """The tasks are submitted: nothing is held here any more."""
        if self._held:
            self._submission.drop(self._held.values())
            self._held = {}
            self.nbytes = 0


class _Parts:
    """Sends the parts of one map, and remembers which numbers they got."""

    def __init__(self, driver: Driver, call: Call) -> None:
        self._driver = driver
        self._call = call
        self.batch = -1
        self.runs: list[range] = []
        self.limit = FIRST_PART_TASKS

    def send(self, count: int, offsets: bytes, blob: bytes, starts: bytes, dependencies: bytes) -> None:
        """Send the next part; waits while the scheduler does not take it."""
        runs = self.runs
        following = runs[-1].stop if runs else -1
        with Shield():
            with self._driver.lock:
                first, batch = self._driver.session.submit_part(
                    self._call, count, offsets, blob, starts, dependencies, batch=self.batch, following=following
                )
            if self.batch < 0:
                self.batch = batch
            if runs and batch == self.batch:
                runs[-1] = range(runs[-1].start, first + count)
            else:
                runs.append(range(first, first + count))
        self._driver.send()
        self._driver.check()
        self.limit = PART_TASKS
