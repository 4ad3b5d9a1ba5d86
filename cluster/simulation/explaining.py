"""Whether `explain` is right: what it says of random rows, against facts that are found elsewhere.

The facts come from the processes that run (agents, slots, files), from what was submitted (the oracle's inputs and
options), and from a recount of the table's columns; never from what `explain` itself goes by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.scheduler import invariants
from cluster.scheduler.explain import Explanation, Reason, Whereabouts, explain
from cluster.scheduler.startable import MOVE_FREELY_BYTES
from cluster.scheduler.table import FAILED, FINISHED, FREE, GRANTED, READY, RELEASED, WAITING
from cluster.simulation.workloads import LARGE_BYTES
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
READY_REASONS = (
    "no worker", "workers", "resources nowhere", "draining", "resources", "moving", "suspects", "memory", "slot",
    "processes", "starting",
)  # fmt: skip
UNFINISHED = (WAITING, READY, GRANTED)
JUDGED_KINDS = ("exception", "died", "timeout", "cancelled", "unrunnable", "full")


class ExplainWatch:
    """Explains random rows after the scheduler's events, and compares."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random_of("explain")
        self._rows: dict[int, int] = {}  # the index of a spec of a client -> its row
        self._about = ""  # the state, and the first thing, that the latest explanation is about

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
        row = self._random.choice(live)
        # A child runs again under another row each time its parent does; who takes it took one of these.
        children = [each for each in live if ledger.run(each).client.in_slot]
        others = [each for each in live if not ledger.run(each).client.in_slot]
        sources = [source for source in table.inputs_of(row) if table.state[source] != FREE]
        taken = [source for source in sources if not ledger.run(source).is_join]
        self._rows = {world.spec_of(each).index: each for each in (*children, *others, *taken)}
        fault = self._fault(row, table.state[row])
        if fault:
            raise AssertionError(f"explain: {fault}\n{invariants.story(ledger, row)}")
        explained = world.report.explained
        explained[self._about] = explained.get(self._about, 0) + 1

    def _fault(self, row: int, state: int) -> str:
        """What is wrong in the explanation of a row; empty if nothing is."""
        world = self._world
        ledger = world.scheduler.ledger
        spec = world.spec_of(row)
        if state == GRANTED:
            return self._granted(row, spec)
        explanation = explain(ledger, row, world.clock.now)
        self._about = f"{explanation.state}: {explanation.reasons[0].what}"
        text = str(explanation.answer())
        if len(text) > LONGEST_TEXT:
            return f"it takes {len(text)} characters"
        names = {WAITING: "waiting", READY: "ready", FINISHED: "finished", RELEASED: "released"}
        if state != FAILED and explanation.state != names[state]:
            return f"it says {explanation.state}"
        again = spec.runs and not ledger.run(row).client.in_slot
        if state in (WAITING, READY) and again and not ledger.history.of(row, ledger.run(row).identity):
            return "it has run before, and the story tells nothing of that"
        if state == WAITING:
            return self._waiting(row, spec, explanation)
        if state == READY:
            return self._ready(row, spec, explanation)
        if state == FINISHED:
            return self._finished(row, spec, explanation)
        return self._failed(row, spec, explanation) if state == FAILED else ""

    def _waiting(self, row: int, spec: Spec, explanation: Explanation) -> str:
        ledger = self._world.scheduler.ledger
        state = ledger.table.state
        missing = {self._rows[index] for index in spec.inputs if state[self._rows[index]] != FINISHED}
        is_due = any(piece.start <= row < piece.stop for piece in ledger.waking)
        told = explanation.reasons[0]
        if told.what != "inputs" or set(told.rows) != missing or not (missing or is_due):
            return f"{told} instead of the inputs {sorted(missing)}"
        return ""

    # ------------------------------------------------------------------ ready

    def _ready(self, row: int, spec: Spec, explanation: Explanation) -> str:
        ledger = self._world.scheduler.ledger
        fault = self._beside_ready(row, explanation)
        if fault:
            return fault
        reached = {self._reached(row, spec, worker) for worker in ledger.workers.values()}
        certain = max((READY_REASONS.index(reason) for reason, sure in reached if sure), default=0)
        possible = {READY_REASONS.index(reason) for reason, sure in reached if not sure}
        if possible:
            possible.add(READY_REASONS.index("moving"))
        if any(self._may_be_full(row, spec, worker) for worker in ledger.workers.values()):
            possible |= {READY_REASONS.index("memory"), *(READY_REASONS.index(reason) for reason, _ in reached)}
            certain = min(certain, READY_REASONS.index("memory"))
        allowed = {READY_REASONS[certain], *(READY_REASONS[each] for each in possible if each > certain)}
        told = explanation.reasons[0].what
        if not ledger.table.holds[row]:
            allowed = {"unneeded", "no worker"}  # given up in one of the next steps
        return "" if told in allowed else f"{told!r} instead of one of {sorted(allowed)}: {explanation.reasons[0].why}"

    def _may_be_full(self, row: int, spec: Spec, worker: WorkerRecord) -> bool:
        """Whether what is or may come to be in a worker's memory could keep a task from it."""
        ledger = self._world.scheduler.ledger
        table = ledger.table
        taken = [self._rows[index] for index in spec.inputs]
        nbytes = sum(table.nbytes[other] for other in taken if worker.index not in table.holders(other))
        for other, code in enumerate(table.state):
            here = worker.index in table.holders(other)
            if code == FINISHED and here:
                nbytes += table.nbytes[other]
            elif code == GRANTED and here:
                nbytes += max(LARGE_BYTES) + self._world.spec_of(other).memory_bytes
                nbytes += sum(table.nbytes[self._rows[index]] for index in self._world.spec_of(other).inputs)
        limit = self._world.plan.memory_limit_bytes
        return nbytes + max(LARGE_BYTES) + spec.memory_bytes > limit / 4

    def _beside_ready(self, row: int, explanation: Explanation) -> str:
        """What is wrong in what is said of a ready row beside the first thing."""
        ledger = self._world.scheduler.ledger
        told = {reason.what: reason for reason in explanation.reasons}
        first = explanation.reasons[0]
        if first.what in ("no worker", "starting", "unneeded"):
            return ""
        suspicion = ledger.suspects.get(row)
        if ("suspect" in told) != (suspicion is not None):
            return f"it is {'' if suspicion else 'no '}suspect, and told {sorted(told)}"
        plan, deaths = self._world.plan, self._world.spec_of(row).worker_deaths
        all_seen = not plan.mutes and not plan.stalls  # else a worker may be given up that has not ended
        if suspicion is not None and all_seen and suspicion.deaths >= deaths:
            return f"it is charged with {suspicion.deaths} ends of workers, and was at {deaths} that ended"
        if first.what == "suspects":
            charged = [other for other in first.rows if other in ledger.suspects and ledger.suspects[other].deaths]
            if not charged or len(charged) != len(first.rows):
                return f"not all of {first.rows} are charged with the end of a worker"
        parent = ledger.run(row).parent
        name = (ledger.table.attempt[parent], parent)
        waits = parent >= 0 and any(name in worker.suspended for worker in ledger.workers.values())
        if ("parent waits" in told) != waits:
            return f"row {parent}, its parent, {'waits' if waits else 'does not wait'}, and it tells {sorted(told)}"
        return self._parent(row, told["parent waits"].rows[0]) if "parent waits" in told else ""

    def _parent(self, row: int, parent: int) -> str:
        """What is wrong if that row is said to have submitted this one, and to wait."""
        world = self._world
        if world.spec_of(row).index not in world.spec_of(parent).children:
            return f"row {parent} did not submit it"
        return ""

    def _reached(self, row: int, spec: Spec, worker: WorkerRecord) -> tuple[str, bool]:
        """How near a worker is to starting a task; False: unless what would have to be moved keeps it from that."""
        world = self._world
        ledger = world.scheduler.ledger
        table = ledger.table
        agent = world.agents[worker.address]
        slots, gpus = world.plan.workers[int(agent.name[1:])]
        slots *= world.plan.threads
        named: Any = spec.options.get("workers")
        asked: Any = spec.options.get("resources") or {}
        if gpus < asked.get("gpu", 0.0):
            return "resources nowhere", True
        if named and not spec.options.get("allow_other_workers") and not {agent.name, agent.address} & set(named):
            return "workers", True
        if worker.draining:
            return "draining", True
        here = [each for each, code in enumerate(table.state) if code == GRANTED and table.holder[each] == worker.index]
        stopping = [grant.run.options.get("resources") or {} for grant in worker.stopping.values()]
        taken = sum(resources.get("gpu", 0.0) for resources in stopping)
        for other in here:
            theirs: Any = world.spec_of(other).options.get("resources") or {}
            taken += theirs.get("gpu", 0.0)
        if asked and gpus - taken < asked["gpu"] - 1e-6:
            return "resources", True
        elsewhere = sum(
            table.nbytes[self._rows[index]]
            for index in spec.inputs
            if worker.index not in table.holders(self._rows[index])
        )
        return self._room(row, slots, worker, here, len(stopping)), elsewhere <= MOVE_FREELY_BYTES

    def _room(self, row: int, slots: int, worker: WorkerRecord, here: list[int], stopping: int) -> str:
        """What of slots and processes a ready row still lacks at a worker that else may run it."""
        suspects = self._world.scheduler.ledger.suspects
        suspicion = suspects.get(row)
        charged = any(other in suspects and suspects[other].deaths for other in here)
        if charged and suspicion is not None and suspicion.deaths:
            return "suspects"
        runs = len(here) + stopping - len(worker.suspended)
        if runs >= slots:
            return "slot"
        parent = self._world.scheduler.ledger.run(row).parent
        is_child = parent in here and any(parent == other for _, other in worker.suspended)
        return "starting" if is_child or runs < worker.room else "processes"

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
        self._about = f"{explanation.state}: {explanation.reasons[0].what}"
        states = {"fetching": "fetching", "queued": "queued", "gone": "granted", "waits": "running"}
        expected = states.get(found["where"]) or ("queued" if found["ahead"] else "running")
        if explanation.state != expected:
            return f"it says {explanation.state}, and {worker.name} says {found}"
        # A run that was to stop may go on for a while beside the one that counts.
        stopped = any(spec.active and old == row for other in ledger.workers.values() for _, old in other.stopping)
        running = [slot for slot in agent.slots.values() if slot.name == (attempt, row) and not slot.unread]
        if found["where"] != "slot" and running and not stopped:
            return f"it runs in slot {running[0].index} of {worker.name}, which says {found}"
        lacking = agent.machine.supply._waiting.values()
        waits = any((each.assignment.attempt, each.assignment.rows[each.index]) == (attempt, row) for each in lacking)
        if waits != (found["where"] == "fetching"):
            return f"it {'waits' if waits else 'does not wait'} for inputs at {worker.name}, which says {found}"
        if found["where"] == "waits" and found["slot"] in agent.slots:
            slot = agent.slots[found["slot"]]
            frame = next((frame for frame in slot.stack if frame.name == (attempt, row)), None)
            if not slot.dead and not slot.unread and frame is None:
                return f"it does not wait in slot {slot.index}, as {worker.name} says"
            if frame is not None and found["woken"]:
                return "" if frame.woken else "it is said to go on, and what it waits for has not come"
            return self._waits(row, explanation.reasons[0])
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

    def _waits(self, row: int, told: Reason) -> str:
        """What is wrong in what a run that waits is said to wait for."""
        ledger = self._world.scheduler.ledger
        table = ledger.table
        unfinished = {
            child
            for child, code in enumerate(table.state)
            if code in UNFINISHED and not ledger.run(child).is_join and ledger.run(child).parent == row
        }
        if told.what != "waits for tasks" or set(told.rows) != unfinished:
            return f"{told} instead of a wait for {sorted(unfinished)}"
        faults = [self._parent(child, row) for child in sorted(unfinished)]
        return next((fault for fault in faults if fault), "")

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
            supply, key = agent.machine.supply, value_key(attempt, row)
            if key in supply.values and supply.returning.find(key) is None:  # else it is being read from the disk
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
            # What was damaged on its disk is gone before the scheduler hears of that.
            if agent.alive and key not in agent.machine.supply.values and not world.plan.spill_damages:
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
