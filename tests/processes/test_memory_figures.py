"""What a worker says of its memory, on real daemons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster import Client
from tests.processes.whole_cluster import until, whole_cluster

pytestmark = pytest.mark.timeout(60)


def keep(nbytes: int) -> int:
    """Hold memory that is no value's, as a leak does."""
    import builtins

    builtins.kept = np.ones(nbytes, np.uint8)  # type: ignore[attr-defined]
    return nbytes


def change(values: np.ndarray[Any, Any]) -> float:
    values += 1
    return float(values[0])


def report(client: Client) -> dict[str, Any]:
    (worker,) = client.scheduler_info()["workers"].values()
    figures: dict[str, Any] = worker["report"]
    return figures


def test_values_are_counted_exactly_and_heaps_are_measured() -> None:
    with whole_cluster() as cluster:
        client = cluster.client()
        client.submit(abs, 1).result(30)
        until(lambda: report(client).get("slot_bytes", 0) > 0, "the slots were measured")
        before = report(client)["slot_bytes"]
        future = client.submit(np.ones, 1_000_000)
        assert client.submit(change, future).result(30) == 2.0
        client.submit(keep, 200 << 20).result(30)
        until(lambda: report(client)["slot_bytes"] > before + (200 << 20), "the heap was measured")
        nbytes = report(client)["segment_bytes"]
        assert 8_000_000 < nbytes < 8_001_000
        assert report(client)["promised_bytes"] == 0
        future.release()
        until(lambda: report(client)["segment_bytes"] == 0, "the value is not counted any more")
