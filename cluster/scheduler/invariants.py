"""What must be true of the scheduler's ledger between any two events, counted anew from first principles.

The ledger keeps counters (holds, heirs, waiting inputs, grants' remains, free resources …) so that no decision has to
search. `check` makes every one of them again by searching, and compares: a counter that drifted is a task that never
ends or a value that never goes. It looks at every row, so it belongs into tests and the simulator, not into a daemon.

A fault is an AssertionError that tells the row's story.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

from cluster.scheduler.actor_invariants import check_actors
from cluster.scheduler.census import LISTED_STATES, OTHER_LABELS, Census
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.lineage_invariants import check_recipes
from cluster.scheduler.memory_invariants import check_memory
from cluster.scheduler.nesting_invariants import check_parents
from cluster.scheduler.placement import Placement
from cluster.scheduler.ready import ANYWHERE, Lane
from cluster.scheduler.spreading import CLIENT
from cluster.scheduler.table import (
    DELIVERED,
    FAILED,
    FINISHED,
    FREE,
    GRANTED,
    KEPT,
    NO_RECIPE,
    OWNER_WANTS,
    READY,
    RELEASED,
    STATE_NAMES,
    WAITING,
    Run,
    Table,
)

__all__ = ["check", "check_census", "check_empty", "check_placement", "story"]

UNFINISHED = (WAITING, READY, GRANTED)


def story(ledger: Ledger, row: int) -> str:
    """Everything that the ledger says of a row, for the text of a fault."""
    table = ledger.table
    if not 0 <= row < len(table) or table.run_of[row] is None:
        return f"row {row}: no task"
    run = ledger.run(row)
    worker = ledger.workers.get(table.holder[row])
    grant = None if worker is None else worker.grants.get(table.attempt[row])
    flags = [
        name
        for bit, name in ((OWNER_WANTS, "wanted"), (KEPT, "kept"), (DELIVERED, "delivered"), (NO_RECIPE, "no recipe"))
        if table.flags[row] & bit
    ]

    def brief(other: int) -> str:
        return f"{other} {STATE_NAMES[table.state[other]]}"

    lines = [
        f"row {row}: {ledger.key(row)}, number {ledger.number(row)} of client {run.client.name}, run {run.identity} "
        f"({run.start}+{run.count}, {run.live} live{', offered' if run.offered else ''})",
        f"  state {STATE_NAMES[table.state[row]]}, flags {flags}, attempt {table.attempt[row]}, "
        f"holds {table.holds[row]}, heirs {table.heirs[row]}, waiting {table.waiting[row]}, {table.nbytes[row]} bytes",
        f"  at workers {table.holders(row)}, under a grant with {'no' if grant is None else grant.left} tasks left",
        f"  inputs [{', '.join(map(brief, table.inputs_of(row)))}]",
        f"  dependents [{', '.join(map(brief, table.dependents(row)))}]",
        f"  contains {ledger.contains.get(row, [])}, aliases {ledger.aliases_of.get(row, [])}, "
        f"failed runs {ledger.failed_runs.get(row, 0)}, deaths {ledger.deaths.get(row, 0)}, "
        f"failure {ledger.failures.get(row)}",
    ]
    return "\n".join(lines)


def check_census(ledger: Ledger) -> None:
    """Compare a census of the whole table with a count of its rows one by one."""
    census = Census(ledger, listed=LISTED_STATES, limit=3)
    while not census.work():
        pass
    labels: dict[str, list[int]] = {}
    for row, run in enumerate(ledger.table.run_of):
        if run is not None and not run.is_join and not run.offered and ledger.table.state[row] != FREE:
            label = run.label if run.label in census.labels else OTHER_LABELS
            labels.setdefault(label, [0] * len(STATE_NAMES))[ledger.table.state[row]] += 1
    assert census.labels == labels, f"the census counts {census.labels}, and there are {labels}"
    tasks = sum(map(sum, labels.values()))
    assert len(census.tasks) == min(3, tasks), f"the census lists {census.tasks}, of {tasks} tasks"


def check(ledger: Ledger) -> None:
    """Compare everything that the ledger counts with what a search finds; AssertionError on the first difference."""
    live = _check_runs(ledger)
    _check_space(ledger.table)
    _check_edges(ledger, live)
    _check_reasons(ledger, live)
    _check_states(ledger, live)
    _check_ready(ledger, live)
    _check_workers(ledger, live)
    check_parents(ledger, live)
    check_actors(ledger, live)
    _check_values(ledger, live)
    check_memory(ledger, live)
    _check_side_tables(ledger, live)
    _check_clients(ledger, live)
    check_recipes(ledger, live)
    _check_functions(ledger)


def check_empty(ledger: Ledger) -> None:
    """After everything was released and every client has left: nothing of it remains anywhere."""
    table = ledger.table
    assert table.rows_used == 0, f"{table.rows_used} rows are still in use"
    for name in (
        "clients", "client_of_peer", "functions", "failures", "failed_runs", "deaths", "missed", "refusals", "suspects",
        "contains", "kept_rows", "aliases_of", "pushing", "spreads", "copying", "uncopied", "locating", "deferred",
        "parents", "actors",
    ):  # fmt: skip
        kept = getattr(ledger, name)
        assert not kept, f"ledger.{name} still has {len(kept)} entries: {kept}"
    assert not table.replicas and not table.stale_edges, "the table still lists replicas or stale edges"
    assert not ledger.waking, "rows are still to be made ready"
    assert not table.fans, f"the rows {list(table.fans)} still have fans"
    assert not table.walked, "the table still protects edges that nobody walks along"
    assert _count_free_edges(table) == len(table.edge_row), "not every edge went back to the free list"
    assert ledger.ready_rows == 0, "rows are still counted as ready"
    for worker in ledger.workers.values():
        facts = (worker.held_values, worker.held_bytes, worker.outstanding, len(worker.grants), len(worker.stopping))
        assert facts == (0, 0, 0, 0, 0), f"worker {worker.name} still has (values, bytes, tasks, grants, stops) {facts}"
        assert all(math.isclose(worker.available[name], amount) for name, amount in worker.resources.items()), (
            f"worker {worker.name} has {worker.available} of its resources {worker.resources}"
        )


def check_placement(placement: Placement) -> None:
    """Compare the lists of workers by room with each worker's own figures."""
    for name, listed in (("idle", placement.idle), ("roomy", placement.roomy), ("surplus", placement.surplus)):
        for index, worker in listed.items():
            assert worker.index == index, f"{name} lists worker {worker.index} as {index}"
            assert index in placement.ledger.workers, f"{name} lists worker {worker.name}, which is gone"
    for index, worker in placement.ledger.workers.items():
        idle = not worker.draining and worker.outstanding < worker.slots and not worker.is_full
        assert (index in placement.full) == worker.is_full, f"worker {worker.name} is wrongly listed as full, or not"
        assert (index in placement.idle) == idle, (
            f"worker {worker.name} has {worker.outstanding} tasks on {worker.slots} slots, and is "
            f"{'not ' if idle else ''}listed as idle"
        )
        surplus = worker.outstanding > worker.slots and not worker.lost
        assert (index in placement.surplus) == surplus, (
            f"worker {worker.name} has {worker.outstanding} tasks on {worker.slots} slots, and is "
            f"{'not ' if surplus else ''}listed with a surplus"
        )


def _fault(ledger: Ledger, row: int, text: str) -> NoReturn:
    raise AssertionError(f"{text}\n{story(ledger, row)}")


def _differing(ledger: Ledger, rows: list[int], kept: Sequence[int], found: Counter[int], what: str) -> None:
    for row in rows:
        value = kept[row]
        if value != found[row]:
            raise AssertionError(
                f"row {row} counts {value} {what}, and a search finds {found[row]}\n{story(ledger, row)}"
            )


# --------------------------------------------------------------------------- rows, space, edges


def _check_runs(ledger: Ledger) -> list[int]:
    """Runs lie apart and know their rows; the rows in use."""
    table = ledger.table
    columns = (
        table.flags, table.attempt, table.run_of, table.waiting, table.holds, table.heirs, table.holder, table.nbytes,
        table.first_edge,
    )  # fmt: skip
    assert all(len(column) == len(table) for column in columns), "the table's columns differ in length"
    live: list[int] = []
    seen: dict[int, Run] = {}
    total = row = 0
    while row < len(table):
        run = table.run_of[row]
        if run is None:
            if table.state[row] != FREE:
                raise AssertionError(f"row {row} has a state and no run")
            row += 1
            continue
        if run.start != row or run.identity in seen:
            raise AssertionError(f"run {run.identity} does not start at row {row}")
        seen[run.identity] = run
        stop = row + run.count
        found = run.count - table.state.count(FREE, row, stop)
        if table.run_of[row:stop].count(run) != run.count:
            raise AssertionError(f"run {run.identity} has lost some of its rows")
        if found != run.live or found == 0:
            raise AssertionError(f"run {run.identity} counts {run.live} live rows and has {found}")
        live += range(row, stop) if found == run.count else (r for r in range(row, stop) if table.state[r] != FREE)
        total += run.count
        row = stop
    assert total == table.rows_used, f"{table.rows_used} rows are said to be in use, and {total} are"
    by_client = {run.identity: run for client in ledger.clients.values() for run in client.all_runs()}
    submitted = {identity: run for identity, run in seen.items() if not run.is_join}
    assert by_client == submitted, "the clients' runs are not those of the table"
    return live


def _check_space(table: Table) -> None:
    free = {row for row, run in enumerate(table.run_of) if run is None}
    spans = table._free_count
    assert table._free_start == {start + count: start for start, count in spans.items()}, "free spans disagree"
    covered: set[int] = set()
    for start, count in spans.items():
        span = set(range(start, start + count))
        assert span <= free and covered.isdisjoint(span), f"the free span {start}+{count} overlaps something"
        assert start in table._free_by_class[count.bit_length() - 1], f"the free span {start}+{count} is in no list"
        covered |= span
    assert covered == free, f"rows {sorted(free - covered)} are neither used nor listed as free"


def _count_free_edges(table: Table) -> int:
    count, edge = 0, table.free_edge
    while edge >= 0:
        count += 1
        edge = table.edge_next[edge]
        if count > len(table.edge_row):
            raise AssertionError("the list of free edges runs in a circle")
    return count


def _check_edges(ledger: Ledger, live: list[int]) -> None:
    """Each input has its edge, as often as it is taken, and every edge has one place."""
    table = ledger.table
    used = 0
    edges: dict[tuple[int, int], int] = {}
    state, run_of, edge_row, edge_run, edge_next = (
        table.state, table.run_of, table.edge_row, table.edge_run, table.edge_next,
    )  # fmt: skip
    for row, edge in enumerate(table.first_edge):
        if edge >= 0 and state[row] == FREE:
            raise AssertionError(f"the free row {row} has dependents")
        while edge >= 0:
            used += 1
            if used > len(edge_row):
                raise AssertionError("a list of dependents runs in a circle")
            dependent = edge_row[edge]
            run = run_of[dependent]
            if run is not None and run.identity == edge_run[edge] and state[dependent] != FREE:
                edges[row, dependent] = edges.get((row, dependent), 0) + 1
            edge = edge_next[edge]
    assert used + _count_free_edges(table) == len(edge_row), "edges were lost"
    for row in table.fans:
        if state[row] == FREE or not table.fans[row]:
            raise AssertionError(f"the free row {row} has fans, or one that has none is listed")
        for dependent in table.rows_of_fans(row):
            edges[row, dependent] = edges.get((row, dependent), 0) + 1
    for row in live:
        inputs = table.inputs_of(row)
        if not inputs:
            continue
        # What has given up its recipe needs its inputs while it is unfinished only.
        if table.flags[row] & NO_RECIPE and table.state[row] not in UNFINISHED:
            continue
        for source in inputs:
            if state[source] == FREE:
                _fault(ledger, row, f"row {row} takes the value of the free row {source}")
            known, times = edges.get((source, row), 0), inputs.count(source)
            if known != times:
                _fault(ledger, row, f"row {row} takes row {source} {times} times, by {known} edges")


# --------------------------------------------------------------------------- counters of a row


def _check_reasons(ledger: Ledger, live: list[int]) -> None:
    """Holds and heirs equal the reasons that a search finds."""
    table = ledger.table
    holds: Counter[int] = Counter()
    heirs: Counter[int] = Counter()
    for row in live:
        flags = table.flags[row]
        holds[row] += bool(flags & OWNER_WANTS) + bool(flags & KEPT)
        unfinished = table.state[row] in UNFINISHED
        inherits = not flags & NO_RECIPE
        if unfinished or inherits:
            for source in table.inputs_of(row):
                holds[source] += unfinished
                heirs[source] += inherits
    for row, aliases in ledger.aliases_of.items():
        holds[row] += len(aliases)
    for inside in ledger.contains.values():
        for row in inside:
            holds[row] += 1
    for row, values in ledger.kept_rows.items():
        holds[row] += values
    for parent in ledger.parents.values():
        for row in parent.handed_over:
            holds[row] += 1
    _differing(ledger, live, table.holds, holds, "holds")
    _differing(ledger, live, table.heirs, heirs, "heirs")


def _check_states(ledger: Ledger, live: list[int]) -> None:
    """Each state's own promises: what waits, what has a value, what may be forgotten."""
    table = ledger.table
    contained = Counter(row for inside in ledger.contains.values() for row in inside) + Counter(ledger.kept_rows)
    contained.update(row for parent in ledger.parents.values() for row in parent.handed_over)  # soon inside a value
    waking = {row for piece in ledger.waking for row in range(piece.start, piece.stop)}
    for row in live:
        state, flags = table.state[row], table.flags[row]
        inputs = table.inputs_of(row) if state in (WAITING, READY) else ()
        missing = len(inputs) - sum(table.state[source] == FINISHED for source in inputs)
        if state == WAITING:
            is_due = row in waking or ledger.run(row).calls_actor  # soon, or in its turn
            if missing == 0 and not is_due:
                _fault(ledger, row, f"row {row} waits for nothing")
            if table.waiting[row] != missing:
                _fault(ledger, row, f"row {row} misses {missing} inputs")
            # An input that is being made, and will wake it; a failed or released one never would.
            coming = all(
                table.state[source] in (*UNFINISHED, FINISHED)
                or (table.state[source] == FAILED and source in table.walked)  # it fails with the input, soon
                for source in inputs
            )
            if not coming:
                _fault(ledger, row, f"row {row} waits for an input that nobody makes")
        elif state == READY and missing:
            _fault(ledger, row, f"row {row} is ready and misses {missing} inputs")
        if state in (WAITING, READY, RELEASED, FAILED):
            idle = table.holder[row] == -1 and row not in table.replicas
            if not idle:
                _fault(ledger, row, f"row {row} has no value and no run, and stands at a worker")
        if state in (WAITING, READY, FINISHED) and table.holds[row] <= 0:
            _fault(ledger, row, f"row {row} is wanted by nobody and was not released")
        if state == RELEASED:
            delivered = bool(flags & OWNER_WANTS and flags & DELIVERED)
            # Who has a future of it inside a value does not need it yet, and can have it made by asking.
            if table.holds[row] > delivered + contained[row]:
                _fault(ledger, row, f"row {row} is needed and nobody makes it")
            if table.holds[row] + table.heirs[row] <= 0:
                _fault(ledger, row, f"row {row} was not forgotten")
        if state == FAILED and table.holds[row] + table.heirs[row] <= 0:
            _fault(ledger, row, f"row {row} was not forgotten")
        if flags & DELIVERED and not flags & OWNER_WANTS:
            _fault(ledger, row, f"row {row} was delivered to nobody")


def _check_ready(ledger: Ledger, live: list[int]) -> None:
    """Whatever is ready stands in its lane where a worker will find it, and is counted right."""
    table = ledger.table
    ready: dict[int, list[int]] = {}
    per_client: Counter[bytes] = Counter()
    per_lane: Counter[int] = Counter()
    for row in live:
        if table.state[row] == READY:
            run = ledger.run(row)
            ready.setdefault(run.identity, []).append(row)
            per_client[run.client.identity] += 1
            per_lane[id(ledger.lane_of(row, run))] += 1
    assert ledger.ready_rows == sum(per_client.values()), f"{ledger.ready_rows} rows are said to be ready"
    for client in ledger.clients.values():
        found = per_client[client.identity]
        assert client.ready_rows == found, f"client {client.name} counts {client.ready_rows} ready rows, has {found}"
        runs_in = Counter(id(run.lane) for run in client.all_runs())
        for key, lane in client.lanes.items():
            runs = runs_in[id(lane)]
            needed = runs > 0 or key == ANYWHERE or isinstance(key, tuple)  # a tuple: of suspects
            assert lane.runs == runs and needed, f"a lane of {client.name} is kept for {lane.runs} runs, has {runs}"
            assert lane.size == per_lane[id(lane)], f"a lane of {client.name} counts {lane.size}: {lane.restriction}"
            listed = [entry[3] for entry in lane.heap]
            assert len({id(bucket) for bucket in listed}) == len(listed), "a bucket stands twice in its lane"
            assert all(bucket.listed for bucket in listed), "a bucket in a lane does not know it"
        for run in client.all_runs():
            mine = ready.get(run.identity, [])
            if run.lane is not None:
                for place in dict.fromkeys([run.lane, *(ledger.lane_of(row, run) for row in mine)]):
                    _check_bucket(run, place, [row for row in mine if ledger.lane_of(row, run) is place])


def _check_bucket(run: Run, lane: Lane, ready: list[int]) -> None:
    bucket = lane.bucket_of(run)
    if bucket is None:
        assert not ready, f"rows {ready} of run {run.identity} are ready and stand in no bucket"
        return
    assert bucket.size == len(ready), f"the bucket of run {run.identity} counts {bucket.size}, ready are {ready}"
    in_lane = any(entry[3] is bucket for entry in lane.heap)
    assert bucket.listed == in_lane, f"the bucket of run {run.identity} is wrong about standing in its lane"
    assert bucket.listed or not ready, f"the ready rows {ready} of run {run.identity} stand in no lane"
    listed: list[int] = []
    for owner, spans in bucket.spans.items():
        rows = [row for start, stop in spans for row in range(start, stop)]
        assert bucket._lengths[owner] == len(rows) > 0, f"the stretch of worker {owner} has a wrong length"
        assert any(entry[1] == owner for entry in bucket._heap), f"nobody can take from the stretch of worker {owner}"
        listed += rows
    assert set(ready) <= set(listed), f"ready rows {sorted(set(ready) - set(listed))} stand in no stretch"
    if not bucket.dirty:
        assert sorted(listed) == ready, f"the stretches of run {run.identity} list {sorted(listed)}, ready are {ready}"


# --------------------------------------------------------------------------- workers


def _check_workers(ledger: Ledger, live: list[int]) -> None:
    """Grants, slots, resources and shares add up."""
    table = ledger.table
    running: Counter[tuple[int, int]] = Counter()
    for row in live:
        if table.state[row] != GRANTED:
            continue
        index, attempt = table.holder[row], table.attempt[row]
        worker = ledger.workers.get(index)
        if worker is None:
            _fault(ledger, row, f"row {row} is granted to worker {index}, which is gone")
        grant = ledger.grant_of(worker, attempt, row)
        if grant is None:
            _fault(ledger, row, f"row {row} is in no grant of worker {worker.name}")
        suspicion = ledger.suspects.get(row)
        if suspicion is not None and (grant.left != 1 or grant.charged != (suspicion.deaths > 0)):
            _fault(ledger, row, f"row {row} is a suspect, and was not granted by itself")
        if grant.run is not ledger.run(row):
            _fault(ledger, row, f"row {row} runs under another run's grant")
        if row in table.replicas:
            _fault(ledger, row, f"row {row} runs, and has replicas")
        running[index, attempt] += 1
    shares: dict[bytes, list[float]] = {}
    for worker in ledger.workers.values():
        connected = worker.lost or ledger.worker_of_peer.get(worker.peer) is worker
        assert connected, f"worker {worker.name} has lost its connection"
        charged = sum(grant.charged for grant in worker.grants.values())
        assert charged < 2, f"worker {worker.name} has {charged} tasks that were charged with the end of workers"
        stopping = Counter(attempt for attempt, _ in worker.stopping)
        used = dict.fromkeys(worker.resources, 0.0)
        seconds, lead, left = [0.0], [0.0], 0
        waiting = Counter(attempt for attempt, _ in worker.suspended)
        for attempt, grant in worker.grants.items():
            found = running[worker.index, attempt] + stopping[attempt]
            assert grant.left == found, (
                f"attempt {attempt} at worker {worker.name} counts {grant.left} tasks; {found} run or are to stop"
            )
            slots = grant.left - waiting[attempt] if grant.takes_slots else 0
            left += slots
            seconds.append(slots * grant.seconds_each)
            lead.append(slots * grant.lead_each)
            shares.setdefault(grant.run.client.identity, []).append(grant.left * grant.seconds_each)
            for name, amount in () if grant.run.lane is None else grant.run.lane.restriction.resources:
                used[name] += amount * grant.left
        at_home = [record for record in ledger.actors.values() if record.worker == worker.index]
        assert len(at_home) == worker.actors, f"worker {worker.name} counts {worker.actors} actors: {len(at_home)}"
        for record in at_home:
            for name, amount in record.resources:
                used[name] += amount
        assert set(waiting) <= set(worker.grants), f"worker {worker.name} suspends runs of no grant: {waiting}"
        assert set(stopping) <= set(worker.grants), f"worker {worker.name} is to stop runs of no grant: {stopping}"
        assert left == worker.outstanding, f"worker {worker.name} counts {worker.outstanding} tasks, and has {left}"
        assert _near(sum(seconds), worker.outstanding_seconds), f"worker {worker.name} counts its backlog wrong"
        assert _near(sum(lead), worker.outstanding_lead), f"worker {worker.name} counts its lead wrong"
        for name, amount in worker.resources.items():
            free = worker.available[name]
            assert _near(free, amount - used[name]), f"worker {worker.name} has {free} of {amount} {name}: {used}"
            assert -1e-6 <= free <= amount + 1e-6, f"worker {worker.name} gave {free} of {amount} {name}"
    there = sum(not worker.lost for worker in ledger.workers.values())
    assert len(ledger.worker_of_peer) == there, "a connection leads to a worker that is gone"
    for client in ledger.clients.values():
        share = sum(shares.get(client.identity, ()))
        assert _near(share, client.granted_seconds), f"client {client.name} is charged {client.granted_seconds} s"


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)


def _check_values(ledger: Ledger, live: list[int]) -> None:
    """Every value has holders that exist, and every holder counts it."""
    table = ledger.table
    values: Counter[int] = Counter()
    nbytes: Counter[int] = Counter()
    finished = set()
    for row in live:
        if table.state[row] != FINISHED:
            continue
        finished.add(row)
        run = ledger.run(row)
        if run.is_join:  # it has no value
            if ledger.contains.get(row) != list(table.inputs_of(row)):
                _fault(ledger, row, f"the join {row} does not hold its inputs")
            continue
        holders = table.holders(row)
        if len(set(holders)) != len(holders):
            _fault(ledger, row, f"row {row} lists a holder twice")
        with_client = run.offered and run.client.connected
        if not (holders or with_client):
            _fault(ledger, row, f"nobody holds the value of row {row}")
        for index in holders:
            if index not in ledger.workers:
                _fault(ledger, row, f"row {row} is held by worker {index}, which is gone")
            values[index] += 1
            nbytes[index] += table.nbytes[row]
    for row, more in table.replicas.items():
        assert row in finished and bool(more), f"row {row} lists replicas {more} of no value"
    for worker in ledger.workers.values():
        assert (worker.held_values, worker.held_bytes) == (values[worker.index], nbytes[worker.index]), (
            f"worker {worker.name} counts {worker.held_values} values of {worker.held_bytes} bytes, and holds "
            f"{values[worker.index]} of {nbytes[worker.index]}"
        )


# --------------------------------------------------------------------------- side tables, clients, functions


def _check_side_tables(ledger: Ledger, live: list[int]) -> None:
    """Rare facts are about rows that have them."""
    table = ledger.table
    rows = set(live)
    failed = {row for row in live if table.state[row] == FAILED}
    assert set(ledger.failures) == failed, (
        f"failures are kept for {sorted(ledger.failures)}, failed are {sorted(failed)}"
    )
    for row in ledger.suspects:
        assert row in rows and table.state[row] != FINISHED, f"row {row} is a suspect, and has a value or is free"
    for row in ledger.refusals:
        unfinished = row in rows and table.state[row] in UNFINISHED
        assert unfinished, f"row {row} is still noted as refused, and has ended or is free"
    for name in ("failed_runs", "deaths", "missed"):
        gone = sorted(set(getattr(ledger, name)) - rows)
        assert not gone, f"ledger.{name} remembers the rows {gone}, which are free"
    for row, inside in ledger.contains.items():
        # Once it is lost, the bytes that clients have go on containing them.
        filled = any(number in client.filled_aliases for client, number in ledger.aliases_of.get(row, ()))
        exists = row in rows and (table.state[row] == FINISHED or table.flags[row] & DELIVERED or filled)
        assert exists, f"row {row} has no value, and contains {inside}"
        assert rows.issuperset(inside), f"the value of row {row} holds free rows: {inside}"
    for row, aliases in ledger.aliases_of.items():
        assert row in rows and bool(aliases), f"row {row} has the aliases {aliases}, and is no task"
        for client, number in aliases:
            if client.aliases.get(number) != row:
                _fault(ledger, row, f"{client.name} does not know alias {number}")
    for row, under_way in ledger.pushing.items():
        known = row in rows and ledger.run(row).offered and table.state[row] == FINISHED
        assert known, f"row {row} is being pushed, and is no offered value"
        assert all(index in ledger.workers for index in under_way), f"row {row} is pushed to workers that are gone"
    for row, spread in ledger.spreads.items():
        assert row in rows and table.state[row] == FINISHED, f"row {row} spreads, and has no value"
        members = {*spread.under_way, *spread.waiting}
        assert bool(members), f"row {row} is said to spread, and nobody gets it"
        assert len(members) == len(spread.under_way) + len(spread.waiting), f"some wait for row {row} and get it"
        assert all(index in ledger.workers for index in members), f"row {row} spreads to workers that are gone"
        pushed = {index for index, source in spread.under_way.items() if source == CLIENT}
        assert pushed <= ledger.pushing.get(row, {}).keys(), f"the client of row {row} is to push it, and was not told"
        living = [index for index in table.holders(row) if not ledger.workers[index].lost]
        idle = bool(spread.waiting and living and not spread.under_way)
        assert not idle, f"the workers {list(spread.waiting)} wait for row {row}, and nobody is given it"
    for row in ledger.locating:
        ending = row in rows and table.state[row] in UNFINISHED
        if not ending:
            _fault(ledger, row, f"somebody waits to hear where row {row} is, and nobody will say")


def _check_clients(ledger: Ledger, live: list[int]) -> None:
    """Numbers lead to rows and rows to numbers."""
    for row in live:
        run = ledger.run(row)
        if not run.is_join and run.client.row(ledger.number(row)) != row:
            _fault(ledger, row, f"row {row} is not found by its number")
    for identity, client in ledger.clients.items():
        assert client.identity == identity, f"client {client.name} is listed under another identity"
        if client.connected:
            assert ledger.client_of_peer.get(client.peer) is client, f"client {client.name} has lost its connection"
        waiting = sum(run.untaken_bytes for run in client.all_runs())
        assert client.argument_bytes == waiting, (
            f"client {client.name} counts {client.argument_bytes} bytes of arguments that wait, and has {waiting}"
        )
        for number, row in client.aliases.items():
            known = (client, number) in ledger.aliases_of.get(row, ())
            assert known, f"alias {number} of client {client.name} is unknown to row {row}"
        assert not client.ended or client.run_count > 0, f"client {client.name} has ended and is still listed"
    assert all(ledger.clients.get(client.identity) is client for client in ledger.client_of_peer.values()), (
        "a connection leads to a client that is gone"
    )


def _check_functions(ledger: Ledger) -> None:
    users: Counter[bytes] = Counter()
    for client in ledger.clients.values():
        users.update(client.functions.keys())
        users.update(run.function.identity for run in client.all_runs() if run.function is not None)
    kept = {identity: function.users for identity, function in ledger.functions.items()}
    assert kept == dict(users), f"functions count their users as {kept}, and have {dict(users)}"
