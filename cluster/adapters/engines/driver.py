"""Between a session and an engine: what the session says goes to the desk, what the desk gives goes to the engine.

It is a `Driver` whose socket nobody writes to and nothing comes from: only the messages take another way. The desk is
called under the client's lock; runs begin and end outside of it.

A task that waits gives its slot up. On an engine that runs tasks in the caller's thread, the caller runs what is ready:
when it submits, and while it waits; inside a task, that task's own children come first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from cluster.adapters.engines.desk import Desk
from cluster.adapters.engines.protocol import Engine, Outcome, Run
from cluster.adapters.engines.running import current_run
from cluster.client.driver import Driver
from cluster.session.machine import DropOffered, Failure
from cluster.wire.arguments import ArgumentChanged
from cluster.wire.payload import Encoded

__all__ = ["EngineDriver"]


class EngineDriver(Driver):
    """Moves what one session wants to one engine."""

    _desk: Desk
    _engine: Engine
    _encode: Callable[[int], Encoded | None]

    def stand_on(self, desk: Desk, engine: Engine, encode: Callable[[int], Encoded | None]) -> None:
        """Say what it works with; `encode` gives the bytes of what the client offered."""
        self._desk = desk
        self._engine = engine
        self._encode = encode
        self._slot_is_free = threading.Condition(self.lock)
        self._turn = threading.RLock()  # of the caller who runs what is ready, where callers do
        self._putting = threading.Lock()

    # ------------------------------------------------------------------ what the client sends

    def flush(self) -> None:
        """Send everything that was gathered, and have begin what can."""
        super().flush()
        self._begin_ready()

    def send(self) -> None:
        """Send the messages that the session has made, and have begin what can."""
        super().send()
        self._begin_ready()

    def arm(self) -> None:
        """Something was gathered: a message costs little here, so it leaves at once."""
        self.flush()

    def _send_late(self) -> None:
        if self.session.dropped and self.session.lost is None:
            super().flush()

    def _collect(self) -> None:
        session, desk = self.session, self._desk
        changed = False
        while True:
            parent = self._own_run()
            for message in session.take_messages(time.monotonic()):
                desk.receive(message, parent)
            for effect in session.take_effects():
                if isinstance(effect, DropOffered):
                    self._forgotten.append(effect.numbers)
            answers = desk.take_messages()
            if not answers:
                break
            changed = True
            for message in answers:
                session.receive(message)
        if changed:
            self.on_change()
            self.wake_ready()

    # ------------------------------------------------------------------ runs

    def _begin_ready(self) -> None:
        self._cancel_stopped()
        if not self._engine.in_caller:
            while (run := self._next()) is not None:
                self._start(run)
            return
        parent = self._own_run()
        if parent is not None:
            while (run := self._next(parent)) is not None:
                self._start(run)
            return
        # Whoever has the turn looks again after giving it up, so nothing that is ready is left lying.
        while self._has_next() and self._turn.acquire(blocking=False):
            try:
                while (run := self._next()) is not None:
                    self._start(run)
            finally:
                self._turn.release()

    def _own_run(self) -> Run | None:
        """The run that the calling code belongs to, if it is one of this client's."""
        run = current_run()
        with self.lock:
            return run if run is not None and self._desk.is_running(run) else None

    def _has_next(self) -> bool:
        with self.lock:
            return self.session.lost is None and self._desk.has_next()

    def _next(self, parent: Run | None = None, inside: Run | None = None) -> Run | None:
        with self.lock:
            return None if self.session.lost is not None else self._desk.next_run(parent, inside)

    def _start(self, run: Run) -> None:
        try:
            for place, number in run.offered:
                run.inputs[place] = self._offered(number)
        except Exception as error:  # an object's own pickling code may raise anything
            remedy = error.remedy if isinstance(error, ArgumentChanged) else ""
            details = {"type": "ValueLost", "message": str(error), "remedy": remedy}
            self._finish(run, Outcome(Failure("lost", b"", details)))
            return
        try:
            self._engine.start(run, self._finish)
        except KeyboardInterrupt:
            self._finish(run, Outcome(Failure("cancelled", b"", {"message": f"{run.key} was interrupted"})))
            raise

    def _offered(self, number: int) -> Any:
        """The engine's value of something that the client offered, which is put there once."""
        with self._putting:
            with self.lock:
                value = self._desk.value(number)
            if value is None:
                encoded = self._encode(number)
                if encoded is not None:
                    value = self._engine.put(encoded.to_bytes())
                    with self.lock:
                        self._desk.has_put(number, value)
            return value

    def _finish(self, run: Run, outcome: Outcome) -> None:
        with self.lock:
            self._desk.ended(run, outcome)
            self._slot_is_free.notify_all()
        if self._engine.in_caller:
            super().send()  # who called goes on with what has become ready
        else:
            self.send()

    def _cancel_stopped(self) -> None:
        with self.lock:
            stopping, self._desk.stopping = self._desk.stopping, []
        for run in stopping:
            self._engine.cancel(run)

    # ------------------------------------------------------------------ waiting

    def wait_until(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """As in a Driver; meanwhile others have the slot of a task that waits, or the caller runs tasks itself."""
        self.flush()
        with self.lock:
            if self.session.lost is not None or ready():
                return True
        wait = partial(super().wait_until, ready, timeout)
        own = self._own_run()
        if self._engine.in_caller:
            self._run_until(ready, own)
            return wait()
        if own is None:
            return wait()
        with self.lock:
            self._desk.leave_slot(own)
            self._slot_is_free.notify_all()
        self._begin_ready()
        try:
            return wait()
        finally:
            with self.lock:
                self._desk.going_on += 1
                while not self._desk.take_slot(own) and self.session.lost is None:
                    self._slot_is_free.wait()
                self._desk.going_on -= 1
            self._begin_ready()

    def _run_until(self, ready: Callable[[], bool], own: Run | None) -> None:
        """Run what is ready in this thread until what the caller waits for has come, or nothing is left to run."""
        if own is None:
            self._begin_ready()
            return
        while True:
            with self.lock:
                if self.session.lost is not None or ready():
                    return
            run = self._next(own) or self._next(inside=own)
            if run is None:
                return
            self._start(run)

    def lose(self, reason: str) -> None:
        """The client has ended; everybody who waits is told."""
        super().lose(reason)
        with self.lock:
            self._slot_is_free.notify_all()
