"""The scheduler's process: the machine, its connections, and the checks that follow each of its events."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.scheduler import invariants
from cluster.scheduler.machine import Close, Congested, Disconnected, Event, Received, Scheduler, Settings, Tick
from cluster.scheduler.table import GRANTED
from cluster.simulation.network import Connection
from cluster.simulation.plan import Plan
from cluster.simulation.timer import Timer
from cluster.wire import messages

if TYPE_CHECKING:
    from cluster.simulation.world import World

__all__ = ["EPOCH", "SchedulerProcess"]

EPOCH = 7
ROWS_AN_EVENT = 30


def _settings(plan: Plan) -> Settings:
    return Settings(
        lineage_rows=plan.lineage_rows,
        unmet_request_seconds=plan.unmet_request_seconds,
        rows_per_step=plan.rows_per_step,
        fan_rows=plan.fan_rows,
        arguments_told_bytes=1,
    )


class SchedulerProcess:
    """The one scheduler of a simulation; it never fails."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine = Scheduler(EPOCH, _settings(world.plan))
        self.ledger = self.machine.ledger
        self._connections: dict[int, Connection] = {}
        self._peers_seen = 0
        self._timer = Timer(world.clock, self._wake)
        self._unchecked = 0
        self._newest_attempt = 0

    def accept(self, hear: Callable[[Any], None], ended: Callable[[], None]) -> Connection:
        """A process connects."""
        self._peers_seen += 1
        peer = self._peers_seen
        connection = Connection(
            self.world.network,
            hear,
            ended,
            lambda item: self._handle(Received(peer, item[0])),
            lambda: self._lost(peer),
        )
        self._connections[peer] = connection
        return connection

    def congest(self, client_id: bytes, congested: bool) -> None:
        """A client stops reading what it is sent, or goes on."""
        client = self.ledger.clients.get(client_id)
        if client is not None and client.connected:
            self._handle(Congested(client.peer, congested))

    def _lost(self, peer: int) -> None:
        if self._connections.pop(peer, None) is not None:
            self._note_who_was_there(peer)
            self._handle(Disconnected(peer))

    def _note_who_was_there(self, peer: int) -> None:
        worker = self.ledger.worker_of_peer.get(peer)
        if worker is not None and not worker.draining:
            table = self.ledger.table
            for row, holder in enumerate(table.holder):
                if holder == worker.index and table.state[row] == GRANTED:
                    self.world.spec_of(row).worker_deaths += 1

    def _wake(self) -> None:
        self._handle(Tick())

    def _handle(self, event: Event) -> None:
        world = self.world
        closed: list[int] = []
        for effect in self.machine.handle(world.clock.now, event):
            world.note("scheduler", effect)
            connection = self._connections.get(effect.peer)
            if connection is None:
                continue
            if isinstance(effect, Close):
                connection.far_closes()
                closed.append(effect.peer)
                continue
            if isinstance(effect.message, messages.Grant):
                assert effect.message.attempt > self._newest_attempt, "an attempt number came again"
                self._newest_attempt = effect.message.attempt
            world.send(connection.to_near, effect.message)
        for peer in closed:
            self._lost(peer)
        self._unchecked += 1
        # A large table is not searched so often: the searches would take all the time that there is for other seeds.
        # What is worked at in steps is right when the last has been made.
        is_whole = self.machine.next_wakeup > 0.0
        if is_whole and self._unchecked >= world.plan.check_every + self.ledger.table.rows_used // ROWS_AN_EVENT:
            self._unchecked = 0
            self.check()
        world.promise.look()
        world.explain.look()
        world.fairness.look()
        self._timer.follow(self.machine.next_wakeup)

    def check(self) -> None:
        """Compare the ledger with a search."""
        invariants.check(self.ledger)
        invariants.check_placement(self.machine.placement)
        invariants.check_census(self.ledger)
