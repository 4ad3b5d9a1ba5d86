"""Faults of small values on disk, for `test_simulation_faults`, and circumstances in which they show."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from cluster.simulation.plan import Plan, draw_plan
from cluster.worker.packing import Packing
from cluster.worker.packs import COPIED, Pack, PackIndex, Place
from cluster.worker.values import Values

__all__ = ["PLANTED_PACKING"]


def packing_plan(seed: int) -> Plan:
    """Small values that fill the workers' memory, are let go of now and then, and find little room on disk."""
    drawn = draw_plan(Random(f"{seed} packing"))
    shape = replace(drawn.shape, bulky=0.6, large=0.0, long=0.0)
    return replace(
        drawn, shape=shape, memory_limit_bytes=50_000, spill_quota_bytes=600_000, releases=0.5, graph_size=16,
        actions=12, gathers=0.2, spill_failures=0.0, spill_damages=0.0, greed=0.0, fault_seconds=1.0, check_every=10,
    )  # fmt: skip


def agent_keeps_what_was_freed_while_it_was_written(patch: pytest.MonkeyPatch) -> None:
    def pack(self: Values, number: int, pack: Pack, kept: Collection[int]) -> None:
        for index, key in enumerate(pack.keys()):
            if key in kept:
                pack.states[index] = COPIED
            elif isinstance(self.get(key), bytes):
                self._take_small(key)
        self.packed.add(number, pack)

    patch.setattr(Values, "pack", pack)


def agent_counts_what_came_back_as_on_disk(patch: pytest.MonkeyPatch) -> None:
    def brought(self: PackIndex, place: Place) -> None:
        pack = self.packs[place.number]
        pack.states[place.position] = COPIED
        self.copied[pack.key(place.position)] = None

    patch.setattr(PackIndex, "brought", brought)


def agent_mixes_up_what_it_writes_anew(patch: pytest.MonkeyPatch) -> None:
    begin = Packing._begin

    def mixed(self: Packing, keys: list[int], sizes: list[int], sources: list[int]) -> int:
        if sources and len(set(sizes)) < len(sizes):
            sizes = [*sizes[1:], sizes[0]]
        return begin(self, keys, sizes, sources)

    patch.setattr(Packing, "_begin", mixed)


def agent_lets_go_of_what_a_task_waits_for(patch: pytest.MonkeyPatch) -> None:
    def was_read(self: Packing, event: Any) -> Any:
        reading = read(self, event)
        return reading._replace(found=dict(list(reading.found.items())[1:])) if reading.peer < 0 else reading

    read = Packing.was_read
    patch.setattr(Packing, "was_read", was_read)


PLANTED_PACKING = [
    (agent_keeps_what_was_freed_while_it_was_written, packing_plan),
    (agent_counts_what_came_back_as_on_disk, packing_plan),
    (agent_mixes_up_what_it_writes_anew, packing_plan),
    (agent_lets_go_of_what_a_task_waits_for, packing_plan),
]
