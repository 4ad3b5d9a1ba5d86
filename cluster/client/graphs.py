"""Sending the tasks of a graph whose tasks name one another by keys of their own.

The tasks come in an order in which each stands after its inputs. Those of one depth and one function are sent together,
so that they are a few batches for the scheduler, and not many single submits. What is not asked for is given up as soon
as all that take it were submitted: a value is freed when the last task that takes it has ended, while the rest of a
large graph is still being sent.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.client.client import Client
from cluster.client.future import Future
from cluster.client.inputs import Inputs
from cluster.client.mapping import PLAIN_TYPES
from cluster.session.parts import Call
from cluster.wire.arguments import LARGE_BYTES, ArgumentPacker, LargeArgument, Noted
from cluster.wire.payload import FutureReference, dumps, loads

__all__ = ["GraphSubmission", "GraphTask", "input_of", "packed_with_marks"]

_IN_GRAPH = b"a task of the graph that is being sent"
"""Stands where a reference to a future has the id of its client."""
SENT_TOGETHER = 2048
"""So many tasks are packed before they are added to the session, under its lock."""
_NO_OPTIONS: dict[str, Any] = {}


class GraphTask(NamedTuple):
    """One task. Where an input's value goes, at any depth of the arguments, `input_of(key)` stands."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: Sequence[Hashable] = ()
    """The inputs' keys, if the arguments are packed already."""
    packed: bytes | None = None
    """The arguments with marks for the inputs (`packed_with_marks`); there are no keywords then."""


def input_of(key: Hashable) -> FutureReference:
    """What stands in the arguments of a task for the value of another one of the same graph."""
    return FutureReference((_IN_GRAPH, key))


def packed_with_marks(args: tuple[Any, ...]) -> bytes:
    """Pack arguments that are plain data, and a `Mark` for each input; may be used for many tasks."""
    return pickle.dumps(args, 5)


class _Packed(NamedTuple):
    key: Hashable
    call: Call
    piece: bytes
    inputs: Sequence[Noted] | Sequence[Hashable]
    only_keys: bool


class GraphSubmission:
    """One graph on its way. Use it as a context, within which the graph's objects stay as they are."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._submission = client._submission
        self._driver = client._driver
        self._inputs = Inputs(client._submission)
        self._packer = ArgumentPacker()
        self._numbers: dict[Hashable, int] = {}
        self._calls: dict[tuple[int, str, int, bool], tuple[Call, tuple[Any, ...]]] = {}
        self._packed: list[_Packed] = []
        self._taken: list[Hashable] = []  # keys that nothing takes which is not among the packed ones

    def __enter__(self) -> GraphSubmission:
        self._driver.check()
        self._driver.check_room()
        return self

    def __exit__(self, *error: object) -> None:
        """Send what is left; give up what nobody holds a future of."""
        self._packed.clear()
        self._inputs.let_go()
        self._client._session.dropped.extend(_runs(self._numbers.values()))
        self._driver.flush()

    def is_large(self, value: object) -> bool:
        """Whether a value would travel apart from the arguments it stands in."""
        return type(value) not in PLAIN_TYPES and dumps(value, name="data").nbytes > LARGE_BYTES

    def add_data(self, key: Hashable, value: object) -> None:
        """Let a large value be the one of a key; it goes to the workers that need it, once."""
        encoded = dumps(value, name=f"the data of {key!r:.100}")
        with self._driver.guard():
            self._numbers[key] = self._submission.offer_large(LargeArgument(value, encoded, copies=False))

    def add(
        self,
        key: Hashable,
        task: GraphTask,
        label: str,
        options: Mapping[str, Any] = _NO_OPTIONS,
        last_of: Sequence[Hashable] = (),
    ) -> None:
        """Add a task; its inputs were added before. The options are as `checked_options` gives them, and stay the very
        same object for tasks that shall be sent together. `last_of`: keys that no later task takes, and nobody asked
        for."""
        function, args, kwargs, inputs, piece = task
        place = id(function), label, id(options), bool(kwargs)
        found = self._calls.get(place)
        if found is None:
            found = self._submission._call(function, (), bool(kwargs), label, dict(options))
            self._calls[place] = found
        call, first_args = found
        if piece is not None and not first_args:
            self._packed.append(_Packed(key, call, piece, inputs, True))
        else:
            if piece is not None:
                args = loads(piece, inputs=[input_of(each) for each in inputs])
            noted = self._packer.add(first_args + args, dict(kwargs) or None)
            self._packed.append(_Packed(key, call, self._packer.take()[1], noted, False))
            strangers = [each for each in noted if isinstance(each, LargeArgument) or each[0] is not _IN_GRAPH]
            if strangers:
                self._inputs.settle(strangers)
        self._taken += last_of
        if len(self._packed) >= SENT_TOGETHER:
            self.send()

    def send(self) -> None:
        """Number what was added, and send what fills a part."""
        packed, numbers = self._packed, self._numbers
        session = self._client._session
        self._driver.check()
        with self._driver.guard():
            for key, call, piece, inputs, only_keys in packed:
                found = [numbers[each] for each in inputs] if only_keys else self._numbers_of(inputs)
                numbers[key] = session.submit(call, piece, found)
        packed.clear()
        given_up = sorted(numbers.pop(key) for key in self._taken if key in numbers)
        self._taken.clear()
        if given_up:
            session.dropped.extend(_runs(given_up))
            self._driver.flush()
        else:
            self._driver.send()

    def _numbers_of(self, noted: Iterable[Any]) -> list[int]:
        inputs, numbers = self._inputs, self._numbers
        return [
            numbers[each[1]]
            if not isinstance(each, LargeArgument) and each[0] is _IN_GRAPH
            else inputs.numbers((each,))[0]
            for each in noted
        ]

    def future_of(self, key: Hashable, label: str) -> Future:
        """A future of a task, or of data, that was added and sent."""
        return self._client._future(self._numbers[key], self._client._origin(label))


def _runs(numbers: Iterable[int]) -> list[range]:
    runs: list[range] = []
    start = stop = -1
    for number in numbers:
        if number != stop:
            if start >= 0:
                runs.append(range(start, stop))
            start = number
        stop = number + 1
    if start >= 0:
        runs.append(range(start, stop))
    return runs
