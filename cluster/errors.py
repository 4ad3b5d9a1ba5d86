"""Every exception that this package raises. All of them survive pickling, with their attributes and notes.

::

    ClusterError                    anything that went wrong here; catch this to catch all
    ├── RemoteError                 a task raised something that cannot be rebuilt in this process; its text is kept
    ├── TaskDied                    the process that ran the task died, as often as a task may
    │   └── OutOfMemory             … because it held more memory than there was
    ├── TaskTimeout                 the task ran longer than its own limit       (also a TimeoutError)
    ├── CancelledError              it, or a task that it needs, was cancelled  (also concurrent.futures.CancelledError)
    ├── ValueLost                   the value is gone and cannot be computed again
    ├── Unrunnable                  no worker could ever run the task, or not with what it has installed
    ├── SerializationError          an object cannot be pickled                  (also a TypeError)
    ├── StoreFull                   no room left for a value                     (also an OSError)
    ├── ConnectionLost              a connection that was needed has ended       (also a ConnectionError)
    ├── HandshakeFailed             a peer could not prove itself                (also a ConnectionError)
    │   ├── WrongSecret             … because it has another secret
    │   ├── Intercepted             … because somebody between the two opens what they encrypt
    │   └── VersionMismatch         … because it speaks another protocol, or runs another Python
    ├── ProtocolError               a peer sent something that is no message
    ├── AddressError                an address that cannot be used               (also a ValueError)
    └── SettingError                a setting that is unknown or has no sense    (also a ValueError)

A message names the thing, says why, and says what to do.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

__all__ = [
    "AddressError",
    "CancelledError",
    "ClusterError",
    "ConnectionLost",
    "HandshakeFailed",
    "Intercepted",
    "OutOfMemory",
    "ProtocolError",
    "RemoteError",
    "SerializationError",
    "SettingError",
    "StoreFull",
    "TaskDied",
    "TaskTimeout",
    "Unrunnable",
    "ValueLost",
    "VersionMismatch",
    "WrongSecret",
]


def _rebuild(kind: type[ClusterError], arguments: tuple[Any, ...]) -> ClusterError:
    """Make an exception of that class without calling its `__init__`, which may ask for more than the text."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    return error


class ClusterError(Exception):
    """Anything that went wrong in this package: the root of its exceptions."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The attributes (and the notes) travel in the dictionary, so a class may have any constructor it likes.
        return _rebuild, (type(self), self.args), self.__dict__.copy()

    def __str__(self) -> str:
        # Some classes are an OSError too, which would show two arguments as "[Errno …] …".
        return str(self.args[0]) if len(self.args) == 1 else ", ".join(map(str, self.args))


class RemoteError(ClusterError):
    """A task's exception that cannot be rebuilt in this process; what it said is kept as text.

    `type_name` is the exception's class, `text` what it said, `traceback_text` where it happened.
    """

    def __init__(self, type_name: str, text: str, traceback_text: str = "") -> None:
        super().__init__(f"{type_name}: {text}" if text else type_name)
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text


class TaskDied(ClusterError):
    """The process that ran the task died each time it was tried.

    `cause` is "out of memory", "signal" or "exit"; `signal` the number of the signal that ended the last one (None if
    it exited by itself), `exit_code` its exit code (None if a signal ended it). `out_of_memory_by` is "kernel" or
    "worker" if that ended it because memory had run out, else None. `peak_memory_bytes` is the most memory that the
    process had (0 if unknown), `attempts` how often the task was tried, `worker` where it last was, `last_lines` what
    it last wrote.
    """

    def __init__(
        self,
        message: str,
        *,
        signal: int | None = None,
        exit_code: int | None = None,
        attempts: int = 0,
        last_lines: tuple[str, ...] = (),
        out_of_memory_by: str | None = None,
        peak_memory_bytes: int = 0,
        worker: str = "",
    ) -> None:
        super().__init__(message)
        self.cause = "out of memory" if out_of_memory_by else "exit" if signal is None else "signal"
        self.out_of_memory_by = out_of_memory_by
        self.peak_memory_bytes = peak_memory_bytes
        self.worker = worker
        self.signal = signal
        self.exit_code = exit_code
        self.attempts = attempts
        self.last_lines = tuple(last_lines)


class OutOfMemory(TaskDied):
    """The process that ran the task was ended because memory had run out.

    `out_of_memory_by` says by whom: "worker" if that had passed its own limit, which is `memory_limit_bytes` (0 if
    unknown); it then held `used_bytes` in all. `peak_memory_bytes` is the most that the process of the task held.
    """

    memory_limit_bytes: int = 0
    used_bytes: int = 0


class TaskTimeout(ClusterError, TimeoutError):
    """The task ran longer than the limit that it was given, and was stopped."""


class CancelledError(ClusterError, concurrent.futures.CancelledError):
    """The task was cancelled, or one whose value it needs."""


class ValueLost(ClusterError):
    """The value is gone and cannot be computed again; the message says why."""


class Unrunnable(ClusterError):
    """No worker can run the task: nothing meets its restrictions, or what it imports is not installed there."""


class SerializationError(ClusterError, TypeError):
    """An object cannot be pickled; the message names the member that is to blame."""


class StoreFull(ClusterError, OSError):
    """There is no room left for a value."""


class ConnectionLost(ClusterError, ConnectionError):
    """A connection that was needed has ended."""


class HandshakeFailed(ClusterError, ConnectionError):
    """A peer could not prove that it belongs to this cluster, or is not what was expected at that address."""


class WrongSecret(HandshakeFailed):
    """The two ends of a connection do not share one secret."""


class Intercepted(HandshakeFailed):
    """Something between the two ends of a connection opens what they encrypt."""


class VersionMismatch(HandshakeFailed):
    """The two ends of a connection speak different protocols, or run different minor versions of Python."""


class ProtocolError(ClusterError):
    """A peer sent something that is no message, or a message was made that cannot be sent."""


class AddressError(ClusterError, ValueError):
    """An address cannot be read, or may not be used."""


class SettingError(ClusterError, ValueError):
    """A setting is unknown, or its value has no sense."""
