"""The scheduler as one machine: events in, effects out.

`handle(now, event)` is the only entry. It reads no clock, no socket and no random number, so that the daemon, the tests
and the simulator drive the very same class. An event is a message of a peer, a connection made or lost, a peer that
stopped (or went on) reading, or the passing of time. `next_wakeup` says when time alone will matter.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cluster.errors import ProtocolError
from cluster.scheduler.client_desk import ClientDesk
from cluster.scheduler.ledger import Close, Ledger, Send, Settings
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.placement import Placement
from cluster.scheduler.questions import Questions
from cluster.scheduler.wants import ROWS_PER_STEP, Wants
from cluster.scheduler.worker_desk import WorkerDesk
from cluster.wire import messages

__all__ = ["Close", "Congested", "Disconnected", "Received", "Scheduler", "Send", "Settings", "Tick"]

WATCH_SECONDS = 1.0  # how often silent workers and gone clients are looked for


class Received(NamedTuple):
    """Event: a message came from a peer."""

    peer: int
    message: Any


class Disconnected(NamedTuple):
    """Event: a peer's connection ended."""

    peer: int


class Congested(NamedTuple):
    """Event: a peer does not keep up with what is sent to it, or does again."""

    peer: int
    congested: bool


class Tick(NamedTuple):
    """Event: nothing but time has passed."""


Event = Received | Disconnected | Congested | Tick
Effect = Send | Close


class Scheduler:
    """Decides for one epoch of one cluster."""

    def __init__(self, epoch: int, settings: Settings | None = None, process_id: int = 0) -> None:
        self.ledger = Ledger(epoch, settings or Settings())
        self.lifecycle = Lifecycle(self.ledger)
        self.placement = Placement(self.ledger)
        self.client_desk = ClientDesk(self.ledger, self.lifecycle, self.placement)
        self.worker_desk = WorkerDesk(self.ledger, self.lifecycle, self.placement)
        self.wants = Wants(self.ledger, self.lifecycle, self.client_desk.end)
        self.questions = Questions(self.ledger, self.lifecycle, process_id)
        self._watch_at = 0.0

    @property
    def next_wakeup(self) -> float:
        """When `Tick` is due; infinity when only events matter."""
        if self.ledger.deferred or self.lifecycle.has_unneeded:
            return 0.0
        return min(self._watch_at if self._watching else math.inf, self.placement.look_again_at)

    @property
    def _watching(self) -> bool:
        return bool(self.ledger.workers or self.ledger.clients)

    def handle(self, now: float, event: Event) -> list[Effect]:
        """Take one event in; the effects are to be performed in order.

        Raises ProtocolError when a peer's message makes no sense; nothing but that peer is affected then.
        """
        closing: list[Effect] = []
        try:
            if type(event) is Received:
                close = self._receive(now, event.peer, event.message)
                if close is not None:
                    closing.append(close)
            elif type(event) is Disconnected:
                self._disconnected(now, event.peer)
            elif type(event) is Congested:
                client = self.ledger.client_of_peer.get(event.peer)
                if client is not None:
                    client.congested = event.congested
            elif now >= self._watch_at:
                self._watch(now, closing)
            if self.ledger.deferred:
                self.wants.work_deferred()
        finally:
            self.lifecycle.drain(ROWS_PER_STEP)
            self._place(now)
        effects: list[Effect] = [Send(peer, message) for peer, message in self.ledger.take_outbox()]
        return effects + closing if closing else effects

    def _place(self, now: float) -> None:
        if now >= self.placement.look_again_at:
            self.placement.look_again(now)
        else:
            self.placement.place(now)

    # ------------------------------------------------------------------ messages

    def _receive(self, now: float, peer: int, message: Any) -> Close | None:
        worker = self.ledger.worker_of_peer.get(peer)
        if worker is not None:
            worker.last_seen = now
            if message.__class__ is messages.Done:  # by far the most frequent
                if message.epoch == self.ledger.epoch:
                    self.worker_desk.done(now, worker, message)
                return None
            self._receive_from_worker(now, peer, message)
            return None
        client = self.ledger.client_of_peer.get(peer)
        if client is not None:
            self._receive_from_client(now, peer, message)
            return None
        if isinstance(message, messages.ClientJoin):
            self.client_desk.join(peer, message)
            return None
        if isinstance(message, messages.WorkerJoin):
            return self.worker_desk.join(now, peer, message)
        raise ProtocolError(f"{type(message).__name__} came before the peer said who it is")

    def _receive_from_worker(self, now: float, peer: int, message: Any) -> None:
        worker = self.ledger.worker_of_peer[peer]
        desk = self.worker_desk
        if isinstance(message, messages.WorkerJoin | messages.Heartbeat):
            return
        if not hasattr(message, "epoch"):
            raise ProtocolError(f"a worker sent {type(message).__name__}, which workers do not send")
        if message.epoch != self.ledger.epoch:
            return  # about another life of the scheduler
        match message:
            case messages.RunFailed():
                desk.run_failed(now, worker, message)
            case messages.Recalled():
                desk.recalled(now, worker, message)
            case messages.Held():
                desk.held(worker, message.values)
            case messages.AgentHeartbeat():
                worker.report = message.report
            case messages.Draining():
                desk.draining(worker)
            case _:
                raise ProtocolError(f"a worker sent {type(message).__name__}, which workers do not send")

    def _receive_from_client(self, now: float, peer: int, message: Any) -> None:
        client = self.ledger.client_of_peer[peer]
        desk = self.client_desk
        match message:
            case messages.Submit():
                desk.submit(client, message)
            case messages.DefineFunction():
                desk.define_function(client, message)
            case messages.Offer():
                desk.offer(client, message)
            case messages.Alias():
                desk.alias(client, message)
            case messages.Release():
                self.wants.defer("release", client, message.runs)
            case messages.Await():
                self.wants.await_(client, message.runs)
            case messages.Keep():
                self.wants.keep(client, message.runs)
            case messages.Cancel():
                self.wants.defer("cancel", client, message.runs)
            case messages.Retry():
                self.wants.defer("retry", client, message.runs)  # after a cancel that is still being worked at
            case messages.Locate():
                self.questions.locate(client, message)
            case messages.Pushed():
                desk.pushed(client, message)
            case messages.Query():
                self.questions.query(now, client, message)
            case messages.Leave():
                desk.leave(client)
            case messages.ClientJoin() | messages.Heartbeat():
                pass
            case _:
                raise ProtocolError(f"a client sent {type(message).__name__}, which clients do not send")

    # ------------------------------------------------------------------ time and losses

    def _disconnected(self, now: float, peer: int) -> None:
        worker = self.ledger.worker_of_peer.get(peer)
        if worker is not None:
            self.worker_desk.gone(worker)
        client = self.ledger.client_of_peer.pop(peer, None)
        if client is not None:
            self.client_desk.gone(now, client)

    def _watch(self, now: float, closing: list[Effect]) -> None:
        """Give up workers that are silent and clients that did not come back; try again what may work by now."""
        self._watch_at = now + WATCH_SECONDS
        settings = self.ledger.settings
        for worker in list(self.ledger.workers.values()):
            silent = now - worker.last_seen
            if silent > settings.worker_timeout_seconds:
                closing.append(Close(worker.peer, f"worker {worker.name} was silent for {silent:.1f} s"))
                self.worker_desk.gone(worker)
        for client in list(self.ledger.clients.values()):
            if now - client.gone_at > settings.client_grace_seconds:
                self.client_desk.leave(client)
        self.client_desk.retry_pushes()
