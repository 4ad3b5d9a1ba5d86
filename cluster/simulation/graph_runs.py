"""Whole graphs on the scheduler's machine in virtual time: how long they take, what is moved, what memory holds.

The scheduler is the real one. The workers are models, so that hundreds of them cost little: each runs what it was
granted on its slots, in order, fetches inputs over its one network link, keeps values, and reports as an agent does.
Their links have a bandwidth and a latency; a transfer takes the sender's and the receiver's link for as long as its
bytes need; workers of one host share values at no cost. What the agents themselves decide is simulated in `world.py`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from cluster.graph.order import depth_first
from cluster.scheduler.machine import Received, Scheduler, Send, Tick
from cluster.wire import messages

__all__ = ["GraphRun", "GraphTask", "Links", "WorkerModel"]

LONGEST_SECONDS: Final = 1e7
EVENTS_LIMIT: Final = 5_000_000


@dataclass(frozen=True, slots=True)
class GraphTask:
    """One task: which others it takes (by index), how long it runs, how large its value is, and its function."""

    inputs: tuple[int, ...]
    seconds: float
    nbytes: int
    function: str = "f"


@dataclass(frozen=True)
class Links:
    """What messages and transfers take."""

    latency_seconds: float = 100e-6
    bytes_per_second: float = 1.25e9  # 10 Gbit/s


@dataclass
class _Granted:
    attempt: int
    row: int
    task: int
    missing: set[tuple[int, int]]
    inputs: list[tuple[int, int]]


class WorkerModel:
    """One worker: slots, a link, values, and what it was granted."""

    def __init__(self, index: int, host: int, slots: int, memory_limit_bytes: int) -> None:
        self.index = index
        self.host = host
        self.address = f"tcp://host{host}:{1000 + index}"
        self.slots = slots
        self.memory_limit_bytes = memory_limit_bytes
        self.free_slots = slots
        self.values: dict[tuple[int, int], int] = {}
        self.held_bytes = 0
        self.peak_bytes = 0
        self.busy_seconds = 0.0
        self.sends = self.receives = False
        self.to_receive: dict[tuple[int, int], tuple[int, list[str]]] = {}  # name -> bytes, and who has it
        self.asked: dict[int, None] = {}  # workers that wait until this one has sent something else
        self.ready: deque[_Granted] = deque()
        self.waiting: dict[tuple[int, int], _Granted] = {}
        self.fetching: dict[tuple[int, int], list[_Granted]] = {}
        self.last_reported_at = 0.0

    def keep(self, name: tuple[int, int], nbytes: int) -> None:
        """A value is here now."""
        if name not in self.values:
            self.values[name] = nbytes
            self.held_bytes += nbytes
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def drop(self, name: tuple[int, int]) -> None:
        """A value is not needed any more."""
        self.held_bytes -= self.values.pop(name, 0)


@dataclass
class _Client:
    peer: int
    tasks: Sequence[GraphTask]
    identity: bytes
    number_of: dict[int, int] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)  # number -> task, of the final tasks
    ended_at: float = 0.0


class GraphRun:
    """Clients that submit one graph each, all at the beginning, and the workers that run them to the end."""

    def __init__(
        self,
        graphs: Sequence[Sequence[GraphTask]],
        workers: Sequence[tuple[int, int]],
        links: Links | None = None,
        late: dict[int, float] | None = None,
        order: Callable[[list[int], Callable[[int], Sequence[int]]], Sequence[int]] = depth_first,
        hosts: Sequence[int] | None = None,
    ) -> None:
        """`workers`: slots and memory limit in bytes of each; `late`: when some of them join, by index; `order`: in
        which tasks are submitted; `hosts`: where each worker runs, if not all at hosts of their own."""
        self.links = links or Links()
        self._order = order
        self.scheduler = Scheduler(1)
        self.now = 0.0
        self.moved_bytes = 0
        self.started: list[int] = []  # tasks in the order of their starts, of the first client
        self._heap: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._planned = 0
        self._events = 0
        self._wakeup_planned = float("inf")
        self._functions: dict[bytes, str] = {}
        self._task_of: dict[int, tuple[_Client, int]] = {}
        self.workers = [
            WorkerModel(index, index if hosts is None else hosts[index], *shape) for index, shape in enumerate(workers)
        ]
        self._at: dict[str, WorkerModel] = {worker.address: worker for worker in self.workers}
        for worker in self.workers:
            if not late or worker.index not in late:
                self._join(worker)
            else:
                self._after(late[worker.index], self._join, worker)
        self.clients = [
            _Client(len(self.workers) + place, tasks, b"%16d" % place) for place, tasks in enumerate(graphs)
        ]
        for client in self.clients:
            self._submit(client)

    # ------------------------------------------------------------------ time

    def _after(self, seconds: float, action: Any, *arguments: Any) -> None:
        self._planned += 1
        heappush(self._heap, (self.now + seconds, self._planned, action, arguments))

    def run(self) -> float:
        """Until every client has what it wants; how long that took. Raises AssertionError if it never ends."""
        while any(client.wanted for client in self.clients):
            assert self._heap, f"nothing moves at {self.now} s: {self._stuck()}"
            self.now, _, action, arguments = heappop(self._heap)
            self._events += 1
            assert self.now < LONGEST_SECONDS and self._events < EVENTS_LIMIT, f"it does not end: {self._stuck()}"
            action(*arguments)
        return max(client.ended_at for client in self.clients)

    def _stuck(self) -> str:
        left = [len(client.wanted) for client in self.clients]
        return f"clients wait for {left}, {self.scheduler.ledger.ready_rows} tasks are ready"

    def _tell(self, peer: int, message: Any) -> None:
        self._handle(Received(peer, message))

    def _handle(self, event: Received | Tick) -> None:
        for effect in self.scheduler.handle(self.now, event):
            assert isinstance(effect, Send), f"the scheduler closed a connection: {effect}"
            self._after(self.links.latency_seconds, self._hear, effect.peer, effect.message)
        wakeup = max(self.scheduler.next_wakeup, self.now)
        if wakeup < self._wakeup_planned:
            self._wakeup_planned = wakeup
            self._after(wakeup - self.now, self._wake, wakeup)

    def _wake(self, planned: float) -> None:
        if planned == self._wakeup_planned:
            self._wakeup_planned = float("inf")
        if self.scheduler.next_wakeup <= self.now:
            self._handle(Tick())
        elif self.scheduler.next_wakeup < self._wakeup_planned:
            self._wakeup_planned = self.scheduler.next_wakeup
            self._after(self._wakeup_planned - self.now, self._wake, self._wakeup_planned)

    # ------------------------------------------------------------------ a client

    def _submit(self, client: _Client) -> None:
        """As a client submits a graph: consecutive tasks of a function together, then all let go of but the final
        ones."""
        self._tell(client.peer, messages.ClientJoin(client.identity, f"client{client.peer}", {}))
        tasks = client.tasks
        used = {source for task in tasks for source in task.inputs}
        finals = [index for index in range(len(tasks)) if index not in used]
        order = self._order(finals, lambda index: tasks[index].inputs)
        part: list[int] = []
        for index in order:
            if part and (tasks[part[0]].function != tasks[index].function or len(part) == 2048):
                self._send_part(client, part)
                part = []
            client.number_of[index] = len(client.number_of)
            part.append(index)
        self._send_part(client, part)
        client.wanted = {client.number_of[index]: index for index in finals}
        runs: list[int] = []
        for number in range(len(order)):
            if number not in client.wanted:
                if runs and runs[-2] + runs[-1] == number:
                    runs[-1] += 1
                else:
                    runs += (number, 1)
        self._tell(client.peer, messages.Release(runs))

    def _send_part(self, client: _Client, part: list[int]) -> None:
        tasks = client.tasks
        function = tasks[part[0]].function
        identity = f"{client.peer} {function}".encode()
        if identity not in self._functions:
            self._functions[identity] = function
            self._tell(client.peer, messages.DefineFunction(identity, function, b"code"))
        starts, inputs = array("I", (0,)), array("q")
        for index in part:
            inputs.extend(client.number_of[source] for source in tasks[index].inputs)
            starts.append(len(inputs))
        first = client.number_of[part[0]]
        dependencies = (starts.tobytes(), inputs.tobytes()) if inputs else (b"", b"")
        self._tell(
            client.peer, messages.Submit(first, len(part), -1, identity, function, {}, 0, b"", b"", *dependencies)
        )
        record = self.scheduler.ledger.clients[client.identity]
        for index in part:
            self._task_of[record.row(client.number_of[index])] = (client, index)

    # ------------------------------------------------------------------ what is heard

    def _hear(self, peer: int, message: Any) -> None:
        if peer >= len(self.workers):
            self._client_hears(self.clients[peer - len(self.workers)], message)
            return
        worker = self.workers[peer]
        match message:
            case messages.Grant():
                self._granted(worker, message)
            case messages.Free(values):
                for position in range(0, len(values), 3):
                    attempt, first, count = values[position : position + 3]
                    for row in range(first, first + count):
                        worker.drop((row, attempt))
            case messages.Recall(request, count):
                names: list[int] = []
                while worker.ready and len(names) < 2 * count:
                    back = worker.ready.pop()
                    names += (back.attempt, back.row)
                self._say(worker, messages.Recalled(1, request, names))
            case messages.Fetch(copies):
                for row, attempt, nbytes, addresses in copies:
                    self._fetch(worker, (row, attempt), nbytes, addresses, None)

    def _client_hears(self, client: _Client, message: Any) -> None:
        if isinstance(message, messages.Failed):
            raise AssertionError(f"a task failed: {message.details}")
        if isinstance(message, messages.Finished):
            for position in range(0, len(message.runs), 2):
                for number in range(message.runs[position], message.runs[position] + message.runs[position + 1]):
                    client.wanted.pop(number, None)
            if not client.wanted:
                client.ended_at = self.now

    # ------------------------------------------------------------------ a worker

    def _join(self, worker: WorkerModel) -> None:
        name = f"w{worker.index}"
        self._tell(
            worker.index,
            messages.WorkerJoin(
                b"%16d" % worker.index, name, worker.address, worker.slots, worker.memory_limit_bytes, {}, {}, 1
            ),
        )
        self._after(1.0, self._beat, worker)

    def _beat(self, worker: WorkerModel) -> None:
        self._tell(worker.index, messages.AgentHeartbeat(1, {}))
        self._after(1.0, self._beat, worker)

    def _say(self, worker: WorkerModel, message: Any) -> None:
        self._after(self.links.latency_seconds, self._tell, worker.index, message)

    def _granted(self, worker: WorkerModel, grant: messages.Grant) -> None:
        starts, indices = array("I", grant.input_starts), array("I", grant.inputs)
        place = 0
        for position in range(0, len(grant.runs), 2):
            for row in range(grant.runs[position], grant.runs[position] + grant.runs[position + 1]):
                mine = indices[starts[place] : starts[place + 1]] if starts else indices
                place += 1
                values = [grant.values[index] for index in mine]
                names = [(value[0], value[1]) for value in values]
                granted = _Granted(grant.attempt, row, self._task_of[row][1], set(), names)
                for value, name in zip(values, names, strict=True):
                    if name not in worker.values:
                        granted.missing.add(name)
                        self._fetch(worker, name, value[2], value[3], granted)
                if granted.missing:
                    worker.waiting[grant.attempt, row] = granted
                else:
                    worker.ready.append(granted)
        self._start(worker)

    def _fetch(
        self, worker: WorkerModel, name: tuple[int, int], nbytes: int, addresses: list[str], granted: _Granted | None
    ) -> None:
        waiting = worker.fetching.get(name)
        if waiting is None:
            waiting = worker.fetching[name] = []
            if any(self._at[address].host == worker.host for address in addresses):
                self._after(2 * self.links.latency_seconds, self._arrived, worker, name, nbytes)  # a link to it is made
            else:
                self.moved_bytes += nbytes
                worker.to_receive[name] = nbytes, addresses
                self._after(self.links.latency_seconds, self._receive, worker)
        elif name in worker.to_receive:  # a value that many need: now there is somebody who has time for it
            worker.to_receive[name] = nbytes, addresses
            self._receive(worker)
        if granted is not None:
            waiting.append(granted)

    def _receive(self, worker: WorkerModel) -> None:
        """Begin the first transfer whose sender is free, if the worker's own link is."""
        if worker.receives:
            return
        for name, (nbytes, addresses) in worker.to_receive.items():
            for address in addresses:
                source = self._at[address]
                if not source.sends:
                    del worker.to_receive[name]
                    source.sends = worker.receives = True
                    seconds = nbytes / self.links.bytes_per_second
                    self._after(seconds, self._received, worker, source, name, nbytes)
                    return
                source.asked[worker.index] = None

    def _received(self, worker: WorkerModel, source: WorkerModel, name: tuple[int, int], nbytes: int) -> None:
        source.sends = worker.receives = False
        asked, source.asked = source.asked, {}
        self._arrived(worker, name, nbytes)
        self._receive(worker)
        for index in asked:
            self._receive(self.workers[index])

    def _arrived(self, worker: WorkerModel, name: tuple[int, int], nbytes: int) -> None:
        worker.keep(name, nbytes)
        self._say(worker, messages.Held(1, [*name, nbytes]))
        for granted in worker.fetching.pop(name):
            granted.missing.discard(name)
            if not granted.missing:
                del worker.waiting[granted.attempt, granted.row]
                worker.ready.append(granted)
        self._start(worker)

    def _start(self, worker: WorkerModel) -> None:
        while worker.free_slots and worker.ready:
            granted = worker.ready.popleft()
            worker.free_slots -= 1
            client, index = self._task_of[granted.row]
            task = client.tasks[index]
            if client is self.clients[0]:
                self.started.append(index)
            worker.busy_seconds += task.seconds
            self._after(task.seconds, self._ended, worker, granted, task)

    def _ended(self, worker: WorkerModel, granted: _Granted, task: GraphTask) -> None:
        worker.free_slots += 1
        worker.keep((granted.row, granted.attempt), task.nbytes)
        sizes = array("Q", (task.nbytes,)).tobytes()
        done = messages.Done(1, granted.attempt, [granted.row, 1], sizes, b"", b"", task.seconds, task.seconds, [])
        self._say(worker, done)
        self._start(worker)
