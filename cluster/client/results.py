"""What became of tasks: waiting for them, getting their values from wherever they are, raising what they raised."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cluster.client.driver import Driver
from cluster.client.operations import Aside, Operation, Raised, Until, answer_to
from cluster.client.submission import Submission
from cluster.client.values import AgentConnections, Place
from cluster.errors import (
    CancelledError,
    ClusterError,
    ConnectionLost,
    OutOfMemory,
    RemoteError,
    StoreFull,
    TaskDied,
    TaskTimeout,
    Unrunnable,
    ValueLost,
)
from cluster.session import table as states
from cluster.session.machine import Failure
from cluster.units import format_bytes
from cluster.wire.encoded import Reference
from cluster.wire.exceptions import load_exception
from cluster.wire.payload import loads

__all__ = ["SKIPPED", "Results", "rebuild_failure"]

_NAMES_PAYLOAD = b"cluster.wire.payload"
"""In every pickle that needs more than the standard library's loader (a future in it names this module)."""

FIRST_PAUSE_SECONDS = 0.05
LOADED_AT_ONCE = 512
"""More values than these are loaded aside: that takes over a millisecond, and an event loop must not be held up."""
GIVE_UP_SECONDS = 30.0
"""So long a value may be announced by an agent that cannot be reached, or does not have it."""

_SIGNAL_NAMES = {int(known): known.name for known in signal.Signals}

SKIPPED = object()
"""Stands for the value of a task that failed."""


class Results:
    """Reads results for one client."""

    def __init__(
        self,
        driver: Driver,
        submission: Submission,
        connections: AgentConnections,
        bind_future: Callable[[Reference], Any],
    ) -> None:
        self._driver = driver
        self._session = driver.session
        self._submission = submission
        self._connections = connections
        self._bind_future = bind_future

    # ------------------------------------------------------------------ one

    def value(self, number: int, timeout: float | None) -> Operation[Any]:
        """The value of one number, or what its task raised as `Raised`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        yield from self.wait([number], timeout)
        with self._driver.guard():
            data = self._session.table.value(number)
            failed = data is None and self._session.state(number) == states.FAILED
        if data is not None:
            return self._load_at(data, 0)
        if failed:
            return Raised(self.failure(number))
        values = yield from self.values([number], deadline)
        return values if isinstance(values, Raised) else values[0]

    def exception(self, number: int, timeout: float | None) -> Operation[BaseException | None]:
        """What the task raised, or None."""
        yield from self.wait([number], timeout)
        return self.failure(number) if self._session.state(number) == states.FAILED else None

    def traceback(self, number: int, timeout: float | None) -> Operation[str | None]:
        """The remote traceback of a failed task as text, or None."""
        yield from self.wait([number], timeout)
        with self._driver.guard():
            failure = self._session.failures.get(number)
        if failure is None:
            return None
        return str(failure.details.get("traceback") or failure.details.get("message", ""))

    def failure(self, number: int) -> BaseException:
        """What a failed task raised, as an exception."""
        with self._driver.guard():
            failure = self._session.failures[number]
        return rebuild_failure(failure)

    def wait(self, numbers: Sequence[int], timeout: float | None) -> Operation[None]:
        """Wait until all these are done; raises TimeoutError, and ConnectionLost if that can no longer be."""
        session = self._session
        with self._driver.guard():
            session.want(numbers)
            done = session.all_done(numbers)
        deadline = None if timeout is None else time.monotonic() + timeout
        if not (yield Until(done, deadline, numbers[0] if len(numbers) == 1 else -1)):
            pending = self._pending(numbers)
            raise TimeoutError(f"{pending} of {len(numbers)} tasks had not ended after {timeout} seconds")
        with self._driver.guard():
            if not done():
                self._driver.check()

    def _pending(self, numbers: Sequence[int]) -> int:
        with self._driver.guard():
            return sum(self._session.state(number) == states.PENDING for number in numbers)

    # ------------------------------------------------------------------ many

    def values(
        self, numbers: Sequence[int], deadline: float | None, errors: str = "raise"
    ) -> Operation[list[Any] | Raised]:
        """The values of many numbers, in order. The first failure makes it `Raised`; with errors="skip" failed ones are
        `SKIPPED`."""
        found: list[Any] = [SKIPPED] * len(numbers)
        missing: Sequence[int] = range(len(numbers))
        pause_seconds = FIRST_PAUSE_SECONDS
        gave_up_at = float("inf")
        while missing:
            waited = [numbers[at] for at in missing] if len(missing) < len(numbers) else numbers
            yield from self.wait(waited, _remaining(deadline))
            take = partial(self._take_those_here, numbers, missing, found, errors)
            elsewhere = take() if len(missing) <= LOADED_AT_ONCE else (yield Aside(take))
            if isinstance(elsewhere, Raised):
                return elsewhere
            if not elsewhere:
                break
            places = yield from self._locate([numbers[at] for at in elsewhere], deadline)
            missing = yield Aside(partial(self._fetch, places, deadline, numbers, elsewhere, found))
            if len(missing) < len(elsewhere):
                pause_seconds, gave_up_at = FIRST_PAUSE_SECONDS, float("inf")
                continue
            # Their agent is gone, and the scheduler has not noticed; or they were lost and are computed again by now.
            gave_up_at = min(gave_up_at, time.monotonic() + GIVE_UP_SECONDS)
            if time.monotonic() > gave_up_at:
                where = ", ".join(sorted({address for place in places for address in place.addresses})) or "nobody"
                raise ConnectionLost(f"{len(missing)} values are said to be held by {where}, but cannot be had there")
            yield Until(lambda: False, time.monotonic() + min(pause_seconds, _remaining(deadline, pause_seconds)))
            pause_seconds = min(1.0, 2 * pause_seconds)
        return found

    def _fetch(
        self,
        places: list[Place],
        deadline: float | None,
        numbers: Sequence[int],
        elsewhere: list[int],
        found: list[Any],
    ) -> list[int]:
        """Get values from the agents and load them; return the places of those that could not be had."""
        data = self._connections.fetch(places, deadline)
        missing = []
        for at in elsewhere:
            if numbers[at] in data:
                found[at] = self._load_at(data[numbers[at]], at)
            else:
                missing.append(at)
        return missing

    def _take_those_here(
        self, numbers: Sequence[int], missing: Sequence[int], found: list[Any], errors: str
    ) -> list[int] | Raised:
        """Load those whose bytes are in the client; return the places of those that have to be fetched."""
        if isinstance(numbers, range) and numbers.step == 1 and len(missing) == len(numbers):
            return self._take_runs_here(numbers, found, errors)
        return self._take_each(numbers, missing, found, errors)

    def _take_each(
        self, numbers: Sequence[int], missing: Sequence[int], found: list[Any], errors: str
    ) -> list[int] | Raised:
        table = self._session.table
        elsewhere = []
        for at in missing:
            number = numbers[at]
            with self._driver.guard():
                state, data = table.state(number), table.value(number)
            if data is not None:
                found[at] = self._load_at(data, at)
            elif state == states.OFFERED:
                found[at] = self._submission.offered(number)
            elif state != states.FAILED:
                elsewhere.append(at)
            elif errors == "raise":
                return Raised(self.failure(number))
        return elsewhere

    def _take_runs_here(self, numbers: range, found: list[Any], errors: str) -> list[int] | Raised:
        """As above, page by page: that is ten times as fast where all of a page is here."""
        elsewhere: list[int] = []
        at = 0
        while at < len(numbers):
            number = numbers.start + at
            count = min(len(numbers) - at, states.PAGE_SIZE - (number & states.PAGE_MASK))
            with self._driver.guard():
                pieces = self._session.table.page_values(number, count)
            if pieces is not None:
                load = self._load
                try:
                    found[at : at + count] = [load(piece) for piece in pieces if piece is not None]
                except Exception:
                    for place, piece in enumerate(pieces, at):
                        self._load_at(piece or b"", place)  # the one that fails says which it is
                    raise
            else:
                further = self._take_each(numbers, range(at, at + count), found, errors)
                if isinstance(further, Raised):
                    return further
                elsewhere += further
            at += count
        return elsewhere

    def _load(self, data: bytes | memoryview) -> Any:
        if type(data) is bytes and data[0] == 0x80 and _NAMES_PAYLOAD not in data:
            return pickle.loads(data)
        return loads(data, bind_future=self._bind_future)

    def _load_at(self, data: bytes | memoryview, at: int) -> Any:
        """Make a value of its bytes; `at` is its place among those that were asked for."""
        try:
            return self._load(data)
        except Exception as error:
            which = f"value {at} of those that were asked for" if at else "a value that was asked for"
            error.add_note(f"raised in this process, while {which} was loaded: the task itself has succeeded")
            raise

    def _locate(self, numbers: list[int], deadline: float | None) -> Operation[list[Place]]:
        with self._driver.guard():
            request = self._session.locate(numbers)
        answer = yield from answer_to(self._driver, request, deadline)
        if answer is None:
            raise TimeoutError(f"the scheduler did not say in time where {len(numbers)} values are")
        return [
            Place(number, row, attempt, nbytes, tuple(addresses))
            for number, row, attempt, nbytes, addresses in answer.entries
        ]


def _remaining(deadline: float | None, otherwise: float | None = None) -> Any:
    return otherwise if deadline is None else max(0.0, deadline - time.monotonic())


def rebuild_failure(failure: Failure) -> BaseException:
    """Make the exception that tells of a failure."""
    details = failure.details
    kind = failure.kind
    error: BaseException
    if kind in ("exception", "unserializable", "import") and (failure.error or kind == "exception"):
        error = load_exception(failure.error, details)
        if not isinstance(error, Exception):
            # A task's SystemExit or KeyboardInterrupt, raised here, would end this program or look like its Ctrl-C.
            error = load_exception(b"", details)
    else:
        error = _own_error(kind, details)
    where = _where(details)
    if where:
        error.add_note(where)
    if details.get("remedy"):
        error.add_note(str(details["remedy"]))
    return error


def _own_error(kind: str, details: dict[str, Any]) -> ClusterError:
    message = str(details.get("message") or f"the task ended with {kind!r}")
    if kind == "died":
        attempts = int(details.get("attempts") or 0)
        signal_number = _unless_negative(details.get("signal"))
        if signal_number in _SIGNAL_NAMES:
            named = f"signal {signal_number}"
            message = message.replace(named, f"{named} ({_SIGNAL_NAMES[signal_number]})", 1)
        if attempts > 1:
            message += f", in each of {attempts} attempts"
        peak_memory_bytes = int(details.get("peak_memory_bytes") or 0)
        if peak_memory_bytes > 0:
            message += f". Its memory peaked at {format_bytes(peak_memory_bytes)}"
        last_lines = tuple(str(details.get("lines") or "").splitlines())
        wrote = " It last wrote:\n" + "\n".join(last_lines) if last_lines else " It wrote nothing."
        if "lines" not in details:
            wrote = ""  # what it wrote ended with its worker
        out_of_memory_by = str(details.get("out_of_memory_by") or "") or None
        died = (OutOfMemory if out_of_memory_by else TaskDied)(
            f"{message}.{wrote}",
            signal=signal_number,
            exit_code=_unless_negative(details.get("exit_code")),
            attempts=attempts,
            last_lines=last_lines,
            out_of_memory_by=out_of_memory_by,
            peak_memory_bytes=peak_memory_bytes,
            worker=str(details.get("worker") or ""),
        )
        if isinstance(died, OutOfMemory):
            died.memory_limit_bytes = int(details.get("memory_limit_bytes") or 0)
            died.used_bytes = int(details.get("used_bytes") or 0)
        return died
    simple: dict[str, type[ClusterError]] = {
        "timeout": TaskTimeout,
        "cancelled": CancelledError,
        "lost": ValueLost,
        "full": StoreFull,
        "unrunnable": Unrunnable,
        "import": Unrunnable,
    }
    if kind in simple:
        return simple[kind](message)
    return RemoteError(str(details.get("type", kind)), message, str(details.get("traceback", "")))


def _unless_negative(code: Any) -> int | None:
    return code if isinstance(code, int) and code >= 0 else None


def _where(details: dict[str, Any]) -> str:
    parts = []
    if details.get("key"):
        parts.append(f"task {details['key']}")
    if details.get("worker"):
        parts.append(f"on worker {details['worker']}")
    text = " ".join(parts)
    if details.get("attempts"):
        text += f", attempt {details['attempts']}"
    return text
