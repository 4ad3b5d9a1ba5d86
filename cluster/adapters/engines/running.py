"""Running one call: from bytes to bytes, as a slot does it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, NamedTuple

from cluster.adapters.engines.protocol import Outcome, Run
from cluster.client.core import ClientCore, client_of_task
from cluster.daemon.task_context import running_inside
from cluster.errors import SerializationError
from cluster.session.machine import Failure
from cluster.session.parts import Function
from cluster.wire.encoded import Reference
from cluster.wire.exceptions import dump_exception
from cluster.wire.payload import dumps, loads

__all__ = ["Answer", "LoadedFunctions", "RunHere", "answer_call", "current_run"]

SMALL_VALUE_BYTES: Final = 64 * 1024
FUNCTIONS_KEPT: Final = 256


class Answer(NamedTuple):
    """What came of a call, as plain data that any transport carries; `kind` is empty if it has a value."""

    kind: str
    data: bytes
    """The value, or the exception."""
    details: dict[str, Any]
    contains: list[tuple[bytes, int]]


class LoadedFunctions:
    """Functions by their content hash, so that each is unpickled once; whichever was not used longest is dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()

    def load(self, function: Function) -> Callable[..., Any]:
        """The function itself."""
        with self._lock:
            found = self._loaded.get(function.function_id)
        if found is None:
            found = loads(function.blob)
            with self._lock:
                self._loaded[function.function_id] = found
                if len(self._loaded) > FUNCTIONS_KEPT:
                    self._loaded.popitem(last=False)
        return found


def answer_call(
    functions: LoadedFunctions,
    function: Function,
    arguments: bytes,
    keywords: bool,
    inputs: Sequence[bytes],
    bind_future: Callable[[Reference], Any],
    raised: Callable[[BaseException], None] = lambda error: None,
) -> Answer:
    """Load and make a call. What it raises is the answer; `raised` is told before, and may raise it on."""
    what = f"the function {function.name}"
    try:
        call = functions.load(function)
        what = f"what {function.name} was given as arguments"
        values = [loads(_own(data), bind_future=bind_future) for data in inputs]
        positional, named = _arguments(loads(arguments, inputs=values, bind_future=bind_future), keywords)
        del values
        what = ""
        value = call(*positional, **named)
        del positional, named
        if isinstance(value, Coroutine):
            value = _run_coroutine(value)
        encoded = dumps(value, name="result")
        return Answer("", encoded.to_bytes(), {}, [(each[0], each[1]) for each in encoded.futures])
    except BaseException as error:  # SystemExit and KeyboardInterrupt in a task are failures of the task
        raised(error)
        if what:
            error.add_note(f"raised while {what} was loaded")
        data, details = dump_exception(error)
        return Answer("unserializable" if isinstance(error, SerializationError) else "exception", data, details, [])


def _arguments(call: Any, keywords: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return call if keywords else (call, {})


def _own(data: bytes) -> bytes | bytearray:
    """What a task may write to: a large array lies in the bytes that it was loaded from."""
    return data if data[:1] == b"\x80" else bytearray(data)


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    return _run_beside(coroutine)


def _run_beside(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """An event loop runs in this thread (in a notebook, say): use another thread."""
    found: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(coroutine))
        except BaseException as error:  # raised again below
            raised.append(error)

    thread = threading.Thread(target=run, name="cluster-coroutine")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]


# --------------------------------------------------------------------------- in this process


class RunHere:
    """Runs calls in the calling thread, for a client of this process."""

    def __init__(self, engine_name: str, client: ClientCore) -> None:
        self._engine_name = engine_name
        self._client = client
        self._functions = LoadedFunctions()
        self.last_failure: tuple[str, TracebackType | None] = "", None
        """The key of the task that failed last in its caller's thread, and its live frames, for a debugger. They keep
        what the caller had in its variables, so it is one failure's, and no more."""

    def outcome(self, run: Run, *, in_caller: bool = False) -> Outcome:
        """Run it. In the caller's thread Ctrl-C is the caller's, and the frames of a failure are kept."""

        def raised(error: BaseException) -> None:
            if in_caller and isinstance(error, KeyboardInterrupt):
                raise error
            if in_caller:
                self.last_failure = run.key, _users_frames(error.__traceback__)

        client_token = client_of_task.set(lambda: self._client)
        run_token = _running.set(_RunningTask(run, self._engine_name))
        try:
            answer = answer_call(
                self._functions,
                run.function,
                run.arguments,
                run.keywords,
                run.inputs,
                self._client._bind_future,
                raised,
            )
        finally:
            _running.reset(run_token)
            client_of_task.reset(client_token)
        if answer.kind:
            return Outcome(Failure(answer.kind, answer.data, answer.details))
        nbytes = len(answer.data)
        small = answer.data if nbytes <= SMALL_VALUE_BYTES else b""
        return Outcome(None, answer.data, small, nbytes, answer.contains)


def _users_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this file at its beginning, unless nothing would be left."""
    users = traceback
    while users is not None and users.tb_frame.f_code.co_filename == __file__:
        users = users.tb_next
    return users or traceback


class _RunningTask:
    """What `cluster.current()` tells of a run here; see `cluster.daemon.task_context.TaskRun`."""

    def __init__(self, run: Run, engine_name: str) -> None:
        self.run = run
        self.key = run.key
        self.worker = engine_name
        self.attempt = run.attempt
        self.deadline: float | None = None

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return not self.run.ended

    def is_cancelled(self) -> bool:
        """Whether nobody wants what comes of it."""
        return self.run.cancelled

    def report_progress(self, fraction: float, message: str) -> bool:
        """Tell how far it is."""
        self.run.progress = fraction, message
        return True

    def report_log(self, record: logging.LogRecord) -> None:
        """Hand a record to this process's loggers."""
        logging.getLogger(record.name).handle(record)


_running: ContextVar[_RunningTask | None] = ContextVar("running_task", default=None)


def current_run() -> Run | None:
    """The run that the calling code belongs to, if it is one of this process."""
    running = _running.get()
    return None if running is None else running.run


running_inside(_running.get)
