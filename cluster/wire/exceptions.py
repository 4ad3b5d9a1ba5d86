"""A task's exception on its way to the client: the object where it can be rebuilt, and bounded text in any case.

`dump_exception` gives `(data, details)`. `data` is a value (payload.py), empty if the exception cannot be rebuilt: a
list `[exception, is_cause, exception, is_cause, …]` of it, and what it was raised from (`is_cause` true) or during.
What in an exception is large or cannot be pickled is left out, and a note of it says so; it keeps its class.
`details` is text by name, each bounded:

    type        the class's full name, "builtins." left out
    message     what the exception says
    traceback   the traceback as Python prints it, causes included, without the frames of this package
    cause       the last line of what it was raised from, if anything

`load_exception` makes an exception from both; the traceback becomes a note of it.
"""

from __future__ import annotations

import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from cluster.errors import RemoteError, SerializationError
from cluster.wire.payload import dumps, loads

DATA_LIMIT_BYTES = 1 << 20
MEMBER_LIMIT_BYTES = 1 << 17
"""Where something has to be left out, what is larger is."""
TEXT_LIMIT_BYTES = 65536
MESSAGE_LIMIT_BYTES = 8192
CHAIN_LIMIT = 8
_TRAVELS_APART = ("__traceback__", "__cause__", "__context__", "__suppress_context__")
_NOTE = "Remote traceback:\n"


def dump_exception(
    error: BaseException, hide_frames_of: tuple[str, ...] = ("cluster",)
) -> tuple[bytes, dict[str, Any]]:
    """Turn an exception into bytes and text; frames of modules of the packages named are left out of the text."""
    details = {
        "type": _type_name(type(error)),
        "message": _bounded(_message(error), MESSAGE_LIMIT_BYTES),
        "traceback": _bounded(_traceback_text(error, hide_frames_of), TEXT_LIMIT_BYTES),
    }
    origin, _ = _origin(error)
    if origin is not None:
        text = _message(origin)
        details["cause"] = _bounded(f"{_type_name(type(origin))}: {text}" if text else _type_name(type(origin)), 1024)
    return _data(error), details


def load_exception(data: bytes | memoryview, details: dict[str, Any]) -> BaseException:
    """Make the exception again, with its remote traceback as a note; a `RemoteError` if it cannot be made here."""
    error = _load_chain(data) if len(data) else None
    if error is not None:
        text = details.get("traceback", "")
        if not text or _add_traceback(error, text):
            return error
    type_name = str(details.get("type", "Exception"))
    remote = RemoteError(type_name, str(details.get("message", "")), str(details.get("traceback", "")))
    if remote.traceback_text:
        remote.add_note(_NOTE + remote.traceback_text)
    return remote


# --------------------------------------------------------------------------- the object


def _rebuild(kind: type[BaseException], arguments: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Make an exception without calling its `__init__`, which may ask for other arguments than `args` holds."""
    try:
        error = kind.__new__(kind, *arguments)
    except TypeError:
        error = BaseException.__new__(kind, *arguments)
    # What the built-in kinds keep beside `args` (of Unicode errors all that they say) is set by their own `__init__`.
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    with suppress(TypeError):
        builtin.__init__(error, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class LeftOut:
    """Stands among an exception's arguments for one that was left out, and looks like it."""

    def __init__(self, text: str, shown: str) -> None:
        self._text = text
        self._shown = shown

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._shown


class _Rebuilt:
    """Pickles to the exception, made without its `__init__`; `bare`: without what is large or cannot be pickled."""

    def __init__(self, error: BaseException, bare: bool = False) -> None:
        self.error = error
        self.bare = bare

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        arguments, state = error.args, dict(error.__dict__)
        left_out: list[str] = []
        if self.bare:
            for name in [name for name, member in state.items() if not _travels(member)]:
                left_out.append(f".{name} ({type(state.pop(name)).__qualname__})")
        if isinstance(error, BaseExceptionGroup):
            arguments = error.message, [_stand_in(member) for member in error.exceptions]
        elif self.bare:
            for place, argument in enumerate(error.args):
                if not _travels(argument):
                    left_out.append(f"args[{place}] ({type(argument).__qualname__})")
                    looks = [_bounded(_text(argument, make), MESSAGE_LIMIT_BYTES) for make in (str, repr)]
                    arguments = (*arguments[:place], LeftOut(*looks), *arguments[place + 1 :])
        if left_out:
            state["__notes__"] = [*state.get("__notes__", ()), f"left out on its way here: {', '.join(left_out)}"]
        return _rebuild, (type(error), arguments, state)


def _origin(error: BaseException) -> tuple[BaseException | None, bool]:
    """What was it raised from, and was that said (`raise … from …`)?"""
    if error.__cause__ is not None:
        return error.__cause__, True
    if error.__context__ is not None and not error.__suppress_context__:
        return error.__context__, False
    return None, False


def _data(error: BaseException) -> bytes:
    """The exception and its causes as a value; without the causes if they are too large or cannot be pickled."""
    errors, links = [error], list[bool]()
    for _ in range(CHAIN_LIMIT):
        origin, is_cause = _origin(errors[-1])
        if origin is None:
            break
        errors.append(origin)
        links.append(is_cause)
    with ExitStack() as bare:
        for each in errors:
            bare.enter_context(_bare(each))
        first = _picklable(error)
        if first is None:
            return b""
        chain: list[Any] = [first]
        for is_cause, origin in zip(links, errors[1:], strict=True):
            chain += (is_cause, _stand_in(origin))
        for attempt in (chain, chain[:1]):
            try:
                encoded = dumps(attempt)
            except SerializationError:
                continue
            if encoded.nbytes <= DATA_LIMIT_BYTES:
                return encoded.to_bytes()
    return b""


@contextmanager
def _bare(error: BaseException) -> Iterator[None]:
    """Take from it, meanwhile, what travels apart: libraries (tblib, through Dask) teach pickle to take it along, and
    through many tasks it grows without end."""
    kept = {name: getattr(error, name) for name in _TRAVELS_APART}
    for name in _TRAVELS_APART[:-1]:
        BaseException.__setattr__(error, name, None)  # its class may forbid attributes
    try:
        yield
    finally:
        for name, value in kept.items():
            BaseException.__setattr__(error, name, value)


def _picklable(error: BaseException) -> BaseException | _Rebuilt | None:
    """The exception itself if a pickle brings it back as it is; else what rebuilds it; None if nothing does.

    It may lack members that cannot travel, but not its class, and not what it says.
    """
    text = _bounded(_message(error), MESSAGE_LIMIT_BYTES)
    for candidate in (error, _Rebuilt(error), _Rebuilt(error, bare=True)):
        try:
            encoded = dumps(candidate)
            if encoded.nbytes > DATA_LIMIT_BYTES:
                continue
            loaded = loads(encoded.to_bytes())
        except Exception:  # any class may fail in its own way; the text is then all that travels
            continue
        if type(loaded) is type(error) and _bounded(_message(loaded), MESSAGE_LIMIT_BYTES) == text:
            return candidate
    return None


def _travels(member: object) -> bool:
    """Whether a pickle brings a member of an exception back, and is not large."""
    try:
        encoded = dumps(member)
        if encoded.nbytes > MEMBER_LIMIT_BYTES:
            return False
        loads(encoded.to_bytes())
    except Exception:  # any class may fail in its own way
        return False
    return True


def _stand_in(error: BaseException) -> BaseException | _Rebuilt:
    """What travels for an exception that comes along with another: itself, or at least what it says."""
    return _picklable(error) or RemoteError(_type_name(type(error)), _bounded(_message(error), MESSAGE_LIMIT_BYTES))


def _load_chain(data: bytes | memoryview) -> BaseException | None:
    try:
        chain = loads(data)
    except Exception:  # the class is missing here, or its constructor fails: the caller has the text
        return None
    if not isinstance(chain, list) or not chain or not all(isinstance(it, BaseException) for it in chain[::2]):
        return None
    for error, is_cause, origin in zip(chain[::2], chain[1::2], chain[2::2], strict=False):
        if is_cause:
            error.__cause__ = origin
        else:
            error.__context__ = origin
    first: BaseException = chain[0]
    return first


def _add_traceback(error: BaseException, text: str) -> bool:
    try:
        # One that came through several tasks has the tracebacks of the inner ones as notes, and the text repeats its
        # notes: kept twice they would double with each task.
        if _NOTE in text and hasattr(error, "__notes__"):
            error.__notes__ = [note for note in error.__notes__ if not note.startswith(_NOTE)]
        error.add_note(_NOTE + text)
    except Exception:  # a class that forbids attributes
        return False
    return True


# --------------------------------------------------------------------------- the text


def _type_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    return _text(error, str)


def _text(value: object, make: Callable[[object], str]) -> str:
    try:
        return make(value)
    except Exception as failure:  # a class whose text cannot be made still has to be reported
        return f"<its text could not be made: {type(failure).__name__}>"


def _bounded(text: str, limit_bytes: int) -> str:
    """Keep the beginning and the end of a text that is too long."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit_bytes:
        return data.decode()
    half = limit_bytes // 2 - 32
    beginning, end = data[:half].decode("utf-8", "ignore"), data[-half:].decode("utf-8", "ignore")
    return f"{beginning}\n… {len(data) - 2 * half} bytes left out …\n{end}"


def _traceback_text(error: BaseException, packages: tuple[str, ...]) -> str:
    try:
        formatted = traceback.TracebackException.from_exception(error, max_group_width=8)
        hidden = set(_hidden_files(error, packages))
        _hide(formatted, hidden, set())
        return "".join(formatted.format()).rstrip("\n")
    except Exception as failure:  # an exception whose own code fails while it is being printed
        return f"{_type_name(type(error))}: {_message(error)}\n(no traceback: {type(failure).__name__} while making it)"


def _hidden_files(error: BaseException, packages: tuple[str, ...]) -> Iterator[str]:
    """File names of the frames, anywhere in the chain, that belong to modules of these packages."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += (current.__cause__, current.__context__)
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions
        step: types.TracebackType | None = current.__traceback__
        while step is not None:
            module = step.tb_frame.f_globals.get("__name__") or ""
            if str(module).partition(".")[0] in packages:
                yield step.tb_frame.f_code.co_filename
            step = step.tb_next


def _hide(formatted: traceback.TracebackException, files: set[str], seen: set[int]) -> None:
    """Drop the frames of these files, unless nothing would be left of a stack."""
    if id(formatted) in seen:
        return
    seen.add(id(formatted))
    kept = [frame for frame in formatted.stack if frame.filename not in files]
    if kept:
        formatted.stack[:] = kept
    for other in (formatted.__cause__, formatted.__context__, *(formatted.exceptions or ())):
        if other is not None:
            _hide(other, files, seen)
