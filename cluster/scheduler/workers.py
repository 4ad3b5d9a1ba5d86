"""What the scheduler keeps of a worker: its room, what it was granted, what it holds."""

from __future__ import annotations

import math
from typing import Any

from cluster.scheduler.hosts import Host
from cluster.scheduler.ready import Restriction
from cluster.scheduler.table import Run
from cluster.scheduler.worker_memory import WorkerMemory

__all__ = ["COROUTINES", "GrantRecord", "WorkerRecord"]

COROUTINES = "coroutines"
"""The resource of which a task that is a coroutine takes one."""
_COROUTINES_A_SLOT = 1000  # unless the worker was started with another amount of that resource


class GrantRecord:
    """One grant: rows of one run under one attempt."""

    __slots__ = (
        "bytes_each", "charged", "coming", "granted_at", "held_bytes", "lead_each", "left", "run", "seconds_each",
        "spans", "takes_slots",
    )  # fmt: skip

    def __init__(
        self, run: Run, spans: list[tuple[int, int]], seconds_each: float, lead_each: float, granted_at: float
    ) -> None:
        self.run = run
        self.spans = spans
        self.left = sum(stop - start for start, stop in spans)
        self.seconds_each = seconds_each
        self.lead_each = lead_each  # the same, but no more than the lead: a long task takes one slot's lead, not all
        self.granted_at = granted_at
        self.bytes_each = run.memory_bytes or run.output_sizes.taken_bytes or 0
        self.coming: list[int] = []  # rows of inputs that are brought to the worker for it
        self.held_bytes = 0  # by the worker, when it was granted
        self.charged = False  # its one task was charged with the end of a worker
        # An actor lives beside the slots, and so do coroutines, which mostly wait.
        self.takes_slots = not (run.makes_actor or run.calls_actor or run.is_coroutine)


class WorkerRecord:
    """One worker. Its index is never used again, so that a column may name it."""

    def __init__(
        self,
        index: int,
        identity: bytes,
        name: str,
        address: str,
        slots: int,
        memory_limit_bytes: int,
        resources: dict[str, float],
        process_id: int,
        peer: int,
        now: float,
        host: Host,
    ) -> None:
        self.index = index
        self.host = host
        self.identity = identity
        self.name = name
        self.address = address
        self.addresses = [address]  # as grants name a value's holders; made once, since it is said so often
        self.slots = slots
        self.memory = WorkerMemory(memory_limit_bytes)
        self.is_full = False  # some task was held back, since its memory has no room for what that would make
        self._declared = frozenset(resources)
        self.resources = {COROUTINES: float(slots * _COROUTINES_A_SLOT), **resources}
        self.available = dict(self.resources)
        self.actors = 0  # that live there; they keep their resources
        self.process_id = process_id
        self.versions: dict[str, str] = {}
        self.peer = peer
        self.joined_at = now
        self.last_seen = now
        self.called_silent_at = -math.inf  # when its silence was last noted as an event
        self.called_roomless_at = -math.inf  # … that it had no room for a value which a client pushes
        self.draining = False
        self.lost = False  # it is gone; what it had is being given to others
        self.grants: dict[int, GrantRecord] = {}
        self.outstanding = 0  # granted tasks that have not ended
        self.outstanding_seconds = 0.0
        self.outstanding_lead = 0.0
        self.stopping: dict[tuple[int, int], GrantRecord] = {}  # (attempt, row) asked to stop, not yet answered
        self.functions: set[bytes] = set()  # sent to it
        self.held_bytes = 0
        self.held_values = 0
        self.last_progress = now
        self.recall_pending = False
        self.recalled_in_vain = False  # all that the last recall brought back was needed by nobody
        self.recall_after = 0.0  # a recall that brought nothing back is not repeated before
        self.lead_after = 0.0  # after a recall it gets free slots only for a while, not the same tasks again
        self.report: dict[str, Any] = {}
        self.suspended: dict[tuple[int, int], None] = {}  # (attempt, row) of runs that wait for tasks, and take no slot
        self.hungry: dict[int, None] = {}  # rows of these of which a child may be ready
        self.room = slots  # tasks that may run at a time and are no children of these
        self.newest_change = 0  # of what the agent told about them

    @property
    def declared_resources(self) -> dict[str, float]:
        """What it was started with, for people."""
        return {name: amount for name, amount in self.resources.items() if name in self._declared}

    @property
    def free_slots(self) -> int:
        """Slots without a granted task."""
        return 0 if self.draining else max(0, min(self.slots, self.room) - self.outstanding)

    def permits(self, restriction: Restriction) -> bool:
        """Whether a task with this restriction may ever run here (resources counted as if all were free)."""
        named = self.name in restriction.workers or self.address in restriction.workers
        if restriction.workers and not restriction.allow_other_workers and not named:
            return False
        return all(self.resources.get(name, 0.0) >= amount for name, amount in restriction.resources)

    def room_for(self, restriction: Restriction) -> int | None:
        """How many tasks of this restriction its free resources allow; None when they need none."""
        room: int | None = None
        for name, amount in restriction.resources:
            if amount > 0:
                fit = int((self.available.get(name, 0.0) + 1e-9) // amount)
                room = fit if room is None else min(room, fit)
        return room

    @property
    def oldest_grant(self) -> GrantRecord | None:
        """The first grant whose tasks take slots and have not all ended."""
        return next((grant for grant in self.grants.values() if grant.takes_slots), None)

    def add_grant(self, attempt: int, grant: GrantRecord) -> None:
        """Count a grant in."""
        self.grants[attempt] = grant
        self._take_slots(grant, grant.left)
        if grant.bytes_each:
            self.memory.promise(grant.run.client.identity, grant.left * grant.bytes_each)
        for name, amount in grant_resources(grant):
            self.available[name] -= amount * grant.left

    def expect_more(self, grant: GrantRecord, nbytes: int) -> None:
        """Each task of a grant takes so much, if not more."""
        if nbytes > grant.bytes_each:
            self.memory.promise(grant.run.client.identity, grant.left * (nbytes - grant.bytes_each))
            grant.bytes_each = nbytes

    def suspend(self, attempt: int, row: int) -> None:
        """A task of a grant waits for others: it takes no slot."""
        self.suspended[attempt, row] = None
        self._take_slots(self.grants[attempt], -1)

    def resume(self, attempt: int, row: int) -> None:
        """It wants its slot again, or has ended, which is counted as if it had one."""
        del self.suspended[attempt, row]
        self._take_slots(self.grants[attempt], 1)

    def _take_slots(self, grant: GrantRecord, count: int) -> None:
        if not grant.takes_slots:
            return
        grant.run.client.running += count
        self.outstanding += count
        self.outstanding_seconds += count * grant.seconds_each
        self.outstanding_lead += count * grant.lead_each

    def end(self, attempt: int, count: int) -> float:
        """Count `count` tasks of a grant out; the seconds that they had been expected to take."""
        grant = self.grants[attempt]
        grant.left -= count
        self._take_slots(grant, -count)
        for name, amount in grant_resources(grant):
            self.available[name] += amount * count
        if grant.bytes_each:
            self.memory.promise(grant.run.client.identity, -count * grant.bytes_each)
        if not grant.left:
            del self.grants[attempt]
            for row in grant.coming:
                self.memory.arrived(row)
            if not self.outstanding:
                self.outstanding_seconds = self.outstanding_lead = 0.0  # no drift of rounding
        return count * grant.seconds_each


def grant_resources(grant: GrantRecord) -> tuple[tuple[str, float], ...]:
    """What each task of a grant holds of the worker's resources."""
    lane = grant.run.lane
    return () if lane is None else lane.restriction.resources
