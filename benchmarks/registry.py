"""All cases, in the order in which they are run and reported."""

from __future__ import annotations

from benchmarks import (
    actors,
    client_values,
    commands,
    dask_collections,
    faces,
    first_value,
    graph_memory,
    graphs,
    hosts,
    latency,
    memory,
    metg,
    nesting,
    output,
    searches,
    spilling,
    startup,
    throughput,
    values,
)
from benchmarks.case import Case

CASES: dict[str, Case] = {
    case.name: case
    for group in (
        throughput,
        latency,
        faces,
        actors,
        client_values,
        nesting,
        graphs,
        first_value,
        memory,
        startup,
        commands,
        metg,
        output,
        hosts,
        searches,
        dask_collections,
        graph_memory,
        values,
        spilling,
    )
    for case in group.CASES
}
