"""The scheduler's shell: sockets, the clock and signals around the machine that decides.

Each message that arrives goes into `Scheduler.handle`, and what comes out is sent. One timer follows the machine's
`next_wakeup`. A peer whose message makes no sense loses its connection; nobody else notices.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

from cluster.config import Settings
from cluster.daemon.announcing import announced_host, announcement
from cluster.daemon.garbage import collect_seldom
from cluster.daemon.relays import Relays
from cluster.errors import ClusterError
from cluster.installed import installed_versions
from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Settings as MachineSettings
from cluster.scheduler.machine import Close, Congested, Disconnected, Event, Received, Scheduler, Tick
from cluster.secret import load_or_create_secret
from cluster.transport.addresses import is_loopback, read_address
from cluster.transport.tcp import Connection, Listener, listen
from cluster.wire import messages

__all__ = ["SchedulerDaemon", "SchedulerOptions"]

logger = logging.getLogger(__name__)

CONGESTED_BYTES = 1 << 20  # beyond so much unsent, small values no longer travel with notices
RELIEVED_BYTES = 1 << 18


class SchedulerOptions(NamedTuple):
    """What a scheduler is started with."""

    host: str
    port: int
    announced_host: str = ""
    """What others are told to connect to; empty: what it listens at."""
    insecure: bool = False
    bound: socket.socket | None = None
    """A socket that whoever started this process has bound."""
    parent: int | None = None
    """A descriptor; when it can be read, this process ends."""


class SchedulerDaemon:
    """One scheduler process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # The epoch must differ from life to life and only grow: the wall clock in milliseconds does both.
        self._machine = Scheduler(
            time.time_ns() // 1_000_000,
            MachineSettings(
                lead_seconds=settings.lead_seconds,
                worker_timeout_seconds=settings.worker_timeout_seconds,
                client_grace_seconds=settings.client_grace_seconds,
                unmet_request_seconds=settings.unmet_request_seconds,
                lineage_rows=settings.lineage_rows,
                lineage_bytes=settings.lineage_bytes,
                versions=installed_versions(("msgpack",)),  # it holds no values, and needs no other
                started_at=time.monotonic(),
            ),
            os.getpid(),
        )
        self._machine.questions.register("clock", self._clock)
        self._connections: dict[int, Connection] = {}
        self._congested: set[int] = set()
        self._relays = Relays(self._is_worker)
        self._peers_seen = 0
        self._listener: Listener | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._ended = asyncio.Event()

    async def run(self, options: SchedulerOptions) -> None:
        """Serve until a signal or the end of the parent; raises AddressError when the port cannot be had."""
        loop = asyncio.get_running_loop()
        self._listener = await listen(
            options.host,
            options.port,
            secret=load_or_create_secret(self._settings.directory),
            role="scheduler",
            peer_roles=("client", "worker"),
            on_connected=self._connected,
            on_message=self._received,
            on_closed=self._closed,
            bound=options.bound,
            certificate_directory=self._settings.directory,
            insecure=options.insecure,
            announced_host=announced_host(options.host, options.announced_host),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        if options.parent is not None:
            loop.add_reader(options.parent, self._ended.set)
        collect_seldom()
        self._announce()
        await self._ended.wait()
        self._listener.close()
        for connection in list(self._connections.values()):
            if connection.peer.role == "worker":
                connection.send(messages.ShutDown("the scheduler was asked to end"))
            connection.close()
        await asyncio.sleep(0)  # one step of the loop, in which the last messages leave

    def _announce(self) -> None:
        assert self._listener is not None
        print("\n".join(announcement(self._listener.address, self._settings.directory)), flush=True)

    # ------------------------------------------------------------------ connections

    def _connected(self, connection: Connection) -> None:
        self._peers_seen += 1
        connection.context = self._peers_seen
        self._connections[self._peers_seen] = connection

    def _is_worker(self, address: str) -> bool:
        return any(worker.address == address and not worker.lost for worker in self._machine.ledger.workers.values())

    def _received(self, connection: Connection, message: Any) -> None:
        if isinstance(message, messages.WorkerJoin):
            self._warn_of_unreachable(message)
        if connection in self._relays or isinstance(message, messages.Relay):
            self._relays.message(connection, message)
            return
        try:
            self._handle(Received(connection.context, message))
        except (ClusterError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # The peer proved to be one of ours, so this is a fault of its program or of this one: say it in full.
            logger.exception("a message %s of %s made no sense", type(message).__name__, connection)
            connection.abort(f"{type(message).__name__} made no sense: {error}")

    def _warn_of_unreachable(self, join: messages.WorkerJoin) -> None:
        assert self._listener is not None
        here_only = is_loopback(read_address(join.address).host)
        if here_only and not is_loopback(read_address(self._listener.address).host):
            logger.warning(
                "the worker %s is at %s, where no other machine reaches it; start it with the address %s",
                join.name,
                join.address,
                self._listener.address,
            )

    def _closed(self, connection: Connection, reason: str) -> None:
        del self._connections[connection.context]
        self._relays.closed(connection)
        self._congested.discard(connection.context)
        # Clients come and go; a worker is missed, unless it was to go, or all are told to end.
        worker = self._machine.ledger.worker_of_peer.get(connection.context)
        is_missed = bool(reason) and worker is not None and not (worker.draining or self._ended.is_set())
        level = logging.WARNING if is_missed else logging.DEBUG
        logger.log(level, "lost %s: %s", connection, reason)
        self._handle(Disconnected(connection.context))

    def _handle(self, event: Event) -> None:
        events = [event]
        while events:
            for effect in self._machine.handle(time.monotonic(), events.pop(0)):
                connection = self._connections.get(effect.peer)
                if connection is None:
                    continue
                if isinstance(effect, Close):
                    logger.warning("closing %s: %s", connection, effect.reason)
                    connection.close()
                    continue
                connection.send(effect.message)
                if connection.unsent_bytes > CONGESTED_BYTES and effect.peer not in self._congested:
                    self._congested.add(effect.peer)
                    events.append(Congested(effect.peer, True))
            if self._congested:
                events.extend(self._relieved())
        self._set_timer()

    def _relieved(self) -> list[Event]:
        """The congested peers that have read what waited for them."""
        relieved = [peer for peer in self._congested if self._connections[peer].unsent_bytes < RELIEVED_BYTES]
        self._congested.difference_update(relieved)
        return [Congested(peer, False) for peer in relieved]

    def _clock(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self._machine.questions.answer(client, request, time.time())

    def _set_timer(self) -> None:
        due = self._machine.next_wakeup
        if self._timer is not None:
            if due >= self._timer_at:
                return  # when that timer fires, the next one is set
            self._timer.cancel()
            self._timer = None
        if due == float("inf"):
            return
        loop = asyncio.get_running_loop()
        self._timer_at = due
        self._timer = loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick())


def main_loop(settings: Settings, options: SchedulerOptions) -> None:
    """Run a scheduler in this process until it is asked to end."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")

    async def serve() -> None:
        await SchedulerDaemon(settings).run(options)

    asyncio.run(serve())
