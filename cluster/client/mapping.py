"""Packing the calls of one map and sending them, part by part, while the rest is still to be packed.

Four ways, the fastest that applies: all arguments are futures (one argument blob for all tasks; 0.1 µs a task where
they come in sequences of futures, by arithmetic), columns of numbers from lists and ranges (0.05 µs), other plain
values from such (the C pickler alone: 0.4 µs), anything else (the packer that finds futures and large values: 1 µs and
more).
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat
from typing import Any, cast

from cluster.client.driver import Driver
from cluster.client.future import Future, FutureSequence, numbers_of, packed_numbers
from cluster.client.inputs import Inputs
from cluster.client.operations import Operation, Until
from cluster.session.parts import LINKED_PART_INPUTS, LINKED_PART_TASKS, PART_TASKS, Call
from cluster.wire.arguments import ArgumentPacker, Noted
from cluster.wire.number_columns import pack_number_calls
from cluster.wire.payload import FutureReference, Mark, dumps

__all__ = ["PLAIN_TYPES", "Mapping"]

FIRST_PART_TASKS = 256
"""The first part of a map is small: its tasks run while the rest is being packed."""
PART_BYTES = 1 << 20
SHARED_INPUTS = 4
"""Tasks that all take the same inputs say so once, if they are so many."""
PART_APART_BYTES = 16 << 20
"""A part leaves when its large arguments take so much: they can only go once it has."""

PLAIN_TYPES = frozenset({int, float, bool, complex, type(None)})
"""What can hold no future, and is never large."""
_IN_MEMORY = (range, list, tuple)
"""Iterables whose items are there already, so that taking many at once runs nobody's code and costs no memory."""


@lru_cache(maxsize=64)
def packed_marks(count: int) -> bytes:
    """The arguments of a call whose arguments are its inputs."""
    return dumps(tuple(map(Mark, range(count)))).to_bytes()


class Mapping:
    """One map under way."""

    def __init__(self, driver: Driver, call: Call, inputs: Inputs, copies: bool = False) -> None:
        self.runs: list[range] = []
        """The numbers that its tasks got: one run, unless others submitted meanwhile. Each is a batch of its own."""
        self._driver = driver
        self._call = call
        self._inputs = inputs
        self._packer = ArgumentPacker(copies)
        self._part_tasks = FIRST_PART_TASKS
        self._produced = False  # whether what is packed only comes into being by and by

    def send_calls(
        self, first_args: tuple[Any, ...], iterables: Sequence[Iterable[Any]], kwargs: dict[str, Any]
    ) -> Operation[None]:
        """Pack and send a call for each tuple of items."""
        self._produced = not all(type(each) in _IN_MEMORY or isinstance(each, FutureSequence) for each in iterables)
        sequences = [each for each in iterables if isinstance(each, FutureSequence)]
        if not first_args and len(sequences) == len(iterables) and self._send_arithmetic(sequences, kwargs):
            return
        if first_args or kwargs or not all(type(each) in _IN_MEMORY for each in iterables):
            yield from self._send_any(first_args, zip(*map(self._without_futures, iterables), strict=False), kwargs)
            return
        at = 0
        while True:
            columns = [each[at : at + self._part_tasks] for each in cast("Sequence[Sequence[Any]]", iterables)]
            count = min(map(len, columns))
            if not count:
                return
            at += count
            yield from self._send_columns([column[:count] for column in columns])

    def _send_columns(self, columns: list[Sequence[Any]]) -> Operation[None]:
        """Send calls whose arguments are all there, by the fastest way that they allow."""
        packed = pack_number_calls(columns)
        if packed is not None:
            self._send(len(columns[0]), *packed, b"", b"")
            return
        calls = list(zip(*columns, strict=True))
        kinds = set(map(type, chain.from_iterable(calls)))
        numbers = numbers_of(chain.from_iterable(calls), self._inputs.client_id) if kinds == {Future} else None
        if kinds <= PLAIN_TYPES:
            self._send_plain(calls)
        elif numbers is not None:
            self._send_linked(packed_marks(len(columns)), len(columns), array("q", numbers))
        else:
            yield from self._send_any((), iter(calls), kwargs={})

    def _without_futures(self, iterable: Iterable[Any]) -> Iterable[Any]:
        """A sequence of futures as references, which cost less than futures; the caller keeps the sequence."""
        if not isinstance(iterable, FutureSequence):
            return iterable
        numbers = iterable.numbers()
        client_id = iterable.client_id
        return (FutureReference((client_id, number)) for number in numbers)

    def _send_arithmetic(self, sequences: list[FutureSequence], kwargs: dict[str, Any]) -> bool:
        client_ids = {sequence.client_id for sequence in sequences}
        if client_ids != {self._inputs.client_id}:
            return False
        width = len(sequences)
        blob = packed_marks(width)
        if kwargs:
            packer = ArgumentPacker()
            if packer.add(tuple(map(Mark, range(width))), kwargs):
                return False  # there are futures or large values among the keywords
            blob = packer.blob()
        count = min(map(len, sequences))
        numbers = array("q", bytes(8 * width * count))
        for position, sequence in enumerate(sequences):
            numbers[position::width] = packed_numbers(sequence.numbers())[:count]
        self._send_linked(blob, width, numbers)
        return True

    def _send_linked(self, blob: bytes, width: int, numbers: array[int]) -> None:
        """Send calls that all have the same packed arguments, and so many inputs each."""
        count, at = len(numbers) // width, 0
        while at < count:
            size = min(count - at, self._part_tasks, LINKED_PART_TASKS, max(1, LINKED_PART_INPUTS // width))
            starts = array("I", range(0, width * size + 1, width))
            self._send(size, b"", blob, starts.tobytes(), numbers[at * width : (at + size) * width].tobytes())
            at += size

    def _send_plain(self, calls: list[tuple[Any, ...]]) -> None:
        pieces = list(map(pickle.dumps, calls, repeat(5)))
        ends = array("I", accumulate(map(len, pieces), initial=0))
        parts = 1 + ends[-1] // PART_BYTES  # more than one only for numbers of a thousand digits
        size = -(-len(pieces) // parts)
        for start in range(0, len(pieces), size):
            part = pieces[start : start + size]
            offsets = ends if parts == 1 else array("I", accumulate(map(len, part), initial=0))
            self._send(len(part), offsets.tobytes(), b"".join(part), b"", b"")

    def _send_any(
        self, first_args: tuple[Any, ...], calls: Iterator[tuple[Any, ...]], kwargs: dict[str, Any]
    ) -> Operation[None]:
        add, ends = self._packer.add, self._packer.offsets
        inputs = self._inputs
        keywords = kwargs or None
        numbers: dict[int, list[int]] = {}
        kept: list[Any] = []  # calls with futures: these must not be released before their part has left
        count = links = 0
        try:
            previous: Sequence[Noted] = ()
            for args in calls:
                if not count and self._produced:
                    yield from self._wait_for_room()
                noted = add(first_args + args if first_args else args, keywords)
                if noted:
                    if count and noted == previous:
                        numbers[count] = numbers[count - 1]
                        links += 1
                    else:
                        inputs.settle(noted)
                        with self._driver.guard():
                            numbers[count] = inputs.numbers(noted)
                        links += len(noted)
                    kept.append(args)
                previous = noted
                count += 1
                if (
                    count >= self._part_tasks
                    or ends[-1] >= PART_BYTES
                    or inputs.nbytes >= PART_APART_BYTES
                    or (links and (count >= LINKED_PART_TASKS or links >= LINKED_PART_INPUTS))
                ):
                    self._send_packed(count, numbers)
                    apart = inputs.nbytes
                    inputs.let_go()
                    if apart:  # its tasks may end before the last is packed; what they take shall be free then
                        self._driver.flush()
                    count = links = 0
                    numbers = {}
                    kept.clear()
            if count:
                self._send_packed(count, numbers)
        finally:
            inputs.let_go()

    def _wait_for_room(self) -> Operation[None]:
        """What was sent before may be as much as the scheduler and this process should hold."""
        session = self._driver.session
        if not session.has_room:
            yield Until(lambda: session.has_room)
            self._driver.check()

    def _send_packed(self, count: int, inputs: dict[int, list[int]]) -> None:
        offsets, blob = self._packer.take()
        starts, dependencies = b"", b""
        first = inputs.get(0, ())
        if len(first) >= SHARED_INPUTS and count > 1 and all(inputs.get(at) == first for at in range(1, count)):
            dependencies = array("q", first).tobytes()  # no starts: all tasks take all of these
        elif inputs:
            columns = array("q")
            ends = array("I", (0,))
            for at in range(count):
                columns.extend(inputs.get(at, ()))
                ends.append(len(columns))
            starts, dependencies = ends.tobytes(), columns.tobytes()
        self._send(count, offsets, blob, starts, dependencies)

    def _send(self, count: int, offsets: bytes, blob: bytes, starts: bytes, dependencies: bytes) -> None:
        """Send the next part."""
        runs = self.runs
        batch, following = (runs[-1].start, runs[-1].stop) if runs else (-1, -1)
        with self._driver.guard():
            first = self._driver.session.submit_part(
                self._call, count, offsets, blob, starts, dependencies, batch=batch, following=following
            )
            if runs and first == following:
                runs[-1] = range(runs[-1].start, first + count)
            else:
                runs.append(range(first, first + count))
        self._driver.send()
        self._driver.check()
        self._driver.check_room()
        self._part_tasks = PART_TASKS
