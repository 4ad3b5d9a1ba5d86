"""The ways in for programs that exist already, with workers on several hosts: nothing of them is bound to one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.cluster_on_hosts import ClusterOnHosts

pytestmark = pytest.mark.timeout(90)

JOBLIB = """
    import time
    from pathlib import Path

    import numpy
    from joblib import Parallel, delayed

    from cluster import current

    def meet(folder, number, numbers):
        # Each has a slot of its own until both are there, and there is one a host.
        Path(folder, str(number)).touch()
        while not Path(folder, str(1 - number)).exists():
            time.sleep(0.01)
        return current().worker, float(numbers.sum()) + number

    numbers = numpy.arange(1_000_000.0)
    with Client(address) as client, client.joblib():
        client.wait_for_workers(2)
        found = Parallel(batch_size=1)(delayed(meet)(arguments[0], number, numbers) for number in range(2))
        assert [value - numbers.sum() for _, value in found] == [0, 1]
        print(len({worker for worker, _ in found}))
"""

EXECUTOR = """
    import concurrent.futures

    with Client(address) as client, client.as_executor() as executor:
        client.wait_for_workers(2)
        futures = [executor.submit(pow, number, 2) for number in range(50)]
        assert not concurrent.futures.wait(futures, 30).not_done
        print(sum(future.result() for future in futures))
"""

DASK = """
    import dask.array as da

    with Client(address) as client:
        client.wait_for_workers(2)
        x = client.persist(da.arange(2_000_000, chunks=100_000) % 7)
        print((x + x[::-1]).sum().compute(scheduler=client))
"""


def test_joblib_sends_large_arrays_to_all_hosts(cluster: ClusterOnHosts, tmp_path: Path) -> None:
    cluster.start_scheduler()
    cluster.start_workers(1, 2)
    assert cluster.run_program(JOBLIB, str(tmp_path)) == "2\n"


def test_an_executor_and_collections_of_dask(cluster: ClusterOnHosts) -> None:
    cluster.start_scheduler()
    cluster.start_workers(1, 2)
    assert cluster.run_program(EXECUTOR) == f"{sum(number * number for number in range(50))}\n"
    assert cluster.run_program(DASK) == f"{2 * sum(number % 7 for number in range(2_000_000))}\n"
