"""What goes wrong, when, and to whom: drawn from the seed, while the time for faults lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.simulation.threads import ThreadSlot
from cluster.worker import events

if TYPE_CHECKING:
    from cluster.simulation.agents import AgentProcess
    from cluster.simulation.world import World

__all__ = ["Faults"]

RESTART_SECONDS = (0.01, 0.3, 3.0)


class Faults:
    """Injects faults at the rates of the plan, each kind from a stream of its own, so that one can be left out."""

    def __init__(self, world: World) -> None:
        self._world = world
        plan = world.plan
        kinds: list[tuple[str, float, Callable[[], None]]] = [
            ("slot crash", plan.slot_crashes, self._crash_slot),
            ("agent crash", plan.agent_crashes, self._crash_agent),
            ("mute", plan.mutes, self._mute),
            ("stall", plan.stalls, self._stall),
            ("drain", plan.drains, self._drain),
            ("broken link", plan.broken_links, self._break_link),
            ("congestion", plan.congestions, self._congest),
            ("short memory", plan.short_memories, self._shorten_memory),
            ("client crash", plan.client_crashes, self._crash_client),
        ]
        self._random = {name: world.random_of(name) for name, _, _ in kinds}
        self._name = ""
        for name, rate, inject in kinds:
            if rate:
                self._plan(name, rate, inject)

    def _plan(self, name: str, rate: float, inject: Callable[[], None]) -> None:
        self._world.clock.after(self._random[name].expovariate(rate), self._inject, name, rate, inject)

    def _inject(self, name: str, rate: float, inject: Callable[[], None]) -> None:
        if not self._world.healed:
            self._name = name
            inject()
            self._plan(name, rate, inject)

    def _count(self) -> None:
        faults = self._world.report.faults
        faults[self._name] = faults.get(self._name, 0) + 1

    def _agent(self) -> AgentProcess | None:
        alive = [agent for agent in self._world.agents.values() if agent.alive]
        return self._random[self._name].choice(alive) if alive else None

    def _crash_slot(self) -> None:
        agent = self._agent()
        if agent is not None and agent.slots:
            slot = agent.slots[self._random[self._name].choice(sorted(agent.slots))]
            # A task is not killed so often by chance that it would be blamed for it.
            together = slot.members if isinstance(slot, ThreadSlot) else [slot]
            blamed = [one.running for one in together if one.running is not None]
            blamed += [frame.spec for one in together for frame in one.stack]
            if all(spec.deaths + spec.waiting_deaths + 1 + min(spec.dies_first, 2) < 3 for spec in blamed):
                self._count()
                slot.die(-1, 11)

    def _crash_agent(self) -> None:
        agent = self._agent()
        if agent is not None:
            self._count()
            agent.die()

    def _mute(self) -> None:
        agent = self._agent()
        if agent is not None:
            self._count()
            agent.connection.to_far.forget()
            agent.connection.to_near.forget()
            self._world.mute.append(agent)

    def _stall(self) -> None:
        connections = [agent.connection for agent in self._world.agents.values() if agent.alive]
        connections += [client.connection for client in self._world.clients if client.alive]
        random = self._random[self._name]
        if connections:
            self._count()
            connection = random.choice(connections)
            until = self._world.clock.now + random.choice((0.05, 0.5, 5.0))
            random.choice((connection.to_far, connection.to_near)).stall(until)

    def _drain(self) -> None:
        agent = self._agent()
        if agent is not None:
            self._count()
            agent.drain()

    def _break_link(self) -> None:
        agent = self._agent()
        if agent is not None:
            self._count()
            agent.lose_a_link()

    def _shorten_memory(self) -> None:
        agent = self._agent()
        if agent is not None and agent.machine.supply.replicas.droppable_bytes:
            self._count()
            agent.machine.supply.replicas.let_go(self._random[self._name].choice((1, 1 << 40)))
            agent.feed(events.Tick())

    def _congest(self) -> None:
        random = self._random[self._name]
        client = random.choice(self._world.clients)
        self._count()
        self._world.scheduler.congest(client.client_id, random.random() < 0.5)

    def _crash_client(self) -> None:
        # The first client stays, so that somebody looks at the end.
        alive = [client for client in self._world.clients[1:] if client.alive]
        if alive:
            self._count()
            self._random[self._name].choice(alive).die()
