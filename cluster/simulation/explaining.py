"""Whether `explain` is right: what it says of random rows, against facts that are found elsewhere.

The facts come from the processes that run (agents, slots, files), from what was submitted (the oracle's inputs and
options), and from a recount of the table's columns; never from what `explain` itself goes by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.scheduler import invariants
from cluster.scheduler.explain import Explanation, Whereabouts, explain
from cluster.scheduler.startable import MOVE_FREELY_BYTES
from cluster.scheduler.table import FAILED, FINISHED, FREE, GRANTED, READY, RELEASED, WAITING
from cluster.worker.values import value_key

if TYPE_CHECKING:
    from cluster.scheduler.workers import WorkerRecord
    from cluster.simulation.agents import AgentProcess
    from cluster.simulation.slots import SlotProcess
    from cluster.simulation.workloads import Spec
    from cluster.simulation.world import World

__all__ = ["ExplainWatch"]

LONGEST_TEXT = 20_000
# What a ready row's explanation is about, the further a worker is from being out of the question the later.
READY_REASONS = ("no worker", "workers", "resources nowhere", "draining", "resources", "moving", "slot", "starting")
JUDGED_KINDS = ("exception", "died", "timeout", "cancelled", "unrunnable")


class ExplainWatch:
    """Explains random rows after the scheduler's events, and compares."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random_of("explain")
        self._rows: dict[int, int] = {}  # a spec's index -> its row

    def look(self) -> None:
        """Take a row and see, if this seed does that."""
        world = self._world
        if self._random.random() >= world.plan.explains:
            return
        ledger = world.scheduler.ledger
        table = ledger.table
        live = [row for row, code in enumerate(table.state) if code != FREE and not ledger.run(row).is_join]
        if not live:
            return
        self._rows = {world.spec_of(row).index: row for row in live}
        row = self._random.choice(live)
        if ledger.run(row).client.in_slot or world.spec_of(row).children:
            return  # a child runs again under another row each time its parent does, which is not followed here
        fault = self._fault(row, table.state[row])
        if fault:
            raise AssertionError(f"explain: {fault}\n{invariants.story(ledger, row)}")
        world.report.explained[table.state[row]] = world.report.explained.get(table.state[row], 0) + 1

    def _fault(self, row: int, state: int) -> str:
        """What is wrong in the explanation of a row; empty if nothing is."""
        world = self._world
        ledger = world.scheduler.ledger
        spec = world.spec_of(row)
        if state == GRANTED:
            return self._granted(row, spec)
        explanation = explain(ledger, row, world.clock.now)
        text = str(explanation.answer())
        if len(text) > LONGEST_TEXT:
            return f"it takes {len(text)} characters"
        names = {WAITING: "waiting", READY: "ready", FINISHED: "finished", RELEASED: "released"}
        if state != FAILED and explanation.state != names[state]:
            return f"it says {explanation.state}"
        if state in (WAITING, READY) and spec.runs and not ledger.history.of(row, ledger.run(row).identity):
            return "it has run before, and the story tells nothing of that"
        if state == WAITING:
            return self._waiting(spec, explanation)
        if state == READY:
            return self._ready(spec, explanation)
        if state == FINISHED:
            return self._finished(row, spec, explanation)
        return self._failed(row, spec, explanation) if state == FAILED else ""

    def _waiting(self, spec: Spec, explanation: Explanation) -> str:
        table = self._world.scheduler.ledger.table
        missing = {self._rows[index] for index in spec.inputs if table.state[self._rows[index]] != FINISHED}
        told = explanation.reasons[0]
        if told.what != "inputs" or set(told.rows) != missing or not missing:
            return f"{told} instead of the inputs {sorted(missing)}"
        return ""

    # ------------------------------------------------------------------ ready

    def _ready(self, spec: Spec, explanation: Explanation) -> str:
        ledger = self._world.scheduler.ledger
        reached = {self._reached(spec, worker) for worker in ledger.workers.values()}
        certain = max((READY_REASONS.index(reason) for reason, sure in reached if sure), default=0)
        possible = {READY_REASONS.index(reason) for reason, sure in reached if not sure}
        if possible:
            possible.add(READY_REASONS.index("moving"))
        allowed = {READY_REASONS[certain], *(READY_REASONS[each] for each in possible if each > certain)}
        told = explanation.reasons[0].what
        return "" if told in allowed else f"{told!r} instead of one of {sorted(allowed)}: {explanation.reasons[0].why}"

    def _reached(self, spec: Spec, worker: WorkerRecord) -> tuple[str, bool]:
        """How near a worker is to starting a task; False: unless what would have to be moved keeps it from that."""
        world = self._world
        ledger = world.scheduler.ledger
        table = ledger.table
        agent = world.agents[worker.address]
        slots, gpus = world.plan.workers[int(agent.name[1:])]
        named: Any = spec.options.get("workers")
        asked: Any = spec.options.get("resources") or {}
        if gpus < asked.get("gpu", 0.0):
            return "resources nowhere", True
        if named and not spec.options.get("allow_other_workers") and not {agent.name, agent.address} & set(named):
            return "workers", True
        if worker.draining:
            return "draining", True
        here = [row for row, code in enumerate(table.state) if code == GRANTED and table.holder[row] == worker.index]
        stopping = [grant.run.options.get("resources") or {} for grant in worker.stopping.values()]
        taken = sum(resources.get("gpu", 0.0) for resources in stopping)
        for row in here:
            theirs: Any = world.spec_of(row).options.get("resources") or {}
            taken += theirs.get("gpu", 0.0)
        if asked and gpus - taken < asked["gpu"] - 1e-6:
            return "resources", True
        elsewhere = sum(
            table.nbytes[self._rows[index]]
            for index in spec.inputs
            if worker.index not in table.holders(self._rows[index])
        )
        idle = len(here) + len(stopping) < slots
        return "starting" if idle else "slot", elsewhere <= MOVE_FREELY_BYTES

    # ------------------------------------------------------------------ granted

    def _granted(self, row: int, spec: Spec) -> str:
        world = self._world
        ledger = world.scheduler.ledger
        worker, attempt = ledger.workers[ledger.table.holder[row]], ledger.table.attempt[row]
        agent = world.agents[worker.address]
        if not agent.alive:
            return ""  # the scheduler does not know that yet
        found = agent.machine.whereabouts.find(attempt, row)
        explanation = explain(ledger, row, world.clock.now, Whereabouts(row, attempt, found))
        states = {"fetching": "fetching", "queued": "queued", "gone": "granted", "waits": "running"}
        expected = states.get(found["where"]) or ("queued" if found["ahead"] else "running")
        if explanation.state != expected:
            return f"it says {explanation.state}, and {worker.name} says {found}"
        # A run that was to stop may go on for a while beside the one that counts.
        stopped = any(spec.active and old == row for other in ledger.workers.values() for _, old in other.stopping)
        running = [slot for slot in agent.slots.values() if slot.running is spec and not slot.unread]
        if found["where"] != "slot" and running and not stopped:
            return f"it runs in slot {running[0].index} of {worker.name}, which says {found}"
        lacking = agent.machine.supply._waiting.values()
        waits = any((each.assignment.attempt, each.assignment.rows[each.index]) == (attempt, row) for each in lacking)
        if waits != (found["where"] == "fetching"):
            return f"it {'waits' if waits else 'does not wait'} for inputs at {worker.name}, which says {found}"
        if found["where"] == "waits" and found["slot"] in agent.slots:
            slot = agent.slots[found["slot"]]
            if not slot.dead and not slot.unread and all(frame.spec is not spec for frame in slot.stack):
                return f"it does not wait in slot {slot.index}, as {worker.name} says"
            return ""
        if found["where"] == "slot" and found["slot"] in agent.slots:
            return self._in_slot(spec, agent.slots[found["slot"]], found["ahead"])
        if found["where"] == "fetching":
            return self._fetching(spec, agent, found)
        if found["where"] == "queued":
            queued = [
                (assignment.attempt, assignment.rows[index])
                for assignment, first, count in agent.machine._queue._stretches
                for index in range(first, first + count)
            ]
            if queued[found["ahead"]] != (attempt, row):
                return f"it is not at place {found['ahead']} of {queued}"
        return ""

    def _in_slot(self, spec: Spec, slot: SlotProcess, ahead: int) -> str:
        if slot.dead or slot.unread:
            return ""  # the agent does not know that yet
        order = [*([slot.running] if slot.running is not None else []), *slot.unclaimed]
        if len(order) <= ahead or order[ahead] is not spec:
            indices = [other.index for other in order]
            return f"task {spec.index} is not at place {ahead} of slot {slot.index}, which has {indices}"
        return ""

    def _fetching(self, spec: Spec, agent: AgentProcess, found: dict[str, Any]) -> str:
        inputs = {self._rows[index] for index in spec.inputs if index in self._rows}
        for row, attempt, _, _ in found["inputs"]:
            if value_key(attempt, row) in agent.machine.supply.values:
                return f"it is said to lack row {row}, which {agent.name} has"
            if row not in inputs:
                return f"it is said to lack row {row}, which is none of its inputs"
        return ""

    # ------------------------------------------------------------------ ended

    def _finished(self, row: int, spec: Spec, explanation: Explanation) -> str:
        world = self._world
        ledger = world.scheduler.ledger
        why = explanation.reasons[0].why
        holders = [ledger.workers[index] for index in ledger.table.holders(row)]
        if not holders and not spec.offered:
            return f"nobody holds its value: {why}"
        key = value_key(ledger.table.attempt[row], row)
        for worker in holders[:5]:
            agent = world.agents[worker.address]
            if worker.name not in why:
                return f"it does not name {worker.name}: {why}"
            if agent.alive and key not in agent.machine.supply.values:
                return f"its value is not at {worker.name}: {why}"
        return ""

    def _failed(self, row: int, spec: Spec, explanation: Explanation) -> str:
        world = self._world
        workload = world.workload
        kind = world.scheduler.ledger.failures[row].kind
        if explanation.state != ("cancelled" if kind == "cancelled" else "failed"):
            return f"it says {explanation.state} of {kind}"
        if kind not in JUDGED_KINDS:
            return ""
        fault = workload.judge(spec.index, kind)
        root = explanation.reasons[-1].rows[0]
        table = world.scheduler.ledger.table
        if fault or explanation.reasons[0].what != ("failed input" if root != row else kind):
            return fault or f"it begins with {explanation.reasons[0]}"
        failure = world.scheduler.ledger.failures[row]
        known = table.run_of[root]
        is_there = known is not None and known.identity == failure.run_identity and table.state[root] != FREE
        if is_there and not world.scheduler.ledger.run(root).is_join:
            culprit = world.spec_of(root)
            if culprit.index not in workload.ancestry(spec.index):
                return f"it blames task {culprit.index}, which it does not need"
            # What depends on a task that was to be cancelled is cancelled, though another's want may spare that one.
            possible = culprit.own_failures() | workload.always_possible
            if culprit.children:
                possible = possible | {"exception"}  # what a child comes to is raised in its parent
            if kind not in possible and (kind != "cancelled" or workload.judge(culprit.index, kind)):
                return f"it blames task {culprit.index}, which does not end as {kind}"
        return ""
