"""What a client does, written once for every way of waiting.

An *operation* is a generator that does its work and yields what it has to wait for; what it returns is the result. It
never waits itself, so the same operation serves the blocking face (`complete`, below) and the asyncio one
(`on_loop.py`); `carry_out` drives it for both.

>>> from cluster.client.operations import Until
>>> def answer(session, request):
...     arrived = yield Until(lambda: request in session.answers)
...     return session.answers.pop(request) if arrived else None
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar

from cluster.client.driver import Driver
from cluster.errors import ConnectionLost

__all__ = ["Aside", "Operation", "Raised", "Until", "answer_to", "carry_out", "complete", "value_of"]

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


async def carry_out(
    operation: Operation[T], until: Callable[[Until], Awaitable[bool]], aside: Callable[[Aside], Awaitable[Any]]
) -> T | Raised:
    """Carry an operation out with these ways of waiting; raises what it raises itself."""
    try:
        step = next(operation)
        while True:
            try:
                outcome = await (until(step) if type(step) is Until else aside(step))  # type: ignore[arg-type]
            except BaseException as error:
                step = operation.throw(error)
            else:
                step = operation.send(outcome)
    except StopIteration as end:
        result: T | Raised = end.value
        return result


def complete(driver: Driver, operation: Operation[T]) -> T:
    """Carry an operation out in the calling thread; raises what it raises."""

    async def until(step: Until) -> bool:
        remaining = None if step.deadline is None else max(0.0, step.deadline - time.monotonic())
        return driver.wait_until(step.ready, remaining)

    async def aside(step: Aside) -> Any:
        return step.function()

    return value_of(_run(carry_out(operation, until, aside)))


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to its end a coroutine that awaits only what blocks."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("an operation was left waiting in a face that blocks")


def value_of(result: T | Raised) -> T:
    """What an operation returned; raises what it returned in order to raise it."""
    if not isinstance(result, Raised):
        return result
    try:
        raise result.error
    finally:
        del result  # or the exception would hold this frame, and this frame the exception


def answer_to(driver: Driver, request: int, deadline: float | None) -> Operation[Any]:
    """Wait for the answer to a request; None when the deadline has passed, and it is thrown away when it comes."""
    session = driver.session
    answered = False
    try:
        answered = yield Until(lambda: request in session.answers, deadline)
    finally:
        if not answered:
            with driver.guard():
                session.give_up(request)
    if not answered:
        return None
    with driver.guard():
        answer = session.answers.pop(request, None)
    if answer is None:
        raise ConnectionLost(session.lost or "the connection has ended")
    return answer
