"""What must be true of the figures that admission goes by, counted anew from values and grants."""

from __future__ import annotations

from collections import Counter

from cluster.scheduler.holdings import is_intermediate
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import FINISHED, INTERMEDIATE

__all__ = ["check_memory"]


def check_memory(ledger: Ledger, live: list[int]) -> None:
    """Intermediate values, promises and inputs on their way add up at each worker; AssertionError if they do not."""
    table = ledger.table
    intermediate: Counter[tuple[int, bytes]] = Counter()
    for row in live:
        flagged = bool(table.flags[row] & INTERMEDIATE)
        if table.holds[row] > 0 or flagged:
            assert flagged == is_intermediate(ledger, row), (
                f"row {row} is {'' if flagged else 'not '}called intermediate"
            )
        if flagged:
            assert table.state[row] == FINISHED, f"row {row} is called intermediate, and has no value"
            for index in table.holders(row):
                intermediate[index, ledger.run(row).client.identity] += table.nbytes[row]
    running: Counter[bytes] = Counter()
    for worker in ledger.workers.values():
        waiting = Counter(attempt for attempt, _ in worker.suspended)
        for attempt, grant in worker.grants.items():
            if grant.takes_slots:
                running[grant.run.client.identity] += grant.left - waiting[attempt]
        memory = worker.memory
        kept = {client: nbytes for (index, client), nbytes in intermediate.items() if index == worker.index and nbytes}
        assert memory.intermediate == kept, f"worker {worker.name} counts {memory.intermediate}, and has {kept}"
        promised: Counter[bytes] = Counter()
        coming: set[int] = set()
        for grant in worker.grants.values():
            promised[grant.run.client.identity] += grant.left * grant.bytes_each
            coming.update(grant.coming)
        found = {client: nbytes for client, nbytes in promised.items() if nbytes}
        assert memory.promised == found, f"worker {worker.name} was promised {memory.promised}; its grants say {found}"
        total = sum(found.values())
        assert memory.promised_bytes == total, f"worker {worker.name} counts {memory.promised_bytes} promised: {total}"
        assert memory.coming.keys() <= coming, f"inputs come to {worker.name} for no grant: {memory.coming}, {coming}"
        assert memory.coming_bytes == sum(memory.coming.values()), f"worker {worker.name} counts wrong what comes"
    for identity, client in ledger.clients.items():
        found_running = running[identity]
        assert client.running == found_running, f"{client.name} counts {client.running} running: {found_running}"
