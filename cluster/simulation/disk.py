"""A simulated worker's disk: values are copied there and compared, which takes time; it may be full, and it may rot."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from cluster.wire.checksums import checksum
from cluster.worker import events
from cluster.worker.machine import Agent
from cluster.worker.values import Segment

if TYPE_CHECKING:
    from cluster.simulation.agents import AgentProcess

__all__ = ["DISK_PREFIX", "Disk", "check_memory"]

DISK_PREFIX: Final = "disk "
"""How the paths of files on disk begin."""
BYTES_A_SECOND: Final = 1_000_000_000.0
LONGEST_SECONDS: Final = 0.02  # so that comparing a file breaks no promise


class Disk:
    """The disk of one agent."""

    def __init__(self, agent: AgentProcess, random: Random) -> None:
        self._agent = agent
        self._random = random
        self._plan = agent.world.plan

    def spill(self, effect: events.SpillSegment) -> None:
        """Copy a segment."""
        self._agent.world.clock.after(self._seconds(effect.nbytes), self._spilled, effect)

    def check(self, effect: events.CheckSpilled) -> None:
        """Compare a file with its checksum."""
        self._agent.world.clock.after(self._seconds(effect.nbytes), self._checked, effect)

    def _seconds(self, nbytes: int) -> float:
        return self._random.random() * min(LONGEST_SECONDS, 0.0001 + nbytes / BYTES_A_SECOND)

    def _spilled(self, effect: events.SpillSegment) -> None:
        agent = self._agent
        if not agent.alive:
            return
        healed = agent.world.healed
        if effect.path not in agent.files or (self._random.random() < self._plan.spill_failures and not healed):
            agent.feed(events.SpillFailed(effect.key, "the disk", 0, "it is full"))
            return
        content = agent.files[effect.path]
        counted = checksum(content)
        if self._random.random() < self._plan.spill_damages and not healed:
            content += b"?"
        new_path = agent.new_file(content, on_disk=True)
        agent.feed(events.Spilled(effect.key, effect.path, new_path, effect.nbytes, counted, ""))

    def _checked(self, effect: events.CheckSpilled) -> None:
        agent = self._agent
        if agent.alive:
            content = agent.files.get(effect.path, b"")
            reason = "" if checksum(content) == effect.checksum else "it is not what was written"
            agent.feed(events.SpilledChecked(effect.key, effect.path, effect.path, reason))


def check_memory(machine: Agent, *, at_rest: bool = False) -> None:
    """What the agent's machine has counted is what there is."""
    memory, values = machine.memory, machine.supply.values
    in_memory = on_disk = small = 0
    for shard in values._shards:
        for value in shard.values():
            if not isinstance(value, Segment):
                small += len(value)
            elif value.on_disk:
                on_disk += value.nbytes
            else:
                in_memory += value.nbytes
    spilled, spilling = machine.spilling.recount()
    counted = {
        "segment_bytes": in_memory,
        "small_bytes": small,
        "promised_bytes": 0 if at_rest else memory.recount_promised(),
        "disk_bytes": on_disk,
        "spilled_bytes": spilled,
        "spilling_bytes": 0 if at_rest else spilling,
    }
    figures = memory.figures()
    wrong = {name: (figures[name], nbytes) for name, nbytes in counted.items() if figures[name] != nbytes}
    assert not wrong, f"the agent has counted, and there is: {wrong}"
