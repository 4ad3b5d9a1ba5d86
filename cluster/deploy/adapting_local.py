"""The thread that adapts a local cluster: it asks the scheduler, lets `adapting.py` decide, starts and retires."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cluster import config
from cluster.client.inquiry import Inquiry
from cluster.deploy.adapting import Adapting, Load, WorkerLoad
from cluster.errors import ClusterError

if TYPE_CHECKING:
    from cluster.deploy.local import LocalCluster

__all__ = ["Adaptation"]

INTERVAL_SECONDS: Final = 0.5
RETIRED_WITHIN_SECONDS: Final = 5.0
"""So long a worker without tasks may take to hand on its values before others are looked at again."""

_log = logging.getLogger(__name__)


class Adaptation:
    """Adapts a local cluster until it ends. Every change is logged with its reason."""

    def __init__(self, cluster: LocalCluster, adapting: Adapting) -> None:
        self._cluster = weakref.ref(cluster)
        self.adapting = adapting
        self._address = cluster.scheduler_address
        self._settings = config.load(directory=cluster.directory)
        self._ended = threading.Event()
        self._going: set[str] = set()  # names of workers that were told to go
        self._thread = threading.Thread(target=self._run, name="cluster-adapting", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Change nothing more; returns when nothing is being changed."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            with Inquiry(self._address, self._settings) as inquiry:
                while not self._ended.is_set():
                    self._step(inquiry)
                    self._ended.wait(INTERVAL_SECONDS)
        except ClusterError as error:
            if not self._ended.is_set() and self._cluster() is not None:
                _log.warning("the local cluster at %s is not adapted any more: %s", self._address, error)

    def _step(self, inquiry: Inquiry) -> None:
        backlog: dict[str, Any] = inquiry.ask("backlog")
        info: dict[str, Any] = inquiry.ask("scheduler_info")["workers"]
        cluster = self._cluster()
        if cluster is None:
            self._ended.set()
            return
        staying = [
            WorkerLoad(worker["name"], worker["granted"], worker["held_bytes"])
            for worker in info.values()
            if not worker["draining"] and worker["name"] not in self._going
        ]
        there = cluster.forget_ended()
        self._going &= there
        load = Load(backlog["seconds"], backlog["tasks"], [worker for worker in staying if worker.name in there])
        decision = self.adapting.decide(time.monotonic(), load, len(there - self._going))
        if decision.workers > len(there - self._going):
            _log.info("%d workers and not %d: %s", decision.workers, len(there - self._going), decision.why)
            cluster.scale(decision.workers + len(self._going))
        if decision.retire:
            _log.info("workers %s are to go: %s", ", ".join(decision.retire), decision.why)
            self._going.update(decision.retire)
            del cluster
            self._retire(decision.retire)

    def _retire(self, names: list[str]) -> None:
        # On a connection of its own, since the answer comes when they have gone, and that may take longer.
        with suppress(ClusterError), Inquiry(self._address, self._settings) as inquiry:
            inquiry.ask("retire_workers", {"workers": names, "close": True}, timeout_seconds=RETIRED_WITHIN_SECONDS)
