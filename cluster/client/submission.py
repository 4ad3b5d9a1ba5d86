"""Turning calls into what the session sends: functions, packed arguments, dependencies, large arguments apart."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cluster.client.driver import Driver
from cluster.client.functions import FunctionTable, LargeFunction, is_coroutine_function, label_of
from cluster.client.future import Future, numbers_of
from cluster.client.inputs import Inputs
from cluster.client.mapping import PLAIN_TYPES, Mapping, packed_marks
from cluster.client.operations import Operation
from cluster.client.own_segments import OfferedBytes
from cluster.session.calls import call_first
from cluster.session.parts import Call, Function
from cluster.wire.arguments import ArgumentPacker, LargeArgument, Noted
from cluster.wire.encoded import Encoded
from cluster.wire.payload import dumps, loads

__all__ = ["Submission"]

KEPT_CALLS = 256
_ONLY_FUTURES = {Future}
_NO_OPTIONS: dict[str, Any] = {}
_COROUTINE: dict[str, Any] = {"coroutine": True}


class _ThreadPacker(threading.local):
    def __init__(self) -> None:
        self.packer = ArgumentPacker()
        self.busy = False


class Submission:
    """Packs in the calling thread, outside the lock; only numbers are given out under it."""

    def __init__(self, client_id: bytes, driver: Driver, settle: Callable[[bytes], None]) -> None:
        self.client_id = client_id
        self.settle = settle
        """Waits until the scheduler has got what another client, of that id, has sent."""
        self._driver = driver
        self._session = driver.session
        self._sending = driver.sending
        self._functions = FunctionTable()
        self._plain_calls: dict[bytes, Call] = {}
        self._last_call = Call(Function(b"", "", b""), "", _NO_OPTIONS, 0)
        self._local = _ThreadPacker()
        self._offered: dict[int, object] = {}
        self._bytes: dict[int, Encoded] = {}  # of values that are being scattered
        self._offered_by_identity: dict[tuple[int, int, bool], int] = {}

    # ------------------------------------------------------------------ one task

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str | None,
        options: dict[str, Any],
        copies: bool = False,
        further: tuple[int, ...] = (),
    ) -> tuple[int, Call]:
        """Submit one task; return its number. With `copies`, a snapshot is taken of large arguments. `further`: last
        inputs, which stand nowhere in the arguments."""
        if self._session.lost is not None or self._sending.overfull:
            self._driver.check()
            self._driver.check_room()
        call, args = self._call(function, args, bool(kwargs), label, options)
        noted: Sequence[Noted] = ()
        numbers: Sequence[int] | None = None
        inputs = Inputs(self)
        kinds = None if kwargs else set(map(type, args))
        if kinds == _ONLY_FUTURES and (numbers := numbers_of(args, self.client_id)):
            piece = packed_marks(len(numbers))
        elif kinds is not None and kinds <= PLAIN_TYPES:
            numbers = ()
            piece = pickle.dumps(args, 5)
        else:
            noted, piece = self._pack(args, kwargs, copies)
            inputs.settle(noted)
        if further and numbers is not None:
            numbers = (*numbers, *further)
        driver = self._driver
        session = self._session
        # Adding to an open part cannot be interrupted half way; what else may happen is guarded, which costs 1 µs.
        number = -1
        if numbers is not None:
            with driver.lock:
                number = session.submit_to_open_part(call, piece, numbers)
        if number < 0:
            with driver.guard():
                number = session.submit(call, piece, (*inputs.numbers(noted), *further) if numbers is None else numbers)
                inputs.let_go()
        if session.flush_is_due(time.monotonic()):
            driver.flush()
        else:
            driver.arm()
        return number, call

    def _pack(self, args: tuple[Any, ...], kwargs: dict[str, Any], copies: bool) -> tuple[Sequence[Noted], bytes]:
        local = self._local
        if local.busy:
            local = _ThreadPacker()  # an argument's own pickling code submits
        packer = local.packer
        packer.copies = copies
        local.busy = True
        try:
            return packer.add(args, kwargs or None), packer.take()[1]
        except BaseException as error:
            if not isinstance(error, Exception):
                local.packer = ArgumentPacker()  # it was interrupted, who knows where
            raise
        finally:
            local.busy = False

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
            packed = trampoline._replace(is_coroutine=is_coroutine_function(function))
        if options or keywords or label:
            label = label or packed.name
            if packed.is_coroutine and "actor" not in options:
                options = {**options, **_COROUTINE}
            last = self._last_call
            if (last.function.function_id, last.label, last.options) != (packed.function_id, label, options) or (
                last.arguments != keywords
            ):
                last = self._last_call = Call(packed, label, options, int(keywords))
            return last, args
        call = self._plain_calls.get(packed.function_id)
        if call is None:
            if len(self._plain_calls) >= KEPT_CALLS:
                self._plain_calls.clear()
            call = self._plain_calls[packed.function_id] = Call(
                packed, packed.name, _COROUTINE if packed.is_coroutine else _NO_OPTIONS, 0
            )
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
        copies: bool = False,
    ) -> Operation[tuple[list[range], Call]]:
        """Submit a task for each item; return the runs of their numbers."""
        self._driver.check()
        self._driver.check_room()
        call, first_args = self._call(function, (), bool(kwargs), label, options)
        mapping = Mapping(self._driver, call, Inputs(self), copies)
        try:
            yield from mapping.send_calls(first_args, iterables, kwargs)
        except BaseException:
            self._session.dropped.extend(mapping.runs)
            raise
        return mapping.runs, call

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

    def keep_bytes(self, first: int, encoded: Sequence[Encoded | None]) -> None:
        """Keep what values from this number on were made into, for those who push them; each for one push."""
        self._bytes.update((number, each) for number, each in enumerate(encoded, first) if each is not None)

    def drop_bytes(self, numbers: Iterable[int]) -> None:
        """Whoever pushes these values from now on makes their bytes anew."""
        for number in numbers:
            self._bytes.pop(number, None)

    def offer_large(self, argument: LargeArgument) -> int:
        """Hold a large argument under a number; the one that it has while tasks need it. Call it under the lock."""
        identity = argument.identity
        number = self._offered_by_identity.get(identity)
        if number is None or not self._session.refer(number):
            number = self.offer([argument], [argument.nbytes], [[]], "demand", [])
            self._driver.read_soon()
            self._offered_by_identity[identity] = number
        return number

    def share(self, number: int) -> None:
        """A large argument is one of several tasks; call it under the lock."""
        self._session.share(number)

    def alias(self, reference: Sequence[Any]) -> int:
        """Take a number for another client's task; call it under the lock."""
        return self._session.alias([(reference[0], reference[1])])

    def drop(self, numbers: Iterable[int]) -> None:
        """Give numbers up."""
        self._session.dropped.extend(numbers)

    def offered(self, number: int) -> object:
        """A value that this client holds."""
        value = self._offered[number]
        if not isinstance(value, LargeArgument):
            return value
        return value.value if value.snapshot is None else loads(value.snapshot)

    def encode_offered(self, number: int) -> Encoded | None:
        """The bytes of a value that this client holds, or None; they are made anew, and not kept.

        Raises ArgumentChanged if it is a large argument that is not any more what it was at the call.
        """
        offered = self.offered_bytes(number)
        return None if offered is None else offered.checked()

    def offered_bytes(self, number: int) -> OfferedBytes | None:
        """The same for one who finds the checksum on the way."""
        with self._driver.guard():
            if number not in self._offered:
                return None
            value = self._offered[number]
        if not isinstance(value, LargeArgument):
            kept = self._bytes.pop(number, None)
            return OfferedBytes(dumps(value, name="scattered data") if kept is None else kept, None)
        return OfferedBytes(value.encode(), None if value.snapshot is not None else value.check)

    def forget(self, numbers: Sequence[int]) -> None:
        """Nobody will ask for these values again."""
        for number in numbers:
            value = self._offered.pop(number)
            if isinstance(value, LargeArgument) and self._offered_by_identity.get(value.identity) == number:
                del self._offered_by_identity[value.identity]
