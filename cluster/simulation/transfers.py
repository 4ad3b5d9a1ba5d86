"""Large values on their way between simulated agents, piece by piece: connections break, and bytes change."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from cluster.simulation.network import Connection
from cluster.wire import messages
from cluster.wire.checksums import checksum
from cluster.worker import events
from cluster.worker.pieces import PIECE_LIMIT_BYTES, IncomingValue

if TYPE_CHECKING:
    from cluster.simulation.agents import AgentProcess

__all__ = ["Transfers", "damaged"]


class _Transfer:
    """One value, on a connection of its own."""

    def __init__(self, address: str, row: int, attempt: int, nbytes: int) -> None:
        self.address = address
        self.incoming = IncomingValue(row, attempt, nbytes, PIECE_LIMIT_BYTES)
        self.content = b""
        self.path = ""
        self.asked = 0
        self.connection: Connection | None = None
        self.failures = 0
        self.arrived_before = 0


class Transfers:
    """All large values on their way to one agent. As the daemon's: what has come is kept for the next holder."""

    def __init__(self, agent: AgentProcess) -> None:
        self._agent = agent
        self._random = agent.world.random_of("transfers")
        self._under_way: dict[tuple[int, int], _Transfer] = {}
        self._kept: dict[tuple[int, int], _Transfer] = {}

    def fetch(self, address: str, row: int, attempt: int, nbytes: int) -> None:
        """Get a value, or the rest of one."""
        assert (row, attempt) not in self._under_way, "a value is fetched twice at a time"
        transfer = self._kept.pop((row, attempt), None) or _Transfer(address, row, attempt, nbytes)
        transfer.address = address
        transfer.failures = 0
        self._under_way[row, attempt] = transfer
        if transfer.path:
            self._connect(transfer)
            return

        def answered(path: str, reason: str) -> None:
            transfer.path = path
            if path:
                self._connect(transfer)
            else:
                self._end(transfer, "full", reason)

        transfer.asked = self._agent.incoming.ask(-1, row, attempt, nbytes, answered)

    def give_up(self, row: int, attempt: int) -> None:
        """Nobody needs it."""
        transfer = self._kept.pop((row, attempt), None)
        if transfer is not None:
            self._agent.incoming.give_back(transfer.path)
        elif (row, attempt) in self._under_way:
            transfer = self._under_way[row, attempt]
            self._agent.incoming.withdraw(transfer.asked)
            self._hang_up(transfer)
            self._end(transfer, "lost", "nobody needs it any more", keep=False)

    def lose_one(self, random: Random) -> bool:
        """The connection of some transfer breaks; False if there is none."""
        if not self._under_way:
            return False
        transfer = random.choice(list(self._under_way.values()))
        self._hang_up(transfer)
        self._lost(transfer)
        return True

    def end(self) -> None:
        """The agent ends."""
        for transfer in self._under_way.values():
            self._hang_up(transfer)
        self._under_way.clear()

    @property
    def kept(self) -> int:
        """Values of which a part is kept."""
        return len(self._kept)

    # ------------------------------------------------------------------ inside

    def _connect(self, transfer: _Transfer) -> None:
        world = self._agent.world
        transfer.incoming.begin()
        transfer.arrived_before = transfer.incoming.arrived_bytes
        if self._random.random() < world.plan.refused_peers:
            world.clock.after(world.network.delay(), self._lost, transfer)
            return
        connection = world.connect_to_agent(
            transfer.address,
            lambda item: self._answered(transfer, connection, item),
            lambda: self._lost(transfer, connection),
        )
        transfer.connection = connection
        self._ask(transfer)

    def _ask(self, transfer: _Transfer) -> None:
        assert transfer.connection is not None
        for request in transfer.incoming.requests():
            self._agent.world.send(transfer.connection.to_far, request)

    def _answered(self, transfer: _Transfer, connection: Connection, item: Any) -> None:
        message, content = item
        if transfer.connection is not connection:
            return
        if isinstance(message, messages.ValueMissing):
            self._hang_up(transfer)
            self._end(transfer, "lost", "it does not hold the value")
            return
        incoming = transfer.incoming
        assert incoming.is_next(message), "an agent answered what was not asked"
        content = damaged(self._agent, content)
        if not incoming.came(message, checksum(content)):
            self._hang_up(transfer)
            self._end(transfer, "damaged", "another checksum than was said")
            return
        transfer.content += content
        if incoming.complete:
            connection.near_closes()
            transfer.connection = None
            self._end(transfer, "", "")
        else:
            self._ask(transfer)

    def _hang_up(self, transfer: _Transfer) -> None:
        if transfer.connection is not None:
            transfer.connection.to_far.cut()
            transfer.connection.to_near.forget()
            transfer.connection = None

    def _lost(self, transfer: _Transfer, connection: Connection | None = None) -> None:
        incoming = transfer.incoming
        if self._under_way.get((incoming.row, incoming.attempt)) is not transfer or not self._agent.alive:
            return
        if connection is not None and transfer.connection is not connection:
            return
        transfer.connection = None
        came = incoming.arrived_bytes > transfer.arrived_before
        transfer.failures = 1 if came else transfer.failures + 1
        if transfer.failures > 1:
            self._end(transfer, "lost", "the connection has ended")
        else:
            self._connect(transfer)

    def _end(self, transfer: _Transfer, kind: str, reason: str, *, keep: bool = True) -> None:
        incoming, agent = transfer.incoming, self._agent
        name = (incoming.row, incoming.attempt)
        if self._under_way.get(name) is not transfer or not agent.alive:
            return
        del self._under_way[name]
        if not kind:
            agent.write(transfer.path, transfer.content)
            agent.feed(events.ValueFetched(transfer.address, *name, incoming.nbytes, b"", transfer.path))
            return
        if keep and kind != "full":
            self._kept[name] = transfer
        elif transfer.path:
            agent.incoming.give_back(transfer.path)
        agent.feed(events.ValueNotFetched(transfer.address, *name, reason, kind))


def damaged(agent: AgentProcess, content: bytes) -> bytes:
    """What comes of some bytes on their way to an agent: sometimes one of them is another."""
    chance = agent.world.plan.damages
    if not content or not chance or agent.world.healed or agent.world.random_of("damages").random() >= chance:
        return content
    agent.world.report.faults["damage"] = agent.world.report.faults.get("damage", 0) + 1
    return bytes((content[0] ^ 1,)) + content[1:]
