"""The client above an engine, and which class of client `Client(engine=…)` and `Client("dask://…")` make."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from cluster.adapters.engines.desk import Desk
from cluster.adapters.engines.driver import EngineDriver
from cluster.adapters.engines.inline import InlineEngine
from cluster.adapters.engines.protocol import Engine
from cluster.adapters.engines.running import current_run
from cluster.adapters.engines.threads import ThreadsEngine
from cluster.client.client import Client
from cluster.client.providers import adapter, open_local_cluster
from cluster.client.results import Results
from cluster.client.values import AgentConnections, Place
from cluster.errors import ClusterError
from cluster.transport.blocking import BlockingConnection
from cluster.wire.handshake import PeerInfo

__all__ = ["EngineClient", "client_type"]

ENGINES: Final = ("cluster", "dask", "inline", "processes", "ray", "threads")
RESTRICTIONS: Final = ("actor", "allow_other_workers", "memory_bytes", "resources", "timeout_seconds", "workers")


def client_type(engine: str, address: object, asynchronous: bool) -> type[Client]:
    """The class of clients of an engine; raises ValueError for what is none, TypeError for what it cannot be given."""
    if isinstance(address, str) and "://" in address and engine == "cluster":
        engine = address.partition("://")[0]
    if engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}; there are {', '.join(ENGINES)}")
    if asynchronous:
        raise TypeError(
            f"a client of the engine {engine!r} blocks; on an event loop use it by `asyncio.to_thread(…)`, or take "
            "an AsyncClient of a cluster"
        )
    if address is not None and engine not in ("dask", "ray"):
        raise TypeError(f"the engine {engine!r} runs in this process or below it, and takes no address")
    return {"processes": ProcessesClient, "dask": DaskClient, "ray": RayClient}.get(engine, EngineClient)


class ProcessesClient(Client):
    """The client of `engine="processes"`: a cluster of one worker, which ends with the client."""

    def __init__(
        self, address: None = None, *, engine: str = "processes", slots: int | None = None, **options: Any
    ) -> None:
        self._engine_slots = slots
        super().__init__(address, **options)

    def _connect(self) -> BlockingConnection:
        self._cluster = self._own_cluster = open_local_cluster(slots=self._engine_slots)
        return super()._connect()


class EngineClient(Client):
    """A client whose tasks an engine runs; `Client(engine=…)` makes it."""

    _driver_kind = EngineDriver
    _driver: EngineDriver

    def __init__(
        self, address: str | None = None, *, engine: str = "inline", slots: int | None = None, **options: Any
    ) -> None:
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
            raise ValueError(f"slots must be how many tasks run at once, at least 1, not {slots!r}")
        self._engine_name = engine
        self._engine_slots = slots
        self._address = address
        super().__init__(None, **options)

    def _make_engine(self) -> Engine:
        if self._engine_name == "inline":
            return InlineEngine(self, self._engine_slots)
        return ThreadsEngine(self, self._engine_slots or os.cpu_count() or 1)

    # ------------------------------------------------------------------ the beginning and the end

    def _connect(self) -> BlockingConnection:
        self._secret = b""
        self._engine = self._make_engine()
        self.scheduler_address = f"the engine {self._engine.name!r}"
        # Nothing is ever written to it or read from it: it is what the driver's threads wait beside.
        nowhere = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        return BlockingConnection(nowhere, PeerInfo("engine", {}), self.scheduler_address, b"")

    def _stand_on(self, connection: BlockingConnection) -> None:
        super()._stand_on(connection)
        self._desk = Desk(self.id, self._engine.name, self._engine.slots)
        self._connections = _EngineValues(self._driver, self._desk, self._engine)
        if isinstance(self._engine, InlineEngine):
            results = _InlineResults(self._driver, self._submission, self._connections, self._bind_future)
            results.engine = self._engine
            self._results = results
        else:
            self._results = Results(self._driver, self._submission, self._connections, self._bind_future)
        self._driver.stand_on(self._desk, self._engine, self._encode_offered)

    def _shut(self, reason: str = "this client was closed") -> None:
        super()._shut(reason)
        self._engine.close()

    # ------------------------------------------------------------------ what an engine cannot do

    def _possible(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options without those that mean nothing here; raises ClusterError for what the engine cannot promise."""
        restrictions = [name for name in RESTRICTIONS if name in options]
        for name in restrictions:
            if name not in self._engine.without_effect:
                what = "keep actors" if name == "actor" else f"hold to {name.removesuffix('_bytes')}="
                raise ClusterError(
                    f'the engine {self._engine.name!r} cannot {what}; Client(engine="processes") can, and a cluster'
                )
        return {name: option for name, option in options.items() if name not in restrictions}

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client cannot be pickled; in a task, get_client() gives one")


class DaskClient(EngineClient):
    """A client whose tasks run on a Dask cluster: `Client("dask://host:port")`."""

    def _make_engine(self) -> Engine:
        made: Engine = adapter("engines.dask").DaskEngine.connect(self._address, self._timeout_seconds)
        return made


class RayClient(EngineClient):
    """A client whose tasks run on a Ray cluster: `Client("ray://host:port")`, `Client("ray://local")`."""

    def _make_engine(self) -> Engine:
        made: Engine = adapter("engines.ray").RayEngine.connect(self._address)
        return made


class _EngineValues(AgentConnections):
    """Values that did not come along with the notice of a task's end, as the engine has them."""

    def __init__(self, driver: EngineDriver, desk: Desk, engine: Engine) -> None:
        super().__init__(b"")
        self._driver = driver
        self._desk = desk
        self._engine = engine

    def fetch(self, places: Sequence[Place], deadline: float | None) -> dict[int, bytes | memoryview]:
        """The values' bytes, in memory that is the caller's own."""
        with self._driver.lock:
            values = [self._desk.value(place.number) for place in places]
        found = self._engine.fetch(values)
        return {place.number: memoryview(bytearray(data)) for place, data in zip(places, found, strict=True)}


class _InlineResults(Results):
    engine: InlineEngine

    def failure(self, number: int) -> BaseException:
        """What a failed task raised; of the last failure with the frames in which it did."""
        error = super().failure(number)
        with self._driver.guard():
            failure = self._session.failures.get(number)
        key, frames = self.engine.here.last_failure
        if failure is None or failure.details.get("key") != key or current_run() is not None:
            return error  # inside a task it would make the frames of all tasks around it part of its own failure
        return error.with_traceback(frames)
