"""All cases, in the order in which they are run and reported."""

from __future__ import annotations

from benchmarks import first_value, graphs, latency, memory, metg, startup, throughput
from benchmarks.case import Case

CASES: dict[str, Case] = {
    case.name: case
    for group in (throughput, latency, graphs, first_value, memory, startup, metg)
    for case in group.CASES
}
