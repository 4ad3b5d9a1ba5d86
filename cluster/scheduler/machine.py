"""The scheduler as one machine: events in, effects out.

`handle(now, event)` is the only entry. It reads no clock, no socket and no random number, so that the daemon, the tests
and the simulator drive the very same class. An event is a message of a peer, a connection made or lost, a peer that
stopped (or went on) reading, or the passing of time. `next_wakeup` says when time alone will matter.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cluster.errors import ProtocolError
from cluster.scheduler.administration import Administration
from cluster.scheduler.backlog import Backlog
from cluster.scheduler.client_desk import ClientDesk
from cluster.scheduler.coordination import Coordination
from cluster.scheduler.copies import Copies
from cluster.scheduler.inquiries import Inquiries
from cluster.scheduler.ledger import Close, Ledger, Send, Settings
from cluster.scheduler.lifecycle import Lifecycle
from cluster.scheduler.orders import Orders
from cluster.scheduler.output import Output
from cluster.scheduler.placement import Placement
from cluster.scheduler.pushes import Pushes
from cluster.scheduler.questions import Questions
from cluster.scheduler.rebalancing import Rebalancing
from cluster.scheduler.recipes import Recipes
from cluster.scheduler.reports import Reports
from cluster.scheduler.scatters import Scatters
from cluster.scheduler.unmet import Unmet
from cluster.scheduler.wants import Wants
from cluster.scheduler.worker_desk import WorkerDesk
from cluster.scheduler.worker_losses import WorkerLosses
from cluster.scheduler.workers import WorkerRecord
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
        self.placement = Placement(self.ledger, self.lifecycle.actors)
        self.questions = Questions(self.ledger, self.lifecycle, process_id)
        self.scatters = Scatters(self.ledger, self.questions)
        self.client_desk = ClientDesk(self.ledger, self.lifecycle, self.placement)
        self.orders = Orders(self.ledger)
        self.worker_desk = WorkerDesk(self.ledger, self.lifecycle, self.placement)
        self.losses = WorkerLosses(self.ledger, self.lifecycle, self.placement, self.orders)
        self.wants = Wants(self.ledger, self.lifecycle, self.client_desk.end)
        self.administration = Administration(self.ledger, self.questions, self.orders, self.wants)
        self.copies = Copies(self.ledger, self.placement, self.questions)
        self.pushes = Pushes(self.ledger, self.lifecycle, self.placement, self.scatters, self.copies)
        Backlog(self.ledger, self.questions)
        Rebalancing(self.ledger, self.lifecycle, self.questions, self.copies)
        self.coordination = Coordination(self.ledger, self.lifecycle, self.questions)
        self.client_desk.on_leave.append(self.coordination.client_left)
        self.reports = Reports(self.ledger, self.questions, process_id)
        self.unmet = Unmet(self.ledger, self.lifecycle)
        Recipes(self.ledger, self.questions)
        self.output = Output(self.ledger, self.orders, self.questions)
        self.inquiries = Inquiries(self.ledger, self.questions, self.orders, self.output)
        self._watch_at = 0.0

    @property
    def next_wakeup(self) -> float:
        """When `Tick` is due; infinity when only events matter."""
        searching = self.copies.searching or self.inquiries.searching
        waiting = self.wants.pending or self.lifecycle.has_unneeded or self.losses.pending or self.unmet.has_work
        if waiting or searching or self.reports.has_work or self.placement.cut_short:
            return 0.0
        return min(
            self._watch_at if self._watching else math.inf,
            self.placement.look_again_at,
            self.coordination.look_again_at,
        )

    @property
    def _watching(self) -> bool:
        return bool(self.ledger.workers or self.ledger.clients)

    def handle(self, now: float, event: Event) -> list[Effect]:
        """Take one event in; the effects are to be performed in order.

        Raises ProtocolError when a peer's message makes no sense; nothing but that peer is affected then.
        """
        closing: list[Effect] = []
        self.ledger.now = self.ledger.events.now = now
        rows = self.ledger.settings.rows_per_step
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
            else:
                self.coordination.look_again(now)
                if now >= self._watch_at:
                    self._watch(now, closing)
                if self.reports.has_work:
                    self.reports.work()
            if self.losses.pending:
                rows = self.losses.work(rows)
            if self.wants.pending:
                rows = self.wants.work_deferred(rows)
            if self.copies.retiring:
                self.copies.look_after_retiring()
            if self.unmet.has_work:
                self.unmet.work()
            if self.inquiries.searching:
                self.inquiries.search()
        finally:
            if self.lifecycle.cascading:
                self.lifecycle.cascade(rows)
            self.lifecycle.drain(self.ledger.settings.rows_per_step)
            if self.ledger.uncopied:
                self.copies.tell_of_released()
            if self.scatters.pending:
                self.scatters.look()
            self._place(now)
        effects: list[Effect] = [Send(peer, message) for peer, message in self.ledger.take_outbox()]
        return effects + closing if closing else effects

    def _place(self, now: float) -> None:
        if self.lifecycle.actors.has_due:
            self.lifecycle.actors.grant(now, self.placement.grant)
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
            refusal = self.worker_desk.join(now, peer, message)
            if refusal is None:
                joined = self.ledger.worker_of_peer[peer]
                self.administration.joined(joined)
                self.unmet.worker_came(joined)
            return refusal
        if self.reports.receive(now, peer, message):
            return None
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
                if message.kind == "full":
                    self.pushes.no_room(worker, message)
            case messages.Recalled():
                desk.recalled(now, worker, message)
            case messages.Held():
                desk.held(worker, message.values)
                self.copies.held(worker, message.values)
            case messages.FetchFailed():
                desk.fetch_failed(worker, message)
                self.copies.failed(worker, message)
                if message.address == worker.address:
                    desk.lost_value(worker, message)
            case messages.DropReplicas():
                desk.drop_replicas(worker, message)
            case messages.ValueDamaged():
                desk.damaged(worker, message)
            case messages.AgentHeartbeat():
                desk.reported(worker, message.report)
            case messages.ActorEnded():
                desk.actor_ended(worker, message)
            case messages.Draining():
                desk.draining(worker)
            case messages.Output():
                self.output.wrote(worker, message)
            case messages.Progress():
                self.output.progressed(message)
            case messages.Ordered():
                self.orders.ordered(worker, message)
            case messages.Suspended() | messages.Resumed() | messages.Room():
                self.lifecycle.nesting.worker_says(worker, message)
                self.placement.refresh(worker)
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
                self.wants.defer("keep", client, message.runs)
            case messages.Cancel():
                self.wants.defer("cancel", client, message.runs)
            case messages.Retry():
                self.wants.defer("retry", client, message.runs)  # after a cancel that is still being worked at
            case messages.Locate():
                self.questions.locate(client, message)
            case messages.Pushed():
                self.pushes.pushed(client, message)
            case messages.PushRefused():
                self.pushes.refused(client, message)
            case messages.Query():
                self.questions.query(now, client, message)
            case messages.ShowOutput():
                self.output.show(client, message.shown)
            case messages.Leave():
                self.ledger.events.note("client_left", client.name, "it closed its connection")
                desk.leave(client)
            case messages.LivesInSlot():
                client.in_slot = True
            case messages.HandOver():
                self.lifecycle.nesting.hand_over(client, message)
            case messages.ClientJoin() | messages.Heartbeat():
                pass
            case _:
                raise ProtocolError(f"a client sent {type(message).__name__}, which clients do not send")

    # ------------------------------------------------------------------ time and losses

    def _disconnected(self, now: float, peer: int) -> None:
        worker = self.ledger.worker_of_peer.get(peer)
        if worker is not None:
            self._worker_gone(worker)
        client = self.ledger.client_of_peer.pop(peer, None)
        if client is not None:
            self.ledger.events.note("client_lost", client.name, "its connection ended without a farewell")
            self.client_desk.gone(now, client)
            self.coordination.client_gone(now, client)
        self.reports.disconnected(peer)

    def _worker_gone(self, worker: WorkerRecord, reason: str = "its connection ended") -> None:
        self.losses.gone(worker, reason)
        self.copies.worker_gone(worker)

    def _watch(self, now: float, closing: list[Effect]) -> None:
        """Give up workers that are silent and clients that did not come back; try again what may work by now."""
        self._watch_at = now + WATCH_SECONDS
        settings = self.ledger.settings
        for worker in list(self.ledger.worker_of_peer.values()):
            silent = now - worker.last_seen
            if silent > settings.worker_timeout_seconds:
                closing.append(Close(worker.peer, f"worker {worker.name} was silent for {silent:.1f} s"))
                self._worker_gone(worker, f"it was silent for {silent:.1f} s")
            elif silent > settings.worker_timeout_seconds / 2 and worker.called_silent_at < worker.last_seen:
                worker.called_silent_at = now
                gives_up = f"it is given up after {settings.worker_timeout_seconds:g} s"
                self.ledger.events.note("worker_silent", worker.name, f"silent for {silent:.1f} s; {gives_up}")
        for client in list(self.ledger.clients.values()):
            if now - client.gone_at > settings.client_grace_seconds:
                self.ledger.events.note("client_given_up", client.name, "it did not come back; its tasks are released")
                self.client_desk.leave(client)
        self.pushes.retry()
        self.unmet.watch(now)
        self.inquiries.watch(now)
