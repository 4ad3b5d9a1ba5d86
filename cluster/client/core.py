"""The parts of a client, the life of its connection, and how it asks and waits; what it offers is in `client.py`."""

from __future__ import annotations

import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cluster import config
from cluster.client.driver import Driver
from cluster.client.future import Future, FutureSequence, Origin
from cluster.client.operations import Aside, Operation, Until, answer_to, complete
from cluster.client.options import check_weight
from cluster.client.output_display import OutputDisplay
from cluster.client.own_segments import OfferedBytes, OwnSegments
from cluster.client.providers import LocalClusterLike, open_local_cluster
from cluster.client.results import Results
from cluster.client.submission import Submission
from cluster.client.values import AgentConnections, Pusher
from cluster.daemon import in_slot
from cluster.errors import ClusterError, ConnectionLost
from cluster.ids import new_id
from cluster.secret import load_or_create_secret
from cluster.session.machine import Session
from cluster.transport.blocking import BlockingConnection
from cluster.version import PYTHON_VERSION, __version__
from cluster.wire.encoded import Reference

__all__ = ["ClientCore", "client_of_task", "current_client", "each_future"]

T = TypeVar("T")


class ClientCore:
    """What every part of a client's face stands on."""

    asynchronous = False
    _is_of_a_task = False  # then it is no other code's that asks for a client of this process
    """Whether what waits has to be awaited."""
    _session_kind: type[Session] = Session
    _driver_kind: Callable[..., Driver] = Driver

    def __init__(
        self,
        address: str | LocalClusterLike | None = None,
        *,
        name: str | None = None,
        timeout: float = 10.0,
        directory: str | Path | None = None,
        asynchronous: bool = False,
        weight: float = 1.0,
        show_output: bool = True,
        engine: str = "cluster",
    ) -> None:
        if engine != "cluster":
            raise TypeError(
                f"engine= chooses the class of client: Client(engine={engine!r}), not {type(self).__name__}"
            )
        check_weight(weight)
        self._weight = float(weight)
        if asynchronous is not self.asynchronous and asynchronous:
            raise TypeError(f"{type(self).__name__} blocks; use AsyncClient, or Client(asynchronous=True)")
        self._settings = config.load(directory=Path(directory) if directory is not None else None)
        self._cluster = self._settings.address if address is None else address
        self._own_cluster: LocalClusterLike | None = None
        self._timeout_seconds = timeout
        self._shows_output = show_output
        self.id = new_id()
        self.name = name or f"client-{socket.gethostname()}-{self.id.hex()[:8]}"
        self.scheduler_address = ""
        self._origins: dict[str, Origin] = {}
        self._keyed: dict[str, weakref.ref[Future]] = {}
        self._callbacks: dict[int, list[tuple[Future, Callable[[Future], object]]]] = {}
        self._callback_watch: Any = None
        self._begin()

    # ------------------------------------------------------------------ the beginning

    def _begin(self) -> None:
        """Connect and join, in the way of this face."""
        self._stand_on(self._connect())
        self._complete(self._join())

    def _connect(self) -> BlockingConnection:
        """Start the local cluster, if it has to be this client's own, and connect. May take seconds."""
        address = self._cluster
        if address is None:
            address = self._own_cluster = _take_over_local_cluster() or open_local_cluster()
        try:
            if isinstance(address, str):
                self._secret = load_or_create_secret(self._settings.directory)
                self.scheduler_address = address
                return _connect(address, self._secret, self._timeout_seconds, None)
            self._secret = address.secret
            self.scheduler_address = address.scheduler_address
            deadline = time.monotonic() + self._timeout_seconds
            connection = _connect(self.scheduler_address, self._secret, self._timeout_seconds, address)
            try:
                address.wait_until_joined(deadline - time.monotonic())
            except BaseException:
                connection.close()
                raise
            return connection
        except BaseException:
            self._end_own_cluster()
            raise

    def _stand_on(self, connection: BlockingConnection) -> None:
        """Make the parts that live on a connection."""
        versions = {"python": PYTHON_VERSION, "cluster": __version__}
        self._session = self._session_kind(self.id, self.name, versions, self._weight)
        self._connections = AgentConnections(self._secret, self.scheduler_address, self._settings.fast_paths)
        self._segments = OwnSegments(self._settings.shared_memory_directory)
        self._pusher = Pusher(self._connections, self._segments, self._offered_bytes, self._pushed, self._push_refused)
        self._driver = self._driver_kind(
            connection,
            self._session,
            heartbeat_interval_seconds=self._settings.heartbeat_interval_seconds,
            push=self._pusher.push,
            unneeded=self._segments.let_go,
            forget=self._forget_offered,
        )
        self._submission = Submission(self.id, self._driver, _settle)
        self._results = Results(self._driver, self._submission, self._connections, self._bind_future)
        self._drop = self._session.dropped.append
        self._driver.on_output = OutputDisplay(self._session).show

    def _join(self) -> Operation[None]:
        session, timeout = self._session, self._timeout_seconds
        session.join()
        if self._shows_output:
            session.show_output(True)
        welcomed = yield Until(lambda: session.epoch is not None, time.monotonic() + timeout)
        if not welcomed or session.lost is not None:
            reason = session.lost or f"the scheduler at {self.scheduler_address} did not answer in {timeout} seconds"
            yield Aside(self._shut)
            raise ConnectionLost(reason)
        if not self._is_of_a_task:
            _clients[self.id] = self

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """End the connection: all that this client wants is released, and its futures are of no use any more."""
        self._shut()

    def _shut(self, reason: str = "this client was closed") -> None:
        self._driver.close(reason)
        self._pusher.close()
        self._connections.close()
        self._segments.close()
        self._end_own_cluster()

    def _end_own_cluster(self) -> None:
        cluster, self._own_cluster = self._own_cluster, None
        if cluster is not None:
            cluster.close()

    @property
    def status(self) -> str:
        """ "running", or "closed" when the connection has ended, by `close` or otherwise."""
        return "running" if self._session.lost is None else "closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ asking and waiting

    def _complete(self, operation: Operation[T]) -> T:
        """Carry an operation out, in the way of this face."""
        return complete(self._driver, operation)

    def _complete_at_once(self, operation: Operation[T]) -> T:
        """The same for one that every face carries out when it is called."""
        return complete(self._driver, operation)

    def _complete_for(self, numbers: Sequence[int], operation: Operation[T]) -> T:
        """The same for an operation that gets results; giving it up cancels these tasks, where that can be."""
        return complete(self._driver, operation)

    def _ask(self, what: str, detail: Any = None, deadline: float | None = None) -> Operation[Any]:
        """Ask the scheduler; raises ClusterError with what it says if it cannot do or tell that.

        None when the deadline (of `time.monotonic`) has passed; the answer is thrown away then when it comes.
        """
        self._driver.check()
        with self._driver.guard():
            request = self._session.query(what, detail)
        answer = yield from answer_to(self._driver, request, deadline)
        if answer is None:
            return None
        if answer.error:
            raise ClusterError(answer.error)
        return answer.result

    # ------------------------------------------------------------------ inside

    def _origin(self, label: str) -> Origin:
        origin = self._origins.get(label)
        if origin is None:
            origin = self._origins[label] = Origin(label, -1)
        return origin

    def _bind_future(self, reference: Reference) -> Any:
        """A future that came inside a value."""
        raise NotImplementedError

    def _change(self, futures: Any, change: Callable[[Sequence[int]], None]) -> None:
        wanted = list(each_future(futures))
        for future in wanted:
            self._check_own(future)
        self._change_numbers(sorted({future._wanted() for future in wanted}), change)

    def _change_numbers(self, numbers: Sequence[int], change: Callable[[Sequence[int]], None]) -> None:
        with self._driver.guard():
            change(numbers)
            self._driver.on_change()
            self._driver.wake_ready()
        self._driver.send()

    def _check_own(self, future: Any) -> None:
        if not isinstance(future, Future):
            raise TypeError(f"a Future is needed, and {type(future).__name__} was given: {future!r:.100}")
        if future._client is not self:
            raise ClusterError(f"{future.key} is a future of another client; use that client for it")
        future._wanted()

    def _encode_offered(self, number: int) -> Any:
        return self._submission.encode_offered(number)

    def _offered_bytes(self, number: int) -> OfferedBytes | None:
        return self._submission.offered_bytes(number)

    def _forget_offered(self, numbers: Sequence[int]) -> None:
        self._submission.forget(numbers)

    def _pushed(self, number: int, address: str, error: str, full: bool) -> None:
        with self._driver.guard():
            self._session.pushed(number, address, error, full=full)
        self._driver.send()

    def _push_refused(self, number: int, address: str, message: str, remedy: str) -> None:
        with self._driver.guard():
            self._session.push_refused(number, address, message, remedy)
        self._driver.send()


_clients: weakref.WeakValueDictionary[bytes, ClientCore] = weakref.WeakValueDictionary()
client_of_task: ContextVar[Callable[[], ClientCore] | None] = ContextVar("client_of_task", default=None)
"""What gives the client whose task the calling code is, where an engine other than a slot runs it."""


def current_client(asynchronous: bool | None = None) -> ClientCore | None:
    """The newest client of this process that is open, or None; of one face only, if that is said."""
    task_client, around = client_of_task.get(), in_slot.surroundings()
    if task_client is not None and not asynchronous:
        return task_client()
    if around is not None and not asynchronous:
        own: ClientCore = around.client()  # a task's, made when it is first asked for
        return own
    for client in reversed(list(_clients.values())):
        if client.status == "running" and asynchronous in (None, client.asynchronous):
            return client
    return None


def _take_over_local_cluster() -> LocalClusterLike | None:
    """At a prompt or in a notebook, where the cell that makes the client is run again: the local cluster that an
    earlier client made, which now ends with the new one."""
    if not hasattr(sys, "ps1"):
        return None
    for earlier in reversed(list(_clients.values())):
        cluster = earlier._own_cluster
        if cluster is not None and earlier.status == "running" and not cluster.explain_failure():
            earlier._own_cluster = None
            sys.stdout.write(f"uses the local cluster that {earlier.name} started; it now ends with this client\n")
            return cluster
    return None


def _settle(client_id: bytes) -> None:
    """If this process has that client, wait until the scheduler has got all that it sent: a future of it is named to
    the scheduler by another client, on another connection."""
    client = _clients.get(client_id)
    if client is not None and client.status == "running":
        complete(client._driver, client._ask("ping"))


def _connect(address: str, secret: bytes, timeout: float, cluster: LocalClusterLike | None) -> BlockingConnection:
    try:
        return BlockingConnection.connect(address, secret, "client", ("scheduler",), timeout_seconds=timeout)
    except ClusterError as error:
        explanation = cluster.explain_failure() if cluster is not None else ""
        if explanation:
            raise ConnectionLost(explanation) from error
        raise


def each_future(futures: Any) -> Iterator[Any]:
    """Every future in a container, or the one that was given."""
    if isinstance(futures, dict):
        futures = list(futures.values())
    if isinstance(futures, list | tuple | set | frozenset):
        for each in futures:
            yield from each_future(each)
    elif isinstance(futures, FutureSequence) or (not isinstance(futures, Future) and isinstance(futures, Iterable)):
        yield from futures
    else:
        yield futures
