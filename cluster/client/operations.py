"""What a client does, written once for every way of waiting.

An *operation* is a generator that does its work and yields what it has to wait for; what it returns is the result. It
never waits itself, so the same operation serves the blocking face (`complete`, below) and the asyncio one
(`on_loop.py`).

>>> from cluster.client.operations import Until
>>> def answer(session, request):
...     arrived = yield Until(lambda: request in session.answers)
...     return session.answers.pop(request) if arrived else None
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar

from cluster.client.driver import Driver

__all__ = ["Aside", "Operation", "Raised", "Until", "complete"]

T = TypeVar("T")


class Until(NamedTuple):
    """Wait until `ready()`, asked under the client's lock, is true or the connection has ended.

    The generator is sent True then, and False when `deadline` (of `time.monotonic`) has passed before. If it turns true
    when one number of the session is done, and only then, say which: many can wait for that at little cost."""

    ready: Callable[[], bool]
    deadline: float | None = None
    number: int = -1


class Aside(NamedTuple):
    """Call a function that may block (a connection of its own, a transfer); the generator is sent what it returns."""

    function: Callable[[], Any]


class Raised:
    """What an operation returns in order to raise what a task raised: a StopIteration could not leave a generator."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


Operation: TypeAlias = Generator[Until | Aside, Any, T]


def complete(driver: Driver, operation: Operation[T]) -> T:
    """Carry an operation out in the calling thread; raises what it raises."""
    try:
        step = next(operation)
        while True:
            try:
                if type(step) is Until:
                    remaining = None if step.deadline is None else max(0.0, step.deadline - time.monotonic())
                    outcome: Any = driver.wait_until(step.ready, remaining)
                else:
                    outcome = step[0]()
            except BaseException as error:
                step = operation.throw(error)
            else:
                step = operation.send(outcome)
    except StopIteration as end:
        result = end.value
    if type(result) is Raised:
        try:
            raise result.error
        finally:
            del result  # or the exception would hold this frame, and this frame the exception
    return result  # type: ignore[no-any-return]
