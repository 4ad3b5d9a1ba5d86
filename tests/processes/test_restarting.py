"""A worker that starts itself anew goes on as the same worker."""

from __future__ import annotations

import os
import sys
import textwrap

from tests.processes.whole_cluster import Daemon, until, whole_cluster

# The command, in whose process the first agent ends at once as if its memory had run out.
PROGRAM = """
    import os, sys
    from cluster.cli import worker
    from cluster.daemon.agent import AgentDaemon
    from cluster.worker.events import RESTART_STATUS

    async def run(self):
        await self._shut_down()
        return RESTART_STATUS

    AgentDaemon.run = run
    worker.main(sys.argv[1:])
"""


def test_a_worker_that_is_to_start_again_is_the_same_process_with_the_same_arguments() -> None:
    with whole_cluster(workers=0) as cluster:
        arguments = (cluster.address, "--directory", cluster.directory, "--slots", "3", "--name", "phoenix")
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments]
        with Daemon(command, {**os.environ, "CLUSTER__DRAIN_SECONDS": "0.5"}) as worker:
            worker.wait_for("phoenix at .* joined .* with 3 slots")
            client = cluster.client()
            until(lambda: client.scheduler_info()["workers"], "it has joined")
            assert client.submit(abs, -1).result(20) == 1
            (info,) = client.scheduler_info()["workers"].values()
            assert info["name"] == "phoenix"
