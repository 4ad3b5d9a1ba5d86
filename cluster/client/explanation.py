"""Why a task is where it is, and what has happened to it, as the scheduler and the agents tell."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, NamedTuple

from cluster.client.core import ClientCore
from cluster.client.future import Future
from cluster.client.operations import Operation

__all__ = ["Explanation", "Explanations", "Reason", "Story", "Transition"]


class Reason(NamedTuple):
    """One thing that is to be said of a task: what it is about, why it is so, what to do (empty: nothing)."""

    what: str
    why: str
    remedy: str


class Explanation:
    """Why a task is where it is. Printed, it is a text of a few lines, the most important first.

    `state` is "waiting" (for inputs), "ready" (for a worker), "granted", "fetching" (its inputs), "queued" (at a
    worker), "running", "finished", "failed", "cancelled", "released" or "forgotten". `reasons` are `(what, why,
    remedy)`, texts all three. `key` is the task's name.
    """

    def __init__(self, key: str, state: str, reasons: list[Reason]) -> None:
        self.key = key
        self.state = state
        self.reasons = reasons

    def __str__(self) -> str:
        lines = [f"{self.key} is {self.state}"]
        for what, why, remedy in self.reasons:
            lines.append(f"  {what}: {why}")
            if remedy:
                lines.append(f"    -> {remedy}")
        return "\n".join(lines)

    __repr__ = __str__


class Transition(NamedTuple):
    """One step of a task: when (in this machine's local time; None: it is not known), what happened, and why."""

    at: datetime | None
    what: str
    why: str


class Story:
    """What has happened to a task, oldest first. Printed, it is a line for each step.

    `transitions` are the steps as `(at, what, why)`; `not_kept` says what is missing.
    """

    def __init__(self, key: str, transitions: list[Transition], not_kept: str) -> None:
        self.key = key
        self.transitions = transitions
        self.not_kept = not_kept

    def __str__(self) -> str:
        lines = [self.key]
        for at, what, why in self.transitions:
            when = "            " if at is None else at.strftime("%H:%M:%S.") + f"{at.microsecond // 1000:03d}"
            lines.append(f"  {when}  {what}" + (f": {why}" if why else ""))
        return "\n".join([*lines, f"  ({self.not_kept})"])

    __repr__ = __str__


class Explanations(ClientCore):
    """The part of `Client` that tells of single tasks."""

    def explain(self, future: Future | str) -> Explanation:
        """Say why a task is where it is, what it waits for, and what to do about it; for a future, or any task's key.

        It asks the scheduler, which asks the worker that has the task: a round trip or two, and at most about three
        seconds if that worker does not answer. A key that nobody knows is explained as "forgotten".
        """
        return self._complete(self._explanation(future))

    def story(self, future: Future | str) -> Story:
        """Tell what has happened to a task, with reasons and with the times that are known; for a future, or a key.

        Repetitions, losses, recalls, retries and failures are kept for this, and nothing of a run without trouble.
        """
        return self._complete(self._told_story(future))

    def _explanation(self, future: Future | str) -> Operation[Explanation]:
        answer = yield from self._ask("explain", self._named(future))
        reasons = [Reason(line["what"], line["why"], line["remedy"]) for line in answer["lines"]]
        return Explanation(_key(future, answer), answer["state"], reasons)

    def _told_story(self, future: Future | str) -> Operation[Story]:
        answer = yield from self._ask("story", self._named(future))
        transitions = [Transition(_at(entry["ago"]), entry["what"], entry["why"]) for entry in answer["entries"]]
        return Story(_key(future, answer), transitions, answer["not_kept"])

    def _named(self, future: Future | str) -> Any:
        """A task as a query names it."""
        if isinstance(future, str):
            return {"key": future}
        if not isinstance(future, Future):
            raise TypeError(f"a Future or a key is needed, and {type(future).__name__} was given: {future!r:.100}")
        number = future._wanted()
        return number if future._client is self else {"key": future.key}


def _at(seconds_ago: float | None) -> datetime | None:
    # Clocks of two machines differ, ages hardly do.
    return None if seconds_ago is None else datetime.fromtimestamp(time.time() - seconds_ago)


def _key(future: Future | str, answer: Any) -> str:
    return future.key if isinstance(future, Future) else str(answer["key"])
