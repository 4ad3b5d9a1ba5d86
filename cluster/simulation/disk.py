"""A simulated worker's disk: values are copied there and compared, which takes time; it may be full, and it may rot."""

from __future__ import annotations

from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

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


class Stored(NamedTuple):
    """A small value in a pack."""

    data: bytes
    checksum: int


class Disk:
    """The disk of one agent. `packs`: the values in each by where they begin."""

    def __init__(self, agent: AgentProcess, random: Random) -> None:
        self._agent = agent
        self._random = random
        self._plan = agent.world.plan
        self.packs: dict[int, dict[int, Stored]] = {}

    def perform(self, effect: events.Effect) -> None:
        """Do what the agent's machine wants done here."""
        match effect:
            case events.SpillSegment():
                self._spill(effect)
            case events.CheckSpilled():
                self._check(effect)
            case events.WritePack():
                self._begin_pack(effect)
            case events.RewritePacks():
                self._begin_rewriting(effect)
            case events.ReadPack():
                self._begin_reading(effect)
            case events.RemovePacks(packs):
                for number in packs:
                    del self.packs[number]

    def _spill(self, effect: events.SpillSegment) -> None:
        self._agent.world.clock.after(self._seconds(effect.nbytes), self._spilled, effect)

    def _check(self, effect: events.CheckSpilled) -> None:
        self._agent.world.clock.after(self._seconds(effect.nbytes), self._checked, effect)

    def _begin_pack(self, effect: events.WritePack) -> None:
        values = [Stored(value, checksum(value)) for value in effect.values]
        seconds = self._seconds(sum(map(len, effect.values)))
        self._agent.world.clock.after(seconds, self._write_pack, effect.pack, values)

    def _begin_rewriting(self, effect: events.RewritePacks) -> None:
        seconds = self._seconds(sum(size for _, _, size in effect.pieces))
        self._agent.world.clock.after(seconds, self._rewrite_packs, effect)

    def _begin_reading(self, effect: events.ReadPack) -> None:
        self._agent.world.clock.after(self._seconds(sum(effect.sizes)), self._read_pack, effect)

    def _write_pack(self, number: int, values: list[Stored]) -> None:
        agent = self._agent
        if not agent.alive:
            return
        healed = agent.world.healed
        if self._random.random() < self._plan.spill_failures and not healed:
            agent.feed(events.PackFailed(number, "the disk", 0, "it is full"))
            return
        starts = list(accumulate((len(value.data) for value in values), initial=0))
        if self._random.random() < self._plan.spill_damages and not healed:
            rotten = self._random.randrange(len(values))
            values[rotten] = values[rotten]._replace(data=b"?" * len(values[rotten].data))
        self.packs[number] = dict(zip(starts, values, strict=False))
        agent.feed(events.PackWritten(number, starts[-1]))

    def _rewrite_packs(self, effect: events.RewritePacks) -> None:
        if not self._agent.alive:
            return
        values = [self.packs[number][start] for number, start, _ in effect.pieces]
        if any(checksum(value.data) != value.checksum for value in values):
            reason = "it is not what was written"
            self._agent.feed(events.PackFailed(effect.pack, "the disk", 0, reason, damaged=True))
        else:
            self._write_pack(effect.pack, values)

    def _read_pack(self, effect: events.ReadPack) -> None:
        agent = self._agent
        if not agent.alive:
            return
        found: list[bytes | None] = []
        pack = self.packs.get(effect.pack)  # None if it was removed meanwhile
        for start, size in zip(effect.starts, effect.sizes, strict=True):
            value = None if pack is None else pack[start]
            assert value is None or len(value.data) == size, "a value was read that has another size"
            found.append(value.data if value is not None and checksum(value.data) == value.checksum else None)
        agent.feed(events.PackRead(effect.request, found, "it is not what was written"))

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
    packed, stored, packing = machine.packing.recount()
    counted = {
        "segment_bytes": in_memory,
        "small_bytes": small,
        "promised_bytes": 0 if at_rest else memory.recount_promised(),
        "disk_bytes": on_disk + packed,
        "spilled_bytes": spilled + stored,
        "spilling_bytes": 0 if at_rest else spilling + packing,
    }
    figures = memory.figures()
    wrong = {name: (figures[name], nbytes) for name, nbytes in counted.items() if figures[name] != nbytes}
    assert not wrong, f"the agent has counted, and there is: {wrong}"
