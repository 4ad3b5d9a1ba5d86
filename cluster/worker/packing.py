"""Small values that go to disk when memory is short, many in one file, and come back one by one.

They are written in packs: the least recently needed, in the order of their keys, so that what was made together is
together. Then they leave memory, and `packs.py` knows where they are. One that a granted task needs never leaves: it is
read into memory before the task is given to a slot, and stays while the task needs it, in the pack too, so that letting
it go later costs nothing. What a peer asks for is read and sent, and does not come back into memory.

A pack of which nothing is wanted is removed. Where much is gone, what is left of several is written into a new one: if
more is gone than is wanted, or as soon as the quota or the disk has no room. What is damaged is lost, value by value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from cluster.worker.events import PackFailed, PackRead, PackWritten, ReadPack, RemovePacks, RewritePacks, WritePack
from cluster.worker.ledger import Ledger
from cluster.worker.memory import Memory
from cluster.worker.packs import ON_DISK, Pack
from cluster.worker.spilling import Spilling
from cluster.worker.values import ENTRY_BYTES, SHARDS, Values

__all__ = ["Packing", "Reading"]

# A pack is full with so many bytes or values. The values are what a step of the agent's loop takes time for, 2 ms.
PACK_BYTES: Final = 8 << 20
PACK_VALUES: Final = 3072
# Less than this, or than this part of the memory limit, is not worth a file.
_WORTH_BYTES: Final = 1 << 20
_WORTH_PART: Final = 64
# Being written at once: one while the other waits for the thread.
_AT_ONCE: Final = 2
# Each shard gives so many values, and what follows of the same attempt up to the other figure: the shards take turns,
# and attempts that follow one another are in shards that do.
_A_TURN: Final = 64
_A_TURN_AT_MOST: Final = 512
# Values that cannot go, at the front: so many are passed over in a shard.
_PASSED_OVER: Final = 1024
# Values that are read at once.
_READ_VALUES: Final = 512
# Packs are written anew in which at most this part is wanted …
_REWRITTEN_PART: Final = 0.5
# … if more is gone than is wanted, and more than this. And so often is that looked at.
_GONE_BYTES: Final = 64 << 20
_LOOK_SECONDS: Final = 0.5
_SOURCES: Final = 64


class Writing(NamedTuple):
    """A pack that is being written; `sources`: from these, and not from memory."""

    pack: Pack
    sources: list[int]


class Asked(NamedTuple):
    """Values that are being read; `peer` is -1 if tasks need them."""

    pack: int
    keys: list[int]
    peer: int


class Reading(NamedTuple):
    """What has come of that: the values found, by key, and the keys of those that are damaged, and why."""

    peer: int
    found: dict[int, bytes]
    lost: list[int]
    reason: str


class Packing:
    """What lies in packs, is written into one, or is read. `needed` gives the keys that granted tasks need."""

    def __init__(
        self,
        ledger: Ledger,
        values: Values,
        memory: Memory,
        spilling: Spilling,
        needed: Callable[[], set[int]],
        new_request: Callable[[], int],
        *,
        compression: str,
    ) -> None:
        self._ledger = ledger
        self._values = values
        self._memory = memory
        self._spilling = spilling
        self._needed = needed
        self._new_request = new_request
        self._compression = compression
        self._writing: dict[int, Writing] = {}
        self._leaving: set[int] = set()  # the keys of what is being written
        self._shard = 0  # whose turn it is
        self._last_number = 0
        self._wanted: list[int] = []  # to be read for tasks
        self._asked: dict[int, Asked] = {}
        self._damaged: set[int] = set()  # packs that cannot be written anew
        self._look_at = 0.0

    @property
    def any(self) -> bool:
        """Whether values are in packs."""
        return bool(self._values.packed.packs)

    @property
    def is_writing(self) -> bool:
        """Whether values are on their way from memory to the disk."""
        return bool(self._leaving)

    # ------------------------------------------------------------------ to disk

    def free(self, nbytes: int, now: float) -> bool:
        """Make so many bytes of memory free; whether some are on their way."""
        on_their_way = self._memory.spilling_bytes
        worth = min(_WORTH_BYTES, self._memory.limit_bytes // _WORTH_PART)
        busy = sum(1 for writing in self._writing.values() if not writing.sources) >= _AT_ONCE
        enough = on_their_way > max(0, nbytes - worth)
        if enough or busy or now < self._spilling.retry_at or self._values.small_cost_bytes < worth:
            return on_their_way > 0
        chosen, wanted = self._choose(max(worth, nbytes - on_their_way), self._spilling.left_bytes)
        size = sum(map(len, chosen.values()))
        if self._values.cost_bytes(len(chosen), size) < worth:
            if wanted > size:
                self._spilling.has_quota(wanted, now)  # which says so
            return on_their_way > 0
        keys = sorted(chosen)
        values = [chosen[key] for key in keys]
        number = self._begin(keys, list(map(len, values)), [])
        self._leaving.update(keys)
        self._memory.spilling_bytes += size
        self._ledger.effects.append(WritePack(number, values, self._compression))
        return True

    def _choose(self, cost_bytes: int, most_bytes: float) -> tuple[dict[int, bytes], int]:
        """The least recently needed values that may go, for one pack of at most so many bytes; how large it would be
        with the first for which that is too little."""
        values, leaving, copied = self._values, self._leaving, self._values.packed.copied
        needed = self._needed()
        chosen: dict[int, bytes] = {}
        nbytes = 0
        for _ in range(SHARDS):
            before, passed_over, attempt = len(chosen), 0, -1
            for key, value in values.oldest_small(self._shard):
                if key in needed or key in leaving or key in copied:
                    passed_over += 1
                    if passed_over >= _PASSED_OVER:
                        break
                    continue
                taken = len(chosen) - before
                if taken >= _A_TURN and (key >> 32 != attempt or taken >= _A_TURN_AT_MOST):
                    break
                attempt = key >> 32
                if nbytes + len(value) > most_bytes:
                    return chosen, nbytes + len(value)
                chosen[key] = value
                nbytes += len(value)
                if (
                    nbytes >= PACK_BYTES
                    or len(chosen) >= PACK_VALUES
                    or nbytes + ENTRY_BYTES * len(chosen) >= cost_bytes
                ):
                    return chosen, nbytes
            self._shard = (self._shard + 1) % SHARDS
        return chosen, nbytes

    def _begin(self, keys: list[int], sizes: list[int], sources: list[int]) -> int:
        self._last_number += 1
        self._writing[self._last_number] = Writing(Pack(keys, sizes), sources)
        return self._last_number

    def written(self, event: PackWritten) -> None:
        """A pack is on disk: its values leave memory, or its sources go."""
        pack, sources = self._writing.pop(event.pack)
        pack.stored_bytes = event.stored_bytes
        self._memory.spilled_bytes += event.stored_bytes
        self._spilling.problem = ""
        if sources:
            self._memory.promised_disk_bytes -= pack.nbytes
            self._gone(sources, self._values.packed.replace(event.pack, pack, sources))
        else:
            self._memory.spilling_bytes -= pack.nbytes
            self._leaving.difference_update(pack.keys())
            self._values.pack(event.pack, pack, self._needed())

    def failed(self, event: PackFailed, now: float) -> None:
        """A pack could not be written: everything stays where it is."""
        pack, sources = self._writing.pop(event.pack)
        if sources:
            self._memory.promised_disk_bytes -= pack.nbytes
        else:
            self._memory.spilling_bytes -= pack.nbytes
            self._leaving.difference_update(pack.keys())
        if event.damaged:
            self._damaged.update(sources)
        else:
            self._spilling.refused(event, now)

    def drop_copies(self, nbytes: int) -> None:
        """Let values leave memory that are in packs too, up to so many bytes, but for what granted tasks need."""
        copied = self._values.packed.copied
        if not copied:
            return
        needed = self._needed()
        dropped, freed = [], 0
        for key in copied:
            if freed >= nbytes:
                break
            if key not in needed:
                dropped.append(key)
                freed += self._values.cost_bytes(1, self._values.packed.size(key))
        for key in dropped:
            self._values.drop_small(key)

    # ------------------------------------------------------------------ from disk

    def want(self, key: int) -> None:
        """A task needs a value that is in a pack: it is asked for at the end of this event."""
        self._wanted.append(key)

    def read(self, keys: Iterable[int], peer: int, most_bytes: int = sys.maxsize) -> int:
        """Have those of these values read that are in packs alone, for a peer, or for tasks (-1), up to so many bytes;
        how many answers will come."""
        packs = self._values.packed.packs
        places: dict[int, list[tuple[int, int]]] = {}
        for key in keys:
            place = self._values.packed.find(key)
            if place is None or packs[place.number].states[place.position] != ON_DISK:
                continue
            places.setdefault(place.number, []).append((place.position, key))
            most_bytes -= packs[place.number].size(place.position)
            if most_bytes <= 0:
                break
        asked = 0
        for number, found in places.items():
            found.sort()
            for start in range(0, len(found), _READ_VALUES):
                part = found[start : start + _READ_VALUES]
                request = self._new_request()
                self._asked[request] = Asked(number, [key for _, key in part], peer)
                starts = [packs[number].offsets[index] for index, _ in part]
                sizes = [packs[number].size(index) for index, _ in part]
                self._ledger.effects.append(ReadPack(request, number, starts, sizes))
                asked += 1
        return asked

    def was_read(self, event: PackRead) -> Reading:
        """Values were read. What is damaged is lost, unless its pack was written anew meanwhile."""
        asked = self._asked.pop(event.request)
        reading = Reading(asked.peer, {}, [], event.reason)
        for key, value in zip(asked.keys, event.values, strict=True):
            if value is not None:
                reading.found[key] = value
                continue
            place = self._values.packed.find(key)
            if place is not None and place.number == asked.pack:
                reading.lost.append(key)
            elif place is not None and asked.peer < 0:
                self._wanted.append(key)
        return reading

    # ------------------------------------------------------------------ packs that have served

    def finish_event(self, now: float) -> None:
        """Ask for what tasks need, and clear up; called once at the end of each event."""
        if self._wanted:
            self.read(dict.fromkeys(self._wanted), -1)
            self._wanted.clear()
        packed = self._values.packed
        if packed.emptied:
            kept = {source for writing in self._writing.values() for source in writing.sources}
            emptied = [number for number in packed.emptied if number in packed.packs]
            packed.emptied = [number for number in emptied if number in kept]
            removed = [number for number in emptied if number not in kept]
            self._gone(removed, [packed.remove(number) for number in removed])
        if packed.written_bytes > packed.live_bytes and now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._rewrite(now)

    def _gone(self, numbers: list[int], packs: list[Pack]) -> None:
        if numbers:
            self._spilling.gave_back(sum(pack.stored_bytes for pack in packs))
            self._damaged.difference_update(numbers)
            self._ledger.effects.append(RemovePacks(numbers))

    def _rewrite(self, now: float) -> None:
        """Write what is still wanted of packs that are mostly gone into one, if room on disk is short."""
        packed, spilling = self._values.packed, self._spilling
        gone_bytes = packed.written_bytes - packed.live_bytes
        is_short = spilling.problem or spilling.left_bytes < 2 * PACK_BYTES
        if not is_short and gone_bytes <= max(packed.live_bytes, _GONE_BYTES):
            return
        if any(writing.sources for writing in self._writing.values()):
            return
        rewritten = [
            (pack.live_bytes / max(1, pack.nbytes), number)
            for number, pack in packed.packs.items()
            if pack.live_bytes <= _REWRITTEN_PART * pack.nbytes and pack.live_count and number not in self._damaged
        ]
        pieces: list[tuple[int, int, int, int]] = []
        sources, nbytes = [], 0
        for _, number in sorted(rewritten)[:_SOURCES]:
            pack = packed.packs[number]
            nbytes += pack.live_bytes
            if nbytes > min(PACK_BYTES, spilling.left_bytes) or len(pieces) + pack.live_count > PACK_VALUES:
                break
            sources.append(number)
            pieces += [(pack.key(index), number, pack.offsets[index], pack.size(index)) for index in pack.wanted()]
        if sources:
            pieces.sort()
            number = self._begin([piece[0] for piece in pieces], [piece[3] for piece in pieces], sources)
            self._memory.promised_disk_bytes += sum(piece[3] for piece in pieces)
            self._ledger.effects.append(RewritePacks(number, [piece[1:] for piece in pieces], self._compression))

    # ------------------------------------------------------------------ the tests' counts

    def recount(self) -> tuple[int, int, int]:
        """Bytes of values in packs alone, of the packs' files, and being written from memory, counted anew."""
        packed = self._values.packed
        alone = sum(
            pack.size(index)
            for pack in packed.packs.values()
            for index in pack.wanted()
            if pack.states[index] == ON_DISK
        )
        stored = sum(pack.stored_bytes for pack in packed.packs.values())
        return alone, stored, sum(writing.pack.nbytes for writing in self._writing.values() if not writing.sources)
